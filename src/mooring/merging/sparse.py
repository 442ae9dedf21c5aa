"""Methods that sparsify the changes before they add them up."""

import dataclasses
import functools
import hashlib
import math
from collections.abc import Callable, Generator, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from mooring.merge_methods import Sparsify
from mooring.merging import slices
from mooring.merging.plan import Pass, Plan, TensorParams
from mooring.merging.slices import divisor_of, wide_type, widened

Array: TypeAlias = np.ndarray[Any, Any]

# --- Keep the entries of a change whose magnitudes have certain ranks, exactly ---

_HIGH, _LOW = 15, 16
"""Bits of a magnitude's 31 that the first histogram covers, and the second."""


@dataclasses.dataclass(frozen=True, slots=True)
class Span:
    """The kept entries: ascending ranks [first, last) of |δ| among `count` entries.

    Of equal magnitudes, the one at an earlier position has the higher rank if `earlier_is_larger`, else the lower one.
    """

    first: int
    last: int
    count: int
    earlier_is_larger: bool


@dataclasses.dataclass(frozen=True, slots=True)
class Edge:
    """A magnitude at an end of the kept window; of the entries equal to it, numbers [first, last) by position are kept.

    `before` is, for every cell of the grid, how many of them are in earlier cells; None if all or none are kept.
    """

    value: float
    first: int
    last: int
    before: Array | None


@dataclasses.dataclass(frozen=True, slots=True)
class Window:
    """The magnitudes that are kept: from `low` to `high`, or to the largest if `high` is None; none without `low`."""

    low: Edge | None = None
    high: Edge | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class _AtRank:
    """The magnitude at a rank, as bits; how many entries are smaller, and how many equal."""

    bits: int
    below: int
    equal: int


def windows(spans: Sequence[Span | None]) -> Generator[Pass, Any, list[Window | None]]:
    """Find the window of every model's span; None stays None."""
    found = [None if span is None else Window() for span in spans]
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
        counts = yield Pass(functools.partial(_ties, ties), slices.concatenate)
        before = {tie: np.concatenate([[0], np.cumsum(counts[:, row])]) for row, tie in enumerate(ties)}
    for m, _ in wanted:
        low, high = (
            Edge(_from_bits(end.bits), first, last, before.get((m, end.bits))) if end is not None else None
            for end, (first, last) in zip(ends[m], kept[m], strict=True)
        )
        found[m] = Window(low, high)
    return found


def _kept(span: Span, low: _AtRank, high: _AtRank | None) -> tuple[tuple[int, int], tuple[int, int]]:
    """[first, last) of the entries equal to the low and the high edge that are kept, counted by position."""

    def at(end: _AtRank, first: int, last: int) -> tuple[int, int]:
        first, last = max(first - end.below, 0), min(last - end.below, end.equal)
        return (end.equal - last, end.equal - first) if span.earlier_is_larger else (first, last)

    return at(low, span.first, span.last), at(high or low, span.first, span.last)


def _at_ranks(queries: Sequence[tuple[int, int]]) -> Generator[Pass, Any, list[_AtRank]]:
    """The magnitude at an ascending rank, for each (model, rank)."""
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
        found.append(_AtRank((top << _LOW) | low, below + more, int(histogram[low])))
    return found


def _locate(histogram: Array, rank: int) -> tuple[int, int]:
    """The bin that holds the entry of an ascending rank, and how many entries lie in the bins below."""
    ends = np.cumsum(histogram)
    found = int(np.searchsorted(ends, rank, side="right"))
    return found, int(ends[found - 1]) if found else 0


def change_of(base: Tensor, tuned: Tensor) -> Tensor:
    """tuned − base, in float32 or better, in the thread's scratch memory."""
    kind = wide_type([base, tuned])
    return widened("thinned", tuned, kind).sub_(widened("ground", base, kind))


def magnitude_bits(change: Tensor) -> Tensor:
    """|δ| in float32 as integers of the same order, 31 bits: int32, in the thread's scratch memory."""
    return _magnitudes(change).view(torch.int32)


def _magnitudes(change: Tensor) -> Tensor:
    return widened("size", change, torch.float32).abs_()


def _from_bits(bits: int) -> float:
    return float(np.array(bits, dtype=np.int32).view(np.float32))


def _each_cell(
    base: Tensor, tuned: Sequence[Tensor], models: Sequence[int], work: Callable[[int, Tensor], None]
) -> None:
    """Call `work` with (model, magnitudes as bits) for every cell of a slice and some of the models."""
    for first, *others in slices.cells(slices.CELL, base, *(tuned[m] for m in models)):
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
    """How many entries of a bin have each value of the lower bits, for each (model, bin): shape (pairs, 2¹⁶)."""
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
    """How many entries have exactly a magnitude, for each (model, bits): shape (cells, wanted)."""
    found = np.zeros((-(-base.numel() // slices.CELL), len(wanted)), dtype=np.int64)
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
    """Zero what is outside a window, in place; `change` is at most a cell, and begins at position `start`."""
    if window.low is None:
        return change.zero_()
    size = _magnitudes(change)
    low, high, cell = window.low, window.high, start // slices.CELL
    if high is not None and low.value == high.value:
        mask = _equal(size, low, cell)
    else:
        mask = _beyond(size, low, cell, above=True)
        if high is not None:
            mask.mul_(_beyond(size, high, cell, above=False))
    return change.mul_(mask if change.dtype == mask.dtype else mask.to(change.dtype))


def _beyond(size: Tensor, edge: Edge, cell: int, *, above: bool) -> Tensor:
    """1 where a magnitude is on the kept side of an edge, or equal to it and kept; else 0."""
    mask = widened("above" if above else "below", size, torch.float32)
    whole = edge.last > edge.first
    if edge.before is not None:
        seen, past = int(edge.before[cell]), int(edge.before[cell + 1])
        whole = edge.first <= seen and past <= edge.last
        if not whole and seen < edge.last and past > edge.first:  # this cell has kept and dropped ties
            return (mask.gt_(edge.value) if above else mask.lt_(edge.value)).add_(_equal(size, edge, cell))
    if above:
        return mask.ge_(edge.value) if whole else mask.gt_(edge.value)
    return mask.le_(edge.value) if whole else mask.lt_(edge.value)


def _equal(size: Tensor, edge: Edge, cell: int) -> Tensor:
    """1 where a magnitude equals the edge's and the entry is kept; else 0."""
    equal = size.eq(edge.value).float()
    if edge.before is None:
        return equal if edge.last > edge.first else equal.zero_()
    places = np.flatnonzero(equal.numpy())
    numbers = int(edge.before[cell]) + np.arange(len(places))
    equal[torch.from_numpy(places[(numbers < edge.first) | (numbers >= edge.last)])] = 0
    return equal


# --- One sparsifier per kind of method ---

Sparsifier: TypeAlias = Callable[[int, Tensor], Tensor]
"""(start, change) to the sparsified and rescaled change, which may be `change` itself. At most a cell at a time."""

LONGEST_ROW = 2**20
"""The most entries that are ranked together; a longer row is ranked in parts of this length."""


def grid_of(kind: Sparsify | None, params: TensorParams) -> int:
    """Entries that a sparsifier takes at a time: a cell, or whole rows where it ranks them."""
    if kind != "magprune":
        return slices.CELL
    row = _row(params)
    return row * max(1, slices.CELL // row)


def _row(params: TensorParams) -> int:
    """Entries that are ranked together: the last axis, or all of a vector."""
    return max(1, min(params.shape[-1] if len(params.shape) > 1 else params.numel, LONGEST_ROW))


def sparsifiers(kind: Sparsify | None, params: TensorParams, models: int) -> Generator[Pass, Any, list[Sparsifier]]:
    """Measure what is needed over the tensor, and return one sparsifier per tuned model."""
    found: list[Sparsifier]
    if kind in ("magnitude", "outliers"):
        spans = [_span(kind, params.numel, params.density[m], params.gamma[m]) for m in range(models)]
        kept = yield from windows(spans)
        found = [functools.partial(keep_window, window) if window else _untouched for window in kept]
    else:
        drop = _by_rank if kind == "magprune" else _at_random
        found = [functools.partial(drop, params, m) if params.density[m] < 1 else _untouched for m in range(models)]
    if params.rescale == "l1":
        sums = yield Pass(functools.partial(_sums, grid_of(kind, params), found), slices.concatenate)
        return [
            functools.partial(_scaled, keep, _ratio(sums[:, m])) if keep is not _untouched else keep
            for m, keep in enumerate(found)
        ]
    if params.rescale == "inverse" and kind != "magprune":
        return [
            functools.partial(_scaled, keep, 1 / d) if d > 0 and keep is not _untouched else keep
            for keep, d in zip(found, params.density, strict=True)
        ]
    return found


def _untouched(start: int, change: Tensor) -> Tensor:
    return change


def _scaled(keep: Sparsifier, factor: float, start: int, change: Tensor) -> Tensor:
    return keep(start, change).mul_(factor)


def _sums(grid: int, found: Sequence[Sparsifier], start: int, base: Tensor, tuned: Sequence[Tensor]) -> Array:
    """Σ|δ| before and after, in float64: shape (cells, models, 2)."""
    sums = []
    for at in range(0, base.numel(), grid):
        cell = []
        for keep, t in zip(found, tuned[: len(found)], strict=True):
            change = change_of(base[at : at + grid], t[at : at + grid])
            before = float(change.abs().sum(dtype=torch.float64))
            cell.append((before, float(keep(start + at, change).abs_().sum(dtype=torch.float64))))
        sums.append(cell)
    return np.array(sums)


def _ratio(sums: Array) -> float:
    """Σ|δ| / Σ|thinned δ|; 1 if either is below 1e-7, as in mergekit."""
    before, after = math.fsum(sums[:, 0]), math.fsum(sums[:, 1])
    return before / after if min(before, after) >= 1e-7 else 1.0


def _span(kind: str, count: int, density: float, gamma: float) -> Span | None:
    """Which ranks of |δ| are kept; None if all are."""
    if density >= 1:
        return None
    if kind == "magnitude":
        kept = max(1, int(density * count)) if density > 0 and count else 0
        return Span(count - kept, count, count, earlier_is_larger=True)
    kept = int(density * count)
    first = max(0, count - kept - int(gamma * count))
    return Span(first, first + kept, count, earlier_is_larger=False)


# --- Random masks: a function of (seed, tensor, model, position) ---


def draws(seed: int, name: str, model: int, start: int, stop: int) -> Array:
    """Uniform 32-bit numbers for the entries [start, stop) of a tensor, by position: shape (stop − start,), uint32.

    Each cell of the grid has its own SFC64 stream, seeded by (seed, name, model, cell).
    """
    if start % slices.CELL == 0 and stop - start <= slices.CELL:
        return _cell_draws(seed, name, model, start // slices.CELL, stop - start)
    parts = []
    for cell in range(start // slices.CELL, math.ceil(stop / slices.CELL)):
        low, high = max(start, cell * slices.CELL), min(stop, (cell + 1) * slices.CELL)
        parts.append(_cell_draws(seed, name, model, cell, high - cell * slices.CELL)[low - cell * slices.CELL :])
    return np.concatenate(parts) if parts else np.empty(0, np.uint32)


def _cell_draws(seed: int, name: str, model: int, cell: int, count: int) -> Array:
    stream = np.random.SFC64(np.random.SeedSequence([seed % 2**64, _number_of(name), model, cell]))
    raw = stream.random_raw((count + 1) // 2)
    return np.asarray(raw, dtype="<u8").view("<u4")[:count]


@functools.lru_cache(maxsize=4096)
def _number_of(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode("utf-8"), digest_size=16).digest(), "little")


def _at_random(params: TensorParams, model: int, start: int, change: Tensor) -> Tensor:
    """DARE's mask: each entry is kept with probability `density`."""
    threshold = np.uint32(min(round(params.density[model] * 2**32), 2**32 - 1))
    kept = draws(params.seed, params.name, model, start, start + change.numel()) < threshold
    return change.mul_(torch.from_numpy(kept.view(np.uint8)).to(change.dtype))


def _by_rank(params: TensorParams, model: int, start: int, change: Tensor) -> Tensor:
    """MagPrune: in each row, keep with a probability that rises with the rank of |δ|; divide by it if `inverse`."""
    low, width = params.density[model] - params.epsilon[model], 2 * params.epsilon[model]
    count = change.numel()
    drawn = torch.from_numpy(draws(params.seed, params.name, model, start, start + count).astype(np.int64, copy=False))
    mask = slices.scratch("mask", count, change.dtype).copy_(drawn).mul_(2.0**-32)
    chance = _rank_shares(change, _row(params)).mul_(width).add_(low)
    mask.lt_(chance)
    if params.rescale == "inverse":
        mask.div_(chance)
    return change.mul_(mask)


def _rank_shares(change: Tensor, row: int) -> Tensor:
    """Each entry's rank of |δ| within its row, from 0 (smallest) to 1; of equal ones, the first ranks lower."""
    count = change.numel()
    bits, shares = magnitude_bits(change), slices.scratch("shares", count, change.dtype)
    whole = count // row * row
    for first, last, length in ((0, whole, row), (whole, count, count - whole)):
        if first == last:
            continue
        columns = _ascending(bits[first:last].view(-1, length))
        ranks = torch.linspace(0, 1, length, dtype=change.dtype) if length > 1 else change.new_full((1,), 0.5)
        shares[first:last].view(-1, length).scatter_(1, columns, ranks.expand(columns.shape))
    return shares


def _ascending(rows: Tensor) -> Tensor:
    """A stable argsort of each row of 31-bit numbers: by the lower 16 bits, then by the upper ones.

    numpy sorts 16-bit numbers by radix, so that two such sorts take half the time of one comparison sort of 64 bits.
    """
    low = torch.from_numpy((rows.numpy() & 0xFFFF).astype(np.uint16).argsort(axis=1, kind="stable"))
    high = torch.gather(rows >> 16, 1, low).numpy().astype(np.uint16)
    return torch.gather(low, 1, torch.from_numpy(high.argsort(axis=1, kind="stable")))


_ZERO = torch.zeros(())


def _thinned(params: TensorParams, models: int, consensus: bool) -> Plan:
    """θ = base + λ·(sum, or elected sum, of wᵢ·sparsified(tunedᵢ − base))."""
    thin = yield from sparsifiers(params.kind, params, models)
    weights = params.weights or (1.0,) * models
    mix = functools.partial(elect if consensus else add_up, weights=weights, normalize=params.normalize)
    return functools.partial(_add_thinned, params, grid_of(params.kind, params), thin, mix)


def _add_thinned(
    params: TensorParams,
    grid: int,
    thin: Sequence[Sparsifier],
    mix: Callable[[Sequence[Tensor]], Tensor],
    start: int,
    base: Tensor,
    tuned: Sequence[Tensor],
    k: int,
) -> Tensor:
    if params.lams[k] == 0:
        return base
    kind = wide_type([base, *tuned])
    out = slices.scratch("out", base.numel(), params.dtype)
    for number, (place, first, *others) in enumerate(slices.cells(grid, out, base, *tuned)):  # a cell fits the cache
        ground = widened("ground", first, kind)
        changes = [
            keep(start + number * grid, widened(f"change {m}", t, kind).sub_(ground))
            for m, (keep, t) in enumerate(zip(thin, others, strict=True))
        ]
        mixed = mix(changes)
        # a zero of λ·mixed gets the sign that leaves a base of −0 as it is, as in a slice that no model changed
        mixed = torch.sub(_ZERO, mixed, out=mixed) if params.lams[k] > 0 else mixed.add_(0)
        place.copy_(ground.sub_(mixed, alpha=abs(params.lams[k])))
    return out


def add_up(changes: Sequence[Tensor], weights: Sequence[float], normalize: bool) -> Tensor:
    """Σ wᵢ·δᵢ, divided by Σ wᵢ if `normalize`. May change its inputs."""
    divisor = divisor_of(weights) if normalize else 1.0
    total = changes[0].mul_(weights[0] / divisor) if weights[0] != divisor else changes[0]
    for change, weight in zip(changes[1:], weights[1:], strict=True):
        total.add_(change, alpha=weight / divisor)
    return total


def elect(changes: Sequence[Tensor], weights: Sequence[float], normalize: bool) -> Tensor:
    """TIES's sign election and disjoint merge: for each entry, the sum of the wᵢ·δᵢ that have the sign of Σ wᵢ·δᵢ.

    If `normalize`, it is divided by the sum of these wᵢ. A sum of 0 counts as positive. May change its inputs.

    Source: Yadav et al. 2023, arXiv:2306.01708, section 3.
    """
    if len(changes) == 1:  # a single change agrees with itself
        factor = weights[0] if not normalize or weights[0] == 0 else 1.0
        return changes[0].mul_(factor) if factor != 1 else changes[0]
    votes = [change.mul_(weight) for change, weight in zip(changes, weights, strict=True)]
    sign = torch.zeros_like(votes[0])
    for vote in votes:
        sign.add_(vote)
    sign.ge_(0).mul_(2).sub_(1)
    total, divisor = torch.zeros_like(sign), torch.zeros_like(sign)
    for vote, weight in zip(votes, weights, strict=True):
        agrees = torch.sign(vote).eq_(sign)
        total.addcmul_(vote, agrees)
        divisor.add_(agrees, alpha=weight)
    if not normalize:
        return total
    # weights of both signs may cancel to a rounding error
    near = 1e-6 * math.fsum(map(abs, weights)) if min(weights) < 0 else 0.0
    return total.div_(divisor.masked_fill_(divisor.abs().le_(near).bool(), 1))


def ties(params: TensorParams, models: int) -> Plan:
    """TIES: keep the `density` largest entries of each change, elect a sign for each entry, and take the disjoint mean.

    Of the n entries of a tensor, exactly max(1, ⌊density·n⌋) are kept; of equal magnitudes, the first. The threshold
    is exact: two histograms over the bit pattern of |δ| in float32.

    Source: Yadav et al. 2023, TIES-Merging, arXiv:2306.01708. In mergekit: `ties`, λ as `lambda`.
    """
    return (yield from _thinned(params, models, consensus=True))


def dare_linear(params: TensorParams, models: int) -> Plan:
    """DARE: drop each entry of a change with probability p = 1 − density, and divide the others by 1 − p.

    θ = base + λ·Σ wᵢ·mᵢ∘δᵢ/(1−p), mᵢ ~ Bernoulli(1−p). The mask is a function of (seed, tensor, position).
    `rescale: l1` restores the sum of magnitudes instead.

    Source: Yu et al. 2023, Language models are Super Mario, arXiv:2311.03099, eq. 2. In mergekit: `dare_linear`, with
    `rescale` as `l1`.
    """
    return (yield from _thinned(params, models, consensus=False))


def dare_ties(params: TensorParams, models: int) -> Plan:
    """DARE's drop and rescale, then TIES's sign election and disjoint merge.

    Source: Yu et al. 2023, arXiv:2311.03099; Yadav et al. 2023, arXiv:2306.01708. In mergekit: `dare_ties`.
    """
    return (yield from _thinned(params, models, consensus=True))


def della(params: TensorParams, models: int) -> Plan:
    """DELLA: drop entries at random, small ones more often (MagPrune), rescale, elect a sign, take the disjoint mean.

    In a row of n entries, the one with rank r of |δ| (0 the smallest) is kept with probability
    p = density − ε + 2ε·r/(n−1), and divided by p (`rescale: l1` restores the sum of magnitudes instead, as mergekit
    does).

    Source: Deep et al. 2024, DELLA-Merging, arXiv:2406.11617, section 3. In mergekit: `della`, with the same ε.
    """
    return (yield from _thinned(params, models, consensus=True))


def della_linear(params: TensorParams, models: int) -> Plan:
    """DELLA's dropping and rescaling, then the plain sum of changes.

    Source: Deep et al. 2024, arXiv:2406.11617. In mergekit: `della_linear`.
    """
    return (yield from _thinned(params, models, consensus=False))


def breadcrumbs(params: TensorParams, models: int) -> Plan:
    """Model Breadcrumbs: drop the `gamma` largest entries of each change and the smallest ones, and keep `density`.

    Of n entries, ⌊density·n⌋ are kept: the largest after the ⌊gamma·n⌋ dropped ones; of equal magnitudes, the first
    counts as smaller.

    Source: Davari and Belilovsky 2023, Model Breadcrumbs, arXiv:2312.06795. In mergekit: `breadcrumbs`.
    """
    return (yield from _thinned(params, models, consensus=False))


def breadcrumbs_ties(params: TensorParams, models: int) -> Plan:
    """Model Breadcrumbs' dropping, then TIES's sign election and disjoint merge.

    Source: Davari and Belilovsky 2023, arXiv:2312.06795; Yadav et al. 2023, arXiv:2306.01708. In mergekit:
    `breadcrumbs_ties`.
    """
    return (yield from _thinned(params, models, consensus=True))
