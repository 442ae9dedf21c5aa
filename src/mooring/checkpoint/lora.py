"""A PEFT LoRA adapter on its base: the tuned model's tensors, a slice at a time."""

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mooring.checkpoint.header import TensorInfo, read_header
from mooring.checkpoint.lora_fit import Bound, Fit, fit
from mooring.checkpoint.lora_parts import ADAPTER_CONFIG as ADAPTER_CONFIG
from mooring.checkpoint.lora_parts import Change, check_kind, parse
from mooring.checkpoint.reader import Checkpoint, TensorFiles, read_json
from mooring.errors import ModelError

ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADAPTER_PICKLE = "adapter_model.bin"

BLOCK = 2**17
"""Elements that are multiplied out together, in whole rows on a fixed grid: a matrix product may round differently
when its shape differs, so that its shape must not hang on how the caller slices."""

_CACHE = 32 * 2**20
"""Bytes of factors that are kept between slices, unless one alone is larger."""


class Adapter(TensorFiles):
    """An adapter in a folder. `bind` it to its base before asking for tuned values.

    Attributes:
        folder: Where it lies.
        config: Its `adapter_config.json`.
        changes: Name of a tensor, as in the model that it tuned, to what the adapter says about it.
    """

    def __init__(self, folder: Path, config: dict[str, Any], infos: Sequence[TensorInfo]) -> None:
        super().__init__(infos)
        self.folder = folder
        self.config = config
        self.changes: Mapping[str, Change] = parse(folder, config, self.tensors)
        self._base: Checkpoint | None = None
        self._fit: Fit | None = None
        self._changed: frozenset[str] = frozenset()
        self._factors: OrderedDict[str, Tensor] = OrderedDict()
        self._norms: dict[str, Tensor] = {}
        self._busy = threading.Lock()
        self._lock_for_norms = threading.Lock()

    @property
    def base_name(self) -> str | None:
        """The model that it was tuned from: a hub id, or a path on the machine where it was tuned."""
        name = self.config.get("base_model_name_or_path")
        return str(name) if name else None

    def bind(self, base: Checkpoint) -> None:
        """Lay the adapter on its base, which must stay open as long as tuned values are read.

        Raises:
            MismatchError: It does not fit: a tensor is missing in the base or has another shape or type.
        """
        self._fit = fit(self.folder, self.config, self, self.changes, base)
        self._base = base
        self._changed = frozenset(self._fit.bound)
        self._norms.clear()

    @property
    def fit(self) -> Fit:
        """How it lies on its base."""
        if self._fit is None:
            raise ValueError(f"{self.folder}: the adapter is not bound to a base")
        return self._fit

    @property
    def changed(self) -> frozenset[str]:
        """The base's tensors that it touches, and a head that it parts from a tied embedding by changing it."""
        return self._changed

    @property
    def sources(self) -> Mapping[str, str]:
        """Name of a tensor in `changes` to the base's tensor that has its values before tuning."""
        return self.fit.sources

    @property
    def unties(self) -> Mapping[str, str]:
        """A head that the base ties and does not store, where it parts from its embedding: name to the base's tensor
        that has its base values. The output must store it by itself."""
        return self.fit.unties

    @property
    def breaks_tie(self) -> bool:
        """Whether head and embedding, tied in the base, differ in the tuned model: its config must not tie them."""
        return self.fit.parts

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape in the tuned model: the base's, but for an embedding or head saved with other rows."""
        bound = self.fit.bound.get(name)
        assert self._base is not None
        return bound.shape if bound else self._base.tensors[self.unties.get(name, name)].shape

    def read_tuned(self, name: str, start: int, stop: int, base: Tensor) -> Tensor:
        """Elements [start, stop) of a flattened tensor of the tuned model.

        W + scale·B·A (Hu et al. 2021, arXiv:2106.09685); under DoRA m·(W + scale·B·A)/‖W + scale·B·A‖, with a norm an
        output (an embedding's: a column), as PEFT computes it (Liu et al. 2024, arXiv:2402.09353). Works in bounded
        memory, on any number of threads; the same bytes whatever the slices.

        Args:
            name: A tensor of the base, or a head in `unties`.
            start: First element.
            stop: One past the last.
            base: The same elements of the base, flattened; not used where the adapter stores the whole tensor.

        Returns:
            float32, or float64 where the base is, not rounded; a whole stored tensor in its storage type; `base`
            itself where the adapter does not touch it.

        Raises:
            ModelError: As `read`.
        """
        bound = self.fit.bound.get(name)
        if bound is None:
            return base
        change = bound.change
        values = base if change.stored is None else self.read(change.stored, start, stop)
        if change.shift is not None:
            shift = self.read(change.shift, start, stop).float() * change.scale
            return _add(shift, values)
        if change.a is None:
            return values
        values = _add(self._product(bound, start, stop), values)
        if change.magnitude is None:
            return values
        return values.mul_(_spread(self._norm(name, bound).to(values.dtype), bound, start, stop))

    def _product(self, bound: Bound, start: int, stop: int) -> Tensor:
        """scale·B·A at elements [start, stop) of the weight as it is stored, in float32."""
        change = bound.change
        assert change.a is not None
        assert change.b is not None
        rows, columns = bound.shape
        step = max(1, BLOCK // columns)
        first, last = start // columns // step * step, min(rows, -(-stop // columns))
        last = min(rows, -(-last // step) * step)
        right = self._right(bound)
        left = self._left(bound, first, last)
        out = torch.empty(stop - start, dtype=torch.float32)
        for row in range(first, last, step):
            block = (left[row - first : min(row + step, last) - first] @ right).view(-1)
            low, high = max(start, row * columns), min(stop, row * columns + block.numel())
            out[low - start : high - start] = block[low - row * columns : high - row * columns]
        return out

    def _left(self, bound: Bound, first: int, last: int) -> Tensor:
        """Rows [first, last) of the left factor, in float32: B, or Aᵀ where the weight lies transposed."""
        change = bound.change
        assert change.a is not None
        assert change.b is not None
        rank = self.tensors[change.a].shape[0]
        if not bound.transposed:
            return self.read(change.b, first * rank, last * rank).view(-1, rank).float()
        rows = bound.shape[0]
        parts = [self.read(change.a, i * rows + first, i * rows + last) for i in range(rank)]
        return torch.stack(parts).T.float().contiguous()

    def _right(self, bound: Bound) -> Tensor:
        """The right factor times scale, in float32: A, or Bᵀ where the weight lies transposed."""
        key = bound.change.b if bound.transposed else bound.change.a
        assert key is not None
        with self._busy:
            if key not in self._factors:
                factor = self.tensor(key).float()
                self._factors[key] = (factor.T.contiguous() if bound.transposed else factor) * bound.change.scale
                while len(self._factors) > 1 and sum(f.nbytes for f in self._factors.values()) > _CACHE:
                    self._factors.popitem(last=False)
            self._factors.move_to_end(key)
            return self._factors[key]

    def _norm(self, name: str, bound: Bound) -> Tensor:
        """DoRA's factor m / ‖W + scale·B·A‖, one an output, in float64; found once, in bounded memory."""
        magnitude = bound.change.magnitude
        assert magnitude is not None
        with self._lock_for_norms:
            if name not in self._norms:
                squares = self._squares(bound)
                self._norms[name] = self.read(magnitude).double() / squares.sqrt_()
            return self._norms[name]

    def _squares(self, bound: Bound) -> Tensor:
        """‖W + scale·B·A‖², one an output, in float64."""
        assert self._base is not None
        rows, columns = bound.shape
        step = max(1, 4 * BLOCK // columns)
        squares = torch.zeros(columns if bound.transposed else rows, dtype=torch.float64)
        for row in range(0, rows, step):
            start, stop = row * columns, min(row + step, rows) * columns
            stored = bound.change.stored
            values = self._base.read(bound.base, start, stop) if stored is None else self.read(stored, start, stop)
            block = _add(self._product(bound, start, stop), values).double().square_().view(-1, columns)
            if bound.transposed:
                squares += block.sum(0)
            else:
                squares[row : row + step] = block.sum(1)
        return squares


def _add(change: Tensor, values: Tensor) -> Tensor:
    """change + values, in float32, or float64 where the values are."""
    return values + change if values.dtype == torch.float64 else change.add_(values)


def _spread(factor: Tensor, bound: Bound, start: int, stop: int) -> Tensor:
    """A factor an output, at every element of [start, stop)."""
    columns = bound.shape[1]
    first, last = start // columns, -(-stop // columns)
    every = factor.repeat(last - first) if bound.transposed else factor[first:last].repeat_interleave(columns)
    return every[start - first * columns : stop - first * columns]


def open_adapter(folder: str | Path) -> Adapter:
    """Open a LoRA adapter as PEFT saves it.

    Raises:
        ModelError: It is missing or corrupt, not LoRA, or a kind of LoRA that is not supported (named).
    """
    folder = Path(folder)
    config = read_json(folder / ADAPTER_CONFIG)
    check_kind(folder, config)
    if (folder / ADAPTER_WEIGHTS).is_file():
        return Adapter(folder, config, read_header(folder / ADAPTER_WEIGHTS))
    if (folder / ADAPTER_PICKLE).is_file():
        from mooring.checkpoint.pickled import read_pickled

        return Adapter(folder, config, read_pickled(folder / ADAPTER_PICKLE))
    raise ModelError(f"{folder}: the adapter has no {ADAPTER_WEIGHTS}", "save it again with PEFT")


def check_fits(adapter: Adapter, base: Checkpoint) -> None:
    """Hold that every tensor that the adapter changes is in the base, with the right shape: as `Adapter.bind`.

    Raises:
        MismatchError: One is not.
    """
    adapter.bind(base)
