"""One Chromium for all tests of the page, and reports to open in it."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from mooring.reporting.page import as_html
from mooring.reporting.results import Results

if TYPE_CHECKING:
    from devtools import Page

# `--import-mode=importlib` puts no test folder on the path.
sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "report")]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    from devtools import CHROMIUM

    if CHROMIUM is None:
        here = Path(__file__).parent
        for item in items:
            if item.path.is_relative_to(here):
                item.add_marker(pytest.mark.skip(reason="Chromium is not installed: apt install chromium"))


@pytest.fixture(scope="session")
def chromium() -> Iterator["Page"]:
    from devtools import browser

    with browser() as page:
        yield page


@pytest.fixture
def page(chromium: "Page") -> "Page":
    """The browser, wide and light."""
    chromium.look(1280)
    return chromium


@pytest.fixture(scope="session")
def artefacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where screenshots go: the folder `$MOORING_ARTEFACTS`, or a temporary one."""
    folder = Path(os.environ.get("MOORING_ARTEFACTS") or tmp_path_factory.mktemp("artefacts"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def sample() -> Results:
    """Twelve harmful prompts of the validation split at every λ, and what the sample has of the test split."""
    from report_sample import results, swept

    return results(rows=[*swept(12), *results("A short answer.").rows])


@pytest.fixture(scope="session")
def report(tmp_path_factory: pytest.TempPathFactory, sample: Results) -> Path:
    path = tmp_path_factory.mktemp("report") / "index.html"
    path.write_text(as_html(sample), encoding="utf-8")
    return path
