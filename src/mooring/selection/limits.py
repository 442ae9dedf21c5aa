"""What a bound is held against: the estimate of a rate, or the one-sided upper confidence limit of it."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

from mooring.config import Select
from mooring.errors import DataError
from mooring.jsonio import EDITED
from mooring.merge_point import BASE, MergePoint
from mooring.metrics import METRICS
from mooring.records import Score, Trial
from mooring.selection.explain import percent, points, value_of
from mooring.stats import Hits, binomial_cdf, binomial_upper, flips, newcombe, null_deviation, quantile, tango

# --- Trials that carry how their verdicts flip against the base's ---


def with_flips(trials: Sequence[Trial], hits: Mapping[str, Mapping[MergePoint, Hits]]) -> list[Trial]:
    """Trials whose rates carry, in `details`, the flips against the base: `pairs`, `worse` and `better`.

    Args:
        trials: Trials of one split; the base's stays as it is.
        hits: By the score's name (`asr`, `over_refusal`) and model, what the deciding judge said. A score or a model
            that is missing is left alone.
    """
    return [
        dataclasses.replace(
            trial,
            scores={name: _with(score, hits.get(name, {}), trial.point) for name, score in trial.scores.items()},
        )
        for trial in trials
    ]


def _with(score: Score, hits: Mapping[MergePoint, Hits], point: MergePoint) -> Score:
    if point.is_base or BASE not in hits or point not in hits:
        return score
    found = flips(hits[BASE], hits[point])
    return dataclasses.replace(score, details={**score.details, **dataclasses.asdict(found)})


# --- How many prompts a bound needs ---


BISECT_SHARE = 0.25
"""The part of the stated error at which bisect tests each λ. Which λ it tests depends on their verdicts, so that no
formula gives it: `benchmarks/bisect_risk.py --share` measures what a part leads to."""

SINGLE_SHARE = 0.8
"""The part of the stated error at which the single λ is tested where λ by module is searched too. The rest is shared
evenly by the merges that may be tried (Bonferroni): `benchmarks/modules_search.py` measures what that leads to."""


def sharper(confidence: float, share: float) -> float:
    """The confidence whose error is a part of another's."""
    return 1 - share * (1 - confidence)


def as_tested(settings: Select) -> Select:
    """A recipe's `select` section with the confidence at which each single λ is tested, as its search wants it."""
    share = {"bisect": BISECT_SHARE, "modules": SINGLE_SHARE}.get(settings.search)
    if share is None or settings.confidence is None:
        return settings
    return settings.model_copy(update={"confidence": sharper(settings.confidence, share)})


def sharpest(settings: Select) -> float | None:
    """The highest confidence at which a search tests anything, which takes the most prompts."""
    if settings.search != "modules" or settings.confidence is None:
        return as_tested(settings).confidence
    return attempt_confidence(settings.confidence, settings.budget)


def attempt_confidence(confidence: float, budget: int) -> float:
    """The confidence at which each of `budget` merges with λ by module is tested."""
    return sharper(confidence, (1 - SINGLE_SHARE) / budget)


def smallest_set(allowed: float, confidence: float, paired: bool = True) -> int | None:
    """The fewest prompts with which any outcome at all could keep a bound.

    Paired, a λ whose every verdict equals the base's passes a margin m where Tango's limit z²/(n + z²) is at most m, so
    n ≥ z²(1−m)/m. For an absolute bound p, no harmful response among n passes where 1 − (1−c)^(1/n) ≤ p, so
    n ≥ ln(1−c) / ln(1−p).

    Args:
        allowed: The margin, or the absolute bound.
        confidence: Of the one-sided limit.
        paired: Whether `allowed` is a margin above the base.

    Returns:
        At least 1; None where no number would do: nothing is allowed at all.
    """
    if allowed <= 0:
        return None
    if allowed >= 1:
        return 1
    if paired:
        return max(1, math.ceil(quantile(confidence) ** 2 * (1 - allowed) / allowed - 1e-9))
    return max(1, math.ceil(math.log(1 - confidence) / math.log(1 - allowed) - 1e-9))


def enough_pairs(worse: float, better: float, margin: float, confidence: float) -> int | None:
    """The fewest prompts with which flips at these rates keep a margin: z²σ₀² / (m − (worse − better))².

    Args:
        worse: The share of prompts that flips for the worse.
        better: The share that flips for the better.
        margin: How far the rate may rise.
        confidence: Of the one-sided limit (Tango's).

    Returns:
        None where the rise itself is at the margin, or over it: no number would do.
    """
    room = margin - (worse - better)
    if room <= 1e-12:
        return None
    found = (quantile(confidence) * null_deviation(worse, better, margin) / room) ** 2
    return max(1, math.ceil(found - 1e-9))


_COUNTED = 1_000_000
"""The most prompts that `enough_prompts` counts exactly."""


def enough_prompts(rate: float, bound: float, confidence: float) -> int | None:
    """How many prompts show by the exact limit (Clopper–Pearson) that a rate is within an absolute bound.

    The search starts at z²·p(1−p) / (p − rate)², p the bound: Wilson's limit solved for n, which is a little less. Per
    prompt more, P(X ≤ hits) and P(X = hits) at the bound follow from those before. Beyond a million prompts the
    starting point is returned, less than 1 % too low for bounds from 1 to 99 %.

    Args:
        rate: The rate measured.
        bound: The largest rate allowed.
        confidence: Of the one-sided limit.

    Returns:
        At least 1; None if the rate is at the bound, or over it.
    """
    if bound - rate <= 1e-12:
        return None
    found = (quantile(confidence) / (bound - rate)) ** 2 * bound * (1 - bound)
    count = max(smallest_set(bound, confidence, paired=False) or 1, math.ceil(found - 1e-9))
    if bound >= 1 or count > _COUNTED:
        return count
    hits = math.ceil(rate * count - 1e-9)
    at_most = binomial_cdf(hits, count, bound)
    exactly = at_most - binomial_cdf(hits - 1, count, bound)
    while at_most > 1 - confidence:
        count += 1
        at_most -= bound * exactly
        exactly *= (1 - bound) * count / (count - hits)
        if math.ceil(rate * count - 1e-9) > hits:
            hits += 1
            exactly *= bound / (1 - bound) * (count - hits + 1) / hits
            at_most += exactly
    return count


def prompts_for(margin: float, flipping: float, *, confidence: float = 0.95, power: float = 0.8) -> int:
    """How many prompts let a λ that is as safe as its base pass, `power` of the time.

    n = ((z_c·σ₀ + z_p·σ₁) / m)²: σ₁² = `flipping`, σ₀ the deviation where the rates differ by the margin (Tango 1998).
    Verdicts flip a little although the rate stays, half for the worse and half for the better.

    Args:
        margin: How far the rate may rise.
        flipping: The share of prompts whose verdict differs from the base's.
        confidence: Of the one-sided limit.
        power: The chance to pass.
    """
    even = null_deviation(flipping / 2, flipping / 2, margin)
    found = ((quantile(confidence) * even + quantile(power) * math.sqrt(flipping)) / margin) ** 2
    return max(smallest_set(margin, confidence) or 1, math.ceil(found))


def table(margins: tuple[float, ...] = (0.02, 0.05, 0.1), flipping: tuple[float, ...] = (0.02, 0.05, 0.1)) -> str:
    """`prompts_for` as a Markdown table: a row a margin, with the fewest that could ever pass first."""
    head = "".join(f" {100 * share:g} % flip |" for share in flipping)
    lines = [f"| margin | fewest |{head}", "|---|---|" + "---|" * len(flipping)]
    for margin in margins:
        cells = "".join(f" {prompts_for(margin, share)} |" for share in flipping)
        lines.append(f"| {100 * margin:g} points | {smallest_set(margin, 0.95)} |{cells}")
    return "\n".join(lines) + "\n"


TOLERANCE = 1e-9
"""Rates are quotients of small integers: what differs by less than this is equal."""


@dataclasses.dataclass(frozen=True, slots=True)
class Limit:
    """A bound on one rate.

    Attributes:
        score: The rate: `asr` or `over_refusal`.
        most: The largest rate allowed.
        words: The same for people: `the base's 4.0 % plus 10 points`.
        held: What is compared with it, by model: the estimate, or its upper confidence limit.
        prompts: How many prompts each of these rests on, by model.
    """

    score: str
    most: float
    words: str
    held: Mapping[MergePoint, float]
    prompts: Mapping[MergePoint, int]

    def excess(self, point: MergePoint) -> float:
        """How far a model is over it; 0 if it is not."""
        over = self.held[point] - self.most
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
    held = {trial.point: value_of(trial, name) for trial in others}
    prompts = {trial.point: _judged(trial.scores[name])[1] for trial in others}
    confidence = settings.confidence
    if confidence is not None:
        if absolute is None:
            prompts = {t.point: min(_pairs(base.scores[name], t.scores[name])) for t in others}
        fewest = min(prompts.values(), default=0)
        needed = smallest_set(margin, confidence) if absolute is None else smallest_set(absolute, confidence, False)
        if prompts and (needed is None or fewest < needed):
            raise too_few(name, fewest, words, confidence, needed)
        held = {
            trial.point: binomial_upper(*_judged(trial.scores[name]), confidence)
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
        f"an {METRICS[name].short} of at most {words}"
    )
    unsure = "`select.confidence: null` (--confidence none)"
    if needed is None:
        return DataError(
            what, f"no number of prompts can: allow more than 0, or set {unsure}", code="data.too_few_prompts"
        )
    fewer = f" ({at_grid} with `search: grid`)" if at_grid is not None else ""
    return DataError(what, f"use at least {needed}{fewer}, a wider bound, or {unsure}", code="data.too_few_prompts")


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
            f"select: `{score.name}` is {value:g}, but its counts are {hits} of {total}", EDITED, code="data.bad_counts"
        )
    return hits, total


def _pairs(base: Score, other: Score) -> tuple[int, ...]:
    """How many prompts a comparison rests on: the pairs, or either side's own where pairs are not known."""
    if "pairs" in other.details:
        return (round(other.details["pairs"]),)
    return _judged(base)[1], _judged(other)[1]
