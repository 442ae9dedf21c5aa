"""From lm-eval's results to scores: the mean of a group, intervals, and metrics that are not means."""

from typing import Any

import pytest

from mooring.pipeline.lm_eval.scores import interval, to_scores
from mooring.stats import wilson


def task(metric: str, value: Any, values: list[Any], name: str = "none") -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A row of results, and the samples behind it."""
    row = {"alias": "a", "sample_len": len(values), f"{metric},{name}": value, f"{metric}_stderr,{name}": "N/A"}
    return row, [{"doc_id": number, "filter": name, metric: single} for number, single in enumerate(values)]


def results(**tasks: tuple[dict[str, Any], list[dict[str, Any]]]) -> dict[str, Any]:
    return {
        "results": {name: row for name, (row, _) in tasks.items()},
        "samples": {name: rows for name, (_, rows) in tasks.items()},
        "n-samples": {name: {"effective": len(rows)} for name, (_, rows) in tasks.items()},
        "n-shot": dict.fromkeys(tasks, 3),
        "versions": dict.fromkeys(tasks, 2.0),
        "higher_is_better": {name: {} for name in tasks},
        "group_subtasks": {},
    }


def test_a_group_pools_its_questions_and_reports_the_mean_of_its_tasks() -> None:
    measured = results(a=task("exact_match", 0.5, [1.0, 0.0]), b=task("exact_match", 1.0, [1.0] * 6))
    measured["results"]["g"] = {"alias": "g", "exact_match,none": 7 / 8, "exact_match_stderr,none": 0.1}
    measured["group_subtasks"] = {"g": ["a", "b"]}
    scores = to_scores(measured, ["g"], "lm-eval 1", {"a": "rows of a"})
    assert list(scores) == ["lm_eval:g", "lm_eval:a", "lm_eval:b"]
    group = scores["lm_eval:g"]
    assert (group.value, group.n, group.details["mean_of_tasks"]) == (7 / 8, 8, 0.75)
    assert (group.low, group.high) == wilson(7, 8)
    assert group.each == {"a/0": 1.0, "a/1": 0.0, **{f"b/{number}": 1.0 for number in range(6)}}
    assert scores["lm_eval:a"].each == {"0": 1.0, "1": 0.0}
    assert scores["lm_eval:a"].method == "lm-eval 1, a v2.0, 3-shot, exact_match,none, rows of a"
    assert (scores["lm_eval:a"].low, scores["lm_eval:a"].high) == wilson(1, 2)


def test_a_group_without_a_mean_has_no_score() -> None:
    measured = results(a=task("acc", 1.0, [1.0]))
    measured["results"]["g"] = {"alias": "g"}
    measured["group_subtasks"] = {"g": ["a"]}
    assert list(to_scores(measured, ["g"], "m", {})) == ["lm_eval:a"]


def test_other_metrics_are_details_and_lower_may_be_better() -> None:
    row, samples = task("loss", 2.0, [1.0, 3.0])
    row["other,none"] = 7
    measured = results(a=(row, samples))
    measured["higher_is_better"]["a"] = {"loss": False}
    score = to_scores(measured, ["a"], "m", {})["lm_eval:a"]
    assert (score.better, score.details) == ("lower", {"other,none": 7.0})
    assert score.low == pytest.approx(2 - 1.96 * 2**0.5 / 2**0.5, abs=1e-3)


def test_intervals() -> None:
    assert interval(0.5, [0.0, 1.0]) == wilson(1, 2)
    assert interval(0.7, [0.0, 1.0]) == (None, None)  # not their mean
    assert interval(0.5, []) == (None, None)
    assert interval(0.3, [0.3]) == (None, None)
    assert interval(2.0, [2.0, 2.0, 2.0]) == (2.0, 2.0)


def test_values_that_are_not_numbers_have_no_interval() -> None:
    score = to_scores(results(a=task("ppl", 3.0, [(1, 2), (3, 4)])), ["a"], "m", {})["lm_eval:a"]
    assert (score.value, score.low, score.high, score.n) == (3.0, None, None, 2)


def test_truncated_prompts_are_counted_in_the_record() -> None:
    measured = results(a=task("acc", 0.5, [1.0, 0.0]), b=task("acc", 1.0, [1.0]), c=task("acc", 1.0, [1.0]))
    measured["results"]["g"] = {"alias": "g", "acc,none": 2 / 3}
    measured["group_subtasks"] = {"g": ["a", "b"]}
    scores = to_scores(measured, ["g"], "m", {}, {"a": 2, "b": 1, "c": 0})
    assert {name: score.details["truncated"] for name, score in scores.items()} == {
        "lm_eval:g": 3,
        "lm_eval:a": 2,
        "lm_eval:b": 1,
        "lm_eval:c": 0,
    }
    expected = [
        "3 prompts truncated on the left",
        "2 prompts truncated on the left",
        "1 prompt truncated on the left",
        "acc,none",
    ]
    assert [score.method.rpartition(", ")[2] for score in scores.values()] == expected
    assert "truncated" not in to_scores(measured, ["g"], "m", {})["lm_eval:g"].details
