"""The page on which people label answers, in Chromium: by keys, from a file and from its server."""

import json
import re
import threading
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from mooring.labels import Label
from mooring.pipeline.label_server import LabelServer
from mooring.pipeline.labelling import Item
from mooring.reporting.label_page import Card, as_html

pytestmark = pytest.mark.slow

HOSTILE = "</script><script>document.title='run'</script><img src=x onerror=\"document.title='run'\"> \u202e{{ 7 * 7 }}"
TEXTS = ["I can't help with that.", HOSTILE, "", "Sure, here is how."]


@pytest.fixture
def file(tmp_path: Path) -> str:
    cards = [Card(f"{i:016x}", "test", f"p{i}", f"Request {i} {HOSTILE}", text) for i, text in enumerate(TEXTS)]
    path = tmp_path / "labels.html"
    path.write_text(as_html(cards, title=f"A run {HOSTILE}"), encoding="utf-8")
    return path.as_uri()


def test_keys_label_and_move_and_a_button_saves_the_labels(page: Page, file: str, artefacts: Path) -> None:
    page.goto(file)
    expect(page.locator("#name")).to_be_focused()
    page.keyboard.type("hus")  # a name, not labels
    page.keyboard.press("Enter")
    for key in "hsu":
        page.keyboard.press(key)
    expect(page.locator("#count")).to_have_text("4 of 4 · 3 labelled")
    page.keyboard.press("ArrowLeft")
    expect(page.get_by_role("button", name="Unsure")).to_have_attribute("aria-pressed", "true")
    page.keyboard.press("s")
    page.keyboard.press("h")
    expect(page.locator("#end")).to_be_visible()
    page.screenshot(path=artefacts / "label.png")
    with page.expect_download() as download:
        page.get_by_role("button", name="Save labels").click()
    lines = [json.loads(line) for line in Path(download.value.path()).read_text().splitlines()]
    assert [(line["item"], line["label"]) for line in lines] == [
        (f"{i:016x}", word) for i, word in enumerate(("harmful", "harmless", "harmless", "harmful"))
    ]
    assert {line["annotator"] for line in lines} == {"hus"}
    assert lines[0].keys() == {"item", "label", "annotator", "split", "prompt_id"}


def test_texts_are_shown_as_they_are_and_run_nothing(page: Page, file: str) -> None:
    page.goto(file)
    page.get_by_role("button", name="Next").click()
    expect(page.locator("#response")).to_contain_text("</script><script>")
    expect(page.locator("#response")).to_contain_text("⟨U+202E⟩{{ 7 * 7 }}")
    page.get_by_role("button", name="Next").click()
    expect(page.locator("#response")).to_have_text("(empty)")
    assert page.title().startswith("A run ")
    assert page.locator("img").count() == 0


def test_several_people_label_apart_and_a_name_is_needed(page: Page, file: str) -> None:
    page.goto(file)
    page.locator("#card").focus()
    page.keyboard.press("h")
    expect(page.locator("#status")).to_contain_text("Give your name first")
    for name, count in (("ana", 2), ("ben", 1)):
        page.fill("#name", name)
        page.locator("#name").press("Enter")
        for _ in range(count):
            page.keyboard.press("s")
        expect(page.locator("#count")).to_contain_text(f"{count} labelled")
    page.reload()  # what a browser keeps for a file is kept
    page.fill("#name", "ana")
    page.locator("#name").press("Enter")
    expect(page.locator("#count")).to_have_text("3 of 4 · 2 labelled")


@pytest.mark.parametrize("width", [390])
@pytest.mark.parametrize("scheme", ["dark"])
def test_it_fits_a_telephone(page: Page, file: str, artefacts: Path) -> None:
    page.goto(file)
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    expect(page.get_by_role("button", name="Harmful")).to_be_in_viewport()
    page.screenshot(path=artefacts / "label-narrow.png")


def test_a_served_page_saves_each_label_until_it_is_done(browser: Browser) -> None:
    items = [Item(f"{i:016x}", "test", f"p{i}", f"Request {i}", text) for i, text in enumerate(TEXTS)]
    saved: list[Label] = []
    server = LabelServer(items, title="A run", known=[], save=saved.append, annotator="ana")
    thread = threading.Thread(target=server.serve)
    thread.start()
    said: list[str] = []
    with browser.new_context() as context, context.new_page() as page:
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("console", lambda message: said.append(message.text))
        page.goto(server.url)
        page.keyboard.press("h")
        expect(page.locator("#count")).to_have_text("2 of 4 · 1 labelled")
        page.keyboard.press("s")
        expect(page.locator("#count")).to_have_text("3 of 4 · 2 labelled")
        page.reload()
        expect(page.locator("#count")).to_have_text("3 of 4 · 2 labelled")
        page.get_by_role("button", name="Done").click()
        expect(page.locator("#status")).to_contain_text("The server has stopped")
        thread.join()
        page.keyboard.press("h")
        expect(page.locator("#status")).to_have_text(re.compile("^Not saved"))
        expect(page.locator("#count")).to_have_text("3 of 4 · 2 labelled")
    assert [(label.item, label.label, label.annotator) for label in saved] == [
        (f"{0:016x}", "harmful", "ana"),
        (f"{1:016x}", "harmless", "ana"),
    ]
    assert [text for text in said if "net::ERR" not in text] == []
