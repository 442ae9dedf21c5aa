"""Write a report: the one place that decides its files."""

from pathlib import Path

from mooring.files import atomic_bytes, atomic_text
from mooring.reporting.results import Results, dumps


def write(results: Results, folder: Path, redact: bool = False) -> Path:
    """Write `results.json`, `tradeoff.svg`, `tradeoff.png`, `report.md` and `index.html`, each in one step.

    The same results give the same bytes. Files of an older report are replaced.

    Args:
        results: What to show.
        folder: Created if it does not exist.
        redact: Leave out the text of every harmful prompt and of every answer to one, in all files, `results.json`
            too: so give it another folder than that of the whole report.

    Returns:
        The page, `index.html`.

    Raises:
        OutputError: The disk is full, or the folder may not be written.
    """
    from mooring.reporting import figures, page
    from mooring.reporting.results import redact as without_harm

    if redact:
        results = without_harm(results)
    drawing = figures.tradeoff(results)
    atomic_text(folder / "results.json", dumps(results))
    atomic_bytes(folder / "tradeoff.svg", figures.svg(drawing))
    atomic_bytes(folder / "tradeoff.png", figures.png(drawing))
    atomic_text(folder / "report.md", page.as_markdown(results))
    atomic_text(folder / "index.html", page.as_html(results))
    return folder / "index.html"
