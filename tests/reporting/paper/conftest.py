"""A folder of runs with made-up numbers."""

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

# `--import-mode=importlib` puts no test folder on the path.
sys.path.insert(0, str(Path(__file__).parents[1]))

from report_sample import results, trials

from mooring.config import Recipe
from mooring.records import Score, Trial
from mooring.reporting.results import Results, dumps

MakeRun = Callable[..., Path]


def moved(score: Score, by: float) -> Score:
    """A score and its interval, moved."""
    at, low, high = (None if v is None else min(1.0, max(0.0, v + by)) for v in (score.value, score.low, score.high))
    return dataclasses.replace(score, value=at, low=low, high=high)


def found(
    name: str,
    *,
    base: str = "meta-llama/Llama-3.1-8B-Instruct",
    task: str = "bundled:tools",
    method: str = "linear",
    seed: int = 42,
    by: float = 0.0,
    tuned: str | None = None,
    merge: dict[str, Any] | None = None,
    generate: dict[str, Any] | None = None,
    judges: tuple[str, ...] = ("refusal rules",),
    prompts: dict[str, dict[str, str]] | None = None,
    **score: Any,
) -> Results:
    """Results of a run whose numbers all lie `by` higher than the sample's."""
    recipe = Recipe.parse(
        {
            "name": name,
            "seed": seed,
            "base": base,
            "tune": {"data": ["train.jsonl"]},
            "merge": {"method": method, "lambdas": [0.2, 0.4, 0.6, 0.8], **(merge or {})},
            "generate": generate or {},
            "score": {"task": task, **score},
        }
    )

    def at(trial: Trial) -> Trial:
        return dataclasses.replace(
            trial, method=method, scores={name: moved(score, by) for name, score in trial.scores.items()}
        )

    digests = {"base": base, "tuned": tuned or f"{base} {task} {seed}", "merged": name}
    return results(
        recipe=recipe.model_dump(mode="json", exclude={"out"}),
        trials=[at(trial) for trial in trials()],
        models={role: {"source": role, "digest": digest} for role, digest in digests.items()},
        judges=list(judges),
        rows=(),
        prompts=prompts or {},
    )


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """`make_run(name, **changes)` writes a run folder below `runs/`."""

    def make(name: str, **changes: Any) -> Path:
        report = tmp_path / "runs" / name / "report"
        report.mkdir(parents=True)
        (report / "results.json").write_text(dumps(found(name, **changes)))
        return report.parent

    return make
