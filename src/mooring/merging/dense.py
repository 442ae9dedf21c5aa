"""Methods that are a weighted sum of their inputs, with weights that may hang on the tensor's angles."""

import dataclasses
import functools
import math
from collections.abc import Callable, Generator, Sequence
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np
import torch
from torch import Tensor

from mooring.merging import slices, sphere

# --- What a method of merging is: a plan for one tensor, which asks for passes over it and ---


@dataclasses.dataclass(frozen=True, slots=True)
class Site:
    """A tensor that is to be merged, with its own numbers.

    Attributes:
        name: Its name.
        shape: The sizes of its axes.
        dtype: The type of the merged tensor.
        numel: How many entries are merged (fewer than the shape's where one side has more vocabulary rows).
        lams: λ, one an output.
        base_weight: The base's own coefficient, or None for 1−λ.
        weights: One a tuned model; empty for the method's default.
        density: The share of entries kept, one a tuned model.
        gamma: The share of largest entries dropped (Breadcrumbs), one a tuned model.
        epsilon: Half the width of the keep probability (DELLA), one a tuned model.
        normalize: Whether to divide by the sum of weights.
        rescale: What makes up for dropped entries.
        seed: Seed of what is drawn.
        note: Told, in a sentence, what was decided for this tensor alone.
        kind: How the method thins changes out (`sparsify`), if it does.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    numel: int
    lams: tuple[float, ...]
    base_weight: float | None
    weights: tuple[float, ...]
    density: tuple[float, ...]
    gamma: tuple[float, ...]
    epsilon: tuple[float, ...]
    normalize: bool
    rescale: Literal["inverse", "l1", "none"]
    seed: int
    note: Callable[[str], None]
    kind: str = ""


Work: TypeAlias = Callable[[int, Tensor, Sequence[Tensor]], Any]
"""(start, base, tuned) to what a slice says; the slice begins at entry `start`, a multiple of the grid's cell."""


@dataclasses.dataclass(frozen=True, slots=True)
class Pass:
    """Something to be found out over a whole tensor.

    Attributes:
        work: Called on every slice, on any thread.
        join: Puts what two neighbouring parts found together.
        broken: Whether what was found in a slice shows that an input is NaN or Inf there; where it cannot tell, it is
            None, and the slice itself is looked at.
    """

    work: Work
    join: Callable[[Any, Any], Any]
    broken: Callable[[Any], bool] | None = None


class Apply(Protocol):
    """Merges a slice."""

    def __call__(self, start: int, base: Tensor, tuned: Sequence[Tensor], output: int) -> Tensor:
        """The merged slice for λ number `output`, in the site's type, rounded once; or an input as it is.

        It may lie in memory that the next call on the same thread uses again.
        """
        ...


Plan: TypeAlias = Generator[Pass, Any, Apply]


def wide_type(tensors: Sequence[Tensor]) -> torch.dtype:
    """float32, or float64 where one is that."""
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


def widened(slot: str, values: Tensor, kind: torch.dtype) -> Tensor:
    """A copy in a wider type, in a thread's own memory."""
    return slices.scratch(slot, values.numel(), kind).copy_(values)


def divisor_of(weights: Sequence[float]) -> float:
    """The sum of weights, or 1 where it is next to nothing, so that weights which cancel divide by no zero."""
    total = math.fsum(weights)
    return total if abs(total) >= 1e-8 else 1.0


@dataclasses.dataclass(frozen=True, slots=True)
class Coefficients:
    """θ = base·c₀ + Σ tunedᵢ·cᵢ.

    Attributes:
        base: c₀; where `affine`, it is 1 − Σ cᵢ.
        tuned: cᵢ, one a tuned model.
        affine: Whether they sum to 1 by definition.
    """

    base: float
    tuned: tuple[float, ...]
    affine: bool = True


_NEARLY_ONE = 1 - 2.0**-20
"""Above it a weight may become 1 in float32, and then lerp loses −0."""


def combine(
    coefficients: Sequence[Coefficients],
    dtype: torch.dtype,
    start: int,
    base: Tensor,
    tuned: Sequence[Tensor],
    k: int,
) -> Tensor:
    """The weighted sum c₀·base + Σ cᵢ·tunedᵢ; where the coefficients sum to 1, as base − Σ cᵢ·(base − tunedᵢ).

    So there an entry that tuning left alone keeps its value exactly, −0 too: −0 − 0 is −0, but −0 + 0 is 0. A sum of
    one input alone is that input, byte for byte.

    Args:
        coefficients: One set an output.
        dtype: The type of the result.
        start: Not used.
        base: Any length, a floating-point type.
        tuned: The same length; types may differ.
        k: Which output.

    Returns:
        The base's length, rounded once; an input itself where it is the result.
    """
    c = coefficients[k]
    active = [(values, weight) for values, weight in zip(tuned, c.tuned, strict=True) if weight != 0]
    if not active and c.base == 1:
        return base
    if len(active) == 1 and c.base == 0 and active[0][1] == 1:
        return active[0][0]
    out = slices.scratch("out", base.numel(), dtype)
    if len(active) == 1 and c.affine and base.dtype == active[0][0].dtype == dtype:
        ((other, weight),) = active  # lerp works in float32 or better, rounds once, and keeps −0 from a weight of ½ on
        if 0.5 <= weight < _NEARLY_ONE:
            return torch.lerp(base, other, weight, out=out)
        if 0.5 < 1 - weight < _NEARLY_ONE and dtype.itemsize == 2:  # what 1 − weight loses in float32 is not seen
            return torch.lerp(other, base, 1 - weight, out=out)
    ground = widened("ground", base, wide_type([base, *(values for values, _ in active)]))
    if not c.affine:
        ground.mul_(c.base)
        for values, weight in active:
            ground.add_(widened("change", values, ground.dtype), alpha=weight)
        return out.copy_(ground)
    less = any(weight > 0 for _, weight in active)  # which differences sum to 0, and not to −0, where nothing changed
    total = None
    for values, weight in active:
        change = widened("sum" if total is None else "change", values, ground.dtype)
        torch.sub(ground, change, out=change) if less else change.sub_(ground)
        signed = weight if less else -weight
        if total is not None:
            total.add_(change, alpha=signed)
        else:
            total = change if len(active) == 1 else change.mul_(signed)
    if total is not None:
        ground.sub_(total, alpha=signed if len(active) == 1 else 1)
    return out.copy_(ground)


def _shares(site: Site, models: int) -> tuple[float, ...]:
    """The weights of the tuned models, summing to 1."""
    given = site.weights or (1.0,) * models
    total = math.fsum(given)
    return tuple(w / total for w in given)


def linear(site: Site, models: int) -> Plan:
    """Weighted mean: θ = (1−λ)·base + λ·Σ wᵢ·tunedᵢ, the wᵢ summing to 1.

    With `base_weight` b: θ = (b·base + Σ wᵢ·tunedᵢ) / (b + Σ wᵢ), the division only where `normalize`.

    λ = 0 gives the base's bytes and λ = 1 the tuned model's.

    Source: Farn et al. 2024, arXiv:2412.19512; Wortsman et al. 2022, Model soups, arXiv:2203.05482. In mergekit:
    `linear` with the weights 1−λ for the base and λ·wᵢ for the tuned models.
    """
    if site.base_weight is not None:
        weights = site.weights or (1.0,) * models
        total = site.base_weight + math.fsum(weights) if site.normalize else 1.0
        c = Coefficients(site.base_weight / total, tuple(w / total for w in weights), affine=site.normalize)
        return functools.partial(combine, [c] * len(site.lams), site.dtype)
    shares = _shares(site, models)
    sets = [Coefficients(1 - lam, tuple(lam * w for w in shares)) for lam in site.lams]
    return functools.partial(combine, sets, site.dtype)
    yield


def task_arithmetic(site: Site, models: int) -> Plan:
    """Sum of task vectors: θ = base + λ·Σ wᵢ·(tunedᵢ − base); divided by Σ wᵢ where `normalize`.

    Source: Ilharco et al. 2022, Editing models with task arithmetic, arXiv:2212.04089. In mergekit: `task_arithmetic`,
    λ as `lambda`, wᵢ as `weight`.
    """
    weights = site.weights or (1.0,) * models
    total = divisor_of(weights) if site.normalize else 1.0
    sets = [tuple(lam * w / total for w in weights) for lam in site.lams]
    return functools.partial(combine, [Coefficients(1 - math.fsum(c), c) for c in sets], site.dtype)
    yield


def lines(site: Site, models: int) -> Plan:
    """LiNeS: task arithmetic with λ rising linearly with depth, λ_l = α + β·l/(L−1) for layer l of L.

    The ramp comes as the λ of each tensor: `--lam 0.2..0.8`; one number λ is the ramp from 0 to λ. Tensors before the
    layers take the ramp's beginning, those after them its end.

    Source: Wang et al. 2024, LiNeS: Post-training layer scaling prevents forgetting and enhances model merging,
    arXiv:2410.17146, eq. 2. In mergekit: `task_arithmetic` with a gradient for `weight`.
    """
    return (yield from task_arithmetic(site, models))


def slerp(site: Site, models: int) -> Plan:
    """Spherical interpolation: θ = sin((1−λ)ω)/sin ω · base + sin(λω)/sin ω · tuned, ω the angle between the two.

    ω comes from ‖δ‖ and not from a cosine, so that the formula holds for small angles and no threshold turns it into
    Linear (mergekit's falls back above a cosine of 0.9995). A tensor without an angle (one side zero, or the two
    opposite) is merged as Linear, and said so.

    Source: Shoemake 1985, Animating rotation with quaternion curves. In mergekit: `slerp`, λ as `t`.
    """
    gram = yield Pass(gram_matrices, slices.concatenate, _not_finite)
    angle, reason = sphere.angle(_total(gram))
    if reason:
        site.note(f"slerp: {reason}; merged as linear")
    return functools.partial(combine, [sphere_pair(lam, angle) for lam in site.lams], site.dtype)


def sphere_pair(lam: float, angle: float | None) -> Coefficients:
    """SLERP's two coefficients at an angle in radians; Linear's where there is none."""
    if angle is None or lam in (0, 1) or angle == 0:
        return Coefficients(1 - lam, (lam,))
    return Coefficients(
        math.sin((1 - lam) * angle) / math.sin(angle), (math.sin(lam * angle) / math.sin(angle),), False
    )


def model_stock(site: Site, models: int) -> Plan:
    """Model Stock: θ = base + λ·t·(mean of tuned − base), t = N·cos / (1 + (N−1)·cos), with N ≥ 2 tuned models.

    cos is the mean pairwise cosine of the changes tunedᵢ − base, for each tensor. t is clamped to [0, 1], and where it
    was, the manifest says so. λ = 1 is the published method.

    Source: Jang et al. 2024, Model Stock: All we need is just a few fine-tuned models, arXiv:2403.19522, eq. 1 and 7.
    In mergekit: `model_stock` (which does not clamp to [0, 1]).
    """
    gram = yield Pass(gram_matrices, slices.concatenate, _not_finite)
    ratio, reason = sphere.model_stock_ratio(_total(gram)[1:, 1:])
    if reason:
        site.note(f"model_stock: {reason}")
    sets = [(lam * ratio / models,) * models for lam in site.lams]
    return functools.partial(combine, [Coefficients(1 - math.fsum(c), c) for c in sets], site.dtype)


def karcher(site: Site, models: int) -> Plan:
    """Karcher mean: the point on the sphere with the least weighted sum of squared arcs to the inputs' directions.

    The inputs weigh 1−λ (the base) and λ·wᵢ; with `base_weight` b, b and wᵢ, over their sum. The result's norm is the
    weighted mean of norms. Found in the space of coefficients, from the Gram matrix alone. With one tuned model it is
    SLERP of the two directions.

    Source: Karcher 1977, Riemannian center of mass and mollifier smoothing; mergekit's `karcher` (equal weights for all
    models) for language models.
    """
    gram = _total((yield Pass(gram_matrices, slices.concatenate, _not_finite)))
    sets = []
    for lam in site.lams:
        if not gram[1:, 1:].any():  # the same in all
            sets.append(Coefficients(1.0, (0.0,) * models))
            continue
        if site.base_weight is not None:
            given = (site.base_weight, *(site.weights or (1.0,) * models))
        else:
            given = (1 - lam, *(lam * w for w in _shares(site, models)))
        total = math.fsum(given)
        coefficients, reason = sphere.karcher_coefficients(gram, [w / total for w in given])
        if reason:
            site.note(f"karcher: {reason}")
        sets.append(Coefficients(coefficients[0], tuple(coefficients[1:]), affine=False))
    return functools.partial(combine, sets, site.dtype)


def gram_matrices(start: int, base: Tensor, tuned: Sequence[Tensor]) -> np.ndarray[Any, Any]:
    """Inner products of base, tuned₁ − base, tuned₂ − base … in float64: shape (cells, 1 + models, 1 + models)."""
    products = []
    for first, *others in slices.cells(slices.CELL, base, *tuned):
        ground = widened("ground", first, torch.float64)
        vectors = [ground]
        vectors += [widened(f"change {m}", t, torch.float64).sub_(ground) for m, t in enumerate(others)]
        products += [torch.dot(vectors[i], vectors[j]) for i in range(len(vectors)) for j in range(i + 1)]
    size = 1 + len(tuned)
    lower = torch.stack(products).view(-1, size * (size + 1) // 2).numpy()
    rows, columns = np.tril_indices(size)
    found = np.empty((len(lower), size, size))
    found[:, rows, columns] = found[:, columns, rows] = lower
    return found


def _not_finite(found: np.ndarray[Any, Any]) -> bool:
    return not np.isfinite(found).all()


def _total(cells: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The sum over cells, exact and so the same in any order."""
    size = cells.shape[1]
    if not np.isfinite(cells).all():  # let through on request; an exact sum of +Inf and −Inf would be an error
        return np.full((size, size), np.nan)
    return np.array([[math.fsum(cells[:, i, j]) for j in range(size)] for i in range(size)])
