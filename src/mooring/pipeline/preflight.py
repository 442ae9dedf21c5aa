"""Checks before a run: whether λ can be selected as the recipe says, and whether this machine has what it needs."""

import contextlib
import functools
import importlib.util
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from mooring.config import BUILT_IN, Recipe, Score
from mooring.errors import MissingExtraError, ModelError, RecipeError, UserError
from mooring.files import expanded, need_room
from mooring.inference.fit import check_fits_cpu
from mooring.merge_methods import Role
from mooring.merging.compatibility import check_pair
from mooring.merging.pair import open_pair
from mooring.metrics import needs_completions, needs_likelihoods, pass_ks
from mooring.models import open_checkpoint, read_json
from mooring.models.classes import load_config, model_class
from mooring.models.device import check_device
from mooring.models.resolve import hub_name
from mooring.pipeline.lengths import readers, refuse, too_long
from mooring.pipeline.plan import Plan
from mooring.pipeline.sets import bounded_rates
from mooring.scoring import judges
from mooring.scoring.bertscore import INSTALL, LAYERS, MINILM, encoder_folder
from mooring.selection.limits import check_support


def check_selection(plan: Plan) -> None:
    """Check that λ can be selected as the recipe says: there is a task score if one is needed, and enough prompts."""
    section = plan.recipe.select
    if section.by_module:
        setting = f"search: {section.search}"
    else:
        setting = "" if section.policy == "bound" else f"policy: {section.policy}"
    if setting and not plan.metrics["validation"]:
        raise RecipeError(
            f"select: `{setting}` needs a task score, and there is no task",
            f"give `score.task` (--task), or use another `{setting.partition(':')[0]}`",
            code="recipe.no_task",
        )
    prompts = plan.prompts("validation")
    rates = bounded_rates(plan.recipe, prompts)
    check_support(section, {rate: len({p.variant_of or p.id for p in prompts[name]}) for name, rate in rates.items()})


def check_measures(plan: Plan) -> None:
    """Check that every metric, task and judge works on this machine; downloads judges and encoders."""
    _check_recipe(plan)
    for _, check in _requirements(plan, download=True):
        check()


def check_models(plan: Plan, base: Path, tuned: Mapping[str, Path], references: Mapping[Role, Path]) -> None:
    """Check what can be known of a run's models before any work; loads no weights.

    That is whether the devices exist, transformers has a class for the base, the base can be tuned and the adapter
    merged, base and tuned model belong together, and every prompt fits their context.

    Args:
        plan: The run.
        base: Folder of the base.
        tuned: Folders of the tuned models by their names in the run; empty if they are tuned in the run, or not here.
        references: Folders of the further models of the merge that are here, by role.

    Raises:
        UserError: One of these fails.
    """
    recipe = plan.recipe
    for runner in (recipe.generate, *(judge for judge in recipe.score.judges if judge.name not in BUILT_IN)):
        if runner.engine == "transformers" and recipe.resources.local:
            check_device(runner.device)
    if recipe.generate.engine == "transformers":
        model_class(load_config(base))
    if sections := [section for section in (recipe.align, recipe.tune) if section]:
        from mooring.training.adapter import check_tunable

        for section in sections:
            check_tunable(section, base)
    for folder in tuned.values():
        with contextlib.closing(open_pair(base, folder, references=references)) as pair:
            check_pair(pair)
    if not tuned and references:  # before hours of tuning
        open_pair(base, list(references.values())).close()
    if recipe.generate.engine != "openai" and not plan.skipped:
        refuse(too_long(recipe, plan.sets, plan.metrics, readers(recipe, base, [*tuned.values()])), plan.sets)


def check_room(plan: Plan, base: Path) -> None:
    """Check that the disk has room for what a run writes, and that the base fits the memory if it runs on the CPU.

    Raises:
        OutputError: The disk is too small.
        ModelError: The memory is (`model.too_large`).
    """
    recipe = plan.recipe
    with open_checkpoint(base) as checkpoint:
        need_room(recipe.folder, disk_bytes(recipe, checkpoint.nbytes))
    if recipe.generate.engine == "transformers" and recipe.resources.local:  # others check their own devices
        check_fits_cpu(base, recipe.generate.dtype, recipe.generate.device)


def disk_bytes(recipe: Recipe, size: int) -> int:
    """The most bytes that a run has on the disk, given those of one model's weights."""
    return ((not recipe.series) + (recipe.align is not None)) * size  # the chosen model, and an aligned base


def unavailable(plan: Plan) -> dict[str, str]:
    """The measures that do not work on this machine, each with the error as one line; downloads nothing."""
    _check_recipe(plan)
    problems = {}
    for name, check in _requirements(plan, download=False):
        try:
            check()
        except UserError as error:
            problems[name] = str(error)
    return problems


def downloads(plan: Plan) -> list[str]:
    """What a run would download for its merges, judges and metrics, each with what must be done before."""
    judging, score = plan.judging, plan.recipe.score
    found = [ref for ref in plan.recipe.merge.references.values() if _is_remote(ref)]
    for name, section in judging.sections.items():
        kind = judging.kinds[name]
        model = judges.model_of(kind, section.model)
        if model and section.engine != "openai" and _is_remote(model):
            hub = hub_name(model)
            gated = f" (gated: accept its terms on https://huggingface.co/{hub} and run `hf auth login`)"
            found.append(model + (gated if kind.gated and hub == kind.model else ""))
    if "bert_score" in plan.all_metrics and _is_remote(score.bertscore_model):
        found.append(score.bertscore_model)
    if score.lm_eval and importlib.util.find_spec("lm_eval"):
        from mooring.pipeline.lm_eval.tasks import remote_tasks

        with contextlib.suppress(UserError):  # reported by `unavailable`
            found += [f"lm-eval's rows of {name}" for name in remote_tasks(score.lm_eval)]
    return list(dict.fromkeys(found))


def _check_recipe(plan: Plan) -> None:
    """Check what does not depend on the machine."""
    recipe, metrics = plan.recipe, plan.all_metrics
    sampling = plan.sampling("task")
    ks = pass_ks(metrics)
    if ks and max(ks) > sampling.n:
        what = f"pass@{max(ks)} needs {max(ks)} samples per prompt, and there are {sampling.n}"
        hint = "raise generate.task.n, with a generate.task.temperature above 0"
        raise RecipeError(what, hint, code="recipe.too_few_samples")
    if sampling.n > 1 and sampling.temperature == 0 and metrics and needs_completions(metrics):
        what = f"generate.task.n: {sampling.n} responses at temperature 0 are all the same"
        hint = "set generate.task.temperature above 0, or generate.task.n to 1"
        raise RecipeError(what, hint, code="recipe.greedy_samples")
    if recipe.score.lm_eval and recipe.generate.engine != "transformers":
        what = "score.lm_eval: works only with the engine transformers"
        raise RecipeError(what, "set `generate.engine` to it", code="recipe.lm_eval_engine")
    if recipe.generate.engine == "openai":
        _check_servable(plan)
    for half, of_half in plan.metrics.items():
        if pass_ks(of_half):
            from mooring.scoring.code import to_program

            for prompt in plan.prompts(half)["task"]:
                to_program(prompt, "")  # its error names the fields that the row lacks


def _check_servable(plan: Plan) -> None:
    """Check that a server can answer for this run, without asking it."""
    if needs_likelihoods(plan.all_metrics):
        what = "generate.engine: a server gives no likelihoods, which `response_loss` needs"
        hint = "use the engine transformers or vllm, or other `score.metrics`"
        raise RecipeError(what, hint, code="recipe.server_likelihood")
    for tuned in plan.recipe.tuned_models.values():
        if expanded(tuned).is_dir():
            from mooring.pipeline.sweeps.server import check_tuned

            check_tuned(expanded(tuned))


def _requirements(plan: Plan, *, download: bool) -> Iterator[tuple[str, Callable[[], object]]]:
    """A check per measure of what it needs on this machine; those that may download come last."""
    score, judging, metrics = plan.recipe.score, plan.judging, plan.all_metrics
    if plan.recipe.generate.engine == "openai" and not plan.paths.results.exists():
        from mooring.pipeline.sweeps.server import check_server

        yield "the server", functools.partial(check_server, plan.recipe.generate, patient=download)
    programs = sorted(metric for metric in metrics if metric.startswith("pass@"))
    if programs and not score.unsafe_exec:
        from mooring.scoring.sandbox import require

        yield ", ".join(programs), require
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
        config = read_json(folder / "config.json")
        layers = int(config.get("num_hidden_layers", config.get("n_layers", 0)))
    except (ModelError, ValueError, TypeError):
        what = f"{model}: has no readable config.json"
        raise ModelError(
            what,
            "name an encoder's folder or hub id in score.bertscore_model, complete with config.json",
            code="model.encoder_unreadable",
        ) from None
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
