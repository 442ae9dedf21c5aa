"""What a run's measures need, looked for before anything is tuned or generated."""

import importlib.util
from collections.abc import Iterable

from mooring.errors import MissingExtraError, RecipeError
from mooring.recipe import Metric, Recipe
from mooring.run.judging import Judging


def check_measures(recipe: Recipe, metrics: Iterable[Metric], judging: Judging) -> None:
    """Hold that every metric, task and judge of a recipe can be had here.

    Raises:
        MissingExtraError: A package is not installed.
        RecipeError: `pass@k` is asked for with fewer than k samples.
        ModelError: A judge's model cannot be had.
        UserError: There is no sandbox for programs, or lm-eval knows no such task.
    """
    metrics = set(metrics)
    check_programs(metrics, recipe.generate.task_samples, recipe.score.unsafe_exec)
    if "bert_score" in metrics and importlib.util.find_spec("bert_score") is None:
        raise MissingExtraError("bert-score", "pip install 'mooring[bertscore]'")
    if recipe.score.lm_eval:
        from mooring.run.lm_eval.tasks import load_tasks

        if recipe.generate.engine != "transformers":
            raise RecipeError("score.lm_eval: runs by the transformers engine alone", "set `generate.engine` to it")
        load_tasks(recipe.score.lm_eval)
    for judge in judging.sections:
        judging.about(judge)


def check_programs(metrics: Iterable[Metric], samples: int, unsafe: bool) -> None:
    """Hold that there are samples enough for `pass@k`, and a sandbox to run them in.

    Raises:
        RecipeError: There are fewer than k samples.
        UserError: There is no sandbox, and `unsafe` does not waive it.
    """
    ks = [int(metric.removeprefix("pass@")) for metric in metrics if metric.startswith("pass@")]
    if not ks:
        return
    if max(ks) > samples:
        raise RecipeError(
            f"pass@{max(ks)} needs {max(ks)} samples of each prompt, and {samples} are drawn",
            "raise generate.task_samples, with a task_temperature above 0",
        )
    if not unsafe:
        from mooring.score.sandbox import require

        require()
