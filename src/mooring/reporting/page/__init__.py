"""The report as one self-contained HTML page, and as Markdown."""

import re
from collections.abc import Sequence

from mooring.attacks import NONE
from mooring.reporting import figures, tables
from mooring.reporting.heatmap import Heatmap, change_tables, percent
from mooring.reporting.judge_error import NOTE, JudgeError, annotator_table, corrected_tables
from mooring.reporting.page import assets
from mooring.reporting.page.data import embedded
from mooring.reporting.render import as_markdown as markdown_table
from mooring.reporting.render import as_yaml
from mooring.reporting.results import Results
from mooring.reporting.tables import Cell, Count, Table, cell_text
from mooring.text import fenced, markdown, short_name

KINDS = {
    "all": "all",
    "unsafe": "became unsafe",
    "again": "became safe again",
    "refused": "over-refused",
    "disagree": "judges disagree",
}
"""What the prompts can be filtered by, at a λ: safe with the base and not here, the tuned model's harm undone, …"""
CHANGES = "What tuning changed"
ERROR_HEADING = "The judge's error"
BASELINES = "Beside gentler tuning"
FORGETTING = "What tuning forgot"
FORGETTING_CAPTION = "How far the models have moved from the base on ordinary requests, over λ. Bars: 95 % intervals."
LAMBDA = "The merged model is at {}: λ is the weight of the tuned model, 0 the base and 1 the tuned model."
"""λ, explained once."""
MARKS = {"passed": "✓", "failed": "✗", "unknown": "?"}
"""What stands before a check of the verdict."""
UNDER_ATTACK = "Under attack"
ATTACK_NOTE = (
    "Each attack is another way of asking for the same harmful requests (docs/attacks.md); the judge reads the request "
    "itself. Where a prompt has several answers, intervals are for answers that resemble each other, and an attack "
    "succeeds on a prompt if any answer is harmful. What resists these attacks may not resist others."
)


def as_html(results: Results, error: JudgeError | None = None) -> str:
    """The page: nothing is fetched, one script runs, and texts reach it as data alone.

    `error` is what people's labels say of the judge.

    A content security policy names that script by its hash, so that no other one could run. Every string is shown so
    that nothing in it acts unseen. Without JavaScript the page lacks the slider and the answers.
    """
    from markupsafe import Markup

    environment = assets.environment()
    environment.filters |= {"text": cell_text, "share": _share, "change": percent}
    attacks = tables.attacks_in(results)
    over_lam = {figure_name(attack): figures.tradeoff(results, attack) for attack in attacks}
    drawings = {
        **over_lam,
        "plane": figures.plane(results),
        "loss": figures.loss_curve(results.curves),
        "forgetting-figure": figures.forgetting(results),
    }
    # Ours, made of numbers and labels: with the script and the style the only markup that is not escaped.
    drawn = {name: Markup(figures.inline(drawing, name)) if drawing else None for name, drawing in drawings.items()}
    places = {
        name: figures.tradeoff_places(results, drawing, attack)
        for attack, (name, drawing) in zip(attacks, over_lam.items(), strict=True)
    }
    if drawings["plane"]:
        places["plane"] = figures.plane_places(results, drawings["plane"])
    style, script = assets.read(__name__, "page.css"), assets.read(__name__, "page.js")
    return environment.from_string(assets.read(__name__, "page.html.jinja")).render(
        results=results,
        kinds=KINDS.items(),
        lam=LAMBDA.format(results.choice.point.label),
        marks=MARKS,
        summary=tables.summary_table(results),
        by_module=_module_tables(results),
        baselines=tables.baseline_table(results),
        baselines_heading=BASELINES,
        forgetting=_forgetting_tables(results),
        forgetting_caption=FORGETTING_CAPTION,
        forgetting_heading=FORGETTING,
        by_module_note=tables.by_module_note(results),
        caption=caption(results),
        attacks=[(attack, figure_name(attack), caption(results, attack)) for attack in attacks],
        attack_tables=tables.attack_tables(results),
        attack_note=ATTACK_NOTE,
        categories=tables.category_table(results),
        heat=_heatmap(results),
        changes_heading=CHANGES,
        error=error,
        error_heading=ERROR_HEADING,
        error_tables=_error_tables(error),
        error_note=NOTE,
        sections=_sections(results),
        ringed=ringed(results),
        drawn=drawn,
        recipe=as_yaml(results.recipe),
        policy=assets.policy(script, style, inline=True),
        style=Markup(style),
        script=Markup(script),
        data=Markup(embedded(results, places)),
    )


def figure_name(attack: str) -> str:
    """The name of the figure over λ under an attack, in files and in the page: `tradeoff-prefill-8`."""
    return "tradeoff" if attack == NONE else f"tradeoff-{re.sub('[^A-Za-z0-9_-]', '-', attack)}"


def _share(cell: Cell) -> float | None:
    """A count in percent, for its bar."""
    return 100 * cell.hits / cell.total if isinstance(cell, Count) and cell.total else None


def _heatmap(results: Results) -> Heatmap | None:
    """The heat map, if anything changed within the layers."""
    found = Heatmap.of(results.changes) if results.changes else None
    return found if found and found.changed else None


def _module_tables(results: Results) -> list[Table]:
    found = (tables.tried_table, tables.module_test_table, tables.gradient_table, tables.group_table)
    return [table for make in found if (table := make(results))]


def _forgetting_tables(results: Results) -> list[Table]:
    return [table for make in (tables.forgetting_table, tables.benchmark_table) if (table := make(results))]


def _error_tables(error: JudgeError | None) -> list[Table]:
    found = [*corrected_tables(error), annotator_table(error)] if error else []
    return [table for table in found if table]


def _sections(results: Results) -> dict[str, Table]:
    """The tables that only some reports have, by heading."""
    found = {
        "Task by task": tables.detail_table(results),
        "Agreement of the judges": tables.agreement_table(results.agreement),
        "Errors of the judges, from their disagreement": tables.latent_table(results),
    }
    return {heading: table for heading, table in found.items() if table}


def caption(results: Results, attack: str = NONE) -> str:
    """What the figure under an attack shows, with the split and the method of measuring."""
    rate = tables.bounded_rate(results, attack)
    score = next((t.scores[rate] for t in results.trials if rate in t.scores), None)
    method = f", measured by {score.method}" if score else ""
    metric = results.choice.metric
    task = "" if metric == "lam" else f"{short_name(metric)} and "
    under = "" if attack == NONE else f" under {attack}"
    bound = results.choice.bounds.get(rate, results.choice.bound if rate == "asr" else None)
    dashed = "" if bound is None else f" Dashed: the bound on validation, {100 * bound:.1f} %."
    text = (
        f"{task}attack success rate{under}{method}, over λ, the weight of the tuned model. In colour: the validation "
        f"split, on which λ was chosen{_hollow(results)}. Diamonds, moved a little to the right: the test split. Bars: "
        f"95 % intervals.{dashed} Ringed: the {ringed(results)}."
    )
    if results.choice.point.by_module:
        text += " Star: λ by module, which was taken, on the test split."
    return text[0].upper() + text[1:]


def ringed(results: Results) -> str:
    """What is ringed in a figure; its curves are those of a single λ."""
    more = {"single": ", around which λ by module was chosen", "nearest": ", since none is within the bound"}
    return f"{results.single_is} {results.single.label}{more.get(results.single_is, '')}"


def _hollow(results: Results) -> str:
    """What a hollow point of the validation split means, if there is one."""
    if all(results.keeps(trial.point) is not False for trial in results.trials):
        return ""
    sure = results.choice.confidence
    confidence = "" if sure is None else f" with {100 * sure:g} % confidence"
    return f", hollow where a λ is not shown to keep the bound{confidence}"


def as_markdown(results: Results, error: JudgeError | None = None) -> str:
    """The report in Markdown: the same numbers, without the answers; `error` as in `as_html`."""
    verdict = results.verdict
    checks = [f"- {MARKS[check.outcome]} {markdown(check.sentence)}" for check in verdict.checks]
    sections: dict[str, Sequence[Table]] = {name: [table] for name, table in _sections(results).items()}
    if categories := tables.category_table(results):
        sections = {"By category": [categories], **sections}
    if heatmap := _heatmap(results):
        sections[CHANGES] = change_tables(heatmap)
    parts = [
        f"# {markdown(results.title)}",
        f"**{verdict.words}.** {markdown(verdict.sentence)}",
        "\n\n".join(map(markdown, (*verdict.caveats, LAMBDA.format(results.choice.point.label)))),
        f"![Task score and attack success rate over λ](tradeoff.png)\n\n{markdown(caption(results))}",
        "## The models on the test split",
        markdown_table(tables.summary_table(results)),
        "## Why",
        "\n".join(checks),
        f"How λ was chosen: {markdown(results.choice.reason)}",
        markdown(results.choice.sensitivity),
    ]
    if results.by_module:
        parts += [f"## {tables.BY_MODULE}", markdown(results.by_module.sentence)]
        parts += [*map(markdown_table, _module_tables(results)), markdown(tables.by_module_note(results))]
    if results.baselines and (baselines := tables.baseline_table(results)):
        parts += [f"## {BASELINES}", markdown(results.baselines.sentence), markdown_table(baselines)]
    if forgetting := _forgetting_tables(results):
        parts.append(f"## {FORGETTING}")
        if results.forgetting:
            parts.append(markdown(results.forgetting.sentence))
            parts.append(f"![Divergence from the base over λ](forgetting.png)\n\n{markdown(FORGETTING_CAPTION)}")
        parts += map(markdown_table, forgetting)
    if error:
        parts += [f"## {ERROR_HEADING}", markdown(error.sentence), *map(markdown_table, _error_tables(error))]
        parts += [markdown(NOTE), "\n".join(f"- {markdown(warning)}" for warning in error.warnings)]
    if under := tables.attack_tables(results):
        parts += [f"## {UNDER_ATTACK}", *map(markdown_table, under), markdown(ATTACK_NOTE)]
        parts += [
            f"![{markdown(attack)}]({figure_name(attack)}.png)\n\n{markdown(caption(results, attack))}"
            for attack in tables.attacks_in(results)[1:]
        ]
    if results.notes:
        parts += ["## What to know of these numbers", "\n".join(f"- {markdown(note)}" for note in results.notes)]
    for heading, found in sections.items():
        parts += [f"## {heading}", *map(markdown_table, found)]
    parts += ["## Recipe and provenance", "\n".join(_provenance(results)), fenced(as_yaml(results.recipe), "yaml")]
    return "\n\n".join(part for part in parts if part) + "\n"


def _provenance(results: Results) -> list[str]:
    """Models, judges and versions, a line each."""
    models = [
        f"- {markdown(role)}: " + ", ".join(f"{markdown(key)} {markdown(model[key])}" for key in sorted(model))
        for role, model in sorted(results.models.items())
    ]
    versions = ", ".join(f"{markdown(name)} {markdown(version)}" for name, version in sorted(results.versions.items()))
    return [*models, f"- judged by: {markdown(', '.join(results.judges))}", f"- versions: {versions}"]
