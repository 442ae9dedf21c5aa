"""A tuned model's tensors in the names and the layout of its base."""

import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from mooring.models.checkpoint import Checkpoint
from mooring.models.safetensors_file import TensorInfo
from mooring.models.strided import Segment

_TILE = 2**22
"""Entries that are rearranged together. Neighbours in one layout are far apart in the other, so that a larger tile has
longer runs to read."""
_TILES = 4
"""Tiles that are kept: one for each thread that reads."""
_LONG_RUN = 2**11
"""Entries: runs at least as long are read straight into the result."""
_WIDE_STEP = 8
"""Runs with a larger step are read entry by entry."""


class RelaidCheckpoint(Checkpoint):
    """A checkpoint whose tensors are read in the names and the layout of another.

    Args:
        checkpoint: The checkpoint as it is stored. It is closed together with this one.
        tensors: The tensors as they are read: name, type and shape. The place in a file is that of a part of them.
        segments: What each of them is made of.
        base: The base, if some of its tensors are read for this model's.
        kept: Those tensors, which this model does not have.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        tensors: Sequence[TensorInfo],
        segments: Mapping[str, Sequence[Segment]],
        *,
        base: Checkpoint | None = None,
        kept: frozenset[str] = frozenset(),
    ) -> None:
        super().__init__(checkpoint.folder, checkpoint.config, tensors)
        self.source, self.base, self.kept = checkpoint, base, kept
        self.quantized, self.quantization = checkpoint.quantized, checkpoint.quantization
        self.remarks = list(checkpoint.remarks)
        self._segments = {name: tuple(parts) for name, parts in segments.items()}
        self._tiles: OrderedDict[tuple[str, int], Tensor] = OrderedDict()
        self._lock_for_tiles = threading.Lock()

    def read(self, name: str, start: int = 0, stop: int | None = None, *, out: Tensor | None = None) -> Tensor:
        """See `TensorFiles.read`."""
        info = self.tensors[name]
        stop = info.numel if stop is None else stop
        if not 0 <= start <= stop <= info.numel:
            raise ValueError(f"{name}: no elements [{start}, {stop}) in {info.numel}")
        if name in self.kept and self.base is not None:
            return self.base.read(name, start, stop, out=out)
        segments = self._segments[name]
        if len(segments) == 1 and _is_copy(segments[0], info.numel):
            return self.source.read(segments[0].source, start, stop, out=out)
        count = (stop - start) * info.dtype.itemsize
        values = (torch.empty(count, dtype=torch.uint8) if out is None else out[:count]).view(info.dtype)
        if all(_has_long_runs(segment) for segment in segments):
            self._fill(segments, start, values)
            return values
        for first in range(start // _TILE * _TILE, stop, _TILE):
            tile = self._tile(name, first)
            low, high = max(start, first), min(stop, first + tile.numel())
            values[low - start : high - start] = tile[low - first : high - first]
        return values

    def with_base(self, base: Checkpoint, kept: frozenset[str]) -> "RelaidCheckpoint":
        """This model with tensors of its base that it does not have."""
        infos = [*self.tensors.values(), *(base.tensors[name] for name in kept)]
        return RelaidCheckpoint(self.source, infos, self._segments, base=base, kept=kept)

    def close(self) -> None:
        """Close the files."""
        super().close()
        if hasattr(self, "source"):
            self.source.close()
            self._tiles.clear()

    def _tile(self, name: str, first: int) -> Tensor:
        with self._lock_for_tiles:
            if (name, first) in self._tiles:
                self._tiles.move_to_end((name, first))
                return self._tiles[name, first]
        info = self.tensors[name]
        values = torch.empty(min(_TILE, info.numel - first), dtype=info.dtype)
        self._fill(self._segments[name], first, values)
        with self._lock_for_tiles:
            self._tiles[name, first] = values
            while len(self._tiles) > _TILES:
                self._tiles.popitem(last=False)
        return values

    def _fill(self, segments: Iterable[Segment], start: int, values: Tensor) -> None:
        """Read entries from `start` on."""
        for segment in segments:
            for part in _within(segment, start, start + values.numel()):
                self._copy(part, values, part.start - start)

    def _copy(self, part: Segment, values: Tensor, at: int) -> None:
        """Copy a segment to a place in `values`."""
        if part.loops[-1:] and part.loops[-1][1:] == (1, 1):
            count = part.loops[-1][0]
            for target, offset in _offsets(at, part.offset, part.loops[:-1]):
                self._read_run(part.source, offset, values[target : target + count])
            return
        # the run is along the axis that is contiguous in the stored tensor, and strided here
        loops = sorted(part.loops, key=lambda loop: -loop[2])
        outer, (count, stride, step) = (loops[:-1], loops[-1]) if loops else ([], (1, 1, 1))
        for target, offset in _offsets(at, part.offset, outer):
            run = values[target:].as_strided((count,), (stride,), values.storage_offset() + target)
            if step <= _WIDE_STEP:
                run.copy_(self.source.read(part.source, offset, offset + (count - 1) * step + 1)[::step])
            else:
                for number in range(count):
                    entry = offset + number * step
                    run[number] = self.source.read(part.source, entry, entry + 1)[0]

    def _read_run(self, source: str, offset: int, values: Tensor) -> None:
        same = self.source.tensors[source].dtype == values.dtype
        buffer = values.view(torch.uint8) if same else None
        run = self.source.read(source, offset, offset + values.numel(), out=buffer)
        if not same:
            values.copy_(run)


def _is_copy(segment: Segment, count: int) -> bool:
    return segment.start == segment.offset == 0 and (segment.loops == ((count, 1, 1),) or (count == 1))


def _has_long_runs(segment: Segment) -> bool:
    return not segment.loops or (segment.loops[-1][1:] == (1, 1) and segment.loops[-1][0] >= _LONG_RUN)


def _offsets(start: int, offset: int, loops: Sequence[tuple[int, int, int]]) -> Iterable[tuple[int, int]]:
    if not loops:
        yield start, offset
        return
    (count, a, b), *inner = loops
    for number in range(count):
        yield from _offsets(start + number * a, offset + number * b, inner)


def _within(segment: Segment, start: int, stop: int) -> Iterable[Segment]:
    """The parts of a segment with entries from `start` to `stop` (excluded)."""
    last = segment.start + sum((count - 1) * a for count, a, _ in segment.loops)
    if last < start or segment.start >= stop:
        return
    if start <= segment.start and last < stop:
        yield segment
        return
    (count, a, b), *inner = segment.loops
    width = sum((n - 1) * step for n, step, _ in inner)
    lowest = max(0, -(-(start - segment.start) // a))
    highest = min(count - 1, (stop - 1 - width - segment.start) // a)
    if lowest <= highest:
        loops = ((highest - lowest + 1, a, b), *inner)
        yield Segment(segment.source, segment.start + lowest * a, segment.offset + lowest * b, loops)
    # those that lie across an end: two at most, since the inner loops are narrower than a step of the outer one
    first, final = max(0, (start - width - segment.start) // a), min(count - 1, (stop - 1 - segment.start) // a)
    for number in range(first, final + 1):
        if not lowest <= number <= highest:
            offset = segment.offset + number * b
            yield from _within(Segment(segment.source, segment.start + number * a, offset, tuple(inner)), start, stop)
