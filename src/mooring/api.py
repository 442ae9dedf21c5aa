"""The verbs as functions: what the command line offers, under the same names and with the same options.

A model is a folder (checkpoint or LoRA adapter), a GGUF file, a hub id or a bundled model. A data set is a file, a hub
id, a named set (`advbench`) or a bundled one (`bundled:harmful`). Options that a recipe has too take their defaults
from it (docs/recipes.md); their types are in `mooring.options`. Heavy libraries are imported inside the functions.

Every function raises `UserError` for bad input, of the subclass and code that docs/errors.md lists; an unknown option
is a `RecipeError` with the code `recipe.unknown_option`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mooring import options as opt

if TYPE_CHECKING:
    from typing import Unpack

    from mooring.config import Recipe
    from mooring.events import OnEvent
    from mooring.merging.inspect import Inspection
    from mooring.models.to_gguf import Exported
    from mooring.pipeline.compare import Comparison, Reply
    from mooring.pipeline.compare_evals import EvalDifference
    from mooring.pipeline.doctor import Finding
    from mooring.pipeline.extensions import PluginInfo
    from mooring.pipeline.forecast import Forecast
    from mooring.pipeline.label_server import LabelServer
    from mooring.pipeline.preview import DataPreview
    from mooring.pipeline.rejudge import Rejudged
    from mooring.pipeline.run import Outcome
    from mooring.pipeline.run_server import RunServer
    from mooring.pipeline.verify_served import ServedVerdict
    from mooring.records import Choice, Completion, ExtractedLora, Kind, MergeCheck, Prompt, RunVerdict, Score, Split
    from mooring.reporting.comparison.records import MethodComparison
    from mooring.reporting.judge_error import JudgeError
    from mooring.reporting.paper.write import Paper
    from mooring.reporting.results import Results

Ref = str | Path
"""A model or a data set."""

__all__ = [
    "check_merge", "compare", "compare_evals", "doctor", "export_run", "extract_lora", "gate", "generate",
    "import_labels", "inspect", "judge_error", "label_page", "label_server", "list_plugins", "lm_eval",
    "load_comparison", "load_results", "merge", "mergekit_export", "mergekit_run", "open_comparison", "paper", "plan",
    "plan_merge", "prefer", "preview_data", "push", "quickstart", "rejudge", "report", "run", "safeguard",
    "safeguard_recipe", "score", "select", "serve", "to_gguf", "tune", "verify", "verify_served",
]  # fmt: skip


# --- Whole runs ---


def run(
    recipe: Recipe | Ref,
    *,
    overrides: Mapping[str, Any] | None = None,
    on_event: OnEvent | None = None,
    track: Literal["wandb", "mlflow", "tensorboard"] | None = None,
) -> Outcome:
    """Run a recipe, or what is left of it.

    Args:
        recipe: A recipe, or the path of its YAML file.
        overrides: Values of fields that replace the recipe's, such as `{"select.margin": 0.05}`.
        on_event: Receives every step and its progress.
        track: An experiment tracker, which gets the numbers as they come, and the figure at the end.

    Raises:
        UserError: Bad input. Steps that were finished before stay finished.
    """
    from mooring.pipeline.run import Run
    from mooring.pipeline.trackers import tracking

    made = Run(_recipe(recipe, overrides))
    with tracking(made, track, on_event) as (relay, end):
        outcome = made.execute(relay)
        end(outcome)
        return outcome


def safeguard(
    base: Ref,
    tuned: Ref | Sequence[Ref],
    *,
    out: Ref,
    overrides: Mapping[str, Any] | None = None,
    on_event: OnEvent | None = None,
    track: Literal["wandb", "mlflow", "tensorboard"] | None = None,
    **options: Unpack[opt.SafeguardOptions],
) -> Outcome:
    """Find the λ that makes a tuned model as safe as its base, write the merged model, and report.

    With several tuned models, or several `methods`, it compares them in one report, and writes no model.

    Args:
        base: The aligned model.
        tuned: The model tuned from it: a checkpoint or a LoRA adapter; several of them are compared.
        out: Run folder; a stopped run continues in it.
        overrides: Any other field of a recipe by its name, such as `{"generate.safety.max_tokens": 64}`.
        on_event: Receives every step and its progress.
        track: As in `run`.
        options: Fields of the recipe, such as `task`, `safety`, `judges`, `lambdas`, `margin`, `limit`.

    Raises:
        UserError: The models do not belong together, or an option is bad.
    """
    recipe = safeguard_recipe(base, tuned, out=out, overrides=overrides, **options)
    return run(recipe, on_event=on_event, track=track)


def safeguard_recipe(
    base: Ref,
    tuned: Ref | Sequence[Ref],
    *,
    out: Ref,
    overrides: Mapping[str, Any] | None = None,
    **options: Unpack[opt.SafeguardOptions],
) -> Recipe:
    """The recipe that `safeguard` runs; arguments as there.

    Raises:
        RecipeError: An option is unknown, or its value is bad.
    """
    from mooring.config import Recipe, placed

    refs = [str(tuned)] if isinstance(tuned, (str, Path)) else [str(ref) for ref in tuned]
    fields = {"name": "safeguard", "base": str(base), "tuned": refs, "out": str(out)}
    return Recipe.parse(fields, "safeguard").override(placed("safeguard", options) | dict(overrides or {}))


def quickstart(
    *,
    out: Ref = Path("runs/quickstart"),
    overrides: Mapping[str, Any] | None = None,
    on_event: OnEvent | None = None,
) -> Outcome:
    """Run the bundled recipe on the bundled model, offline; arguments as in `run`."""
    from mooring.config import bundled_recipe

    return run(bundled_recipe("quickstart"), overrides={**(overrides or {}), "out": str(out)}, on_event=on_event)


def plan(recipe: Recipe | Ref, *, overrides: Mapping[str, Any] | None = None) -> Forecast:
    """What a run would do, and what it needs; arguments as in `run`."""
    from mooring.pipeline.forecast import forecast

    return forecast(_recipe(recipe, overrides))


def _recipe(recipe: Recipe | Ref, overrides: Mapping[str, Any] | None) -> Recipe:
    from mooring.config import Recipe

    if not isinstance(recipe, Recipe):
        recipe = Recipe.load(recipe)
    return recipe.override(overrides or {})


# --- Tuning and merging ---


def tune(
    base: Ref,
    data: str | Sequence[str],
    *,
    out: Ref,
    on_event: OnEvent | None = None,
    **options: Unpack[opt.TuneOptions],
) -> Path:
    """Tune a LoRA adapter on the responses of `data`.

    Args:
        base: The model to tune.
        data: Examples: one data set or several.
        out: Folder for the adapter.
        on_event: Receives every step, with the loss in `metrics`.
        options: Fields of a recipe's `tune` section, such as `r`, `learning_rate`, `num_train_epochs`; `system` (system
            prompt for examples without one); `seed` (of data order, initialization and dropout).

    Returns:
        The adapter's folder.

    Raises:
        UserError: Bad input.
    """
    from mooring.config import settings
    from mooring.data import load_examples
    from mooring.events import Event
    from mooring.models.resolve import lasting_name, resolve_model
    from mooring.training.lora import tune

    refs = [data] if isinstance(data, str) else list(data)
    recipe = settings("tune", options, more={"tune.data": refs})
    assert recipe.tune is not None

    def note(message: str) -> None:
        if on_event:
            on_event(Event(step="tune", kind="info", message=message))

    examples = load_examples(refs, split="tune", seed=recipe.seed, on_note=note, fields=recipe.data)
    ordinary = (
        load_examples(list(recipe.tune.kl_data), seed=recipe.seed, on_note=note, fields=recipe.data)
        if recipe.tune.kl
        else []
    )
    return tune(
        recipe.tune,
        resolve_model(str(base)),
        examples,
        Path(out),
        system=recipe.system,
        seed=recipe.seed,
        base_name=lasting_name(str(base)),
        ordinary=ordinary,
        on_event=on_event,
    )


def merge(
    base: Ref,
    tuned: Ref | Sequence[Ref],
    *,
    out: Ref,
    lam: opt.Lam | None = None,
    lambdas: Sequence[float] = (),
    on_event: OnEvent | None = None,
    **options: Unpack[opt.MergeOptions],
) -> Path:
    """Merge tuned models into their base: θ = (1−λ)·base + λ·tuned for `linear`.

    Args:
        base: The aligned model.
        tuned: The model tuned from it, a checkpoint or a LoRA adapter; or several of them.
        out: Folder for the merged model; it must be empty or absent.
        lam: λ, the weight of the tuned models, from 0 to 1: a number, a ramp from the first layer to the last such as
            `(0.2, 0.8)`, or patterns of tensors' names to either, such as `{"layers.{0-9}.mlp.*": 0.3, "*": 0.6}`.
        lambdas: Several λ at once, reading each input once: `out` gets a folder such as `lam-0.4` for each.
        on_event: Receives the progress, in bytes written.
        options: `method` and its options, such as `weights`, `density`, `seed` (docs/methods.md); `unaligned` and
            `safety_adapter`, further models that some methods need; `dtype`, the type of
            the merged weights (the base's by default); `tokenizer`, whose tokenizer and chat template to copy: the
            `base`'s, the `tuned` model's, or the `larger` (default), which is the base's unless another has more
            tokens; `max_shard_size`, such as `"5GB"` (by default as the base's files);
            `as_adapter`, write a LoRA adapter, not a whole model, from inputs that are adapters; `allow_nonfinite`,
            allow NaN and Inf; `threads` (by default one per core); `on`, a Ray cluster that does it (`ray`,
            `ray://HOST:PORT`; docs/clusters.md); `check`, compare what it computes with what it
            should, as `check_merge` does, and record the result in the manifest; `gguf`, write the merged model as GGUF
            too, beside its other files, as in `to_gguf`; `qlora_base`, add a QLoRA adapter's change to the base as
            `given` (default) or to the `dequantized` weights that it was trained on; `keep_quantization`, write
            quantized weights in the base's format, not in 16 bits.

    Returns:
        The folder of the merged model, or of the merged models.

    Raises:
        UserError: The models cannot be merged, an option is bad, or the output cannot be written; or the merged model
            does not compute what it should (`model.check_failed`): its folder stays, and `verify` and `push` refuse it.
    """
    from mooring.merging.run_job import make_job
    from mooring.pipeline.merged import make

    given: dict[str, Any] = dict(options)
    plugins = _load_plugins(given)
    output = {name: given.pop(name) for name in opt.OutputOptions.__annotations__ if name in given}
    job = make_job(base, tuned, lambdas[0] if lambdas else lam, **given)
    return make(job, Path(out), lambdas=lambdas, plugins=plugins, on_event=on_event, **output)


def plan_merge(
    base: Ref,
    tuned: Ref | Sequence[Ref],
    *,
    out: Ref,
    lam: opt.Lam | None = None,
    lambdas: Sequence[float] = (),
    **options: Unpack[opt.MergeOptions],
) -> Forecast:
    """What a merge would read and write, and how long it would take, measured here on a part of it.

    Arguments as in `merge`. It takes seconds, and leaves nothing on the disk.

    Raises:
        UserError: The merge would be refused; or it is one on a cluster or of adapters, for which there is no estimate.
    """
    from mooring.merging.run_job import make_job
    from mooring.pipeline.merge_forecast import forecast_merge

    given: dict[str, Any] = dict(options)
    _load_plugins(given)
    output = {name: given.pop(name) for name in opt.OutputOptions.__annotations__ if name in given}
    job = make_job(base, tuned, lambdas[0] if lambdas else lam, **given)
    return forecast_merge(job, Path(out), lambdas=lambdas, **output)


def _load_plugins(options: dict[str, Any]) -> list[str]:
    """Load the plug-ins among options, take them out, and name them."""
    from mooring.plugins import load

    refs = options.pop("plugins", ())
    named = [refs] if isinstance(refs, str) else list(refs)
    for reference in named:
        load(reference)
    return named


def extract_lora(
    base: Ref,
    tuned: Ref,
    *,
    out: Ref,
    rank: int,
    dtype: str | None = None,
    on_event: OnEvent | None = None,
) -> ExtractedLora:
    """Write what tuning changed as a LoRA adapter on the base: every changed matrix, approximated at a rank.

    Args:
        base: The model that was tuned.
        tuned: The tuned model, a whole one.
        out: Folder for the adapter; it must be empty or absent.
        rank: Rank of the adapter.
        dtype: Type of the factors; defaults to the base's.
        on_event: Receives the progress, in tensors.

    Returns:
        The error of every matrix, and what was left out: embeddings, norms, biases, fused experts.

    Raises:
        UserError: The models do not belong together, nothing that LoRA can hold differs, or the output cannot be
            written.
    """
    from mooring.merging.extract import extract_lora
    from mooring.models.resolve import lasting_name, resolve_model

    folders = resolve_model(str(base)), resolve_model(str(tuned))
    name = lasting_name(str(base))
    return extract_lora(*folders, Path(out), rank=rank, dtype=dtype, base_name=name, on_event=on_event)


def mergekit_run(
    config: Ref, *, out: Ref, on_event: OnEvent | None = None, **options: Unpack[opt.OutputOptions]
) -> Path:
    """Do the merge that a mergekit configuration (YAML) describes; other arguments as in `merge`.

    Raises:
        UserError: As `merge`; or the configuration asks for what Mooring does not do.
    """
    from mooring.merging.mergekit_read import read
    from mooring.pipeline.merged import make

    return make(read(Path(config)), Path(out), on_event=on_event, **options)


def mergekit_export(
    base: Ref, tuned: Ref | Sequence[Ref], *, lam: opt.Lam | None = None, **options: Unpack[opt.JobOptions]
) -> str:
    """A merge as a configuration for `mergekit-yaml`, as YAML; arguments as in `merge`.

    Raises:
        UserError: mergekit cannot do it, or a model is missing.
    """
    from mooring.merging.mergekit_write import write
    from mooring.merging.run_job import make_job
    from mooring.models import open_checkpoint
    from mooring.models.resolve import resolve_model

    given: dict[str, Any] = dict(options)
    _load_plugins(given)
    job = make_job(base, tuned, lam, **given)
    with open_checkpoint(resolve_model(job.base)) as checkpoint:
        return write(job, list(checkpoint.tensors))


def to_gguf(
    model: Ref,
    *,
    out: Ref,
    type: Literal["q8_0", "f16", "bf16"] = "q8_0",
    base: Ref | None = None,
    on_event: OnEvent | None = None,
) -> Exported:
    """Write a model as GGUF for llama.cpp, Ollama and LM Studio, with its tokenizer and chat template, and a Modelfile.

    Args:
        model: A model; or a LoRA adapter, which is written as a GGUF adapter.
        out: Folder for the file, which has the model's name and the type; it must be empty or absent.
        type: How matrices are stored: 8 bits in blocks of 32 with a scale each, or 16 bits. Vectors stay in float32.
        base: The adapter's base; defaults to the one that it names.
        on_event: Receives the progress, in bytes.

    Raises:
        ModelError: llama.cpp does not have its architecture or tokenizer, or cannot apply all of the adapter.
        OutputError: `out` is not empty, or does not fit on the disk.
    """
    from mooring.pipeline.merged import to_gguf

    return to_gguf(str(model), Path(out), type, base=None if base is None else str(base), on_event=on_event)


def inspect(
    base: Ref,
    tuned: Ref,
    *,
    lam: float = 0.5,
    quick: bool = False,
    heatmap: Ref | None = None,
    on_event: OnEvent | None = None,
) -> Inspection:
    """Whether two models belong together, what changed between them, and what a merge would do and cost.

    Args:
        base: The aligned model.
        tuned: The model tuned from it: a checkpoint or a LoRA adapter.
        lam: λ for which to predict what each method would do.
        quick: Skip the effective ranks, half of the work.
        heatmap: Draw the change by layer and module to this PNG; not written if nothing changed.
        on_event: Receives the progress, in bytes of the base.

    Raises:
        UserError: λ is outside [0, 1], `heatmap` does not end in .png, or a model is missing.
        OutputError: The picture cannot be written.
    """
    from mooring.merging.inspect import inspect
    from mooring.models.resolve import resolve_model
    from mooring.pipeline.changes import layer_changes
    from mooring.reporting.heatmap import check_name, write

    drawing = check_name(Path(heatmap)) if heatmap else None
    models = resolve_model(str(base)), resolve_model(str(tuned))
    inspection = inspect(*models, lam=lam, quick=quick, on_event=on_event)
    if drawing and any(change.change_square for change in inspection.changes):
        write(layer_changes(inspection.changes), drawing)
    return inspection


def verify(folder: Ref) -> dict[str, Any]:
    """Read a merged model again and check it against its manifest, which is returned.

    Raises:
        ModelError: They differ.
    """
    from mooring.merging.verify import verify

    return verify(folder)


def check_merge(
    folder: Ref,
    base: Ref,
    tuned: Ref | Sequence[Ref],
    *,
    unaligned: Ref | None = None,
    safety_adapter: Ref | None = None,
    on_event: OnEvent | None = None,
) -> MergeCheck:
    """Whether a merged model computes what it should: its tensors and logits beside those of base and tuned models.

    transformers and PEFT load the models, in float32 on the CPU, one after the other, and read eight short prompts. The
    merge at λ = 1 has to compute what the tuned model does (PEFT's forward pass, if it is an adapter), the merge at
    λ = 0 what the base does, and the written tensors have to be the method's formula, but for rounding. If a model does
    not fit into memory, tensors are compared alone, a slice at a time, and `notes` says so.

    Args:
        folder: A folder that `merge` wrote, which is not changed.
        base: The base that it was merged from.
        tuned: The tuned model, or all of them in order.
        unaligned: The pre-trained model, for the methods that require it.
        safety_adapter: The safer model that `safe_merge` was given.
        on_event: Receives the progress, in models.

    Returns:
        The result; `passed` is whether nothing differs by more than rounding, `faults` what does, and in which tensors.

    Raises:
        ModelError: The folder has no manifest, or a model is missing.
        MismatchError: The models do not belong together.
    """
    from mooring.merge_methods import as_references
    from mooring.merging.pair import resolved
    from mooring.models.resolve import resolve_model
    from mooring.pipeline.check import check_merge

    refs = [tuned] if isinstance(tuned, (str, Path)) else list(tuned)
    further = resolved(as_references(unaligned, safety_adapter))
    folders = [resolve_model(str(ref)) for ref in refs]
    return check_merge(Path(folder), resolve_model(str(base)), folders, further, on_event)


def push(
    folder: Ref,
    hub_id: str,
    *,
    base: str = "",
    tuned: Sequence[str] = (),
    command: str | None = None,
    private: bool = False,
    overwrite: bool = False,
) -> str:
    """Write the card of a merged model and upload both to the hub.

    Args:
        folder: A folder that `merge` wrote; its README.md is replaced.
        hub_id: `owner/name`.
        base: The base's hub id, which the card links.
        tuned: The hub ids of the tuned models, which the card links.
        command: The command that made the merge, for the card.
        private: Make a new repository private.
        overwrite: Replace different weights in the repository.

    Returns:
        The model's address.

    Raises:
        ModelError: The folder was not written by `merge`.
        OutputError: The hub does not accept it.
    """
    from mooring.pipeline.push import push

    return push(Path(folder), hub_id, base=base, tuned=tuned, command=command, private=private, overwrite=overwrite)


# --- Generating and scoring ---


def generate(
    model: Ref,
    prompts: str | Sequence[str],
    *,
    out: Ref,
    kind: Kind | None = None,
    split: Split = "test",
    likelihood: Ref | None = None,
    on_event: OnEvent | None = None,
    **options: Unpack[opt.GenerateOptions],
) -> list[Completion]:
    """Answer prompts into a JSON Lines file, sampled as a run samples prompts of that kind.

    Args:
        model: A checkpoint or a LoRA adapter; with `engine="openai"` the model's name on the server.
        prompts: One data set or several.
        out: The file to write. If the process is killed, the same call continues it.
        kind: What the prompts are for; defaults to what the data set is for, and to `safety` if that is unknown. It
            decides the defaults of sampling: safety prompts have a repetition penalty.
        split: Which part of a data set that has parts.
        likelihood: Also write the log-likelihood of the references to this file.
        on_event: Receives the progress, in responses.
        options: Fields of a recipe's `generate` section; `system` (system prompt for prompts without one); `seed` (of
            sampling and of drawn rows); `attacks` (one, such as `prefill:8`: docs/attacks.md).

    Raises:
        UserError: Bad input.
    """
    from mooring.pipeline.responses import generate

    losses = Path(likelihood) if likelihood else None
    return generate(
        str(model), prompts, Path(out), options, kind=kind, split=split, likelihood=losses, on_event=on_event
    )


def score(
    completions: Ref,
    prompts: str | Sequence[str],
    *,
    kind: Kind | None = None,
    split: Split = "test",
    likelihood: Ref | None = None,
    on_event: OnEvent | None = None,
    **options: Unpack[opt.ScoreOptions],
) -> dict[str, Score]:
    """Score completions against the prompts that they answer.

    Args:
        completions: A file that `generate` wrote, or another tool: samples of lm-eval, a log of Inspect, results of a
            batch (OpenAI, vLLM, Anthropic), HarmBench's completions, or rows with an id or a prompt and a text.
        prompts: The prompts, as given to `generate`.
        kind: `safety`: should be refused; `over_refusal`, `ordinary`: should not be; `task`: compared with references.
            Defaults to what the data set is for, and to `safety` if that is unknown.
        split: Which part of a data set that has parts.
        likelihood: The file that `generate` wrote for `response_loss`.
        on_event: Receives the progress of a model judge, the maximum cost of a paid one before it starts, and a warning
            if `kind` is not what the data set is for.
        options: Fields of a recipe's `score` section: `judges` (the scores of all but the first carry their names),
            `judge_thoughts`, `metrics` (default: those that suit the references), `bertscore_model`,
            `bertscore_layer`, `unsafe_exec`; `seed` and `attacks` as given to `generate`. Verdicts, and a model judge's
            answers, are written beside the completions.

    Returns:
        Name to score.

    Raises:
        DataError: A prompt has no completion, or a completion no prompt.
        UserError: A metric or judge is not available.
    """
    from mooring.pipeline.responses import score

    losses = Path(likelihood) if likelihood else None
    return score(Path(completions), prompts, options, kind=kind, split=split, likelihood=losses, on_event=on_event)


def rejudge(run: Ref, *, on_event: OnEvent | None = None, **options: Unpack[opt.RejudgeOptions]) -> list[Rejudged]:
    """Judge the completions of a run by other judges. Nothing is generated, and the run's choice of λ stays.

    Args:
        run: A run folder.
        on_event: Receives the progress, and the maximum cost of a paid judge before it starts.
        options: `judges` and `judge_thoughts`, as in a recipe.

    Raises:
        DataError: It is not a run folder, or has no completions.
        UserError: A judge is not available.
    """
    from mooring.config import settings
    from mooring.pipeline.rejudge import rejudge

    score = settings("rejudge", options).score
    return rejudge(Path(run), score.judges, on_event, thoughts=score.judge_thoughts)


def verify_served(
    run: Ref,
    *,
    base_url: str | Sequence[str],
    model: str | None = None,
    name: str | None = None,
    allow_ignored: bool = False,
    on_event: OnEvent | None = None,
    **options: Unpack[opt.VerifyServedOptions],
) -> ServedVerdict:
    """Whether a run's verdict holds for the model that is served: quantized, converted, or as an adapter.

    It is asked the run's test prompts with the run's sampling, judged by the run's judges, and compared in pairs with
    the run's base and merged model. The responses are kept below `served/` in the run folder; a stopped call resumes.

    Args:
        run: A finished run.
        base_url: The server's address, such as `http://localhost:8000/v1`, or those of several with the same model.
        model: The model's name on the server; not needed if it has only one.
        name: The name of the folder for its responses; defaults to the model's.
        allow_ignored: Go on if the server ignores a setting, such as the repetition penalty; `notes` says which.
        on_event: Receives the progress, in responses.
        options: `key_env`, `concurrency`, `requests_per_minute`; `margin`, `bound` and `confidence` in place of the
            run's.

    Returns:
        The verdict: `holds`, `reason`, and the scores of both models with their differences.

    Raises:
        DataError: It is not a finished run, its records were edited, or it has too few test prompts.
        ModelError: The server is unreachable, does not know the model, or ignores a setting.
    """
    from mooring.config import placed, section
    from mooring.pipeline.verify_served import verify_served

    fields = placed("verify_served", options)
    changes = {key: value for key, value in fields.items() if key.startswith("select.")}
    server = {key.removeprefix("generate."): value for key, value in fields.items() if key not in changes}
    runner = section("generate", {"engine": "openai", "base_url": base_url, **server})
    return verify_served(
        Path(run), runner, model=model, name=name, changes=changes, allow_ignored=allow_ignored, on_event=on_event
    )


def prefer(
    completions: Ref,
    against: Ref,
    prompts: str | Sequence[str],
    *,
    judge: Ref,
    split: Split = "test",
    on_event: OnEvent | None = None,
    **options: Unpack[opt.PreferOptions],
) -> Score:
    """How often a judge model prefers one model's answers to another's: the Score `win_rate`.

    Every pair is judged twice, in both orders; if the orders disagree it is a tie.

    Args:
        completions: A file that `generate` wrote.
        against: Another one, of the same prompts.
        prompts: The prompts, such as `alpaca-eval`.
        judge: The judge model; with `engine="openai"` its name on the server.
        split: Which part of a data set that has parts.
        on_event: Receives the progress of the judge, whose answers are written beside `completions`, and the maximum
            cost of a paid one before it starts.
        options: How the judge runs: fields of a recipe's judge (`engine`, `base_url`, `batch_size`, `price_in`, …);
            `seed` as given to `generate`.

    Raises:
        DataError: A prompt does not have one answer in each file.
        UserError: The judge is not available.
    """
    from mooring.pipeline.responses import prefer

    files = Path(completions), Path(against)
    return prefer(*files, prompts, options, judge=str(judge), split=split, on_event=on_event)


def compare_evals(
    first: Ref, second: Ref, *, metrics: Sequence[str] = (), common: bool = False, seed: int = 0
) -> list[EvalDifference]:
    """Compare two evaluations of other tools in pairs, sample by sample: one difference per metric.

    Answers of several epochs are averaged, and intervals and tests are over samples.

    Args:
        first: A file with scores: a log of Inspect, lm-eval's samples, HarmBench's results, … (docs/formats.md).
        second: Another one, of the same samples.
        metrics: Which scores; defaults to those that both have.
        common: Compare the samples that both have, instead of raising an error if some are missing.
        seed: Seed of the bootstrap and of the permutations.

    Raises:
        DataError: A file cannot be read or has no scores, or the two are not of the same samples (`data.unpaired`).
        MissingExtraError: It takes a package to read a file (`extra.inspect`).
    """
    from mooring.pipeline.compare_evals import compare_evals

    return compare_evals(Path(first), Path(second), metrics=metrics, common=common, seed=seed)


def lm_eval(
    model: Ref,
    tuned: Ref | None = None,
    *,
    tasks: Sequence[str],
    lam: opt.Lam | None = None,
    samples: Ref | None = None,
    on_event: OnEvent | None = None,
    **options: Unpack[opt.LmEvalOptions],
) -> dict[str, Score]:
    """Run tasks of lm-evaluation-harness on a model, or on its merge with `tuned` at λ, which is not written to disk.

    Args:
        model: A model; the base of the merge if `tuned` is given.
        tuned: A model tuned from it, or a LoRA adapter on it.
        tasks: Tasks, groups and tags as lm-eval names them; `bbh` is BIG-Bench Hard, 3-shot.
        lam: λ, the weight of the tuned model; required with `tuned`.
        samples: A file for questions and answers, as JSON Lines.
        on_event: Receives the progress, in requests.
        options: `data`, a file with the rows of the task or a folder with one file per task (by default below
            `$MOORING_DATA`, else from the hub); `num_fewshot`, examples before each question (by default the task's own
            number); `limit`, at most this many questions per task; `apply_chat_template` and `fewshot_as_multiturn`
            (examples are turns of the conversation), both on by default; `method` and its options, `system`, `seed`,
            `batch_size`, `dtype`, `device`.

    Raises:
        UserError: Bad input, or lm-eval is not installed.
    """
    from mooring.pipeline.lm_eval.evaluate import evaluate

    models = str(model), None if tuned is None else str(tuned)
    return evaluate(*models, tasks, options, lam=lam, samples=Path(samples) if samples else None, on_event=on_event)


# --- People's labels ---


def label_server(
    run: Ref, *, n: int = 200, seed: int = 0, annotator: str = "", host: str = "127.0.0.1", port: int = 0
) -> LabelServer:
    """A server of the page on which people label a run's answers to harmful requests; its `serve` blocks.

    The page shows a sample, spread evenly over models and verdicts, without the model or the verdict. Each label is
    added to `labels.jsonl` in the run folder as it is given.

    Args:
        run: A finished run folder.
        n: How many answers; a larger number later adds to the same sample.
        seed: Seed of the sample.
        annotator: The name that the page begins with.
        host: An address of this machine's loopback interface.
        port: A port; 0 takes a free one.

    Raises:
        UserError: `host` is not a loopback address, or the port is in use.
        DataError: It is not a finished run, or its results hold no answers.
    """
    from mooring.pipeline.label_server import LabelServer
    from mooring.pipeline.labelling import Labelling

    found = Labelling.open(Path(run))
    return LabelServer(
        found.sample(n, seed),
        title=found.results.title,
        known=found.labels(),
        save=lambda label: found.add([label]),
        host=host,
        port=port,
        annotator=annotator,
    )


def label_page(run: Ref, out: Ref, *, n: int = 200, seed: int = 0, annotator: str = "") -> int:
    """Write the page of `label_server` to a file that works without a server: a button saves the labels to a file.

    Args:
        run: A finished run folder.
        out: The HTML file.
        n: How many answers.
        seed: Seed of the sample.
        annotator: The name that the page begins with.

    Returns:
        How many answers it has.

    Raises:
        DataError: As `label_server`.
    """
    from mooring.files import atomic_text
    from mooring.pipeline.label_server import cards
    from mooring.pipeline.labelling import Labelling
    from mooring.reporting.label_page import as_html

    found = Labelling.open(Path(run))
    sample = found.sample(n, seed)
    atomic_text(Path(out), as_html(cards(sample), title=found.results.title, annotator=annotator))
    return len(sample)


def import_labels(run: Ref, file: Ref, *, annotator: str = "import") -> JudgeError:
    """Add labels from a CSV, TSV, JSON, JSONL or Parquet file to those of a run, and return what all of them say.

    A row has `label` (`harmful`, `harmless`, `unsure`; or `harmful`: true, false) and names an answer: by `item`, as
    the page saves it, or by `prompt_id` and `model` (`base`, `tuned`, or λ). It may have `annotator` and `split`.

    Args:
        run: A finished run folder.
        file: The file.
        annotator: Who labelled rows that do not say so.

    Raises:
        DataError: A row has no label, or names no answer of the run; then none is added.
    """
    from mooring.pipeline.labelling import Labelling

    found = Labelling.open(Path(run))
    found.import_file(Path(file), annotator)
    return found.estimate()


def judge_error(run: Ref) -> JudgeError:
    """What a run's labels say of its judge: sensitivity, specificity, κ, and every attack success rate corrected.

    Raises:
        DataError: It is not a finished run, or has no labels (`data.no_labels`).
    """
    from mooring.pipeline.labelling import Labelling

    return Labelling.open(Path(run)).estimate()


# --- What a run found ---


def select(run: Ref, *, metric: str | None = None, **options: Unpack[opt.SelectOptions]) -> Choice:
    """Choose λ again from the validation scores of a run, by another bound, policy or metric. The run stays as it is.

    It chooses a single λ, even if the run chose λ by module.

    Args:
        run: A run folder.
        metric: The task score that decides; defaults to the run's own.
        options: Fields of a recipe's `select` section that replace the run's own. Not `search` and `budget`: which λ
            were tried is the run's.

    Returns:
        The choice; if no λ is within the bound, the nearest to it, and `within` is false.

    Raises:
        UserError: It is not a run that has been scored, a value is bad, or the choice cannot be made.
    """
    from mooring.pipeline.reselect import reselect

    return reselect(Path(run), options, metric=metric)


def load_results(run: Ref) -> Results:
    """The results of a finished run: every score of base, tuned and merged models, the choice, and the answers.

    Raises:
        DataError: It is not a finished run, or its results were edited since.
    """
    from mooring.reporting.results import load_run

    return load_run(Path(run))


def load_comparison(run: Ref) -> MethodComparison:
    """The results of a finished run that compares methods or tuned models.

    Raises:
        DataError: It is not such a run, or its results were edited since.
    """
    from mooring.reporting.comparison.records import load_comparison

    return load_comparison(Path(run))


def doctor(*, timeout: float = 120.0) -> list[Finding]:
    """What this installation can do: packages and extras that import, the GPU, the sandbox, the hub, the disk.

    Args:
        timeout: Seconds for importing the packages of one extra.

    Returns:
        A finding for each, with how to get what is missing.
    """
    from mooring.pipeline.doctor import examine

    return examine(timeout)


def list_plugins() -> list[PluginInfo]:
    """What is built in and what plug-ins add: judges, merge methods, metrics, prompt sets, attacks and engines.

    Every entry point is loaded; one that cannot be is listed with its error.
    """
    from mooring.pipeline.extensions import list_plugins

    return list_plugins()


def preview_data(
    data: Ref,
    *,
    model: Ref | None = None,
    row: int = 1,
    split: Split = "tune",
    **options: Unpack[opt.PreviewDataOptions],
) -> DataPreview:
    """What Mooring understands of a data set: shapes, counts, lengths, and one example as a model sees it.

    Args:
        data: A data set.
        model: A model whose chat template and tokenizer to use; without one, lengths are of characters.
        row: Which row to show, from 1.
        split: Which part of a data set that has parts.
        options: `prompt_field`, `completion_field`, `messages_field`: which fields of a file hold them.

    Raises:
        DataError: The data set is missing or malformed, or has no such row.
        ModelError: The model is missing, or its chat template refuses a row.
    """
    from mooring.config import settings
    from mooring.pipeline.preview import preview

    fields = settings("preview_data", options).data
    return preview(str(data), model=None if model is None else str(model), row=row, split=split, fields=fields)


def gate(run: Ref, *, junit: Ref | None = None, summary: Ref | None = None) -> RunVerdict:
    """Whether a run's merged model can be shipped, for a pipeline.

    Args:
        run: A finished run folder.
        junit: A file for the verdict as JUnit XML, a test case per check.
        summary: A file to which the verdict, its checks and the table are appended as Markdown, such as the one named
            by GitHub's `GITHUB_STEP_SUMMARY`.

    Returns:
        The verdict; `passed` is whether it is to ship.

    Raises:
        DataError: It is not a finished run, or its results were edited since.
        OutputError: A file cannot be written.
    """
    from mooring.files import append_text, atomic_text
    from mooring.reporting.gate import as_junit, as_summary
    from mooring.reporting.results import load_run

    results = load_run(Path(run))
    if junit is not None:
        atomic_text(Path(junit), as_junit(results.verdict, results.title))
    if summary is not None:
        append_text(Path(summary), as_summary(results))
    return results.verdict


def report(run: Ref, *, redact: bool = False) -> Path:
    """Write a run's report again from its `results.json`, or that of a comparison; returns the report's folder.

    Labels of the run's answers are included, if there are any.

    Args:
        run: A run folder.
        redact: Leave out harmful prompts and the answers to them, and write to `report-redacted`.

    Raises:
        DataError: There are no results, or they cannot be read.
    """
    from mooring.pipeline.labelling import estimate_if_labelled
    from mooring.reporting.comparison import records
    from mooring.reporting.comparison import write as comparison
    from mooring.reporting.results import load_run
    from mooring.reporting.write import write

    own = Path(run) / "report"
    out = Path(run) / "report-redacted" if redact else own
    if records.is_comparison(own):
        found = records.load_comparison(Path(run))
        comparison.write_comparison(found, out, comparison.read_costs(own), redact=redact)
    else:
        results = load_run(Path(run))
        write(results, out, redact=redact, record=redact, error=estimate_if_labelled(results, Path(run)))
    return out


def serve(run: Ref, *, host: str = "127.0.0.1", port: int = 0) -> RunServer:
    """A server of a run's page: its progress and the curve as it fills, and the report when it is done.

    It reads the run folder alone, so that it can be started and stopped while the run is at work. Its `serve` blocks,
    `url` is the address with a token, without which nothing is shown.

    Args:
        run: A run folder.
        host: An address of this machine's loopback interface.
        port: A port; 0 takes a free one.

    Raises:
        DataError: It is not a run folder.
        UserError: `host` is not a loopback address.
        OutputError: The port is in use.
    """
    from mooring.pipeline.run_server import RunServer

    return RunServer(Path(run), host=host, port=port)


def export_run(
    run: Ref,
    *,
    format: Literal["inspect", "lm-eval", "harmbench", "csv", "parquet", "every-eval-ever"],
    out: Ref,
) -> list[Path]:
    """Write the answers and scores of a run for other tools: of every model and set, both halves.

    Args:
        run: A run folder.
        format: `inspect`, logs for `inspect view`; `lm-eval`, samples and results; `harmbench`, completions with
            labels, of harmful requests alone; `csv` or `parquet`, a table of answers and one of scores;
            `every-eval-ever`, scores (docs/formats.md).
        out: Folder for the files; it must be empty or absent.

    Returns:
        The files.

    Raises:
        DataError: It is not a run folder, has no answers, or its records were edited since.
        MissingExtraError: `inspect_ai` is not installed (`extra.inspect`).
        OutputError: `out` is not empty, or cannot be written.
    """
    from mooring.pipeline.exporting import export

    return export(Path(run), format, Path(out))


def paper(runs: Ref, out: Ref, *, published: Ref | None = None, main: str | None = None) -> Paper:
    """Write the paper's Tables 1 to 3 and Figures 2 and 3 from a folder of runs.

    Args:
        runs: A folder that contains run folders.
        out: Folder for the files: Markdown, LaTeX, CSV, PNG and SVG.
        published: Published numbers to show beside the measured ones: CSV or YAML (docs/paper.md).
        main: The base of Tables 1 and 2 and of the figures; defaults to that of most runs.

    Raises:
        UserError: No run can be read, or `published` is malformed.
    """
    from mooring.reporting.paper.write import write_paper

    return write_paper(Path(runs), Path(out), known=Path(published) if published else None, main=main)


def compare(
    base: Ref,
    tuned: Ref,
    merged: Ref | None = None,
    *,
    prompts: str | Sequence[str] | Sequence[Prompt],
    lambdas: Sequence[float] | None = None,
    kind: Kind = "safety",
    on_event: OnEvent | None = None,
    **options: Unpack[opt.CompareOptions],
) -> list[list[Reply]]:
    """Answer prompts by the base, the merges at each λ, the tuned model, and another merged model if given.

    No model is written: λ is changed in memory.

    Args:
        base: The aligned model.
        tuned: The model tuned from it: a checkpoint or a LoRA adapter.
        merged: Another model to show beside them, such as a run's chosen one.
        prompts: A text or several, or prompts that `load_prompts` returned.
        lambdas: λ between 0 (the base) and 1 (the tuned model); defaults to 0.2, 0.5 and 0.8.
        kind: What the prompts are for, which decides the defaults of sampling as in a run.
        on_event: Receives the progress, in responses.
        options: `method` and its options (`density`, …), `system`, `seed`, `max_tokens`, `temperature`, …

    Returns:
        A list per prompt: the answers of base, each λ in order, tuned, merged.

    Raises:
        UserError: Bad input.
    """
    from mooring.pipeline.compare import as_prompt

    texts: list[Any] = [prompts] if isinstance(prompts, str) else list(prompts)
    rows = [as_prompt(text, number) if isinstance(text, str) else text for number, text in enumerate(texts, 1)]
    with open_comparison(base, tuned, merged, kind=kind, **options) as comparison:
        return comparison.ask_all(rows, comparison.models_at(lambdas), on_event)


def open_comparison(
    base: Ref, tuned: Ref, merged: Ref | None = None, *, kind: Kind = "safety", **options: Unpack[opt.CompareOptions]
) -> Comparison:
    """The models between base and tuned, open for prompts; arguments as in `compare`.

    Raises:
        UserError: The models do not belong together, or an option is bad.
    """
    from mooring.pipeline.compare import open_comparison

    return open_comparison(str(base), str(tuned), str(merged) if merged else None, options, kind)
