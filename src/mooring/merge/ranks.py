"""Keep the entries of a change whose magnitudes have certain ranks: exact, and without sorting.

A magnitude |δ| in float32 is a whole number of 31 bits of the same order. One histogram over its upper 15 bits says in
which bin a rank lies, a second one over the lower 16 bits of that bin which magnitude it is, and a count of the entries
that have just that magnitude which of them are in: three passes in bounded memory, whatever the size of the tensor.
"""

import dataclasses
import functools
from collections.abc import Callable, Generator, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from mooring.merge import sweep
from mooring.merge.plans import Pass

Array: TypeAlias = np.ndarray[Any, Any]

_HIGH, _LOW = 15, 16
"""Bits of a magnitude's 31 that the first histogram looks at, and the second."""


@dataclasses.dataclass(frozen=True, slots=True)
class Span:
    """Ascending ranks [first, last) of |δ| among `count` entries.

    Attributes:
        first: The first rank that is kept.
        last: One past the last.
        count: How many entries there are.
        earlier_is_larger: Whether of equal magnitudes the one at an earlier position has the higher rank.
    """

    first: int
    last: int
    count: int
    earlier_is_larger: bool


@dataclasses.dataclass(frozen=True, slots=True)
class Edge:
    """A magnitude at the edge of the kept window, and which of the entries that have it are inside.

    Attributes:
        value: The magnitude, in float32.
        first: The first of those entries, in the order of positions, that is kept.
        last: One past the last.
        before: For every cell of the grid, how many of those entries lie in the cells before it; None where all of
            them, or none, are kept.
    """

    value: float
    first: int
    last: int
    before: Array | None


@dataclasses.dataclass(frozen=True, slots=True)
class Window:
    """The magnitudes that are kept: between two edges, or from one on where nothing is too large; no edge: none."""

    low: Edge | None
    high: Edge | None


@dataclasses.dataclass(frozen=True, slots=True)
class _Found:
    """The magnitude at a rank, as bits; how many entries are smaller, and how many equal."""

    bits: int
    below: int
    equal: int


def windows(spans: Sequence[Span | None]) -> Generator[Pass, Any, list[Window | None]]:
    """Find the window of every model's span; None stays None."""
    found: list[Window | None] = [None if span is None else Window(None, None) for span in spans]
    wanted = [(m, span) for m, span in enumerate(spans) if span is not None and span.last > span.first]
    if not wanted:
        return found
    queries = [(m, span.first) for m, span in wanted]
    queries += [(m, span.last - 1) for m, span in wanted if span.last < span.count]
    answers = dict(zip(queries, (yield from _at_ranks(queries)), strict=True))
    ends = {m: (answers[m, span.first], answers.get((m, span.last - 1))) for m, span in wanted}
    kept = {m: _kept(span, *ends[m]) for m, span in wanted}
    ties = [
        (m, end.bits)
        for m, _ in wanted
        for end, (first, last) in zip(ends[m], kept[m], strict=True)
        if end is not None and 0 < last - first < end.equal
    ]
    before: dict[tuple[int, int], Array] = {}
    if ties:
        counts = yield Pass(functools.partial(_ties, ties), sweep.concatenate)
        before = {tie: np.concatenate([[0], np.cumsum(counts[:, row])]) for row, tie in enumerate(ties)}
    for m, _ in wanted:
        low, high = (
            Edge(_from_bits(end.bits), first, last, before.get((m, end.bits))) if end is not None else None
            for end, (first, last) in zip(ends[m], kept[m], strict=True)
        )
        found[m] = Window(low, high)
    return found


def _kept(span: Span, low: _Found, high: _Found | None) -> tuple[tuple[int, int], tuple[int, int]]:
    """For the low and the high edge, which of the entries equal to it are kept, counted in the order of positions."""

    def at(end: _Found, first: int, last: int) -> tuple[int, int]:
        first, last = max(first - end.below, 0), min(last - end.below, end.equal)
        return (end.equal - last, end.equal - first) if span.earlier_is_larger else (first, last)

    return at(low, span.first, span.last), at(high or low, span.first, span.last)


def _at_ranks(queries: Sequence[tuple[int, int]]) -> Generator[Pass, Any, list[_Found]]:
    """The magnitudes at ascending ranks, for (model, rank) each."""
    models = sorted({m for m, _ in queries})
    tops = yield Pass(functools.partial(_top_histograms, models), np.add, _has_infinite)
    bins = [_locate(tops[models.index(m)], rank) for m, rank in queries]
    pairs = [(m, top) for (m, _), (top, _) in zip(queries, bins, strict=True)]
    distinct = sorted(set(pairs))
    lows = yield Pass(functools.partial(_low_histograms, distinct), np.add)
    found = []
    for (_, rank), (top, below), pair in zip(queries, bins, pairs, strict=True):
        histogram = lows[distinct.index(pair)]
        low, more = _locate(histogram, rank - below)
        found.append(_Found((top << _LOW) | low, below + more, int(histogram[low])))
    return found


def _locate(histogram: Array, rank: int) -> tuple[int, int]:
    """The bin that holds the entry of an ascending rank, and how many entries lie in the bins below."""
    ends = np.cumsum(histogram)
    found = int(np.searchsorted(ends, rank, side="right"))
    return found, int(ends[found - 1]) if found else 0


def change_of(base: Tensor, tuned: Tensor) -> Tensor:
    """tuned − base, in float32 or better, in a thread's own memory."""
    kind = torch.float64 if torch.float64 in (base.dtype, tuned.dtype) else torch.float32
    ground = sweep.scratch("ground", base.numel(), kind).copy_(base)
    return sweep.scratch("thinned", base.numel(), kind).copy_(tuned).sub_(ground)


def magnitude_bits(change: Tensor) -> Tensor:
    """|δ| in float32 as whole numbers of the same order, 31 bits: int32, in a thread's own memory."""
    return sweep.scratch("size", change.numel(), torch.float32).copy_(change).abs_().view(torch.int32)


def _from_bits(bits: int) -> float:
    return float(np.array(bits, dtype=np.int32).view(np.float32))


def _each_cell(
    base: Tensor, tuned: Sequence[Tensor], models: Sequence[int], work: Callable[[int, Tensor], None]
) -> None:
    """Call `work` with (model, magnitudes as bits) for every cell of a slice and some of the models."""
    for first, *others in sweep.cells(sweep.CELL, base, *(tuned[m] for m in models)):
        for m, values in zip(models, others, strict=True):
            work(m, magnitude_bits(change_of(first, values)))


def _top_histograms(models: Sequence[int], start: int, base: Tensor, tuned: Sequence[Tensor]) -> Array:
    """How many entries have each value of the upper bits: shape (models, 2¹⁵)."""
    found = torch.zeros((len(models), 1 << _HIGH), dtype=torch.int64)
    rows = dict(zip(models, found, strict=True))

    def count(m: int, bits: Tensor) -> None:
        rows[m].add_(torch.bincount(bits.bitwise_right_shift_(_LOW), minlength=1 << _HIGH))

    _each_cell(base, tuned, models, count)
    return found.numpy()


def _has_infinite(tops: Array) -> bool:
    """Whether a change is Inf or NaN: their upper bits are those of Inf or more."""
    return bool(tops[:, 0x7F80:].any())


def _low_histograms(pairs: Sequence[tuple[int, int]], start: int, base: Tensor, tuned: Sequence[Tensor]) -> Array:
    """The same for the lower bits of those in a bin, for (model, bin) each: shape (pairs, 2¹⁶)."""
    found = np.zeros((len(pairs), 1 << _LOW), dtype=np.int64)

    def count(m: int, bits: Tensor) -> None:
        numbers = bits.numpy()
        tops = numbers >> _LOW
        for row, (model, top) in enumerate(pairs):
            if model == m:
                inside = numbers[np.flatnonzero(tops == top)] & ((1 << _LOW) - 1)
                found[row] += np.bincount(inside, minlength=1 << _LOW)

    _each_cell(base, tuned, sorted({m for m, _ in pairs}), count)
    return found


def _ties(wanted: Sequence[tuple[int, int]], start: int, base: Tensor, tuned: Sequence[Tensor]) -> Array:
    """How many entries have just a magnitude, for (model, bits) each: shape (cells, wanted)."""
    found = np.zeros((-(-base.numel() // sweep.CELL), len(wanted)), dtype=np.int64)
    cells = dict.fromkeys({m for m, _ in wanted}, 0)

    def count(m: int, bits: Tensor) -> None:
        numbers = bits.numpy()
        for row, (model, value) in enumerate(wanted):
            if model == m:
                found[cells[m], row] = np.count_nonzero(numbers == value)
        cells[m] += 1

    _each_cell(base, tuned, sorted(cells), count)
    return found


def keep_window(window: Window, start: int, change: Tensor) -> Tensor:
    """Zero what lies outside a window, in place.

    Args:
        window: What is kept.
        start: Position of the first entry, a multiple of the grid's cell.
        change: At most a cell.
    """
    if window.low is None:
        return change.zero_()
    size = sweep.scratch("size", change.numel(), torch.float32).copy_(change).abs_()
    low, high, cell = window.low, window.high, start // sweep.CELL
    if high is not None and low.value == high.value:
        mask = _equal(size, low, cell)
    else:
        mask = _beyond(size, low, cell, above=True)
        if high is not None:
            mask.mul_(_beyond(size, high, cell, above=False))
    return change.mul_(mask if change.dtype == mask.dtype else mask.to(change.dtype))


def _beyond(size: Tensor, edge: Edge, cell: int, *, above: bool) -> Tensor:
    """1 where a magnitude lies on the kept side of an edge, or on it and is one of those that are kept; else 0."""
    mask = sweep.scratch("above" if above else "below", size.numel(), torch.float32).copy_(size)
    whole = edge.last > edge.first
    if edge.before is not None:
        seen, past = int(edge.before[cell]), int(edge.before[cell + 1])
        whole = edge.first <= seen and past <= edge.last
        if not whole and seen < edge.last and past > edge.first:  # the ties of this cell are parted
            return (mask.gt_(edge.value) if above else mask.lt_(edge.value)).add_(_equal(size, edge, cell))
    if above:
        return mask.ge_(edge.value) if whole else mask.gt_(edge.value)
    return mask.le_(edge.value) if whole else mask.lt_(edge.value)


def _equal(size: Tensor, edge: Edge, cell: int) -> Tensor:
    """1 at the entries that have just the edge's magnitude and are among those kept; else 0."""
    equal = size.eq(edge.value).float()
    if edge.before is None:
        return equal if edge.last > edge.first else equal.zero_()
    places = np.flatnonzero(equal.numpy())
    numbers = int(edge.before[cell]) + np.arange(len(places))
    equal[torch.from_numpy(places[(numbers < edge.first) | (numbers >= edge.last)])] = 0
    return equal
