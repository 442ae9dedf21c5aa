"""Tables beside Tables 1 to 3: by category of prompts, and how far the judges agree."""

import itertools
import statistics
from collections.abc import Iterator, Sequence

from mooring.merge_point import Role
from mooring.reporting.paper.runs import Group, Run
from mooring.reporting.tables import Cell, Column, Count, Table, columns, count_of, in_order
from mooring.text import Number, name_of

CATEGORIES, AGREEMENT = "categories", "agreement"
"""Names of the files."""


def tables_of(groups: Sequence[Group]) -> dict[str, Table]:
    """The tables that there are numbers for, by the names of their files."""
    found = {CATEGORIES: category_table(groups), AGREEMENT: agreement_table(groups)}
    return {name: table for name, table in found.items() if table}


def category_table(groups: Sequence[Group]) -> Table | None:
    """Test split, by category: how many of how many, over all tuned models and masks; None without categories."""
    methods = list(dict.fromkeys(group.first.method for group in groups))
    rows: list[list[Cell]] = []
    for (base, task), found in _by_task(groups):
        alike = list(found)
        runs = {group.first.method: group.runs for group in alike}
        tuned = _each_tuned(alike)
        prompts = [row for row in alike[0].first.results.rows if row.split == "test" and row.category]
        measures = in_order({row.measure for row in prompts})
        keys = {(row.measure, row.category or "") for row in prompts}
        for measure, category in sorted(keys, key=lambda key: (measures.index(key[0]), key[1])):
            counts = [
                _count([alike[0].first], "base", measure, category),
                _count(tuned, "tuned", measure, category),
                *(_count(runs.get(method, ()), "merged", measure, category) for method in methods),
            ]
            rows.append([base, task, name_of(measure), category, *counts])
    if not rows:
        return None
    heads = [Column("base", group=True), Column("task", group=True), Column("measure", group=True), Column("category")]
    heads += columns([], ["base", "tuned", *methods])
    return Table("Test split, by category: how many of how many, over all tuned models of a method.", heads, rows)


def _by_task(groups: Sequence[Group]) -> Iterator[tuple[tuple[str, str], Iterator[Group]]]:
    def key(group: Group) -> tuple[str, str]:
        return group.first.base, group.first.task

    return itertools.groupby(sorted(groups, key=key), key)


def _each_tuned(groups: Sequence[Group]) -> list[Run]:
    """A run for each tuned model, whatever the methods."""
    found: dict[str, Run] = {}
    for run in (run for group in groups for run in group.runs if run.has_lam):
        found.setdefault(run.tuned, run)
    return list(found.values())


def _count(runs: Sequence[Run], model: Role, measure: str, category: str) -> Count | None:
    counts = []
    for run in runs:
        rows = [r for r in run.results.rows if (r.split, r.measure, r.category) == ("test", measure, category)]
        counts.append(count_of(rows, measure, run.results.point(model).key))
    known = [count for count in counts if count is not None]
    return Count(sum(c.hits for c in known), sum(c.total for c in known)) if known else None


def agreement_table(groups: Sequence[Group]) -> Table | None:
    """How far every two judges agree on the test split, over base, tuned and merged models; None with one judge.

    Over several runs of a method it is the mean of κ ± its standard deviation.
    """
    rows: list[list[Cell]] = []
    for group in groups:
        by_judges: dict[tuple[str, tuple[str, str]], list[tuple[float | None, int, int]]] = {}
        for each in (each for run in group.runs for each in run.results.agreement):
            by_judges.setdefault((each.measure, each.judges), []).append((each.kappa, each.same, each.n))
        for (measure, judges), found in by_judges.items():
            kappas = [kappa for kappa, _, _ in found if kappa is not None]
            number = Number(
                value=statistics.fmean(kappas) if kappas else None,
                sd=statistics.stdev(kappas) if len(kappas) > 1 else None,
                digits=2,
            )
            same = Count(sum(same for _, same, _ in found), sum(n for _, _, n in found))
            names = (group.first.base, group.first.task, group.first.method)
            rows.append([*names, name_of(measure), " and ".join(judges), number, same])
    if not rows:
        return None
    heads = [Column("base", group=True), Column("task", group=True), Column("method", group=True)]
    heads += columns(["measure", "judges"], ["Cohen's κ", "same verdict"])
    return Table("Test split: answers that both judges could be read on.", heads, rows)
