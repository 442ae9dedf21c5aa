"""Hooks of mkdocs: pages that lie outside of docs/, links to them, pages that nav does not name, and the gallery."""

import html
import json
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "benchmarks/README.md": "benchmarks.md",
}
"""Files of the repository that are pages of the site, too."""
RUNS = ("quickstart", "quickstart-full")
"""Runs in runs/ whose reports are shown."""
REST = "How-to guides"
"""The section of pages that nav does not name."""
REPORTS = "<!-- reports -->"
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\[\]]*\])*)\]\(([^()\s]+)\)")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put every page of docs/ into the navigation."""
    nav: list[Any] = config.nav or []
    named = set(_paths(nav))
    rest = sorted(path.name for path in (ROOT / "docs").glob("*.md") if path.name not in named)
    section = next(entry[REST] for entry in nav if REST in entry)
    section.extend(rest)
    return config


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the pages that lie outside of docs/, and the reports of runs."""
    for source, page in PAGES.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    for run in redacted_runs():
        path = run / "report-redacted" / "index.html"
        files.append(File.generated(config, f"reports/{run.name}.html", abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let links lead to pages of the site, and list the reports."""
    uri = page.file.src_uri
    source = next((path for path, there in PAGES.items() if there == uri), f"docs/{uri}")
    markdown = LINK.sub(lambda match: _link(match, source, uri, files), markdown)
    return markdown.replace(REPORTS, gallery(redacted_runs()))


def on_page_content(text: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Make links of the pages that docstrings and help texts name as `docs/NAME.md`."""
    return re.sub(r"(?<![\w/\"])docs/([\w-]+)\.md(?![\w\"])", lambda match: _named(match, files), text)


def gallery(runs: list[Path]) -> str:
    """The reports of runs, each with its verdict and its figure, as Markdown."""
    if not runs:
        return "There was none; `make quickstart` and `mooring report runs/quickstart --redact` make one.\n"
    return "\n".join(map(_shown, runs))


def redacted_runs() -> list[Path]:
    """The run folders whose reports may be shown."""
    runs = [ROOT / "runs" / name for name in RUNS]
    return [run for run in runs if (run / "report-redacted" / "index.html").is_file()]


def _shown(run: Path) -> str:
    results = json.loads((run / "report-redacted" / "results.json").read_text(encoding="utf-8"))
    verdict = html.escape((results.get("verdict") or {}).get("sentence", ""))
    return f"### {run.name}\n{verdict}\n\n[The whole page](reports/{run.name}.html)\n"


def _named(match: re.Match[str], files: Files) -> str:
    return f'<a href="{match[1]}.html">{match[1]}</a>' if files.get_file_from_path(f"{match[1]}.md") else match[0]


def _paths(nav: Any) -> list[str]:
    if isinstance(nav, str):
        return [nav]
    values = nav.values() if isinstance(nav, dict) else nav
    return [path for value in values for path in _paths(value)]


def _link(match: re.Match[str], source: str, uri: str, files: Files) -> str:
    """A link as it is on the site; one to a file that is not on it becomes its text."""
    image, text, target = match.groups()
    path, _, anchor = target.partition("#")
    if not path or "://" in path or path.startswith("mailto:"):
        return match[0]
    there = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
    page = PAGES.get(there) or there.removeprefix("docs/")
    if (there in PAGES or there.startswith("docs/")) and files.get_file_from_path(page):
        relative = posixpath.relpath(page, posixpath.dirname(uri) or ".")
        return f"{image}[{text}]({relative}{'#' + anchor if anchor else ''})"
    return text if (ROOT / there).exists() and not there.startswith("docs/") else match[0]
