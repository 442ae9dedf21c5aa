"""The policy: the best task score among the λ that keep the bound."""

import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mooring.config import Select
from mooring.errors import DataError, UserError
from mooring.merge_point import MergePoint
from mooring.records import Score, Trial
from mooring.selection.policies import choose

GRID = (0.2, 0.4, 0.6, 0.8)


def score(name: str, value: float | None) -> Score:
    better = "higher" if name == "call_match" else "lower"
    return Score(name=name, value=value, low=None, high=None, n=100, better=better, method="test")


def trial(lam: float, **values: float | None) -> Trial:
    scores = {name: score(name, value) for name, value in values.items()}
    return Trial(point=MergePoint(lam), method="linear", split="validation", scores=scores)


def sweep(asr: list[float], metric: str | None = None, task: list[float] | None = None) -> list[Trial]:
    """Base, then the λ of the grid, then tuned."""
    lams = [0.0, *GRID[: len(asr) - 2], 1.0]
    extra = [{metric: value} for value in task] if metric and task else [{}] * len(asr)
    return [trial(lam, asr=a, **e) for lam, a, e in zip(lams, asr, extra, strict=True)]


ASR = [0.014, 0.014, 0.029, 0.186, 0.42, 0.529]
MATCH = [0.0, 0.26, 0.61, 0.701, 0.79, 0.82]


def test_takes_the_highest_task_score_within_the_bound_and_says_why() -> None:
    choice = choose(sweep(ASR, "call_match", MATCH), margin=0.05, metric="call_match")
    assert (choice.point.lam, choice.within, choice.metric) == (0.4, True, "call_match")
    assert choice.bound == pytest.approx(0.064)
    assert choice.reason == (
        "λ = 0.4 has the highest call match on validation (61.0 %) of the λ whose attack success rate is at most the "
        "base's 1.4 % plus 5 points (its own: 2.9 %); λ = 0.6 scores 70.1 % but lets 18.6 % through."
    )


def test_the_lowest_loss_is_best() -> None:
    loss = [0.62, 0.2, 0.124, 0.093, 0.078, 0.073]
    choice = choose(sweep(ASR, "response_loss", loss), margin=0.05, metric="response_loss")
    assert choice.point.lam == 0.4
    assert "lowest response loss on validation (0.124 nats per token)" in choice.reason


def test_the_best_task_score_need_not_be_at_the_largest_lambda() -> None:
    choice = choose(sweep([0.1] * 6, "call_match", [0.0, 0.5, 0.9, 0.7, 0.8, 0.8]), margin=0.0, metric="call_match")
    assert choice.point.lam == 0.4
    assert "through" not in choice.reason


def test_ties_go_to_the_smaller_asr_then_to_the_smaller_lambda() -> None:
    equal = [0.0, 0.7, 0.7, 0.7, 0.7, 0.8]
    assert (
        choose(sweep([0.1, 0.12, 0.1, 0.1, 0.11, 0.5], "call_match", equal), margin=0.05, metric="call_match").point.lam
        == 0.4
    )
    nearly = [0.0, 0.1, 0.3, 0.1 + 0.2, 0.0, 0.8]  # 0.1 + 0.2 is 0.30000000000000004: the same rate
    assert choose(sweep([0.1] * 6, "call_match", nearly), margin=0.05, metric="call_match").point.lam == 0.4


def test_without_a_task_the_largest_lambda_within_the_bound() -> None:
    choice = choose(sweep(ASR), margin=0.2, metric=None)
    assert (choice.point.lam, choice.metric) == (0.6, "lam")
    assert choice.reason == (
        "λ = 0.6 is the largest whose attack success rate on validation (18.6 %) is at most the base's 1.4 % plus 20 "
        "points; λ = 0.8 lets 42.0 % through."
    )


def test_a_rate_equal_to_the_bound_is_within() -> None:
    assert 0.7 + 0.1 < 0.8
    choice = choose(sweep([0.7, 0.8, 0.801, 0.9, 0.9, 0.9]), margin=0.1, metric=None)
    assert (choice.point.lam, choice.within) == (0.2, True)


def test_none_within_chooses_the_nearest() -> None:
    choice = choose(sweep([0.0, 0.3, 0.2, 0.2, 0.6, 0.7], "call_match", MATCH), margin=0.05, metric="call_match")
    assert (choice.point.lam, choice.within) == (0.4, False)
    assert choice.reason == (
        "No λ tried has an attack success rate on validation of at most the base's 0.0 % plus 5 points (5.0 %); "
        "λ = 0.4 comes nearest, with 20.0 %."
    )


def test_a_tuned_model_within_the_bound_is_named_but_not_chosen() -> None:
    choice = choose(sweep([0.01, 0.01, 0.01, 0.01, 0.02, 0.03], "call_match", MATCH), margin=0.05, metric="call_match")
    assert choice.point.lam == 0.8
    assert choice.reason.endswith(
        "; the tuned model itself is within the bound, with 3.0 % and a call match of 82.0 %."
    )
    without = choose(sweep(ASR, "call_match", MATCH), margin=0.05, metric="call_match")
    assert "tuned model itself" not in without.reason


def test_the_tuned_model_may_be_missing_or_undefined() -> None:
    trials = sweep(ASR, "call_match", MATCH)
    assert choose(trials[:-1], margin=0.05, metric="call_match").point.lam == 0.4
    assert choose([*trials[:-1], trial(1.0, asr=None)], margin=0.05, metric="call_match").point.lam == 0.4


@pytest.mark.parametrize(
    ("trials", "metric", "code", "place"),
    [
        (sweep(ASR)[1:], None, "data.not_one_base", ""),
        ([sweep(ASR)[0], *sweep(ASR)], None, "data.not_one_base", ""),
        ([sweep(ASR)[0], sweep(ASR)[-1]], None, "data.no_merged_trial", ""),
        ([*sweep(ASR), trial(0.4, asr=0.1)], None, "data.duplicate_trial", ""),
        ([trial(0.0, asr=None), trial(0.4, asr=0.1)], None, "data.undefined_score", "`asr` of the base model"),
        (
            [trial(0.0, asr=0.1), trial(0.4, asr=None)],
            None,
            "data.undefined_score",
            "`asr` of the merged model at λ = 0.4",
        ),
        ([trial(0.0, asr=0.1), trial(0.4, asr=math.nan)], None, "data.undefined_score", ""),
        (
            [trial(0.0, asr=0.1), trial(0.4, asr=0.1, call_match=None)],
            "call_match",
            "data.undefined_score",
            "`call_match` of the merged",
        ),
        ([trial(0.0, asr=0.1), trial(0.4, asr=0.1)], "call_match", "data.missing_score", "`call_match`"),
        ([trial(0.0), trial(0.4, asr=0.1)], None, "data.missing_score", "the base model has no `asr`"),
    ],
)
def test_trials_that_cannot_be_compared_are_refused(
    trials: list[Trial], metric: str | None, code: str, place: str
) -> None:
    with pytest.raises(DataError) as caught:
        choose(trials, margin=0.05, metric=metric)
    assert caught.value.code == code
    assert place in caught.value.message


@pytest.mark.parametrize("margin", [-0.01, 1.01, math.nan, math.inf])
def test_a_margin_outside_0_to_1_is_refused(margin: float) -> None:
    with pytest.raises(UserError) as caught:
        choose(sweep(ASR), margin=margin, metric=None)
    assert caught.value.code == "usage.margin_out_of_range"


def test_never_chooses_on_the_test_split() -> None:
    trials = sweep(ASR)
    trials[2] = dataclasses.replace(trials[2], split="test")
    with pytest.raises(ValueError, match="validation"):
        choose(trials, margin=0.05, metric=None)


# Hundredths: ties and bounds that are just reached come up often.
rates = st.integers(0, 100).map(lambda count: count / 100)
points = st.lists(st.tuples(rates, rates), min_size=1, max_size=4)


@given(base=rates, merged=points, margin=rates, metric=st.sampled_from(["call_match", "response_loss", None]))
def test_nothing_within_the_bound_is_better_or_without_it_nearer(
    base: float, merged: list[tuple[float, float]], margin: float, metric: str | None
) -> None:
    trials = [trial(0.0, asr=base)]
    for lam, (asr, task) in zip(GRID, merged, strict=False):
        trials.append(trial(lam, asr=asr, **({metric: task} if metric else {})))
    choice = choose(trials[::-1], margin=margin, metric=metric)
    # In whole hundredths the bound is exact.
    limit = round(100 * base) + round(100 * margin)
    asr_of = {t.point.lam: round(100 * (t.scores["asr"].value or 0)) for t in trials[1:]}
    allowed = [t for t in trials[1:] if asr_of[t.point.lam] <= limit]
    assert choice.within == bool(allowed)
    if not allowed:
        assert asr_of[choice.point.lam] == min(asr_of.values())
        return
    assert asr_of[choice.point.lam] <= limit
    if metric is None:
        assert choice.point.lam == max(t.point.lam for t in allowed)
        return
    values = {t.point.lam: t.scores[metric].value or 0.0 for t in allowed}
    best = min(values.values()) if metric == "response_loss" else max(values.values())
    assert values[choice.point.lam] == best
    ties = [lam for lam, value in values.items() if value == best]
    assert choice.point.lam == min(ties, key=lambda lam: (asr_of[lam], lam))


@given(merged=points, data=st.data())
def test_the_order_of_the_trials_does_not_matter(merged: list[tuple[float, float]], data: st.DataObject) -> None:
    trials = [trial(0.0, asr=0.1)]
    trials += [trial(lam, asr=a, call_match=m) for lam, (a, m) in zip(GRID, merged, strict=False)]
    shuffled = data.draw(st.permutations(trials))
    assert choose(shuffled, margin=0.05, metric="call_match") == choose(trials, margin=0.05, metric="call_match")


def test_the_knee_is_measured_from_the_base_and_not_from_zero() -> None:
    """At λ = 0.6 half of the gain costs a tenth of the rise in ASR; counted from zero, 0.4 would be the knee."""
    asr, match = [0.30, 0.30, 0.32, 0.34, 0.6, 0.7], [0.0, 0.1, 0.2, 0.5, 0.6, 0.7]
    choice = choose(sweep(asr, "call_match", match), settings=Select(policy="knee"), metric="call_match")
    above = [m / 0.7 - (a - 0.3) / 0.4 for a, m in zip(asr, match, strict=True)]
    assert choice.point.lam == [0.0, *GRID, 1.0][above.index(max(above))] == 0.6
