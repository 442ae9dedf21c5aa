"""Methods that are a weighted sum of their inputs, with weights that may depend on the tensors' angles."""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mooring.merging import slices, sphere
from mooring.merging.plan import Apply, Pass, Plan, TensorParams
from mooring.merging.slices import divisor_of, wide_type, widened


@dataclasses.dataclass(frozen=True, slots=True)
class Coefficients:
    """c₀ = `base` and cᵢ = `tuned` of θ = c₀·base + Σ cᵢ·tunedᵢ; `affine` if they sum to 1 by definition."""

    base: float
    tuned: tuple[float, ...]
    affine: bool = True


_NEARLY_ONE = 1 - 2.0**-20
"""A weight above it may become 1 in float32, and then lerp loses −0."""


def combine(
    coefficients: Sequence[Coefficients],
    dtype: torch.dtype,
    start: int,
    base: Tensor,
    tuned: Sequence[Tensor],
    k: int,
) -> Tensor:
    """c₀·base + Σ cᵢ·tunedᵢ for output k, rounded once; computed as base − Σ cᵢ·(base − tunedᵢ) if Σ c = 1.

    An entry that tuning did not change then keeps its value exactly, −0 too: −0 − 0 is −0, but −0 + 0 is 0. If one
    coefficient is 1 and the others are 0, the result is that input itself.
    """
    c = coefficients[k]
    active = [(values, weight) for values, weight in zip(tuned, c.tuned, strict=True) if weight != 0]
    if not active and c.base == 1:
        return base
    if len(active) == 1 and c.base == 0 and active[0][1] == 1:
        return active[0][0]
    out = slices.scratch("out", base.numel(), dtype)
    if len(active) == 1 and c.affine and base.dtype == active[0][0].dtype == dtype:
        ((other, weight),) = active  # lerp computes in float32 or better, rounds once, and keeps −0 for weights from ½
        if 0.5 <= weight < _NEARLY_ONE:
            return torch.lerp(base, other, weight, out=out)
        if 0.5 < 1 - weight < _NEARLY_ONE and dtype.itemsize == 2:  # 1 − weight is exact enough in 16 bits
            return torch.lerp(other, base, 1 - weight, out=out)
    ground = widened("ground", base, wide_type([base, *(values for values, _ in active)]))
    if not c.affine:
        ground.mul_(c.base)
        for values, weight in active:
            ground.add_(widened("change", values, ground.dtype), alpha=weight)
        return out.copy_(ground)
    less = any(weight > 0 for _, weight in active)  # the sign with which unchanged entries sum to 0 and not to −0
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


def _shares(params: TensorParams, models: int) -> tuple[float, ...]:
    """The weights of the tuned models, summing to 1."""
    given = params.weights or (1.0,) * models
    total = math.fsum(given)
    return tuple(w / total for w in given)


def linear(params: TensorParams, models: int) -> Apply:
    """Weighted mean: θ = (1−λ)·base + λ·Σ wᵢ·tunedᵢ / Σ wᵢ.

    With `base_weight` b: θ = (b·base + Σ wᵢ·tunedᵢ) / (b + Σ wᵢ); without the division if `normalize` is off.

    λ = 0 gives the base's bytes, and λ = 1 the tuned model's.

    Source: Farn et al. 2024, arXiv:2412.19512; Wortsman et al. 2022, Model soups, arXiv:2203.05482. In mergekit:
    `linear` with the weights 1−λ for the base and λ·wᵢ for the tuned models.
    """
    if params.base_weight is not None:
        weights = params.weights or (1.0,) * models
        total = params.base_weight + math.fsum(weights) if params.normalize else 1.0
        c = Coefficients(params.base_weight / total, tuple(w / total for w in weights), affine=params.normalize)
        return functools.partial(combine, [c] * len(params.lams), params.dtype)
    shares = _shares(params, models)
    sets = [Coefficients(1 - lam, tuple(lam * w for w in shares)) for lam in params.lams]
    return functools.partial(combine, sets, params.dtype)


def task_arithmetic(params: TensorParams, models: int) -> Apply:
    """Sum of task vectors: θ = base + λ·Σ wᵢ·(tunedᵢ − base); the sum is divided by Σ wᵢ if `normalize`.

    Source: Ilharco et al. 2022, Editing models with task arithmetic, arXiv:2212.04089. In mergekit: `task_arithmetic`,
    λ as `lambda`, wᵢ as `weight`.
    """
    weights = params.weights or (1.0,) * models
    total = divisor_of(weights) if params.normalize else 1.0
    sets = [tuple(lam * w / total for w in weights) for lam in params.lams]
    return functools.partial(combine, [Coefficients(1 - math.fsum(c), c) for c in sets], params.dtype)


def lines(params: TensorParams, models: int) -> Apply:
    """LiNeS: task arithmetic with λ rising linearly with depth: λ_l = α + β·l/(L−1) for layer l = 0 … L−1.

    `--lam 0.2..0.8` gives the ramp; one number λ is the ramp from 0 to λ. Tensors before the layers get the first
    value, those after them the last.

    Source: Wang et al. 2024, LiNeS: Post-training layer scaling prevents forgetting and enhances model merging,
    arXiv:2410.17146, eq. 2. In mergekit: `task_arithmetic` with a gradient for `weight`.
    """
    return task_arithmetic(params, models)


def slerp(params: TensorParams, models: int) -> Plan:
    """Spherical interpolation: θ = sin((1−λ)ω)/sin ω · base + sin(λω)/sin ω · tuned, with ω the angle between the two.

    ω is computed from the change and not from a cosine, so the formula holds for small angles too, without a threshold
    (mergekit uses Linear if the cosine exceeds 0.9995). A tensor without an angle (one side is zero, or the two are
    opposite) is merged as Linear, which the manifest records.

    Source: Shoemake 1985, Animating rotation with quaternion curves. In mergekit: `slerp`, λ as `t`.
    """
    gram = yield Pass(gram_matrices, slices.concatenate, _not_finite)
    angle, reason = sphere.angle(_total(gram))
    if reason:
        params.note(f"slerp: {reason}; merged as linear")
    return functools.partial(combine, [sphere_pair(lam, angle) for lam in params.lams], params.dtype)


def sphere_pair(lam: float, angle: float | None) -> Coefficients:
    """SLERP's two coefficients at an angle in radians; Linear's where there is none."""
    if angle is None or lam in (0, 1) or angle == 0:
        return Coefficients(1 - lam, (lam,))
    return Coefficients(
        math.sin((1 - lam) * angle) / math.sin(angle), (math.sin(lam * angle) / math.sin(angle),), False
    )


def model_stock(params: TensorParams, models: int) -> Plan:
    """Model Stock: θ = base + λ·t·(mean of tuned − base), t = N·cos θ / (1 + (N−1)·cos θ), with N ≥ 2 tuned models.

    cos θ is the mean pairwise cosine of a tensor's changes tunedᵢ − base. t is clamped to [0, 1], which the manifest
    records. λ = 1 is the published method.

    Source: Jang et al. 2024, Model Stock: All we need is just a few fine-tuned models, arXiv:2403.19522, eq. 1 and 7.
    In mergekit: `model_stock` (which does not clamp to [0, 1]).
    """
    gram = yield Pass(gram_matrices, slices.concatenate, _not_finite)
    ratio, reason = sphere.model_stock_ratio(_total(gram)[1:, 1:])
    if reason:
        params.note(f"model_stock: {reason}")
    sets = [(lam * ratio / models,) * models for lam in params.lams]
    return functools.partial(combine, [Coefficients(1 - math.fsum(c), c) for c in sets], params.dtype)


def karcher(params: TensorParams, models: int) -> Plan:
    """Karcher mean: m = argmin Σ pᵢ·∠(m, uᵢ)², with uᵢ the directions of base and tuned models, times Σ pᵢ‖vᵢ‖.

    The weights pᵢ are 1−λ for the base and λ·wᵢ for the tuned models; with `base_weight` b, they are b and wᵢ, divided
    by their sum. Computed from the Gram matrix alone. With one tuned model it is SLERP of the two directions.

    Source: Karcher 1977, Riemannian center of mass and mollifier smoothing; mergekit's `karcher` (equal weights for all
    models) for language models.
    """
    gram = _total((yield Pass(gram_matrices, slices.concatenate, _not_finite)))
    sets = []
    for lam in params.lams:
        if not gram[1:, 1:].any():  # the same in all
            sets.append(Coefficients(1.0, (0.0,) * models))
            continue
        if params.base_weight is not None:
            given = (params.base_weight, *(params.weights or (1.0,) * models))
        else:
            given = (1 - lam, *(lam * w for w in _shares(params, models)))
        total = math.fsum(given)
        coefficients, reason = sphere.karcher_coefficients(gram, [w / total for w in given])
        if reason:
            params.note(f"karcher: {reason}")
        sets.append(Coefficients(coefficients[0], tuple(coefficients[1:]), affine=False))
    return functools.partial(combine, sets, params.dtype)


def nuslerp(params: TensorParams, models: int) -> Plan:
    """NuSLERP: SLERP of base and tuned model at λ; of two tuned models, base + λ·SLERP of their changes.

    The place between the two changes is w₂/(w₁ + w₂), ½ if both weights cancel. Whole tensors are interpolated, not
    rows. A tensor without an angle is interpolated linearly, which the manifest records.

    Source: mergekit's `nuslerp` (Goddard 2024): without `base_model`, base and tuned model with the weights 1−λ and λ;
    with it, two models, for λ = 1; `nuslerp_flatten` on.
    """
    gram = _total((yield Pass(gram_matrices, slices.concatenate, _not_finite)))
    if models == 1:
        angle, reason = sphere.angle(gram)
        sets = [sphere_pair(lam, angle) for lam in params.lams]
    else:
        between = np.array([[1.0, 0.0], [-1.0, 1.0]])  # δ₁, δ₂ − δ₁
        angle, reason = sphere.angle(between @ gram[1:, 1:] @ between.T)
        first, second = params.weights or (1.0, 1.0)
        total = first + second
        pair = sphere_pair(second / total if abs(total) >= 1e-6 else 0.5, angle)
        shares = (pair.base, *pair.tuned)
        sets = [
            Coefficients(1 - lam * math.fsum(shares), tuple(lam * share for share in shares)) for lam in params.lams
        ]
    if reason:
        params.note(f"nuslerp: {reason}; merged as linear")
    return functools.partial(combine, sets, params.dtype)


def multislerp(params: TensorParams, models: int) -> Plan:
    """Multi-SLERP: θ = base + λ·(spherical mean of the changes δᵢ), by one step in the tangent space at their mean.

    With uᵢ = δᵢ/‖δᵢ‖ and m the direction of Σ wᵢ·uᵢ, the mean is exp_m(Σ wᵢ·(uᵢ − ⟨uᵢ,m⟩·m)) · Σ wᵢ‖δᵢ‖. The weights
    are divided by their sum if `normalize`. One tuned model is task arithmetic. Where the directions cancel, or nothing
    changed, the changes are added up, which the manifest records.

    Source: Goddard 2025, Multi-SLERP. In mergekit: `multislerp` with `base_model`, `normalize` as `normalize_weights`,
    for λ = 1.
    """
    gram = _total((yield Pass(gram_matrices, slices.concatenate, _not_finite)))
    weights = params.weights or (1.0,) * models
    total = divisor_of(weights) if params.normalize else 1.0
    shares, reason = sphere.tangent_mean(gram[1:, 1:], [weight / total for weight in weights])
    if reason:
        params.note(f"multislerp: {reason}")
    sets = [tuple(lam * share for share in shares) for lam in params.lams]
    return functools.partial(combine, [Coefficients(1 - math.fsum(c), c) for c in sets], params.dtype)


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
