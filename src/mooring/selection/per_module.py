"""Search for λ by module that beats the single λ on both axes: which merges to try, which to take, and why.

Asks nothing itself: a generator, which yields what to try and is sent the trials.
"""

import dataclasses
import itertools
import math
from collections.abc import Generator, Mapping, Sequence

from mooring.config import Select
from mooring.errors import DataError
from mooring.merge_point import BASE, TUNED, MergePoint
from mooring.records import Attempt, ByModule, Choice, Trial
from mooring.selection.explain import label, loss, percent, show, value_of
from mooring.selection.limits import TOLERANCE, Limit, attempt_confidence, limits

Search = Generator[Sequence[MergePoint], Sequence[Trial], ByModule]


def by_module(
    base: Trial,
    single: Trial,
    groups: Sequence[str],
    levels: Sequence[float],
    settings: Select,
    metric: str,
    budget: int,
) -> Search:
    """Search λ by module around the single λ, at most `budget` merges, none twice.

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
        settings: The recipe's section, with the confidence that is stated for the whole.
        metric: The task score that decides.
        budget: How many merges may be tried, at least 1.

    Yields:
        Merges to try; it is sent their validation trials, in order, with flips against the base.
    """
    at = single.point.lam
    stairs = sorted({BASE.lam, *levels, at, TUNED.lam})
    place = stairs.index(at)
    below, above = stairs[max(place - 1, 0)], stairs[min(place + 1, len(stairs) - 1)]
    start = (at,) * len(groups)
    first = min(len(groups), max(1, math.ceil(budget / 2)))
    wanted = [(*start[:i], above, *start[i + 1 :]) for i in range(first)]
    if settings.confidence is not None:
        settings = settings.model_copy(update={"confidence": attempt_confidence(settings.confidence, budget)})
    tried: list[Attempt] = []
    asked: dict[tuple[float, ...], Trial] = {}
    while wanted:
        points = [MergePoint(at, dict(zip(groups, vector, strict=True))) for vector in wanted]
        for vector, trial in zip(wanted, (yield points), strict=True):
            asked[vector] = trial
            tried.append(attempt(base, single, trial, settings, metric))
        left = math.ceil((budget - len(tried)) / 2)
        steps = [(at, above, below)] * len(groups)
        wanted = _predicted(single, asked, steps, metric)[:left] if left else []
    return _found(single, groups, tried, settings.confidence, metric, budget)


def attempt(base: Trial, single: Trial, trial: Trial, settings: Select, metric: str) -> Attempt:
    """Compare a merge with the single λ and with the bounds of `settings`.

    It beats the single λ where its task score is better and its ASR lower. An ASR of 0 cannot be bettered: then an
    equal ASR will do.
    """
    try:
        better = loss(trial, metric) < loss(single, metric) - TOLERANCE
        rate, least = value_of(trial, "asr"), value_of(single, "asr")
        held: list[Limit] = limits(base, [trial], settings)
    except DataError:  # it left too many answers that nobody can judge
        return Attempt(trial=trial, upper=None, within=False, beats=False)
    return Attempt(
        trial=trial,
        upper=held[0].held[trial.point],
        within=not any(limit.excess(trial.point) for limit in held),
        beats=better and (rate < least - TOLERANCE or rate <= TOLERANCE),
    )


def _predicted(
    single: Trial, asked: Mapping[tuple[float, ...], Trial], steps: Sequence[tuple[float, ...]], metric: str
) -> list[tuple[float, ...]]:
    """Untried merges that are predicted to improve both axes, the best first.

    A merge's rank is the smaller of its two gains, each in units of the largest that one group's steps make.
    """
    import numpy as np

    known = [(vector, trial) for vector, trial in asked.items() if _scored(trial, metric)]
    if not known:
        return []
    at = single.point.lam
    moved = np.array([vector for vector, _ in known]) - at
    least = value_of(single, "asr")
    gains = np.array([(loss(single, metric) - loss(t, metric), least - value_of(t, "asr")) for _, t in known])
    effects = np.linalg.lstsq(moved, gains, rcond=None)[0]  # what was not moved has none
    unit = np.abs(effects * np.ptp(np.array(steps), axis=1)[:, None]).max(axis=0)
    new = [vector for vector in itertools.product(*steps) if vector not in asked and len({*vector, at}) > 1]
    change = np.array(new) - at
    predicted = change @ effects / np.where(unit > 0, unit, 1)
    if least <= TOLERANCE:
        predicted[:, 1] = np.where(predicted[:, 1] >= -TOLERANCE, np.inf, predicted[:, 1])
    rank = np.round(predicted.min(axis=1), 9)
    return [new[i] for i in np.argsort(-rank, kind="stable") if rank[i] > 0]


def _scored(trial: Trial, metric: str) -> bool:
    """Whether both axes are there."""
    try:
        return math.isfinite(loss(trial, metric) + value_of(trial, "asr"))
    except DataError:
        return False


def _found(
    single: Trial, groups: Sequence[str], tried: Sequence[Attempt], sure: float | None, metric: str, budget: int
) -> ByModule:
    def rank(i: int) -> tuple[float, float, int]:
        trial = tried[i].trial
        return round(loss(trial, metric), 12), round(value_of(trial, "asr"), 12), i

    takable = [i for i, each in enumerate(tried) if each.beats and each.within]
    chosen = min(takable, key=rank, default=None)
    if chosen is not None:
        sentence = _won(tried[chosen], single, len(takable), len(tried), sure, metric)
    else:
        sentence = _lost(tried, single, metric)
    return ByModule(
        single=single,
        groups=list(groups),
        budget=budget,
        confidence=sure,
        tried=tried,
        chosen=chosen,
        sentence=sentence,
    )


def _won(best: Attempt, single: Trial, winners: int, tried: int, sure: float | None, metric: str) -> str:
    limit = "" if sure is None else f" (at most {percent(best.upper or 0)}, with {100 * sure:.5g} % confidence)"
    least = ", which cannot be bettered" if value_of(single, "asr") <= TOLERANCE else ""
    return (
        f"{best.trial.point.label} beats the single {single.point.label} on both axes on "
        f"validation: {label(metric)} {show(best.trial, metric)} against {show(single, metric)}, attack success rate "
        f"{percent(value_of(best.trial, 'asr'))}{limit} against {percent(value_of(single, 'asr'))}{least}; "
        f"{winners} of the {tried} that were tried did."
    )


def _lost(tried: Sequence[Attempt], single: Trial, metric: str) -> str:
    count = f"{len(tried)} {'try' if len(tried) == 1 else 'tries'}"
    text = f"λ by module did not beat the single {single.point.label} on both axes on validation, in {count}"
    known = [each for each in tried if each.upper is not None]
    if not known:
        return f"{text}."
    bettered = [each for each in known if each.beats]
    even = [each for each in known if value_of(each.trial, "asr") <= value_of(single, "asr") + TOLERANCE]
    near = min(bettered or even or known, key=lambda each: (loss(each.trial, metric), value_of(each.trial, "asr")))
    own, other = (percent(value_of(trial, "asr")) for trial in (near.trial, single))
    text += (
        f"; nearest is {near.trial.point.label}, with {label(metric)} {show(near.trial, metric)} "
        f"against {show(single, metric)} and an attack success rate of {own} against {other}"
    )
    if near.beats:
        text += ", better on both, but not within the bound with the confidence that each one tried needs"
    return f"{text}."


def taken(choice: Choice, found: ByModule) -> Choice:
    """The choice of the single λ, as the search for λ by module leaves it."""
    if found.chosen is None:
        return dataclasses.replace(choice, reason=f"{choice.reason} {found.sentence}")
    reason = f"{found.sentence} Of the single λ: {choice.reason}"
    return dataclasses.replace(choice, reason=reason, point=found.tried[found.chosen].trial.point)
