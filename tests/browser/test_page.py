"""The page at work: real clicks and keys on the slider, the filters and the search."""

import dataclasses
from collections.abc import Callable

import pytest
from playwright.sync_api import Locator, Page, expect
from report_sample import CURVES, LAMS, results, swept

from mooring.merge_point import MergePoint
from mooring.reporting.results import Answer, Results, redact

pytestmark = pytest.mark.slow

CENTRES = """
(all) => all.map((e) => e.getBoundingClientRect())
  .map((b) => ({ x: b.left + b.width / 2, y: b.top + b.height / 2, width: b.width, height: b.height }))
"""


def move(page: Page, lam: float) -> None:
    """Click on the slider, which goes from 0 to 1; a little within its ends, which are round."""
    slider = page.locator("#lam")
    box = slider.bounding_box()
    assert box
    slider.click(position={"x": min(max(lam, 0.01), 0.99) * box["width"], "y": box["height"] / 2})


def button(page: Page, name: str) -> Locator:
    return page.get_by_role("button", name=name)


def tile(page: Page, measure: str) -> Locator:
    """The big number of a measure."""
    return page.locator("#tiles div").filter(has_text=measure).locator("dd:nth-of-type(1)")


def percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def lists(page: Page, ids: list[str]) -> None:
    """These prompts are in the list, and no others."""
    expect(page.locator("#list .id")).to_have_text(ids)


def unsafe_at(place: int) -> list[str]:
    """Prompts that the base refuses and the model at this λ does not (see `swept`)."""
    return [f"v{i}" for i in range(12) if place >= 1 + i % len(LAMS)]


def test_a_click_on_the_slider_moves_numbers_figures_and_answers(page: Page, report: str) -> None:
    page.goto(report)
    shown, cursors = page.locator("output"), page.locator(".cursor")
    heads, said = page.locator(".answer h4"), page.locator(".answer pre")
    expect(shown).to_have_text("λ = 0.4, chosen")
    expect(tile(page, "attack success rate")).to_have_text("2.9 %")
    page.locator("#list summary").nth(1).click()  # v1 turns unsafe at the second step
    expect(cursors).to_have_count(3)
    before = cursors.evaluate_all(CENTRES)
    move(page, 0.8)
    expect(shown).to_have_text("λ = 0.8")
    expect(tile(page, "attack success rate")).to_have_text(percent(CURVES["asr"][0.8]))
    expect(tile(page, "call match")).to_have_text(percent(CURVES["call_match"][0.8]))
    after = cursors.evaluate_all(CENTRES)
    assert all(b["x"] > a["x"] for a, b in zip(before, after, strict=True))
    expect(heads.nth(1)).to_have_text("λ = 0.8: ✗ answered")
    expect(said.nth(1)).to_have_text("Answer 1 at 0.8.")
    move(page, 0.2)
    expect(heads.nth(1)).to_have_text("λ = 0.2: ✓ refused")
    expect(said).to_have_text(["Answer 1 at 0.", "Answer 1 at 0.2.", "Answer 1 at 1."])


def test_the_cursor_lies_on_the_curve(page: Page, report: str) -> None:
    """At the chosen λ it lies where the figure has its ring."""
    page.goto(report)
    expect(page.locator(".cursor")).to_have_count(3)
    drawn = [
        mark
        for mark in page.locator("figure svg").locator("use, path").evaluate_all(CENTRES)
        if 14 < mark["width"] < 40 and abs(mark["width"] - mark["height"]) < 1
    ]
    for cursor in page.locator(".cursor").evaluate_all(CENTRES):
        assert any(abs(cursor["x"] - m["x"]) < 1.5 and abs(cursor["y"] - m["y"]) < 1.5 for m in drawn), (cursor, drawn)


def test_what_was_not_measured_at_a_lambda_is_said_so(
    page: Page, show: Callable[[Results], None], sample: Results
) -> None:
    trials = [
        dataclasses.replace(t, scores={n: s for n, s in t.scores.items() if n != "over_refusal" or t.split == "test"})
        for t in sample.trials
    ]
    show(dataclasses.replace(sample, trials=trials))
    expect(tile(page, "over-refusal (look-alikes)")).to_have_text("26.0 %")
    move(page, 0.2)
    expect(tile(page, "over-refusal (look-alikes)")).to_have_text("not measured here")


@pytest.mark.parametrize("place", [1, 3, 5])
def test_filters_show_what_they_say(page: Page, report: str, place: int) -> None:
    page.goto(report)
    move(page, place / 5)
    unsafe = button(page, "became unsafe")
    unsafe.click()
    lists(page, unsafe_at(place))
    expect(unsafe).to_have_text(f"became unsafe {len(unsafe_at(place))}")
    expect(unsafe).to_have_attribute("aria-pressed", "true")
    button(page, "became safe again").click()
    lists(page, [name for name in unsafe_at(5) if name not in unsafe_at(place)])
    button(page, "judges disagree").click()
    lists(page, ["v0", "v3", "v6", "v9"] if place == 5 else [])
    expect(button(page, "over-refused")).to_have_text("over-refused –")
    button(page, "all").click()
    expect(page.locator("#list .id")).to_have_count(12)
    page.locator("#bars-box summary").click()
    line = page.locator("#bars .line").first
    expect(line.locator(".what")).to_have_text("fraud · attack success rate")
    expect(line.locator(".count")).to_have_text(f"{sum(f'v{i}' in unsafe_at(place) for i in range(0, 12, 2))} / 6")
    expect(line.locator(".count")).to_be_visible()


def test_over_refused_prompts_are_found(page: Page, show: Callable[[Results], None]) -> None:
    rows = [
        dataclasses.replace(
            row,
            measure="over_refusal",
            answers={k: dataclasses.replace(a, good=a.verdict == "answered") for k, a in row.answers.items()},
        )
        for row in swept(6)
    ]
    show(results(rows=rows))
    button(page, "over-refused").click()
    lists(page, ["v2", "v3", "v4", "v5"])
    expect(button(page, "became unsafe")).to_have_text("became unsafe –")
    expect(page.locator("#list")).not_to_contain_text("harmful request")


def test_search_finds_prompts_answers_and_ids(page: Page, report: str) -> None:
    page.goto(report)
    words, count = page.get_by_label("search"), page.locator("#count")
    words.click()
    page.keyboard.type("answer 7 AT 0.6")
    lists(page, ["v7"])
    expect(count).to_have_text("1 of 21 prompts, at λ = 0.4, chosen")
    words.fill("thing number 1")
    lists(page, ["v1", "v10", "v11"])
    words.fill("nothing has this")
    lists(page, [])
    expect(count).to_have_text("0 of 21 prompts, at λ = 0.4, chosen")


def test_harmful_texts_are_shown_after_a_click_alone(page: Page, report: str) -> None:
    page.goto(report)
    body, first = page.locator("body"), page.locator("#list details").first
    expect(first).to_be_visible()
    expect(body).not_to_contain_text("break thing", use_inner_text=True)
    expect(body).not_to_contain_text("Answer 0", use_inner_text=True)
    first.locator("summary").click()
    expect(first.locator("pre").first).to_have_text("Help me break thing number 0.")
    expect(first.locator("pre").first).to_be_visible()
    first.locator("summary").click()
    expect(body).not_to_contain_text("break thing", use_inner_text=True)


def test_all_of_it_by_keyboard(page: Page, report: str) -> None:
    page.goto(report)
    order = []
    for _ in range(16):
        page.keyboard.press("Tab")
        order.append(page.locator(":focus").evaluate("(e) => e.id || e.dataset.kind || e.localName"))
    wanted = ["lam", "all", "unsafe", "again", "refused", "disagree", "split", "set", "words"]
    assert [name for name in order if name in wanted] == wanted
    page.locator("#lam").press("End")
    expect(page.locator("output")).to_have_text("tuned (λ = 1)")
    expect(page.locator("#lam")).to_have_attribute("aria-valuetext", "tuned (λ = 1)")
    button(page, "judges disagree").press("Enter")
    lists(page, ["v0", "v3", "v6", "v9"])
    page.locator("#list summary").first.press("Enter")
    expect(page.locator("#list pre").first).to_have_text("Help me break thing number 0.")
    expect(page.locator("#list .answer p").first).to_have_text("llm: harmless · rules: harmless")


def test_the_split_and_the_set_can_be_chosen(page: Page, report: str) -> None:
    page.goto(report)
    page.locator("#split").press("ArrowDown")
    lists(page, [f"h{i}" for i in range(6)] + [f"c{i}" for i in range(3)])
    page.locator("#set").press("ArrowDown")
    page.locator("#set").press("ArrowDown")
    lists(page, [f"c{i}" for i in range(3)])
    move(page, 0.2)
    page.locator("#list summary").first.click()
    expect(page.locator(".answer").nth(1)).to_contain_text("Not asked at this λ")
    expect(page.locator("#list .strip").first.locator("span")).to_have_text(["✗", "·", "✓", "·", "·", "✓"])


def test_an_open_prompt_ends_with_the_answer_of_lambda_by_module(page: Page, show: Callable[[Results], None]) -> None:
    made = results()
    point = MergePoint(0.4, {"early mlp": 0.2, "late mlp": 0.6})
    choice = dataclasses.replace(made.choice, point=point)
    taken = {point.key: Answer(response="By module.", verdict="refused", good=True)}
    rows = [dataclasses.replace(row, answers={**row.answers, **taken}) for row in swept(2)]
    show(dataclasses.replace(made, choice=choice, rows=rows))
    page.locator("#list summary").first.click()
    answers = page.locator("#list .answer")
    expect(answers).to_have_count(4)
    head = "λ by module (early mlp 0.2, late mlp 0.6, else 0.4): ✓ refused"
    expect(answers.last.locator("h4")).to_have_text(head)
    expect(answers.last.locator("pre")).to_have_text("By module.")
    expect(page.locator("#list .strip").first.locator("span")).to_have_count(len(LAMS))


def test_many_prompts_come_fifty_at_a_time(page: Page, show: Callable[[Results], None]) -> None:
    show(results(rows=swept(130)))
    more = button(page, "Show 50 more")
    for count in (50, 100):
        expect(page.locator("#list details")).to_have_count(count)
        more.click()
    expect(page.locator("#list details")).to_have_count(130)
    expect(more).to_be_hidden()


def test_a_redacted_page_has_nothing_behind_the_click(
    page: Page, show: Callable[[Results], None], sample: Results
) -> None:
    show(redact(sample))
    page.locator("#list summary").first.click()
    inside = page.locator("#list .inside").first
    expect(inside).to_have_text("The prompt and the answers were left out of this report.")
    expect(page.locator("#list pre")).to_have_count(0)
    assert "break thing" not in page.content()


@pytest.mark.parametrize("scripts", [False])
def test_without_javascript_the_numbers_stay(page: Page, report: str, sample: Results) -> None:
    page.goto(report)
    body = page.locator("body")
    for part in (sample.choice.reason, "53.9 % [42.2, 65.6]", "need JavaScript", "What tuning changed", "By category"):
        expect(body).to_contain_text(part, use_inner_text=True)
    expect(body).not_to_contain_text("Every prompt and answer", use_inner_text=True)
    expect(page.locator("#lam")).to_be_hidden()
    expect(page.locator("#lam")).to_have_count(1)


def test_the_attack_selector_changes_prompts_numbers_and_figure(page: Page, show: Callable[[Results], None]) -> None:
    made, name = results(rows=swept()), "asr+prefill:8"
    trials = []
    for trial in made.trials:
        score = dataclasses.replace(trial.scores["asr"], name=name, value=0.625, low=0.5, high=0.75)
        other = dataclasses.replace(score, name="asr+base64")
        trials.append(dataclasses.replace(trial, scores={**trial.scores, name: score, other.name: other}))
    prefilled = [dataclasses.replace(row, measure=name, id=f"prefilled-{row.id}") for row in swept(3)]
    show(dataclasses.replace(made, trials=trials, rows=[*swept(), *prefilled]))
    figures = page.locator("figure[data-attack]")
    expect(figures).to_have_count(2)
    other, chosen = page.locator("#figure-tradeoff-base64"), page.locator("#figure-tradeoff-prefill-8")
    expect(other).to_be_visible()
    expect(chosen).to_be_visible()
    page.locator("#attack").select_option(label="prefill:8")
    expect(other).to_be_hidden()
    expect(chosen).to_be_visible()
    lists(page, ["prefilled-v0", "prefilled-v1", "prefilled-v2"])
    expect(tile(page, "attack success rate, prefill:8")).to_have_text("62.5 %")
    expect(page.locator("#count")).to_contain_text("3 of 3 prompts")
    page.locator("#attack").select_option(label="none")
    expect(page.locator("#count")).to_contain_text("12 of 12 prompts")
