"""The report as one self-contained HTML page, and as Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any

from mooring.report import figure
from mooring.report.results import COLUMNS, Results, Row
from mooring.report.table import (
    agreement_table,
    category_table,
    detail_table,
    in_order,
    key_numbers,
    markdown_table,
    summary_table,
)
from mooring.report.text import fenced, markdown, name_of, visible

HARMFUL = ("asr", "refusal")
"""Measures whose prompts are harmful requests."""


def as_html(results: Results) -> str:
    """The page: no script, and nothing fetched; every string is escaped, and shown so that nothing acts unseen."""
    import importlib.resources

    import jinja2
    from markupsafe import Markup

    source = importlib.resources.files("mooring.report").joinpath("page.html.jinja").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: value if isinstance(value, Markup) else visible(str(value)),
    )
    drawings = {
        "tradeoff": figure.tradeoff(results),
        "plane": figure.plane(results),
        "loss": figure.loss_curve(results.curves),
    }
    # Ours, made of numbers and labels: the only markup that is not escaped.
    drawn = {name: Markup(figure.inline(drawing, name)) if drawing else None for name, drawing in drawings.items()}
    return environment.from_string(source).render(
        results=results,
        columns=COLUMNS,
        numbers=key_numbers(results),
        summary=summary_table(results),
        categories=category_table(results),
        details=detail_table(results),
        agreement=agreement_table(results),
        caption=caption(results),
        drawn=drawn,
        answers=_by_measure(results),
        recipe=_yaml(results.recipe),
    )


def _by_measure(results: Results) -> list[tuple[str, bool, list[Row]]]:
    """The prompts by what they count towards: (name, whether they are harmful, rows)."""
    names = in_order({row.measure for row in results.rows})
    return [(name_of(name), name in HARMFUL, [row for row in results.rows if row.measure == name]) for name in names]


def caption(results: Results) -> str:
    """What the figure shows, with the split and the method of measuring."""
    score = next((t.scores["asr"] for t in results.trials if "asr" in t.scores), None)
    method = f", measured by {score.method}" if score else ""
    metric = results.choice.metric
    task = "" if metric == "lam" else f"{name_of(metric).partition(' (')[0]} and "
    text = (
        f"{task}attack success rate{method}, over λ, the weight of the tuned model. Filled: the validation split, on "
        f"which λ was chosen. Hollow, moved a little to the right: the test split. Bars: 95 % intervals. Dashed: the "
        f"bound on validation, {100 * results.choice.bound:.1f} %. Ringed: the chosen λ = {results.choice.lam:g}."
    )
    return text[0].upper() + text[1:]


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
        f"![Task score and attack success rate over λ](tradeoff.png)\n\n{markdown(caption(results))}",
        _markdown_list("What to know of these numbers", results.notes),
        *_sections(results),
        "## Recipe and provenance",
        "\n".join(_provenance(results)),
        fenced(_yaml(results.recipe), "yaml"),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _sections(results: Results) -> list[str]:
    """The tables that only some reports have."""
    tables = {
        "By category": category_table(results),
        "Task by task": detail_table(results),
        "Judges beside each other": agreement_table(results),
    }
    return [f"## {heading}\n\n{markdown_table(table)}" for heading, table in tables.items() if table]


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
