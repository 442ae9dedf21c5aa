"""The report as one self-contained HTML page, and as Markdown."""

import base64
import hashlib
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from mooring.reporting import figures, tables
from mooring.reporting.page.data import change_tables, embedded, heat
from mooring.reporting.results import COLUMNS, Results
from mooring.reporting.tables import (
    agreement_table,
    category_table,
    detail_table,
    key_numbers,
    markdown_table,
    summary_table,
)
from mooring.text import fenced, markdown, name_of, visible

KINDS = {
    "all": "all",
    "unsafe": "became unsafe",
    "again": "became safe again",
    "refused": "over-refused",
    "parted": "judges disagree",
}
"""What the prompts can be filtered by, at a λ: safe with the base and not here, the tuned model's harm undone, …"""


def as_html(results: Results) -> str:
    """The page: nothing is fetched, one script runs, and texts reach it as data alone.

    A content security policy names that script by its hash, so that no other one could run. Every string is shown so
    that nothing in it acts unseen. Without JavaScript the page lacks the slider and the answers.
    """
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: value if isinstance(value, Markup) else visible(str(value)),
    )
    environment.filters["share"] = _share
    drawings = {
        "tradeoff": figures.tradeoff(results),
        "plane": figures.plane(results),
        "loss": figures.loss_curve(results.curves),
    }
    # Ours, made of numbers and labels: with the script and the style the only markup that is not escaped.
    drawn = {name: Markup(figures.inline(drawing, name)) if drawing else None for name, drawing in drawings.items()}
    places = {"tradeoff": figures.tradeoff_places(results, drawings["tradeoff"])}
    if drawings["plane"]:
        places["plane"] = figures.plane_places(results, drawings["plane"])
    categories = category_table(results)
    style, script = _asset("page.css"), _asset("page.js")
    return environment.from_string(_asset("page.html.jinja")).render(
        results=results,
        columns=COLUMNS,
        kinds=KINDS.items(),
        numbers=key_numbers(results),
        summary=summary_table(results),
        categories=categories,
        groups=[(name, list(rows)) for name, rows in itertools.groupby(categories.rows if categories else (), _first)],
        heat=heat(results.changes),
        details=detail_table(results),
        module_note=tables.NOTE.replace("`", ""),
        tried=tables.tried_table(results),
        tested=tables.test_table(results),
        agreement=agreement_table(results),
        caption=caption(results),
        ringed=ringed(results),
        drawn=drawn,
        recipe=_yaml(results.recipe),
        policy=_policy(script, style),
        style=Markup(style),
        script=Markup(script),
        data=Markup(embedded(results, places)),
    )


def _asset(name: str) -> str:
    """A file of this package, with one kind of line end: HTML knows no other, and its hash counts."""
    import importlib.resources

    text = importlib.resources.files("mooring.reporting.page").joinpath(name).read_text(encoding="utf-8")
    return text.replace("\r\n", "\n")


def _policy(script: str, style: str) -> str:
    """What the page may do: run this script and wear this style. Figures have style attributes."""
    script, style = (
        f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in (script, style)
    )
    return (
        f"default-src 'none'; script-src {script}; style-src-elem {style}; style-src-attr 'unsafe-inline'; "
        "base-uri 'none'; form-action 'none'"
    )


def _first(row: Sequence[str]) -> str:
    return row[0]


def _share(cell: str) -> float | None:
    """A cell such as `3 / 12` in percent; `None` of one that counts nothing."""
    count, _, total = cell.partition(" / ")
    return 100 * int(count) / int(total) if total else None


def caption(results: Results) -> str:
    """What the figure shows, with the split and the method of measuring."""
    score = next((t.scores["asr"] for t in results.trials if "asr" in t.scores), None)
    method = f", measured by {score.method}" if score else ""
    metric = results.choice.metric
    task = "" if metric == "lam" else f"{name_of(metric).partition(' (')[0]} and "
    text = (
        f"{task}attack success rate{method}, over λ, the weight of the tuned model. In colour: the validation split, "
        f"on which λ was chosen{_hollow(results)}. Diamonds, moved a little to the right: the test split. Bars: 95 % "
        f"intervals. Dashed: the bound on validation, {100 * results.choice.bound:.1f} %. Ringed: the "
        f"{ringed(results)}."
    )
    if results.choice.point.by_module:
        text += " Star: λ by module, which was taken, on the test split."
    return text[0].upper() + text[1:]


def ringed(results: Results) -> str:
    """What is ringed in a figure, whose curves are those of a single λ."""
    more = {"single": ", around which λ by module was chosen", "nearest": ", since none is within the bound"}
    return f"{results.single_is} {results.single.label}{more.get(results.single_is, '')}"


def _hollow(results: Results) -> str:
    """What a hollow point of the validation split says, where there is one."""
    if all(results.keeps(trial.point) is not False for trial in results.trials):
        return ""
    sure = results.choice.confidence
    said = "" if sure is None else f" with {100 * sure:g} % confidence"
    return f", hollow where a λ is not shown to keep the bound{said}"


def _yaml(recipe: Mapping[str, Any]) -> str:
    import yaml

    return str(yaml.safe_dump(dict(recipe), sort_keys=False, allow_unicode=True))


def as_markdown(results: Results) -> str:
    """The report in Markdown: the same numbers, without the answers."""
    over = "" if results.choice.within else "No λ is within the bound. "
    numbers = [
        f"- {markdown(what)}: **{markdown(value)}** ({markdown(compared)})"
        for what, value, compared in key_numbers(results)
    ]
    parts = [
        f"# {markdown(results.title)}",
        f"**{over}{markdown(results.choice.reason)}**",
        "\n".join(numbers),
        "## Base, tuned, merged",
        markdown_table(summary_table(results)),
        summary_table(results).caption,
        _by_module(results),
        f"![Task score and attack success rate over λ](tradeoff.png)\n\n{markdown(caption(results))}",
        _markdown_list("What to know of these numbers", results.notes),
        *_sections(results),
        "## Recipe and provenance",
        "\n".join(_provenance(results)),
        fenced(_yaml(results.recipe), "yaml"),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _by_module(results: Results) -> str:
    """Whether λ by module beat the single λ, and what was tried."""
    if results.by_module is None:
        return ""
    found = [table for table in (tables.tried_table(results), tables.test_table(results)) if table]
    shown = [f"{markdown_table(table)}\n\n{table.caption}" for table in found]
    parts = [f"## {tables.HEADING}", markdown(results.by_module.sentence), *shown, tables.NOTE]
    return "\n\n".join(parts)


def _sections(results: Results) -> list[str]:
    """The tables that only some reports have."""
    tables = {
        "By category": category_table(results),
        "Task by task": detail_table(results),
        "Judges beside each other": agreement_table(results),
    }
    parts = [f"## {heading}\n\n{markdown_table(table)}" for heading, table in tables.items() if table]
    if changed := change_tables(results.changes):
        said = [f"{table.caption}\n\n{markdown_table(table)}" for table in changed]
        parts.append("\n\n".join(["## How far tuning moved the weights", *said]))
    return parts


def _markdown_list(heading: str, items: Sequence[str]) -> str:
    return f"## {heading}\n\n" + "\n".join(f"- {markdown(item)}" for item in items) if items else ""


def _provenance(results: Results) -> list[str]:
    """Models, judges and versions, a line each."""
    models = [
        f"- {markdown(role)}: " + ", ".join(f"{markdown(key)} {markdown(model[key])}" for key in sorted(model))
        for role, model in sorted(results.models.items())
    ]
    versions = ", ".join(f"{markdown(name)} {markdown(version)}" for name, version in sorted(results.versions.items()))
    return [*models, f"- judged by: {markdown(', '.join(results.judges))}", f"- versions: {versions}"]
