"""PEFT's LoRA adapters: the tuned model's tensors, a slice at a time."""

import math
import threading
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mooring.errors import MismatchError, ModelError
from mooring.models.adapter_config import ADAPTER_CONFIG, lora_settings
from mooring.models.checkpoint import Checkpoint, TensorFiles, read_json
from mooring.models.lora_changes import Change, parse
from mooring.models.lora_fit import Fit, Fitted, fit
from mooring.models.lora_places import Patch, Piece
from mooring.models.safetensors_file import TensorInfo, read_header
from mooring.models.torch_file import read_pickled
from mooring.models.trainers import explained

ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADAPTER_PICKLE = "adapter_model.bin"

BLOCK = 2**17
"""Elements that are multiplied out together, in whole rows on a fixed grid: a matrix product may round differently
when its shape differs, so its shape must not depend on how the caller slices."""

_OTHER_TASKS = ("SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS", "SEQ_2_SEQ_LM", "FEATURE_EXTRACTION")
"""PEFT's names of tasks whose models do not generate text, or by another class: they have tensors of their own."""

_CACHE = 32 * 2**20
"""Bytes of factors that are cached between slices, unless a single one is larger."""

_EXPERTS = 8 * 2**20
"""Bytes of the B of experts that are taken apart together: they are stored with the experts running fastest."""


class Adapter(TensorFiles):
    """An adapter in a folder. Call `bind` before reading tuned values; the attributes from `changed` on are set then.

    Attributes:
        folder: The folder.
        config: Its `adapter_config.json`.
        settings: What it says about the weights, checked.
        changes: What the adapter says about each tensor, by its name in the model that it tuned.
        changed: The base's tensors that it changes, and a head that it unties from the embedding.
        sources: The base's tensors with the values before tuning, by name in `changes`.
        relaid: Names in `changes` of tensors that the base lays out in another way, such as one per expert.
        unties: A head that the base ties and does not store, if the adapter unties it, to the base's tensor with its
            values before tuning. The output must store it.
        breaks_tie: Whether head and embedding, tied in the base, differ in the tuned model, so its config must not tie
            them.
        remarks: Sentences about what was decided about the adapter as it was opened.
    """

    def __init__(self, folder: Path, config: dict[str, Any], infos: Sequence[TensorInfo]) -> None:
        super().__init__(infos)
        self.folder = folder
        self.config = config
        self.settings = lora_settings(folder, config)
        self.changes: Mapping[str, Change] = parse(folder, self.settings, self.tensors)
        self.changed: frozenset[str] = frozenset()
        self.sources: Mapping[str, tuple[str, ...]] = {}
        self.relaid: frozenset[str] = frozenset()
        self.unties: Mapping[str, str] = {}
        self.breaks_tie = False
        self.remarks: list[str] = []
        self._parsed = self.changes
        self._base: Checkpoint | None = None
        self._fitted: Mapping[str, Fitted] = {}
        self._factors: OrderedDict[tuple[Any, ...], Tensor] = OrderedDict()
        self._norms: dict[tuple[str, int], Tensor] = {}
        self._lock_for_factors = threading.RLock()
        self._lock_for_norms = threading.Lock()

    @property
    def base_name(self) -> str | None:
        """The model that it was tuned from: a hub id, or a path on the machine where it was tuned."""
        name = self.config.get("base_model_name_or_path")
        return str(name) if name else None

    def bind(self, base: Checkpoint) -> None:
        """Bind the changes to a base, as PEFT's forward pass does; it must stay open while tuned values are read.

        Raises:
            MismatchError: A tensor is missing in the base, or has another shape or type there, or two changes
                contradict each other.
        """
        try:
            found: Fit = fit(self.folder, self.config, self.settings, self, self._parsed, base)
        except MismatchError as error:
            if error.code != "model.missing_tensor" or (task := self.config.get("task_type")) not in _OTHER_TASKS:
                raise
            hint = f"it was tuned as another class (task_type {task}): name a base of that class, or tune for CAUSAL_LM"
            raise MismatchError(error.message, hint, code="model.other_class") from None
        self.changes, self._fitted, self.sources = found.changes, found.tensors, found.sources
        self.unties, self.breaks_tie, self.relaid = found.unties, found.breaks_tie, found.relaid
        self._base, self.changed = base, frozenset(found.tensors)
        self._norms.clear()
        self._factors.clear()

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape in the tuned model: the base's, unless it was saved with another number of rows."""
        assert self._base is not None
        fitted = self._fitted.get(name)
        return fitted.shape if fitted else self._base.tensors[self.unties.get(name, name)].shape

    def read_tuned(self, name: str, start: int, stop: int, base: Tensor) -> Tensor:
        """Elements [start, stop) of a flattened tensor of the tuned model.

        W + scale·B·A (Hu et al. 2021, arXiv:2106.09685); under DoRA m·(W + scale·B·A)/‖W + scale·B·A‖, with one norm
        per output (embeddings: per column), as PEFT computes it (Liu et al. 2024, arXiv:2402.09353). Works in bounded
        memory, on any number of threads; the same bytes whatever the slices.

        Args:
            name: A tensor of the base, or a head in `unties`.
            start: First element.
            stop: One past the last.
            base: The same elements of the base, flattened; not used if the adapter stores the whole tensor.

        Returns:
            float32, or float64 where the base is, not rounded; a whole stored tensor in its storage type; `base`
            itself if the adapter does not change it.

        Raises:
            ModelError: As `read`.
            ValueError: The adapter is not bound to a base.
        """
        if self._base is None:
            raise ValueError(f"{self.folder}: the adapter is not bound to a base")
        fitted = self._fitted.get(name)
        if fitted is None:
            return base
        values = base if fitted.stored is None else self.read(fitted.stored, start, stop)
        if fitted.shift is None and fitted.rows is None and not fitted.pieces and not fitted.patches:
            return values
        out = torch.empty(stop - start, dtype=torch.promote_types(torch.float32, values.dtype)).copy_(values)
        if fitted.shift is not None:
            assert fitted.shift.shift is not None
            out += self.read(fitted.shift.shift, start, stop).float() * fitted.shift.scale
        if fitted.rows is not None:
            self._replace_rows(fitted.rows, fitted.shape[1], start, out)
        for piece in fitted.pieces:
            self._put(piece, start, out)
        for number, patch in enumerate(fitted.patches):
            norm = None if patch.change.magnitude is None else self._norm(name, number, fitted)
            self._add(patch, start, out, norm)
        return out

    def _replace_rows(self, change: Change, columns: int, start: int, out: Tensor) -> None:
        """Put rows that were trained in the place of those of a tensor; `out` begins at its entry `start`."""
        assert change.rows is not None
        for number, row in enumerate(change.indices):
            low, high = max(start, row * columns), min(start + out.numel(), (row + 1) * columns)
            if low < high:
                at = number * columns - row * columns
                out[low - start : high - start] = self.read(change.rows, low + at, high + at)

    def _put(self, piece: Piece, start: int, out: Tensor) -> None:
        """Take entries from the adapter, or add them; `out` begins at its tensor's entry `start`."""
        (count, far, step), *inner = piece.segment.loops or ((1, 1, 1),)
        sizes = [size for size, _, _ in inner]
        there, here = [b for _, _, b in inner], [a for _, a, _ in inner]
        width = 1 + sum((size - 1) * stride for size, stride in zip(sizes, here, strict=True))
        reach = 1 + sum((size - 1) * stride for size, stride in zip(sizes, there, strict=True))
        at = piece.segment.start - start
        first = max(0, (-at - width) // far + 1)
        for number in range(first, min(count, -((at - out.numel()) // far))):
            begin = piece.segment.offset + number * step
            values = self.read(piece.segment.source, begin, begin + reach).as_strided(sizes, there).to(out.dtype)
            index = torch.arange(width).as_strided(sizes, here) + (at + number * far)
            inside = (index >= 0) & (index < out.numel())
            if piece.scale is None:
                out[index[inside]] = values[inside]
            else:
                out[index[inside]] += values[inside] * piece.scale

    def factors(self, change: Change) -> tuple[Tensor, Tensor]:
        """A and B as plain LoRA has them: (experts · rank, inputs) and (outputs, rank · experts), in their types."""
        assert change.a is not None
        assert change.b is not None
        a, b = self.tensor(change.a), self.tensor(change.b)
        a, b = a.view(len(a), -1), b.view(len(b), -1)
        if change.a_blocks > 1:
            a = torch.block_diag(*a.chunk(change.a_blocks))  # type: ignore[no-untyped-call]
        if change.b_blocks > 1:
            b = torch.block_diag(*b.chunk(change.b_blocks))  # type: ignore[no-untyped-call]
        return a.repeat_interleave(change.group, 1) if change.group > 1 else a, b

    # --- products ---

    def _add(self, patch: Patch, start: int, out: Tensor, norm: Tensor | None = None) -> None:
        """Add a product to a tensor, and multiply by DoRA's factors; `out` begins at its entry `start`."""
        rows, columns = len(patch.rows), len(patch.columns)
        width = (columns - 1) * patch.column_stride + 1
        first = max(0, (start - patch.offset - width) // patch.row_stride + 1)
        last = min(rows, -(-(start + out.numel() - patch.offset) // patch.row_stride))
        if first >= last:
            return
        step = max(1, BLOCK // columns)
        first, last = first // step * step, min(rows, -(-last // step) * step)
        right, left = self._right(patch), self._left(patch, first, last)
        for row in range(first, last, step):
            block = left[row - first : min(row + step, last) - first] @ right
            for place, part in _within(patch, row, len(block), start, out):
                place += block[part]
                if norm is not None:
                    factor = norm if patch.transposed else norm[row : row + len(block), None]
                    place *= factor.to(out.dtype).expand(len(block), columns)[part]

    def _left(self, patch: Patch, first: int, last: int) -> Tensor:
        """Rows [first, last) of the left factor, in float32: B, or Aᵀ if the weight is transposed."""
        rows = patch.rows[first:last]
        return self._inputs(patch, rows).T.contiguous() if patch.transposed else self._outputs(patch, rows)

    def _right(self, patch: Patch) -> Tensor:
        """The right factor times scale, in float32: A, or Bᵀ if the weight is transposed."""
        change, columns = patch.change, patch.columns
        key = (change.a, change.b, patch.expert, columns.start, columns.step, len(columns), patch.transposed)

        def make() -> Tensor:
            factor = self._outputs(patch, columns).T.contiguous() if patch.transposed else self._inputs(patch, columns)
            return factor * change.scale

        return self._cached(key, make)

    def _cached(self, key: tuple[Any, ...], make: Callable[[], Tensor]) -> Tensor:
        with self._lock_for_factors:
            if key not in self._factors:
                self._factors[key] = make()
                while len(self._factors) > 1 and sum(f.nbytes for f in self._factors.values()) > _CACHE:
                    self._factors.popitem(last=False)
            self._factors.move_to_end(key)
            return self._factors[key]

    def _outputs(self, patch: Patch, outputs: range) -> Tensor:
        """Rows of B, in float32: (outputs, rank)."""
        change = patch.change
        assert change.b is not None
        if change.experts > 1:
            return self._expert(change, patch.expert)[_slice(outputs)]
        width = change.rank // change.b_blocks
        low, high = outputs[0], outputs[-1] + 1
        found = self.read(change.b, low * width, high * width).view(-1, width)[:: outputs.step].float()
        if change.b_blocks == 1:
            return found
        each = self.tensors[change.b].shape[0] // change.b_blocks
        whole = torch.zeros(len(outputs), change.rank)
        for block in range(change.b_blocks):
            inside = slice(bisect_left(outputs, block * each), bisect_left(outputs, (block + 1) * each))
            whole[inside, block * width : (block + 1) * width] = found[inside]
        return whole

    def _expert(self, change: Change, expert: int) -> Tensor:
        """B of one expert, in float32: (outputs, rank). Stored are (outputs, rank, experts)."""
        assert change.b is not None
        key, rank, experts = change.b, change.rank, change.experts
        outputs = self.tensors[key].shape[0]
        together = max(1, min(experts, _EXPERTS // (4 * outputs * rank)))
        group = expert // together * together
        count = min(together, experts - group)

        def make() -> Tensor:
            found = torch.empty(count, outputs, rank)
            step = max(1, BLOCK // (rank * experts))
            for row in range(0, outputs, step):
                rows = self.read(key, row * rank * experts, min(row + step, outputs) * rank * experts)
                part = rows.view(-1, rank, experts)[:, :, group : group + count]
                found[:, row : row + len(part)] = part.permute(2, 0, 1)
            return found

        return self._cached((key, group), make)[expert - group]

    def _inputs(self, patch: Patch, inputs: range) -> Tensor:
        """Columns of A, in float32: (rank, inputs)."""
        change = patch.change
        assert change.a is not None
        info, rank = self.tensors[change.a], change.rank
        stored = math.prod(info.shape[1:])
        top = patch.expert * rank
        if change.a_blocks > 1:
            blocks = self.read(change.a).float().view(change.a_blocks, -1, stored)
            whole: Tensor = torch.block_diag(*blocks)  # type: ignore[no-untyped-call]
            return whole[:, _slice(inputs)]
        low, high = inputs[0] // change.group, inputs[-1] // change.group + 1
        if (low, high) == (0, stored):
            found = self.read(change.a, top * stored, (top + rank) * stored).view(rank, stored)
        else:
            rows = range(top, top + rank)
            found = torch.stack([self.read(change.a, row * stored + low, row * stored + high) for row in rows])
        if change.group > 1:
            found = found.repeat_interleave(change.group, 1)
        return found.float()[:, inputs[0] - low * change.group :: inputs.step][:, : len(inputs)]

    # --- DoRA ---

    def _norm(self, name: str, number: int, fitted: Fitted) -> Tensor:
        """DoRA's factor m / ‖W + scale·B·A‖ per output, in float64; computed once, in bounded memory."""
        patch = fitted.patches[number]
        magnitude = patch.change.magnitude
        assert magnitude is not None
        with self._lock_for_norms:
            if (name, number) not in self._norms:
                outputs = patch.columns if patch.transposed else patch.rows
                wanted = self.read(magnitude).double()[_slice(outputs)]
                self._norms[name, number] = wanted / self._squares(patch, fitted).sqrt_()
            return self._norms[name, number]

    def _squares(self, patch: Patch, fitted: Fitted) -> Tensor:
        """‖W + scale·B·A‖² per output, in float64."""
        assert self._base is not None
        rows, columns = len(patch.rows), len(patch.columns)
        step = max(1, 4 * BLOCK // columns)
        squares = torch.zeros(columns if patch.transposed else rows, dtype=torch.float64)
        for row in range(0, rows, step):
            count = min(step, rows - row)
            start = patch.offset + row * patch.row_stride
            stop = start + (count - 1) * patch.row_stride + (columns - 1) * patch.column_stride + 1
            stored = fitted.stored
            values = self._base.read(fitted.base, start, stop) if stored is None else self.read(stored, start, stop)
            out = torch.empty(stop - start, dtype=torch.promote_types(torch.float32, values.dtype)).copy_(values)
            self._add(patch, start, out)
            matrix = out.as_strided((count, columns), (patch.row_stride, patch.column_stride))
            block = matrix.double().square_()
            if patch.transposed:
                squares += block.sum(0)
            else:
                squares[row : row + step] = block.sum(1)
        return squares


def open_adapter(folder: str | Path) -> Adapter:
    """Open a LoRA adapter as PEFT saves it.

    Raises:
        ModelError: It is missing or corrupt, not LoRA, or a kind of LoRA that is not supported (named).
    """
    folder = Path(folder)
    config = read_json(folder / ADAPTER_CONFIG)
    if "peft_type" not in config and (found := explained(folder, f"no peft_type in its {ADAPTER_CONFIG}")):
        raise found
    lora_settings(folder, config)  # before the weights, which may be missing
    for name, read in ((ADAPTER_WEIGHTS, read_header), (ADAPTER_PICKLE, read_pickled)):
        if (folder / name).is_file():
            return Adapter(folder, config, read(folder / name))
    what = f"{folder}: the adapter has no {ADAPTER_WEIGHTS}"
    raise explained(folder, f"no {ADAPTER_WEIGHTS}") or ModelError(
        what, "save it again with PEFT", code="model.no_weights"
    )


def _slice(numbers: range) -> slice:
    return slice(numbers.start, numbers.stop, numbers.step)


def _within(patch: Patch, row: int, count: int, start: int, out: Tensor) -> Iterator[tuple[Tensor, Any]]:
    """Where rows [row, row + count) of a patch are in a part of its tensor that begins at entry `start`.

    Yields a view of that part and the index of the same entries in these rows: whole rows together, and the first and
    the last one as far as they are inside.
    """
    columns, across, down = len(patch.columns), patch.column_stride, patch.row_stride
    offset = patch.offset + row * down - start  # of the first row, in `out`
    width = (columns - 1) * across + 1
    low = min(count, max(0, -(offset // down)))
    high = max(low, min(count, (out.numel() - width - offset) // down + 1))
    if low < high:
        first = out.storage_offset() + offset + low * down
        yield out.as_strided((high - low, columns), (down, across), first), slice(low, high)
    for number in {*range(max(0, low - 1), low), *range(high, min(count, high + 1))}:
        at = offset + number * down
        begin = max(0, -(at // across))
        end = min(columns, -(-(out.numel() - at) // across))
        if begin < end:
            first = out.storage_offset() + at + begin * across
            yield out.as_strided((end - begin,), (across,), first), (number, slice(begin, end))
