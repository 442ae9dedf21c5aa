"""The page looked at: light and dark, wide and narrow, on paper. The pictures are kept for people."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from mooring.reporting.results import Changes, Results

pytestmark = pytest.mark.slow

WIDE = "document.documentElement.scrollWidth"
CONTRAST = """
(() => {
  const light = (rgb) => rgb.match(/[\\d.]+/g).slice(0, 3).map((c) => c / 255)
    .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (e) => {
    for (; e; e = e.parentElement) {
      const colour = getComputedStyle(e).backgroundColor;
      if (!colour.startsWith("rgba(0, 0, 0, 0")) return colour;
    }
    return "rgb(255, 255, 255)";
  };
  const names = "p, dt, dd, td, th, caption, figcaption, button, .good, .bad, .dim, pre, output, .alike";
  const least = [...document.querySelectorAll(names)]
    .filter((e) => e.innerText && e.offsetParent && !e.closest(".heat"))
    .map((e) => [light(getComputedStyle(e).color), light(behind(e))])
    .map(([a, b]) => (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05));
  return Math.min(...least);
})()
"""
"""The least contrast of any text with what is behind it, as WCAG 2 has it."""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_it_fits_and_can_be_read(page: Page, report: str, artefacts: Path, width: int, scheme: str) -> None:
    page.goto(report)
    page.locator("#lam").fill("3")
    page.locator("#list summary").nth(1).click()
    expect(page.locator("#list pre")).to_have_count(4)
    assert page.evaluate(WIDE) <= width
    assert page.evaluate(CONTRAST) >= 4.5
    ground = "rgb(20, 23, 26)" if scheme == "dark" else "rgb(255, 255, 255)"
    expect(page.locator("body")).to_have_css("background-color", ground)
    columns = page.locator("#tiles").evaluate("(e) => getComputedStyle(e).gridTemplateColumns.split(' ').length")
    assert columns >= 2
    assert page.evaluate("scrollY") > 0
    expect(page.locator(".mover")).to_be_in_viewport(ratio=1)  # it goes along while one reads the answers
    page.screenshot(path=artefacts / f"page-{width}-{scheme}.png", full_page=True)


def test_on_paper_controls_are_left_out(page: Page, report: str, artefacts: Path) -> None:
    page.goto(report)
    page.locator("#lam").fill("3")
    page.locator("#list summary").nth(1).click()
    page.set_viewport_size({"width": 794, "height": 900})
    page.emulate_media(media="print")
    for gone in (".mover", ".filters", "#more", "#list details:not([open])"):
        expect(page.locator(gone)).not_to_have_count(0)
        expect(page.locator(gone).filter(visible=True)).to_have_count(0)
    expect(page.locator("#list details[open] pre").first).to_be_visible()
    expect(page.locator("h2#figure")).to_have_text("At λ = 0.6")  # which λ is printed
    expect(page.locator("h2#figure")).to_be_visible()
    page.screenshot(path=artefacts / "page-print.png", full_page=True)
    assert page.pdf(print_background=True).startswith(b"%PDF")


def test_nothing_is_cut_on_a_sheet_of_a4(page: Page, show: Callable[[Results], None], sample: Results) -> None:
    modules = ["self_attn.q_proj.weight", "post_attention_layernorm.weight"]
    layers = [str(number) for number in range(36)]
    show(dataclasses.replace(sample, changes=Changes(layers=layers, modules=modules, relative=[[0.01, 0.02]] * 36)))
    page.set_viewport_size({"width": 717, "height": 900})  # what a browser's margins leave
    page.emulate_media(media="print")
    fits = page.locator(".scroll").evaluate_all("(all) => all.map((e) => e.scrollWidth <= e.clientWidth)")
    assert fits
    assert all(fits)
    assert page.evaluate(WIDE) <= 717
