"""Models on the same prompts: tuned, base and merged of a run, and methods of one tuned model, in pairs."""

import dataclasses
from collections.abc import Iterator, Sequence

from mooring.merge_point import Role
from mooring.reporting.paper.runs import Group, Run, differences
from mooring.reporting.paper.tables import LINEAR, task_score
from mooring.reporting.tables import (
    Cell,
    Column,
    Table,
    difference_number,
    difference_of_rates,
    difference_of_scores,
    harmful,
)
from mooring.stats import Difference
from mooring.text import Number, name_of

NAME = "paired"
CAPTION = (
    "The second model less the first, on the same prompts of the test split, 95 % intervals in brackets. ASR: Tango's "
    "interval, and McNemar's exact test of the prompts that became unsafe and safe, not corrected for the number of "
    "rows. Task score: paired bootstrap over prompts."
)


@dataclasses.dataclass(frozen=True, slots=True)
class Pair:
    """Two models on the same prompts: `base`, `tuned`, or a method at its λ.

    `seed` is the tuned model's; of a comparison, its name and mask.
    `rate` and `score` are by how much the second's attack success rate and task score are higher; `score` is `None` if
    it was not kept by prompt.
    """

    base: str
    task: str
    seed: int | str
    first: str
    second: str
    rate: Difference
    measure: str | None
    score: Difference | None


def pairs(groups: Sequence[Group]) -> list[Pair]:
    """All pairs that there are answers for.

    Of each run the merged model beside the tuned one and the base; and if a task has several methods, each beside
    `linear`, or the first, seed by seed, if the two runs measured alike.
    """
    found: list[Pair] = []
    firsts: dict[tuple[str, str], Group] = {}
    for group in sorted(groups, key=lambda g: (g.first.base, g.first.task, g.first.method != LINEAR, g.first.method)):
        measure = task_score(group)
        for run in group.runs:
            if run.has_lam:
                found += _pair((run, "tuned"), (run, "merged"), measure)
            found += _pair((run, "base"), (run, "merged"), measure)
        first = firsts.setdefault((group.first.base, group.first.task), group)
        if first is not group:
            for run in group.runs:
                other = _partner(run, group, first)
                if other and not differences(run, other):
                    found += _pair((other, "merged"), (run, "merged"), measure)
    return found


def _partner(run: Run, own: Group, beside: Group) -> Run | None:
    """The run of another method on the same tuned model: of the same seed, and if several have it, by its digest."""
    alike = [other for other in beside.runs if other.seed == run.seed]
    if len(alike) > 1 or sum(each.seed == run.seed for each in own.runs) > 1:
        alike = [other for other in alike if other.tuned == run.tuned]
    return alike[0] if alike else None


def _pair(first: tuple[Run, Role], second: tuple[Run, Role], measure: str | None) -> Iterator[Pair]:
    """The two compared; none if the answers were not kept, or the prompts are not the same."""
    rate = difference_of_rates(*(harmful(run.results, run.results.point(model)) for run, model in (first, second)))
    if rate is None:
        return
    scores = [run.results.score(model, measure) if measure else None for run, model in (first, second)]
    run, score = second[0], difference_of_scores(*scores)
    yield Pair(run.base, run.task, run.label or run.seed, _label(*first), _label(*second), rate, measure, score)


def _label(run: Run, model: Role) -> str:
    if model != "merged":
        return model
    return f"{run.method}, {run.results.choice.point.label}" if run.has_lam else run.method


def to_table(found: Sequence[Pair], seed: str = "seed") -> Table:
    """The pairs as people read them: rates in points, losses in nats per token; `seed` is that column's heading."""
    heads = [
        *(Column("base", group=True), Column("task", group=True), Column(seed, numeric=seed == "seed")),
        *(Column("from"), Column("to"), Column("ASR, points", numeric=True)),
        *(Column("became unsafe / safe", numeric=True), Column("p", numeric=True)),
        *(Column("task measure"), Column("task", numeric=True)),
    ]
    rows: list[list[Cell]] = [
        [
            *(pair.base, pair.task, pair.seed, pair.first, pair.second),
            difference_number(pair.rate, "asr"),
            f"{pair.rate.worse} / {pair.rate.better} of {pair.rate.n}",
            "< 0.001" if pair.rate.p is not None and pair.rate.p < 0.001 else _p_value(pair.rate.p),
            None if pair.measure is None else name_of(pair.measure),
            difference_number(pair.score, pair.measure or ""),
        ]
        for pair in found
    ]
    return Table(CAPTION, heads, rows)


def _p_value(p: float | None) -> Number | None:
    return None if p is None else Number(value=p)


def to_numbers(found: Sequence[Pair]) -> Table:
    """The differences, one per row: of ASR, and of the task score if there is one. Shares, not percent."""
    rows: list[list[Cell]] = []
    for pair in found:
        names = (pair.base, pair.task, pair.seed, pair.first, pair.second)
        rate, score = pair.rate, pair.score
        rows.append([*names, "asr", *_statistics(rate), rate.worse, rate.better, rate.p])
        if score is not None:
            rows.append([*names, pair.measure, *_statistics(score), None, None, None])
    heads = ("base", "task", "seed", "from", "to", "measure", "difference", "low", "high", "n")
    return Table("", list(map(Column, (*heads, "became_unsafe", "became_safe", "p"))), rows)


def _statistics(difference: Difference) -> tuple[Cell, ...]:
    return difference.value, difference.low, difference.high, difference.n
