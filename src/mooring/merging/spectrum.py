"""Decompositions of matrices, in float64, a block of entries at a time.

The squares of singular values and the singular vectors of the shorter side come from the Gram matrix of that side, so
that no copy of the matrix in float64 is made.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

_BLOCK = 2**22
"""Entries that are converted to float64 at a time."""


def matrices(values: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The entries of a tensor as matrices: shape (matrices, rows, columns). A tensor of three axes holds several.

    `values` are its first entries, flat, in whole rows.
    """
    if len(shape) == 2:
        return values.view(1, -1, shape[1])
    return values.view(-1, *shape[-2:])


def is_matrix(shape: tuple[int, ...]) -> bool:
    """Whether a tensor of this shape is a matrix, or holds several of more than one row and column (experts)."""
    return min(shape, default=0) > 0 and (len(shape) == 2 or (len(shape) == 3 and min(shape[1:]) > 1))


def blocks(rows: int, columns: int) -> Iterator[slice]:
    """The rows of a matrix in parts of about as many entries."""
    step = max(1, _BLOCK // max(1, columns))
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def product(left: Tensor, right: Tensor) -> Tensor:
    """leftᵀ·right in float64: shape (columns of left, columns of right)."""
    found = torch.zeros(left.shape[1], right.shape[1], dtype=torch.float64)
    for part in blocks(len(left), left.shape[1] + right.shape[1]):
        found.addmm_(left[part].double().T, right[part].double())
    return found


def times(matrix: Tensor, right: Tensor, out: Tensor) -> Tensor:
    """matrix·right, computed in float64 and written to `out`, which may be `matrix` itself if the shapes agree."""
    for part in blocks(len(matrix), matrix.shape[1]):
        out[part] = (matrix[part].double() @ right).to(out.dtype)
    return out


def decompose(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Singular values in descending order, and the singular vectors of the shorter side as columns, in float64.

    These are the left ones of a matrix with fewer rows than columns, else the right ones. Singular values below 1e-8
    of the largest are rounding noise.
    """
    tall = matrix if len(matrix) >= matrix.shape[1] else matrix.T
    squares, vectors = torch.linalg.eigh(product(tall, tall))
    return squares.flip(0).clamp_(min=0).sqrt_(), vectors.flip(1)


def at_rank(matrix: Tensor, vectors: Tensor, rank: int) -> Tensor:
    """The best approximation of a rank, given the singular vectors of the shorter side: in the matrix's own type."""
    kept = vectors[:, :rank]
    tall = matrix if len(matrix) >= matrix.shape[1] else matrix.T
    return _onto(tall, kept).to(matrix.dtype) if tall is matrix else _onto(tall, kept).to(matrix.dtype).T


def _onto(tall: Tensor, kept: Tensor) -> Tensor:
    """The rows of a matrix, projected on the columns of `kept`."""
    out = torch.empty(tall.shape, dtype=tall.dtype)
    for part in blocks(len(tall), tall.shape[1]):
        out[part] = ((tall[part].double() @ kept) @ kept.T).to(out.dtype)
    return out


def entropy_rank(singular: Tensor, share: float) -> int:
    """The fewest singular values that hold a share of the entropy −Σ pᵢ·ln pᵢ, with pᵢ = σᵢ/Σσ."""
    shares = singular[singular > 1e-8 * singular[0]]
    shares = shares / shares.sum()
    parts = -(shares * shares.log())
    total = float(parts.sum())
    if total <= 0:
        return 1
    return min(int((parts.cumsum(0) < share * total - 1e-12 * total).sum()) + 1, len(shares))


def cosine(left: Tensor, right: Tensor) -> float:
    """The cosine of two tensors as vectors, in float64; 0 if one is zero."""
    sums = [0.0, 0.0, 0.0]
    for a, b in zip(left.reshape(-1).split(_BLOCK), right.reshape(-1).split(_BLOCK), strict=True):  # type: ignore[no-untyped-call]
        x, y = a.double(), b.double()
        for place, (one, other) in enumerate(((x, y), (x, x), (y, y))):
            sums[place] += float(one.dot(other))
    size = math.sqrt(sums[1]) * math.sqrt(sums[2])
    return sums[0] / size if size > 0 else 0.0


def projected(change: Tensor, onto: Tensor) -> Tensor:
    """V·Vᵀ·δ / ‖V‖ of two matrices of the same shape, in the type of δ; zero if V is.

    V·Vᵀ is multiplied out, or Vᵀ·δ, whichever is smaller.
    """
    norm = math.sqrt(sum(float(onto[part].double().square().sum()) for part in blocks(*onto.shape)))
    out = torch.zeros_like(change)
    if norm == 0:
        return out
    if len(onto) >= onto.shape[1]:
        return times(onto, product(onto, change) / norm, out)
    square = product(onto.T, onto.T) / norm  # symmetric
    return times(change.T, square, out.T).T


def intruders(base: Tensor, tuned: Tensor, rank: int, threshold: float) -> Tensor:
    """Σ uᵢ·σᵢ·vᵢᵀ over those of the tuned matrix's first singular vectors that resemble none of the base's.

    uᵢ counts as one of these if its largest |cosine| with a left singular vector of the base is below the threshold.
    Shape and type are those of the matrices.
    """
    short = len(tuned) < tuned.shape[1]
    ours, own = decompose(base)
    theirs, first = decompose(tuned)
    count = min(rank or len(theirs), int((theirs > 1e-8 * theirs[0]).sum()))
    first, theirs = first[:, :count], theirs[:count]
    if short:
        alike = (first.T @ own).abs().amax(1)
    else:  # left singular vectors are W·v/σ
        kept = ours > 1e-8 * ours[0]
        left = torch.empty(len(tuned), count, dtype=torch.float64)
        times(tuned, first / theirs, left)
        alike = ((product(left, base) @ own[:, kept]) / ours[kept]).abs().amax(1)
    strange = first[:, alike < threshold]
    if not strange.shape[1]:
        return torch.empty(0, dtype=tuned.dtype)
    return at_rank(tuned, strange, strange.shape[1])
