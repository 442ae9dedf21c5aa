"""Write a merge in its base's own quantized format, in bounded memory, and measure what rounding leaves of it."""

import dataclasses
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from mooring.errors import MismatchError, UserError
from mooring.merging.pair import ModelPair, OutputTensor
from mooring.merging.slices import SLICE, cut, hash_values
from mooring.models import Checkpoint, Part, TensorDigest, Writer
from mooring.models.quantization import Requantizable


def check_kept(pair: ModelPair) -> None:
    """Check that a merge can be written in its base's quantized format.

    Raises:
        UserError: The base is not quantized, or its format cannot be written (`usage.keep_quantization`).
    """
    base = pair.base
    if not base.quantized:
        what = f"{base.folder}: is not quantized, so there is no format to keep"
        raise UserError(what, "leave out --keep-quantization", code="usage.keep_quantization")
    for name, tensor in base.quantized.items():
        if not isinstance(tensor, Requantizable):
            what = f"{base.folder}: {tensor.format} cannot be written again"
            hint = "leave out --keep-quantization, and quantize the merge with the tool that quantized the base"
            raise UserError(what, hint, code="usage.keep_quantization")
        if pair.tensors[name].shape != tensor.shape:
            what = f"{base.folder}: {name} is quantized, and would have other rows in the merge"
            raise UserError(what, "leave out --keep-quantization", code="usage.keep_quantization")


def stored_tensors(pair: ModelPair) -> Iterator[OutputTensor]:
    """The tensors of the output as they are stored: those of the base, and what the merge adds to them."""
    base = pair.base
    files = base.output_shards
    for info in base.stored.tensors.values():
        if info.name in pair.tensors and info.name not in base.quantized:
            yield pair.tensors[info.name]
        else:
            file = files.get(info.file.name, info.file.name)
            yield OutputTensor(info.name, info.dtype, info.shape, info.numel, (), 0, file)
    yield from (t for name, t in pair.tensors.items() if name not in base.quantized and name not in base.stored.tensors)


@dataclasses.dataclass(slots=True)
class Survival:
    """What rounding leaves of a tensor's change.

    Attributes:
        product: Inner product of the change before and after rounding.
        square: Inner product of the change before rounding with itself.
        changed: Entries that the merge changes.
        moved: Entries of these that are stored with another value than the base's.
        equal: Whether all entries are stored with the base's value.
    """

    product: float = 0.0
    square: float = 0.0
    changed: int = 0
    moved: int = 0
    equal: bool = True

    def add(self, other: "Survival") -> None:
        """Add another part of the tensor."""
        self.product += other.product
        self.square += other.square
        self.changed += other.changed
        self.moved += other.moved
        self.equal = self.equal and other.equal

    def to_json(self) -> dict[str, float]:
        """Two shares that survive: `change`, the projection on the change before rounding, and `entries` that moved."""
        return {
            "change": round(self.product / self.square, 4) if self.square else 1.0,
            "entries": round(self.moved / self.changed, 4) if self.changed else 1.0,
        }


class RequantizingSink:
    """The output's files, which take merged values in float32 and hold codes and scales.

    Values are collected until everything that shares a scale is there. The digests are those of what is stored.

    Args:
        base: The base.
        writer: The files, with the base's stored tensors.
    """

    def __init__(self, base: Checkpoint, writer: Writer) -> None:
        self._base, self._writer = base, writer
        self._pieces: dict[tuple[str, int], tuple[Tensor, int]] = {}
        self._parts: dict[str, dict[int, Part]] = {}
        self._lock = threading.Lock()
        self.survival: dict[str, Survival] = {}

    def write(self, name: str, start: int, values: Tensor) -> None:
        """See `Sink.write`."""
        tensor = self._base.quantized.get(name)
        if tensor is None:
            self._writer.write(name, start, values)
            self._hash(name, start, values)
            return
        assert isinstance(tensor, Requantizable)
        count = self._base.tensors[name].numel
        for piece in range(start // tensor.piece, -(-(start + values.numel()) // tensor.piece)):
            first, last = piece * tensor.piece, min((piece + 1) * tensor.piece, count)
            low, high = max(start, first), min(start + values.numel(), last)
            with self._lock:
                whole, missing = self._pieces.pop((name, piece), (None, last - first))
                if whole is None:
                    whole = torch.empty(last - first, dtype=torch.float32)
                whole[low - first : high - first] = values.view(-1)[low - start : high - start]
                missing -= high - low
                if missing:
                    self._pieces[name, piece] = whole, missing
            if not missing:
                self._quantize(tensor, first, whole)

    def _quantize(self, tensor: Requantizable, start: int, values: Tensor) -> None:
        stored, count = self._base.stored, len(values)
        before = self._base.read(tensor.name, start, start + count).float()
        runs = tensor.quantize(stored, start, values, before)
        after = tensor.values_of(stored, start, count, runs).float()
        for part, (first, run) in runs.items():
            self._writer.write(part, first, run.contiguous())
            self._hash(part, first, run.contiguous())
        wanted, reached = values.sub_(before), after.sub_(before)
        changed = wanted != 0
        found = Survival(
            product=float(wanted.double().dot(reached.double())),
            square=float(wanted.double().square().sum()),
            changed=int(changed.sum()),
            moved=int((changed & (reached != 0)).sum()),
            equal=not bool(reached.any()),
        )
        with self._lock:
            self.survival.setdefault(tensor.name, Survival()).add(found)

    def _hash(self, name: str, start: int, values: Tensor) -> None:
        part = hash_values(start, values)
        with self._lock:
            self._parts.setdefault(name, {})[start] = part

    def finish(self) -> dict[str, TensorDigest]:
        """Copy what has no changed values from the base; returns the digest of every stored tensor."""
        for info in self._base.stored.tensors.values():
            if info.name not in self._parts:
                for piece in cut(info.name, 0, info.numel, SLICE // info.dtype.itemsize):
                    self.write_copy(info.name, piece.start, self._base.stored.read(info.name, piece.start, piece.stop))
        digests = {name: TensorDigest() for name in self._writer.tensors}
        for name in digests:
            for _, part in sorted(self._parts.get(name, {}).items()):
                digests[name].add(part)
        return digests

    def write_copy(self, name: str, start: int, values: Tensor) -> None:
        """Write elements of a stored tensor as they are."""
        self._writer.write(name, start, values)
        self._hash(name, start, values)

    def check_differs(self, plain: bool) -> None:
        """Raise if everything is stored with the base's value.

        Args:
            plain: Whether the merge changes tensors that are not quantized.

        Raises:
            MismatchError: The merge equals its base (`model.rounds_to_base`).
        """
        if not plain and all(each.equal for each in self.survival.values()):
            what = f"{self._base.folder}: the whole change is lost in rounding, so the merge would equal its base"
            hint = "leave out --keep-quantization, or give a larger λ"
            raise MismatchError(what, hint, code="model.rounds_to_base")

    def to_json(self) -> Mapping[str, Any]:
        """What survives of the change of each tensor that was requantized, by name."""
        return {name: each.to_json() for name, each in sorted(self.survival.items())}
