"""λ of each group of weights by gradient: the lowest task loss that stays as near to the base as the single λ.

It runs no model itself: functions that the caller passes return losses with their derivatives, and trials.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Sequence

from mooring.config import Select
from mooring.merge_point import MergePoint
from mooring.records import Attempt, ByModule, GradientSearch, Trial
from mooring.selection.explain import label, loss, percent, show, value_of
from mooring.selection.limits import TOLERANCE
from mooring.selection.per_module import attempt

STEPS = 12
"""Maximum number of steps. Each solves a quadratic model of the losses and moves all λ at once."""
EVALUATIONS = 2 * STEPS
"""Maximum number of evaluations: a step that does not improve is shortened and evaluated again."""
STRIDE = 0.15
"""How far a first step moves λ (root mean square over the groups): the first loss is scaled to that, since its own
slope may be a hundredth of it."""
SLACK = 0.005
"""How far a bounded loss may be above its limit, as a share of it: steps meet bounds up to curvature."""


@dataclasses.dataclass(frozen=True, slots=True)
class Measured:
    """Losses at some λ: the first is minimized, the others are bounded.

    Attributes:
        losses: Their values.
        gradients: The derivatives of each with respect to each λ.
    """

    losses: Sequence[float]
    gradients: Sequence[Sequence[float]]


@dataclasses.dataclass(frozen=True, slots=True)
class Minimum:
    """The best λ that were evaluated, and the losses at the start and there."""

    lams: Sequence[float]
    start: Sequence[float]
    end: Sequence[float]
    evaluations: int


class _SpentError(Exception):
    """All evaluations are spent."""


def minimize(
    start: Sequence[float], measure: Callable[[tuple[float, ...]], Measured], *, evaluations: int = EVALUATIONS
) -> Minimum:
    """Minimize the first loss over λ in [0, 1], each other loss being at most what it is at the start.

    Sequential quadratic programming (SLSQP: Kraft 1988, in SciPy). Of all λ that were evaluated, the start included,
    those with the lowest first loss are returned among those within the limits (`SLACK`): the result is never worse
    than the start.

    Args:
        start: λ of each group.
        measure: Evaluates λ; called once for each.
        evaluations: Maximum number of calls.
    """
    import numpy as np
    from scipy.optimize import minimize as scipy_minimize

    seen: dict[tuple[float, ...], Measured] = {}

    def at(lams: Sequence[float]) -> Measured:
        key = tuple(min(1.0, max(0.0, round(float(lam), 4))) for lam in lams)
        if key not in seen:
            if len(seen) >= evaluations:
                raise _SpentError
            seen[key] = measure(key)
        return seen[key]

    first = at(start)
    limits = [max(limit, 1e-12) for limit in first.losses[1:]]

    scale = STRIDE * len(start) ** 0.5 / max(_free_slope(first.gradients), 1e-12)

    def room(number: int, lams: Sequence[float]) -> float:
        return 1 - at(lams).losses[number + 1] / limits[number]

    def room_gradient(number: int, lams: Sequence[float]) -> "np.ndarray":
        return -np.array(at(lams).gradients[number + 1]) / limits[number]

    constraints = [
        {"type": "ineq", "fun": functools.partial(room, i), "jac": functools.partial(room_gradient, i)}
        for i in range(len(limits))
    ]
    with contextlib.suppress(_SpentError):
        scipy_minimize(
            lambda lams: scale * at(lams).losses[0],
            np.array(start, dtype=float),
            jac=lambda lams: scale * np.array(at(lams).gradients[0]),
            bounds=[(0.0, 1.0)] * len(start),
            constraints=constraints,
            method="SLSQP",
            options={"maxiter": STEPS, "ftol": 1e-4},
        )
    within = {
        key: found.losses
        for key, found in seen.items()
        if all(value <= limit * (1 + SLACK) for value, limit in zip(found.losses[1:], limits, strict=True))
    }
    best = min(within, key=lambda key: within[key][0])
    return Minimum(lams=best, start=first.losses, end=within[best], evaluations=len(seen))


def _free_slope(gradients: Sequence[Sequence[float]]) -> float:
    """The length of the first gradient's part along which no other loss changes."""
    import numpy as np

    slope, others = np.array(gradients[0]), np.array(gradients[1:]).T
    if others.size:
        slope = slope - others @ np.linalg.lstsq(others, slope, rcond=None)[0]
    return float(np.linalg.norm(slope))


def measure_found(
    base: Trial,
    single: Trial,
    found: GradientSearch,
    settings: Select,
    metric: str,
    ask: Callable[[Sequence[MergePoint]], Sequence[Trial]],
) -> ByModule:
    """Measure the merge that a search by gradient found, and take it if it is better than the single λ.

    It is taken if its task score is better and it is within every bound, tested at the stated confidence. The search
    itself asked no judge, so that there is one test, and the single λ is tested as on a grid.

    Args:
        base: The base's validation trial.
        single: The single λ's.
        found: What the search found.
        settings: The recipe's section.
        metric: The task score that decides.
        ask: Called with the merge, if there is one; returns its validation trial, with flips against the base.
    """
    tried: list[Attempt] = []
    if found.point != single.point:
        (trial,) = ask([found.point])
        made = attempt(base, single, trial, settings, metric)
        better = made.upper is not None and loss(trial, metric) < loss(single, metric) - TOLERANCE
        tried.append(dataclasses.replace(made, beats=better))
    chosen = 0 if tried and tried[0].beats and tried[0].within else None
    return ByModule(
        single=single,
        groups=found.groups,
        budget=1,
        confidence=settings.confidence,
        tried=tried,
        chosen=chosen,
        sentence=_sentence(tried, single, found, settings.confidence, metric),
        gradient=found,
    )


def _sentence(
    tried: Sequence[Attempt], single: Trial, found: GradientSearch, confidence: float | None, metric: str
) -> str:
    if not tried:
        return f"λ by gradient was not taken. {found.sentence}"
    (made,) = tried
    who = f"λ by gradient ({len(found.groups)} groups)"
    if made.upper is None:
        return f"{who} was not taken: too few of its answers could be judged. {found.sentence}"
    sure = "" if confidence is None else f" (at most {percent(made.upper)}, with {100 * confidence:.5g} % confidence)"
    numbers = (
        f"{label(metric)} {show(made.trial, metric)} against {show(single, metric)} of the single {single.point.label} "
        f"on validation, attack success rate {percent(value_of(made.trial, 'asr'))}{sure} against "
        f"{percent(value_of(single, 'asr'))}"
    )
    if made.beats and made.within:
        return f"{who} was taken: {numbers}. {found.sentence}"
    why = "it is not within the bound" if made.beats else "its task score is not better"
    return f"{who} was not taken, since {why}: {numbers}. {found.sentence}"
