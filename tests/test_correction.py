"""The error of a judge, and rates corrected for it: against published values, closed forms and simulations."""

import math
import random
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from mooring.correction import (
    CorrectedDifference,
    CorrectedRate,
    Group,
    Labelled,
    Share,
    allocate,
    labels_needed,
    rogan_gladen,
    sensitivity,
    specificity,
    strata,
    weighted_kappa,
)
from mooring.stats import Z95, cohen_kappa, tango, wilson

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import judge_error as benchmark


def group(verdict: bool, size: int, hits: int, labelled: int) -> Group:
    return Group.of(verdict, size, [(place < hits, 1.0) for place in range(labelled)])


def complete(verdict: bool, size: int, hits: int) -> Group:
    return group(verdict, size, hits, size)


# --- A rate ---


def test_a_label_for_every_answer_leaves_wilsons_interval_of_the_labels() -> None:
    rate = CorrectedRate((complete(True, 30, 21), complete(False, 70, 4)))
    assert rate.value == 0.25
    assert rate.limits() == pytest.approx(wilson(25, 100), abs=1e-12)


def test_its_upper_limit_is_then_clopper_and_pearsons() -> None:
    rate = CorrectedRate((complete(True, 30, 21), complete(False, 70, 4)))
    assert rate.upper(0.95) == pytest.approx(scipy_stats.beta.ppf(0.95, 26, 75), abs=1e-9)


def test_it_is_the_estimate_of_ppi_plus_plus_with_optimal_power_tuning() -> None:
    # Angelopoulos, Duchi & Zrnic 2023: mean(Y) + w (mean(f, all) − mean(f, labelled)), w = Cov(Y, f) / Var(f) over the
    # labelled, which is what the optimal w for a sample that is a part of all answers comes to.
    hit, other = group(True, 60, 15, 20), group(False, 140, 3, 30)
    labels = [(1, 1)] * 15 + [(0, 1)] * 5 + [(1, 0)] * 3 + [(0, 0)] * 27
    mean_y = sum(y for y, _ in labels) / 50
    mean_f = sum(f for _, f in labels) / 50
    covariance = sum((y - mean_y) * (f - mean_f) for y, f in labels) / 50
    weight = covariance / (mean_f * (1 - mean_f))
    assert CorrectedRate((hit, other)).value == pytest.approx(mean_y + weight * (60 / 200 - mean_f), abs=1e-12)


def test_few_labels_that_all_agree_with_the_judge_still_widen_the_interval() -> None:
    rate = CorrectedRate((group(True, 10, 5, 5), group(False, 90, 0, 9)))
    assert rate.value == 0.1
    low, high = rate.limits()
    assert low < wilson(10, 100)[0]
    assert high > wilson(10, 100)[1] + 0.05


def test_without_labels_of_a_verdict_the_judge_is_not_believed() -> None:
    low, high = CorrectedRate((group(True, 10, 5, 5), group(False, 90, 0, 0))).limits()
    assert low < 0.1
    assert high > 0.9


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(1, 160), st.data())
def test_limits_are_within_0_and_1_around_the_rate(first: int, second: int, data: st.DataObject) -> None:
    groups = []
    for verdict, size in ((True, first), (False, second)):
        labelled = data.draw(st.integers(0, size))
        groups.append(group(verdict, size, data.draw(st.integers(0, labelled)), labelled))
    rate = CorrectedRate((groups[0], groups[1]))
    low, high = rate.limits()
    assert rate.value is not None
    assert 0 <= low <= rate.value + 1e-12
    assert rate.value - 1e-12 <= high <= 1
    assert high <= rate.upper(0.999) + 1e-9


def test_no_answers_have_no_rate() -> None:
    empty = CorrectedRate((Group.of(True, 0, []), Group.of(False, 0, [])))
    assert (empty.value, empty.limits(), empty.upper(0.95)) == (None, (0.0, 1.0), 1.0)


# --- A difference ---

HIT, OTHER = (True, None), (False, None)
"""What is known of an answer without a label."""


def test_labels_of_all_answers_leave_tangos_interval_of_the_labels() -> None:
    # 20 prompts with differing answers of 100: 12 judged harmful for the second model only, 8 for the first only.
    # People agree with the judge.
    first = complete(True, 8, 8), complete(False, 12, 0)
    second = complete(True, 12, 12), complete(False, 8, 0)
    found = CorrectedDifference.of(100, first, second, {(HIT, OTHER): 8, (OTHER, HIT): 12})
    assert found.value == pytest.approx(0.04)
    assert found.limits() == pytest.approx(tango(12, 8, 100), abs=1e-9)


def test_a_judge_that_raises_alarm_at_random_shows_no_difference() -> None:
    first = group(True, 10, 5, 10), group(False, 40, 20, 40)
    second = group(True, 40, 20, 40), group(False, 10, 5, 10)
    found = CorrectedDifference.of(100, first, second, {(HIT, OTHER): 10, (OTHER, HIT): 40})
    assert found.value == pytest.approx(0.0)


@pytest.mark.parametrize("labelled", [40, 20])
def test_labels_of_both_answers_tell_of_fewer_flips_than_rates_of_independent_ones(labelled: int) -> None:
    # The judge calls all 40 pairs of answers harmful; people do so for both answers of the first half, for none of the
    # others.
    both = {str(i): (True, i % 2 == 0) for i in range(40)}
    answers = {model: {key: (f"{model}{key}", verdict) for key, (verdict, _) in both.items()} for model in ("a", "b")}
    truth = {f"{model}{i}": i % 2 == 0 for model in ("a", "b") for i in range(labelled)}
    found = Labelled(answers, truth).difference("a", "b")
    alone = CorrectedDifference.of(40, found.first, found.second, {(HIT, HIT): 40})
    assert found.value == alone.value == 0
    assert (alone.worse, alone.better) == (10, 10)
    assert (found.worse, found.better) == pytest.approx(((40 - labelled) / 4, (40 - labelled) / 4))
    assert found.limits()[1] < alone.limits()[1]
    if labelled == 40:
        assert found.limits() == pytest.approx(tango(0, 0, 40))


def test_equal_answers_need_no_labels() -> None:
    answers = {"base": {str(i): (f"x{i}", i < 5) for i in range(50)}}
    answers["0.2"] = answers["base"]
    found = Labelled(answers, {}).difference("base", "0.2")
    assert (found.value, found.limits()) == (0.0, tango(0, 0, 50))


# --- Weights ---


def test_answers_stand_for_those_of_their_stratum() -> None:
    # Model b shares 6 of its answers with a. Of a's 12 harmless-looking answers 3 are labelled (each stands for 4), of
    # b's own 6 all are (each for itself).
    answers = {
        "a": {str(i): (f"a{i}", False) for i in range(12)},
        "b": {str(i): (f"a{i}" if i < 6 else f"b{i}", False) for i in range(12)},
    }
    truth = {"a0": True, "a1": False, "a7": False} | {f"b{i}": False for i in range(6, 12)}
    found = Labelled(answers, truth)
    assert found.weights["a0"] == 4
    assert found.weights["b6"] == 1
    assert found.rate("a").value == pytest.approx(1 / 3)
    assert found.rate("b").value == pytest.approx(4 / (4 + 4 + 6))
    other = found.rate("b").groups[1]
    assert other.labelled == 8
    assert other.effective == pytest.approx(14**2 / (16 + 16 + 6))


def test_strata_are_those_of_the_first_model_and_labels_of_unknown_answers_do_not_count() -> None:
    answers = {"a": {"1": ("x", True)}, "b": {"1": ("x", True), "2": ("y", False)}}
    assert strata(answers) == {"x": ("a", True), "y": ("b", False)}
    assert Labelled(answers, {"x": True, "z": True}).truth == {"x": True}


@settings(deadline=None)
@given(st.lists(st.integers(0, 30), min_size=1, max_size=8), st.integers(0, 120), st.integers(0, 120))
def test_more_labels_take_none_away_from_any_stratum(sizes: list[int], one: int, more: int) -> None:
    named = {(str(place), True): size for place, size in enumerate(sizes)}
    fewer, larger = allocate(named, one), allocate(named, one + more)
    assert sum(fewer.values()) == min(one, sum(sizes))
    assert all(fewer[key] <= larger[key] <= named[key] for key in named)


# --- Sensitivity and specificity ---


def test_partial_verification_as_published() -> None:
    # Begg & Greenes 1983, hepatic scintigraphy: 231 and 32 of 429 positives verified, 27 and 54 of 221 negatives.
    groups = group(True, 429, 231, 263), group(False, 221, 27, 81)
    se, sp = sensitivity(groups), specificity(groups)
    assert se is not None
    assert sp is not None
    assert round(se.value, 3) == 0.836
    assert round(sp.value, 3) == 0.738
    assert se.low < se.value < se.high
    assert sp.low < sp.value < sp.high


def test_with_all_answers_labelled_they_are_binomial() -> None:
    groups = complete(True, 50, 40), complete(False, 150, 10)
    se, sp = sensitivity(groups), specificity(groups)
    assert se is not None
    assert sp is not None
    assert (se.value, se.low, se.high) == pytest.approx((0.8, *wilson(40, 50)))
    assert (sp.value, sp.low, sp.high) == pytest.approx((140 / 150, *wilson(140, 150)))
    assert (se.effective, sp.effective) == pytest.approx((50, 150))


def test_they_are_unknown_without_labels_of_both_verdicts_or_without_a_hit() -> None:
    assert sensitivity((group(True, 10, 0, 0), group(False, 10, 0, 5))) is None
    assert sensitivity((group(True, 10, 0, 5), group(False, 10, 0, 5))) is None
    assert specificity((group(True, 10, 5, 5), group(False, 10, 5, 5))) is None


@settings(deadline=None)
@given(st.data())
def test_kappa_is_cohens_if_all_answers_are_labelled(data: st.DataObject) -> None:
    pairs = data.draw(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40))
    groups = tuple(
        Group.of(verdict, sum(v == verdict for v, _ in pairs), [(hit, 1.0) for v, hit in pairs if v == verdict])
        for verdict in (True, False)
    )
    expected = cohen_kappa([v for v, _ in pairs], [hit for _, hit in pairs])
    assert weighted_kappa((groups[0], groups[1])) == (None if expected is None else pytest.approx(expected))


# --- Rogan and Gladen ---


def test_rogan_and_gladens_rate_as_published() -> None:
    # The example of epiR's `epi.prev`: 23 of 150 cows positive, Se 96 %, Sp 89 %: 5.1 per 100.
    exact = Share(0.96, 0.96, 0.96, math.inf), Share(0.89, 0.89, 0.89, math.inf)
    found = rogan_gladen(23 / 150, 150, *(Share(s.value, s.low, s.high, 1e12) for s in exact))
    assert found is not None
    assert round(100 * found[0], 1) == 5.1


def test_its_interval_is_lang_and_reiczigels() -> None:
    """The equations of Lang & Reiczigel (2014), written out once more, for 40 of 200, Se 0.9 of 60, Sp 0.95 of 90."""
    found = rogan_gladen(0.2, 200, Share(0.9, 0, 1, 60), Share(0.95, 0, 1, 90))
    n, p = 200 + Z95**2, (40 + Z95**2 / 2) / (200 + Z95**2)
    se, sp = 55 / 62, 86.5 / 92
    prevalence = (p + sp - 1) / (se + sp - 1)
    var_se, var_sp = se * (1 - se) / 62, sp * (1 - sp) / 92
    variance = (p * (1 - p) / n + prevalence**2 * var_se + (1 - prevalence) ** 2 * var_sp) / (se + sp - 1) ** 2
    middle = prevalence + 2 * Z95**2 * (prevalence * var_se - (1 - prevalence) * var_sp)
    assert found == pytest.approx(
        (0.15 / 0.85, middle - Z95 * math.sqrt(variance), middle + Z95 * math.sqrt(variance)), abs=1e-12
    )


def test_a_judge_no_better_than_chance_corrects_nothing() -> None:
    assert rogan_gladen(0.2, 200, Share(0.5, 0, 1, 60), Share(0.5, 0, 1, 90)) is None


@pytest.mark.slow
def test_with_a_sample_of_its_own_for_the_judge_it_covers_the_truth() -> None:
    rng, runs, covered = random.Random(1), 2000, 0
    for _ in range(runs):
        hits = sum(rng.random() < (0.85 if rng.random() < 0.2 else 0.1) for _ in range(200))
        se, sp = sum(rng.random() < 0.85 for _ in range(60)) / 60, sum(rng.random() < 0.9 for _ in range(120)) / 120
        found = rogan_gladen(hits / 200, 200, Share(se, 0, 1, 60), Share(sp, 0, 1, 120))
        covered += found is not None and found[1] <= 0.2 <= found[2]
    assert 0.93 <= covered / runs <= 0.97


# --- How many labels ---


def test_more_labels_are_needed_until_the_interval_is_narrow_enough() -> None:
    few = CorrectedRate((group(True, 20, 9, 10), group(False, 180, 1, 10)))
    enough = labels_needed(few)
    assert enough is not None
    assert 20 < enough < 200
    low, high = few.limits(more=enough / 20)
    best_low, best_high = few.limits(more=1e6)
    assert (high - low) <= 1.5 * (best_high - best_low) + 1e-6
    assert labels_needed(CorrectedRate((complete(True, 20, 18), complete(False, 180, 2)))) == 200
    assert labels_needed(CorrectedRate((group(True, 20, 0, 0), group(False, 180, 0, 0)))) is None


# --- Simulated judges ---


@pytest.mark.slow
@pytest.mark.parametrize("errors", [(0.05, 0.05), (0.1, 0.3), (0.3, 0.3)])
def test_corrected_intervals_cover_the_truth_and_those_of_the_judge_do_not(errors: tuple[float, float]) -> None:
    """Coverage over 600 simulated runs, whose own error is ±1.8 points."""
    found, _ = benchmark.coverage(benchmark.Case(*errors), 600, seed=1)
    assert 0.93 - 0.018 <= found["rate corrected"] <= 0.97 + 0.018
    assert found["difference corrected"] >= 0.93
    assert found["Rogan-Gladen"] >= 0.93
    assert min(found["rate"], found["difference"]) < 0.9
