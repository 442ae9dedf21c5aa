"""From lm-eval's results to scores with intervals."""

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from mooring.records import Score
from mooring.stats import Z95, wilson

PREFIX = "lm_eval:"
"""What the names of these scores begin with."""


def scores_of(
    results: Mapping[str, Any],
    names: Sequence[str],
    method: str,
    notes: Mapping[str, str],
    cut: Mapping[str, int] | None = None,
) -> dict[str, Score]:
    """A score for each group and each task: its first metric; the others are among the details.

    The interval is Wilson's where every single value is 0 or 1, else normal, from the values' own variance. A metric
    that is not the mean of its values (such as F1 over all) has none.

    Args:
        results: What `lm_eval.evaluate` gives, samples included.
        names: Groups and tasks that were asked for; they come first.
        method: Name and version of lm-eval.
        notes: Task to what else its numbers hang on, for the record.
        cut: Task to how many of its prompts lost tokens on their left, where that is known: `details["cut"]`.

    Returns:
        `lm_eval:<name>` to its score.
    """
    groups = results.get("group_subtasks", {})
    ordered = [*names, *(name for name in results["results"] if name not in names)]
    found = {}
    for name in ordered:
        score = _group(results, name, groups[name], method) if name in groups else _task(results, name, method, notes)
        if score is not None:
            leaves = _leaves(results, [name])
            found[score.name] = _with_cut(score, [cut[leaf] for leaf in leaves if cut and leaf in cut])
    return found


def _with_cut(score: Score, counts: Sequence[int]) -> Score:
    """The score with the number of prompts that were cut, which its method says, too, where there are any."""
    if not counts:
        return score
    total = sum(counts)
    said = f", {total} prompt{'' if total == 1 else 's'} cut from the left" if total else ""
    return dataclasses.replace(score, method=score.method + said, details={**score.details, "cut": total})


def _metrics(row: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a row of results, by `metric,filter`, without their standard errors."""
    return {
        key: float(value)
        for key, value in row.items()
        if "," in key and not key.split(",")[0].endswith("_stderr") and isinstance(value, (int, float))
    }


def _task(results: Mapping[str, Any], name: str, method: str, notes: Mapping[str, str]) -> Score | None:
    metrics = _metrics(results["results"][name])
    if not metrics:
        return None
    key, value = next(iter(metrics.items()))
    values = _values(results, name, key)
    low, high = interval(value, list(values.values()))
    shots = results["n-shot"].get(name, 0)
    said = f"{method}, {name} v{results['versions'].get(name)}, {shots}-shot, {key}"
    return Score(
        name=PREFIX + name,
        value=value,
        low=low,
        high=high,
        n=results["n-samples"][name]["effective"],
        better=_better(results, name, key),
        method=said + (f", {notes[name]}" if notes.get(name) else ""),
        details={other: number for other, number in metrics.items() if other != key},
        each=values if low is not None else {},
    )


def _group(results: Mapping[str, Any], name: str, members: Sequence[str], method: str) -> Score | None:
    """A group's score: lm-eval's, mostly the mean over all questions; `mean_of_tasks` weighs each task alike."""
    metrics = _metrics(results["results"].get(name, {}))
    if not metrics:
        return None
    key, value = next(iter(metrics.items()))
    leaves = list(_leaves(results, members))
    of_tasks = [number for leaf in leaves if (number := _metrics(results["results"][leaf]).get(key)) is not None]
    values = {f"{leaf}/{doc}": single for leaf in leaves for doc, single in _values(results, leaf, key).items()}
    low, high = interval(value, list(values.values()))
    shots = {results["n-shot"].get(leaf, 0) for leaf in leaves}
    shown = "/".join(str(number) for number in sorted(shots))
    return Score(
        name=PREFIX + name,
        value=value,
        low=low,
        high=high,
        n=sum(results["n-samples"][leaf]["effective"] for leaf in leaves),
        better=_better(results, name, key),
        method=f"{method}, {name} v{results['versions'].get(name)}, {shown}-shot, {key}, {len(leaves)} tasks",
        details={other: number for other, number in metrics.items() if other != key}
        | {"mean_of_tasks": statistics.fmean(of_tasks), "tasks": len(leaves)},
        each=values if low is not None else {},
    )


def _leaves(results: Mapping[str, Any], members: Sequence[str]) -> Sequence[str]:
    groups = results.get("group_subtasks", {})
    found: dict[str, None] = {}
    for member in members:
        found.update(dict.fromkeys(_leaves(results, groups[member]) if member in groups else [member]))
    return list(found)


def _values(results: Mapping[str, Any], name: str, key: str) -> dict[str, float]:
    """A metric's value at every question, by its number; none where it has no such values."""
    metric, _, chosen = key.partition(",")
    rows = [row for row in results["samples"][name] if row["filter"] == chosen and metric in row]
    if not all(isinstance(row[metric], (int, float)) for row in rows):
        return {}
    return {str(row["doc_id"]): float(row[metric]) for row in rows}


def interval(value: float, values: Sequence[float]) -> tuple[float | None, float | None]:
    """The 95 % interval of a mean, or twice None where the value is not the mean of the single ones.

    Wilson's where all are 0 or 1; else normal: value ± 1.96 s/√n.
    """
    if not values or not math.isclose(statistics.fmean(values), value, rel_tol=1e-6, abs_tol=1e-9):
        return None, None
    if set(values) <= {0.0, 1.0}:
        return wilson(round(sum(values)), len(values))
    if len(values) < 2:
        return None, None
    half = Z95 * statistics.stdev(values) / math.sqrt(len(values))
    return value - half, value + half


def _better(results: Mapping[str, Any], name: str, key: str) -> Literal["higher", "lower"]:
    higher = results["higher_is_better"].get(name, {}).get(key.partition(",")[0])
    return "lower" if higher is False else "higher"
