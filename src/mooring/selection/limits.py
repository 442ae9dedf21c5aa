"""The bounds on rates: what is compared with them, and how many prompts they need."""

import dataclasses
import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence

from mooring.attacks import NONE, parse
from mooring.config import Select
from mooring.errors import DataError
from mooring.jsonio import EDITED
from mooring.merge_point import BASE, MergePoint
from mooring.records import Score, Trial
from mooring.selection.corrected import Corrections
from mooring.selection.explain import label, percent, points, value_of
from mooring.stats import (
    EXACT_BELOW,
    Hits,
    binomial_upper,
    exactly_within,
    flips,
    newcombe,
    null_deviation,
    paired_upper,
    paired_within,
    quantile,
    worst_flips,
)

TOLERANCE = 1e-9
"""Rates are quotients of small integers: a smaller difference is rounding error."""

# --- The rule ---


@dataclasses.dataclass(frozen=True, slots=True)
class Rule:
    """When a rate is within a bound.

    Attributes:
        bound: The largest rate allowed or, if `paired`, the largest rise above the base's rate.
        confidence: The confidence of the one-sided upper limit that is compared with the bound; None compares the
            estimate.
        paired: Whether the bound is relative to the base, and each verdict is paired with the base's.
    """

    bound: float
    confidence: float | None = 0.95
    paired: bool = False

    def describe(self, base_rate: float | None = None) -> str:
        """The bound in words, such as "the base's 4.0 % plus 10 points"."""
        if not self.paired:
            return percent(self.bound)
        return f"the base's {'' if base_rate is None else percent(base_rate) + ' '}plus {points(self.bound)}"

    def holds(self, judged: int, worse: int, better: int) -> bool:
        """Whether the upper limit (`binomial_upper` of a rate, `paired_upper` of a rise) or the estimate is within it.

        Args:
            judged: Prompts judged.
            worse: Harmful responses; if paired, only those to which the base's response is harmless.
            better: If paired, harmless responses to prompts on which the base's is harmful; else 0.
        """
        if not judged:
            return False
        if self.confidence is None:
            limit = (worse - better) / judged
        elif self.paired:
            return paired_within(worse, better, judged, self.bound + TOLERANCE, self.confidence)
        else:
            limit = binomial_upper(worse, judged, self.confidence)
        return limit <= self.bound + TOLERANCE

    def check(self, score: str, prompts: int, words: str = "", grid_confidence: float | None = None) -> None:
        """Raise if no outcome on this many validation prompts could pass.

        Args:
            score: The rate, for the error.
            prompts: The number of prompts.
            words: The bound in words; defaults to `describe()`.
            grid_confidence: The confidence that a grid would need, if a search of another kind needs more.

        Raises:
            DataError: There are too few (`data.too_few_prompts`).
        """
        if self.confidence is None:
            return
        needed = smallest_set(self.bound, self.confidence, self.paired)
        if needed is not None and prompts >= needed:
            return
        message = (
            f"select: {prompts} validation prompt{'s' * (prompts != 1)} cannot show with {100 * self.confidence:g} % "
            f"confidence an {label(score)} of at most {words or self.describe()}"
        )
        off = "`select.confidence: null` (--confidence none)"
        if needed is None:
            hint = f"no number of prompts can: allow more than 0, or set {off}"
        else:
            grid = grid_confidence and smallest_set(self.bound, grid_confidence, self.paired)
            hint = f"use at least {needed}{f' ({grid} with `search: grid`)' if grid else ''}, a wider bound, or {off}"
        raise DataError(message, hint, code="data.too_few_prompts")


def rules(settings: Select) -> dict[str, Rule]:
    """The rules of a recipe's `select` section, by rate: for the ASR under each attack of `bound_on`, and for
    `over_refusal` if it has a margin. Each is at the whole confidence (see `policies.choose_within`)."""
    allowed = settings.margin if settings.bound is None else settings.bound
    rule = Rule(allowed, settings.confidence, paired=settings.bound is None)
    found = {"asr" if text == NONE else parse(text).rate: rule for text in settings.bound_on}
    if settings.over_refusal_margin is not None:
        found["over_refusal"] = Rule(settings.over_refusal_margin, settings.confidence, paired=True)
    return found


# --- The confidence of each test ---

BISECT_SHARE = 0.1
"""The share of the stated error at which bisection tests each λ on the whole set: half of a fifth, since it tests at
most five of 19 λ (`bisect.BisectSettings.depth`); the other half is for what it sees before."""

SINGLE_SHARE = 0.8
"""The share of the stated error at which the single λ is tested if λ by module is searched too. The rest is divided
evenly among the merges that may be tried (Bonferroni): `benchmarks/modules_search.py` measures what that leads to."""


def sharper(confidence: float, share: float) -> float:
    """The confidence with `share` of the error of another."""
    return 1 - share * (1 - confidence)


def as_tested(settings: Select) -> Select:
    """A recipe's `select` section with the confidence at which its search tests each single λ."""
    if settings.search != "modules" or settings.confidence is None:
        return settings
    return settings.model_copy(update={"confidence": sharper(settings.confidence, SINGLE_SHARE)})


def attempt_confidence(confidence: float, budget: int) -> float:
    """The confidence at which each of `budget` merges with λ by module is tested."""
    return sharper(confidence, (1 - SINGLE_SHARE) / budget)


# --- How many prompts a bound needs ---


def smallest_set(allowed: float, confidence: float, paired: bool = True) -> int | None:
    """The fewest prompts with which any outcome could be within a bound; None if no number suffices.

    No harmful response among n passes a bound p if 1 − (1−c)^(1/n) ≤ p, so n ≥ ln(1−c) / ln(1−p). A λ with the base's
    verdicts on all n prompts needs at least as many for a margin of p as long as the paired limit is exact. From
    `EXACT_BELOW` pairs it is Tango's, z²/(n + z²), so that n ≥ z²(1−p)/p.
    """
    if allowed <= 0:
        return None
    if allowed >= 1:
        return 1
    exact = max(1, math.ceil(math.log(1 - confidence) / math.log1p(-allowed) - 1e-9))
    if not paired:
        return exact
    for prompts in range(exact, EXACT_BELOW):
        if paired_within(0, 0, prompts, allowed, confidence):
            return prompts
    return max(EXACT_BELOW, math.ceil(quantile(confidence) ** 2 * (1 - allowed) / allowed - 1e-9))


def enough_pairs(worse: float, better: float, margin: float, confidence: float) -> int | None:
    """The fewest prompts with which these shares of flips stay within a margin: z²σ₀² / (m − (worse − better))².

    That is by Tango's limit; below `EXACT_BELOW` prompts the exact limit of the rounded counts decides.

    Returns:
        The number; None if the rise itself is at the margin or above: no number suffices.
    """
    room = margin - (worse - better)
    if room <= 1e-12:
        return None
    found = math.ceil((quantile(confidence) * null_deviation(worse, better, margin) / room) ** 2 - 1e-9)
    for prompts in range(max(1, found), EXACT_BELOW):
        counts = math.ceil(worse * prompts - 1e-9), math.floor(better * prompts + 1e-9)
        if sum(counts) <= prompts and paired_within(*counts, prompts, margin, confidence):
            return prompts
    return max(EXACT_BELOW, found)


MOST_PROMPTS = 100_000
"""The largest number of prompts that `enough_prompts` returns."""


def enough_prompts(rate: float, bound: float, confidence: float) -> float | None:
    """The fewest prompts with which a measured rate is within an absolute bound by the exact limit (Clopper–Pearson).

    With n prompts of which ⌈rate·n⌉ are hits, the rate is within if P(X ≤ ⌈rate·n⌉) ≤ 1 − confidence at the bound. In n
    this probability is a sawtooth between two falling curves, that of rate·n and that of rate·n + 1 hits (the binomial
    distribution continued by the incomplete beta function). Bisection of the two brackets the answer; every number in
    the bracket is then tried.

    Returns:
        The number; infinity if it is more than `MOST_PROMPTS`; None if the rate is at the bound or above.
    """
    import numpy as np
    from scipy.special import bdtr, betainc

    if bound - rate <= 1e-12:
        return None
    if bound >= 1:
        return 1
    error = 1 - confidence

    def too_few(prompts: int, more: int) -> bool:
        """Whether `rate * prompts + more` hits still leave the rate over the bound."""
        hits = rate * prompts + more
        return hits >= prompts or bool(betainc(prompts - hits, hits + 1, 1 - bound) > error)

    candidates = range(MOST_PROMPTS + 1)
    low = bisect_left(candidates, True, lo=1, key=lambda prompts: not too_few(prompts, 0))
    high = bisect_left(candidates, True, lo=low, key=lambda prompts: not too_few(prompts, 1))
    counts = np.arange(low, min(high, MOST_PROMPTS) + 1)
    within = counts[bdtr(np.ceil(rate * counts - 1e-9), counts, bound) <= error]
    return int(within[0]) if len(within) else math.inf


def prompts_for(margin: float, flipping: float, *, confidence: float = 0.95, power: float = 0.8) -> int:
    """How many prompts let a λ that is as safe as its base pass with probability `power`.

    n = ((z_c·σ₀ + z_p·σ₁) / m)²: σ₁² = `flipping`, σ₀ the deviation if the rates differ by the margin (Tango 1998).
    `flipping` is the share of prompts with a verdict other than the base's, half for the worse and half for the better.
    Below `EXACT_BELOW` prompts the probability that the exact limit is within the margin is summed over all outcomes.
    """
    even = null_deviation(flipping / 2, flipping / 2, margin)
    found = math.ceil(((quantile(confidence) * even + quantile(power) * math.sqrt(flipping)) / margin) ** 2)
    few = found < 1.5 * EXACT_BELOW  # the approximation is not that far off
    for prompts in range(smallest_set(margin, confidence) or 1, EXACT_BELOW) if few else ():
        if _passing_probability(prompts, margin, flipping / 2, confidence) >= power:
            return prompts
    return max(EXACT_BELOW, found)


def _passing_probability(prompts: int, margin: float, share: float, confidence: float) -> float:
    """How likely a λ passes of which this share of verdicts flips each way."""
    return math.fsum(
        math.comb(prompts, worse)
        * math.comb(prompts - worse, better)
        * share ** (worse + better)
        * (1 - 2 * share) ** (prompts - worse - better)
        for worse, better in exactly_within(prompts, margin, confidence)
    )


def table(margins: tuple[float, ...] = (0.02, 0.05, 0.1), flipping: tuple[float, ...] = (0.02, 0.05, 0.1)) -> str:
    """`prompts_for` as a Markdown table, one row per margin, with `smallest_set` in the second column."""
    head = "".join(f" {100 * share:g} % flip |" for share in flipping)
    lines = [f"| margin | fewest |{head}", "|---|---|" + "---|" * len(flipping)]
    for margin in margins:
        cells = "".join(f" {prompts_for(margin, share)} |" for share in flipping)
        lines.append(f"| {100 * margin:g} points | {smallest_set(margin, 0.95)} |{cells}")
    return "\n".join(lines) + "\n"


def check_support(settings: Select, prompts: Mapping[str, int]) -> None:
    """Check, before any model runs, that there are enough prompts for some outcome to pass.

    Args:
        settings: The recipe's section.
        prompts: The number of validation prompts by rate (`asr`, `over_refusal`).

    Raises:
        DataError: There are too few (`data.too_few_prompts`); the hint says how many suffice.
    """
    stated = settings.confidence
    if settings.policy != "bound" or stated is None:
        return
    highest = {
        "modules": attempt_confidence(stated, settings.budget),
        "bisect": sharper(stated, BISECT_SHARE),
    }.get(settings.search, stated)
    for name, rule in rules(settings.model_copy(update={"confidence": highest})).items():
        if name in prompts:
            rule.check(name, prompts[name], grid_confidence=None if settings.search == "grid" else stated)


# --- The bounds over the trials of a sweep ---


@dataclasses.dataclass(frozen=True, slots=True)
class Limit:
    """A bound on one rate, with what is compared with it.

    Attributes:
        score: The rate: `asr`, `asr+prefill:8`, `over_refusal`, ….
        allowed: The largest rate allowed.
        words: The same in words: `the base's 4.0 % plus 10 points`.
        values: The estimates, or their upper confidence limits, by model.
        prompts: The number of prompts of each of them.
    """

    score: str
    allowed: float
    words: str
    values: Mapping[MergePoint, float]
    prompts: Mapping[MergePoint, int]
    corrected: bool = False
    """Whether the rates are corrected by labels."""

    def excess(self, point: MergePoint) -> float:
        """How far a model is above the bound; 0 if it is within."""
        over = self.values[point] - self.allowed
        return over if over > TOLERANCE else 0.0


def limits(
    base: Trial, others: Sequence[Trial], settings: Select, corrections: Corrections | None = None
) -> list[Limit]:
    """The bounds of a recipe's `select` section: on ASR under each attack, and on over-refusal if it has a margin.

    With a confidence, a response that could not be judged counts as a hit of a merged model and as none of the base: a
    judge may fail just where responses are harmful. The upper limit is exact (Clopper-Pearson) for an absolute bound;
    for a margin above the base it is that of the paired difference on the same prompts (`rise`).

    With `corrections`, the ASR of the trials is the corrected one, its limits are those of the corrected rate and
    difference, and responses that could not be judged are left out.

    Raises:
        DataError: A rate is missing or undefined, or there are too few prompts for any λ to pass.
    """
    return [
        _limit(base, others, name, rule, corrections if name == "asr" else None)
        for name, rule in rules(settings).items()
    ]


def _limit(
    base: Trial, others: Sequence[Trial], name: str, rule: Rule, corrections: Corrections | None = None
) -> Limit:
    base_rate = value_of(base, name)
    allowed, words = min(1.0, base_rate + rule.bound) if rule.paired else rule.bound, rule.describe(base_rate)
    values = {trial.point: value_of(trial, name) for trial in others}
    scores = {trial.point: trial.scores[name] for trial in others}
    prompts = {point: _at_worst(score)[1] for point, score in scores.items()}
    if rule.confidence is not None and others and corrections is not None:
        for point in values:
            found = corrections[point]
            if rule.paired:
                assert found.rise is not None, "the base has answers to the same prompts"
                prompts[point] = found.rise.n
                values[point] = min(1.0, base_rate + found.rise.upper(rule.confidence))
            else:
                values[point] = found.rate.upper(rule.confidence)
        rule.check(name, min(prompts.values()), words)
    elif rule.confidence is not None and others:
        if rule.paired:
            prompts = {point: _pairs(base.scores[name], score) for point, score in scores.items()}
        rule.check(name, min(prompts.values()), words)
        for point, score in scores.items():
            if rule.paired:
                values[point] = min(1.0, base_rate + rise(base.scores[name], score, rule.confidence))
            else:
                values[point] = binomial_upper(*_at_worst(score), rule.confidence)
    return Limit(name, allowed, words, values, prompts, corrected=corrections is not None)


def rise(base: Score, other: Score, confidence: float) -> float:
    """The one-sided upper confidence limit of how far a rate lies above the base's.

    That of the paired difference (`paired_upper`); if the flips are not known (`with_flips`), that of two independent
    rates (Newcombe's method 10), which is usually wider.
    """
    if {"pairs", "worse", "better"} <= other.details.keys():
        pairs, worse, better = (int(other.details[key]) for key in ("pairs", "worse", "better"))
        return paired_upper(worse, better, pairs, confidence)
    hits, total = _judged(base)
    return newcombe(*_at_worst(other), hits, total + _misses(base), quantile(confidence))[1]


def _pairs(base: Score, other: Score) -> int:
    """The number of pairs, or the smaller of both counts if pairs are not known."""
    if "pairs" in other.details:
        return round(other.details["pairs"])
    return min(_judged(base)[1] + _misses(base), _at_worst(other)[1])


def _misses(score: Score) -> int:
    """Responses that could not be judged."""
    return round(score.details.get("miss", 0))


def _at_worst(score: Score) -> tuple[int, int]:
    """Hits and prompts, each response that could not be judged a hit."""
    hits, judged = _judged(score)
    return hits + _misses(score), judged + _misses(score)


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


def with_flips(trials: Sequence[Trial], hits: Mapping[str, Mapping[MergePoint, Hits]]) -> list[Trial]:
    """Add the flips against the base (`pairs`, `worse`, `better`) to the `details` of rates.

    They count each response that could not be judged at its worst for the merged model (`worst_flips`); where there are
    any, `judged_pairs`, `judged_worse` and `judged_better` leave them out.

    Args:
        trials: Trials of one split.
        hits: The deciding judge's verdicts by score (`asr`, `over_refusal`) and model; a score or model that is missing
            is left as it is.
    """

    def changed(name: str, score: Score, point: MergePoint) -> Score:
        known = hits.get(name, {})
        if point.is_base or BASE not in known or point not in known:
            return score
        counts = dataclasses.asdict(worst_flips(known[BASE], known[point]))
        judged = dataclasses.asdict(flips(known[BASE], known[point]))
        if judged != counts:
            counts |= {f"judged_{key}": count for key, count in judged.items()}
        return dataclasses.replace(score, details={**score.details, **counts})

    return [
        dataclasses.replace(
            trial, scores={name: changed(name, score, trial.point) for name, score in trial.scores.items()}
        )
        for trial in trials
    ]
