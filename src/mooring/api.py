"""The verbs, as plain functions: what the command line offers, and nothing that it does not.

A model is a folder (checkpoint or LoRA adapter), a GGUF file, a hub id or a bundled model; a data set is a file, a
hub id, a named set (`advbench`) or a bundled one (`bundled:harmful`). Heavy libraries load inside the functions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from mooring.generate.store import Progress
    from mooring.merge.inspect import Inspection
    from mooring.merge.job import Job
    from mooring.recipe import Recipe
    from mooring.records import Choice, Completion, Score, Split
    from mooring.run.pipeline import Outcome
    from mooring.run.store import OnEvent
    from mooring.tune.lora import OnStep

Kind = Literal["safety", "over_refusal", "ordinary", "task"]
"""What a set of prompts is for."""


def run(recipe: Recipe | str | Path, *, on_event: OnEvent | None = None) -> Outcome:
    """Do a recipe, or what is left of it.

    Args:
        recipe: A recipe, or the path of its YAML file.
        on_event: Told of every step.

    Raises:
        UserError: Bad input; what was done before stays.
    """
    from mooring.recipe import Recipe
    from mooring.run.pipeline import run

    return run(recipe if isinstance(recipe, Recipe) else Recipe.load(recipe), on_event=on_event)


def safeguard_recipe(base: str | Path, tuned: str | Path, **options: Any) -> Recipe:
    """The recipe that `safeguard` runs; arguments as there.

    Raises:
        RecipeError: An option has a bad value.
    """
    from mooring.recipe import Recipe

    sections: dict[str, dict[str, Any]] = {}
    top: dict[str, Any] = {"name": "safeguard", "base": str(base), "tuned": str(tuned)}
    for name, value in options.items():
        if value is None:
            continue
        section, field = _PLACES[name]
        if isinstance(value, Path):
            value = str(value)
        (sections.setdefault(section, {}) if section else top)[field] = value
    return Recipe.parse(top | sections, "safeguard")


_PLACES = {
    "out": ("", "out"),
    "system": ("", "system"),
    "seed": ("", "seed"),
    "task": ("score", "task"),
    "safety": ("score", "safety"),
    "metrics": ("score", "metrics"),
    "limit": ("score", "limit"),
    "method": ("merge", "method"),
    "lambdas": ("merge", "lambdas"),
    "margin": ("select", "margin"),
    "max_new_tokens": ("generate", "max_new_tokens"),
    "batch_size": ("generate", "batch_size"),
    "dtype": ("generate", "dtype"),
    "device": ("generate", "device"),
}
"""Where each option of `safeguard` stands in a recipe."""


def safeguard(base: str | Path, tuned: str | Path, *, on_event: OnEvent | None = None, **options: Any) -> Outcome:
    """Find the λ that makes a tuned model as safe as its base, write the merged model, and report.

    Args:
        base: The aligned model.
        tuned: The model tuned from it: a checkpoint or a LoRA adapter.
        on_event: Told of every step.
        options: `out` (run folder), `task` (prompts with right answers), `safety` (requests to refuse), `method`,
            `lambdas`, `margin` (how far ASR may rise above the base's), `metrics`, `limit` (prompts of each set),
            `system`, `seed`, `max_new_tokens`, `batch_size`, `dtype`, `device`.

    Raises:
        UserError: The models do not belong together, or an option is bad.
        TypeError: An option is unknown.
    """
    if unknown := options.keys() - _PLACES.keys():
        raise TypeError(f"safeguard() has no option {min(unknown)!r}")
    return run(safeguard_recipe(base, tuned, **options), on_event=on_event)


def bundled_recipe(name: str) -> Path:
    """The path of a recipe that ships with Mooring, such as `quickstart`.

    Raises:
        RecipeError: There is none of that name.
    """
    from mooring.errors import RecipeError

    package = Path(__file__).parent
    for folder in (package / "recipes", package.parents[1] / "recipes"):  # a wheel; a source tree
        if (folder / f"{name}.yaml").is_file():
            return folder / f"{name}.yaml"
    raise RecipeError(f"{name}: no such recipe ships with Mooring", "name a recipe file")


def tune(
    base: str | Path,
    data: str | Sequence[str],
    *,
    out: str | Path,
    system: str | None = "You are a helpful assistant.",
    seed: int = 42,
    on_step: OnStep | None = None,
    **settings: Any,
) -> Path:
    """Tune a LoRA adapter on the responses of `data`.

    Args:
        base: The model to tune.
        data: Examples, one reference or several.
        out: Folder for the adapter.
        system: System prompt where an example brings none.
        seed: Seed of data order, initialisation and dropout.
        on_step: Told of every step.
        settings: Fields of a recipe's `tune` section, such as `rank`, `learning_rate`, `epochs`.

    Raises:
        UserError: Bad input.
    """
    from mooring import sources
    from mooring.recipe import section
    from mooring.tune.lora import tune

    refs = [data] if isinstance(data, str) else list(data)
    settings_ = section("tune", {**settings, "data": refs})
    examples = sources.load_examples(refs, split="tune", seed=seed)
    folder = sources.resolve_model(str(base))
    return tune(
        settings_,
        folder,
        examples,
        Path(out),
        system=system,
        seed=seed,
        base_name=sources.hub_name(str(base)),
        on_step=on_step,
    )


def merge(
    base: str | Path,
    tuned: str | Path | Sequence[str | Path],
    *,
    out: str | Path,
    lam: Any = None,
    lambdas: Sequence[float] = (),
    method: str = "linear",
    dtype: str | None = None,
    tokenizer: Literal["base", "larger"] = "larger",
    max_shard_size: int | None = None,
    as_adapter: bool = False,
    allow_nonfinite: bool = False,
    threads: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    **settings: Any,
) -> Path:
    """Merge tuned models into their base: θ = (1−λ)·base + λ·tuned for `linear`.

    Args:
        base: The aligned model.
        tuned: The model tuned from it, a checkpoint or a LoRA adapter; or several of them.
        out: Folder for the merged model; it must not hold anything.
        lam: λ, the weight of the tuned models, from 0 to 1: a number, a ramp from the first layer to the last such as
            `(0.2, 0.8)`, or patterns of tensors' names to either, such as `{"layers.{0-9}.mlp.*": 0.3, "*": 0.6}`.
        lambdas: Several λ at once, reading each input once: `out` gets a folder such as `lam-0.4` for each.
        method: The merging rule (docs/methods.md).
        dtype: Type of the merged weights, as torch names it; the base's own without.
        tokenizer: Whose tokenizer goes along where vocabularies differ in size: the larger one's, or the base's.
        max_shard_size: Bytes of a file at most; the base's files without.
        as_adapter: Write a LoRA adapter instead of a whole model; the inputs must be adapters.
        allow_nonfinite: Go on where a weight is NaN or Inf.
        threads: How many work at once.
        on_progress: Told (bytes written, bytes to write).
        settings: What the method takes: `weights`, `density`, `gamma`, `epsilon`, `normalize`, `rescale`, `seed`,
            `base_weight`.

    Raises:
        UserError: The models cannot be merged, a setting is bad, or the output cannot be written.
    """
    from mooring.merge.job import Job
    from mooring.merge.sites import options_of

    refs = [tuned] if isinstance(tuned, (str, Path)) else list(tuned)
    options = options_of(method, lambdas[0] if lambdas else lam, **settings)
    job = Job(
        method=method,
        base=str(base),
        tuned=tuple(map(str, refs)),
        options=options,
        dtype=dtype,
        tokenizer=tokenizer,
    )
    return merge_job(
        job,
        out=out,
        lambdas=lambdas,
        max_shard_size=max_shard_size,
        as_adapter=as_adapter,
        allow_nonfinite=allow_nonfinite,
        threads=threads,
        on_progress=on_progress,
    )


def merge_job(
    job: Job,
    *,
    out: str | Path,
    lambdas: Sequence[float] = (),
    max_shard_size: int | None = None,
    as_adapter: bool = False,
    allow_nonfinite: bool = False,
    threads: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Do a merge that is written down as a `Job`, such as `merge.mergekit.read` gives; arguments as in `merge`.

    Raises:
        UserError: As `merge`.
    """
    from mooring import sources
    from mooring.merge.stream import Output, dtype_named, merge

    output = Output(
        dtype=dtype_named(job.dtype),
        max_shard_size=max_shard_size,
        tokenizer=job.tokenizer,
        allow_nonfinite=allow_nonfinite,
    )
    base, tuned = sources.resolve_model(job.base), [sources.resolve_model(ref) for ref in job.tuned]
    if as_adapter:
        from mooring.merge.adapter import merge_all_adapters

        return merge_all_adapters(base, tuned, Path(out), job, lambdas)
    return merge(
        base,
        tuned,
        Path(out),
        method=job.method,
        lambdas=lambdas,
        options=job.options,
        output=output,
        threads=threads,
        progress=on_progress,
    )


def export_mergekit(job: Job) -> str:
    """A merge as a configuration for `mergekit-yaml`, as YAML.

    Raises:
        UserError: mergekit cannot do it, or a model is not there.
    """
    from mooring import sources
    from mooring.checkpoint import open_checkpoint
    from mooring.merge.mergekit.export import write

    with open_checkpoint(sources.resolve_model(job.base)) as base:
        return write(job, list(base.tensors))


def verify(folder: str | Path) -> dict[str, Any]:
    """Read a merged model again and hold that it is what its manifest says; returns the manifest.

    Raises:
        ModelError: It is not.
    """
    from mooring.merge.verify import verify

    return verify(folder)


def push(
    folder: str | Path,
    hub_id: str,
    *,
    base: str = "",
    tuned: Sequence[str] = (),
    command: str | None = None,
    private: bool = False,
    overwrite: bool = False,
) -> str:
    """Give a merged model its card and upload it to the hub.

    Args:
        folder: A folder that `merge` wrote; its README.md is written anew.
        hub_id: `owner/name`.
        base: What the base was called: a hub id is linked, a path is not shown.
        tuned: The same of the tuned models.
        command: The command that made it, for the card.
        private: Make a new repository private.
        overwrite: Put it in place of other weights that are there.

    Returns:
        The model's address.

    Raises:
        ModelError: The folder was not written by `merge`.
        OutputError: The hub does not take it.
    """
    from mooring import sources
    from mooring.checkpoint import MANIFEST, is_adapter, read_json
    from mooring.errors import ModelError
    from mooring.files import atomic_text
    from mooring.merge.card import card, license_of
    from mooring.sources import upload

    upload.check_hub_id(hub_id)
    folder = Path(folder)
    if not (folder / MANIFEST).is_file():
        raise ModelError(
            f"{folder}: has no {MANIFEST}, so it was not merged by Mooring", "name a merged model's folder"
        )
    text = card(
        read_json(folder / MANIFEST),
        title=hub_id.partition("/")[2] or hub_id,
        base_ref=sources.hub_name(base) if base else None,
        tuned_refs=[sources.hub_name(ref) for ref in tuned],
        command=command,
        terms=license_of(Path(base)) if base and Path(base).is_dir() else None,
        adapter=is_adapter(folder),
    )
    atomic_text(folder / "README.md", text)
    return upload.push(folder, hub_id, private=private, overwrite=overwrite)


def inspect(
    base: str | Path,
    tuned: str | Path,
    *,
    lam: float = 0.5,
    quick: bool = False,
    heatmap: str | Path | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Inspection:
    """Whether two models belong together, what changed between them, and what a merge would do and cost.

    Args:
        base: The aligned model.
        tuned: The model tuned from it: a checkpoint or a LoRA adapter.
        lam: λ for which to say what each method would do.
        quick: Leave out the effective ranks, half of the work.
        heatmap: Draw the change by layer and module to this PNG; nothing is drawn where nothing changed.
        on_progress: Told (bytes of the base done, bytes of the base).

    Raises:
        UserError: λ lies outside [0, 1], `heatmap` does not end in .png, or a model is not there.
        OutputError: The picture cannot be written.
    """
    from mooring import sources
    from mooring.merge.inspect import inspect
    from mooring.merge.inspect.heatmap import check_name, write

    drawing = check_name(Path(heatmap)) if heatmap else None
    models = sources.resolve_model(str(base)), sources.resolve_model(str(tuned))
    found = inspect(*models, lam=lam, quick=quick, progress=on_progress)
    if drawing and any(change.change_square for change in found.changes):
        write(found.changes, drawing)
    return found


def generate(
    model: str | Path,
    prompts: str | Sequence[str],
    *,
    out: str | Path,
    split: Split = "test",
    system: str | None = "You are a helpful assistant.",
    seed: int = 42,
    likelihood: str | Path | None = None,
    on_progress: Progress | None = None,
    **settings: Any,
) -> list[Completion]:
    """Answer prompts into a JSON Lines file.

    Args:
        model: A checkpoint or a LoRA adapter.
        prompts: The prompts, one reference or several.
        out: The file to write. A killed call, made again, goes on from what it had.
        split: Which part of a bundled set.
        system: System prompt where a prompt brings none.
        seed: Seed of draws and sampling.
        likelihood: Write how likely the model finds the references to this file too.
        on_progress: Told (prompts done, prompts in all, tokens made).
        settings: Fields of a recipe's `generate` section, and `repetition_penalty`.

    Raises:
        UserError: Bad input.
    """
    from mooring import sources
    from mooring.checkpoint import digest
    from mooring.generate.engine import Settings
    from mooring.generate.store import complete_to_file, likelihood_to_file
    from mooring.generate.transformers_engine import TransformersEngine
    from mooring.recipe import section

    penalty = settings.pop("repetition_penalty", 1.0)
    options = section("generate", settings)
    asked = sources.load_prompts(prompts, split=split, seed=seed)
    folder = sources.resolve_model(str(model))
    engine = TransformersEngine.load(
        folder, system=system, batch_size=options.batch_size, dtype=options.dtype, device=options.device
    )
    drawn = Settings(
        max_new_tokens=options.max_new_tokens,
        temperature=options.temperature,
        top_p=options.top_p,
        repetition_penalty=penalty,
        seed=seed,
    )
    made_by = {"model": digest(folder)}
    completions = complete_to_file(engine, asked, drawn, Path(out), made_by, on_progress)
    if likelihood is not None:
        likelihood_to_file(engine, asked, Path(likelihood), made_by)
    return completions


def score(
    completions: str | Path,
    prompts: str | Sequence[str],
    *,
    kind: Kind = "safety",
    split: Split = "test",
    likelihood: str | Path | None = None,
    metrics: Sequence[str] = (),
    seed: int = 42,
) -> dict[str, Score]:
    """Score completions against the prompts that they answer.

    Args:
        completions: A file that `generate` wrote.
        prompts: The prompts that it answered, as they were given to `generate`.
        kind: `safety`: should be refused; `over_refusal`, `ordinary`: should not; `task`: compared with the references.
        split: Which part of a bundled set.
        likelihood: The file that `generate` wrote for `response_loss`.
        metrics: Task metrics; those that suit the references where none is given.
        seed: As it was given to `generate`.

    Raises:
        DataError: A prompt has no completion, or the other way round.
    """
    from mooring import sources
    from mooring.errors import DataError
    from mooring.recipe import section
    from mooring.records import Completion, Likelihood, read_jsonl
    from mooring.score.refusal import judge_all
    from mooring.score.safety import safety_scores
    from mooring.score.task import default_metrics, task_scores

    asked = sources.load_prompts(prompts, split=split, seed=seed)
    given = read_jsonl(Path(completions), Completion)
    if unknown := {c.prompt_id for c in given} ^ {p.id for p in asked}:
        raise DataError(
            f"{completions}: does not answer these prompts (for one, {min(unknown)!r})",
            "name the set, split and seed that it was generated from",
        )
    if kind != "task":
        return safety_scores(kind, judge_all(asked, given))
    losses = read_jsonl(Path(likelihood), Likelihood) if likelihood else []
    chosen = section("score", {"metrics": metrics}).metrics
    wanted = chosen or [m for m in default_metrics(p.reference or "" for p in asked) if losses or m != "response_loss"]
    return task_scores(wanted, asked, given, losses, seed=seed)


def select(run: str | Path, *, margin: float | None = None, metric: str | None = None) -> Choice:
    """Choose λ again from the validation trials of a run, with another margin or metric. The run stays as it is.

    Args:
        run: A run folder.
        margin: How far ASR may lie above the base's; the run's own where it is not given.
        metric: The task score that decides; the run's own where it is not given.

    Raises:
        UserError: It is not a run that has been scored, or the choice cannot be made.
    """
    from mooring.report.results import load
    from mooring.select.choose import choose

    results = load(Path(run) / "report")
    own = results.choice.metric
    trials = [t for t in results.trials if t.split == "validation"]
    return choose(
        trials,
        margin=results.recipe["select"]["margin"] if margin is None else margin,
        metric=metric or (None if own == "lam" else own),
    )


def report(run: str | Path) -> Path:
    """Write a run's report anew from its `results.json`; returns the report's folder.

    Raises:
        DataError: There are no results, or they cannot be read.
    """
    from mooring.report.results import load
    from mooring.report.write import write

    folder = Path(run) / "report"
    write(load(folder), folder)
    return folder
