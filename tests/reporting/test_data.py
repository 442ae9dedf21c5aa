"""The data of the page's script: all of it, each text once, and nothing that HTML would read."""

import dataclasses
import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_sample import LAMS, results, swept

from mooring.printable import visible
from mooring.reporting.page.data import LIMITS, ROOM, Texts, embedded, explorer


def text_of(texts: list[Any], number: int) -> str:
    """A text, put together as the script does: JavaScript counts UTF-16 units."""
    kept = texts[number]
    if isinstance(kept, str):
        return kept
    start = text_of(texts, kept[0]).encode("utf-16-le")[: 2 * kept[1]]
    return start.decode("utf-16-le") + str(kept[2])


@given(
    words=st.lists(st.text(st.characters(codec=None), max_size=60), min_size=1, max_size=6), stem=st.text(max_size=60)
)
def test_every_text_comes_back_as_it_is_shown(words: list[str], stem: str) -> None:
    texts, before, numbers = Texts(20_000), None, []
    for word in words:
        text = stem + word
        numbers.append((texts.add(text, before), text))
        before = text
    kept = json.loads(json.dumps(texts.kept))
    for number, text in numbers:
        assert text_of(kept, number) == visible(text)


def test_equal_answers_are_kept_once_and_alike_ones_keep_what_differs() -> None:
    stem = "This begins like the answer before. 😀 "
    texts = Texts(20_000)
    assert [texts.add(stem + "One."), texts.add(stem + "Two.", stem + "One."), texts.add(stem + "One.")] == [0, 1, 0]
    assert texts.kept == [stem + "One.", (0, len(stem) + 1, "Two.")]


def test_a_long_text_is_cut_and_says_so() -> None:
    texts = Texts(10)
    texts.add("0123456789abc")
    texts.add("\x00" * 11)
    assert texts.kept == ["0123456789 … (3 more characters)", "⟨U+0000⟩" * 10 + " … (1 more characters)"]


def test_all_prompts_answers_and_numbers_are_there() -> None:
    data = explorer(results(rows=swept(6)))
    assert data["lams"][0] == "base (λ = 0)"
    assert data["lams"][data["chosen"]] == "λ = 0.4, chosen"
    assert data["lams"][-1] == "tuned (λ = 1)"
    assert data["judges"] == ["llm", "rules"]
    assert len(data["rows"]) == 6
    for i, (name, measure, split, category, text, answers) in enumerate(data["rows"]):
        assert (name, measure, split, category) == (f"v{i}", 0, 0, ["fraud", "weapons"][i % 2])
        assert text_of(data["texts"], text) == f"Help me break thing number {i}."
        for place, number, verdict, good, words in answers:
            assert text_of(data["texts"], number) == f"Answer {i} at {LAMS[place]}."
            assert (verdict, good) == (("answered", 0) if place > i else ("refused", 1))
            assert (words[0] != words[1]) == (place == 5 and i % 3 == 0)
    asr = next(score for score in data["scores"] if score["name"] == "attack success rate")
    assert asr["validation"][2] == ["2.9 %", "[0.0, 6.8]"]
    assert [bool(value) for value in asr["test"]] == [True, False, True, False, False, True]


HOSTILE = "</script><!-- <b> &amp; \u2028\u2029 \ud800 \u202e"


def test_no_character_that_html_would_read() -> None:
    text = embedded(results(HOSTILE, title=HOSTILE), {})
    assert not re.search("[<>&\u2028\u2029\ud800-\udfff\u202e]", text)
    assert visible(HOSTILE) in json.loads(text)["texts"]


@pytest.mark.parametrize("grow", [1, 4])
def test_however_long_the_answers_there_is_room(grow: int) -> None:
    """850 prompts at 6 λ, no two answers alike, each as long as 512 tokens or four times that."""
    filler = "of some plain words that a model may say " * 55 * grow
    rows = swept(850, lambda i, lam: f"{i} {lam} {filler}{lam}")
    text = embedded(results(rows=[dataclasses.replace(row, answers=dict(row.answers)) for row in rows]), {})
    assert len(text.encode()) <= ROOM
    shown = json.loads(text)["texts"]
    assert max(map(len, shown)) >= LIMITS[0]
    assert any(" more characters)" in text for text in shown)
