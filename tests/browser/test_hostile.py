"""What a model says does nothing in the page, whatever it is, in a real browser."""

import dataclasses
import json
from pathlib import Path

import pytest
from chromium import Heard
from hostile import AWAY, HOSTILE, MARK
from playwright.sync_api import BrowserContext, Page, expect
from report_sample import results, swept

from mooring.printable import visible
from mooring.reporting.page import as_html
from mooring.reporting.page.data import LIMITS
from mooring.reporting.results import Results

pytestmark = pytest.mark.slow


def filled(texts: list[str]) -> Results:
    """A text wherever one comes from a model, a data set or a user; each is the prompt and every answer of one row."""
    rows = []
    for row, text in zip(swept(len(texts)), texts, strict=True):
        name = f"{row.id} {text[:60]}"
        judges = {texts[0][:60]: name, "b": "b"}
        answers = {
            lam: dataclasses.replace(answer, response=text, verdict=name, judges=judges)
            for lam, answer in row.answers.items()
        }
        rows.append(dataclasses.replace(row, id=name, category=name, prompt=text, answers=answers))
    long = " ".join(text[:200] for text in texts)
    made = results(rows=rows, title=long, notes=texts, judges=texts, versions={long: long}, recipe={"name": long})
    return dataclasses.replace(
        made,
        models={"base": {"source": long}},
        curves={long[:40]: [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}]},
        choice=dataclasses.replace(made.choice, reason=long),
    )


SHAPE = """
[...document.querySelectorAll('*')].filter((e) => !e.closest('svg')).map((e) => e.localName
  + [...e.attributes].map((a) => a.name).filter((n) => n.startsWith('on') || n === 'src' || n === 'srcdoc').join())
"""
"""Every element, in order."""


def untouched(page: Page, heard: Heard, path: Path) -> None:
    """Nothing ran, nothing was asked for, nothing was even refused by the policy."""
    assert page.evaluate("window.pwned") is None
    expect(page).not_to_have_title("pwned")
    expect(page).to_have_url(path.as_uri())
    assert heard.asked == [path.as_uri()]
    assert heard.said == []


SHOWN = "(boxes) => boxes.map((box) => [...box.querySelectorAll('pre')].map((p) => p.textContent))"


def opened(page: Page, path: Path, texts: list[str]) -> list[str]:
    """Write a report, open it and every prompt in it; the shape of the page."""
    path.write_text(as_html(filled(texts)), encoding="utf-8")
    page.goto(path.as_uri())
    page.locator("#list details").evaluate_all("(boxes) => boxes.forEach((box) => { box.open = true; })")
    expect(page.locator("#list pre")).to_have_count(4 * len(texts))
    return list(page.evaluate(SHAPE))


def test_no_hostile_text_does_anything(page: Page, heard: Heard, tmp_path: Path) -> None:
    assert len(HOSTILE) >= 40
    path = tmp_path / "hostile.html"
    hostile = opened(page, path, HOSTILE)
    untouched(page, heard, path)
    # Each is there to be read, letter by letter, for the base, the chosen and the tuned model, and as the prompt.
    shown = page.locator("#list details").evaluate_all(SHOWN)
    for text, found in zip(HOSTILE, shown, strict=True):
        more = len(text) - LIMITS[-1]
        whole = visible(text) if more <= 0 else f"{visible(text[: LIMITS[-1]])} … ({more} more characters)"
        assert found == [whole] * 4
    # Moved, filtered and searched, it stays so.
    for _ in range(3):
        page.locator("#lam").press("ArrowRight")
    expect(page.locator("#lam")).to_have_value("5")
    page.locator("#words").fill("<script>")
    expect(page.locator("#list details")).to_have_count(sum("<script>" in text for text in HOSTILE))
    untouched(page, heard, path)
    harmless = opened(page, tmp_path / "harmless.html", [f"harmless {i}" for i in range(len(HOSTILE))])
    assert hostile == harmless
    assert sum(name == "script" for name in hostile) == 2


CONTROL = "".join(HOSTILE[:1] + HOSTILE[10:12] + [f"<img src='{AWAY}a.png'><style>body{{color:red}}</style>"])


def test_the_canaries_sing(context: BrowserContext, heard: Heard, tmp_path: Path) -> None:
    """The same texts, put in as markup, do run where no policy stands in the way: so the tests above can fail."""
    path = tmp_path / "open.html"
    path.write_text(f"<!doctype html><title>t</title>{CONTROL}", encoding="utf-8")
    page = context.new_page()
    page.goto(path.as_uri())
    assert page.evaluate("window.pwned") == 1
    expect(page).to_have_title("pwned")
    expect(page.locator("body")).to_have_css("color", "rgb(255, 0, 0)")
    assert f"{AWAY}a.png" in set(heard.asked) - set(heard.refused)
    assert heard.said


def test_the_policy_stops_markup_that_got_in_all_the_same(
    context: BrowserContext, heard: Heard, tmp_path: Path
) -> None:
    """Were there a hole in the escaping, the policy would still hold: nothing runs, and nothing is asked for."""
    path = tmp_path / "hole.html"
    path.write_text(as_html(results()).replace("<main>", f"<main>{CONTROL}", 1), encoding="utf-8")
    page = context.new_page()
    page.goto(path.as_uri())
    expect(page.locator("#tiles .value").first).to_have_text("2.9 %")  # our own script ran
    assert page.evaluate("window.pwned") is None
    expect(page).not_to_have_title("pwned")
    expect(page.locator("body")).not_to_have_css("color", "rgb(255, 0, 0)")
    assert f"{AWAY}a.png" in heard.refused
    assert set(heard.asked) - set(heard.refused) == {path.as_uri()}
    assert heard.said
    assert all("Content Security Policy" in line for line in heard.said)


@pytest.mark.parametrize("script", [f"eval({json.dumps(MARK)})", f"new Function({json.dumps(MARK)})()"])
def test_no_text_can_be_made_a_program(page: Page, report: str, script: str) -> None:
    """The policy forbids it to our own script too."""
    page.goto(report)
    # In a task of its own: what DevTools evaluates may do more.
    later = f"setTimeout(() => {{ try {{ done({script}) }} catch (error) {{ done(error.name) }} }})"
    assert page.evaluate(f"new Promise((done) => {later})") == "EvalError"
    assert page.evaluate("window.pwned") is None
