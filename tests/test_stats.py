"""Statistics against scipy, exact enumerations and published tables."""

import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize
from scipy import stats as scipy_stats

from mooring.stats import (
    Z95,
    binomial_cdf,
    binomial_upper,
    bootstrap_difference,
    bootstrap_ratio,
    clustered,
    cohen_kappa,
    mcnemar,
    newcombe,
    null_deviation,
    paired_upper,
    paired_within,
    quantile,
    tango,
    wilson,
)


@pytest.mark.parametrize(
    ("hits", "n", "low", "high"),
    [
        # Newcombe (1998), Statistics in Medicine 17, table I, method 3 (score, no continuity correction).
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_against_published_values(hits: int, n: int, low: float, high: float) -> None:
    assert wilson(hits, n) == pytest.approx((low, high), abs=6e-5)


CASES = st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


@settings(deadline=None)
@given(CASES, st.floats(0.6, 0.999))
def test_wilson_against_scipy(case: tuple[int, int], level: float) -> None:
    hits, n = case
    expected = scipy_stats.binomtest(hits, n).proportion_ci(level, method="wilson")
    assert wilson(hits, n, quantile((1 + level) / 2)) == pytest.approx((expected.low, expected.high), abs=1e-9)


@settings(deadline=None)
@given(CASES, CASES)
def test_newcombe_is_made_of_wilsons_intervals(one: tuple[int, int], two: tuple[int, int]) -> None:
    """Method 10: √((p₁−l₁)² + (u₂−p₂)²) below the difference, √((u₁−p₁)² + (p₂−l₂)²) above; from scipy's intervals."""
    (rate, low, high), (other, other_low, other_high) = (
        (case[0] / case[1], *scipy_stats.binomtest(*case).proportion_ci(0.95, method="wilson")) for case in (one, two)
    )
    expected = (
        rate - other - math.sqrt((rate - low) ** 2 + (other_high - other) ** 2),
        rate - other + math.sqrt((high - rate) ** 2 + (other - other_low) ** 2),
    )
    assert newcombe(*one, *two) == pytest.approx(expected, abs=1e-9)


def test_wilson_at_its_ends() -> None:
    assert wilson(0, 0) == (0, 1)
    assert wilson(0, 7)[0] == 0
    assert wilson(7, 7)[1] == 1
    with pytest.raises(ValueError, match="8 hits of 7"):
        wilson(8, 7)


@given(st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_contains_the_rate_and_is_symmetric(case: tuple[int, int]) -> None:
    hits, n = case
    low, high = wilson(hits, n)
    assert 0 <= low <= hits / n <= high <= 1
    mirrored = wilson(n - hits, n)
    assert (1 - mirrored[1], 1 - mirrored[0]) == pytest.approx((low, high), abs=1e-12)


def test_bootstrap_of_equal_ratios_has_no_width() -> None:
    assert bootstrap_ratio([2, 4, 6], [1, 2, 3]) == pytest.approx((2, 2))


def test_bootstrap_is_seeded_and_contains_the_ratio() -> None:
    tops, bottoms = [1.0, 5.0, 2.0, 8.0, 3.0] * 8, [2, 3, 4, 5, 6] * 8
    first = bootstrap_ratio(tops, bottoms, seed=3)
    assert first == bootstrap_ratio(tops, bottoms, seed=3)
    assert first != bootstrap_ratio(tops, bottoms, seed=4)
    assert first is not None
    assert first[0] < sum(tops) / sum(bottoms) < first[1]


def test_bootstrap_of_a_mean_is_near_the_normal_interval() -> None:
    values = [math.sin(i) for i in range(400)]
    mean = sum(values) / 400
    error = math.sqrt(sum((v - mean) ** 2 for v in values)) / 400
    assert bootstrap_ratio(values, [1] * 400) == pytest.approx((mean - 1.96 * error, mean + 1.96 * error), abs=0.01)


def test_bootstrap_against_scipy() -> None:
    chance = random.Random(2)
    tops, bottoms = [chance.gauss(3, 2) for _ in range(80)], [float(chance.randint(1, 9)) for _ in range(80)]
    other = [top + chance.gauss(1, 1) for top in tops]
    options = {"paired": True, "vectorized": False, "method": "percentile", "n_resamples": 20_000}
    found = scipy_stats.bootstrap((tops, bottoms), lambda a, b: a.sum() / b.sum(), **options, rng=1)
    width = found.confidence_interval.high - found.confidence_interval.low
    assert bootstrap_ratio(tops, bottoms, draws=20_000) == pytest.approx(found.confidence_interval, abs=0.03 * width)
    found = scipy_stats.bootstrap(
        (other, tops, bottoms), lambda a, b, c: a.sum() / c.sum() - b.sum() / c.sum(), **options, rng=1
    )
    width = found.confidence_interval.high - found.confidence_interval.low
    difference = bootstrap_difference((other, bottoms), (tops, bottoms), draws=20_000)
    assert difference == pytest.approx(found.confidence_interval, abs=0.03 * width)


def test_bootstrap_of_an_undefined_ratio() -> None:
    assert bootstrap_ratio([], []) is None
    assert bootstrap_ratio([1], [0]) is None
    with pytest.raises(ValueError, match="1, 0 units"):
        bootstrap_ratio([1], [])


def test_kappa_against_a_worked_example() -> None:
    # 20 yes/yes, 5 yes/no, 10 no/yes, 15 no/no: agreement 0.7, by chance 0.5, so 0.4.
    first = [1] * 25 + [0] * 25
    second = [1] * 20 + [0] * 5 + [1] * 10 + [0] * 15
    assert cohen_kappa(first, second) == pytest.approx(0.4)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=60))
def test_kappa_against_its_confusion_matrix(pairs: list[tuple[int, int]]) -> None:
    matrix = np.zeros((4, 4))
    for one, two in pairs:
        matrix[one, two] += 1 / len(pairs)
    agreed, chance = np.trace(matrix), float(matrix.sum(0) @ matrix.sum(1))
    kappa = cohen_kappa([one for one, _ in pairs], [two for _, two in pairs])
    if kappa is None:
        assert chance == pytest.approx(1)
    else:
        assert kappa == pytest.approx((agreed - chance) / (1 - chance), abs=1e-9)


def test_kappa_at_its_ends() -> None:
    assert cohen_kappa([], []) is None
    assert cohen_kappa([1, 1], [1, 1]) is None
    assert cohen_kappa([1, 0], [0, 1]) == -1
    assert cohen_kappa(["a", "b", "c"], ["a", "b", "c"]) == 1
    with pytest.raises(ValueError, match="1 labels and 2"):
        cohen_kappa([1], [1, 2])


@settings(deadline=None)
@given(st.integers(1, 300).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), st.floats(0.6, 0.999))
def test_the_exact_upper_limit_against_the_beta_distribution(case: tuple[int, int], confidence: float) -> None:
    hits, n = case
    expected = 1.0 if hits == n else scipy_stats.beta.ppf(confidence, hits + 1, n - hits)
    assert binomial_upper(hits, n, confidence) == pytest.approx(expected, abs=1e-9)
    assert binomial_cdf(hits, n, 0.3) == pytest.approx(scipy_stats.binom.cdf(hits, n, 0.3), abs=1e-10)


def test_upper_limits_at_their_ends() -> None:
    assert binomial_upper(0, 0) == binomial_upper(5, 5) == 1
    assert binomial_upper(0, 59) == pytest.approx(1 - 0.05 ** (1 / 59), abs=1e-12)
    assert quantile(0.95) == pytest.approx(1.6448536269514722, abs=1e-15)
    assert [binomial_cdf(k, 5, p) for k, p in ((-1, 0.5), (5, 0.5), (2, 0.0), (2, 1.0))] == [0, 1, 1, 0]
    with pytest.raises(ValueError, match="8 hits of 7"):
        binomial_upper(8, 7)


@pytest.mark.parametrize("rate", [0.01, 0.05, 0.2, 0.5])
def test_the_exact_upper_limit_lies_below_the_rate_at_most_as_often_as_stated(rate: float) -> None:
    n = 120
    missed = sum(
        math.comb(n, hits) * rate**hits * (1 - rate) ** (n - hits)
        for hits in range(n + 1)
        if binomial_upper(hits, n, 0.95) < rate
    )
    assert missed <= 0.05


@settings(deadline=None)
@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_against_the_binomial_test(worse: int, better: int) -> None:
    expected = scipy_stats.binomtest(worse, worse + better, 0.5).pvalue if worse + better else 1.0
    assert mcnemar(worse, better) == pytest.approx(expected, abs=1e-10)
    with pytest.raises(ValueError, match="-1 flips"):
        mcnemar(-1, 0)


def likelihood(worse: int, better: int, n: int, delta: float, nuisance: float) -> float:
    """log-likelihood of the flips, where they are for the better at rate `nuisance`, for the worse at + δ."""
    parts = ((worse, nuisance + delta), (better, nuisance), (n - worse - better, 1 - 2 * nuisance - delta))
    return sum(count * math.log(max(p, 1e-300)) for count, p in parts if count)


@settings(deadline=None)
@given(
    st.integers(5, 200).flatmap(lambda n: st.tuples(st.integers(0, n // 2), st.integers(0, n // 2), st.just(n))),
    st.floats(0.01, 0.6),
)
def test_the_nuisance_of_tangos_test_is_at_its_maximum_likelihood(case: tuple[int, int, int], delta: float) -> None:
    worse, better, n = case
    found = optimize.minimize_scalar(
        lambda q: -likelihood(worse, better, n, delta, q),
        bounds=(0, (1 - delta) / 2),
        method="bounded",
        options={"xatol": 1e-12},
    ).x
    expected = math.sqrt(2 * found + delta * (1 - delta))
    assert null_deviation(worse / n, better / n, delta) == pytest.approx(expected, abs=2e-4)


@settings(deadline=None)
@given(st.integers(1, 300).flatmap(lambda n: st.tuples(st.integers(0, n // 2), st.integers(0, n // 2), st.just(n))))
def test_tango_is_where_the_score_test_turns(case: tuple[int, int, int]) -> None:
    worse, better, n = case
    low, high = tango(worse, better, n)
    assert -1 <= low <= (worse - better) / n <= high <= 1
    for delta, sign in ((low, 1), (high, -1)):
        if -1 < delta < 1:
            away = (worse - better - n * delta) / (math.sqrt(n) * null_deviation(worse / n, better / n, delta))
            assert away == pytest.approx(sign * Z95, abs=1e-3)
    turned = tango(better, worse, n)
    assert (-turned[1], -turned[0]) == pytest.approx((low, high), abs=1e-9)


def test_tango_at_its_ends() -> None:
    assert tango(0, 0, 0) == (-1, 1)
    assert tango(7, 0, 7)[1] == 1
    assert tango(0, 7, 7)[0] == -1
    z = quantile(0.95)
    assert tango(0, 0, 100, z)[1] == pytest.approx(z * z / (100 + z * z), abs=1e-12)
    with pytest.raises(ValueError, match="5 and 3 flips of 7"):
        tango(5, 3, 7)


@pytest.mark.parametrize("n", [50, 100])
@pytest.mark.parametrize(("up", "down"), [(0.1, 0.0), (0.12, 0.02), (0.2, 0.1), (0.15, 0.05), (0.06, 0.01)])
def test_tangos_upper_limit_lies_below_the_difference_about_as_often_as_stated(n: int, up: float, down: float) -> None:
    """Summed over all outcomes, not drawn. A score interval is not exact: its error is near 5 %, here at most 6 %."""
    still = 1 - up - down
    missed = 0.0
    for worse in range(n + 1):
        for better in range(n + 1 - worse if down else 1):
            rest = n - worse - better
            logs = [math.lgamma(n + 1)] + [-math.lgamma(k + 1) for k in (worse, better, rest)]
            logs += [k * math.log(p) for k, p in ((worse, up), (better, down), (rest, still)) if k]
            chance = math.exp(sum(logs))
            # By the score test itself, which is quicker than its root.
            delta = up - down
            away = (worse - better - n * delta) / (
                math.sqrt(n) * max(null_deviation(worse / n, better / n, delta), 1e-9)
            )
            missed += chance * (away < -quantile(0.95))
    assert 0.01 < missed < 0.06


@pytest.mark.parametrize(("n", "margin"), [(1, 0.97), (3, 0.7), (11, 0.3), (25, 0.1), (29, 0.1), (40, 0.2), (59, 0.05)])
def test_below_sixty_pairs_a_model_at_the_margin_passes_at_most_as_often_as_stated(n: int, margin: float) -> None:
    """All outcomes summed at many rates of flips, by another formula."""
    passing = [(b, c) for b in range(n + 1) for c in range(n + 1 - b) if paired_within(b, c, n, margin)]
    assert passing

    def chance(outcomes: list[tuple[int, int]], back: float) -> float:
        still = 1 - 2 * back - margin
        return sum(
            math.comb(n, b) * math.comb(n - b, c) * (back + margin) ** b * back**c * still ** (n - b - c)
            for b, c in outcomes
        )

    shares = [(1 - margin) / 2 * step / 150 for step in range(151)]
    worst = max(chance(passing, back) for back in shares)
    assert 0.02 < worst <= 0.05 + 1e-6


@pytest.mark.parametrize("n", [2, 7, 25, 59])
def test_the_exact_paired_limit_agrees_with_its_test_and_grows_with_the_flips_for_the_worse(n: int) -> None:
    draw = random.Random(n)
    for _ in range(3):
        worse = draw.randint(0, n - 1)
        better = draw.randint(0, n - worse - 1)
        limit = paired_upper(worse, better, n)
        assert paired_within(worse, better, n, limit + 1e-6)
        assert not paired_within(worse, better, n, limit - 1e-4)
        assert paired_upper(worse + 1, better, n) >= limit >= paired_upper(worse, better + 1, n)
    lowest = binomial_upper(0, n) if n < 59 else 0.05035  # there, many flips in both directions are less likely
    assert paired_upper(0, 0, n) == pytest.approx(lowest, abs=1e-5)
    assert lowest >= binomial_upper(0, n)
    assert paired_upper(n, 0, n) == 1


def test_from_sixty_pairs_the_paired_limit_is_tangos() -> None:
    assert paired_upper(5, 3, 60) == tango(5, 3, 60, quantile(0.95))[1] == paired_upper(5, 3, 60, 0.95)
    assert paired_upper(0, 0, 0) == 1
    assert paired_within(5, 3, 60, 0.2) == (paired_upper(5, 3, 60) <= 0.2)


def test_newcombe_against_published_values() -> None:
    # Newcombe (1998), Statistics in Medicine 17, 873-890, table II, method 10.
    assert newcombe(56, 70, 48, 80) == pytest.approx((0.0524, 0.3339), abs=6e-5)
    assert newcombe(9, 10, 3, 10) == pytest.approx((0.1705, 0.8090), abs=6e-5)
    assert newcombe(0, 10, 0, 20) == pytest.approx((-0.1611, 0.2775), abs=6e-5)
    assert newcombe(0, 0, 1, 2) == (-1, 1)


def test_the_paired_bootstrap_is_narrow_where_pairs_agree() -> None:
    draw = random.Random(0)
    first = [draw.gauss(5, 3) for _ in range(200)]
    second = [one + draw.gauss(0.5, 0.1) for one in first]
    ones = [1.0] * 200
    low, high = bootstrap_difference((second, ones), (first, ones)) or (0, 0)
    assert 0.47 < low < 0.5 < high < 0.53
    error = 0.1 / math.sqrt(200)
    assert high - low == pytest.approx(2 * Z95 * error, rel=0.2)
    assert bootstrap_difference((second, ones), (first, ones)) == (low, high)
    assert bootstrap_difference((second, ones), (first, ones), seed=1) != (low, high)


def test_the_paired_bootstrap_covers_the_difference() -> None:
    draw = random.Random(1)
    covered = 0
    for run in range(150):
        common = [draw.gauss(0, 1) for _ in range(60)]
        first, second = ([one + draw.gauss(shift, 0.5) for one in common] for shift in (0.0, 0.3))
        ones = [1.0] * 60
        low, high = bootstrap_difference((second, ones), (first, ones), seed=run, draws=300) or (0, 0)
        covered += low <= 0.3 <= high
    assert covered / 150 == pytest.approx(0.95, abs=0.06)


def test_the_paired_bootstrap_of_ratios_and_of_undefined_ones() -> None:
    tokens = [2.0, 3.0, 4.0]
    losses = [2.0, 6.0, 2.0]
    assert bootstrap_difference((losses, tokens), (losses, tokens)) == (0, 0)
    assert bootstrap_difference(([], []), ([], [])) is None
    assert bootstrap_difference(([1], [0]), ([1], [1])) is None
    with pytest.raises(ValueError, match="units"):
        bootstrap_difference(([1, 2], [1, 1]), ([1], [1]))


@pytest.mark.parametrize(("n", "margin"), [(25, 0.1), (60, 0.1), (60, 0.2)])
def test_a_model_at_the_margin_itself_passes_tangos_limit_about_once_in_twenty(n: int, margin: float) -> None:
    """All outcomes summed, each with its trinomial chance: a wrong quantile or a turned sign is far off."""
    z, back = quantile(0.95), 0.05
    passing = [(b, c) for b in range(n + 1) for c in range(n + 1 - b) if tango(b, c, n, z)[1] <= margin]
    chance = sum(
        math.comb(n, b) * math.comb(n - b, c) * (back + margin) ** b * back**c * (1 - 2 * back - margin) ** (n - b - c)
        for b, c in passing
    )
    assert 0.03 < chance < 0.07


def test_a_limit_at_the_bound_is_within_it() -> None:
    limit = paired_upper(3, 1, 100)
    assert paired_within(3, 1, 100, limit)
    assert not paired_within(3, 1, 100, limit - 1e-9)


# Answers in clusters


def test_one_answer_to_each_prompt_is_wilsons_interval() -> None:
    assert clustered([1, 0, 0, 1, 0], [1] * 5) == wilson(2, 5)
    assert clustered([], []) == (0.0, 1.0)


def test_answers_that_are_all_alike_count_as_one_for_each_prompt() -> None:
    hits = [10] * 12 + [0] * 28
    low, high = clustered(hits, [10] * 40)
    alone = wilson(12, 40)
    assert low <= alone[0] + 0.01
    assert high >= alone[1] - 0.01
    assert (low, high) == pytest.approx(alone, abs=0.02)
    assert clustered([0] * 20, [10] * 20) == wilson(0, 20)


def test_answers_that_do_not_resemble_each_other_count_nearly_all() -> None:
    hits = [3, 4, 2, 3, 3, 4, 2, 3] * 10
    low, high = clustered(hits, [10] * 80)
    all_low, all_high = wilson(sum(hits), 800)
    assert (low, high) == pytest.approx((all_low, all_high), abs=0.002)


@pytest.mark.parametrize(("hits", "sizes"), [([3, 4], [10, 10]), ([0, 4, 2], [5, 8, 2]), ([1, 1, 9], [12, 3, 10])])
def test_the_effective_number_of_clustered_trials_is_that_of_the_formula(hits: list[int], sizes: list[int]) -> None:
    import numpy as np
    from scipy.stats import norm, t

    taken, n, m = np.array(hits), np.array(sizes), len(sizes)
    rate = taken.sum() / n.sum()
    variance = m / (m - 1) * ((taken - rate * n) ** 2).sum() / n.sum() ** 2
    fewer = (norm.ppf(0.975) / t.ppf(0.975, m - 1)) ** 2
    count = min(n.sum(), fewer * rate * (1 - rate) / variance)
    centre = (rate + norm.ppf(0.975) ** 2 / (2 * count)) / (1 + norm.ppf(0.975) ** 2 / count)
    assert sum(clustered(hits, sizes)) / 2 == pytest.approx(centre, abs=1e-6)


@pytest.mark.slow
def test_the_interval_covers_where_that_of_independent_answers_does_not() -> None:
    import numpy as np

    rng = np.random.default_rng(5)
    covered = naive = 0
    for _ in range(1500):
        rates = rng.beta(0.3, 0.7, 80)  # the answers to one prompt correlate by 0.5
        hits = rng.binomial(10, rates).tolist()
        low, high = clustered(hits, [10] * 80)
        covered += low <= 0.3 <= high
        low, high = wilson(sum(hits), 800)
        naive += low <= 0.3 <= high
    assert 0.93 <= covered / 1500 <= 0.97
    assert naive / 1500 < 0.75
