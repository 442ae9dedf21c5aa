"""The paper's tables and figures from a folder of runs."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from mooring.errors import DataError, OutputError
from mooring.export import Record
from mooring.files import atomic_bytes, atomic_text
from mooring.reporting.figures import png, svg
from mooring.reporting.paper import details, figures, paired, published
from mooring.reporting.paper.runs import find_runs, grouped
from mooring.reporting.paper.tables import all_tables, main_base
from mooring.reporting.render import as_csv, as_latex, as_markdown
from mooring.reporting.tables import Table
from mooring.text import markdown

PAGE = "paper.md"
HEADINGS = {
    paired.NAME: "In pairs",
    details.CATEGORIES: "By category",
    details.AGREEMENT: "Agreement of the judges",
}
"""Headings of the tables that have no number."""
TEMPLATE = "published-template.csv"


@dataclasses.dataclass(frozen=True, slots=True)
class Paper(Record):
    """What was written.

    Attributes:
        folder: Where it is.
        files: Names of the files in it.
        runs: How many runs it contains.
        notes: What a reader must know of runs that were left out or do not compare, a line each.
    """

    folder: Path
    files: Sequence[str]
    runs: int
    notes: Sequence[str]


def write_paper(runs: Path, out: Path, *, known: Path | None = None, main: str | None = None) -> Paper:
    """Write Tables 1 to 3 and models in pairs (`.md`, `.tex`, `.csv`), Figures 2 and 3 (`.png`, `.svg`, `.csv`), and
    `paper.md` with all.

    The same runs give the same bytes. Tables and figures of an earlier call that have no content any more are removed.

    Args:
        runs: A folder that contains run folders.
        out: Where to write; created if it does not exist.
        known: Published numbers, by `published.read_published`; without, the tables have no such column.
        main: The base of Tables 1 and 2 and of the figures; defaults to that of most runs.

    Raises:
        DataError: There is no run that can be read, no run of `main`, or `known` is malformed.
        OutputError: `out` is a run folder, the disk is full, or it may not be written.
    """
    if (out / "results.json").exists() or (out / "ledger.json").exists():
        raise OutputError(
            f"{out}: belongs to a run", "name a folder of its own for the tables", code="output.not_empty"
        )
    numbers = published.read_published(known) if known else {}
    found, unreadable = find_runs(runs)
    groups, excluded = grouped(found)
    names = sorted({group.first.base for group in groups})
    if main is not None and main not in names:
        raise DataError(
            f"{main}: no run below {runs} has this base", f"there are: {', '.join(names)}", code="data.unknown_base"
        )
    base = main or main_base(groups)
    tables, drawn = all_tables(groups, base), figures.all_figures(groups, base)
    pairs = paired.pairs(groups)
    marked = [f"table {t.number}: {row.task} ({row.base}) {row.note}" for t in tables for row in t.lines if row.note]
    notes = [*unreadable, *excluded, *dict.fromkeys(marked), *published.unused(numbers, tables)]

    # By the name of the file: what people read, its label in LaTeX, and its numbers.
    shown = {f"table{t.number}": (t.to_table(numbers), f"mooring-{t.number}", t.to_numbers(numbers)) for t in tables}
    if pairs:
        shown[paired.NAME] = paired.to_table(pairs), f"mooring-{paired.NAME}", paired.to_numbers(pairs)
    for name, table in details.tables_of(groups).items():
        shown[name] = table, f"mooring-{name}", table
    texts: dict[str, str] = {}
    for name, (table, label, values) in shown.items():
        texts |= {f"{name}.md": as_markdown(table) + "\n", f"{name}.tex": as_latex(table, label)}
        texts[f"{name}.csv"] = as_csv(values)
    texts |= {f"figure{f.number}.csv": as_csv(f.to_numbers()) for f in drawn}
    texts[TEMPLATE] = published.template(tables, numbers)
    texts[PAGE] = _page({name: table for name, (table, _, _) in shown.items()}, drawn, notes)
    pictures: dict[str, bytes] = {}
    for figure in drawn:
        drawing = figures.draw(figure)
        pictures |= {f"figure{figure.number}.png": png(drawing), f"figure{figure.number}.svg": svg(drawing)}
    for name, text in texts.items():
        atomic_text(out / name, text)
    for name, data in pictures.items():
        atomic_bytes(out / name, data)
    written = sorted([*texts, *pictures])
    for stale in _all_files() - set(written):
        (out / stale).unlink(missing_ok=True)
    return Paper(out, written, sum(len(group.runs) for group in groups), notes)


def _all_files() -> set[str]:
    names = ("table1", "table2", "table3", paired.NAME, details.CATEGORIES, details.AGREEMENT)
    tables = {f"{name}.{kind}" for name in names for kind in ("md", "tex", "csv")}
    return tables | {f"figure{number}.{kind}" for number in (2, 3) for kind in ("png", "svg", "csv")}


def _page(tables: Mapping[str, Table], drawn: Sequence[figures.PaperFigure], notes: Sequence[str]) -> str:
    parts = ["# Tables and figures"]
    for name, table in tables.items():
        parts += [f"## {HEADINGS[name]}"] if name in HEADINGS else []
        parts.append(as_markdown(table))
    parts += [f"![Figure {each.number}](figure{each.number}.png)\n\n{markdown(each.caption)}" for each in drawn]
    if notes:
        parts += ["## To note", "\n".join(f"- {markdown(note)}" for note in notes)]
    return "\n\n".join(parts) + "\n"
