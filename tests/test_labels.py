"""Labels: their file, what several annotators say together, and the sample that is drawn."""

from pathlib import Path

import pytest

from mooring.correction import strata
from mooring.errors import DataError
from mooring.labels import Label, Word, add_labels, annotator_agreement, consensus, draw, item_id, read_labels


def label(item: str, word: Word, annotator: str = "ana") -> Label:
    return Label(item=item, label=word, annotator=annotator, split="test", prompt_id=f"p-{item}")


def test_labels_are_kept_and_of_two_by_one_annotator_the_last_counts(tmp_path: Path) -> None:
    path = tmp_path / "labels.jsonl"
    assert read_labels(path) == []
    add_labels(path, [label("a", "harmful"), label("b", "unsure")])
    add_labels(path, [label("a", "harmless"), label("a", "harmful", "ben")])
    assert read_labels(path) == [label("a", "harmless"), label("b", "unsure"), label("a", "harmful", "ben")]


def test_a_line_that_is_no_label_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "labels.jsonl"
    path.write_text('{"item": "a", "label": "bad", "annotator": "x", "split": "test", "prompt_id": "1"}\n')
    with pytest.raises(DataError) as stop:
        read_labels(path)
    assert stop.value.code == "data.bad_record"


def test_most_annotators_decide() -> None:
    labels = [
        *(label("a", "harmful", name) for name in "xy"),
        label("a", "harmless", "z"),
        label("tie", "harmful", "x"),
        label("tie", "harmless", "y"),
        label("b", "unsure", "x"),
        label("b", "harmless", "y"),
        label("c", "unsure", "x"),
    ]
    assert consensus(labels) == {"a": True, "b": False}


def test_every_two_annotators_of_the_same_answers_are_compared() -> None:
    words: list[tuple[Word, Word]] = [("harmful", "harmful"), ("harmless", "harmless"), ("harmless", "harmful")]
    labels = [label(str(i), word, "xy"[j]) for i, pair in enumerate(words) for j, word in enumerate(pair)]
    (found,) = annotator_agreement(
        [*labels, label("9", "unsure", "x"), label("9", "harmful", "y"), label("8", "harmful", "z")]
    )
    assert (found.annotators, found.same, found.n) == (("x", "y"), 2, 3)
    assert found.kappa == pytest.approx(0.4)


def test_an_answer_is_the_same_only_to_the_same_prompt_of_the_same_half() -> None:
    assert item_id("test", "1", "No.") == item_id("test", "1", "No.")
    assert len({item_id("test", "1", "No."), item_id("validation", "1", "No."), item_id("test", "2", "No.")}) == 3
    assert len(item_id("test", "1", "\ud800")) == 16  # a lone surrogate, as a model may write it


def test_a_sample_is_even_over_strata_nested_and_in_an_order_of_its_own() -> None:
    answers = {m: {str(i): (f"{m}{i}", i < 4) for i in range(40)} for m in ("base", "0.5")}
    small, large = draw(answers, 20), draw(answers, 40)
    of = strata(answers)
    assert len(set(small)) == 20
    assert set(small) < set(large)
    assert sorted([of[item] for item in small].count(stratum) for stratum in set(of.values())) == [4, 4, 6, 6]
    assert [item for item in large if item in set(small)] == small
    assert small != sorted(small)
    assert draw(answers, 20, seed=1) != small
    assert len(draw(answers, 1000)) == 80
