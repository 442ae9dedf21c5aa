"""Search for λ by module that beats the single λ on both axes: which merges to try, which to take, and why.

It runs no model itself: a function that the caller passes returns the trials.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping, Sequence

from mooring.config import Select
from mooring.errors import DataError
from mooring.merge_point import BASE, TUNED, MergePoint
from mooring.records import Attempt, ByModule, Choice, Trial
from mooring.selection.explain import label, loss, percent, show, value_of
from mooring.selection.limits import TOLERANCE, attempt_confidence, limits


def by_module(
    base: Trial,
    single: Trial,
    groups: Sequence[str],
    levels: Sequence[float],
    settings: Select,
    metric: str,
    budget: int,
    ask: Callable[[Sequence[MergePoint]], Sequence[Trial]],
) -> ByModule:
    """Search λ by module around the single λ.

    First each group alone is moved up to the next λ of the grid, for as many groups as half the budget allows. A least
    squares fit of the changes in task score and ASR, assumed to add up over the groups, then predicts every merge that
    moves groups one step up or down. Those with the largest predicted improvement on both axes are tried, half of the
    remaining budget at a time, and the fit is repeated with their scores. The search ends when the budget is spent, or
    when no merge is predicted to improve both axes.

    Args:
        base: The base's validation trial.
        single: The single λ's.
        groups: Names of the groups, those that tuning changed most first.
        levels: The λ of the grid.
        settings: The recipe's section, with the confidence that is stated for the whole search.
        metric: The task score that decides.
        budget: The most merges to try, at least 1.
        ask: Called with merges to try, none twice; returns their validation trials in the same order, with flips
            against the base.
    """
    at = single.point.lam
    stairs = sorted({BASE.lam, *levels, at, TUNED.lam})
    place = stairs.index(at)
    below, above = stairs[max(place - 1, 0)], stairs[min(place + 1, len(stairs) - 1)]
    start = (at,) * len(groups)
    first = min(len(groups), math.ceil(budget / 2))
    candidates = [(*start[:i], above, *start[i + 1 :]) for i in range(first)]
    if settings.confidence is not None:
        settings = settings.model_copy(update={"confidence": attempt_confidence(settings.confidence, budget)})
    attempts: dict[tuple[float, ...], Attempt] = {}
    while candidates:
        trials = ask([MergePoint(at, dict(zip(groups, vector, strict=True))) for vector in candidates])
        for vector, trial in zip(candidates, trials, strict=True):
            attempts[vector] = attempt(base, single, trial, settings, metric)
        rest = math.ceil((budget - len(attempts)) / 2)
        candidates = _predicted(single, attempts, (at, above, below), metric)[:rest] if rest else []
    return _result(single, groups, list(attempts.values()), settings.confidence, metric, budget)


def attempt(base: Trial, single: Trial, trial: Trial, settings: Select, metric: str) -> Attempt:
    """Compare a merge with the single λ and with the bounds of `settings`.

    It beats the single λ if its task score is better and its ASR lower (or equal, if both are 0).
    """
    try:
        better = loss(trial, metric) < loss(single, metric) - TOLERANCE
        rate, single_rate = value_of(trial, "asr"), value_of(single, "asr")
        bounds = limits(base, [trial], settings)
    except DataError:  # too many responses could not be judged
        return Attempt(trial=trial, upper=None, within=False, beats=False)
    return Attempt(
        trial=trial,
        upper=bounds[0].values[trial.point],
        within=not any(limit.excess(trial.point) for limit in bounds),
        beats=better and (rate < single_rate - TOLERANCE or rate <= TOLERANCE),
    )


def _predicted(
    single: Trial, attempts: Mapping[tuple[float, ...], Attempt], steps: tuple[float, ...], metric: str
) -> list[tuple[float, ...]]:
    """Untried merges that are predicted to improve both axes, the best first.

    The rank of a merge is the smaller of its two gains, each in units of the largest gain of one group's steps.
    """
    import numpy as np

    known = [(vector, each.trial) for vector, each in attempts.items() if _is_scored(each.trial, metric)]
    if not known:
        return []
    at, groups = single.point.lam, len(known[0][0])
    moved = np.array([vector for vector, _ in known]) - at
    asr = value_of(single, "asr")
    gains = np.array([(loss(single, metric) - loss(t, metric), asr - value_of(t, "asr")) for _, t in known])
    effects = np.linalg.lstsq(moved, gains, rcond=None)[0]  # 0 for groups that were not moved
    unit = np.abs(effects * np.ptp(np.array(steps))).max(axis=0)
    new = [vector for vector in itertools.product(steps, repeat=groups) if vector not in attempts]
    new = [vector for vector in new if len({*vector, at}) > 1]
    if not new:
        return []
    predicted = (np.array(new) - at) @ effects / np.where(unit > 0, unit, 1)
    if asr <= TOLERANCE:
        predicted[:, 1] = np.where(predicted[:, 1] >= -TOLERANCE, np.inf, predicted[:, 1])
    rank = np.round(predicted.min(axis=1), 9)
    return [new[i] for i in np.argsort(-rank, kind="stable") if rank[i] > 0]


def _is_scored(trial: Trial, metric: str) -> bool:
    try:
        return math.isfinite(loss(trial, metric) + value_of(trial, "asr"))
    except DataError:
        return False


def _result(
    single: Trial, groups: Sequence[str], tried: Sequence[Attempt], confidence: float | None, metric: str, budget: int
) -> ByModule:
    def rank(i: int) -> tuple[float, float, int]:
        trial = tried[i].trial
        return round(loss(trial, metric), 12), round(value_of(trial, "asr"), 12), i

    winners = [i for i, each in enumerate(tried) if each.beats and each.within]
    chosen = min(winners, key=rank, default=None)
    if chosen is None:
        sentence = _why_single(tried, single, metric)
    else:
        sentence = _why_modules(tried[chosen], single, len(winners), len(tried), confidence, metric)
    return ByModule(
        single=single,
        groups=list(groups),
        budget=budget,
        confidence=confidence,
        tried=tried,
        chosen=chosen,
        sentence=sentence,
    )


def _why_modules(best: Attempt, single: Trial, winners: int, tried: int, confidence: float | None, metric: str) -> str:
    upper = percent(best.upper or 0)
    limit = "" if confidence is None else f" (at most {upper}, with {100 * confidence:.5g} % confidence)"
    lowest = ", the lowest possible" if value_of(single, "asr") <= TOLERANCE else ""
    return (
        f"{best.trial.point.label} beats the single {single.point.label} on both axes on "
        f"validation: {label(metric)} {show(best.trial, metric)} against {show(single, metric)}, attack success rate "
        f"{percent(value_of(best.trial, 'asr'))}{limit} against {percent(value_of(single, 'asr'))}{lowest}; "
        f"{winners} of the {tried} that were tried did."
    )


def _why_single(tried: Sequence[Attempt], single: Trial, metric: str) -> str:
    count = f"{len(tried)} {'try' if len(tried) == 1 else 'tries'}"
    text = f"λ by module did not beat the single {single.point.label} on both axes on validation, in {count}"
    known = [each for each in tried if each.upper is not None]
    if not known:
        return f"{text}."
    better = [each for each in known if each.beats]
    as_safe = [each for each in known if value_of(each.trial, "asr") <= value_of(single, "asr") + TOLERANCE]
    near = min(better or as_safe or known, key=lambda each: (loss(each.trial, metric), value_of(each.trial, "asr")))
    own, other = (percent(value_of(trial, "asr")) for trial in (near.trial, single))
    text += (
        f"; the nearest is {near.trial.point.label}, with {label(metric)} {show(near.trial, metric)} "
        f"against {show(single, metric)} and an attack success rate of {own} against {other}"
    )
    if near.beats:
        text += ", better on both, but not within the bound at the confidence at which each attempt is tested"
    return f"{text}."


def taken(choice: Choice, found: ByModule) -> Choice:
    """The final choice: the merge with λ by module if one was chosen, else the single λ, with both reasons."""
    if found.chosen is None:
        return dataclasses.replace(choice, reason=f"{choice.reason} {found.sentence}")
    reason = f"{found.sentence} Of the single λ: {choice.reason}"
    return dataclasses.replace(choice, reason=reason, point=found.tried[found.chosen].trial.point)
