"""Models compared on the same prompts."""

import pytest

from mooring.errors import DataError
from mooring.merge_point import MergePoint
from mooring.records import Score, Trial
from mooring.selection.limits import with_flips
from mooring.stats import Flips, compare_rates, compare_scores, flips


def trial(lam: float, **values: float | None) -> Trial:
    scores = {
        name: Score(name=name, value=value, low=None, high=None, n=10, better="lower", method="rules")
        for name, value in values.items()
    }
    return Trial(point=MergePoint(lam), method="linear", split="test", scores=scores)


BASE = {"a": False, "b": False, "c": True, "d": True, "e": None, "f": False}
OTHER = {"a": True, "b": False, "c": False, "d": True, "e": True, "f": None}


def test_flips_leave_misses_out() -> None:
    assert flips(BASE, OTHER) == Flips(pairs=4, worse=1, better=1)
    assert flips(BASE, {}) == Flips(0, 0, 0)


def test_trials_carry_their_flips_and_the_base_none() -> None:
    trials = [trial(0.0, asr=0.5, loss=1.0), trial(0.5, asr=0.5, loss=1.0), trial(0.6, asr=0.5)]
    base, half, other = with_flips(trials, {"asr": {MergePoint(0.0): BASE, MergePoint(0.5): OTHER}})
    assert base == trials[0]
    assert other == trials[2]
    # An answer that could not be judged counts as harmless of the base and as harmful of the other model.
    judged = {"judged_pairs": 4, "judged_worse": 1, "judged_better": 1}
    assert half.scores["asr"].details == {"pairs": 6, "worse": 3, "better": 1, **judged}
    assert half.scores["loss"] == trials[1].scores["loss"]


def test_rates_are_compared_in_pairs() -> None:
    first = {str(n): False for n in range(40)}
    second = {str(n): n < 9 for n in range(40)}
    found = compare_rates(first, second)
    assert found.value == 9 / 40
    assert (found.n, found.worse, found.better) == (40, 9, 0)
    assert found.p == pytest.approx(2 / 2**9)
    assert found.low is not None
    assert found.high is not None
    assert 0.1 < found.low < found.value < found.high < 0.4
    turned = compare_rates(second, first)
    assert (turned.low, turned.high) == pytest.approx((-found.high, -found.low))
    assert compare_rates({"a": None}, {"a": True}).value is None


def test_scores_are_compared_in_pairs() -> None:
    """A difference that is the same on every prompt has no width, however the prompts differ among themselves."""
    first = {str(n): float(n % 7) for n in range(50)}
    second = {key: value + 0.25 for key, value in first.items()}
    found = compare_scores(first, second)
    assert found.value == pytest.approx(0.25)
    assert (found.low, found.high) == pytest.approx((0.25, 0.25))
    assert found.p is None


def test_losses_are_weighed_by_tokens() -> None:
    found = compare_scores({"a": 10.0, "b": 2.0}, {"a": 5.0, "b": 2.0}, weights={"a": 10, "b": 2})
    assert found.value == pytest.approx(7 / 12 - 1)
    assert found.low == pytest.approx(-0.5)  # only `a` was drawn
    assert found.high == 0
    assert compare_scores({}, {}).value is None
    with pytest.raises(DataError) as caught:
        compare_scores({"a": 1.0}, {"a": 1.0}, weights={"b": 1.0})
    assert caught.value.code == "data.no_weight"


def test_models_with_other_prompts_do_not_compare() -> None:
    with pytest.raises(DataError) as caught:
        compare_rates({"a": True, "b": True}, {"a": True, "c": True})
    assert caught.value.code == "data.unpaired"
    assert "2 prompts" in str(caught.value)
    with pytest.raises(DataError) as caught:
        compare_scores({"a": 1.0}, {})
    assert caught.value.code == "data.unpaired"
