"""From lm-eval's results to scores with intervals."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from mooring.records import Score
from mooring.stats import Z95, wilson

PREFIX = "lm_eval:"
"""Prefix of the names of these scores."""

Results = Mapping[str, Any]
"""What `lm_eval.evaluate` returns, samples included."""


def to_scores(
    results: Results,
    names: Sequence[str],
    method: str,
    notes: Mapping[str, str],
    truncated: Mapping[str, int] | None = None,
) -> dict[str, Score]:
    """A score `lm_eval:<name>` per group and per task: its first metric; the other metrics are among the details.

    A group's score is lm-eval's, usually the mean over all questions; `details["mean_of_tasks"]` weights each task
    equally. Intervals are at 95 %, as `interval` computes them. The requested `names` come first; a name without a
    metric is left out. `notes` are further conditions per task, and `truncated` the number of questions with a
    truncated prompt.
    """
    ordered = [*names, *(name for name in results["results"] if name not in names)]
    scores = (_score(results, name, method, notes.get(name, ""), truncated or {}) for name in ordered)
    return {score.name: score for score in scores if score is not None}


def _score(results: Results, name: str, method: str, note: str, truncated: Mapping[str, int]) -> Score | None:
    metrics = _metrics(results, name)
    if not metrics:
        return None
    key, value = next(iter(metrics.items()))
    details = {other: number for other, number in metrics.items() if other != key}
    leaves = _leaves(results, name)
    if name in results.get("group_subtasks", {}):
        means = [number for leaf in leaves if (number := _metrics(results, leaf).get(key)) is not None]
        details |= {"mean_of_tasks": statistics.fmean(means), "tasks": len(leaves)}
        note = f"{len(leaves)} tasks"
        values = {f"{leaf}/{doc}": each for leaf in leaves for doc, each in _values(results, leaf, key).items()}
    else:
        values = _values(results, name, key)
    low, high = interval(value, list(values.values()))
    shots = "/".join(str(number) for number in sorted({results["n-shot"].get(leaf, 0) for leaf in leaves}))
    conditions = [method, f"{name} v{results['versions'].get(name)}", f"{shots}-shot", key, note]
    counts = [truncated[leaf] for leaf in leaves if leaf in truncated]
    if counts:
        total = sum(counts)
        details["truncated"] = total
        conditions.append(f"{total} prompt{'' if total == 1 else 's'} truncated on the left" if total else "")
    return Score(
        name=PREFIX + name,
        value=value,
        low=low,
        high=high,
        n=sum(results["n-samples"][leaf]["effective"] for leaf in leaves),
        better=_better(results, name, key),
        method=", ".join(condition for condition in conditions if condition),
        details=details,
        each=values if low is not None else {},
    )


def _metrics(results: Results, name: str) -> dict[str, float]:
    """The metrics of a group or task by `metric,filter`, without their standard errors."""
    return {
        key: float(value)
        for key, value in results["results"].get(name, {}).items()
        if "," in key and not key.split(",")[0].endswith("_stderr") and isinstance(value, (int, float))
    }


def _leaves(results: Results, name: str) -> list[str]:
    """The tasks of a group, of its groups too; or the task itself."""
    groups = results.get("group_subtasks", {})
    if name not in groups:
        return [name]
    return list(dict.fromkeys(leaf for member in groups[name] for leaf in _leaves(results, member)))


def _values(results: Results, task: str, key: str) -> dict[str, float]:
    """A metric's value per question, by the question's number; empty if it is not a number for each."""
    metric, _, filter_name = key.partition(",")
    rows = [row for row in results["samples"][task] if row["filter"] == filter_name and metric in row]
    if not all(isinstance(row[metric], (int, float)) for row in rows):
        return {}
    return {str(row["doc_id"]): float(row[metric]) for row in rows}


def _better(results: Results, name: str, key: str) -> Literal["higher", "lower"]:
    higher = results["higher_is_better"].get(name, {}).get(key.partition(",")[0])
    return "lower" if higher is False else "higher"


def interval(value: float, values: Sequence[float]) -> tuple[float | None, float | None]:
    """The 95 % interval of a mean.

    Wilson's if all values are 0 or 1; otherwise normal: value ± 1.96 s/√n.

    Returns:
        The limits; (None, None) if `value` is not the mean of `values`, such as F1 over all questions.
    """
    if not values or not math.isclose(statistics.fmean(values), value, rel_tol=1e-6, abs_tol=1e-9):
        return None, None
    if set(values) <= {0.0, 1.0}:
        return wilson(round(sum(values)), len(values))
    if len(values) < 2:
        return None, None
    half = Z95 * statistics.stdev(values) / math.sqrt(len(values))
    return value - half, value + half
