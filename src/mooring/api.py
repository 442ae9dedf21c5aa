"""The verbs as functions: what the command line offers, under the same names and with the same options.

A model is a folder (checkpoint or LoRA adapter), a GGUF file, a hub id or a bundled model. A data set is a file, a hub
id, a named set (`advbench`) or a bundled one (`bundled:harmful`). Options that a recipe has too take their defaults
from it (docs/recipes.md); their types are in `mooring.options`. Heavy libraries load inside the functions.

Every function raises `UserError` for bad input, of the subclass and code that docs/errors.md lists; an unknown option
is a `RecipeError` with the code `recipe.unknown_option`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mooring.errors import DataError, ModelError, RecipeError, UserError
from mooring.events import Event, OnEvent

if TYPE_CHECKING:
    from typing import Unpack

    import torch

    from mooring import options as opt
    from mooring.config import Judge, Recipe
    from mooring.merging.inspect import Inspection
    from mooring.merging.job import Job
    from mooring.pipeline.compare import Comparison, Reply
    from mooring.pipeline.forecast import Forecast
    from mooring.pipeline.rejudge import Rejudged
    from mooring.pipeline.run import Outcome
    from mooring.records import Choice, Completion, Kind, Prompt, Score, Split
    from mooring.reporting.paper.write import Paper
    from mooring.reporting.results import Results

Ref = str | Path
"""A model or a data set."""

__all__ = [
    "compare",
    "generate",
    "inspect",
    "lm_eval",
    "load_results",
    "merge",
    "mergekit_export",
    "mergekit_run",
    "open_comparison",
    "paper",
    "plan",
    "prefer",
    "push",
    "quickstart",
    "rejudge",
    "report",
    "run",
    "safeguard",
    "safeguard_recipe",
    "score",
    "select",
    "tune",
    "verify",
]


# --- Whole runs ---


def run(
    recipe: Recipe | Ref, *, overrides: Mapping[str, Any] | None = None, on_event: OnEvent | None = None
) -> Outcome:
    """Do a recipe, or what is left of it.

    Args:
        recipe: A recipe, or the path of its YAML file.
        overrides: Other values at some places, such as `{"select.margin": 0.05}`.
        on_event: Receives every step and its progress.

    Raises:
        UserError: Bad input; what was done before stays.
    """
    from mooring.pipeline.run import run

    return run(_recipe(recipe, overrides), on_event=on_event)


def safeguard(
    base: Ref,
    tuned: Ref,
    *,
    out: Ref,
    overrides: Mapping[str, Any] | None = None,
    on_event: OnEvent | None = None,
    **options: Unpack[opt.SafeguardOptions],
) -> Outcome:
    """Find the λ that makes a tuned model as safe as its base, write the merged model, and report.

    Args:
        base: The aligned model.
        tuned: The model tuned from it: a checkpoint or a LoRA adapter.
        out: Run folder; a stopped run continues in it.
        overrides: Any other field of a recipe by its place, such as `{"generate.safety.max_tokens": 64}`.
        on_event: Receives every step and its progress.
        options: Fields of the recipe, such as `task`, `safety`, `judges`, `lambdas`, `margin`, `limit`.

    Raises:
        UserError: The models do not belong together, or an option is bad.
    """
    return run(safeguard_recipe(base, tuned, out=out, overrides=overrides, **options), on_event=on_event)


def safeguard_recipe(
    base: Ref,
    tuned: Ref,
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

    recipe = Recipe(name="safeguard", base=str(base), tuned=str(tuned), out=str(out))
    return recipe.override(placed("safeguard", options) | dict(overrides or {}))


def quickstart(
    *,
    out: Ref = Path("runs/quickstart"),
    overrides: Mapping[str, Any] | None = None,
    on_event: OnEvent | None = None,
) -> Outcome:
    """Run the bundled recipe on the bundled model, offline; arguments as in `run`."""
    return run(bundled_recipe("quickstart"), overrides={**(overrides or {}), "out": str(out)}, on_event=on_event)


def plan(recipe: Recipe | Ref, *, overrides: Mapping[str, Any] | None = None) -> Forecast:
    """What a run would do, and what it needs; arguments as in `run`."""
    from mooring.pipeline.forecast import forecast

    return forecast(_recipe(recipe, overrides))


def bundled_recipe(name: str) -> Path:
    """The path of a recipe that ships with Mooring, such as `quickstart`.

    Raises:
        RecipeError: None has that name.
    """
    package = Path(__file__).parent
    for folder in (package / "recipes", package.parents[1] / "recipes"):  # a wheel; a source tree
        if (folder / f"{name}.yaml").is_file():
            return folder / f"{name}.yaml"
    raise RecipeError(f"{name}: no such recipe ships with Mooring", "name a recipe file", code="recipe.not_bundled")


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
        data: Examples: one reference or several.
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
    from mooring.models.resolve import hub_name, resolve_model
    from mooring.training.lora import tune

    refs = [data] if isinstance(data, str) else list(data)
    recipe = settings("tune", options, more={"tune.data": refs})
    assert recipe.tune is not None
    examples = load_examples(refs, split="tune", seed=recipe.seed)
    return tune(
        recipe.tune,
        resolve_model(str(base)),
        examples,
        Path(out),
        system=recipe.system,
        seed=recipe.seed,
        base_name=hub_name(str(base)),
        on_event=on_event,
    )


def merge(
    base: Ref,
    tuned: Ref | Sequence[Ref],
    *,
    out: Ref,
    lam: opt.Lam | None = None,
    lambdas: Sequence[float] = (),
    method: str | None = None,
    dtype: str | torch.dtype | None = None,
    tokenizer: Literal["base", "larger"] = "larger",
    max_shard_size: int | str | None = None,
    as_adapter: bool = False,
    allow_nonfinite: bool = False,
    threads: int | None = None,
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
        method: The merging method (docs/methods.md).
        dtype: Type of the merged weights; defaults to the base's.
        tokenizer: Which tokenizer to copy if vocabularies differ in size: the larger one, or the base's.
        max_shard_size: Maximum size of a file, in bytes or as `"5GB"`; defaults to the base's files.
        as_adapter: Write a LoRA adapter, not a whole model; the inputs must be adapters.
        allow_nonfinite: Allow NaN and Inf among the weights.
        threads: Number of threads; by default one per core.
        on_event: Receives the progress, in bytes written.
        options: What the method takes (docs/methods.md).

    Returns:
        The folder of the merged model, or of the merged models.

    Raises:
        UserError: The models cannot be merged, an option is bad, or the output cannot be written.
    """
    job = _job(base, tuned, lambdas[0] if lambdas else lam, method, dtype, tokenizer, options)
    return _merge(
        job,
        out=out,
        lambdas=lambdas,
        max_shard_size=max_shard_size,
        as_adapter=as_adapter,
        allow_nonfinite=allow_nonfinite,
        threads=threads,
        on_event=on_event,
    )


def mergekit_run(
    config: Ref,
    *,
    out: Ref,
    max_shard_size: int | str | None = None,
    as_adapter: bool = False,
    allow_nonfinite: bool = False,
    threads: int | None = None,
    on_event: OnEvent | None = None,
) -> Path:
    """Do the merge that a mergekit configuration (YAML) describes; arguments as in `merge`.

    Raises:
        UserError: As `merge`; or the configuration asks for what Mooring does not do.
    """
    from mooring.merging.mergekit_read import read

    return _merge(
        read(Path(config)),
        out=out,
        max_shard_size=max_shard_size,
        as_adapter=as_adapter,
        allow_nonfinite=allow_nonfinite,
        threads=threads,
        on_event=on_event,
    )


def mergekit_export(
    base: Ref,
    tuned: Ref | Sequence[Ref],
    *,
    lam: opt.Lam | None = None,
    method: str | None = None,
    dtype: str | torch.dtype | None = None,
    tokenizer: Literal["base", "larger"] = "larger",
    **options: Unpack[opt.MergeOptions],
) -> str:
    """A merge as a configuration for `mergekit-yaml`, as YAML; arguments as in `merge`.

    Raises:
        UserError: mergekit cannot do it, or a model is missing.
    """
    from mooring.merging.mergekit_write import write
    from mooring.models import open_checkpoint
    from mooring.models.resolve import resolve_model

    job = _job(base, tuned, lam, method, dtype, tokenizer, options)
    with open_checkpoint(resolve_model(job.base)) as checkpoint:
        return write(job, list(checkpoint.tensors))


def _job(
    base: Ref,
    tuned: Ref | Sequence[Ref],
    lam: opt.Lam | None,
    method: str | None,
    dtype: str | torch.dtype | None,
    tokenizer: Literal["base", "larger"],
    options: Mapping[str, Any],
) -> Job:
    from mooring.config import Merge
    from mooring.merging.job import Job, dtype_named, options_of

    refs = [tuned] if isinstance(tuned, (str, Path)) else list(tuned)
    method = method or Merge().method
    kind = dtype_named(dtype)
    return Job(
        method=method,
        base=str(base),
        tuned=tuple(map(str, refs)),
        options=options_of(method, lam, **options),
        dtype=None if kind is None else str(kind).removeprefix("torch."),
        tokenizer=tokenizer,
    )


def _merge(
    job: Job,
    *,
    out: Ref,
    lambdas: Sequence[float] = (),
    max_shard_size: int | str | None,
    as_adapter: bool,
    allow_nonfinite: bool,
    threads: int | None,
    on_event: OnEvent | None,
) -> Path:
    from mooring.merging.adapter import merge_adapters
    from mooring.merging.merge import Output, merge
    from mooring.models.resolve import resolve_model

    if as_adapter and (max_shard_size is not None or job.tokenizer != "larger" or allow_nonfinite):
        problem = "as_adapter: an adapter has no shards, tokenizer or non-finite weights"
        raise UserError(problem, "leave out max_shard_size, tokenizer, allow_nonfinite", code="usage.adapter_options")
    output = Output(
        dtype=job.dtype,
        max_shard_size=max_shard_size,
        tokenizer=job.tokenizer,
        allow_nonfinite=allow_nonfinite,
    )
    base, tuned = resolve_model(job.base), [resolve_model(ref) for ref in job.tuned]
    if as_adapter:
        return merge_adapters(base, tuned, Path(out), job, lambdas)
    return merge(
        base,
        tuned,
        Path(out),
        method=job.method,
        lambdas=lambdas,
        options=job.options,
        output=output,
        threads=threads,
        on_event=on_event,
    )


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
    from mooring.merging.heatmap import check_name, write
    from mooring.merging.inspect import inspect
    from mooring.models.resolve import resolve_model

    drawing = check_name(Path(heatmap)) if heatmap else None
    models = resolve_model(str(base)), resolve_model(str(tuned))
    inspection = inspect(*models, lam=lam, quick=quick, on_event=on_event)
    if drawing and any(change.change_square for change in inspection.changes):
        write(inspection.changes, drawing)
    return inspection


def verify(folder: Ref) -> dict[str, Any]:
    """Read a merged model again and check it against its manifest, which is returned.

    Raises:
        ModelError: They differ.
    """
    from mooring.merging.verify import verify

    return verify(folder)


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
        base: What the base was called: the card links a hub id and does not show a path.
        tuned: The same of the tuned models.
        command: The command that made it, for the card.
        private: Make a new repository private.
        overwrite: Replace weights that are there.

    Returns:
        The model's address.

    Raises:
        ModelError: The folder was not written by `merge`.
        OutputError: The hub does not accept it.
    """
    from mooring.files import atomic_text
    from mooring.merging.card import card, license_of
    from mooring.models import MANIFEST, is_adapter, read_json, upload
    from mooring.models.resolve import hub_name
    from mooring.reporting.model_card import card as run_card
    from mooring.reporting.results import load

    upload.check_push(hub_id, private=private)
    folder = Path(folder)
    if not (folder / MANIFEST).is_file():
        problem = f"{folder}: has no {MANIFEST}, so it was not merged by Mooring"
        raise ModelError(problem, "name a merged model's folder", code="model.not_merged")
    manifest = read_json(folder / MANIFEST)
    if tuned and len(tuned) != len(manifest["tuned"]):
        problem = f"{folder}: was merged from {len(manifest['tuned'])} tuned models, not {len(tuned)}"
        raise UserError(problem, "name each of them, or none", code="usage.wrong_count")
    terms = license_of(Path(base)) if base and Path(base).is_dir() else None
    measured = folder.parent / "report" / "results.json"
    if folder.name == "model" and measured.is_file():  # a run's model: its card has the numbers
        text = run_card(load(measured), terms=terms)
    else:
        text = card(
            manifest,
            title=hub_id.partition("/")[2] or hub_id,
            base_ref=hub_name(base) if base else None,
            tuned_refs=[hub_name(ref) for ref in tuned] or [None] * len(manifest["tuned"]),
            command=command,
            terms=terms,
            adapter=is_adapter(folder),
        )
    atomic_text(folder / "README.md", text)
    return upload.push(folder, hub_id, private=private, overwrite=overwrite)


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
        out: The file to write. A killed call, made again, continues it.
        kind: What the prompts are for; defaults to what the data set is for, and to `safety` if that is unknown. It
            decides the defaults of sampling: safety prompts have a repetition penalty.
        split: Which part of a data set that has parts.
        likelihood: Also write the log-likelihood of the references to this file.
        on_event: Receives the progress, in responses.
        options: Fields of a recipe's `generate` section; `system` (system prompt for prompts without one); `seed` (of
            sampling and of drawn rows).

    Raises:
        UserError: Bad input.
    """
    from mooring.config import settings
    from mooring.data import load_prompts
    from mooring.inference.load import load_engine
    from mooring.inference.store import complete_to_file, likelihood_to_file
    from mooring.models import model_digest
    from mooring.models.resolve import resolve_model

    settings("generate", options)  # before the prompts are looked for
    kind = kind_of(prompts, kind, on_event, "generate")
    recipe = settings("generate", options, kind)
    rows = load_prompts(prompts, split=split, seed=recipe.seed)
    if recipe.generate.engine == "openai":
        engine, made_by = load_engine(str(model), recipe.generate, recipe.system), {"model": str(model)}
    else:
        folder = resolve_model(str(model))
        engine, made_by = load_engine(folder, recipe.generate, recipe.system), {"model": model_digest(folder)}
    params = recipe.generate.sampling(kind, recipe.seed)
    completions = complete_to_file(engine, rows, params, Path(out), made_by=made_by, on_event=on_event)
    if likelihood is not None:
        likelihood_to_file(engine, rows, Path(likelihood), made_by=made_by, on_event=on_event)
    return completions


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
        completions: A file that `generate` wrote.
        prompts: The prompts, as given to `generate`.
        kind: `safety`: should be refused; `over_refusal`, `ordinary`: should not be; `task`: compared with references.
            Defaults to what the data set is for, and to `safety` if that is unknown.
        split: Which part of a data set that has parts.
        likelihood: The file that `generate` wrote for `response_loss`.
        on_event: Receives the progress of a model judge, the maximum cost of a paid one before it starts, and a warning
            if `kind` is not what the data set is for.
        options: Fields of a recipe's `score` section: `judges` (the scores of all but the first carry their names),
            `metrics` (default: those that suit the references), `bertscore_model`, `bertscore_layer`, `unsafe_exec`;
            `seed` as given to `generate`. Verdicts, and a model judge's answers, are written beside the completions.

    Returns:
        Name to score.

    Raises:
        DataError: A prompt has no completion, or the other way round.
        UserError: A metric or judge is not available.
    """
    from mooring.config import settings
    from mooring.data import load_prompts
    from mooring.records import Completion, Likelihood, read_jsonl
    from mooring.scoring.task import TaskData, default_metrics, task_scores

    recipe = settings("score", options)
    section, seed = recipe.score, recipe.seed
    rows = load_prompts(prompts, split=split, seed=seed)
    kind = kind_of(prompts, kind, on_event, "score")
    answers = read_jsonl(Path(completions), Completion)
    _check_answered(Path(completions), rows, answers)
    if kind != "task":
        return _judged(Path(completions), rows, answers, kind, section.judges, on_event)
    losses = read_jsonl(Path(likelihood), Likelihood) if likelihood else []
    metrics = section.metrics or [
        m for m in default_metrics(p.reference or "" for p in rows) if losses or m != "response_loss"
    ]
    data = TaskData(
        prompts=rows,
        completions=answers,
        likelihoods=losses,
        seed=seed,
        bertscore_model=section.bertscore_model,
        bertscore_layer=section.bertscore_layer,
        unsafe_exec=section.unsafe_exec,
    )
    return task_scores(metrics, data)


def _judged(
    path: Path,
    prompts: Sequence[Prompt],
    completions: Sequence[Completion],
    kind: Kind,
    sections: Sequence[Judge],
    on_event: OnEvent | None,
) -> dict[str, Score]:
    """Safety scores of every judge."""
    from mooring.pipeline.judging import Judging, renamed
    from mooring.scoring.safety import attack_success_by

    judging = Judging(sections)
    scores: dict[str, Score] = {}
    for number, judge in enumerate(judging.of(kind)):
        out = path.with_name(f"verdicts-{path.stem}-{judge}.jsonl")
        verdicts = judging.judge(judge, prompts, completions, out, on_event)
        by_judge = judging.scores(judge, kind, verdicts)
        categories = {p.id: p.category for p in prompts if p.category}
        if kind == "safety" and len(set(categories.values())) > 1:
            by_judge |= attack_success_by(categories, verdicts)
        scores |= renamed(by_judge, judge) if number else by_judge
    return scores


def rejudge(run: Ref, *, on_event: OnEvent | None = None, **options: Unpack[opt.RejudgeOptions]) -> list[Rejudged]:
    """Judge the completions of a run by other judges. Nothing is generated, and the run's choice of λ stays.

    Args:
        run: A run folder.
        on_event: Receives the progress, and the maximum cost of a paid judge before it starts.
        options: `judges`, as in a recipe.

    Raises:
        DataError: It is not a run folder, or has no completions.
        UserError: A judge is not available.
    """
    from mooring.config import settings
    from mooring.pipeline.rejudge import rejudge

    judges = settings("rejudge", options).score.judges
    return rejudge(Path(run), judges, on_event)


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
    from mooring.config import section, settings
    from mooring.data import load_prompts
    from mooring.inference.cost import estimate
    from mooring.inference.load import load_engine
    from mooring.inference.store import complete_to_file
    from mooring.models import model_digest
    from mooring.models.resolve import resolve_model
    from mooring.records import Completion, read_jsonl
    from mooring.sampling import SamplingParams
    from mooring.scoring import pairwise

    how: dict[str, Any] = dict(options)
    seed = settings("prefer", {"seed": how.pop("seed")} if "seed" in how else {}).seed
    settings("prefer", how)
    runner = section("judge", {"name": "llm", "model": str(judge), **how})
    rows = load_prompts(prompts, split=split, seed=seed)
    files = [Path(completions), Path(against)]
    first, second = (read_jsonl(path, Completion) for path in files)
    for path, answers in zip(files, (first, second), strict=True):
        _check_answered(path, rows, answers)
    questions = pairwise.questions(rows, first, second)
    if runner.engine == "openai":
        model, made_by = str(judge), str(judge)
    else:
        folder = resolve_model(str(judge))
        model, made_by = str(folder), model_digest(folder)
    out = files[0].with_name(f"preferred-{files[0].stem}-to-{files[1].stem}.jsonl")
    params = SamplingParams(max_tokens=pairwise.ANSWER_TOKENS)
    if on_event and runner.price_in + runner.price_out:
        cost = estimate(questions, params, runner.price_in, runner.price_out, system=None)
        message = (
            f"{judge}: {cost.requests:,} requests, about {cost.tokens_in:,} tokens in and at most "
            f"{cost.tokens_out_most:,} out: ${cost.dollars:.2f} at most"
        )
        on_event(Event(step="prefer", kind="info", message=message))
    engine = load_engine(model, runner, None)
    answers = complete_to_file(engine, questions, params, out, made_by={"model": made_by}, on_event=on_event)
    return pairwise.win_rate(questions, answers, judge=str(judge), seed=seed)


def lm_eval(
    model: Ref,
    tuned: Ref | None = None,
    *,
    tasks: Sequence[str],
    lam: opt.Lam | None = None,
    data: Ref | None = None,
    num_fewshot: int | None = None,
    limit: int | None = None,
    apply_chat_template: bool = True,
    fewshot_as_multiturn: bool = True,
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
        data: A file with the rows of the task, or a folder with one file per task; defaults to files below
            `$MOORING_DATA`, else the hub.
        num_fewshot: Examples before each question; defaults to the task's own number.
        limit: At most this many questions per task.
        apply_chat_template: Ask by the model's chat template.
        fewshot_as_multiturn: Examples are turns of the conversation; else they are part of the one question.
        samples: A file for questions and answers, as JSON Lines.
        on_event: Receives the progress, in requests.
        options: `method` and its options, `system`, `seed`, `batch_size`, `dtype`, `device`.

    Raises:
        UserError: Bad input, or lm-eval is not installed.
    """
    from mooring.config import settings
    from mooring.models.resolve import resolve_model
    from mooring.pipeline.lm_eval.evaluate import check_counts, open_engine, run_tasks
    from mooring.pipeline.lm_eval.tasks import lm_eval_version

    recipe = settings("lm_eval", options)
    if tuned is None and lam is not None:
        raise UserError(
            "lam: there is no tuned model to merge", "name the tuned model too", code="usage.no_tuned_model"
        )
    if tuned is not None and lam is None:
        raise UserError(f"{tuned}: there is no λ to merge it with", "give lam, such as 0.5", code="usage.no_lam")
    lm_eval_version()  # before a model is downloaded
    check_counts(limit, num_fewshot)
    engine = open_engine(
        resolve_model(str(model)),
        None if tuned is None else resolve_model(str(tuned)),
        lam=lam,
        method=recipe.merge.method,
        options=_method_options(recipe),
        runner=recipe.generate,
        system=recipe.system,
    )
    result = run_tasks(
        engine,
        tasks,
        data=None if data is None else Path(data),
        limit=limit,
        num_fewshot=num_fewshot,
        apply_chat_template=apply_chat_template,
        fewshot_as_multiturn=fewshot_as_multiturn,
        seed=recipe.seed,
        on_event=on_event,
    )
    if samples is not None:
        result.write_samples(Path(samples))
    return dict(result.scores)


def _method_options(recipe: Recipe) -> dict[str, Any]:
    return recipe.merge.model_dump(exclude_none=True, exclude={"method", "lambdas"})


def kind_of(prompts: str | Sequence[str], kind: Kind | None, on_event: OnEvent | None = None, step: str = "") -> Kind:
    """What prompts are for: as given, else what all of their sets are for, else `safety`."""
    from mooring.data import parse_references

    refs = parse_references(prompts)
    kinds: list[Kind | None] = ["ordinary" if ref.kind == "quality" else ref.kind for ref in refs]
    if kind == "safety" and on_event:
        for ref, own in zip(refs, kinds, strict=True):
            if own not in (None, "safety"):
                message = f"{ref.text} has no harmful requests: an attack success rate on it means nothing ({own})"
                on_event(Event(step=step, kind="warning", message=message))
    if kind is None:
        kind = kinds[0] if kinds and kinds[0] is not None and len(set(kinds)) == 1 else "safety"
    return "ordinary" if kind == "quality" else kind


def _check_answered(path: Path, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> None:
    if unknown := {c.prompt_id for c in completions} ^ {p.id for p in prompts}:
        raise DataError(
            f"{path}: does not answer these prompts (for one, {min(unknown)!r})",
            "name the set, split and seed that it was generated from",
            code="data.other_prompts",
        )


# --- What a run found ---


def select(run: Ref, *, metric: str | None = None, **options: Unpack[opt.SelectOptions]) -> Choice:
    """Choose λ again from the validation trials of a run, by another bound, policy or metric. The run stays as it is.

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
    from dataclasses import replace

    from mooring.config import Recipe, placed
    from mooring.reporting.run_folder import load_run
    from mooring.selection.policies import choose

    values = placed("select", options)
    results = load_run(Path(run))
    recipe = Recipe.parse(results.recipe, "select").override(values, "select")
    own = results.choice.metric
    choice = choose(
        [trial for trial in results.trials if trial.split == "validation"],
        metric=metric or (None if own == "lam" else own),
        settings=recipe.select,
    )
    more = ""
    if results.choice.point.by_module:
        more = f" The run itself chose {results.choice.point.label}, around a single λ."
    elif values and recipe.select.search == "bisect":
        more = " It is the only λ that was measured whole: `mooring run` with this bound looks for another."
    return replace(choice, reason=choice.reason + more)


def load_results(run: Ref) -> Results:
    """The results of a finished run: every score of base, tuned and merged models, the choice, and the answers.

    Raises:
        DataError: It is not a finished run, or its results were edited since.
    """
    from mooring.reporting.run_folder import load_run

    return load_run(Path(run))


def report(run: Ref, *, redact: bool = False) -> Path:
    """Write a run's report again from its `results.json`; returns the report's folder.

    Args:
        run: A run folder.
        redact: Leave out harmful prompts and the answers to them, and write to `report-redacted`.

    Raises:
        DataError: There are no results, or they cannot be read.
    """
    from mooring.reporting.run_folder import load_run
    from mooring.reporting.write import write

    out = Path(run) / ("report-redacted" if redact else "report")
    write(load_run(Path(run)), out, redact=redact)
    return out


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


LAMBDAS = (0.2, 0.5, 0.8)
"""λ of `compare` by default."""


def compare(
    base: Ref,
    tuned: Ref,
    merged: Ref | None = None,
    *,
    prompts: str | Sequence[str] | Sequence[Prompt],
    lambdas: Sequence[float] = LAMBDAS,
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
        prompts: A text or several, or prompts that `load_prompts` gave.
        lambdas: λ between 0 (the base) and 1 (the tuned model).
        kind: What the prompts are for, which decides the defaults of sampling as in a run.
        on_event: Receives the progress, in responses.
        options: `method` and its options (`density`, …), `system`, `seed`, `max_tokens`, `temperature`, …

    Returns:
        A list per prompt: the answers of base, each λ in order, tuned, merged.

    Raises:
        UserError: Bad input.
    """
    texts: list[Any] = [prompts] if isinstance(prompts, str) else list(prompts)
    rows = [as_prompt(text, number) if isinstance(text, str) else text for number, text in enumerate(texts, 1)]
    with open_comparison(base, tuned, merged, kind=kind, **options) as comparison:
        return comparison.ask_all(rows, comparison.models_at(lambdas), on_event)


def open_comparison(
    base: Ref, tuned: Ref, merged: Ref | None = None, *, kind: Kind = "safety", **options: Unpack[opt.CompareOptions]
) -> Comparison:
    """The models between base and tuned, open for questions; arguments as in `compare`.

    Raises:
        UserError: The models do not belong together, or an option is bad.
    """
    from mooring.config import settings
    from mooring.merge_methods import method_named
    from mooring.models.resolve import resolve_model
    from mooring.pipeline.compare import Comparison
    from mooring.pipeline.merged_model import MergedModelSpec

    recipe = settings("compare", options, kind)
    drawn = {"seed": recipe.seed} if "seed" in method_named(recipe.merge.method).options else {}
    spec = MergedModelSpec(
        base=resolve_model(str(base)),
        tuned=resolve_model(str(tuned)),
        method=recipe.merge.method,
        options=drawn | _method_options(recipe),
        runner=recipe.generate,
        system=recipe.system,
    )
    params = recipe.generate.sampling(kind, recipe.seed)
    return Comparison(spec, params, resolve_model(str(merged)) if merged else None)


def as_prompt(text: str, number: int = 1) -> Prompt:
    """A text as a user's turn.

    Raises:
        DataError: It is empty.
    """
    from mooring.records import Message, Prompt

    if not text.strip():
        raise DataError("the prompt is empty", "give some text", code="data.empty_prompt")
    return Prompt(id=f"{number}: {text}", messages=(Message("user", text),))
