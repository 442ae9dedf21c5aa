"""Write the report of a comparison: the one place that decides its files."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from mooring.files import atomic_bytes, atomic_text
from mooring.jsonio import read_as
from mooring.reporting.comparison.records import Cost, MethodComparison, dumps
from mooring.reporting.comparison.tables import HEADINGS, all_tables, groups_of, sentences, summary
from mooring.reporting.figures import inline, png, svg
from mooring.reporting.page import assets
from mooring.reporting.paper import figures
from mooring.reporting.render import as_csv, as_latex, as_markdown, as_yaml
from mooring.reporting.tables import Column, Table, cell_text
from mooring.text import fenced, markdown

COSTS = "cost.json"
"""Tokens and seconds of each model, which `results.json` does not hold: the same recipe gives other seconds."""
POINTS = "points.csv"
"""Every score of every model on both splits."""


def write_comparison(
    found: MethodComparison, folder: Path, costs: Sequence[Cost] = (), *, redact: bool = False
) -> Path:
    """Write `results.json`, `index.html`, `report.md`, `points.csv`, the tables (`.md`, `.tex`, `.csv`) and the figures
    (`.png`, `.svg`, `.csv`), each in one step.

    Args:
        found: What to show.
        folder: Created if it does not exist.
        costs: What the responses took, for `cost.json` and the table of it.
        redact: Leave out the text of every harmful prompt and of every answer to one, in `results.json` too.

    Returns:
        The page, `index.html`.

    Raises:
        OutputError: The disk is full, or the folder may not be written.
    """
    if redact:
        found = found.redact()
    shown = list(all_tables(found, costs))
    groups = groups_of(found)
    drawn = figures.all_figures(groups, groups[0].first.base)
    pictures = {figure.number: figures.draw(figure) for figure in drawn}
    texts = {f"figure{figure.number}.csv": as_csv(figure.to_numbers()) for figure in drawn}
    for name, table, numbers in shown:
        texts[f"{name}.md"] = as_markdown(table) + "\n"
        texts[f"{name}.tex"] = as_latex(table, f"mooring-{name}")
        texts[f"{name}.csv"] = as_csv(numbers)
    tables = {name: table for name, table, _ in shown}
    texts[POINTS] = as_csv(_points(found))
    texts[COSTS] = json.dumps([cost.to_dict() for cost in costs], indent=1) + "\n"
    texts["report.md"] = _markdown(found, tables, drawn)
    texts["results.json"] = dumps(found)
    for name, text in texts.items():
        atomic_text(folder / name, text)
    for number, picture in pictures.items():
        atomic_bytes(folder / f"figure{number}.png", png(picture))
        atomic_bytes(folder / f"figure{number}.svg", svg(picture))
    captions = {figure.number: figure.caption for figure in drawn}
    page = _page(found, tables, [(inline(picture, f"figure{n}"), captions[n]) for n, picture in pictures.items()])
    atomic_text(folder / "index.html", page)
    return folder / "index.html"


def read_costs(folder: Path) -> list[Cost]:
    """What the responses took, of a report that was written before; empty if it does not say."""
    path = folder / COSTS
    found: Sequence[Cost] = read_as(path, tuple[Cost, ...], "costs") if path.is_file() else ()
    return list(found)


def _points(found: MethodComparison) -> Table:
    rows = found.to_rows()
    heads = list(rows[0])
    return Table("", list(map(Column, heads)), [[row[head] for head in heads] for row in rows])


def _markdown(found: MethodComparison, tables: Mapping[str, Table], drawn: Sequence[figures.PaperFigure]) -> str:
    parts = [f"# {markdown(found.title)}", f"**{markdown(summary(found))}**"]
    for name, table in tables.items():
        parts += [f"## {HEADINGS[name]}", as_markdown(table)]
        if name == "series":
            parts.append("\n".join(f"- {markdown(sentence)}" for sentence in sentences(found)))
    parts += [f"![Figure {each.number}](figure{each.number}.png)\n\n{markdown(each.caption)}" for each in drawn]
    if found.notes:
        parts += ["## What to know of these numbers", "\n".join(f"- {markdown(note)}" for note in found.notes)]
    lines = [f"- {markdown(name)}: {markdown(value)}" for name, value in _provenance(found)]
    parts += ["## Recipe and provenance", "\n".join(lines), fenced(as_yaml(found.recipe), "yaml")]
    return "\n\n".join(parts) + "\n"


def _page(found: MethodComparison, tables: Mapping[str, Table], drawn: Sequence[tuple[str, str]]) -> str:
    """One self-contained page, without a script."""
    from markupsafe import Markup

    environment = assets.environment()
    environment.filters["text"] = cell_text
    style = assets.read("mooring.reporting.page", "page.css")
    return environment.from_string(assets.read("mooring.reporting.comparison", "page.html.jinja")).render(
        found=found,
        policy=assets.policy(None, style, inline=True),
        style=Markup(style),
        summary=summary(found),
        within=any(each.choice.within for each in found.series),
        tables=tables,
        headings=HEADINGS,
        sentences=sentences(found),
        figures=[(Markup(drawing), caption) for drawing, caption in drawn],
        provenance=_provenance(found),
        recipe=as_yaml(found.recipe),
    )


def _provenance(found: MethodComparison) -> list[tuple[str, str]]:
    models = [(model.point.label, f"{model.source}, {model.digest}") for model in found.tuned]
    versions = ", ".join(f"{name} {version}" for name, version in sorted(found.versions.items()))
    base = f"{found.base['source']}, {found.base['digest']}"
    return [("base", base), *models, ("judged by", ", ".join(found.judges)), ("versions", versions)]
