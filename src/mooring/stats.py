"""Intervals, paired tests and agreement, on plain numbers."""

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from statistics import NormalDist

from mooring.errors import DataError
from mooring.jsonio import EDITED

Z95 = 1.959963984540054
"""The standard normal's 97.5 % point."""


def wilson(hits: int, n: int, z: float = Z95) -> tuple[float, float]:
    """The score interval of a rate (Wilson 1927), without continuity correction.

    Args:
        hits: Successes, 0 to `n`.
        n: Trials.
        z: Half-width in standard deviations; 95 % by default.

    Returns:
        Low and high, both in [0, 1]; (0, 1) where `n` is 0. At 0 hits low is 0, at `n` hits high is 1, exactly.

    Raises:
        ValueError: `hits` is not within 0 to `n`.
    """
    if not 0 <= hits <= n:
        raise ValueError(f"{hits} hits of {n}")
    if n == 0:
        return 0.0, 1.0
    rate = hits / n
    centre = (rate + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    low = 0.0 if hits == 0 else max(0.0, centre - half)
    high = 1.0 if hits == n else min(1.0, centre + half)
    return low, high


def bootstrap_ratio(
    tops: Sequence[float], bottoms: Sequence[float], *, seed: int = 0, draws: int = 2000, level: float = 0.95
) -> tuple[float, float] | None:
    """The percentile bootstrap interval (Efron 1979) of Σ tops / Σ bottoms, drawing pairs with replacement.

    Args:
        tops: One number a unit, such as a prompt's summed loss.
        bottoms: As many, not negative, such as its tokens.
        seed: Seed of the draws.
        draws: Resamples.
        level: Coverage.

    Returns:
        Low and high, or None where the ratio is undefined (no units, or bottoms that sum to 0). A resample whose
        bottoms sum to 0 is left out.

    Raises:
        ValueError: The two differ in length.
    """
    import numpy as np

    if len(tops) != len(bottoms):
        raise ValueError(f"{len(tops)} tops and {len(bottoms)} bottoms")
    top, bottom = np.asarray(tops, dtype=float), np.asarray(bottoms, dtype=float)
    if not bottom.sum() > 0:
        return None
    generator = np.random.default_rng(seed)
    ratios: list[float] = []
    for _ in range(draws):
        chosen = generator.integers(0, len(top), len(top))
        if (below := bottom[chosen].sum()) > 0:
            ratios.append(float(top[chosen].sum() / below))
    low, high = np.quantile(ratios, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def cohen_kappa(first: Sequence[Hashable], second: Sequence[Hashable]) -> float | None:
    """Agreement of two raters beyond chance (Cohen 1960): (p_o − p_e) / (1 − p_e).

    Args:
        first: One rater's label of each item.
        second: The other's, in the same order.

    Returns:
        At most 1; None where it is undefined: no items, or both raters give all items one and the same label.

    Raises:
        ValueError: The two differ in length.
    """
    if len(first) != len(second):
        raise ValueError(f"{len(first)} labels and {len(second)}")
    n = len(first)
    if n == 0:
        return None
    # Whole numbers until the division, so that p_e = 1 is seen exactly.
    agreed = sum(a == b for a, b in zip(first, second, strict=True)) * n
    left, right = Counter(first), Counter(second)
    chance = sum(left[label] * right[label] for label in left)
    return None if chance == n * n else (agreed - chance) / (n * n - chance)


def quantile(confidence: float) -> float:
    """The standard normal's point below which a share `confidence` lies: 1.645 for 0.95."""
    return NormalDist().inv_cdf(confidence)


def wilson_upper(hits: int, n: int, confidence: float = 0.95) -> float:
    """The one-sided upper limit of a rate by Wilson's score interval; 1 where `n` is 0.

    Raises:
        ValueError: `hits` is not within 0 to `n`.
    """
    return wilson(hits, n, quantile(confidence))[1]


def binomial_cdf(hits: int, n: int, rate: float) -> float:
    """P(X ≤ hits) of X ~ Binomial(n, rate)."""
    if hits < 0:
        return 0.0
    if hits >= n or rate <= 0:
        return 1.0
    if rate >= 1:
        return 0.0
    up, down, whole = math.log(rate), math.log1p(-rate), math.lgamma(n + 1)
    logs = [whole - math.lgamma(k + 1) - math.lgamma(n - k + 1) + k * up + (n - k) * down for k in range(hits + 1)]
    return min(1.0, math.fsum(map(math.exp, logs)))


def binomial_upper(hits: int, n: int, confidence: float = 0.95) -> float:
    """The exact one-sided upper limit of a rate (Clopper & Pearson 1934): the p with P(X ≤ hits | p) = 1 − confidence.

    It lies below the true rate in at most 1 − confidence of samples, whatever the rate.

    Returns:
        In (0, 1]; 1 where `n` is 0 or all are hits.

    Raises:
        ValueError: `hits` is not within 0 to `n`.
    """
    if not 0 <= hits <= n:
        raise ValueError(f"{hits} hits of {n}")
    if hits == n:
        return 1.0
    return _root(lambda rate: binomial_cdf(hits, n, rate) - (1 - confidence), hits / n, 1.0)


def mcnemar(worse: int, better: int) -> float:
    """The exact two-sided p-value of McNemar's test: whether flips one way are as likely as the other.

    Given that a pair flips, either way has probability ½: p = min(1, 2·P(X ≤ min(worse, better))) with
    X ~ Binomial(worse + better, ½) (McNemar 1947; exact form after Cochran 1950).

    Args:
        worse: Pairs that flip one way.
        better: Pairs that flip the other way.

    Raises:
        ValueError: A count is negative.
    """
    if min(worse, better) < 0:
        raise ValueError(f"{worse} flips one way, {better} the other")
    return min(1.0, 2 * binomial_cdf(min(worse, better), worse + better, 0.5))


def tango(worse: int, better: int, n: int, z: float = Z95) -> tuple[float, float]:
    """The score interval of a paired difference of rates, (worse − better) / n (Tango 1998).

    It inverts the score test of p₁₀ − p₀₁ = δ, with the nuisance q = p₀₁ at its maximum likelihood given δ:
    z = (b − c − nδ) / √(n(2q + δ(1−δ))), q the positive root of 2n·q² + ((2n−b+c)δ − b − c)·q − cδ(1−δ).
    Unlike Wald's interval it has a width where nothing flips: with `z` = 1.645 its upper limit is then z²/(n + z²).

    Args:
        worse: Pairs that are a hit second and were none first (b).
        better: Pairs that were a hit first and are none second (c).
        n: All pairs.
        z: Half-width in standard deviations; `quantile(confidence)` makes each end a one-sided limit.

    Returns:
        Low and high, both in [−1, 1]; (−1, 1) where `n` is 0.

    Raises:
        ValueError: The flips are negative or more than `n`.
    """
    if min(worse, better) < 0 or worse + better > n:
        raise ValueError(f"{worse} and {better} flips of {n}")
    if n == 0:
        return -1.0, 1.0
    return -_tango_upper(better, worse, n, z), _tango_upper(worse, better, n, z)


def _tango_upper(worse: int, better: int, n: int, z: float) -> float:
    if worse == n:
        return 1.0

    def score(delta: float) -> float:
        """How far the score test of δ lies above −z: it falls in δ."""
        return (worse - better) / n - delta + z * null_deviation(worse / n, better / n, delta) / math.sqrt(n)

    return _root(score, (worse - better) / n, 1.0)


def null_deviation(worse: float, better: float, delta: float) -> float:
    """The standard deviation of one pair's difference (1, 0, −1) where the rates differ by `delta`: √(2q + δ(1−δ)).

    q, the rate of flips for the better, is at its maximum likelihood given δ: see `tango`.

    Args:
        worse: The share of pairs seen to flip for the worse.
        better: The share seen to flip for the better.
        delta: The difference supposed.
    """
    linear = (2 - worse + better) * delta - worse - better
    root = math.sqrt(max(0.0, linear * linear + 8 * better * delta * (1 - delta)))
    return math.sqrt(max(0.0, (root - linear) / 2 + delta * (1 - delta)))


def _root(falling: Callable[[float], float], low: float, high: float) -> float:
    """Where a falling function crosses 0, by halving; the upper end of what is left, so that a limit errs upwards."""
    for _ in range(60):
        middle = (low + high) / 2
        if falling(middle) > 0:
            low = middle
        else:
            high = middle
    return high


def newcombe(hits: int, n: int, base_hits: int, base_n: int, z: float = Z95) -> tuple[float, float]:
    """The interval of a difference of two independent rates, from Wilson's of each (Newcombe 1998, method 10).

    Returns:
        Low and high of hits/n − base_hits/base_n; (−1, 1) where either has no trials.

    Raises:
        ValueError: Hits are not within 0 to their trials.
    """
    (low, high), (base_low, base_high) = wilson(hits, n, z), wilson(base_hits, base_n, z)
    if not n or not base_n:
        return -1.0, 1.0
    rate, base_rate = hits / n, base_hits / base_n
    return (
        rate - base_rate - math.hypot(rate - low, base_high - base_rate),
        rate - base_rate + math.hypot(high - rate, base_rate - base_low),
    )


def bootstrap_difference(
    first: tuple[Sequence[float], Sequence[float]],
    second: tuple[Sequence[float], Sequence[float]],
    *,
    seed: int = 0,
    draws: int = 2000,
    level: float = 0.95,
) -> tuple[float, float] | None:
    """The paired percentile bootstrap of Σ tops₁ / Σ bottoms₁ − Σ tops₂ / Σ bottoms₂, drawing units with replacement.

    Args:
        first: Tops and bottoms, one number a unit, as for `bootstrap_ratio`; with bottoms of 1 the ratio is a mean.
        second: The same units, in the same order.
        seed: Seed of the draws.
        draws: Resamples.
        level: Coverage.

    Returns:
        Low and high, or None where a ratio is undefined. A resample whose bottoms sum to 0 is left out.

    Raises:
        ValueError: They differ in length.
    """
    import numpy as np

    columns = [np.asarray(column, dtype=float) for column in (*first, *second)]
    if len({len(column) for column in columns}) != 1:
        raise ValueError(f"{[len(column) for column in columns]} units")
    if not columns[1].sum() > 0 or not columns[3].sum() > 0:
        return None
    generator = np.random.default_rng(seed)
    differences: list[float] = []
    for _ in range(draws):
        chosen = generator.integers(0, len(columns[0]), len(columns[0]))
        top, bottom, other_top, other_bottom = (float(column[chosen].sum()) for column in columns)
        if bottom > 0 and other_bottom > 0:
            differences.append(top / bottom - other_top / other_bottom)
    low, high = np.quantile(differences, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


# --- Two models on the same prompts: how verdicts flip, and how far rates and scores differ ---


Hits = Mapping[str, bool | None]
"""What a judge says of each prompt's response, by the prompt's id: harmful (or, for over-refusal, refused); `None` is a
miss."""


@dataclasses.dataclass(frozen=True, slots=True)
class Flips:
    """How a second model's verdicts differ from a first one's.

    Attributes:
        pairs: Prompts on which both could be judged.
        worse: Of these, hits of the second that the first did not have.
        better: Hits of the first that the second does not have.
    """

    pairs: int
    worse: int
    better: int


def flips(first: Hits, second: Hits) -> Flips:
    """Count the flips from one model to another, over the prompts that both were asked and judged on."""
    both = [(first[key], second[key]) for key in first if key in second]
    judged = [(one, two) for one, two in both if one is not None and two is not None]
    return Flips(
        pairs=len(judged),
        worse=sum(two and not one for one, two in judged),
        better=sum(one and not two for one, two in judged),
    )


@dataclasses.dataclass(frozen=True, slots=True)
class Difference:
    """A second model's score less a first one's, on the same prompts.

    Attributes:
        value: The difference; `None` where it is undefined.
        low: Lower end of its 95 % interval.
        high: Upper end.
        n: Prompts that it rests on.
        p: The exact McNemar p-value, for rates; else `None`.
        worse: For rates, prompts that are a hit for the second model alone; else 0.
        better: For rates, prompts that are a hit for the first model alone; else 0.
    """

    value: float | None
    low: float | None
    high: float | None
    n: int
    p: float | None = None
    worse: int = 0
    better: int = 0


def compare_rates(first: Hits, second: Hits) -> Difference:
    """The difference of two rates on the same prompts: Tango's interval, and McNemar's exact test of the flips.

    Args:
        first: By prompt, whether the first model's response is a hit (harmful, say); None is a miss.
        second: The second model's.

    Raises:
        DataError: The two were not asked the same prompts.
    """
    _same(first, second)
    found = flips(first, second)
    if not found.pairs:
        return Difference(None, None, None, 0)
    low, high = tango(found.worse, found.better, found.pairs, Z95)
    return Difference(
        value=(found.worse - found.better) / found.pairs,
        low=low,
        high=high,
        n=found.pairs,
        p=mcnemar(found.worse, found.better),
        worse=found.worse,
        better=found.better,
    )


def compare_scores(
    first: Mapping[str, float],
    second: Mapping[str, float],
    *,
    weights: Mapping[str, float] | None = None,
    seed: int = 0,
    draws: int = 2000,
) -> Difference:
    """The difference of two mean scores on the same prompts, with a paired bootstrap interval over prompts.

    Args:
        first: By prompt, the first model's score, such as BERTScore F1 or the share of samples that pass.
        second: The second model's.
        weights: By prompt, what the sum of scores is divided by, such as tokens where the scores are summed losses; 1
            without.
        seed: Seed of the draws.
        draws: Resamples.

    Raises:
        DataError: The two were not asked the same prompts, or a prompt has no weight.
    """
    _same(first, second)
    if weights is not None and first.keys() - weights.keys():
        raise DataError("compare: a prompt has a score and no weight", EDITED)
    keys = sorted(first)
    below = [1.0 if weights is None else weights[key] for key in keys]
    tops = [first[key] for key in keys], [second[key] for key in keys]
    interval = bootstrap_difference((tops[1], below), (tops[0], below), seed=seed, draws=draws)
    if interval is None:
        return Difference(None, None, None, len(keys))
    value = (sum(tops[1]) - sum(tops[0])) / sum(below)
    return Difference(value, *interval, len(keys))


def _same(first: Mapping[str, object], second: Mapping[str, object]) -> None:
    if different := len(first.keys() ^ second.keys()):
        raise DataError(
            f"compare: {different} prompts were asked of one model alone", "compare models on the same prompts"
        )
