"""The effective rank of a change from one pass over its rows, by random projections."""

import functools
import threading

import torch
from torch import Tensor

from mooring.merge.inspect.change import Rank
from mooring.merge.sweep import Slice

PROBES = 64
"""Random probes for the effective rank, and the largest rank that they find exactly."""
_ROWS = 4096
"""Rows of K or Ω that are taken into float64 at a time: neither is ever copied whole."""


class Sketch:
    """Random projections of a change δ of shape (rows, columns), summed up block by block: K = δᵀ(δΩ).

    From K and the probes Ω the Nyström approximation of δᵀδ follows without a second pass: exact where δ has no higher
    rank than there are probes, and nowhere above δᵀδ.

    Sources: Halko, Martinsson, Tropp 2011, Finding structure with randomness, arXiv:0909.4061, section 5.5; Tropp,
    Yurtsever, Udell, Cevher 2017, Fixed-rank approximation of a positive-semidefinite matrix from streaming data,
    arXiv:1706.05736.

    Args:
        columns: Of δ.
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
        """What whole rows of δ, flat and in float32, add to K: of shape (columns, probes), written to `out`."""
        matrix = delta.view(-1, self._columns)
        return torch.mm(matrix.T, matrix @ probes(self._columns), out=out.view(self._columns, -1))

    def add(self, piece: Slice, projected: Tensor | None) -> None:
        """Add it, once the blocks before it were: a sum of floats hangs on its order. None adds nothing."""
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
        """The effective rank.

        Args:
            energy: ‖δ‖².
        """
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
    """Eigenvalues of the Nyström approximation K (ΩᵀK)⁻¹ Kᵀ of a matrix A, K = AΩ; the largest first.

    They are those of W (KᵀK) Wᵀ, where W whitens ΩᵀK; directions in which ΩᵀK is rounding noise are left out.

    Args:
        omega: Ω, of shape (n, k).
        projected: K, of the same shape, in float64.
    """
    core = torch.zeros(omega.shape[1], omega.shape[1], dtype=torch.float64)
    for start in range(0, len(omega), _ROWS):
        core += omega[start : start + _ROWS].double().T @ projected[start : start + _ROWS]
    square = projected.T @ projected
    if not bool(square.isfinite().all() and core.isfinite().all()):
        return []
    scales, vectors = torch.linalg.eigh((core + core.T) / 2)
    held = scales > 1e-6 * scales[-1]  # K comes from float32
    if not bool(held.any()):
        return []
    white = vectors[:, held] / scales[held].sqrt()
    values: list[float] = torch.linalg.eigvalsh(white.T @ square @ white).flip(0).clamp(min=0).tolist()
    return values


@functools.lru_cache(maxsize=4)
def probes(columns: int) -> Tensor:
    """Ω, of shape (columns, min(columns, PROBES)): Gaussian and always the same; the identity where columns are few."""
    if columns <= PROBES:
        return torch.eye(columns)
    return torch.randn(columns, PROBES, generator=torch.Generator().manual_seed(columns))
