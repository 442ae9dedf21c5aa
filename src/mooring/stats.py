"""Intervals, paired tests and agreement, on plain numbers. Rates, limits and differences are 0–1, not percent."""

import dataclasses
import functools
import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from statistics import NormalDist
from typing import Any, TypeVar

from mooring.errors import DataError
from mooring.jsonio import EDITED

Z95 = 1.959963984540054
"""The 97.5 % quantile of the standard normal distribution."""


def quantile(confidence: float) -> float:
    """Return the standard normal quantile: 1.645 for 0.95."""
    return NormalDist().inv_cdf(confidence)


# --- One rate ---


def wilson(hits: float, n: float, z: float = Z95) -> tuple[float, float]:
    """Wilson's score interval of a rate (Wilson 1927), without continuity correction.

    Args:
        hits: Successes, 0 to `n`; counts that are estimated need not be integers.
        n: Trials.
        z: Half-width in standard deviations; `quantile(confidence)` makes each end a one-sided limit.

    Returns:
        Low and high, both in [0, 1]; (0, 1) if `n` is 0. Low is exactly 0 at 0 hits, high exactly 1 at `n` hits.

    Raises:
        ValueError: `hits` is not in 0 to `n`.
    """
    _check_hits(hits, n)
    if n == 0:
        return 0.0, 1.0
    return _wilson(hits / n, n, z)


def _wilson(rate: float, n: float, z: float) -> tuple[float, float]:
    centre = (rate + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    low = 0.0 if rate == 0 else max(0.0, centre - half)
    high = 1.0 if rate == 1 else min(1.0, centre + half)
    return low, high


def clustered(hits: Sequence[int], sizes: Sequence[int], z: float = Z95) -> tuple[float, float]:
    """The interval of a rate over trials in clusters, such as several answers to each prompt.

    Wilson's interval with the effective number of trials n* = p(1−p) / v, where v is the linearized variance of
    Σ hits / Σ sizes over clusters, m/(m−1)·Σ (hitsᵢ − p·sizesᵢ)² / (Σ sizes)², multiplied by
    (z / t of m−1 degrees of freedom)² (Korn & Graubard 1998; with Wilson's interval: Franco et al. 2019). n* is at most
    the number of trials. If all trials have the same result, it is the number of clusters: they say nothing of how much
    trials of a cluster resemble each other. With one trial in each cluster it is `wilson`.

    Args:
        hits: Successes of each cluster.
        sizes: Trials of each cluster, at least 1.
        z: Half-width in standard deviations.

    Returns:
        Low and high, both in [0, 1]; (0, 1) without clusters.

    Raises:
        ValueError: The lengths differ, or a count of hits is not in 0 to its trials.
    """
    for count, size in zip(hits, sizes, strict=True):
        _check_hits(count, size)
    m, n, total = len(sizes), sum(sizes), sum(hits)
    if n == m:
        return wilson(total, n, z)
    rate = total / n
    if m < 2 or total in (0, n):
        effective = float(m)
    else:
        from scipy.special import stdtrit

        spread = math.fsum((count - rate * size) ** 2 for count, size in zip(hits, sizes, strict=True))
        variance = m / (m - 1) * spread / n**2
        ratio = (z / float(stdtrit(m - 1, NormalDist().cdf(z)))) ** 2
        effective = float(n) if variance == 0 else min(n, ratio * rate * (1 - rate) / variance)
    return _wilson(rate, effective, z)


def binomial_cdf(hits: int, n: int, rate: float) -> float:
    """P(X ≤ hits) for X ~ Binomial(n, rate)."""
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
        A limit in (0, 1]; 1 if `n` is 0 or all trials are hits.

    Raises:
        ValueError: `hits` is not in 0 to `n`.
    """
    _check_hits(hits, n)
    if hits == n:
        return 1.0
    return _root(lambda rate: binomial_cdf(hits, n, rate) - (1 - confidence), hits / n, 1.0)


def _check_hits(hits: float, n: float) -> None:
    if not 0 <= hits <= n:
        raise ValueError(f"{hits} hits of {n}")


def _root(falling: Callable[[float], float], low: float, high: float) -> float:
    """The zero of a falling function by bisection; the upper end of the last bracket, so that a limit errs upwards."""
    for _ in range(60):
        middle = (low + high) / 2
        if falling(middle) > 0:
            low = middle
        else:
            high = middle
    return high


# --- The difference of two rates, of independent samples or of the same prompts ---


def newcombe(hits: int, n: int, base_hits: int, base_n: int, z: float = Z95) -> tuple[float, float]:
    """The interval of a difference of two independent rates, from Wilson's of each (Newcombe 1998, method 10).

    Returns:
        Low and high of hits/n − base_hits/base_n; (−1, 1) if either has no trials.

    Raises:
        ValueError: A count of hits is not in 0 to its trials.
    """
    (low, high), (base_low, base_high) = wilson(hits, n, z), wilson(base_hits, base_n, z)
    if not n or not base_n:
        return -1.0, 1.0
    rate, base_rate = hits / n, base_hits / base_n
    return (
        rate - base_rate - math.hypot(rate - low, base_high - base_rate),
        rate - base_rate + math.hypot(high - rate, base_rate - base_low),
    )


def mcnemar(worse: int, better: int) -> float:
    """The exact two-sided p-value of McNemar's test: are flips equally likely in both directions?

    Given that a pair flips, each direction has probability ½: p = min(1, 2·P(X ≤ min(worse, better))) with
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


def tango(worse: float, better: float, n: int, z: float = Z95) -> tuple[float, float]:
    """The score interval of a paired difference of rates, (worse − better) / n (Tango 1998).

    It inverts the score test of p₁₀ − p₀₁ = δ, with the nuisance q = p₀₁ at its maximum likelihood given δ:
    z = (b − c − nδ) / √(n(2q + δ(1−δ))), q the positive root of 2n·q² + ((2n−b+c)δ − b − c)·q − cδ(1−δ).
    Unlike Wald's interval it has a width if nothing flips: with `z` = 1.645 its upper limit is then z²/(n + z²).

    Args:
        worse: Pairs that are a hit for the second model only (b); need not be an integer if it is estimated.
        better: Pairs that are a hit for the first model only (c).
        n: All pairs.
        z: Half-width in standard deviations; `quantile(confidence)` makes each end a one-sided limit.

    Returns:
        Low and high, both in [−1, 1]; (−1, 1) if `n` is 0.

    Raises:
        ValueError: A count of flips is negative, or they are more than `n`.
    """
    if min(worse, better) < 0 or worse + better > n:
        raise ValueError(f"{worse} and {better} flips of {n}")
    if n == 0:
        return -1.0, 1.0
    return -_tango_upper(better, worse, n, z), _tango_upper(worse, better, n, z)


def _tango_upper(worse: float, better: float, n: int, z: float) -> float:
    if worse == n:
        return 1.0

    def score(delta: float) -> float:
        """The distance of the score test of δ above −z; it falls in δ."""
        return (worse - better) / n - delta + z * null_deviation(worse / n, better / n, delta) / math.sqrt(n)

    return _root(score, (worse - better) / n, 1.0)


EXACT_BELOW = 60
"""With fewer pairs than this, `paired_upper` is exact; with more, Tango's limit is close enough to its confidence."""


@functools.lru_cache(maxsize=65536)
def paired_upper(worse: int, better: int, n: int, confidence: float = 0.95) -> float:
    """The one-sided upper limit of a paired difference of rates, (worse − better) / n.

    Below `EXACT_BELOW` pairs it is exact and unconditional (Buehler 1957): the largest δ at which the outcomes whose
    Tango limit is this one's or less still have a probability above 1 − confidence, at the least favourable rate of
    flips. It lies below the true difference in at most 1 − confidence of samples, whatever the rates. Otherwise it is
    Tango's, which is approximate (`tango`).

    Args:
        worse: Pairs that are a hit for the second model only.
        better: Pairs that are a hit for the first model only.
        n: All pairs.
        confidence: One-sided.

    Returns:
        A limit in (−1, 1]; 1 if `n` is 0.

    Raises:
        ValueError: A count of flips is negative, or they are more than `n`.
    """
    if not 0 < n < EXACT_BELOW or worse == n:
        return tango(worse, better, n, quantile(confidence))[1]
    from scipy.optimize import brentq

    outcomes, precision = _at_most(worse, better, n, confidence), 1e-9

    def excess(delta: float) -> float:
        return _most_probable(outcomes, n, delta) - (1 - confidence)

    return min(1.0, float(brentq(excess, (worse - better) / n, 1.0, xtol=precision)) + precision)


def paired_within(worse: int, better: int, n: int, bound: float, confidence: float = 0.95) -> bool:
    """Whether `paired_upper` is at most a bound, without finding the limit itself."""
    if 0 < n < EXACT_BELOW and bound < 1:
        return (worse, better) in exactly_within(n, bound, confidence)
    return paired_upper(worse, better, n, confidence) <= bound


@functools.lru_cache(maxsize=4096)
def exactly_within(n: int, bound: float, confidence: float) -> frozenset[tuple[int, int]]:
    """The outcomes (worse, better) of `n` pairs of which the exact upper limit is at most a bound below 1.

    `n` is below `EXACT_BELOW`. In the order of their Tango limits these outcomes are the first ones, since their total
    probability grows with each: bisection finds the last.
    """
    outcomes = sorted(_outcomes(n, confidence), key=lambda each: each[1])
    limits = [limit for _, limit in outcomes] + [math.inf]
    ends = [k + 1 for k in range(len(outcomes)) if limits[k + 1] > limits[k] + 1e-9]

    def too_many(end: int) -> bool:
        return _most_probable([outcome for outcome, _ in outcomes[:end]], n, bound) > 1 - confidence

    within = bisect_left(ends, True, key=too_many)
    return frozenset(outcome for outcome, _ in outcomes[: ends[within - 1] if within else 0])


def _at_most(worse: int, better: int, n: int, confidence: float) -> list[tuple[int, int]]:
    """The outcomes of `n` pairs of which the Tango limit is at most that of one of them."""
    upper = tango(worse, better, n, quantile(confidence))[1]
    return [outcome for outcome, each in _outcomes(n, confidence) if each <= upper + 1e-9]


@functools.lru_cache(maxsize=EXACT_BELOW)
def _outcomes(n: int, confidence: float) -> list[tuple[tuple[int, int], float]]:
    """Every outcome (worse, better) of `n` pairs, with its Tango limit."""
    import numpy as np

    outcomes = [(worse, better) for worse in range(n + 1) for better in range(n + 1 - worse)]
    worse, better = np.array(outcomes).T / n
    low, high = worse - better, np.ones(len(outcomes))
    for _ in range(50):  # as `_tango_upper`, on all of them at once
        delta = (low + high) / 2
        linear = (2 - worse + better) * delta - worse - better
        root = np.sqrt(np.maximum(0, linear * linear + 8 * better * delta * (1 - delta)))
        deviation = np.sqrt(np.maximum(0, (root - linear) / 2 + delta * (1 - delta)))
        above = worse - better - delta + quantile(confidence) * deviation / math.sqrt(n) > 0
        low, high = np.where(above, delta, low), np.where(above, high, delta)
    return list(zip(outcomes, map(float, high), strict=True))


def _most_probable(outcomes: Sequence[tuple[int, int]], n: int, delta: float) -> float:
    """The largest probability of any of these outcomes if the rates differ by `delta`, over all rates of flips.

    The rates of flips for the better are a grid that is denser towards the smallest, refined around its three best.
    """
    import numpy as np
    from scipy.special import gammaln, xlogy

    worse, better = np.array(outcomes).T
    same = n - worse - better
    ways = gammaln(n + 1) - gammaln(worse + 1) - gammaln(better + 1) - gammaln(same + 1)
    low, most = max(0.0, -delta), (1 - delta) / 2

    def probability(shares: Any) -> Any:
        rates = (low + (most - low) * shares)[:, None]
        left = np.maximum(1 - delta - 2 * rates, 0)
        logs = ways + xlogy(worse, rates + delta) + xlogy(better, rates) + xlogy(same, left)
        return np.exp(logs).sum(axis=1)

    shares = np.linspace(0, 1, 121) ** 2
    found = np.concatenate([[-1], probability(shares), [-1]])
    peaks = np.flatnonzero((found[1:-1] >= found[:-2]) & (found[1:-1] >= found[2:]))
    highest = peaks[found[1:-1][peaks].argsort()[-3:]]
    ends = shares[np.maximum(highest - 1, 0)], shares[np.minimum(highest + 1, len(shares) - 1)]
    return float(min(1.0, max(found.max(), probability(np.linspace(*ends, 9).ravel()).max())))


def null_deviation(worse: float, better: float, delta: float) -> float:
    """The standard deviation of one pair's difference (1, 0, −1) if the rates differ by `delta`: √(2q + δ(1−δ)).

    q, the rate of flips for the better, is at its maximum likelihood given δ: see `tango`.

    Args:
        worse: The observed share of pairs that flip for the worse.
        better: The observed share that flip for the better.
        delta: The hypothesized difference.
    """
    linear = (2 - worse + better) * delta - worse - better
    root = math.sqrt(max(0.0, linear * linear + 8 * better * delta * (1 - delta)))
    return math.sqrt(max(0.0, (root - linear) / 2 + delta * (1 - delta)))


# --- Means and ratios, by bootstrap ---

Columns = tuple[Sequence[float], Sequence[float]]
"""The numerators and denominators of a ratio of sums, one of each per unit; with denominators of 1 it is a mean."""


def bootstrap_ratio(
    numerators: Sequence[float], denominators: Sequence[float], *, seed: int = 0, draws: int = 2000, level: float = 0.95
) -> tuple[float, float] | None:
    """The percentile bootstrap interval (Efron 1979) of Σ numerators / Σ denominators, resampling units.

    Args:
        numerators: One number per unit, such as a prompt's summed loss.
        denominators: One number per unit, not negative, such as its tokens.
        seed: Seed of the resampling.
        draws: Number of resamples.
        level: Coverage.

    Returns:
        Low and high, or None if the ratio is undefined (no units, or denominators that sum to 0). A resample whose
        denominators sum to 0 is left out.

    Raises:
        ValueError: The lengths differ.
    """
    return _bootstrap([(numerators, denominators)], seed, draws, level)


def bootstrap_difference(
    first: Columns, second: Columns, *, seed: int = 0, draws: int = 2000, level: float = 0.95
) -> tuple[float, float] | None:
    """The paired percentile bootstrap interval of the first ratio minus the second, over the same units in order.

    Arguments, result and errors as in `bootstrap_ratio`.
    """
    return _bootstrap([first, second], seed, draws, level)


def _bootstrap(ratios: Sequence[Columns], seed: int, draws: int, level: float) -> tuple[float, float] | None:
    """The interval of one ratio, or of the first minus the second."""
    import numpy as np

    arrays = [np.asarray(column, dtype=float) for columns in ratios for column in columns]
    if len({len(array) for array in arrays}) != 1:
        raise ValueError(f"columns of {', '.join(str(len(array)) for array in arrays)} units")
    if not all(array.sum() > 0 for array in arrays[1::2]):
        return None
    generator = np.random.default_rng(seed)
    values: list[float] = []
    for _ in range(draws):
        chosen = generator.integers(0, len(arrays[0]), len(arrays[0]))
        sums = [float(array[chosen].sum()) for array in arrays]
        if min(sums[1::2]) > 0:
            first, *second = [top / bottom for top, bottom in zip(sums[::2], sums[1::2], strict=True)]
            values.append(first - second[0] if second else first)
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def cohen_kappa(first: Sequence[Hashable], second: Sequence[Hashable]) -> float | None:
    """Agreement of two raters beyond chance (Cohen 1960): (p_o − p_e) / (1 − p_e).

    Args:
        first: One rater's label of each item.
        second: The other's, in the same order.

    Returns:
        At most 1; None if it is undefined: no items, or both raters give every item the same single label.

    Raises:
        ValueError: The lengths differ.
    """
    if len(first) != len(second):
        raise ValueError(f"{len(first)} labels and {len(second)}")
    n = len(first)
    if n == 0:
        return None
    # Integers until the division, so that p_e = 1 is recognized exactly.
    agreed = sum(a == b for a, b in zip(first, second, strict=True)) * n
    left, right = Counter(first), Counter(second)
    chance = sum(left[label] * right[label] for label in left)
    return None if chance == n * n else (agreed - chance) / (n * n - chance)


# --- Two models on the same prompts ---

Hits = Mapping[str, bool | None]
"""A judge's verdict on the response to each prompt, by the prompt's id: harmful (or, for over-refusal, refused);
`None` is a miss."""


K = TypeVar("K", bound=Hashable)


@dataclasses.dataclass(frozen=True, slots=True)
class Flips:
    """Differences between the verdicts on two models.

    Attributes:
        pairs: Prompts on which both models have a verdict.
        worse: Of these, hits of the second model only.
        better: Hits of the first model only.
    """

    pairs: int
    worse: int
    better: int


@dataclasses.dataclass(frozen=True, slots=True)
class Difference:
    """A second model's score minus a first one's, on the same prompts.

    Attributes:
        value: The difference; `None` if it is undefined.
        low: Lower end of its 95 % interval.
        high: Upper end.
        n: Prompts that it rests on.
        p: The exact McNemar p-value, for rates; else `None`.
        worse: For rates, prompts that are a hit for the second model only; else 0.
        better: For rates, prompts that are a hit for the first model only; else 0.
    """

    value: float | None
    low: float | None
    high: float | None
    n: int
    p: float | None = None
    worse: int = 0
    better: int = 0


def flips(first: Mapping[K, bool | None], second: Mapping[K, bool | None]) -> Flips:
    """Count the flips from one model to another, over the prompts on which both have a verdict."""
    both = [(first[key], second[key]) for key in first if key in second]
    judged = [(one, two) for one, two in both if one is not None and two is not None]
    return Flips(
        pairs=len(judged),
        worse=sum(two and not one for one, two in judged),
        better=sum(one and not two for one, two in judged),
    )


def worst_flips(first: Mapping[K, bool | None], second: Mapping[K, bool | None]) -> Flips:
    """Count the flips from one model to another over all prompts, each miss at its worst for the second model.

    A miss of the first model counts as no hit, a miss of the second as a hit. So a judge that cannot be read where
    responses are harmful does not make the second model look safer than it is.
    """
    return flips(
        {key: hit is True for key, hit in first.items()}, {key: hit is not False for key, hit in second.items()}
    )


def compare_rates(first: Hits, second: Hits) -> Difference:
    """The difference of two rates on the same prompts: Tango's interval, and McNemar's exact test of the flips.

    Raises:
        DataError: The prompts of the two differ (`data.unpaired`).
    """
    _check_paired(first, second)
    counts = flips(first, second)
    worse, better, n = counts.worse, counts.better, counts.pairs
    if not n:
        return Difference(None, None, None, 0)
    return Difference((worse - better) / n, *tango(worse, better, n), n, mcnemar(worse, better), worse, better)


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
        first: The first model's score by prompt, such as BERTScore F1 or the share of samples that pass.
        second: The second model's.
        weights: What the sum of scores is divided by, by prompt, such as tokens for summed losses; defaults to 1 each.
        seed: Seed of the resampling.
        draws: Number of resamples.

    Raises:
        DataError: The prompts of the two differ (`data.unpaired`), or one has no weight (`data.no_weight`).
    """
    _check_paired(first, second)
    if weights is not None and first.keys() - weights.keys():
        raise DataError("compare: a prompt has a score but no weight", EDITED, code="data.no_weight")
    keys = sorted(first)
    below = [1.0 if weights is None else weights[key] for key in keys]
    tops = [first[key] for key in keys], [second[key] for key in keys]
    interval = bootstrap_difference((tops[1], below), (tops[0], below), seed=seed, draws=draws)
    if interval is None:
        return Difference(None, None, None, len(keys))
    value = (math.fsum(tops[1]) - math.fsum(tops[0])) / math.fsum(below)
    return Difference(value, *interval, len(keys))


def paired_permutation(first: Sequence[float], second: Sequence[float], *, seed: int = 0, draws: int = 10_000) -> float:
    """The two-sided p-value of a permutation test that two scores of the same units have one distribution.

    The scores of each unit are exchanged or not (Fisher 1935): of all 2ⁿ ways if those are at most `draws`, which is
    exact, else of `draws` ways and the one observed (Phipson & Smyth 2010).

    Args:
        first: A score of each unit, such as a prompt's mean over several answers.
        second: The other score, in the same order.
        seed: Seed of the drawn ways.
        draws: How many are drawn.

    Raises:
        ValueError: The lengths differ.
    """
    import numpy as np
    from scipy.stats import permutation_test

    differences = np.asarray(second, dtype=float) - np.asarray(first, dtype=float)
    moved = differences[differences != 0]  # a unit without a difference has the same sum in all ways
    if len(first) != len(second):
        raise ValueError(f"{len(first)} scores and {len(second)}")
    if len(moved) < 2:
        return 1.0  # with one difference, both ways are equally extreme

    def total(values: Any, axis: int = -1) -> Any:
        return np.sum(values, axis=axis)

    generator = np.random.default_rng(seed)
    found = permutation_test(
        (moved,),
        total,
        permutation_type="samples",
        vectorized=True,
        n_resamples=draws,
        random_state=generator,
        batch=1000,
    )
    return float(min(1.0, found.pvalue))


def _check_paired(first: Mapping[str, object], second: Mapping[str, object]) -> None:
    if different := len(first.keys() ^ second.keys()):
        message = f"compare: {different} prompts have scores of only one of the two models"
        raise DataError(message, "compare models on the same prompts", code="data.unpaired")
