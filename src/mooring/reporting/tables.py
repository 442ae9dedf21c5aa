"""The search for λ by module in a report: what was tried on validation, and whether what was taken held on test."""

import dataclasses
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from mooring.errors import DataError
from mooring.merge_point import BASE, TUNED, MergePoint
from mooring.metrics import METRICS
from mooring.records import Score, Trial
from mooring.reporting.results import COLUMNS, Results, Row, is_task, is_whole
from mooring.stats import Difference, Hits, compare_rates, compare_scores
from mooring.text import (
    ARROWS,
    HELD,
    MISSING,
    is_rate,
    markdown,
    name_of,
    number,
    percent,
    visible,
    with_interval,
)

if TYPE_CHECKING:
    import rich.table


# --- Two of a report's models on the same prompts of the test split: how far their rates and ---


def harmful(results: Results, point: MergePoint) -> Hits:
    """Whether a model's answer to each harmful prompt of the test split is harmful, by the prompt's id."""
    key = point.key
    rows = (row for row in results.rows if row.measure == "asr" and row.split == "test" and key in row.answers)
    marks = {row.id: row.answers[key].good for row in rows}
    return {name: None if good is None else not good for name, good in marks.items()}


def of_rates(first: Hits, second: Hits) -> Difference | None:
    """By how much the second's attack success rate is higher; `None` without answers to the same prompts."""
    try:
        return compare_rates(first, second) if first else None
    except DataError:
        return None


def of_scores(first: Score | None, second: Score | None) -> Difference | None:
    """By how much the second's task score is higher; `None` where it was not kept prompt by prompt, or of others."""
    if first is None or second is None or not first.each:
        return None
    try:
        return compare_scores(first.each, second.each, weights=first.weights or None)
    except DataError:
        return None


def shown(difference: Difference | None, measure: str, points: str = "") -> str:
    """A difference with its interval: of a rate in points, of a loss in nats.

    Args:
        difference: What is shown; a dash for `None`, or where it is undefined.
        measure: The score's name.
        points: What a rate's unit is called behind the number.
    """
    if difference is None or difference.value is None or difference.low is None or difference.high is None:
        return MISSING
    scale, digits, unit = (100, 1, points) if is_rate(measure) else (1, 3, "")
    value, low, high = (f"{scale * end:+.{digits}f}" for end in (difference.value, difference.low, difference.high))
    return f"{value}{unit} [{low}, {high}]".replace("-", "−")


# --- The summary: base, tuned and merged on the test split ---


GOOD_WHEN_HIGH = ("refusal", "call_match", "exact_match", "task")
"""Measures that count the good answers; the others count the bad ones."""


_NUMBERS = re.compile(r"(undefined|[\d\s.,/%+−–\[\]-]*)( points [\d\s.,+−–\[\]-]*)?")
"""What a cell of numbers looks like: a value with its unit and interval, counts, or nothing."""


@dataclasses.dataclass(frozen=True, slots=True)
class Table:
    """Cells as plain text, not yet escaped for any medium."""

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]

    @property
    def figures(self) -> list[bool]:
        """Of every column, whether it holds numbers alone, so that they stand to the right."""
        columns = [[row[place] for row in self.rows] for place in range(len(self.header))]
        return [place > 0 and all(map(_NUMBERS.fullmatch, column)) for place, column in enumerate(columns)]


def summary_table(results: Results) -> Table:
    """Measures down; base, tuned, merged, the number of prompts and how it was measured across."""
    rows = [_measure_row(results, name) for name in measures(results)]
    rows += [_gain_row(name, results.gains[name]) for name in in_order(results.gains)]
    chosen = HEADING if results.choice.point.by_module else results.choice.point.label
    header = ("test split", BASE.long_label, TUNED.long_label, f"merged ({chosen})", "n", "measured by")
    return Table("Test split, 95 % intervals in brackets. ↑ more is better, ↓ less is better.", header, rows)


def measures(results: Results) -> list[str]:
    """The names of the scores on the test split."""
    names = {name for trial in results.trials if trial.split == "test" for name in trial.scores}
    return in_order(name for name in names if "/" not in name)


def in_order(names: Iterable[str]) -> list[str]:
    """Names of scores, the known ones first in the order of `METRICS`."""
    known = list(METRICS)

    def place(name: str) -> tuple[int, str]:
        first = re.split("[:@]", name)[0]
        return (known.index(first) if first in known else len(known), name)

    return sorted(names, key=place)


def _measure_row(results: Results, name: str) -> list[str]:
    scores = [results.score(model, name) for model in COLUMNS]
    found = [score for score in scores if score is not None]
    arrow = ARROWS[found[0].better] if found else ""
    counts = dict.fromkeys(str(score.n) for score in found)
    methods = dict.fromkeys(score.method for score in found)
    cells = [with_interval(score) for score in scores]
    return [f"{name_of(name)}{HELD}{arrow}".rstrip(), *cells, " / ".join(counts), "; ".join(methods)]


def _gain_row(name: str, share: float | None) -> list[str]:
    label = f"gain kept: {name_of(name).partition(' (')[0]}"
    if share is None:
        return [label, MISSING, MISSING, "undefined", "", "tuning gained nothing to keep"]
    return [label, "0 %", "100 %", percent(share), "", "of tuned − base"]


def category_table(results: Results) -> Table | None:
    """The same measures by the prompts' category, counted from the answers; `None` where there are no categories."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in results.rows:
        if row.category and row.split == "test":
            groups.setdefault((row.measure, row.category), []).append(row)
    if not groups:
        return None
    keys_of = [results.point(model).key for model in COLUMNS]
    order = in_order({measure for measure, _ in groups})
    keys = sorted(groups, key=lambda key: (order.index(key[0]), key[1]))
    rows = [
        [name_of(measure), category, *(_share(groups[measure, category], measure, key) for key in keys_of)]
        for measure, category in keys
    ]
    return Table("Test split, by category: how many of how many.", ("measure", "category", *COLUMNS), rows)


def _share(rows: Sequence[Row], measure: str, key: str) -> str:
    """How many answers count towards a measure, of those with a verdict."""
    marks = [row.answers[key].good for row in rows if key in row.answers]
    read = [mark for mark in marks if mark is not None]
    if not read:
        return MISSING
    return f"{sum(mark is (measure in GOOD_WHEN_HIGH) for mark in read)} / {len(read)}"


def detail_table(results: Results) -> Table | None:
    """What each task of a group scored, such as the 27 of BIG-Bench Hard; `None` where there is no group."""
    names = sorted({n for t in results.trials if t.split == "test" for n in t.scores if "/" in n})
    if not names:
        return None
    rows = [[name_of(name), *(with_interval(results.score(model, name)) for model in COLUMNS)] for name in names]
    return Table("Test split, each task of a group.", ("task", *COLUMNS), rows)


def agreement_table(results: Results) -> Table | None:
    """How far the judges agree; `None` where there is one alone."""
    if not results.agreement:
        return None
    rows = [
        [
            name_of(each.measure),
            " and ".join(each.judges),
            "undefined" if each.kappa is None else f"{each.kappa:.2f}",
            f"{each.same} / {each.n}",
            str(len(set(each.parted))),
        ]
        for each in results.agreement
    ]
    header = ("measure", "judges", "Cohen's κ", "same verdict", "prompts on which they part")
    return Table("Test split, all three models together, answers that both judges could be read on.", header, rows)


def key_numbers(results: Results) -> list[tuple[str, str, str]]:
    """The three numbers to read first, as (what, value, to compare it with), all of the test split."""
    shown = measures(results)
    task = None if results.choice.metric == "lam" else results.choice.metric
    if task and task not in shown:  # λ was chosen by what only the validation split has
        task = next(filter(is_task, shown), None)
    names = ["asr", task] if task else ["asr", "over_refusal", "ordinary_refusal"]
    numbers = [_key_number(results, name) for name in names if name in shown]
    if task and task in results.gains:
        numbers.append(
            (
                f"{name_of(task).partition(' (')[0]}: gain kept",
                percent(results.gains[task]),
                "of what tuning gained over the base",
            )
        )
    return numbers


def _key_number(results: Results, name: str) -> tuple[str, str, str]:
    base, tuned, merged = (results.score(model, name) for model in COLUMNS)
    arrow = ARROWS[merged.better] if merged else ""
    method = f"; by {merged.method}" if merged and merged.method != name_of(name) else ""
    compared = f"base {_plain(base)}, tuned {_plain(tuned)}{method}"
    return f"{name_of(name)}{HELD}{arrow}", _plain(merged), compared


def _plain(score: Score | None) -> str:
    return MISSING if score is None else number(score.value, score.name)


def terminal_table(results: Results) -> "rich.table.Table":
    """The summary for the terminal, two lines a measure, so that it fits in 80 columns."""
    import rich.box
    import rich.table
    import rich.text

    summary = summary_table(results)
    table = rich.table.Table(box=rich.box.SIMPLE_HEAD, caption=summary.caption, caption_justify="left", pad_edge=False)
    for index, head in enumerate(summary.header[:4]):
        table.add_column(head, justify="right" if index else "left", style="bold" if index == 3 else None)
    for label, *cells, count, method in summary.rows:
        first = rich.text.Text(visible(label))
        first.append("\n  " + visible(f"n = {count}, {method}" if count else method), style="dim")
        # Text, not str: a square bracket is an interval here, not markup.
        table.add_row(first, *(rich.text.Text(visible(cell).replace(" [", "\n[")) for cell in cells))
    return table


def markdown_table(table: Table) -> str:
    """A table in Markdown, numbers to the right."""
    rule = ["---:" if figures else "---" for figures in table.figures]
    lines = [[markdown(head) for head in table.header], rule, *([markdown(cell) for cell in row] for row in table.rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


HEADING = "λ by module"
NOTE = (
    "λ is that of a group of modules: attention or all else of a layer (`mlp`, norms too), in the first, second or "
    "last third of the depth. Curves and slider are those of a single λ. The best of several tries "
    "may owe its lead on validation to chance: the test split says whether it held."
)


def tried_table(results: Results) -> Table | None:
    """The merges that were tried, below the single λ that they began from; `None` where none was."""
    found = results.by_module
    if found is None or not found.tried:
        return None
    metric, choice = results.choice.metric, results.choice
    sure = [] if found.confidence is None else [f"upper limit, {100 * found.confidence:.5g} %"]
    header = ["merge", name_of(metric), name_of("asr"), *sure, "within the bound", "betters both"]
    own = [_limit(choice.upper.get(results.single.key))] if sure else []
    rows = [[f"single {results.single.label}", *_scores(found.single, metric), *own, "yes", ""]]
    for place, each in enumerate(found.tried):
        name = each.trial.point.groups_label + (", taken" if place == found.chosen else "")
        within = "yes" if each.within else "no"
        limit = [_limit(each.upper)] if sure else []
        rows.append([name, *_scores(each.trial, metric), *limit, within, "yes" if each.beats else "no"])
    what = f"Validation split, in the order in which they were tried. The bound: {number(choice.bound, 'asr')}."
    if found.confidence is not None and choice.confidence is not None:
        what += f" The single λ's limit is of {100 * choice.confidence:.5g} % confidence."
    return Table(what, header, rows)


def _scores(trial: Trial, metric: str) -> list[str]:
    return [number(trial.scores[name].value, name) if name in trial.scores else MISSING for name in (metric, "asr")]


def _limit(upper: float | None) -> str:
    return MISSING if upper is None else number(upper, "asr")


def test_table(results: Results) -> Table | None:
    """What was taken beside the single λ, on the test split, with the difference on the same prompts; else `None`."""
    found = results.by_module
    if found is None or found.test is None:
        return None
    single = results.trial_at(results.single, "test")
    if single is None:
        return None
    rows = []
    for name in dict.fromkeys((results.choice.metric, "asr", *found.test.scores)):
        one, other = single.scores.get(name), found.test.scores.get(name)
        if one and other and is_whole(name):
            label = name_of(name)
            rows.append(
                [
                    label,
                    with_interval(one),
                    with_interval(other),
                    shown(_difference(results, one, other), name, " points"),
                ]
            )
    header = ("test split", f"single {results.single.label}", HEADING, "difference")
    return Table("Test split, 95 % intervals in brackets; differences on the same prompts.", header, rows)


def _difference(results: Results, one: Score, other: Score) -> Difference | None:
    if one.name == "asr":
        return of_rates(harmful(results, results.single), harmful(results, results.choice.point))
    return of_scores(one, other)


def module_terminal_table(table: Table) -> "rich.table.Table":
    """A table for the terminal."""
    import rich.box
    import rich.table
    import rich.text

    made = rich.table.Table(box=rich.box.SIMPLE_HEAD, caption=table.caption, caption_justify="left", pad_edge=False)
    for index, head in enumerate(table.header):
        # Headings of numbers are broken, so that there is room for the names of merges.
        most = max(map(len, [*head.split(), *(row[index] for row in table.rows)])) if index else None
        made.add_column(rich.text.Text(head), justify="right" if index else "left", max_width=most)
    for row in table.rows:
        made.add_row(*(rich.text.Text(visible(cell)) for cell in row))
    return made
