"""How many prompts a bound needs."""

import math

from mooring.sections import Select
from mooring.stats import binomial_upper, null_deviation, quantile

BISECT_SHARE = 0.25
"""The part of the stated error at which bisect tests each λ. Which λ it tests hangs on their verdicts, so that no
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


def enough_prompts(rate: float, bound: float, confidence: float) -> int | None:
    """How many prompts show by the exact limit (Clopper–Pearson) that a rate is within an absolute bound.

    The search begins at z²·p(1−p) / (p − rate)², p the bound: Wilson's limit solved for n, which is a little less.

    Returns:
        None where the rate is at the bound, or over it.
    """
    if bound - rate <= 1e-12:
        return None
    found = (quantile(confidence) / (bound - rate)) ** 2 * bound * (1 - bound)
    count = max(smallest_set(bound, confidence, paired=False) or 1, math.ceil(found - 1e-9))
    while binomial_upper(math.ceil(rate * count - 1e-9), count, confidence) > bound:
        count += 1
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
