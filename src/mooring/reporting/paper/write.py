"""The paper's tables and figures from a folder of runs, written: the one place here that writes."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from mooring.errors import DataError, OutputError
from mooring.export import Record
from mooring.files import atomic_bytes, atomic_text
from mooring.reporting.paper import figures, formats, paired, published
from mooring.reporting.paper.runs import find_runs
from mooring.reporting.paper.tables import Key, PaperTable, all_tables, cells, main_base
from mooring.text import markdown

PAGE = "paper.md"
TEMPLATE = "published-template.csv"


@dataclasses.dataclass(frozen=True, slots=True)
class Paper(Record):
    """What was written.

    Attributes:
        folder: Where it is.
        files: Names of the files in it.
        runs: How many runs stand in it.
        notes: What a reader must know of runs that were left out or do not compare, a line each.
    """

    folder: Path
    files: Sequence[str]
    runs: int
    notes: Sequence[str]


def write_paper(runs: Path, out: Path, *, known: Path | None = None, main: str | None = None) -> Paper:
    """Write Tables 1 to 3 and models in pairs (`.md`, `.tex`, `.csv`), Figures 2 and 3 (`.png`, `.svg`, `.csv`), and
    `paper.md` with all.

    The same runs give the same bytes. Tables and figures of an older call that there is no more to show of are removed.

    Args:
        runs: A folder that holds run folders.
        out: Where to write; made where it does not exist.
        known: Published numbers, by `published.read_published`; without, the tables have no such column.
        main: The base of Tables 1 and 2 and of the figures; that of most runs where it is not given.

    Raises:
        DataError: There is no run that can be read, no run of `main`, or `known` is malformed.
        OutputError: `out` is a run folder, the disk is full, or it may not be written.
    """
    if (out / "results.json").exists() or (out / "ledger.json").exists():
        raise OutputError(
            f"{out}: belongs to a run", "name a folder of its own for the tables", code="output.not_empty"
        )
    numbers = published.read_published(known) if known else {}
    found, notes = find_runs(runs)
    sorted_, more = cells(found)
    names = sorted({cell.first.base for cell in sorted_})
    if main is not None and main not in names:
        raise DataError(
            f"{main}: no run below {runs} has this base", f"there are: {', '.join(names)}", code="data.unknown_base"
        )
    base = main or main_base(sorted_)
    tables, drawn = all_tables(sorted_, base), figures.all_figures(sorted_, base)
    odd = dict.fromkeys(
        f"table {t.number}: {line.task} ({line.base}) {line.odd}" for t in tables for line in t.lines if line.odd
    )
    notes = [*notes, *more, *odd, *published.unused(numbers, tables)]
    texts = _texts(tables, numbers) | {f"figure{f.number}.csv": figures.as_csv(f) for f in drawn}
    texts[TEMPLATE] = published.template(tables, numbers)
    compared = paired.pairs(sorted_)
    if compared:
        kinds = {"md": paired.as_markdown, "tex": paired.as_latex, "csv": paired.as_csv}
        texts |= {f"{paired.NAME}.{kind}": make(compared) for kind, make in kinds.items()}
    texts[PAGE] = _page(tables, compared, drawn, numbers, notes)
    pictures = _pictures(drawn)
    for name, text in texts.items():
        atomic_text(out / name, text)
    for name, data in pictures.items():
        atomic_bytes(out / name, data)
    written = sorted([*texts, *pictures])
    for stale in _ours() - set(written):
        (out / stale).unlink(missing_ok=True)
    return Paper(out, written, sum(len(cell.runs) for cell in sorted_), notes)


def _ours() -> set[str]:
    names = (*(f"table{number}" for number in (1, 2, 3)), paired.NAME)
    tables = {f"{name}.{kind}" for name in names for kind in ("md", "tex", "csv")}
    return tables | {f"figure{number}.{kind}" for number in (2, 3) for kind in ("png", "svg", "csv")}


def _texts(tables: Sequence[PaperTable], numbers: Mapping[Key, float]) -> dict[str, str]:
    kinds = {"md": formats.as_markdown, "tex": formats.as_latex, "csv": formats.as_csv}
    return {f"table{t.number}.{kind}": make(t, numbers) for t in tables for kind, make in kinds.items()}


def _pictures(drawn: Sequence[figures.PaperFigure]) -> dict[str, bytes]:
    from mooring.reporting.figures import png, svg

    found = {}
    for figure in drawn:
        drawing = figures.draw(figure)
        found[f"figure{figure.number}.png"] = png(drawing)
        found[f"figure{figure.number}.svg"] = svg(drawing)
    return found


def _page(
    tables: Sequence[PaperTable],
    compared: Sequence[paired.Pair],
    drawn: Sequence[figures.PaperFigure],
    numbers: Mapping[Key, float],
    notes: Sequence[str],
) -> str:
    parts = ["# Tables and figures", *(formats.as_markdown(table, numbers).rstrip() for table in tables)]
    if compared:
        parts.append(f"## In pairs\n\n{paired.as_markdown(compared).rstrip()}")
    for figure in drawn:
        parts.append(f"![Figure {figure.number}](figure{figure.number}.png)\n\n{markdown(figure.caption)}")
    if notes:
        parts.append("## To note\n\n" + "\n".join(f"- {markdown(note)}" for note in notes))
    return "\n\n".join(parts) + "\n"
