"""The page looked at: light and dark, wide and narrow, on paper. The pictures are kept for people."""

import dataclasses
from pathlib import Path

import pytest
from devtools import Page

from mooring.reporting.page import as_html
from mooring.reporting.results import Changes, Results

OVER = "document.documentElement.scrollWidth - innerWidth"
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


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_it_fits_and_can_be_read(page: Page, report: Path, artefacts: Path, width: int, dark: bool) -> None:
    page.look(width, dark)
    page.open(report)
    page.click("#lam", along=0.6)
    page.click("#list details:nth-of-type(2) summary")
    assert page.run(OVER) <= 0
    assert page.run(CONTRAST) >= 4.5
    ground = page.run("getComputedStyle(document.body).backgroundColor")
    assert ground == ("rgb(20, 23, 26)" if dark else "rgb(255, 255, 255)")
    assert page.run("getComputedStyle(document.querySelector('#tiles')).gridTemplateColumns.split(' ').length") >= 2
    page.picture(artefacts / f"page-{width}-{'dark' if dark else 'light'}.png")
    sticky = page.run("document.querySelector('.mover').getBoundingClientRect().top")
    assert sticky >= 0  # it goes along while one reads the answers


def test_on_paper_controls_are_left_out(page: Page, report: Path, artefacts: Path) -> None:
    page.open(report)
    page.click("#list details:nth-of-type(2) summary")
    page.look(794, media="print")
    for gone in (".mover", ".filters", "#more", "#list details:not([open])"):
        assert page.run(f"document.querySelector('{gone}').offsetParent") is None, gone
    assert page.run("document.querySelector('#list details[open]').offsetParent !== null")
    page.picture(artefacts / "page-print.png")
    assert page.send("Page.printToPDF", printBackground=True)["data"]


def test_nothing_is_cut_on_a_sheet_of_a4(page: Page, tmp_path: Path, sample: Results) -> None:
    modules = ["self_attn.q_proj.weight", "post_attention_layernorm.weight"]
    layers = [str(number) for number in range(36)]
    changes = Changes(layers=layers, modules=modules, relative=[[0.01, 0.02]] * 36)
    html = as_html(dataclasses.replace(sample, changes=changes))
    (tmp_path / "index.html").write_text(html, encoding="utf-8")
    page.open(tmp_path / "index.html")
    page.look(717, media="print")  # what a browser's margins leave
    assert page.run("[...document.querySelectorAll('.scroll')].every((e) => e.scrollWidth <= e.clientWidth)")
    assert page.run(OVER) <= 0
