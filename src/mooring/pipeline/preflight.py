"""Checks before a run: whether λ can be selected as the recipe says, and whether this machine has what it needs."""

import contextlib
import functools
import importlib.util
import json
from collections.abc import Callable, Iterable, Iterator, Mapping

from mooring.config import Metric, Recipe, Score
from mooring.data import parse_references
from mooring.errors import MissingExtraError, ModelError, RecipeError, UserError
from mooring.metrics import needs_completions, pass_ks
from mooring.models.resolve import hub_name
from mooring.pipeline.judging import Judging
from mooring.pipeline.sets import Sets, asked, task_metrics
from mooring.records import Half, Kind
from mooring.scoring import judges
from mooring.scoring.bertscore import INSTALL, LAYERS, MINILM, encoder_folder
from mooring.selection.limits import check_support

_BOUNDED_RATES: Mapping[Kind, str] = {"safety": "asr", "over_refusal": "over_refusal"}
"""The sets whose rates `select` may bound."""


def check_selection(recipe: Recipe, sets: Sets) -> None:
    """Check that λ can be selected as the recipe says.

    Args:
        recipe: The recipe.
        sets: Its prompts.

    Raises:
        RecipeError: The policy or the search needs a task score, and there is no task (`recipe.no_task`).
        DataError: There are too few prompts for any λ to meet the bound.
    """
    section = recipe.select
    if section.search == "modules":
        setting = "search: modules"
    else:
        setting = "" if section.policy == "bound" else f"policy: {section.policy}"
    if setting and not task_metrics(recipe, sets, "validation"):
        raise RecipeError(
            f"select: `{setting}` needs a task score, and there is no task",
            f"give `score.task` (--task), or use another `{setting.partition(':')[0]}`",
            code="recipe.no_task",
        )
    prompts = asked(sets, "validation")
    check_support(section, {rate: len(prompts[kind]) for kind, rate in _BOUNDED_RATES.items() if kind in prompts})


def check_measures(recipe: Recipe, metrics: Iterable[Metric], judging: Judging, sets: Sets | None = None) -> None:
    """Check that every metric, task and judge of a recipe works on this machine; downloads judges and encoders.

    Args:
        recipe: The recipe.
        metrics: Its task metrics, of both splits.
        judging: Its judges.
        sets: Its prompts; if None, the rows of the task are not checked.

    Raises:
        MissingExtraError: A package is not installed.
        RecipeError: `pass@k` has fewer than k samples, several samples are drawn at temperature 0, lm-eval is combined
            with another engine, or a set is repeated.
        DataError: `pass@k` is requested for rows without tests.
        ModelError: A judge's model or BERTScore's encoder is not available, or not suitable.
        UserError: There is no sandbox for programs, or lm-eval has no such task.
    """
    _check_recipe(recipe, set(metrics), sets)
    for _, check in _requirements(recipe, set(metrics), judging, download=True):
        check()


def unavailable(
    recipe: Recipe, metrics: Iterable[Metric], judging: Judging, sets: Sets | None = None
) -> dict[str, str]:
    """What `check_measures` would fail for on this machine, without downloading anything.

    Returns:
        Measure to the error, as one line with its fix.

    Raises:
        RecipeError: As `check_measures`, for faults of the recipe that do not depend on the machine.
        DataError: As `check_measures`.
    """
    _check_recipe(recipe, set(metrics), sets)
    problems = {}
    for name, check in _requirements(recipe, set(metrics), judging, download=False):
        try:
            check()
        except UserError as error:
            problems[name] = str(error)
    return problems


def downloads(recipe: Recipe, metrics: Iterable[Metric], judging: Judging) -> list[str]:
    """What a run would download for its judges and metrics, each with what must be done before."""
    found = []
    for name, section in judging.sections.items():
        kind = judging.kinds[name]
        model = judges.model_of(kind, section.model)
        if model and section.engine != "openai" and _is_remote(model):
            hub = hub_name(model)
            gated = f" (gated: accept its terms on https://huggingface.co/{hub} and run `hf auth login`)"
            found.append(model + (gated if kind.gated and hub == kind.model else ""))
    if "bert_score" in set(metrics) and _is_remote(recipe.score.bertscore_model):
        found.append(recipe.score.bertscore_model)
    if recipe.score.lm_eval and importlib.util.find_spec("lm_eval"):
        from mooring.pipeline.lm_eval.tasks import remote_tasks

        with contextlib.suppress(UserError):  # reported by `unavailable`
            found += [f"lm-eval's rows of {name}" for name in remote_tasks(recipe.score.lm_eval)]
    return list(dict.fromkeys(found))


def check_programs(metrics: Iterable[Metric], samples: int, unsafe: bool) -> None:
    """Check that there are enough samples for `pass@k`, and a sandbox to run them in.

    Raises:
        RecipeError: There are fewer than k samples (`recipe.too_few_samples`).
        UserError: There is no sandbox, and `unsafe` is false.
    """
    ks = pass_ks(metrics)
    if ks and max(ks) > samples:
        what = f"pass@{max(ks)} needs {max(ks)} samples per prompt, and there are {samples}"
        hint = "raise generate.task.n, with a generate.task.temperature above 0"
        raise RecipeError(what, hint, code="recipe.too_few_samples")
    if ks and not unsafe:
        from mooring.scoring.sandbox import require

        require()


def _check_recipe(recipe: Recipe, metrics: set[Metric], sets: Sets | None) -> None:
    """Check what does not depend on the machine."""
    score = recipe.score
    refs_by_field = {"safety": score.safety, "over_refusal": score.over_refusal, "ordinary": score.ordinary}
    for field, refs in refs_by_field.items():
        _check_unique(f"score.{field}", refs or ())
    sampling = recipe.generate.sampling("task", recipe.seed)
    check_programs(metrics, sampling.n, unsafe=True)
    if sampling.n > 1 and sampling.temperature == 0 and metrics and needs_completions(metrics):
        what = f"generate.task.n: {sampling.n} responses at temperature 0 are all the same"
        hint = "set generate.task.temperature above 0, or generate.task.n to 1"
        raise RecipeError(what, hint, code="recipe.greedy_samples")
    if score.lm_eval and recipe.generate.engine != "transformers":
        what = "score.lm_eval: works only with the engine transformers"
        raise RecipeError(what, "set `generate.engine` to it", code="recipe.lm_eval_engine")
    halves: tuple[Half, ...] = ("validation", "test")
    for half in halves:
        if sets and pass_ks(task_metrics(recipe, sets, half)):
            from mooring.scoring.code import to_program

            for prompt in sets["task"][half]:
                to_program(prompt, "")  # its error names the fields that the row lacks


def _check_unique(field: str, refs: Iterable[str]) -> None:
    seen: dict[str, str] = {}
    for ref in parse_references(refs):
        if ref.address in seen:
            first = seen[ref.address]
            spellings = "" if first == ref.text else f", as {first} and {ref.text}"
            what = f"{field}: {ref.address} is named twice{spellings}"
            raise RecipeError(what, "name each set once", code="recipe.duplicate_set")
        seen[ref.address] = ref.text


def _requirements(
    recipe: Recipe, metrics: set[Metric], judging: Judging, *, download: bool
) -> Iterator[tuple[str, Callable[[], object]]]:
    """A check per measure of what it needs on this machine; those that may download come last."""
    score = recipe.score
    if programs := sorted(metric for metric in metrics if metric.startswith("pass@")):
        samples = recipe.generate.sampling("task", recipe.seed).n
        yield ", ".join(programs), functools.partial(check_programs, programs, samples, score.unsafe_exec)
    if "bert_score" in metrics:
        yield "bert_score", functools.partial(_check_encoder, score.bertscore_model, score.bertscore_layer, download)
    if score.lm_eval:
        yield f"lm-eval {', '.join(score.lm_eval)}", functools.partial(_check_lm_eval, score, download)
    for name, section in judging.sections.items():
        model = judges.model_of(judging.kinds[name], section.model)
        if download or model is None or section.engine == "openai" or not hub_name(model):
            yield f"judge {judging.label(name)}", functools.partial(judging.check, name)


def _check_lm_eval(score: Score, download: bool) -> None:
    from mooring.pipeline.lm_eval.tasks import load_tasks, remote_tasks

    if download or not remote_tasks(score.lm_eval):
        load_tasks(score.lm_eval)


def _check_encoder(model: str, layer: int | None, download: bool) -> None:
    """Check that BERTScore can use this encoder; its weights are not loaded."""
    if importlib.util.find_spec("bert_score") is None:
        raise MissingExtraError("bert-score", INSTALL, code="extra.bertscore")
    hub = hub_name(model)
    if layer is None and model not in LAYERS:
        from bert_score.utils import model2layers

        if hub not in model2layers:
            what = f"{model}: the best layer for BERTScore is not known"
            raise ModelError(what, "set score.bertscore_layer", code="model.bertscore_layer_unknown")
    if hub and not download:
        return
    folder = encoder_folder(model)
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        layers = int(config.get("num_hidden_layers", config.get("n_layers", 0)))
    except (OSError, ValueError, TypeError, AttributeError):
        what = f"{model}: has no readable config.json"
        raise ModelError(what, "is the folder complete?", code="model.encoder_unreadable") from None
    if layer is not None and layers and layer > layers:
        hint = f"give one from 1 to {layers}"
        raise ModelError(f"{model}: has no layer {layer}", hint, code="model.bertscore_layer_missing")


def _is_remote(model: str) -> bool:
    """Whether a model is on the hub and not in the hub's cache on this machine."""
    hub = hub_name(model)
    if hub is None or model == MINILM:
        return False
    from huggingface_hub import try_to_load_from_cache

    revision = model.partition("@")[2] or None
    return not isinstance(try_to_load_from_cache(hub, "config.json", revision=revision), str)
