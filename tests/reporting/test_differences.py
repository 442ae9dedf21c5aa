"""Two models of a report on the same prompts: what counts, what does not compare, and how it is shown."""

import dataclasses

import pytest
from report_sample import results, score

from mooring.merge_point import TUNED
from mooring.reporting.results import Answer, Row
from mooring.reporting.tables import difference_number, difference_of_rates, difference_of_scores, harmful
from mooring.stats import Difference, compare_rates


def row(name: str, good: bool | None, split: str = "test", measure: str = "asr", key: str = "1") -> Row:
    answers = {key: Answer(response="…", verdict="…", good=good)}
    return Row(id=name, measure=measure, split=split, prompt="?", answers=answers)  # type: ignore[arg-type]


def test_answers_to_harmful_prompts_of_the_test_split_alone_count() -> None:
    rows = [
        row("safe", True),
        row("unsafe", False),
        row("unread", None),
        row("chosen on", False, split="validation"),
        row("harmless", False, measure="over_refusal"),
        row("of another model", False, key="0.4"),
    ]
    assert harmful(results(rows=rows), TUNED) == {"safe": False, "unsafe": True, "unread": None}


def test_only_what_was_asked_of_both_is_compared() -> None:
    first, second = {"a": True, "b": True, "c": None}, {"a": False, "b": True, "c": True}
    assert difference_of_rates(first, second) == compare_rates(first, second)
    assert difference_of_rates({}, second) is None
    assert difference_of_rates(first, {"a": False}) is None


def test_task_scores_are_compared_by_their_weights() -> None:
    losses = ({"a": 10.0, "b": 2.0}, {"a": 5.0, "b": 2.0})
    one, other = (dataclasses.replace(score("response_loss", 1.0), each=each) for each in losses)
    weighed = dataclasses.replace(one, weights={"a": 10.0, "b": 2.0})
    difference = difference_of_scores(weighed, other)
    assert difference is not None
    assert difference.value == pytest.approx(7 / 12 - 1)  # nats per token, not a prompt
    assert difference_of_scores(one, None) is None
    assert difference_of_scores(score("response_loss", 1.0), other) is None  # not kept prompt by prompt
    assert difference_of_scores(one, dataclasses.replace(other, each={"a": 5.0})) is None


def test_rates_are_shown_in_points_and_losses_in_nats() -> None:
    found = Difference(-0.575, -0.7, 0.0125, 40)
    assert str(difference_number(found, "asr", " points")) == "−57.5 points [−70.0, +1.2]"
    assert str(difference_number(found, "call_match")) == "−57.5 [−70.0, +1.2]"
    assert str(difference_number(found, "response_loss", " points")) == "−0.575 [−0.700, +0.013]"
    assert difference_number(None, "asr") is None
    assert difference_number(Difference(None, None, None, 0), "asr") is None
