"""Another choice of λ from the validation scores of a finished run, which stays as it is."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mooring.config import Recipe, placed
from mooring.pipeline.labelling import corrections_from
from mooring.plugins import of_run_folder
from mooring.records import Choice
from mooring.reporting.results import load_run
from mooring.selection.policies import choose


def reselect(run: Path, options: Mapping[str, Any], *, metric: str | None = None) -> Choice:
    """Choose a single λ again, by other options; arguments and errors as in `mooring.select`."""
    values = placed("select", options)
    results = load_run(run)
    with of_run_folder():
        settings = Recipe.parse(results.recipe, "select").override(values, "select").select
    own = results.choice
    trials = [trial for trial in results.trials if trial.split == "validation"]
    corrections = None
    if settings.corrected:
        corrections = corrections_from(run, results.rows, [trial.point for trial in trials])
    choice = choose(
        trials,
        metric=metric or (None if own.metric == "lam" else own.metric),
        settings=settings,
        corrections=corrections,
    )
    more = ""
    if own.point.by_module:
        more = f" The run itself chose {own.point.label}, around a single λ."
    elif values and settings.search == "bisect":
        more = " It is the only λ that was measured whole: `mooring run` with this bound looks for another."
    return dataclasses.replace(choice, reason=choice.reason + more)
