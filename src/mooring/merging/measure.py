"""Measure a change in one pass over two models, in bounded memory, independent of threads and shards."""

import contextlib
import dataclasses
import functools
import math
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor

from mooring.events import Event, OnEvent
from mooring.merging.change import Change, Histogram, Rank
from mooring.merging.slices import Slice, cut, one_thread, same, scratch, sweep

PROBES = 64
"""Random probes for the effective rank, and the largest rank that they measure exactly."""
_ROWS = 4096
"""Rows of K or Ω that are converted to float64 at a time: neither is ever copied as a whole."""


class Sketch:
    """Random projections K = δᵀ(δΩ) of a change δ with so many columns, accumulated block by block.

    K and the probes Ω give the Nyström approximation of δᵀδ without a second pass. It is exact if the rank of δ is at
    most the number of probes, and never above δᵀδ.

    Sources: Halko, Martinsson, Tropp 2011, Finding structure with randomness, arXiv:0909.4061, section 5.5; Tropp,
    Yurtsever, Udell, Cevher 2017, Fixed-rank approximation of a positive-semidefinite matrix from streaming data,
    arXiv:1706.05736.
    """

    def __init__(self, columns: int) -> None:
        self._columns = columns
        self._sum: Tensor | None = None
        self._next = 0
        self._turn = threading.Condition()

    @property
    def size(self) -> int:
        """Entries of K."""
        return self._columns * min(self._columns, PROBES)

    def project(self, delta: Tensor, out: Tensor) -> Tensor:
        """The contribution to K of whole rows of δ, flat and in float32: shape (columns, probes), written to `out`."""
        matrix = delta.view(-1, self._columns)
        return torch.mm(matrix.T, matrix @ probes(self._columns), out=out.view(self._columns, -1))

    def add(self, piece: Slice, projected: Tensor | None) -> None:
        """Add a contribution (None for zero) after those of the blocks before it: the order of a sum matters."""
        with self._turn:
            self._turn.wait_for(lambda: self._next == piece.start)
            if projected is not None:
                if self._sum is None:
                    self._sum = torch.zeros(projected.shape, dtype=torch.float64)
                for start in range(0, self._columns, _ROWS):
                    self._sum[start : start + _ROWS] += projected[start : start + _ROWS]
            self._next = piece.stop
            self._turn.notify_all()

    def rank(self, energy: float) -> Rank | None:
        """The effective rank, given ‖δ‖²."""
        if self._sum is None:
            return None
        values = nystrom(probes(self._columns), self._sum)
        if not values or values[0] <= 0:
            return None
        reached, directions = 0.0, None
        for number, value in enumerate(values, start=1):
            reached += value
            if reached >= 0.9 * energy * (1 - 1e-6):
                directions = number
                break
        return Rank(directions, max(1.0, energy / values[0]))


def nystrom(omega: Tensor, projected: Tensor) -> list[float]:
    """Eigenvalues, in descending order, of the Nyström approximation K (ΩᵀK)⁻¹ Kᵀ of a matrix A with K = AΩ.

    `omega` and `projected` are Ω and K, both of shape (n, k). Computed as the eigenvalues of Wᵀ(KᵀK)W, with
    W Wᵀ = (ΩᵀK)⁻¹; directions in which ΩᵀK is rounding noise are left out.
    """
    core = torch.zeros(omega.shape[1], omega.shape[1], dtype=torch.float64)
    for start in range(0, len(omega), _ROWS):
        core += omega[start : start + _ROWS].double().T @ projected[start : start + _ROWS]
    square = projected.T @ projected
    if not bool(square.isfinite().all() and core.isfinite().all()):
        return []
    scales, vectors = torch.linalg.eigh((core + core.T) / 2)
    kept = scales > 1e-6 * scales[-1]  # K comes from float32
    if not bool(kept.any()):
        return []
    white = vectors[:, kept] / scales[kept].sqrt()
    values: list[float] = torch.linalg.eigvalsh(white.T @ square @ white).flip(0).clamp(min=0).tolist()
    return values


@functools.lru_cache(maxsize=4)
def probes(columns: int) -> Tensor:
    """Ω, of shape (columns, min(columns, PROBES)): Gaussian with a fixed seed, or the identity if small."""
    if columns <= PROBES:
        return torch.eye(columns)
    return torch.randn(columns, PROBES, generator=torch.Generator().manual_seed(columns))


BLOCK = 2**20
"""About how many entries a thread takes at a time, in whole rows. Sums are accumulated on this grid."""
WIDEST = 2**16
"""Columns of the widest matrix whose rank is measured: the memory of the probes grows with it."""

_CHUNK = 2**16
"""Entries that are summed in float64 at a time, so that they stay in a core's cache."""
_BINS = 2**10


@dataclasses.dataclass(frozen=True, slots=True)
class Extent:
    """The part of a tensor that two models share: the base's type, and the shape without rows of one side only."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        return math.prod(self.shape)


Read = Callable[[Slice, Sequence[Tensor]], tuple[Tensor, Tensor]]
"""(slice, two byte buffers to read into) to the base's and the tuned model's values, flat; the same tensor twice if
they do not differ."""


@dataclasses.dataclass(frozen=True, slots=True)
class Measured:
    """The result of a pass over two models.

    Attributes:
        changes: Every tensor, in the base's order.
        broken: Tensors with NaN or Inf, to `base` or `tuned`; `changes` does not have them.
        equal: Whether the two are equal, byte by byte if they have the same type.
        read_seconds: How long reading took, summed over threads.
    """

    changes: tuple[Change, ...]
    broken: Mapping[str, str]
    equal: bool
    read_seconds: float


@dataclasses.dataclass(frozen=True, slots=True)
class _Part:
    """Sums over a slice, and its entries by bin of |δ| (None if base and tuned are equal)."""

    base_square: float
    change_square: float
    along: float
    counts: Tensor | None
    seconds: float


def measure(
    tensors: Mapping[str, Extent],
    read: Read,
    *,
    ranks: bool = True,
    threads: int | None = None,
    on_event: OnEvent | None = None,
) -> Measured:
    """Measure how every tensor changed.

    Args:
        tensors: The shared part of every tensor, in the base's order.
        read: Reads both models.
        ranks: Whether to measure the effective rank of each matrix's change: about half of the arithmetic.
        threads: Number of worker threads.
        on_event: Receives progress in bytes of the base.

    Raises:
        ModelError: A file ends early or cannot be read.
    """
    sketches = {name: Sketch(info.shape[1]) for name, info in tensors.items() if ranks and _sketchable(info)}
    changes: dict[str, Change] = {name: _change(info, []) for name, info in tensors.items() if info.numel == 0}
    parts: list[_Part] = []  # of the current tensor
    read_seconds, equal = 0.0, True
    done, total = 0, sum(info.numel * info.dtype.itemsize for info in tensors.values())
    work = functools.partial(_measure_slice, read, sketches)
    pieces = (piece for info in tensors.values() for piece in cut(info.name, 0, info.numel, block(info)))
    with one_thread(), contextlib.closing(sweep(pieces, work, threads)) as results:
        for piece, part in results:
            info = tensors[piece.name]
            parts.append(part)
            read_seconds += part.seconds
            equal = equal and part.counts is None
            done += (piece.stop - piece.start) * info.dtype.itemsize
            if on_event:
                on_event(Event(step="inspect", kind="progress", done=done, total=total, unit="bytes"))
            if piece.stop == info.numel:
                changes[info.name] = _change(info, parts, sketches.pop(info.name, None))
                parts.clear()
    broken = {
        name: "tuned" if math.isfinite(changes[name].base_square) else "base"
        for name in tensors
        if not math.isfinite(changes[name].base_square + changes[name].change_square)
    }
    unbroken = tuple(changes[name] for name in tensors if name not in broken)
    return Measured(changes=unbroken, broken=broken, equal=equal, read_seconds=read_seconds)


def _measure_slice(read: Read, sketches: Mapping[str, Sketch], piece: Slice) -> _Part:
    sketch, projected = sketches.get(piece.name), None
    count = piece.stop - piece.start
    try:
        started = time.perf_counter()
        base, tuned = read(piece, [scratch(side, 8 * count, torch.uint8) for side in ("base", "tuned")])
        seconds = time.perf_counter() - started
        squares, delta, counts = sums(base, tuned, scratch("delta", count, torch.float32))
        if sketch and delta is not None:
            projected = sketch.project(delta, scratch("projected", sketch.size, torch.float32))
        return _Part(*squares, counts, seconds)
    finally:  # the next slice waits for this one, even if it failed
        if sketch:
            sketch.add(piece, projected)


def _sketchable(info: Extent) -> bool:
    """Whether the effective rank of a tensor's change is measured: a matrix of numbers, not too wide."""
    return len(info.shape) == 2 and 0 < info.shape[1] <= WIDEST and info.dtype.is_floating_point


def block(info: Extent) -> int:
    """Entries of a tensor that are processed together: whole rows, at least as many as there are probes."""
    if not _sketchable(info):
        return BLOCK
    return max(BLOCK // info.shape[1], PROBES) * info.shape[1]


def sums(base: Tensor, tuned: Tensor, out: Tensor) -> tuple[tuple[float, float, float], Tensor | None, Tensor | None]:
    """(‖base‖², ‖δ‖², ⟨base, δ⟩); δ, written to `out` in float32, and its counts by bin, None if nothing differs."""
    differs = not same(base, tuned)
    delta = out if differs else None
    counts = torch.zeros(_BINS, dtype=torch.int64) if differs else None
    found: list[tuple[float, float, float]] = []
    for start in range(0, base.numel(), _CHUNK):
        ours = base[start : start + _CHUNK].double()
        square = ours.dot(ours).item()
        if delta is None or counts is None:
            found.append((square, 0.0, 0.0))
            continue
        change = tuned[start : start + _CHUNK].to(torch.float64, copy=True).sub_(ours)
        found.append((square, change.dot(change).item(), ours.dot(change).item()))
        here = delta[start : start + _CHUNK].copy_(change)
        counts += torch.bincount((here.view(torch.int32) >> 21) & (_BINS - 1), minlength=_BINS)
    return (_sum(a for a, _, _ in found), _sum(b for _, b, _ in found), _sum(c for _, _, c in found)), delta, counts


def _sum(values: Iterable[float]) -> float:
    """The exact sum, rounded once; NaN if it does not exist, as with infinite values of both signs."""
    values = list(values)
    return math.fsum(values) if all(map(math.isfinite, values)) else math.nan


def _change(info: Extent, parts: Sequence[_Part], sketch: Sketch | None = None) -> Change:
    counted = [part.counts for part in parts if part.counts is not None]
    histogram: Histogram = ()
    if counted:
        total = torch.stack(counted).sum(0)
        bins = total.nonzero().flatten().tolist()
        unchanged = info.numel - int(total.sum())
        merged = dict(zip(bins, total[bins].tolist(), strict=True))
        histogram = tuple(sorted((merged | {0: merged.get(0, 0) + unchanged}).items()))
    square = _sum(part.change_square for part in parts)
    return Change(
        name=info.name,
        shape=tuple(info.shape),
        base_square=_sum(part.base_square for part in parts),
        change_square=square,
        along=_sum(part.along for part in parts),
        floating=info.dtype.is_floating_point,
        histogram=histogram,
        rank=sketch.rank(square) if sketch and 0 < square < math.inf else None,
    )
