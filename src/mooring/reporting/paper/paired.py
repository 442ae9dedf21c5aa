"""Models on the same prompts: tuned, base and merged of a run, and methods of one tuned model, in pairs."""

import csv
import dataclasses
import io
from collections.abc import Iterator, Sequence

from mooring.merge_point import Role
from mooring.reporting.paper.formats import booktabs, safe_cell
from mooring.reporting.paper.runs import Run, differences
from mooring.reporting.paper.tables import LINEAR, Cell, task_score
from mooring.reporting.tables import Table, harmful, markdown_table, of_rates, of_scores, shown
from mooring.stats import Difference
from mooring.text import MISSING, markdown, name_of

NAME = "paired"
CAPTION = (
    "The second model less the first, on the same prompts of the test split, 95 % intervals in brackets. ASR: Tango's "
    "interval, and McNemar's exact test of the prompts that became unsafe and safe, not corrected for the number of "
    "rows. Task score: paired bootstrap over prompts."
)


@dataclasses.dataclass(frozen=True, slots=True)
class Pair:
    """Two models that were asked the same.

    Attributes:
        base: The aligned model.
        task: What was tuned for.
        seed: The tuned models' seed.
        first: The one that is compared with: `base`, `tuned`, or a method at its λ.
        second: The other.
        rate: By how much the second's attack success rate is higher; a hit is a harmful answer.
        measure: The task score's name; `None` where there is none.
        score: By how much the second's task score is higher; `None` where it was not kept prompt by prompt.
    """

    base: str
    task: str
    seed: int
    first: str
    second: str
    rate: Difference
    measure: str | None
    score: Difference | None


def pairs(cells: Sequence[Cell]) -> list[Pair]:
    """All pairs that there are answers for.

    Of each run the merged model beside the tuned one and the base; and where a task has several methods, each beside
    `linear`, or the first, seed by seed, where the two runs measured alike.
    """
    found: list[Pair] = []
    firsts: dict[tuple[str, str], Cell] = {}
    for cell in sorted(cells, key=lambda c: (c.first.base, c.first.task, c.first.method != LINEAR, c.first.method)):
        measure = task_score(cell)
        for run in cell.runs:
            found += _pair((run, "tuned"), (run, "merged"), measure)
            found += _pair((run, "base"), (run, "merged"), measure)
        first = firsts.setdefault((cell.first.base, cell.first.task), cell)
        if first is not cell:
            for run in cell.runs:
                other = _partner(run, cell, first)
                if other and not differences(run, other):
                    found += _pair((other, "merged"), (run, "merged"), measure)
    return found


def _partner(run: Run, own: Cell, beside: Cell) -> Run | None:
    """The run of another method on the same tuned model: of the same seed, and where several have it, by its digest."""
    alike = [other for other in beside.runs if other.seed == run.seed]
    if len(alike) > 1 or sum(each.seed == run.seed for each in own.runs) > 1:
        alike = [other for other in alike if other.tuned == run.tuned]
    return alike[0] if alike else None


def _pair(first: tuple[Run, Role], second: tuple[Run, Role], measure: str | None) -> Iterator[Pair]:
    """The two compared; none where the answers were not kept, or the prompts are not the same."""
    rate = of_rates(*(harmful(run.results, run.results.point(model)) for run, model in (first, second)))
    if rate is None:
        return
    scores = [run.results.score(model, measure) if measure else None for run, model in (first, second)]
    run = second[0]
    yield Pair(run.base, run.task, run.seed, _label(*first), _label(*second), rate, measure, of_scores(*scores))


def _label(run: Run, model: Role) -> str:
    return f"{run.method}, {run.results.choice.point.label}" if model == "merged" else model


def as_table(found: Sequence[Pair]) -> Table:
    """The pairs as plain text; rates in points, losses in nats per token."""
    header = ("base", "task", "seed", "from", "to", "ASR, points", "became unsafe / safe", "p", "task measure", "task")
    rows = [
        [
            *(pair.base, pair.task, str(pair.seed), pair.first, pair.second),
            shown(pair.rate, "asr"),
            f"{pair.rate.worse} / {pair.rate.better} of {pair.rate.n}",
            MISSING if pair.rate.p is None else "< 0.001" if pair.rate.p < 0.001 else f"{pair.rate.p:.3f}",
            MISSING if pair.measure is None else name_of(pair.measure),
            shown(pair.score, pair.measure or ""),
        ]
        for pair in found
    ]
    return Table(CAPTION, header, rows)


def as_markdown(found: Sequence[Pair]) -> str:
    """The pairs as a Markdown table, its caption above."""
    table = as_table(found)
    return f"{markdown(table.caption)}\n\n{markdown_table(table)}\n"


def as_latex(found: Sequence[Pair]) -> str:
    """The pairs as a LaTeX table; the document loads `booktabs`."""
    table = as_table(found)
    left = {"base", "task", "from", "to", "task measure"}
    groups = [f"{pair.base}\0{pair.task}" for pair in found]
    return booktabs(table.caption, f"mooring-{NAME}", table.header, table.rows, left, groups)


CSV_HEADER = (
    *("base", "task", "seed", "from", "to", "measure", "difference", "low", "high", "n"),
    *("became_unsafe", "became_safe", "p"),
)


def as_csv(found: Sequence[Pair]) -> str:
    """The differences, one a row: of ASR, and of the task score where there is one. Shares, not percent."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(CSV_HEADER)
    for pair in found:
        names = [*map(safe_cell, (pair.base, pair.task)), pair.seed, *map(safe_cell, (pair.first, pair.second))]
        rate = pair.rate
        writer.writerow([*names, "asr", *_numbers(rate), rate.worse, rate.better, _number(rate.p)])
        if pair.score is not None:
            writer.writerow([*names, safe_cell(pair.measure or ""), *_numbers(pair.score), "", "", ""])
    return out.getvalue()


def _numbers(difference: Difference) -> list[str]:
    return [*map(_number, (difference.value, difference.low, difference.high)), str(difference.n)]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"
