"""Run a method's plans over all tensors, slice by slice, on a few threads or processes, in bounded memory."""

import contextlib
import dataclasses
import threading
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from mooring.errors import MismatchError, ModelError
from mooring.events import Event, OnEvent
from mooring.merge_methods import method_named
from mooring.merging import slices as grid
from mooring.merging.job import Options, Output, tensor_params
from mooring.merging.kept import Kept
from mooring.merging.methods import formula
from mooring.merging.pair import ModelPair, OutputTensor
from mooring.merging.plan import Apply, Pass, Plan, Whole
from mooring.merging.slices import Slice, check_finite, cut, finite, hash_values, same, sweep
from mooring.merging.sparse import grid_of
from mooring.merging.tensor_value import TensorValue
from mooring.models import Checkpoint, Part, TensorDigest

_BATCH = 8
"""Slices that a thread takes at a time."""

WINDOW = 256 * 2**20
"""Bytes of the base whose passes run together: few enough that the next pass finds them in the page cache."""

_TENSORS_IN_A_WINDOW = 64

Digests = dict[str, TensorDigest]
"""Digest of every tensor by name."""


class Sink(Protocol):
    """A destination of an output: the files of `models.Writer`, or memory. Many threads may write at once."""

    def write(self, name: str, start: int, values: Tensor) -> None:
        """Copy a tensor's elements from `start` on; `values` have its type, and their memory is reused afterwards."""
        ...


@runtime_checkable
class Collecting(Sink, Protocol):
    """A sink that collects something about what it writes, which another process that fills it has to send back."""

    def take(self) -> Any:
        """What was collected since the last call; whole tensors were written since then."""
        ...

    def add(self, taken: Any) -> None:
        """Add what was taken from the same sink in another process."""
        ...


@dataclasses.dataclass(frozen=True, slots=True)
class Merged:
    """The result for a slice: which tuned models differ from the base in it; digests of what was read and written."""

    differs: tuple[bool, ...]
    read: tuple[Part | None, ...]
    written: tuple[Part, ...]


Window = Sequence[OutputTensor]
"""Tensors whose passes run together."""


@dataclasses.dataclass(frozen=True, slots=True)
class Done:
    """What was made of a window: small enough to be sent from another process.

    Attributes:
        merged: The result of every slice, in order.
        notes: Tensors' names and decisions about them.
        taken: What was collected of each output that collects something.
    """

    merged: Sequence[tuple[Slice, Merged]]
    notes: Sequence[tuple[str, str]]
    taken: Sequence[Any] = ()


class Engine:
    """One merge.

    Args:
        pair: The models.
        method: A name in `merge_methods.METHODS`.
        options: The method's options.
        lams: λ, one per output.
        output: The form of the outputs.
        note: Called with a tensor's name and a decision about it.
        slice_bytes: Bytes of the base that a thread holds at a time.
        threads: Number of worker threads.
        on_event: Receives progress in bytes written.
        kept: What an earlier run at another λ, of the same models and options, has kept, and where this one keeps its
            inputs. No digests are computed then.
        filled: Names of tensors that the outputs hold at another λ already: what does not depend on λ is left as it is.

    Attributes:
        changed: Names of the tensors in which a tuned model, or a reference, differs from the base.
        equal: For every tuned model, whether it equals the base.
        read: For every model, references included, the digests of the tensors that were read.
        written: For every output, the digests of the tensors that were written.

    Raises:
        UserError: A number is out of range for some tensor, or a pattern matches none.
    """

    def __init__(
        self,
        pair: ModelPair,
        method: str,
        options: Options,
        lams: Sequence[TensorValue],
        output: Output,
        *,
        note: Callable[[str, str], None] = lambda name, sentence: None,
        slice_bytes: int = grid.SLICE,
        threads: int | None = None,
        on_event: OnEvent | None = None,
        kept: Kept | None = None,
        filled: Collection[str] = (),
    ) -> None:
        self._kept, self._filled = kept, filled
        self._pair, self._method = pair, method_named(method)
        self._dtype, self._check = output.torch_dtype, not output.allow_nonfinite
        takes = tuple(role for role in pair.references if self._method.accepts)
        self._used = len(pair.tuned) + len(takes)  # models after the base that the method sees
        self._note, self._noted = note, list[tuple[str, str]]()
        self._params = tensor_params(
            method, options, pair.tensors, len(pair.tuned), lams, self._keep_note, self._dtype, references=takes
        )
        self._requantized = pair.base.quantized.keys() if output.keep_quantization else frozenset[str]()
        for name in self._params.keys() & self._requantized:
            self._params[name] = dataclasses.replace(self._params[name], dtype=torch.float32)
        self._keeps = keeps_unchanged(method, options)
        self._slice_bytes, self._threads, self._on_event = slice_bytes, threads, on_event
        self._own = threading.local()
        self._done = self._total = 0
        self._seen: set[str] = set()  # names of the tensors that a first pass has checked
        self.changed: dict[str, None] = {}
        self.equal = [True] * len(pair.tuned)
        self.read: list[Digests] = [{} for _ in pair.inputs]
        self.written: list[Digests] = []

    def dtype(self, tensor: OutputTensor) -> torch.dtype:
        """The type of a tensor in the outputs: float32 if it is still to be quantized."""
        if tensor.name in self._requantized:
            return torch.float32
        return self._dtype if self._dtype and tensor.dtype.is_floating_point else tensor.dtype

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors of one output."""
        return sum(t.numel * self.dtype(t).itemsize for t in self._pair.tensors.values())

    def run(
        self, writers: Sequence[Sink], fill_windows: Callable[[], Iterator[tuple[int, Done]]] | None = None
    ) -> None:
        """Fill the outputs, one for each λ.

        Args:
            writers: The outputs.
            fill_windows: Called instead; yields the number of each window and what was made of it, in any order.

        Raises:
            ModelError: An input holds NaN or Inf, or is truncated.
            MismatchError: Integers or booleans differ, or no tuned model differs from the base.
            OutputError: The disk is full.
        """
        if fill_windows is None:
            for _ in self.run_windows(writers):
                pass
            return
        self._begin(writers)
        done: dict[int, Done] = {}
        for number, made in fill_windows():
            done[number] = made
            for writer, taken in zip([w for w in writers if isinstance(w, Collecting)], made.taken, strict=True):
                writer.add(taken)
            for piece, _ in made.merged:
                self._advance(piece, len(writers))
        for number, window in enumerate(self.windows()):
            for piece, merged in done[number].merged:
                self._record(self._pair.tensors[piece.name], merged)
            self._noted += done[number].notes
            self._end(window)
        self._check_changed()

    def run_windows(self, writers: Sequence[Sink]) -> Iterator[Window]:
        """Fill the outputs; yield some tensors at a time, when they are written. Errors as in `run`."""
        self._begin(writers)
        for window in self.windows(whole=self._method.passes == 1):
            with contextlib.closing(self._merge_window(window, writers)) as results:
                for piece, merged in results:
                    self._record(self._pair.tensors[piece.name], merged)
                    self._advance(piece, len(writers))
            self._end(window)
            yield window
        self._check_changed()

    def windows(self, *, whole: bool = False) -> list[Window]:
        """The tensors, in groups whose passes run together; `whole`: in a single one."""
        most = 1 if self._method.matrices else _TENSORS_IN_A_WINDOW
        return list(_windows(self._pair.tensors.values(), most, whole=whole))

    def order(self) -> list[int]:
        """The numbers of the windows, the largest first, so that workers end at about the same time."""
        sizes = [sum(tensor.numel * tensor.dtype.itemsize for tensor in window) for window in self.windows()]
        return sorted(range(len(sizes)), key=lambda number: -sizes[number])

    def do(self, window: Window, writers: Sequence[Sink]) -> Done:
        """Fill a window of the outputs. Errors as in `run`."""
        self._noted.clear()
        merged = list(self._merge_window(window, writers))
        return Done(merged, list(self._noted), [writer.take() for writer in writers if isinstance(writer, Collecting)])

    @property
    def whole_tensors(self) -> bool:
        """Whether the method has whole tensors in memory."""
        return self._method.matrices

    def use_threads(self, threads: int) -> None:
        """Set the number of worker threads."""
        self._threads = threads

    def _begin(self, writers: Sequence[Sink]) -> None:
        self._flush_notes()
        self.written = [{} for _ in writers] if self._kept is None else []
        self._total = self.nbytes * len(writers)

    def _end(self, window: Window) -> None:
        for tensor in window:
            for digests in self.written:
                digests.setdefault(tensor.name, TensorDigest())  # a tensor without entries
        self._flush_notes()

    def _advance(self, piece: Slice, outputs: int) -> None:
        self._done += (piece.stop - piece.start) * self.dtype(self._pair.tensors[piece.name]).itemsize * outputs
        if self._on_event:
            self._on_event(Event(step="merge", kind="progress", done=self._done, total=self._total, unit="bytes"))

    def _keep_note(self, name: str, sentence: str) -> None:
        self._noted.append((name, sentence))

    def _flush_notes(self) -> None:
        for name, sentence in self._noted:
            self._note(name, sentence)
        self._noted.clear()

    def _check_changed(self) -> None:
        if all(self.equal):
            names = " and ".join(str(model.folder) for model in self._pair.tuned)
            verb = "equal" if len(self._pair.tuned) > 1 else "equals"
            what = f"{names}: {verb} {self._pair.base.folder}, so the merge would change nothing"
            raise MismatchError(what, "name a tuned model", code="model.equal")

    def _merge_window(self, window: Window, writers: Sequence[Sink]) -> Generator[tuple[Slice, Merged], None, None]:
        """Run the passes of some tensors, merge and write them; yield every slice's result, in order."""
        plans: dict[str, Plan] = {}
        formulas: dict[str, Apply] = {}
        for tensor in window:
            if tensor.name in self._params and tensor.shared:
                made = formula(self._method.name)(self._params[tensor.name], len(self._pair.tuned))
                if isinstance(made, Generator):
                    plans[tensor.name] = made
                else:
                    formulas[tensor.name] = made
        yield from self._apply(window, formulas | self._settle(window, plans), writers)

    def _settle(self, window: Window, plans: Mapping[str, Plan]) -> dict[str, Apply]:
        """Run the passes of some tensors until every plan has returned its formula."""
        settled: dict[str, Apply] = {}
        requested: dict[str, Pass | Whole] = {}
        number = dict.fromkeys(plans, -1)  # of the pass that was requested last

        def advance(name: str, result: Any) -> None:
            if self._kept and number[name] >= 0:
                self._kept.keep_statistic(self._method.name, name, number[name], result)
            while True:
                try:
                    requested[name] = plans[name].send(result)
                except StopIteration as end:
                    settled[name] = end.value
                    return
                number[name] += 1
                result = self._kept.statistic(self._method.name, name, number[name]) if self._kept else None
                if result is None:
                    return
                del requested[name]

        for name in plans:
            advance(name, None)
        while requested:
            joined: dict[str, Any] = {
                name: self._whole(self._pair.tensors[name], request)
                for name, request in requested.items()
                if isinstance(request, Whole)
            }
            current = {name: request for name, request in requested.items() if isinstance(request, Pass)}
            requested.clear()

            def work(piece: Slice, current: Mapping[str, Pass] = current) -> Any:
                tensor, base, tuned = self._read(piece)
                request = current[piece.name]
                result = request.work(piece.start, base, tuned[: self._used])
                if self._check and piece.name not in self._seen and (not request.broken or request.broken(result)):
                    self._check_inputs(tensor, base, tuned)
                return result

            pieces = (piece for t in window if t.name in current for piece in self._cut(t, 2))
            with contextlib.closing(sweep(pieces, work, self._threads, batch=_BATCH)) as results:
                for piece, result in results:
                    join = current[piece.name].join
                    joined[piece.name] = join(joined[piece.name], result) if piece.name in joined else result
            self._seen |= joined.keys()
            for name, result in joined.items():
                advance(name, result)
        return settled

    def _whole(self, tensor: OutputTensor, request: Whole) -> Any:
        """Read all of a tensor in every model, in float32 or better, and compute what a plan asks for."""
        first = next(self._cut(tensor))
        wide = grid.wide_type([values for part in [self._read(first)[1:]] for values in (part[0], *part[1])])
        inputs = [torch.empty(tensor.shared, dtype=wide) for _ in range(1 + self._used)]

        def fill(piece: Slice) -> None:
            _, base, tuned = self._read(piece)
            if self._check and piece.name not in self._seen:
                self._check_inputs(tensor, base, tuned)
            for place, values in zip(inputs, (base, *tuned[: self._used]), strict=True):
                place[piece.start : piece.stop].copy_(values)

        with contextlib.closing(sweep(self._cut(tensor), fill, self._threads, batch=_BATCH)) as results:
            for _ in results:
                pass
        return request.work(*inputs)

    def _apply(
        self, window: Window, formulas: Mapping[str, Apply], writers: Sequence[Sink]
    ) -> Generator[tuple[Slice, Merged], None, None]:
        """Merge some tensors and write them."""

        def work(piece: Slice) -> Merged:
            if piece.start >= self._pair.tensors[piece.name].shared:
                return self._copy_rest(piece, writers)
            return self._merge(piece, formulas.get(piece.name), writers)

        pieces = (piece for t in window for piece in (*self._cut(t), *self._cut_rest(t)))
        # closing: no worker may outlive the writers
        with contextlib.closing(sweep(pieces, work, self._threads, batch=_BATCH)) as results:
            yield from results

    def _merge(self, piece: Slice, formula: Apply | None, writers: Sequence[Sink]) -> Merged:
        """Merge a slice and write it."""
        if self._is_final(piece):
            return Merged(self._kept.differs[piece] if self._kept else (), (), ())
        known = self._kept.inputs(piece) if self._kept else None
        if self._kept and known:
            tensor, base, tuned, differs = (
                self._pair.tensors[piece.name],
                known.base,
                known.tuned,
                self._kept.differs[piece],
            )
        else:
            tensor, base, tuned = self._read(piece)
            differs = tuple(not same(base, t) for t in tuned)
        read: tuple[Part | None, ...] = ()
        if self._kept is None:
            read = tuple(
                hash_values(piece.start, values) if isinstance(model, Checkpoint) else None
                for model, values in zip(self._pair.inputs, (base, *tuned), strict=True)
            )
        if formula is None:
            if any(differs[: len(self._pair.tuned)]):
                folder = self._pair.tuned[differs.index(True)].folder
                what = f"{folder}: {tensor.name} ({base.dtype}) differs from {self._pair.base.folder}"
                hint = (
                    "integers cannot be merged: copy this tensor from the base into the tuned model if it is a buffer"
                )
                raise MismatchError(what, hint, code="model.integers_differ")
        elif self._check and not known and tensor.name not in self._seen and not self._propagates(tensor):
            self._check_inputs(tensor, base, [t if d else base for t, d in zip(tuned, differs, strict=True)])
        if self._kept and not known:
            self._kept.differs[piece] = differs
            self._kept.keep_inputs(piece, base, tuned)
        written = []
        for k, writer in enumerate(writers):
            values = base
            if formula is not None and (any(differs) or not self._keeps):
                values = formula(piece.start, base, tuned[: self._used], k)
            values = values.to(self.dtype(tensor))
            if self._check and not finite(values):
                self._check_inputs(tensor, base, tuned)
                raise _overflow(self._pair.tuned[0].folder, tensor.name, values.dtype)
            writer.write(tensor.name, piece.start, values)
            if self._kept is None:
                written.append(hash_values(piece.start, values))
        return Merged(differs, read, tuple(written))

    def _is_final(self, piece: Slice) -> bool:
        """Whether the outputs hold a slice already, since no tuned model changes it."""
        if self._kept is None or not self._keeps or piece.name not in self._filled:
            return False
        return not any(self._kept.differs.get(piece, (True,)))

    def _copy_rest(self, piece: Slice, writers: Sequence[Sink]) -> Merged:
        """Copy entries that only some models have."""
        if piece.name in self._filled:
            return Merged((), (), ())
        tensor = self._pair.tensors[piece.name]
        values = self._pair.read_rest(tensor, piece.start, piece.stop)
        where = self._pair.models[tensor.rest].folder
        if self._check:
            check_finite(values, where, tensor.name)
        values = values.to(self.dtype(tensor))
        if self._check and not finite(values):
            raise _overflow(where, tensor.name, values.dtype)
        for writer in writers:
            writer.write(tensor.name, piece.start, values)
        written = () if self._kept else (hash_values(piece.start, values),) * len(writers)
        return Merged((), (), written)

    def _propagates(self, tensor: OutputTensor) -> bool:
        """Whether NaN or Inf in any input propagates to every result, so that it is enough to check those."""
        params = self._params[tensor.name]
        some_ignored = {0, 1} & {*params.lams} or 0 in params.weights or params.base_weight == 0
        return self._method.sums and not some_ignored

    def _check_inputs(self, tensor: OutputTensor, base: Tensor, tuned: Sequence[Tensor]) -> None:
        """Raise for NaN and Inf, naming the model."""
        check_finite(base, self._pair.base.folder, tensor.name)
        for model, values in zip(self._pair.inputs[1:], tuned, strict=True):
            if values is not base:
                check_finite(values, model.folder, tensor.name)

    def _record(self, tensor: OutputTensor, merged: Merged) -> None:
        if any(merged.differs):
            self.changed[tensor.name] = None
        for m, differs in enumerate(merged.differs[: len(self.equal)]):
            self.equal[m] = self.equal[m] and not differs
        for digests, written in zip(self.written, merged.written, strict=True):
            digests.setdefault(tensor.name, TensorDigest()).add(written)
        for digests, source, part in zip(self.read, tensor.sources, merged.read, strict=False):
            # a tensor that is the source of two is hashed once
            if part is not None and (tensor.name == source or source not in self._pair.tensors):
                digests.setdefault(source, TensorDigest()).add(part)

    def _cut(self, tensor: OutputTensor, times: int = 1) -> Iterator[Slice]:
        """Slices of the merged part, a multiple of the usual size; they begin on the method's grid."""
        params = self._params.get(tensor.name)
        cell = grid_of(params.kind, params) if params else grid.CELL
        return cut(tensor.name, 0, tensor.shared, times * self._slice_bytes // tensor.dtype.itemsize, cell)

    def _cut_rest(self, tensor: OutputTensor) -> Iterator[Slice]:
        """Slices of the copied part."""
        return cut(tensor.name, tensor.shared, tensor.numel, self._slice_bytes // tensor.dtype.itemsize)

    def _read(self, piece: Slice) -> tuple[OutputTensor, Tensor, list[Tensor]]:
        """A slice of every model, in the thread's buffers: fresh memory would cost more than the arithmetic."""
        tensor = self._pair.tensors[piece.name]
        size = (piece.stop - piece.start) * 8
        if getattr(self._own, "size", 0) < size:
            self._own.buffers = [torch.empty(size, dtype=torch.uint8) for _ in self._pair.inputs]
            self._own.size = size
        return tensor, *self._pair.read(tensor, piece.start, piece.stop, self._own.buffers)


def keeps_unchanged(method: str, options: Options) -> bool:
    """Whether an entry that no tuned model changed has the base's value at every λ: if coefficients sum to 1."""
    return method_named(method).keeps and (options.base_weight is None or options.normalize is not False)


def _overflow(where: Path, name: str, dtype: torch.dtype) -> ModelError:
    """The error for finite inputs with an infinite result: float16, for example, ends at 65504."""
    hint = f"it does not fit {dtype}; write another --dtype, or go on with --allow-nonfinite"
    return ModelError(f"{where}: {name}, once merged, holds NaN or Inf", hint, code="model.overflow")


def _windows(tensors: Iterable[OutputTensor], most: int, *, whole: bool) -> Iterator[list[OutputTensor]]:
    """Groups of at most so many tensors, in order; a single group if there is no second pass."""
    group: list[OutputTensor] = []
    size = 0
    for tensor in tensors:
        group.append(tensor)
        size += tensor.numel * tensor.dtype.itemsize
        if not whole and (size >= WINDOW or len(group) >= most):
            yield group
            group, size = [], 0
    if group:
        yield group
