"""Write a merge in its base's own quantized format, in bounded memory, and measure what rounding leaves of it."""

import dataclasses
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mooring.errors import MismatchError, UserError
from mooring.merging.pair import ModelPair, OutputTensor
from mooring.merging.slices import CELL, SLICE, cells, cut, hash_values, scratch, widened
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


def _survival(wanted: Tensor, reached: Tensor) -> Survival:
    """What is left of a change (float32, flat) as `reached`."""
    change, left = widened("change", wanted, torch.float64), widened("left", reached, torch.float64)
    changed, moved = (values.numpy() != 0 for values in (wanted, reached))
    return Survival(
        product=float(change.dot(left)),
        square=float(change.dot(change)),
        changed=int(np.count_nonzero(changed)),
        moved=int(np.count_nonzero(changed & moved)),
        equal=not moved.any(),
    )


@dataclasses.dataclass(frozen=True, slots=True)
class Made:
    """What was written of some tensors: the digest of each stored one, and what survives in each quantized one."""

    digests: Mapping[str, TensorDigest]
    survival: Mapping[str, Survival]


class _InOrder:
    """A digest of parts that come in about their order; only those that came too early are kept."""

    def __init__(self) -> None:
        self.digest = TensorDigest()
        self._early: dict[int, Part] = {}

    def add(self, offset: int, part: Part) -> None:
        """Add the part that begins at a byte."""
        self._early[offset] = part
        while self.digest.seen in self._early:
            self.digest.add(self._early.pop(self.digest.seen))


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
        self._open: dict[str, _InOrder] = {}
        self._made: dict[str, TensorDigest] = {}
        self._lock = threading.Lock()
        self.survival: dict[str, Survival] = {}

    def take(self) -> Made:
        """See `Collecting.take`."""
        assert not self._pieces
        made = Made({name: each.digest for name, each in self._open.items()}, self.survival)
        self._open, self.survival = {}, {}
        return made

    def add(self, made: Made) -> None:
        """See `Collecting.add`."""
        self._made |= made.digests
        self.survival |= made.survival

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
            part = values.view(-1)[low - start : high - start]
            if (low, high) == (first, last):
                self._quantize(tensor, first, part)
                continue
            with self._lock:
                whole, missing = self._pieces.pop((name, piece), (None, last - first))
                if whole is None:
                    whole = torch.empty(last - first, dtype=torch.float32)
                whole[low - first : high - first] = part
                missing -= high - low
                if missing:
                    self._pieces[name, piece] = whole, missing
            if not missing:
                self._quantize(tensor, first, whole)

    def _quantize(self, tensor: Requantizable, start: int, values: Tensor) -> None:
        stored, count = self._base.stored, len(values)
        before = widened("before", self._base.read(tensor.name, start, start + count), torch.float32)
        change = torch.sub(values, before, out=scratch("wanted", count, torch.float32))
        runs = tensor.quantize(stored, start, values, change)
        after = widened("after", tensor.values_of(stored, start, count, runs), torch.float32)
        for part, (first, run) in runs.items():
            self._writer.write(part, first, run.contiguous())
            self._hash(part, first, run.contiguous())
        found = Survival()
        for wanted, reached in cells(CELL, change, after.sub_(before)):
            found.add(_survival(wanted, reached))
        with self._lock:
            self.survival.setdefault(tensor.name, Survival()).add(found)

    def _hash(self, name: str, start: int, values: Tensor) -> None:
        part = hash_values(start, values)
        with self._lock:
            self._open.setdefault(name, _InOrder()).add(start * values.dtype.itemsize, part)

    def finish(self) -> dict[str, TensorDigest]:
        """Copy what has no changed values from the base; returns the digest of every stored tensor."""
        for info in self._base.stored.tensors.values():
            if info.name not in self._open and info.name not in self._made:
                for piece in cut(info.name, 0, info.numel, SLICE // info.dtype.itemsize):
                    self.write_copy(info.name, piece.start, self._base.stored.read(info.name, piece.start, piece.stop))
        self.add(self.take())
        return {name: self._made.get(name) or TensorDigest() for name in self._writer.tensors}

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
