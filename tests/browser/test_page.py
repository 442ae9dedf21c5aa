"""The page at work: real clicks and keys on the slider, the filters and the search."""

import dataclasses
from pathlib import Path

import pytest
from devtools import Page
from report_sample import CURVES, LAMS, results, swept

from mooring.reporting.page import as_html
from mooring.reporting.results import BY_MODULE, Answer, Results, redact

IDS = "[...document.querySelectorAll('#list .id')].map((e) => e.textContent)"


def tiles(page: Page) -> dict[str, str]:
    """The big number of each measure."""
    found = page.run(
        "[...document.querySelectorAll('#tiles div')].map((t) => [t.querySelector('dt').textContent, "
        "t.querySelectorAll('dd')[0].textContent])"
    )
    return {name.partition("\u00a0")[0].rstrip(" ↑↓"): value for name, value in found}


def unsafe_at(place: int) -> list[str]:
    """Prompts that the base refuses and the model at this λ does not (see `swept`)."""
    return [f"v{i}" for i in range(12) if place >= 1 + i % len(LAMS)]


def test_a_click_on_the_slider_moves_numbers_figures_and_answers(page: Page, report: Path) -> None:
    page.open(report)
    assert page.text("output") == "λ = 0.4, chosen"
    assert tiles(page)["attack success rate"] == "2.9 %"
    page.click("#list details:nth-of-type(2) summary")  # v1 turns unsafe at the second step
    before = page.run("[...document.querySelectorAll('.cursor')].map((c) => c.getAttribute('cx'))")
    page.click("#lam", along=0.8)
    assert page.text("output") == "λ = 0.8"
    assert tiles(page)["attack success rate"] == f"{100 * CURVES['asr'][0.8]:.1f} %"
    assert tiles(page)["call match"] == f"{100 * CURVES['call_match'][0.8]:.1f} %"
    after = page.run("[...document.querySelectorAll('.cursor')].map((c) => c.getAttribute('cx'))")
    assert (len(before), len(after)) == (3, 3)
    assert all(float(b) > float(a) for a, b in zip(before, after, strict=True))
    assert page.text(".answer:nth-child(2) h4") == "λ = 0.8: ✗ answered"
    assert page.text(".answer:nth-child(2) pre") == "Answer 1 at 0.8."
    page.click("#lam", along=0.2)
    assert page.text(".answer:nth-child(2) h4") == "λ = 0.2: ✓ refused"
    assert page.text(".answer:nth-child(1) pre") == "Answer 1 at 0."
    assert page.text(".answer:nth-child(3) pre") == "Answer 1 at 1."


def test_the_cursor_lies_on_the_curve(page: Page, report: Path) -> None:
    """At the chosen λ it lies where the figure has its ring."""
    page.open(report)
    rings = page.run(
        "[...document.querySelectorAll('.cursor')].map((c) => { const b = c.getBoundingClientRect(); "
        "return [b.left + b.width / 2, b.top + b.height / 2] })"
    )
    drawn = page.run(
        "[...document.querySelectorAll('figure svg use, figure svg path')].map((e) => e.getBoundingClientRect())"
        ".filter((b) => b.width > 14 && Math.abs(b.width - b.height) < 1 && b.width < 40)"
        ".map((b) => [b.left + b.width / 2, b.top + b.height / 2])"
    )
    for ring in rings:
        assert any(abs(ring[0] - x) < 1.5 and abs(ring[1] - y) < 1.5 for x, y in drawn), (ring, drawn)


def test_what_was_not_measured_at_a_lambda_is_said_so(page: Page, tmp_path: Path, sample: Results) -> None:
    trials = [
        dataclasses.replace(t, scores={n: s for n, s in t.scores.items() if n != "over_refusal" or t.split == "test"})
        for t in sample.trials
    ]
    (tmp_path / "index.html").write_text(as_html(dataclasses.replace(sample, trials=trials)), encoding="utf-8")
    page.open(tmp_path / "index.html")
    assert tiles(page)["over-refusal (look-alikes)"] == "26.0 %"
    page.click("#lam", along=0.2)
    assert tiles(page)["over-refusal (look-alikes)"] == "not measured here"


@pytest.mark.parametrize("place", [1, 3, 5])
def test_filters_show_what_they_say(page: Page, report: Path, place: int) -> None:
    page.open(report)
    page.click("#lam", along=place / 5)
    page.click("[data-kind=unsafe]")
    assert page.run(IDS) == unsafe_at(place)
    assert page.text("[data-kind=unsafe]") == f"became unsafe {len(unsafe_at(place))}"
    assert page.run("document.querySelector('[data-kind=unsafe]').getAttribute('aria-pressed')") == "true"
    page.click("[data-kind=again]")
    assert page.run(IDS) == [f"v{i}" for i in range(12) if f"v{i}" in unsafe_at(5) and f"v{i}" not in unsafe_at(place)]
    page.click("[data-kind=parted]")
    assert page.run(IDS) == (["v0", "v3", "v6", "v9"] if place == 5 else [])
    assert page.text("[data-kind=refused]") == "over-refused –"
    page.click("[data-kind=all]")
    assert len(page.run(IDS)) == 12
    page.click("#bars-box summary")
    count = sum(f"v{i}" in unsafe_at(place) for i in range(0, 12, 2))
    assert page.text("#bars .line:first-child").split("\n") == ["fraud · attack success rate", f"{count} / 6"]


def test_over_refused_prompts_are_found(page: Page, tmp_path: Path) -> None:
    rows = [
        dataclasses.replace(
            row,
            measure="over_refusal",
            answers={k: dataclasses.replace(a, good=a.verdict == "answered") for k, a in row.answers.items()},
        )
        for row in swept(6)
    ]
    (tmp_path / "index.html").write_text(as_html(results(rows=rows)), encoding="utf-8")
    page.open(tmp_path / "index.html")
    page.click("[data-kind=refused]")
    assert page.run(IDS) == ["v2", "v3", "v4", "v5"]
    assert page.text("[data-kind=unsafe]") == "became unsafe –"
    assert "harmful request" not in page.text("#list")


def test_search_finds_prompts_answers_and_ids(page: Page, report: Path) -> None:
    page.open(report)
    page.click("#words")
    page.write("answer 7 AT 0.6")
    assert page.run(IDS) == ["v7"]
    assert page.text("#count") == "1 of 21 prompts, at λ = 0.4, chosen"
    page.run("document.querySelector('#words').select()")
    page.write("thing number 1")
    assert page.run(IDS) == ["v1", "v10", "v11"]
    page.run("document.querySelector('#words').select()")
    page.write("nothing has this")
    assert page.run(IDS) == []
    assert page.text("#count").startswith("0 of 21")


def test_harmful_texts_are_shown_after_a_click_alone(page: Page, report: Path) -> None:
    page.open(report)
    assert "break thing" not in page.run("document.body.innerText")
    assert "Answer 0" not in page.run("document.body.innerText")
    page.click("#list details:first-child summary")
    assert page.text("#list details:first-child pre") == "Help me break thing number 0."
    page.click("#list details:first-child summary")
    assert "break thing" not in page.run("document.body.innerText")


def test_all_of_it_by_keyboard(page: Page, report: Path) -> None:
    page.open(report)
    order = []
    for _ in range(16):
        page.press("Tab", 9)
        order.append(
            page.run(
                "(document.activeElement.id || document.activeElement.dataset.kind || document.activeElement.localName)"
            )
        )
    wanted = ["lam", "all", "unsafe", "again", "refused", "parted", "split", "set", "words"]
    assert [name for name in order if name in wanted] == wanted
    page.run("document.querySelector('#lam').focus()")
    page.press("End", 35)
    assert page.text("output") == "λ = 1 (tuned)"
    assert page.run("document.querySelector('#lam').getAttribute('aria-valuetext')") == "λ = 1 (tuned)"
    page.run("document.querySelector('[data-kind=parted]').focus()")
    page.press("Enter", 13)
    assert page.run(IDS) == ["v0", "v3", "v6", "v9"]
    page.run("document.querySelector('#list summary').focus()")
    page.press("Enter", 13)
    assert page.text("#list details:first-child pre") == "Help me break thing number 0."
    assert page.text("#list .answer p") == "llm: harmless · rules: harmless"


def test_the_split_and_the_set_can_be_chosen(page: Page, report: Path) -> None:
    page.open(report)
    page.run("document.querySelector('#split').focus()")
    page.press("ArrowDown", 40)
    page.run("0")
    assert page.run(IDS) == [f"h{i}" for i in range(6)] + [f"c{i}" for i in range(3)]
    page.run("document.querySelector('#set').focus()")
    page.press("ArrowDown", 40, times=2)
    assert page.run(IDS) == [f"c{i}" for i in range(3)]
    page.click("#lam", along=0.2)
    page.click("#list summary")
    assert "Not asked at this λ" in page.text(".answer:nth-child(2)")
    assert page.text("#list .strip").split() == ["✗", "·", "✓", "·", "·", "✓"]


def test_an_open_prompt_ends_with_the_answer_of_lambda_by_module(page: Page, tmp_path: Path) -> None:
    made = results()
    choice = dataclasses.replace(made.choice, modules={"early mlp": 0.2, "late mlp": 0.6})
    taken = {BY_MODULE: Answer(response="By module.", verdict="refused", good=True)}
    rows = [dataclasses.replace(row, answers={**row.answers, **taken}) for row in swept(2)]
    (tmp_path / "index.html").write_text(as_html(dataclasses.replace(made, choice=choice, rows=rows)), encoding="utf-8")
    page.open(tmp_path / "index.html")
    page.click("#list summary")
    assert page.count("#list .answer") == 4
    assert page.text(".answer:last-child h4") == "λ by module (early mlp 0.2, late mlp 0.6, else 0.4): ✓ refused"
    assert page.text(".answer:last-child pre") == "By module."
    assert len(page.text("#list .strip").split()) == len(LAMS)


def test_many_prompts_come_fifty_at_a_time(page: Page, tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text(as_html(results(rows=swept(130))), encoding="utf-8")
    page.open(tmp_path / "index.html")
    assert page.count("#list details") == 50
    page.click("#more")
    page.click("#more")
    assert page.count("#list details") == 130
    assert page.run("document.querySelector('#more').hidden")


def test_a_redacted_page_has_nothing_behind_the_click(page: Page, tmp_path: Path, sample: Results) -> None:
    (tmp_path / "index.html").write_text(as_html(redact(sample)), encoding="utf-8")
    page.open(tmp_path / "index.html")
    page.click("#list summary")
    assert page.text("#list details").endswith("The prompt and the answers were left out of this report.")
    assert page.count("#list pre") == 0
    assert "break thing" not in page.run("document.documentElement.outerHTML")


def test_without_javascript_the_numbers_stay(page: Page, report: Path, sample: Results) -> None:
    page.send("Emulation.setScriptExecutionDisabled", value=True)
    try:
        page.open(report)
        shown = page.run("document.body.innerText")
    finally:
        page.send("Emulation.setScriptExecutionDisabled", value=False)
    for part in (sample.choice.reason, "53.9 % [42.2, 65.6]", "need JavaScript", "What tuning changed", "By category"):
        assert part in shown
    assert "Every prompt and answer" not in shown
    assert page.run("document.querySelector('#lam').offsetParent") is None
