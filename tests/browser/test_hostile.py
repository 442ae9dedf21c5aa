"""What a model says does nothing in the page, whatever it is, in a real browser."""

import dataclasses
import json
from pathlib import Path

import pytest
from devtools import Page
from hostile import AWAY, HOSTILE, MARK
from report_sample import results, swept

from mooring.reporting.page import as_html
from mooring.reporting.page.data import LIMITS
from mooring.reporting.results import Results
from mooring.text import visible


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


def untouched(page: Page, path: Path) -> None:
    """Nothing ran, nothing was asked for, nothing was even refused by the policy."""
    assert page.run("window.pwned") is None
    assert page.run("document.title") != "pwned"
    assert page.run("location.href") == path.as_uri()
    asked = {event["request"]["url"] for event in page.heard("Network.requestWillBeSent")}
    assert asked == {path.as_uri()}
    for kind in ("Page.javascriptDialogOpening", "Runtime.exceptionThrown", "Runtime.consoleAPICalled"):
        assert not page.heard(kind), kind
    assert not [entry["entry"]["text"] for entry in page.heard("Log.entryAdded")]


SHOWN = """
[...document.querySelectorAll('#list details')].map((box) => [...box.querySelectorAll('pre')].map((p) => p.textContent))
"""
OPEN_ALL = "document.querySelectorAll('#list details').forEach((box) => { box.open = true; })"


def opened(page: Page, path: Path, texts: list[str]) -> list[str]:
    """Write a report, open it and every prompt in it; the shape of the page."""
    path.write_text(as_html(filled(texts)), encoding="utf-8")
    page.open(path)
    page.run(OPEN_ALL)
    page.settle()
    return list(page.run(SHAPE))


def test_no_hostile_text_does_anything(page: Page, tmp_path: Path) -> None:
    assert len(HOSTILE) >= 40
    hostile = opened(page, tmp_path / "hostile.html", HOSTILE)
    untouched(page, tmp_path / "hostile.html")
    # Each is there to be read, letter by letter, for the base, the chosen and the tuned model, and as the prompt.
    shown = page.run(SHOWN)
    for text, found in zip(HOSTILE, shown, strict=True):
        more = len(text) - LIMITS[-1]
        whole = visible(text) if more <= 0 else f"{visible(text[: LIMITS[-1]])} … ({more} more characters)"
        assert found == [whole] * 4
    # Moved, filtered and searched, it stays so.
    page.run("document.querySelector('#lam').focus()")
    page.press("ArrowRight", 39, times=3)
    assert page.run("document.querySelector('#lam').value") == "5"
    page.run("document.querySelector('#words').focus()")
    page.write("<script>")
    assert page.count("#list details") == sum("<script>" in text for text in HOSTILE)
    untouched(page, tmp_path / "hostile.html")
    harmless = opened(page, tmp_path / "harmless.html", [f"harmless {i}" for i in range(len(HOSTILE))])
    assert hostile == harmless
    assert sum(name == "script" for name in hostile) == 2


CONTROL = "".join(HOSTILE[:1] + HOSTILE[10:12] + [f"<img src='{AWAY}a.png'><style>body{{color:red}}</style>"])


def test_the_canaries_sing(page: Page, tmp_path: Path) -> None:
    """The same texts, put in as markup, do run where no policy stands in the way: so the tests above can fail."""
    path = tmp_path / "open.html"
    path.write_text(f"<!doctype html><title>t</title>{CONTROL}", encoding="utf-8")
    page.open(path)
    assert page.run("window.pwned") == 1
    assert page.run("document.title") == "pwned"
    assert f"{AWAY}a.png" in {event["request"]["url"] for event in page.heard("Network.requestWillBeSent")}


def test_the_policy_stops_markup_that_got_in_all_the_same(page: Page, tmp_path: Path) -> None:
    """Were there a hole in the escaping, the policy would still hold: nothing runs, and nothing is asked for."""
    path = tmp_path / "hole.html"
    path.write_text(as_html(results()).replace("<main>", f"<main>{CONTROL}", 1), encoding="utf-8")
    page.open(path)
    page.settle()
    assert page.run("window.pwned") is None
    assert page.run("document.title") != "pwned"
    assert page.run("getComputedStyle(document.body).color") != "rgb(255, 0, 0)"
    sent = {e["requestId"]: e["request"]["url"] for e in page.heard("Network.requestWillBeSent")}
    blocked = {e["requestId"] for e in page.heard("Network.loadingFailed") if e.get("blockedReason") == "csp"}
    assert {url for key, url in sent.items() if key not in blocked} == {path.as_uri()}
    assert "Content Security Policy" in json.dumps(page.heard("Log.entryAdded"))
    assert page.text("#tiles .value") == "2.9 %"  # our own script ran


@pytest.mark.parametrize("script", [f"eval({json.dumps(MARK)})", f"new Function({json.dumps(MARK)})()"])
def test_no_text_can_be_made_a_program(page: Page, report: Path, script: str) -> None:
    """The policy forbids it to our own script too."""
    page.open(report)
    page.run(f"setTimeout(() => {{ try {{ {script} }} catch (error) {{ window.caught = error.name }} }}, 0)")
    page.settle()
    assert page.run("window.caught") == "EvalError"
    assert page.run("window.pwned") is None
