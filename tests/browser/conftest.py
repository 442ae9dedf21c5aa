"""Chromium for the tests of the page, and reports to open in it."""

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect

from mooring.reporting.page import as_html
from mooring.reporting.results import Results

# `--import-mode=importlib` puts no test folder on the path.
sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "reporting"))

from chromium import CHROMIUM, Heard, launched
from report_sample import results, swept

# As patient as Playwright's actions, for a slow machine; nothing is asserted about time.
expect.set_options(timeout=30_000)


# Playwright's event loop runs in this thread until it is closed, and tests elsewhere may want one of their own.
@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed: apt install chromium")
    with launched() as browser:
        yield browser


@pytest.fixture
def width() -> int:
    """The window's, in CSS pixels; a test may set it, and the next two, by `parametrize`."""
    return 1280


@pytest.fixture
def scheme() -> str:
    return "light"


@pytest.fixture
def scripts() -> bool:
    return True


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture
def context(browser: Browser, heard: Heard, width: int, scheme: str, scripts: bool) -> Iterator[BrowserContext]:
    with browser.new_context(
        viewport={"width": width, "height": 900},
        is_mobile=width < 600,
        color_scheme=scheme,
        java_script_enabled=scripts,
    ) as context:
        heard.listen(context)
        yield context


@pytest.fixture
def page(context: BrowserContext, heard: Heard) -> Iterator[Page]:
    """A tab that must ask for nothing but the reports opened in it, and must say nothing."""
    with context.new_page() as page:
        yield page
    assert [url for url in heard.asked if not (url.startswith("file:") and url.endswith(".html"))] == []
    assert heard.said == []


@pytest.fixture(scope="session")
def artefacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where screenshots go: the folder `$MOORING_ARTEFACTS`, or a temporary one."""
    folder = Path(os.environ.get("MOORING_ARTEFACTS") or tmp_path_factory.mktemp("artefacts"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def sample() -> Results:
    """Twelve harmful prompts of the validation split at every λ, and what the sample has of the test split."""
    return results(rows=[*swept(12), *results("A short answer.").rows])


@pytest.fixture(scope="session")
def report(tmp_path_factory: pytest.TempPathFactory, sample: Results) -> str:
    """The address of the sample's report."""
    path = tmp_path_factory.mktemp("report") / "index.html"
    path.write_text(as_html(sample), encoding="utf-8")
    return path.as_uri()


@pytest.fixture
def show(page: Page, tmp_path: Path) -> Callable[[Results], None]:
    """Write a report of other results and open it."""

    def write_and_open(given: Results) -> None:
        path = tmp_path / "index.html"
        path.write_text(as_html(given), encoding="utf-8")
        page.goto(path.as_uri())

    return write_and_open
