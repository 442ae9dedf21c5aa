"""How far two merged models lie apart, tensor by tensor, in float64; what thinning at random does on average."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor


def opened(folder: Path) -> dict[str, Tensor]:
    """The tensors of a model, mapped from its files."""
    tensors: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as opened_file:
            tensors |= {name: opened_file.get_tensor(name) for name in opened_file.keys()}  # noqa: SIM118
    return tensors


def cosine(a: Tensor, b: Tensor) -> float:
    """Of the angle between two tensors."""
    a, b = a.double().flatten(), b.double().flatten()
    return float(a @ b / (a.norm() * b.norm()))


def tied(change: Tensor, first: int, last: int) -> Tensor:
    """Entries of which it is left open whether they are kept, when the ascending ranks [first, last) of |δ| are.

    They have the magnitude of an edge of that window, and others of the same magnitude lie outside: a sort that is not
    stable, as mergekit's, keeps any of them.
    """
    size = change.abs().flatten()
    found = torch.zeros_like(size, dtype=torch.bool)
    for inside, outside in ((first, first - 1), (last - 1, last)):
        if 0 <= outside < len(size):
            edge = size.kthvalue(inside + 1).values
            if edge == size.kthvalue(outside + 1).values:
                found |= size == edge
    return found.view_as(change)


@dataclasses.dataclass(frozen=True, slots=True)
class Distance:
    """How far ours lies from theirs: the worst over tensors.

    Attributes:
        tensors: How many were compared.
        relative: ‖ours − theirs‖ / ‖theirs‖, without the entries that are left open.
        of_change: ‖ours − theirs‖ / ‖theirs − base‖, likewise, for tensors that were changed.
        worst: The tensor with the greatest `relative`.
        open: How many entries are left open.
        with_open: As `relative`, with every entry.
    """

    tensors: int
    relative: float
    of_change: float
    worst: str
    open: int
    with_open: float


def distance(
    base: Path, ours: Path, theirs: Path, names: Sequence[str], left_open: Callable[[str], Tensor | None]
) -> Distance:
    """Compare two merged models on the tensors named.

    Raises:
        SystemExit: One of them lacks a tensor, or its shape differs.
    """
    ground, left, right = opened(base), opened(ours), opened(theirs)
    worst, relative, of_change, count, whole = "", 0.0, 0.0, 0, 0.0
    for name in names:
        if name not in left or name not in right or left[name].shape != right[name].shape:
            raise SystemExit(f"{name}: not in both outputs, or not of one shape")
        apart, b = left[name].double() - right[name].double(), right[name].double()
        size, moved = float(b.norm()), float((b - ground[name].double()).norm())
        whole = max(whole, float(apart.norm()) / size)
        if (skip := left_open(name)) is not None:
            count += int(skip.sum())
            apart[skip] = 0
        found = float(apart.norm()) / size
        if not worst or not found <= relative:  # NaN counts as worse
            worst, relative = name, found
        if moved:
            of_change = max(of_change, float(apart.norm()) / moved)
    return Distance(len(names), relative, of_change, worst, count, whole)


@dataclasses.dataclass(frozen=True, slots=True)
class Moments:
    """Of a randomly thinned change x = (merged − base)/λ beside the whole change δ, one number a tensor.

    Attributes:
        mean: <x, δ>/‖δ‖²: 1 where thinning leaves the change as it is on average.
        variance: ‖x − δ‖²/‖δ‖².
    """

    mean: Tensor
    variance: Tensor


def moments(base: Path, tuned: Sequence[Path], merged: Path, lam: float, names: Sequence[str]) -> Moments:
    """Measure them on the tensors named; δ is the sum of the tuned models' changes."""
    ground, others, out = opened(base), [opened(folder) for folder in tuned], opened(merged)
    rows = []
    for name in names:
        zero = ground[name].double()
        whole = sum((other[name].double() - zero for other in others), torch.zeros_like(zero))
        thinned = (out[name].double() - zero) / lam
        size = float((whole * whole).sum())
        rows.append((float((thinned * whole).sum()) / size, float(((thinned - whole) ** 2).sum()) / size))
    return Moments(*torch.tensor(rows, dtype=torch.float64).T)


def expected(base: Path, tuned: Path, names: Sequence[str], density: float, epsilon: float | None, l1: bool) -> Moments:
    """What the formulas say of the moments: DARE's without ε, else DELLA's, whose probability rises with the rank."""
    ground, other = opened(base), opened(tuned)
    rows = []
    for name in names:
        change = (other[name] - ground[name]).double()
        size = change.abs()
        if epsilon is None:
            keep = torch.full_like(change, density)
        else:
            ranks = size.argsort(dim=-1).argsort(dim=-1).double()
            keep = density - epsilon + 2 * epsilon * ranks / (change.shape[-1] - 1)
        scale = size.sum() / (keep * size).sum() if l1 else 1 / keep
        square, total = change**2, float((change**2).sum())
        mean = float((scale * keep * square).sum()) / total
        variance = float(((keep * (scale - 1) ** 2 + (1 - keep)) * square).sum()) / total
        rows.append((mean, variance))
    return Moments(*torch.tensor(rows, dtype=torch.float64).T)


def errors_apart(a: Tensor, b: Tensor) -> float:
    """The mean difference of two measurements on the same tensors, in its own standard errors."""
    gap = a - b
    spread = float(gap.std()) / math.sqrt(len(gap))
    return abs(float(gap.mean())) / spread if spread else 0.0


def layer_matrices(tensors: dict[str, Tensor]) -> Iterator[str]:
    """Names of the two-dimensional tensors of layers."""
    return (name for name, tensor in sorted(tensors.items()) if tensor.ndim == 2 and ".layers." in name)
