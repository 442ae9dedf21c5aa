"""Every method of merging on whole tensors in float64, written from the papers: what the streamed ones are held to.

Only the uniform numbers of DARE and DELLA come from the code under test (`sparsify.draws`, a documented function of the
seed, the name, the model and the position). Ranks, masks, signs, angles and means are worked out here another way.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from mooring.merge_methods import METHODS
from mooring.merging.sparse import draws

Array = np.ndarray[Any, Any]

NORMALIZED = {"ties", "della"}
"""Methods that divide by the sum of weights unless told otherwise."""
RESCALED = {"dare_linear", "dare_ties", "della", "della_linear"}
"""Methods that divide what is kept by its probability unless told otherwise."""
PLAIN = [name for name, method in METHODS.items() if not (method.accepts or method.matrices)]
"""Methods of a base and tuned models alone, an entry at a time; test_further_methods.py has the others."""
KINDS = {
    "ties": "magnitude",
    "dare_linear": "random",
    "dare_ties": "random",
    "della": "magprune",
    "della_linear": "magprune",
    "breadcrumbs": "outliers",
    "breadcrumbs_ties": "outliers",
}
"""How a method thins changes out."""
ELECTED = {"ties", "dare_ties", "della", "breadcrumbs_ties"}
"""Methods that elect a sign."""


@dataclasses.dataclass(frozen=True)
class Expected:
    """What a merged tensor should be.

    Attributes:
        value: In float64, flat.
        size: Of every entry, the sum of magnitudes that went into it: rounding errors are relative to this.
        sure: Where no decision (a sign, a draw) was so close that float32 may take it the other way.
    """

    value: Array
    size: Array
    sure: Array


def merged(
    method: str,
    base: torch.Tensor,
    tuned: Sequence[torch.Tensor],
    lam: float,
    *,
    name: str = "w",
    weights: Sequence[float] = (),
    base_weight: float | None = None,
    density: Sequence[float] = (),
    gamma: Sequence[float] = (),
    epsilon: Sequence[float] = (),
    normalize: bool | None = None,
    rescale: str | None = None,
    seed: int = 42,
    threshold: float = 0.001,
) -> Expected:
    """The merged tensor by the formula of a method; options as in `job.Options`, already expanded to one a model."""
    n = len(tuned)
    b, ts = exact(base), [exact(t) for t in tuned]
    given = list(weights) or [1.0] * n
    total = math.fsum(given)
    if method == "linear":
        if base_weight is None:
            c0, cs = 1 - lam, [lam * w / total for w in given]
        else:
            over = total + base_weight if normalize is not False else 1.0
            c0, cs = base_weight / over, [w / over for w in given]
        return mix(b, ts, c0, cs)
    if method == "slerp":
        return mix(b, ts, *slerp_pair(b, ts[0], lam))
    if method == "nuslerp":
        if n == 1:
            return mix(b, ts, *slerp_pair(b, ts[0], lam))
        changes = [t - b for t in ts]
        first, (second,) = slerp_pair(changes[0], changes[1], given[1] / total)
        cs = [lam * first, lam * second]
        return mix(b, ts, 1 - math.fsum(cs), cs)
    if method == "multislerp":
        cs = [
            lam * c
            for c in tangent_mean([t - b for t in ts], [w / (total if normalize is not False else 1) for w in given])
        ]
        return mix(b, ts, 1 - math.fsum(cs), cs)
    if method == "nearswap":
        change = np.clip(ts[0] - b, -threshold, threshold)
        return Expected(b + lam * change, np.abs(b) + abs(lam) * (np.abs(b) + np.abs(ts[0])), np.ones(b.size, bool))
    if method == "karcher":
        own = 1 - lam if base_weight is None else base_weight
        others = [lam * w / total for w in given] if base_weight is None else given
        first, rest, alone = karcher_mean([b, *ts], [own, *others])
        found = mix(b, ts, first, rest)
        return found if alone else dataclasses.replace(found, sure=np.zeros(b.size, bool))
    if method == "model_stock":
        c = lam * stock_ratio([t - b for t in ts]) / n
        return mix(b, ts, 1 - n * c, [c] * n)
    divide = method in NORMALIZED if normalize is None else normalize
    if method in ("task_arithmetic", "lines"):
        cs = [lam * w / (total if divide else 1.0) for w in given]
        return mix(b, ts, 1 - math.fsum(cs), cs)
    how = rescale or ("inverse" if method in RESCALED else "none")
    thinned, sure = [], np.ones(b.size, bool)
    for m, t in enumerate(tuned):
        share = [
            list(values or [default] * n)[m] for values, default in ((density, 1.0), (gamma, 0.01), (epsilon, 0.15))
        ]
        kept, chance, known = mask(KINDS[method], base, t, *share, name=name, model=m, seed=seed)
        change = ts[m] - b
        factor: Any = 1.0
        if share[0] < 1 and how == "inverse":
            factor = 1 / np.where(chance > 0, chance, 1.0)
        elif share[0] < 1 and how == "l1":
            before, after = np.abs(change).sum(), np.abs(change * kept).sum()
            factor = before / after if min(before, after) >= 1e-7 else 1.0
            known = known & known.all()
        thinned.append(change * kept * factor)
        sure &= known
    if method not in ELECTED:
        over = total if divide and abs(total) >= 1e-8 else 1.0
        change = sum(w / over * d for w, d in zip(given, thinned, strict=True))
        size = sum(abs(w / over) * np.abs(d) for w, d in zip(given, thinned, strict=True))
        return Expected(b + lam * change, np.abs(b) + abs(lam) * size, sure)
    change, clear = elected(thinned, given, divide)
    return Expected(b + lam * change, np.abs(b) + abs(lam) * np.abs(change), sure & clear)


def exact(values: torch.Tensor) -> Array:
    """A tensor in float64, flat."""
    return np.asarray(values.double().flatten().numpy())


def mix(base: Array, tuned: Sequence[Array], own: float, others: Sequence[float]) -> Expected:
    """own·base + Σ others·tuned."""
    value = own * base.astype(np.longdouble)
    size = abs(own + math.fsum(others)) * np.abs(base)
    for t, c in zip(tuned, others, strict=True):
        value = value + c * t.astype(np.longdouble)
        size = size + abs(c) * (np.abs(t) + np.abs(base))
    return Expected(value.astype(np.float64), size, np.ones(base.size, bool))


# Which entries of a change are kept.


def mask(
    kind: str,
    base: torch.Tensor,
    tuned: torch.Tensor,
    density: float,
    gamma: float = 0.01,
    epsilon: float = 0.15,
    *,
    name: str = "w",
    model: int = 0,
    seed: int = 42,
) -> tuple[Array, Array, Array]:
    """Which entries are kept, with what probability, and where that is beyond doubt; flat.

    Magnitudes are float32's: the change is worked out in float32, or in float64 and rounded where an input has that.
    """
    wide = torch.float64 if torch.float64 in (base.dtype, tuned.dtype) else torch.float32
    size = (tuned.to(wide) - base.to(wide)).abs().float().numpy()
    n = size.size
    kept, chance, sure = np.ones(n, bool), np.full(n, density), np.ones(n, bool)
    if density >= 1:
        return kept, chance, sure
    flat, place = size.reshape(-1), np.arange(n)
    if kind == "magnitude":
        largest_first = np.lexsort((place, -flat))
        kept[largest_first[max(1, int(density * n)) if density > 0 else 0 :]] = False
    elif kind == "outliers":
        smallest_first = np.lexsort((place, flat))
        stay, top = int(density * n), int(gamma * n)
        bottom = max(0, n - stay - top)
        kept[:] = False
        kept[smallest_first[bottom : bottom + stay]] = True
    else:
        uniform = draws(seed, name, model, 0, n) / 2**32
        if kind == "magprune":
            rows = size if size.ndim > 1 else size.reshape(1, -1)
            last = rows.shape[-1]
            order = np.argsort(rows, axis=-1, kind="stable")
            ranks = np.argsort(order, axis=-1, kind="stable").reshape(-1)
            share = ranks / (last - 1) if last > 1 else np.full(n, 0.5)
            chance = density - epsilon + share * 2 * epsilon
            sure = np.abs(uniform - chance) > 1e-6
        kept = uniform < chance
    return kept, chance, sure


def elected(changes: Sequence[Array], weights: Sequence[float], divide: bool) -> tuple[Array, Array]:
    """The sum, or mean, of those weighted changes that have the sign of their sum, and where that sign is clear.

    A sum of 0 is positive. Two that cancel are a clear 0; a sum that float32 may round to the other side is not clear.
    """
    votes = np.array([w * d for w, d in zip(weights, changes, strict=True)])
    total = votes.sum(axis=0)
    sign = np.where(total >= 0, 1.0, -1.0)
    agrees = np.sign(votes) == sign
    change = (votes * agrees).sum(axis=0)
    if divide:
        over = (np.asarray(weights)[:, None] * agrees).sum(axis=0)
        change = change / np.where(np.abs(over) < 1e-12, 1.0, over)
    alone = (votes != 0).sum(axis=0) <= 1
    cancel = ((votes != 0).sum(axis=0) == 2) & (total == 0) & (len(set(weights)) == 1)
    return change, alone | cancel | (np.abs(total) > 1e-5 * np.abs(votes).sum(axis=0))


# On the sphere, in extended precision.


def length(vector: Array) -> Any:
    """The Euclidean norm, in extended precision."""
    return np.sqrt((vector.astype(np.longdouble) ** 2).sum())


def arc(a: Array, b: Array) -> Any:
    """The angle between two vectors: 2·atan(‖â − b̂‖ / ‖â + b̂‖), right for all angles (Kahan)."""
    u, v = a.astype(np.longdouble) / length(a), b.astype(np.longdouble) / length(b)
    return 2 * np.arctan2(length(u - v), length(u + v))


def slerp_pair(base: Array, tuned: Array, lam: float) -> tuple[float, list[float]]:
    """The coefficients of spherical interpolation; Linear's where one is zero, or the two are equal or opposite."""
    if not base.any() or not tuned.any():
        return 1 - lam, [lam]
    angle = arc(base, tuned)
    if angle == 0 or angle > np.pi - 1e-6:
        return 1 - lam, [lam]
    share = np.longdouble(lam)
    return float(np.sin((1 - share) * angle) / np.sin(angle)), [float(np.sin(share * angle) / np.sin(angle))]


def stock_ratio(changes: Sequence[Array]) -> float:
    """Model Stock's t, clamped to [0, 1]."""
    n = len(changes)
    cosines = [
        float(a @ b / (length(a) * length(b))) if a.any() and b.any() else 0.0
        for i, a in enumerate(changes)
        for b in changes[:i]
    ]
    cosine = math.fsum(cosines) / len(cosines)
    below = 1 + (n - 1) * cosine
    return min(max(n * cosine / below, 0.0), 1.0) if below > 1e-12 else 0.0


def tangent_mean(changes: Sequence[Array], weights: Sequence[float]) -> list[float]:
    """Multi-SLERP's coefficients of the changes, from the vectors themselves; the weights where there is no mean."""
    if len(changes) == 1:
        return [1.0]
    norms = [length(c) for c in changes]
    units = [c / norm if norm else c for c, norm in zip(changes, norms, strict=True)]
    mean = sum(w * u for w, u in zip(weights, units, strict=True))
    if not length(mean) > 1e-8:
        return list(weights)
    size = length(mean)
    mean = mean / size
    dots = [float(u @ mean) for u in units]
    step = sum(w * (u - d * mean) for w, u, d in zip(weights, units, dots, strict=True))
    turn = length(step)
    along = sum(w * d for w, d in zip(weights, dots, strict=True))
    scale = math.fsum(w * norm for w, norm in zip(weights, norms, strict=True))
    slope = math.sin(turn) / turn if turn > 0 else 1.0
    # exp_m(step) = cos·m + slope·(Σ w·u − along·m), with m = Σ w·u / size
    share = math.cos(turn) / size + slope * (1 - along / size)
    return [scale * share * w / (norm or 1.0) for w, norm in zip(weights, norms, strict=True)]


def karcher_mean(vectors: Sequence[Array], weights: Sequence[float]) -> tuple[float, list[float], bool]:
    """The coefficients of the weighted Karcher mean, scaled to the weighted mean of norms: by many half steps.

    Linear's where all is zero, all cancels, or one is opposite to the mean; and whether there is no other mean nearby,
    as there may be where an input lies far beyond a right angle of this one.
    """
    total = math.fsum(weights)
    shares = np.array(weights, np.longdouble) / total
    norms = np.array([length(v) for v in vectors])
    live = [i for i, (s, norm) in enumerate(zip(shares, norms, strict=True)) if s and norm]
    if not live:
        return float(shares[0]), [float(s) for s in shares[1:]], True
    units = np.array([vectors[i] / norms[i] for i in live])
    pull = shares[live] / shares[live].sum()
    linear = float(shares[0]), [float(s) for s in shares[1:]]
    if len(live) > 1 and length(pull @ units) < 1e-8:
        return *linear, True
    own = pull / length(pull @ units)
    for _ in range(2000):
        mean = own @ units
        arcs = np.array([arc(mean, u) for u in units])
        if (arcs > np.pi - 1e-6).any():
            return *linear, True
        stretch = np.array([a / np.sin(a) if a > 1e-9 else 1 + a * a / 6 for a in arcs])
        step = pull * stretch - own * (pull * stretch * np.cos(arcs)).sum()
        own = own + 0.5 * step
        own /= length(own @ units)
        if length(step @ units) < 1e-17:
            break
    found = np.zeros(len(vectors), np.longdouble)
    found[live] = own * (shares * norms).sum() / norms[live]
    return float(found[0]), [float(c) for c in found[1:]], bool(arcs.max() < 2)
