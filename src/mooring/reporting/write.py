"""Write a report: the one place that decides its files."""

import json
from pathlib import Path

from mooring.files import atomic_bytes, atomic_text
from mooring.reporting.judge_error import JudgeError
from mooring.reporting.results import Results, dumps

ERROR = "judge_error.json"
"""What labels say of the judge, beside `results.json`, which is what the run measured."""


def write(
    results: Results, folder: Path, redact: bool = False, *, record: bool = True, error: JudgeError | None = None
) -> Path:
    """Write `results.json`, `tradeoff.svg`, `tradeoff.png`, `report.md` and `index.html`, each in one step; and the
    figures under each attack, such as `tradeoff-prefill-8.png`; `forgetting.svg` and
    `.png` if that was measured; and `baselines.tex` if there are gentler tunings.

    The same results give the same bytes. Files of an older report are replaced.

    Args:
        results: What to show.
        folder: Created if it does not exist.
        redact: Leave out the text of every harmful prompt and of every answer to one, in all files, `results.json`
            too: so give it another folder than that of the whole report.
        record: Whether to write `results.json`; not if `results` were read from it: a newer Mooring might write it in
            another form, which the run would take for an edit.
        error: What people's labels say of the judge, if there are any; written to `judge_error.json` too.

    Returns:
        The page, `index.html`.

    Raises:
        OutputError: The disk is full, or the folder may not be written.
    """
    from mooring.reporting import figures, page
    from mooring.reporting.render import as_latex
    from mooring.reporting.results import redact as without_harm
    from mooring.reporting.tables import attacks_in, baseline_table

    if redact:
        results = without_harm(results)
    if record:
        atomic_text(folder / "results.json", dumps(results))
    for attack in attacks_in(results):
        drawing, name = figures.tradeoff(results, attack), page.figure_name(attack)
        atomic_bytes(folder / f"{name}.svg", figures.svg(drawing))
        atomic_bytes(folder / f"{name}.png", figures.png(drawing))
    if drawn := figures.forgetting(results):
        atomic_bytes(folder / "forgetting.svg", figures.svg(drawn))
        atomic_bytes(folder / "forgetting.png", figures.png(drawn))
    if table := baseline_table(results):
        atomic_text(folder / "baselines.tex", as_latex(table, "mooring-baselines"))
    atomic_text(folder / "report.md", page.as_markdown(results, error))
    atomic_text(folder / "index.html", page.as_html(results, error))
    if error is None:
        (folder / ERROR).unlink(missing_ok=True)
    else:
        atomic_text(folder / ERROR, json.dumps(error.to_dict(), ensure_ascii=False, indent=1) + "\n")
    return folder / "index.html"
