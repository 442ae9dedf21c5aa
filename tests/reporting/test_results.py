"""`results.json`: what goes in comes out, and the same results are the same bytes."""

import dataclasses
import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_sample import results

from mooring.errors import DataError
from mooring.merge_point import BASE, TUNED, MergePoint
from mooring.reporting.results import COLUMNS, Results, dumps, load


def by_place(made: Results) -> Results:
    """With the trials in the order of the file."""
    return dataclasses.replace(made, trials=sorted(made.trials, key=lambda t: (t.split, t.point)))


def test_comes_back_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text(dumps(results()), encoding="utf-8")
    assert load(tmp_path / "results.json") == by_place(results())
    assert load(tmp_path) == by_place(results())


@given(text=st.text(st.characters(codec=None)))
def test_any_text_comes_back(text: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("any") / "results.json"
    path.write_bytes(dumps(results(text, title=text)).encode("utf-8"))
    assert load(path) == by_place(results(text, title=text))


def test_the_order_in_which_results_were_gathered_does_not_show() -> None:
    made = results()
    shuffled = [dataclasses.replace(t, scores=dict(reversed(t.scores.items()))) for t in made.trials]
    random.Random(1).shuffle(shuffled)
    models = dict(reversed(made.models.items()))
    again = dataclasses.replace(made, trials=shuffled, models=models, gains=dict(reversed(made.gains.items())))
    assert dumps(again) == dumps(made)
    assert dumps(dataclasses.replace(made, title="other")) != dumps(made)


def test_whole_numbers_are_written_as_the_floats_that_they_are() -> None:
    whole = dataclasses.replace(results().choice, bound=1)
    assert dumps(results(choice=whole)) == dumps(results(choice=dataclasses.replace(whole, bound=1.0)))


def test_the_recipe_keeps_its_order(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text(dumps(results()), encoding="utf-8")
    assert list(load(tmp_path).recipe) == ["name", "seed", "base", "merge"]


def edited(change: Any) -> str:
    data = json.loads(dumps(results()))
    change(data)
    return json.dumps(data)


@pytest.mark.parametrize(
    ("text", "code", "place"),
    [
        ("", "data.bad_record", ""),
        (dumps(results())[:-40], "data.bad_record", ""),
        ("[]", "data.results_format", ""),
        (edited(lambda d: d.pop("format")), "data.results_format", ""),
        (edited(lambda d: d.update(format="4")), "data.results_format", ""),
        (edited(lambda d: d.update(format=1)), "data.results_format", ""),
        (edited(lambda d: d.update(format=6)), "data.results_format", ""),
        (edited(lambda d: d["rows"][0].pop("split")), "data.bad_results", "`rows.0.split`"),
        (edited(lambda d: d.pop("choice")), "data.bad_results", "`choice`"),
        (edited(lambda d: d.update(extra=1)), "data.bad_results", "`extra`"),
        (edited(lambda d: d["changes"].pop("layers")), "data.bad_results", "`changes.layers`"),
        (edited(lambda d: d["changes"]["relative"].pop()), "data.bad_results", "`changes`"),
        (edited(lambda d: d["changes"]["relative"][0].pop()), "data.bad_results", "`changes`"),
        (edited(lambda d: d["changes"]["outside"].update(x=-1.0)), "data.bad_results", "`changes`"),
        (edited(lambda d: d["trials"][0].update(split="tune")), "data.bad_results", "`trials.0.split`"),
        (
            edited(lambda d: d["trials"][0]["scores"]["asr"].update(value="high")),
            "data.bad_results",
            "`trials.0.scores.asr.value`",
        ),
        (edited(lambda d: d["choice"].update(bound=float("nan"))), "data.bad_record", ""),
    ],
)
def test_a_file_that_is_something_else_is_refused(tmp_path: Path, text: str, code: str, place: str) -> None:
    path = tmp_path / "results.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError) as caught:
        load(path)
    assert caught.value.code == code
    assert str(path) in str(caught.value)
    assert place in caught.value.message
    assert "\n" not in str(caught.value)


def test_a_missing_or_binary_file_is_refused(tmp_path: Path) -> None:
    for content, code in ((None, "data.unreadable"), (b"\xff\xfe\x00", "data.not_utf8")):
        if content:
            (tmp_path / "results.json").write_bytes(content)
        with pytest.raises(DataError) as caught:
            load(tmp_path)
        assert caught.value.code == code


def test_each_column_is_the_model_at_a_point() -> None:
    assert [results().point(model) for model in COLUMNS] == [BASE, TUNED, MergePoint(0.4)]
