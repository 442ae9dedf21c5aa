"""The docs as a site: it builds without a warning, asks no other host for anything, and holds the reports of runs."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

# `--import-mode=importlib` puts no test folder on the path.
sys.path.insert(0, str(Path(__file__).parent / "reporting"))

from report_sample import results

import mooring
from mooring.config import Recipe
from mooring.reporting.results import dumps

pytest.importorskip("mkdocs")
ROOT = Path(__file__).parents[1]


def test_the_gallery_holds_the_reports_of_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    import site_hooks

    monkeypatch.setattr(site_hooks, "ROOT", tmp_path)
    assert "make quickstart" in site_hooks.gallery(site_hooks.redacted_runs())
    for name in ("quickstart", "private"):
        report = tmp_path / "runs" / name / "report"
        report.mkdir(parents=True)
        recipe = Recipe.parse({"base": "b", "tuned": "t"}).model_dump(mode="json", exclude={"out"})
        (report / "results.json").write_text(dumps(results(recipe=recipe)), encoding="utf-8")
        mooring.report(report.parent, redact=True)
    shown = site_hooks.gallery(site_hooks.redacted_runs())
    assert "[The whole page](reports/quickstart.html)" in shown
    assert mooring.load_results(tmp_path / "runs" / "quickstart").verdict.sentence in shown
    assert "private" not in shown


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.mark.slow
def test_every_page_is_in_the_navigation(site: Path) -> None:
    home = (site / "index.html").read_text(encoding="utf-8")
    pages = {path.relative_to(site).as_posix() for path in site.glob("*.html")} - {"404.html"}
    assert {"benchmarks.html", "contributing.html", "changelog.html", "errors.html", "api.html"} <= pages
    assert {f"{path.stem}.html" for path in ROOT.glob("docs/*.md")} <= pages
    assert pages <= set(re.findall(r'href="([\w.-]+\.html)"', home))


@pytest.mark.slow
def test_nothing_is_loaded_from_another_host(site: Path) -> None:
    loaded = re.compile(
        r"""<(?:script|img|iframe|source)[^>]+src=["']?(?:https?:)?//|<link[^>]+href=["']?(?:https?:)?//"""
    )
    for page in site.rglob("*.html"):
        assert not loaded.search(page.read_text(encoding="utf-8")), page.name
    assert not any(re.search(r"url\(['\"]?(?:https?:)?//", style.read_text()) for style in site.rglob("*.css"))


@pytest.mark.slow
def test_the_reference_has_the_docstrings(site: Path) -> None:
    functions, types = ((site / name).read_text(encoding="utf-8") for name in ("api.html", "api-types.html"))
    assert 'id="mooring.api.safeguard"' in functions
    assert "Run folder; a stopped run continues in it." in functions
    assert 'id="mooring.Outcome"' in types
    assert 'id="mooring.options.SafeguardOptions"' in types
    assert 'href="errors.html"' in functions  # what docstrings name as docs/errors.md
