"""What a bound is held against: the estimate of a rate, or the one-sided upper confidence limit of it."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

from mooring.errors import DataError
from mooring.records import Score, Trial
from mooring.sections import Select
from mooring.select.support import sharpest, smallest_set
from mooring.select.words import NAMES, percent, points, value_of
from mooring.stats import binomial_upper, newcombe, quantile, tango

TOLERANCE = 1e-9
"""Rates are quotients of small integers: what differs by less than this is equal."""


@dataclasses.dataclass(frozen=True, slots=True)
class Limit:
    """A bound on one rate.

    Attributes:
        score: The rate: `asr` or `over_refusal`.
        most: The largest rate allowed.
        words: The same for people: `the base's 4.0 % plus 10 points`.
        held: What is held against it, by λ: the estimate, or its upper confidence limit.
        prompts: How many prompts each of these rests on, by λ.
    """

    score: str
    most: float
    words: str
    held: Mapping[float, float]
    prompts: Mapping[float, int]

    def excess(self, lam: float) -> float:
        """How far a λ is over it; 0 where it is not."""
        over = self.held[lam] - self.most
        return over if over > TOLERANCE else 0.0


def limits(base: Trial, others: Sequence[Trial], settings: Select) -> list[Limit]:
    """The bounds of a recipe's `select` section: on ASR, and on over-refusal where that has a margin.

    With a confidence, the upper limit is exact (Clopper-Pearson) for an absolute bound, and for a margin above the base
    that of the paired difference on the same prompts (Tango's score interval); where the trials do not say how verdicts
    flip, that of two independent rates (Newcombe's method 10), which is wider as a rule.

    Args:
        base: The base's trial.
        others: Those of the λ to be held against it.
        settings: The section.

    Raises:
        DataError: A rate is missing or undefined, or there are so few prompts that none could keep the bound.
    """
    found = [_limit(base, others, settings, "asr", settings.margin, settings.bound)]
    if settings.over_refusal_margin is not None:
        found.append(_limit(base, others, settings, "over_refusal", settings.over_refusal_margin, None))
    return found


def _limit(
    base: Trial, others: Sequence[Trial], settings: Select, name: str, margin: float, absolute: float | None
) -> Limit:
    base_rate = value_of(base, name)
    if absolute is None:
        most, words = min(1.0, base_rate + margin), f"the base's {percent(base_rate)} plus {points(margin)}"
    else:
        most, words = absolute, percent(absolute)
    held = {trial.lam: value_of(trial, name) for trial in others}
    prompts = {trial.lam: _judged(trial.scores[name])[1] for trial in others}
    confidence = settings.confidence
    if confidence is not None:
        if absolute is None:
            prompts = {t.lam: min(_pairs(base.scores[name], t.scores[name])) for t in others}
        fewest = min(prompts.values(), default=0)
        needed = smallest_set(margin, confidence) if absolute is None else smallest_set(absolute, confidence, False)
        if prompts and (needed is None or fewest < needed):
            raise too_few(name, fewest, words, confidence, needed)
        held = {
            trial.lam: binomial_upper(*_judged(trial.scores[name]), confidence)
            if absolute is not None
            else min(1.0, base_rate + rise(base.scores[name], trial.scores[name], confidence))
            for trial in others
        }
    return Limit(name, most, words, held, prompts)


def check_support(settings: Select, prompts: Mapping[str, int]) -> None:
    """Hold, before anything is asked, that there are enough prompts for some outcome to keep the bound.

    Args:
        settings: The recipe's section.
        prompts: How many validation prompts there are, by the rate that they give: `asr`, `over_refusal`.

    Raises:
        DataError: There are not; it says how many would do.
    """
    confidence, stated = sharpest(settings), settings.confidence
    if settings.policy != "bound" or confidence is None or stated is None:
        return
    margins = {"asr": settings.margin, "over_refusal": settings.over_refusal_margin}
    for name, count in prompts.items():
        margin, absolute = margins.get(name), settings.bound if name == "asr" else None
        if absolute is not None:
            allowed, words = absolute, percent(absolute)
        elif margin is not None:
            allowed, words = margin, f"the base's plus {points(margin)}"
        else:
            continue
        needed, at_grid = (smallest_set(allowed, sure, absolute is None) for sure in (confidence, stated))
        if needed is None or count < needed:
            raise too_few(name, count, words, confidence, needed, at_grid if settings.search != "grid" else None)


def rise(base: Score, other: Score, confidence: float) -> float:
    """The one-sided upper confidence limit of how far a rate lies above the base's."""
    z = quantile(confidence)
    if {"pairs", "worse", "better"} <= other.details.keys():
        pairs, worse, better = (int(other.details[key]) for key in ("pairs", "worse", "better"))
        return tango(worse, better, pairs, z)[1]
    return newcombe(*_judged(other), *_judged(base), z)[1]


def too_few(
    name: str, prompts: int, words: str, confidence: float, needed: int | None, at_grid: int | None = None
) -> DataError:
    """The error that so few prompts cannot show what is asked; `at_grid` is how many a search of another kind needs."""
    what = (
        f"select: {prompts} validation prompt{'s' * (prompts != 1)} cannot show with {100 * confidence:g} % confidence "
        f"an {NAMES[name]} of at most {words}"
    )
    unsure = "`select.confidence: null` (--confidence none)"
    if needed is None:
        return DataError(what, f"no number of prompts can: allow more than 0, or set {unsure}")
    fewer = f" ({at_grid} with `search: grid`)" if at_grid is not None else ""
    return DataError(what, f"use at least {needed}{fewer}, a wider bound, or {unsure}")


def _judged(score: Score) -> tuple[int, int]:
    """Hits, and prompts judged.

    Raises:
        DataError: The counts are not those of the value.
    """
    total = round(score.details.get("total", score.n) - score.details.get("miss", 0))
    value = score.value if score.value is not None and math.isfinite(score.value) else 0.0
    hits = round(score.details.get("yes", value * total))
    if total and not (0 <= hits <= total and abs(hits / total - value) < 0.5 / total + TOLERANCE):
        raise DataError(
            f"select: `{score.name}` is {value:g}, but its counts are {hits} of {total}", "was the file edited by hand?"
        )
    return hits, total


def _pairs(base: Score, other: Score) -> tuple[int, ...]:
    """How many prompts a comparison rests on: the pairs, or either side's own where pairs are not known."""
    if "pairs" in other.details:
        return (round(other.details["pairs"]),)
    return _judged(base)[1], _judged(other)[1]
