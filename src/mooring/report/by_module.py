"""The search for λ by module in a report: what was tried on validation, and whether what was taken held on test."""

from typing import TYPE_CHECKING

from mooring.paired import Difference
from mooring.records import Score, Trial, moved_words
from mooring.report.differences import harmful, of_rates, of_scores, shown
from mooring.report.results import BY_MODULE, Results, is_whole, lam_key
from mooring.report.table import Table
from mooring.report.text import MISSING, name_of, number, visible, with_interval

if TYPE_CHECKING:
    import rich.table

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
    own = [_limit(choice.upper.get(lam_key(choice.lam)))] if sure else []
    rows = [[f"single λ = {choice.lam:g}", *_scores(found.single, metric), *own, "yes", ""]]
    for place, each in enumerate(found.tried):
        name = moved_words(each.trial.lam, each.trial.modules) + (", taken" if place == found.chosen else "")
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
    single = next((t for t in results.trials if (t.model, t.split) == ("merged", "test")), None)
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
    header = ("test split", f"single λ = {results.choice.lam:g}", HEADING, "difference")
    return Table("Test split, 95 % intervals in brackets; differences on the same prompts.", header, rows)


def _difference(results: Results, one: Score, other: Score) -> Difference | None:
    if one.name == "asr":
        return of_rates(harmful(results, lam_key(results.choice.lam)), harmful(results, BY_MODULE))
    return of_scores(one, other)


def terminal_table(table: Table) -> "rich.table.Table":
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
