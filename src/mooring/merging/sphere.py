"""Angles between tensors and the formulas that use them, computed from Gram matrices.

A Gram matrix here holds the inner products of base, tuned₁ − base, tuned₂ − base …: with differences, small angles are
not lost in the rounding of nearly equal numbers.
"""

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np

Matrix: TypeAlias = np.ndarray[Any, Any]

_TOO_CLOSE_TO_OPPOSITE = 1e-6
"""Radians; closer to π, rounding decides the direction of the arc."""
_STEPS, _TOLERANCE, _SMALL = 100, 1e-14, 1e-7


def angle(gram: Matrix) -> tuple[float | None, str | None]:
    """The angle ω between b = base and t = b + δ in radians and None, or None and the reason why there is none.

    tan ω = √(‖b‖²‖t‖² − ⟨b,t⟩²) / ⟨b,t⟩ = √(‖b‖²‖δ‖² − ⟨b,δ⟩²) / (‖b‖² + ⟨b,δ⟩), accurate for small angles. `gram` is
    the Gram matrix of b and δ, 2 × 2.
    """
    base, cross, change = float(gram[0, 0]), float(gram[0, 1]), float(gram[1, 1])
    tuned = base + 2 * cross + change
    if base <= 0 or tuned <= 0:
        return None, f"the {'base' if base <= 0 else 'tuned'} tensor is zero, so there is no angle"
    found = math.atan2(math.sqrt(max(base * change - cross * cross, 0.0)), base + cross)
    if found > math.pi - _TOO_CLOSE_TO_OPPOSITE:
        return None, "the two tensors are opposite, so the arc is not unique"
    return found, None


def model_stock_ratio(gram: Matrix) -> tuple[float, str | None]:
    """Model Stock's t = N·cos θ / (1 + (N−1)·cos θ), clamped to [0, 1], and a note if it is not the formula's value.

    cos θ is the mean pairwise cosine of the N ≥ 2 changes, of which `gram` is the Gram matrix, N × N.

    Source: Jang et al. 2024, arXiv:2403.19522, eq. 7.
    """
    count = len(gram)
    norms = np.sqrt(np.maximum(np.diag(gram), 0))
    cosines = []
    for i in range(count):
        for j in range(i):
            size = norms[i] * norms[j]
            cosines.append(min(max(float(gram[i, j] / size), -1.0), 1.0) if size > 0 else 0.0)
    mean = math.fsum(cosines) / len(cosines)
    below = 1 + (count - 1) * mean
    if not norms.all():
        reason = "a tuned model did not change it, which counts as a cosine of 0"
        return (min(max(count * mean / below, 0.0), 1.0) if below > 0 else 0.0), reason
    if below <= 0:
        return 0.0, f"the mean cosine {mean:.3f} has no ratio; t = 0, the base"
    ratio = count * mean / below
    if ratio < 0:
        return 0.0, f"t = {ratio:.3f} was clamped to 0, the base (mean cosine {mean:.3f})"
    return min(ratio, 1.0), None


def karcher_coefficients(gram: Matrix, weights: Sequence[float]) -> tuple[list[float], str | None]:
    """Coefficients of base, tuned₁ … in their weighted Karcher mean, and a note if it does not exist.

    With uᵢ = vᵢ/‖vᵢ‖ the directions of the inputs, m = argmin Σ wᵢ·∠(m, uᵢ)² is the fixed point of
    m ← exp_m(Σ wᵢ·log_m(uᵢ)). It is in the span of the inputs, so their Gram matrix suffices. The mean is m·Σ wᵢ‖vᵢ‖.
    `gram` is (1 + N) × (1 + N), and the weights sum to 1.

    Source: Karcher 1977, Riemannian center of mass and mollifier smoothing.
    """
    lift = np.eye(len(gram))
    lift[:, 0] = 1  # tunedᵢ = base + changeᵢ
    inner = lift @ gram @ lift.T
    norms = np.sqrt(np.maximum(np.diag(inner), 0))
    share = np.asarray(weights, dtype=float)
    weighted = share != 0
    if weighted.sum() == 1 and math.isclose(share[weighted][0], 1):
        return [float(t) for t in weighted], None  # a single input is its own mean
    present = (norms > 0) & weighted
    if not present.any():
        return [float(w) for w in share], "all inputs with a weight are zero; merged as linear"
    size = np.where(norms > 0, norms, 1.0)
    cosine = inner / np.outer(size, size)
    shares = np.where(present, share, 0.0)
    shares /= shares.sum()
    mean = shares.copy()  # coefficients of the directions
    length = math.sqrt(max(float(mean @ cosine @ mean), 0.0))
    if length < 1e-8:
        return [float(w) for w in share], "the inputs cancel, so there is no mean direction; merged as linear"
    mean /= length
    step = math.inf
    for _ in range(_STEPS):
        arcs, dots = _arcs(cosine, mean)
        if (arcs[present] > math.pi - _TOO_CLOSE_TO_OPPOSITE).any():
            return [float(w) for w in share], "an input is opposite to the mean of the others; merged as linear"
        stretch = np.where(arcs > 1e-12, arcs / np.where(arcs > 1e-12, np.sin(arcs), 1), 1.0)
        tangent = shares * stretch - mean * float((shares * stretch) @ dots)
        last, step = step, math.sqrt(max(float(tangent @ cosine @ tangent), 0.0))
        if step < _TOLERANCE or last <= step < _SMALL:  # only rounding is left
            break
        mean = math.cos(step) * mean + math.sin(step) / step * tangent
        mean /= math.sqrt(float(mean @ cosine @ mean))
    if step >= _SMALL:  # coefficients may have diverged
        return [float(w) for w in share], "the mean did not converge; merged as linear"
    scale = float(share @ norms)
    return [float(c) for c in scale * mean / size], None


def tangent_mean(gram: Matrix, weights: Sequence[float]) -> tuple[list[float], str | None]:
    """Coefficients of N changes in their mean by one step in the tangent space, and a note if it does not exist.

    `gram` is their Gram matrix, N × N. A single change is its own mean.
    """
    if len(gram) == 1:
        return [1.0], None
    norms = np.sqrt(np.maximum(np.diag(gram), 0))
    size = np.where(norms > 0, norms, 1.0)
    cosine, share = gram / np.outer(size, size), np.asarray(weights, dtype=float)
    length = math.sqrt(max(float(share @ cosine @ share), 0.0))
    if not length > 1e-8:
        return list(weights), "the directions of the changes cancel, so there is no mean; they are added up"
    mean = share / length  # coefficients of the directions
    tangent = share - float(share @ (cosine @ mean)) * mean
    step = math.sqrt(max(float(tangent @ cosine @ tangent), 0.0))
    turned = math.cos(step) * mean + (math.sin(step) / step * tangent if step > 0 else tangent)
    return [float(c) for c in float(share @ norms) * turned / size], None


def _arcs(cosine: Matrix, mean: Matrix) -> tuple[Matrix, Matrix]:
    """The angle from a direction to every input, and its cosine."""
    dots = np.clip(cosine @ mean, -1.0, 1.0)
    apart = np.eye(len(cosine)) - mean  # uᵢ − m, in coefficients
    chord = np.sqrt(np.maximum(np.einsum("ij,jk,ik->i", apart, cosine, apart), 0.0))
    return np.where(dots > 0, 2 * np.arcsin(np.clip(chord / 2, 0, 1)), np.arccos(dots)), dots
