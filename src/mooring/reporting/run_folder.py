"""The results of a run folder, refused where they are not whole, or not as they were left."""

import math
from pathlib import Path

from mooring.config import Recipe
from mooring.errors import DataError, RecipeError
from mooring.jsonio import EDITED
from mooring.ledger import LEDGER, check_unmodified, read_ledger
from mooring.reporting.results import COLUMNS, Results, load


def load_run(run: Path) -> Results:
    """Read the results of a run folder.

    Raises:
        DataError: It is no run folder, its run has not ended, or its results were edited since or contradict
            themselves.
    """
    report = run / "report" / "results.json"
    ledger = read_ledger(run) if (run / LEDGER).exists() else None
    if not report.exists():
        if ledger is None:
            what = "is not a run folder: it has no report/results.json" if run.exists() else "there is no such folder"
            raise DataError(f"{run}: {what}", "name a folder that `mooring run` wrote", code="data.not_a_run")
        at = f"it stopped at `{ledger.unfinished}`" if ledger.unfinished else "it has no report yet"
        raise DataError(
            f"{run}: is half done: {at}",
            f"`mooring run {run / 'recipe.yaml'}` goes on with it",
            code="data.unfinished_run",
        )
    results = load(report)
    if ledger:
        check_unmodified(run, ledger, report)
    try:
        Recipe.parse(dict(results.recipe))
    except RecipeError as error:
        raise DataError(
            f"{report}: its recipe is not one: {error.message}", EDITED, code="data.edited_results"
        ) from None
    try:
        check(results)
    except DataError as error:
        raise DataError(f"{report}: {error.message}", error.hint, code="data.edited_results") from None
    return results


def check(results: Results) -> None:
    """Check that results agree with themselves, which an edit by hand usually breaks.

    Raises:
        DataError: A value lies outside its interval, or is not what its counts say, or a model is missing.
    """
    found = results.by_module
    of_modules = [found.single, *(each.trial for each in found.tried), found.test] if found else []
    for trial in [*results.trials, *filter(None, of_modules)]:
        for name, score in trial.scores.items():
            where = f"{name} of {trial.point.label} ({trial.split})"
            if score.value is None:
                continue
            if score.low is not None and score.high is not None and not _within(score.low, score.value, score.high):
                raise DataError(f"{where} lies outside its own interval", EDITED, code="data.edited_results")
            counts = score.details
            if {"yes", "total", "miss"} <= counts.keys():
                judged = counts["total"] - counts["miss"]
                if judged <= 0 or not math.isclose(score.value, counts["yes"] / judged, abs_tol=1e-6):
                    raise DataError(f"{where} is not what its counts say", EDITED, code="data.edited_results")
    for model in COLUMNS:
        if results.trial(model) is None:
            raise DataError(f"the {model} model has no trial on the test split", EDITED, code="data.edited_results")


def _within(low: float, value: float, high: float) -> bool:
    # A bootstrap's percentiles need not hold the value itself, but come near.
    slack = 1e-6 + 0.5 * (high - low)
    return low - slack <= value <= high + slack
