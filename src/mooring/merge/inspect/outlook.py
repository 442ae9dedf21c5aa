"""What each method would do to two models, from the numbers of `change` alone: no merge is made."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence

from mooring.merge.inspect.change import Change, keep_chances, kept_share
from mooring.merge.settings import depths

DENSITY, GAMMA, EPSILON = 0.5, 0.01, 0.15
"""What the sparse methods are told of here: half of the entries kept, Breadcrumbs' and DELLA's usual γ and ε."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """Where a method would put the merged model.

    Attributes:
        methods: Its name; more than one where, with one tuned model, they come to the same.
        from_base: ‖merged − base‖ / ‖δ‖ over the whole model; None where it needs a second tuned model.
        from_tuned: ‖merged − tuned‖ / ‖δ‖, likewise.
        remark: What is worth knowing, in a line.
    """

    methods: tuple[str, ...]
    from_base: float | None
    from_tuned: float | None
    remark: str


Squares = Callable[[Change], tuple[float, float]]
"""A tensor to ‖merged − base‖² and ‖merged − tuned‖²."""


def outlook(changes: Iterable[Change], lam: float) -> tuple[Outlook, ...]:
    """What each method would do at λ; of DARE and DELLA what is to be expected, of those that rank entries about.

    Args:
        changes: Every tensor.
        lam: λ, the weight of the tuned model, from 0 to 1.
    """
    merged = [c for c in changes if c.floating and c.change_square > 0]
    total = math.fsum(c.change_square for c in merged)
    if not total:
        return ()
    depth = depths(c.name for c in merged)

    def told(methods: Sequence[str], squares: Squares, remark: str) -> Outlook:
        both = [squares(c) for c in merged]
        near, far = (math.sqrt(max(0.0, math.fsum(values)) / total) for values in zip(*both, strict=True))
        return Outlook(methods=tuple(methods), from_base=near, from_tuned=far, remark=remark)

    def ramp(c: Change) -> tuple[float, float]:
        return _scaled(c, lam * depth[c.name])

    def kept(density: float, gamma: float = 0.0) -> float:
        return _share(merged, total, lambda c: kept_share(c.histogram, density, gamma))

    noise = lam * math.sqrt((1 - DENSITY) / DENSITY)
    della = lam * math.sqrt(_share(merged, total, _della_noise))
    sparse = f"at density {DENSITY:g}"
    return (
        told(["linear", "task_arithmetic"], lambda c: _scaled(c, lam), f"keeps {lam:.0%} of the change everywhere"),
        told(["slerp"], lambda c: _slerp(c, lam), _slerp_remark(merged, total, lam)),
        told(["karcher"], lambda c: _karcher(c, lam), "with one tuned model: SLERP of directions, the mean of norms"),
        told(["lines"], ramp, f"λ rises from 0 in the first layer to {lam:g} in the last"),
        told(
            ["ties"],
            lambda c: _thinned(c, lam, kept_share(c.histogram, DENSITY)),
            f"{sparse} keeps about {kept(DENSITY):.0%} of ‖δ‖², at 0.2 about {kept(0.2):.0%}; nothing to elect",
        ),
        told(
            ["breadcrumbs", "breadcrumbs_ties"],
            lambda c: _thinned(c, lam, kept_share(c.histogram, DENSITY, GAMMA)),
            f"{sparse}, the largest {GAMMA:.0%} dropped, keeps about {kept(DENSITY, GAMMA):.0%} of ‖δ‖²",
        ),
        told(
            ["dare_linear", "dare_ties"],
            lambda c: _noisy(c, lam, (1 - DENSITY) / DENSITY),
            f"{sparse} adds noise of {noise:.2f} ‖δ‖ to linear",
        ),
        told(
            ["della", "della_linear"],
            lambda c: _noisy(c, lam, _della_noise(c)),
            f"{sparse} ± {EPSILON:g} adds noise of about {della:.2f} ‖δ‖ to linear",
        ),
        Outlook(methods=("model_stock",), from_base=None, from_tuned=None, remark="needs two tuned models or more"),
    )


def _share(changes: Sequence[Change], total: float, share: Callable[[Change], float]) -> float:
    """The mean of a number over tensors, weighted by ‖δ‖²."""
    return math.fsum(share(c) * c.change_square for c in changes) / total


def _scaled(c: Change, lam: float) -> tuple[float, float]:
    """base + λδ."""
    return lam**2 * c.change_square, (1 - lam) ** 2 * c.change_square


def _thinned(c: Change, lam: float, share: float) -> tuple[float, float]:
    """base + λ·(the entries of δ that hold this share of ‖δ‖²); the others stay the base's."""
    return lam**2 * share * c.change_square, ((1 - lam) ** 2 * share + 1 - share) * c.change_square


def _noisy(c: Change, lam: float, variance: float) -> tuple[float, float]:
    """base + λ·(δ + noise of mean 0 and a variance of so many ‖δ‖²), in expectation."""
    noise = lam**2 * variance * c.change_square
    near, far = _scaled(c, lam)
    return near + noise, far + noise


def _della_noise(c: Change) -> float:
    """Variance that DELLA's dropping adds, in ‖δ‖²: the sum of (1/p − 1)·δ², p the chance of being kept."""
    return math.fsum((1 / chance - 1) * share for chance, share in keep_chances(c.histogram, DENSITY, EPSILON))


def _combined(c: Change, excess: float, weight: float) -> tuple[float, float]:
    """(1 + excess)·base + weight·δ, from the Gram matrix of base and δ."""

    def square(w: float) -> float:
        return max(0.0, excess**2 * c.base_square + 2 * excess * w * c.along + w**2 * c.change_square)

    return square(weight), square(weight - 1)


def arc(angle: float | None, lam: float) -> tuple[float, float]:
    """SLERP as (1 + e)·base + w·δ: (e, w), e without cancellation at small angles; Linear's where there is no angle.

    sin((1−λ)ω) + sin(λω) − sin ω = 4·sin(λω/2)·sin((1−λ)ω/2)·sin(ω/2), hence e = 2·sin(λω/2)·sin((1−λ)ω/2)/cos(ω/2).
    """
    if angle is None or angle < 1e-150 or angle > math.pi - 1e-6:
        return 0.0, lam
    excess = 2 * math.sin(lam * angle / 2) * math.sin((1 - lam) * angle / 2) / math.cos(angle / 2)
    return excess, math.sin(lam * angle) / math.sin(angle)


def _slerp(c: Change, lam: float) -> tuple[float, float]:
    return _combined(c, *arc(c.angle, lam))


def _karcher(c: Change, lam: float) -> tuple[float, float]:
    """SLERP of base/‖base‖ and tuned/‖tuned‖, times (1−λ)·‖base‖ + λ·‖tuned‖."""
    if c.angle is None or c.angle > math.pi - 1e-6:
        return _scaled(c, lam)
    base, tuned = math.sqrt(c.base_square), math.sqrt(c.tuned_square)
    norm = (1 - lam) * base + lam * tuned
    excess, second = arc(c.angle, lam)
    first = 1 + excess - second
    return _combined(c, norm * (first / base + second / tuned) - 1, norm * second / tuned)


def _slerp_remark(changes: Sequence[Change], total: float, lam: float) -> str:
    """The largest angle, and how far SLERP lies from Linear."""
    angles: Mapping[str, float] = {c.name: c.angle for c in changes if c.angle is not None}
    if not angles:
        return "no tensor has an angle: the same as linear"
    widest = max(angles, key=lambda name: angles[name])

    def apart(c: Change) -> float:
        excess, weight = arc(c.angle, lam)
        return _combined(c, excess, weight - lam)[0]

    departs = math.sqrt(math.fsum(apart(c) for c in changes) / total)
    return f"{departs:.2g} ‖δ‖ away from linear; largest angle {math.degrees(angles[widest]):.3g}° ({widest})"
