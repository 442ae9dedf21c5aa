"""Which entries of a change are kept: by magnitude, at random, or at random by rank.

A rule here is a function of the tensor's name, the position and the change: the same whatever the slices and threads.
"""

import functools
import hashlib
import math
from collections.abc import Callable, Generator, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from mooring.merge import sweep
from mooring.merge.plans import Pass, Site
from mooring.merge.ranks import Span, change_of, keep_window, magnitude_bits, windows

Array: TypeAlias = np.ndarray[Any, Any]

Sparsifier: TypeAlias = Callable[[int, Tensor], Tensor]
"""(start, change) to the thinned and rescaled change; it may be done in place. At most a cell at a time."""

LONGEST_ROW = 2**20
"""Entries that are ranked together at most; a longer row is ranked in runs of so many."""


def grid_of(kind: str, site: Site) -> int:
    """Entries that a sparsifier takes at a time: a cell, or whole rows where it ranks them."""
    if kind != "magprune":
        return sweep.CELL
    row = _row(site)
    return row * max(1, sweep.CELL // row)


def _row(site: Site) -> int:
    """Entries that are ranked together: the last axis, or all of a vector."""
    return max(1, min(site.shape[-1] if len(site.shape) > 1 else site.numel, LONGEST_ROW))


def sparsifiers(kind: str, site: Site, models: int) -> Generator[Pass, Any, list[Sparsifier]]:
    """Find out what is needed over the tensor, and give one sparsifier a tuned model.

    Args:
        kind: `magnitude` (TIES), `outliers` (Breadcrumbs), `random` (DARE) or `magprune` (DELLA).
        site: The tensor.
        models: How many tuned models there are.
    """
    if kind in ("magnitude", "outliers"):
        spans = [_span(kind, site.numel, site.density[m], site.gamma[m]) for m in range(models)]
        found: list[Sparsifier] = [
            functools.partial(keep_window, window) if window else _untouched for window in (yield from windows(spans))
        ]
    elif kind == "random":
        found = [
            functools.partial(_at_random, site, m, site.density[m]) if site.density[m] < 1 else _untouched
            for m in range(models)
        ]
    else:
        found = [
            functools.partial(_by_rank, site, m, _row(site)) if site.density[m] < 1 else _untouched
            for m in range(models)
        ]
    if site.rescale == "l1":
        sums = yield Pass(functools.partial(_sums, grid_of(kind, site), found), sweep.concatenate)
        return [
            functools.partial(_scaled, keep, _ratio(sums[:, m])) if keep is not _untouched else keep
            for m, keep in enumerate(found)
        ]
    if site.rescale == "inverse" and kind != "magprune":
        return [
            functools.partial(_scaled, keep, 1 / d) if d > 0 and keep is not _untouched else keep
            for keep, d in zip(found, site.density, strict=False)
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
        for keep, t in zip(found, tuned, strict=True):
            change = change_of(base[at : at + grid], t[at : at + grid])
            before = float(change.abs().sum(dtype=torch.float64))
            cell.append((before, float(keep(start + at, change).abs_().sum(dtype=torch.float64))))
        sums.append(cell)
    return np.array(sums)


def _ratio(sums: Array) -> float:
    """Σ|δ| / Σ|thinned δ|; 1 where either is next to nothing, as in mergekit."""
    before, after = math.fsum(sums[:, 0]), math.fsum(sums[:, 1])
    return before / after if min(before, after) >= 1e-7 else 1.0


def _span(kind: str, count: int, density: float, gamma: float) -> Span | None:
    """Which ranks of |δ| are kept; None where all are."""
    if density >= 1:
        return None
    if kind == "magnitude":
        kept = max(1, int(density * count)) if density > 0 and count else 0
        return Span(count - kept, count, count, earlier_is_larger=True)
    kept = int(density * count)
    first = max(0, count - kept - int(gamma * count))
    return Span(first, first + kept, count, earlier_is_larger=False)


# At random.


def draws(seed: int, name: str, model: int, start: int, stop: int) -> Array:
    """Uniform 32-bit numbers for the entries [start, stop) of a tensor, by position: shape (stop − start,), uint32.

    Each cell of the grid has its own SFC64 stream, seeded by (seed, name, model, cell).
    """
    if start % sweep.CELL == 0 and stop - start <= sweep.CELL:
        return _cell_draws(seed, name, model, start // sweep.CELL, stop - start)
    parts = []
    for cell in range(start // sweep.CELL, math.ceil(stop / sweep.CELL)):
        low, high = max(start, cell * sweep.CELL), min(stop, (cell + 1) * sweep.CELL)
        parts.append(_cell_draws(seed, name, model, cell, high - cell * sweep.CELL)[low - cell * sweep.CELL :])
    return np.concatenate(parts) if parts else np.empty(0, np.uint32)


def _cell_draws(seed: int, name: str, model: int, cell: int, count: int) -> Array:
    stream = np.random.SFC64(np.random.SeedSequence([seed % 2**64, _number_of(name), model, cell]))
    raw = stream.random_raw((count + 1) // 2)
    return np.asarray(raw, dtype="<u8").view("<u4")[:count]


@functools.lru_cache(maxsize=4096)
def _number_of(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode("utf-8"), digest_size=16).digest(), "little")


def _at_random(site: Site, model: int, density: float, start: int, change: Tensor) -> Tensor:
    """DARE's mask: each entry stays with probability `density`."""
    kept = draws(site.seed, site.name, model, start, start + change.numel()) < np.uint32(
        min(round(density * 2**32), 2**32 - 1)
    )
    return change.mul_(torch.from_numpy(kept.view(np.uint8)).to(change.dtype))


def _by_rank(site: Site, model: int, row: int, start: int, change: Tensor) -> Tensor:
    """MagPrune: in each row, keep with a probability that rises with the rank of |δ|; divide by it where asked."""
    low, width = site.density[model] - site.epsilon[model], 2 * site.epsilon[model]
    count = change.numel()
    drawn = torch.from_numpy(draws(site.seed, site.name, model, start, start + count).astype(np.int64, copy=False))
    mask = sweep.scratch("mask", count, change.dtype).copy_(drawn).mul_(2.0**-32)
    chance = _rank_shares(change, row).mul_(width).add_(low)
    mask.lt_(chance)
    if site.rescale == "inverse":
        mask.div_(chance)
    return change.mul_(mask)


def _rank_shares(change: Tensor, row: int) -> Tensor:
    """Each entry's rank of magnitude within its row, from 0 (least) to 1 (largest); of equal ones the first is less."""
    count = change.numel()
    bits, shares = magnitude_bits(change), sweep.scratch("shares", count, change.dtype)
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
