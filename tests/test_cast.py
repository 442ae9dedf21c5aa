"""The picture at the top of the README: what a real run printed, and nothing else."""

import importlib
import re
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def cast(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    module = importlib.import_module("cast")
    sys.modules.pop("cast")
    return module


def test_the_picture_shows_every_line_of_the_log_in_order(cast: ModuleType) -> None:
    log = cast.LOG.read_text(encoding="utf-8")
    drawn = ET.fromstring(cast.PICTURE.read_text(encoding="utf-8"))
    texts = ["".join(text.itertext()) for text in drawn.iter("{http://www.w3.org/2000/svg}text")]
    title, prompt, *rows = texts
    run, _, total = log.partition("\nquickstart, set-up included: ")
    assert "".join("".join(rows).split()) == "".join(run.split())
    assert prompt == "$ make quickstart"
    assert title.startswith(f"make quickstart: {total.split()[0]} s ")


def test_steps_take_their_share_of_the_time(cast: ModuleType) -> None:
    log = "✓ tune 30 s\n✓ check 1 min 30 s\nSHIP It is safe.\n\nReport: r\n\nquickstart, set-up included: 121 s\n"
    frames = re.search(r"@keyframes rest {(.*)}", cast.picture(log))
    assert frames
    at = [float(each) for each in re.findall(r"([\d.]+)% {", frames[1])]
    first, second = at[2] - at[1], at[1] - at[0] - 100 * cast.START / 20
    assert first == pytest.approx(3 * second, rel=0.02)
    assert ">SHIP</tspan>" in cast.picture(log)


def test_what_is_printed_is_escaped(cast: ModuleType) -> None:
    log = "✓ <b>& 1 s\nSHIP <script>\n\nquickstart, set-up included: 1 s\n"
    drawn = cast.picture(log)
    assert "<script>" not in drawn
    assert "&lt;b&gt;&amp;" in drawn


def test_the_numbers_of_the_readme_are_those_of_the_picture(cast: ModuleType) -> None:
    table = re.findall(
        r"^\| (?:refuses|over-refusal|correct|response loss).*", (ROOT / "README.md").read_text(), re.MULTILINE
    )
    log = " ".join(cast.LOG.read_text(encoding="utf-8").split())
    intervals = [each for row in table for each in re.findall(r"\[[\d., ]+\]", row)]
    assert len(intervals) == 15
    assert [each for each in intervals if each not in log] == []
