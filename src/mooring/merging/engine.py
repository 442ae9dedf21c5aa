"""Drive a method's plans over all tensors, slice by slice, on a few threads, in bounded memory."""

import contextlib
import dataclasses
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from mooring.errors import MismatchError, ModelError
from mooring.merging import slices as grid
from mooring.merging.dense import Apply, Pass, Plan, Site
from mooring.merging.inputs import Inputs, Target
from mooring.merging.methods import METHODS, Method
from mooring.merging.slices import Slice, check_finite, finite, same, sweep
from mooring.merging.sparse import grid_of
from mooring.models import Checkpoint, Part, TensorDigest, hash_part

_BATCH = 8
"""Slices that a thread works on before it asks for more."""

Digests = dict[str, TensorDigest]
"""Name of a tensor to its digest."""


class Sink(Protocol):
    """What an output is written to: `checkpoint.Writer`'s files, or memory. Many threads may write at once."""

    def write(self, name: str, start: int, values: Tensor) -> None:
        """Keep a copy of a tensor's elements from `start`; `values` are of its type, and used again afterwards."""
        ...


@dataclasses.dataclass(frozen=True, slots=True)
class Merged:
    """What a slice's work tells.

    Attributes:
        differs: Which tuned models differ from the base there.
        read: Of every whole model, the digest of what was read.
        written: Of every output, the digest of what was written.
    """

    differs: tuple[bool, ...]
    read: tuple[Part | None, ...]
    written: tuple[Part, ...]


class Engine:
    """One merge.

    Args:
        inputs: The models.
        method: A name in `rules.METHODS`.
        sites: The numbers of every floating-point tensor.
        keeps: Whether entries that no tuned model changed keep the base's value under these numbers.
        dtype: The type of floating-point tensors in the outputs; the base's own without.
        check: Whether NaN and Inf are refused.
        slice_bytes: Bytes of the base that a thread holds at a time.
        threads: How many work at once.
        progress: Told bytes written and bytes to write.

    Attributes:
        changed: Names of the tensors in which some tuned model differs from the base.
        equal: For every tuned model, whether it equals the base.
        read: For every model, the digests of the tensors that were read.
        written: For every output, the digests of the tensors that were written.
    """

    def __init__(
        self,
        inputs: Inputs,
        method: str,
        sites: Mapping[str, Site],
        *,
        keeps: bool,
        dtype: torch.dtype | None = None,
        check: bool = True,
        slice_bytes: int = grid.SLICE,
        threads: int | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        self._inputs, self._method, self._sites = inputs, METHODS[method], sites
        self._keeps, self._dtype, self._check = keeps, dtype, check
        self._slice_bytes, self._threads, self._progress = slice_bytes, threads, progress
        self._own = threading.local()
        self._done = self._total = 0
        self._seen: set[str] = set()  # names of the tensors that a first pass has looked at
        self.changed: dict[str, None] = {}
        self.equal = [True] * len(inputs.tuned)
        self.read: list[Digests] = [{} for _ in inputs.models]
        self.written: list[Digests] = []

    def dtype(self, target: Target) -> torch.dtype:
        """The type of a tensor in the outputs."""
        return self._dtype if self._dtype and target.dtype.is_floating_point else target.dtype

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors of one output."""
        return sum(t.numel * self.dtype(t).itemsize for t in self._inputs.targets.values())

    def run(self, writers: Sequence[Sink]) -> None:
        """Fill the outputs, one for every λ of the sites.

        Raises:
            ModelError: An input holds NaN or Inf, or ends too soon.
            MismatchError: Whole numbers or booleans differ.
            OutputError: The disk is full.
        """
        self.written = [{} for _ in writers]
        self._total = self.nbytes * len(writers)
        targets = self._inputs.targets.values()
        for window in windows(targets, whole=self._method.passes == 1):
            plans = {
                t.name: self._method.plan(self._sites[t.name], len(self._inputs.tuned))
                for t in window
                if t.name in self._sites and t.shared
            }
            self._apply(window, self._settle(window, plans), writers)

    def _settle(self, window: Sequence[Target], plans: Mapping[str, Plan]) -> dict[str, Apply]:
        """Run the passes of some tensors until every plan has given its formula."""
        settled: dict[str, Apply] = {}
        asked: dict[str, Pass] = {}

        def advance(name: str, found: Any) -> None:
            try:
                asked[name] = plans[name].send(found)
            except StopIteration as end:
                settled[name] = end.value

        for name in plans:
            advance(name, None)
        while asked:
            found: dict[str, Any] = {}
            current = dict(asked)
            asked.clear()

            def work(piece: Slice, current: Mapping[str, Pass] = current) -> Any:
                target = self._inputs.targets[piece.name]
                base, tuned = self._inputs.read(target, piece.start, piece.stop, self._buffers(piece, target))
                asking = current[piece.name]
                result = asking.work(piece.start, base, tuned)
                if self._check and piece.name not in self._seen and (not asking.broken or asking.broken(result)):
                    self._check_inputs(target, base, tuned)
                return result

            pieces = (piece for t in window if t.name in current for piece in self._cut(t, 2))
            with contextlib.closing(sweep(pieces, work, self._threads, batch=_BATCH)) as results:
                for piece, result in results:
                    join = current[piece.name].join
                    found[piece.name] = join(found[piece.name], result) if piece.name in found else result
            self._seen |= current.keys()
            for name in current:
                advance(name, found[name])
        return settled

    def _apply(self, window: Sequence[Target], formulas: Mapping[str, Apply], writers: Sequence[Sink]) -> None:
        """Merge some tensors and write them."""

        def work(piece: Slice) -> Merged:
            target = self._inputs.targets[piece.name]
            if piece.start >= target.shared:
                return self._copy_rest(target, piece, writers)
            return self._merge(target, piece, formulas.get(piece.name), writers)

        pieces = (piece for t in window for piece in (*self._cut(t), *self._cut_rest(t)))
        # closing: no worker may outlive the writers
        with contextlib.closing(sweep(pieces, work, self._threads, batch=_BATCH)) as results:
            for piece, merged in results:
                self._record(self._inputs.targets[piece.name], merged)
                if self._progress:
                    size = self.dtype(self._inputs.targets[piece.name]).itemsize * len(writers)
                    self._done += (piece.stop - piece.start) * size
                    self._progress(self._done, self._total)
        for target in window:
            for digests in self.written:
                digests.setdefault(target.name, TensorDigest())  # a tensor without entries

    def _merge(self, target: Target, piece: Slice, formula: Apply | None, writers: Sequence[Sink]) -> Merged:
        """Merge a slice and write it."""
        base, tuned = self._inputs.read(target, piece.start, piece.stop, self._buffers(piece, target))
        differs = tuple(not same(base, t) for t in tuned)
        read = tuple(
            hash_part(piece.start * values.dtype.itemsize, _bytes(values)) if isinstance(model, Checkpoint) else None
            for model, values in zip(self._inputs.models, (base, *tuned), strict=True)
        )
        if formula is None:
            if any(differs):
                folder = self._inputs.tuned[differs.index(True)].folder
                what = f"{folder}: {target.name} ({base.dtype}) differs from {self._inputs.base.folder}"
                raise MismatchError(what, "whole numbers cannot be merged; name the base that the model was tuned from")
        elif self._check and target.name not in self._seen and not _shows(self._method, self._sites[target.name]):
            self._check_inputs(target, base, [t if d else base for t, d in zip(tuned, differs, strict=True)])
        written = []
        for k, writer in enumerate(writers):
            values = base
            if formula is not None and (any(differs) or not self._keeps):
                values = formula(piece.start, base, tuned, k)
            values = values.to(self.dtype(target))
            if self._check and not finite(values):
                self._check_inputs(target, base, tuned)
                raise _overflow(self._inputs.tuned[0].folder, target.name, values.dtype)
            writer.write(target.name, piece.start, values)
            written.append(hash_part(piece.start * values.dtype.itemsize, _bytes(values)))
        return Merged(differs, read, tuple(written))

    def _copy_rest(self, target: Target, piece: Slice, writers: Sequence[Sink]) -> Merged:
        """Copy entries that not every model has."""
        values = self._inputs.read_rest(target, piece.start, piece.stop)
        where = self._inputs.models[target.rest].folder
        if self._check:
            check_finite(values, where, target.name)
        values = values.to(self.dtype(target))
        if self._check and not finite(values):
            raise _overflow(where, target.name, values.dtype)
        for writer in writers:
            writer.write(target.name, piece.start, values)
        part = hash_part(piece.start * values.dtype.itemsize, _bytes(values))
        return Merged((), (), (part,) * len(writers))

    def _check_inputs(self, target: Target, base: Tensor, tuned: Sequence[Tensor]) -> None:
        """Refuse NaN and Inf, naming the model."""
        check_finite(base, self._inputs.base.folder, target.name)
        for model, values in zip(self._inputs.tuned, tuned, strict=False):
            if values is not base:
                check_finite(values, model.folder, target.name)

    def _record(self, target: Target, merged: Merged) -> None:
        if any(merged.differs):
            self.changed[target.name] = None
        for m, differs in enumerate(merged.differs):
            self.equal[m] = self.equal[m] and not differs
        for digests, written in zip(self.written, merged.written, strict=True):
            digests.setdefault(target.name, TensorDigest()).add(written)
        for digests, source, part in zip(self.read, target.sources, merged.read, strict=False):
            # a tensor that stands for two is hashed once
            if part is not None and (target.name == source or source not in self._inputs.targets):
                digests.setdefault(source, TensorDigest()).add(part)

    def _cut(self, target: Target, times: int = 1) -> Iterator[Slice]:
        """Slices of what is merged, so many times the usual size; they begin at the grid of the tensor's method."""
        site = self._sites.get(target.name)
        cell = grid_of(site.kind, site) if site else grid.CELL
        step = max(1, times * self._slice_bytes // target.dtype.itemsize // cell) * cell
        for start in range(0, target.shared, step):
            yield Slice(target.name, start, min(start + step, target.shared))

    def _cut_rest(self, target: Target) -> Iterator[Slice]:
        """Slices of what is copied."""
        step = max(1, self._slice_bytes // target.dtype.itemsize)
        for start in range(target.shared, target.numel, step):
            yield Slice(target.name, start, min(start + step, target.numel))

    def _buffers(self, piece: Slice, target: Target) -> list[Tensor]:
        """A buffer a model, kept by the thread: fresh memory would cost more than the arithmetic."""
        wanted = (piece.stop - piece.start) * 8
        if getattr(self._own, "size", 0) < wanted:
            self._own.buffers = [torch.empty(wanted, dtype=torch.uint8) for _ in self._inputs.models]
            self._own.size = wanted
        buffers: list[Tensor] = self._own.buffers
        return buffers


def _overflow(where: Path, name: str, dtype: torch.dtype) -> ModelError:
    """What to say where finite inputs give an infinite result: float16, for one, ends at 65504."""
    hint = f"it does not fit {dtype}; write another --dtype, or go on with --allow-nonfinite"
    return ModelError(f"{where}: {name}, once merged, holds NaN or Inf", hint)


def _shows(method: Method, site: Site) -> bool:
    """Whether NaN or Inf in any input shows in every result, so that it is enough to look at those."""
    return method.sums and not {0, 1} & {*site.lams} and 0 not in site.weights and site.base_weight != 0


def _bytes(values: Tensor) -> memoryview:
    return values.reshape(-1).view(torch.uint8).numpy().data


# --- Which tensor goes into which file, and which tensors are worked on together ---


Shards = dict[str, list[tuple[str, torch.dtype, tuple[int, ...]]]]
"""File name to (name, dtype, shape) of its tensors, in the order of their bytes."""

WINDOW = 256 * 2**20
"""Bytes of the base whose passes are done together: little enough that the next pass finds them in the page cache."""

_TENSORS_IN_A_WINDOW = 64


def lay_out(targets: Iterable[Target], dtype: Callable[[Target], torch.dtype], most: int | None) -> Shards:
    """The files of an output: the base's own, or filled up in order to a size.

    Args:
        targets: The tensors, in the base's order.
        dtype: The type of each in the output.
        most: Bytes of a file at most, a tensor larger than that aside; the base's files where it is None.
    """
    targets = list(targets)
    if most is None:
        shards: Shards = {}
        for target in targets:
            shards.setdefault(target.file, []).append((target.name, dtype(target), target.shape))
        return shards
    groups: list[list[tuple[str, torch.dtype, tuple[int, ...]]]] = [[]]
    size = 0
    for target in targets:
        kind = dtype(target)
        nbytes = target.numel * kind.itemsize
        if groups[-1] and size + nbytes > most:
            groups.append([])
            size = 0
        groups[-1].append((target.name, kind, target.shape))
        size += nbytes
    if len(groups) == 1:
        return {"model.safetensors": groups[0]}
    return {f"model-{n:05}-of-{len(groups):05}.safetensors": group for n, group in enumerate(groups, 1)}


def windows(targets: Iterable[Target], *, whole: bool) -> Iterator[list[Target]]:
    """Groups of tensors, in order; all in one where no second pass will come."""
    group: list[Target] = []
    size = 0
    for target in targets:
        group.append(target)
        size += target.numel * target.dtype.itemsize
        if not whole and (size >= WINDOW or len(group) >= _TENSORS_IN_A_WINDOW):
            yield group
            group, size = [], 0
    if group:
        yield group
