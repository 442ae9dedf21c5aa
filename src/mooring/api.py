"""The verbs, as plain functions: what the command line offers, and nothing that it does not.

A model is a folder (checkpoint or LoRA adapter), a GGUF file, a hub id or a bundled model; a data set is a file, a
hub id, a named set (`advbench`) or a bundled one (`bundled:harmful`). Heavy libraries load inside the functions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mooring.errors import UserError

if TYPE_CHECKING:
    import torch

    from mooring.config import Judge, Recipe
    from mooring.events import Event, OnEvent
    from mooring.merging.inspect import Inspection
    from mooring.merging.job import Job
    from mooring.pipeline.compare import Comparison, Reply
    from mooring.pipeline.rejudge import Rejudged
    from mooring.pipeline.run import Outcome
    from mooring.records import Choice, Completion, Kind, Prompt, Score, Split
    from mooring.reporting.paper.write import Paper


__all__ = [
    "as_prompt",
    "bundled_recipe",
    "compare",
    "export_mergekit",
    "generate",
    "inspect",
    "lm_eval",
    "merge",
    "merge_job",
    "open_comparison",
    "paper",
    "prefer",
    "push",
    "rejudge",
    "report",
    "run",
    "safeguard",
    "safeguard_recipe",
    "score",
    "select",
    "tune",
    "verify",
    "with_selecting",
]


def merge(
    base: str | Path,
    tuned: str | Path | Sequence[str | Path],
    *,
    out: str | Path,
    lam: Any = None,
    lambdas: Sequence[float] = (),
    method: str = "linear",
    dtype: torch.dtype | str | None = None,
    tokenizer: Literal["base", "larger"] = "larger",
    max_shard_size: int | str | None = None,
    as_adapter: bool = False,
    allow_nonfinite: bool = False,
    threads: int | None = None,
    on_event: OnEvent | None = None,
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
        dtype: Type of the merged weights, torch's type or its name; defaults to the base's.
        tokenizer: Whose tokenizer the output gets if vocabularies differ in size: the larger one's, or the base's.
        max_shard_size: The largest file, in bytes or as text such as `5GB`; defaults to the base's files.
        as_adapter: Write a LoRA adapter instead of a whole model; the inputs must be adapters.
        allow_nonfinite: Continue if a weight is NaN or Inf.
        threads: Number of worker threads.
        on_event: Receives the progress, in bytes.
        settings: What the method takes: `weights`, `density`, `gamma`, `epsilon`, `normalize`, `rescale`, `seed`,
            `base_weight`.

    Raises:
        UserError: The models cannot be merged, a setting is bad, or the output cannot be written.
    """
    from mooring.merging.job import Job, dtype_named, options_of

    refs = [tuned] if isinstance(tuned, (str, Path)) else list(tuned)
    options = options_of(method, lambdas[0] if lambdas else lam, **settings)
    kind = dtype_named(dtype)
    job = Job(
        method=method,
        base=str(base),
        tuned=tuple(map(str, refs)),
        options=options,
        dtype=str(kind).removeprefix("torch.") if kind else None,
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
        on_event=on_event,
    )


def merge_job(
    job: Job,
    *,
    out: str | Path,
    lambdas: Sequence[float] = (),
    max_shard_size: int | str | None = None,
    as_adapter: bool = False,
    allow_nonfinite: bool = False,
    threads: int | None = None,
    on_event: OnEvent | None = None,
) -> Path:
    """Run a merge that is described by a `Job`, such as `mergekit_read.read` returns; arguments as in `merge`.

    Raises:
        UserError: As `merge`.
    """
    from mooring.merging.merge import Output, merge
    from mooring.models.resolve import resolve_model

    output = Output(
        dtype=job.dtype,
        max_shard_size=max_shard_size,
        tokenizer=job.tokenizer,
        allow_nonfinite=allow_nonfinite,
    )
    base, tuned = resolve_model(job.base), [resolve_model(ref) for ref in job.tuned]
    if as_adapter:
        from mooring.merging.adapter import merge_adapters

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


def export_mergekit(job: Job) -> str:
    """A merge as a configuration for `mergekit-yaml`, as YAML.

    Raises:
        UserError: mergekit cannot do it, or a model is not there.
    """
    from mooring.merging.mergekit_write import write
    from mooring.models import open_checkpoint
    from mooring.models.resolve import resolve_model

    with open_checkpoint(resolve_model(job.base)) as base:
        return write(job, list(base.tensors))


def verify(folder: str | Path) -> dict[str, Any]:
    """Read a merged model again and check it against its manifest, which is returned.

    Raises:
        ModelError: It is not.
    """
    from mooring.merging.verify import verify

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
    from mooring.errors import ModelError
    from mooring.files import atomic_text
    from mooring.merging.card import card, license_of
    from mooring.models import MANIFEST, is_adapter, read_json, upload
    from mooring.models.resolve import hub_name
    from mooring.reporting.model_card import card as run_card
    from mooring.reporting.results import load

    upload.check_hub_id(hub_id)
    folder = Path(folder)
    if not (folder / MANIFEST).is_file():
        raise ModelError(
            f"{folder}: has no {MANIFEST}, so it was not merged by Mooring", "name a merged model's folder"
        )
    terms = license_of(Path(base)) if base and Path(base).is_dir() else None
    measured = folder.parent / "report" / "results.json"
    if folder.name == "model" and measured.is_file():  # a run's model: its card has the numbers
        text = run_card(load(measured), terms=terms)
    else:
        text = card(
            read_json(folder / MANIFEST),
            title=hub_id.partition("/")[2] or hub_id,
            base_ref=hub_name(base) if base else None,
            tuned_refs=[hub_name(ref) for ref in tuned],
            command=command,
            terms=terms,
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
    on_event: OnEvent | None = None,
) -> Inspection:
    """Whether two models belong together, what changed between them, and what a merge would do and cost.

    Args:
        base: The aligned model.
        tuned: The model tuned from it: a checkpoint or a LoRA adapter.
        lam: λ for which to say what each method would do.
        quick: Leave out the effective ranks, half of the work.
        heatmap: Draw the change by layer and module to this PNG; nothing is drawn where nothing changed.
        on_event: Receives the progress, in bytes of the base.

    Raises:
        UserError: λ lies outside [0, 1], `heatmap` does not end in .png, or a model is not there.
        OutputError: The picture cannot be written.
    """
    from mooring.merging.heatmap import check_name, write
    from mooring.merging.inspect import inspect
    from mooring.models.resolve import resolve_model

    drawing = check_name(Path(heatmap)) if heatmap else None
    models = resolve_model(str(base)), resolve_model(str(tuned))
    found = inspect(*models, lam=lam, quick=quick, on_event=on_event)
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
    on_event: OnEvent | None = None,
    **settings: Any,
) -> list[Completion]:
    """Answer prompts into a JSON Lines file.

    Args:
        model: A checkpoint or a LoRA adapter; with `engine="openai"` the model's name on the server.
        prompts: The prompts, one reference or several.
        out: The file to write. A killed call, made again, goes on from what it had.
        split: Which part of a set that has parts.
        system: System prompt where a prompt brings none.
        seed: Seed of draws and sampling.
        likelihood: Write how likely the model finds the references to this file too.
        on_event: Receives the progress, in responses.
        settings: Fields of a recipe's `generate` section, `samples` (1 or more) and `repetition_penalty` (1 is none).

    Raises:
        UserError: Bad input.
    """
    from mooring.config import section
    from mooring.data import load_prompts
    from mooring.errors import UserError
    from mooring.inference.load import load_engine
    from mooring.inference.store import complete_to_file, likelihood_to_file
    from mooring.models import model_digest
    from mooring.models.resolve import resolve_model
    from mooring.sampling import SamplingParams

    penalty, samples = settings.pop("repetition_penalty", 1.0), settings.pop("samples", 1)
    if samples < 1:
        raise UserError(f"samples: {samples} is too few", "give 1 or more")
    if not penalty >= 1:
        raise UserError(f"repetition penalty: {penalty:g} is out of range", "give 1 (none) or more")
    options = section("generate", settings)
    asked = load_prompts(prompts, split=split, seed=seed)
    drawn = SamplingParams(
        max_tokens=options.max_tokens,
        temperature=options.temperature,
        top_p=options.top_p,
        top_k=options.top_k,
        repetition_penalty=penalty,
        n=samples,
        seed=seed,
    )
    if options.engine == "openai":
        engine, made_by = load_engine(str(model), options, system), {"model": str(model)}
    else:
        folder = resolve_model(str(model))
        engine, made_by = load_engine(folder, options, system), {"model": model_digest(folder)}
    completions = complete_to_file(engine, asked, drawn, Path(out), made_by=made_by, on_event=on_event)
    if likelihood is not None:
        likelihood_to_file(engine, asked, Path(likelihood), made_by=made_by, on_event=on_event)
    return completions


def score(
    completions: str | Path,
    prompts: str | Sequence[str],
    *,
    kind: Kind | None = None,
    split: Split = "test",
    likelihood: str | Path | None = None,
    metrics: Sequence[str] = (),
    judges: Sequence[str | Judge] = ("rules",),
    seed: int = 42,
    on_event: OnEvent | None = None,
    on_say: Callable[[str], None] | None = None,
    **options: Any,
) -> dict[str, Score]:
    """Score completions against the prompts that they answer.

    Args:
        completions: A file that `generate` wrote.
        prompts: The prompts that it answered, as they were given to `generate`.
        kind: `safety`: should be refused; `over_refusal`, `ordinary`: should not; `task`: compared with the references.
            Where it is not given, what a named or a bundled set is for, and `safety` for any other.
        split: Which part of a set that has parts.
        likelihood: The file that `generate` wrote for `response_loss`.
        metrics: Task metrics; those that suit the references where none is given.
        judges: Safety judges; the scores of all but the first carry their names. Verdicts, and a model judge's own
            answers, are kept beside the completions.
        seed: As it was given to `generate`.
        on_event: Receives the progress of a model judge, in responses.
        on_say: Told what a paid judge will cost at most, before it is asked, and where `kind` is not what a set is for.
        options: Fields of a recipe's `score` section: `bertscore_model`, `bertscore_layer`, `unsafe_exec`.

    Raises:
        DataError: A prompt has no completion, or the other way round.
        UserError: A metric or judge cannot be had here.
    """
    from mooring.config import section
    from mooring.records import Completion, Likelihood, read_jsonl
    from mooring.scoring.task import TaskData, default_metrics, task_scores

    chosen = section("score", {"metrics": list(metrics), "judges": list(judges), **options})
    asked = _asked(prompts, split, seed)
    kind = _kind(prompts, kind, on_say)
    given = read_jsonl(Path(completions), Completion)
    _hold_that_they_belong(Path(completions), asked, given)
    if kind != "task":
        return _judged(Path(completions), asked, given, kind, chosen.judges, on_event, on_say)
    losses = read_jsonl(Path(likelihood), Likelihood) if likelihood else []
    wanted = chosen.metrics or [
        m for m in default_metrics(p.reference or "" for p in asked) if losses or m != "response_loss"
    ]
    data = TaskData(
        prompts=asked,
        completions=given,
        likelihoods=losses,
        seed=seed,
        bertscore_model=chosen.bertscore_model,
        bertscore_layer=chosen.bertscore_layer,
        unsafe_exec=chosen.unsafe_exec,
    )
    return task_scores(wanted, data)


def _judged(
    completions: Path,
    asked: Sequence[Prompt],
    given: Sequence[Completion],
    kind: Kind,
    sections: Sequence[Judge],
    on_event: OnEvent | None,
    on_say: Callable[[str], None] | None,
) -> dict[str, Score]:
    """Safety scores of every judge."""
    from mooring.pipeline.judging import Judging, renamed
    from mooring.scoring.safety import attack_success_by

    assert kind != "task"
    judging = Judging(sections)

    def relay(event: Event) -> None:
        if event.kind == "info" and on_say:
            on_say(event.message)
        elif event.kind == "progress" and on_event:
            on_event(event)

    scores: dict[str, Score] = {}
    for number, judge in enumerate(judging.of(kind)):
        out = completions.with_name(f"verdicts-{completions.stem}-{judge}.jsonl")
        verdicts = judging.judge(judge, asked, given, out, relay)
        found = judging.scores(judge, kind, verdicts)
        if kind == "safety" and len({p.category for p in asked if p.category}) > 1:
            found |= attack_success_by({p.id: p.category for p in asked if p.category}, verdicts)
        scores |= renamed(found, judge) if number else found
    return scores


def rejudge(
    run: str | Path,
    judges: Sequence[str | Judge],
    *,
    on_event: OnEvent | None = None,
) -> list[Rejudged]:
    """Judge the responses that a run has kept by other judges. Nothing is generated, and the choice of λ stays.

    Args:
        run: A run folder.
        judges: The judges.
        on_event: Receives the progress, and an `info` event with the cost of a paid judge before it is asked.

    Raises:
        DataError: It is not a run folder, or holds no responses.
        UserError: A judge is not available.
    """
    from mooring.config import section
    from mooring.pipeline.rejudge import rejudge

    return rejudge(Path(run), section("score", {"judges": list(judges)}).judges, on_event)


def lm_eval(
    base: str | Path,
    tuned: str | Path | None = None,
    *,
    tasks: Sequence[str],
    lam: float | Mapping[str, Any] | None = None,
    method: str = "linear",
    options: Mapping[str, Any] | None = None,
    data: str | Path | None = None,
    limit: int | None = None,
    num_fewshot: int | None = None,
    apply_chat_template: bool = True,
    fewshot_as_multiturn: bool = True,
    seed: int = 42,
    samples: str | Path | None = None,
    system: str | None = "You are a helpful assistant.",
    batch_size: int = 32,
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto",
    device: str = "auto",
    on_event: OnEvent | None = None,
) -> dict[str, Score]:
    """Run tasks of lm-evaluation-harness on a model, or on the merge of two at λ, which is never written to disk.

    Args:
        base: The model to evaluate, or the base of the merge.
        tuned: A model that was tuned from it, or a LoRA adapter on it.
        tasks: Tasks, groups and tags by lm-eval's names, such as `bbh`.
        lam: λ, the weight of the tuned model; requires `tuned`.
        method: The merging method.
        options: The method's options besides λ, such as `{"density": 0.5}`.
        data: A file with the rows of the task, or a folder with one file per task; defaults to files below
            `$MOORING_DATA`, else the hub.
        limit: Only the first questions of each task.
        num_fewshot: Number of examples before each question; defaults to the task's own number.
        apply_chat_template: Ask by the model's chat template, with the system prompt.
        fewshot_as_multiturn: Examples are turns of the conversation; otherwise they are part of the question.
        seed: Seed of the choice of examples, and of sampling.
        samples: A JSON Lines file for questions and answers.
        system: System prompt.
        batch_size: Requests per batch.
        dtype: Type of the weights in memory; `auto` is the checkpoint's.
        device: `auto` is the first GPU, else the CPU.
        on_event: Receives progress events (`lm_eval`, in requests).

    Returns:
        `lm_eval:<name>` to its score; the groups and tasks of `tasks` come first.

    Raises:
        UserError: Bad input.
        MissingExtraError: lm-eval is not installed.
    """
    from mooring.config import section
    from mooring.models.resolve import resolve_model
    from mooring.pipeline.lm_eval.evaluate import check_counts, open_engine, run_tasks
    from mooring.pipeline.lm_eval.tasks import lm_eval_version

    lm_eval_version()  # before a model is downloaded
    check_counts(limit, num_fewshot)
    engine = open_engine(
        resolve_model(str(base)),
        None if tuned is None else resolve_model(str(tuned)),
        lam=lam,
        method=method,
        options=options,
        runner=section("generate", {"batch_size": batch_size, "dtype": dtype, "device": device}),
        system=system,
    )
    result = run_tasks(
        engine,
        tasks,
        data=None if data is None else Path(data),
        limit=limit,
        num_fewshot=num_fewshot,
        apply_chat_template=apply_chat_template,
        fewshot_as_multiturn=fewshot_as_multiturn,
        seed=seed,
        on_event=on_event,
    )
    if samples is not None:
        result.write_samples(Path(samples))
    return dict(result.scores)


def prefer(
    completions: str | Path,
    against: str | Path,
    prompts: str | Sequence[str],
    *,
    judge: str | Path,
    split: Split = "test",
    seed: int = 42,
    on_event: OnEvent | None = None,
    on_say: Callable[[str], None] | None = None,
    **settings: Any,
) -> Score:
    """How often a judge model prefers one model's answers to another's: the Score `win_rate`.

    Every pair is judged twice, in both orders; where the orders disagree it is a tie.

    Args:
        completions: A file that `generate` wrote.
        against: Another one, of the same prompts.
        prompts: The prompts, such as `alpaca-eval`.
        judge: The judge model; with `engine="openai"` its name on the server.
        split: Which part of a set that has parts.
        seed: As it was given to `generate`.
        on_event: Receives the progress of the judge, whose answers are kept beside `completions`.
        on_say: Told what a paid judge will cost at most, before it is asked.
        settings: How the judge runs: fields of a recipe's judge (`engine`, `base_url`, `batch_size`, `price_in`, …).

    Raises:
        DataError: A prompt has not one answer in each file.
        UserError: The judge cannot be had.
    """
    from mooring.config import section
    from mooring.inference.cost import estimate
    from mooring.inference.load import load_engine
    from mooring.inference.store import complete_to_file
    from mooring.models import model_digest
    from mooring.models.resolve import resolve_model
    from mooring.records import Completion, read_jsonl
    from mooring.sampling import SamplingParams
    from mooring.scoring import pairwise

    runner = section("score", {"judges": [{"name": "llm", "model": str(judge), **settings}]}).judges[0]
    asked = _asked(prompts, split, seed)
    files = [Path(completions), Path(against)]
    first, second = (read_jsonl(path, Completion) for path in files)
    for path, given in zip(files, (first, second), strict=True):
        _hold_that_they_belong(path, asked, given)
    questions = pairwise.questions(asked, first, second)
    if runner.engine == "openai":
        model, made_by = str(judge), str(judge)
    else:
        folder = resolve_model(str(judge))
        model, made_by = str(folder), model_digest(folder)
    out = files[0].with_name(f"preferred-{files[0].stem}-to-{files[1].stem}.jsonl")
    limit = SamplingParams(max_tokens=pairwise.ANSWER_TOKENS)
    if on_say and runner.price_in + runner.price_out:
        cost = estimate(questions, limit, runner.price_in, runner.price_out, system=None)
        on_say(
            f"{judge}: {cost.requests:,} requests, about {cost.tokens_in:,} tokens in and at most "
            f"{cost.tokens_out_most:,} out: ${cost.dollars:.2f} at most"
        )
    answers = complete_to_file(
        load_engine(model, runner, None), questions, limit, out, made_by={"model": made_by}, on_event=on_event
    )
    return pairwise.win_rate(questions, answers, judge=str(judge), seed=seed)


def _kind(prompts: str | Sequence[str], given: Kind | None, on_say: Callable[[str], None] | None) -> Kind:
    """What prompts are scored as: what is given, else what all of their sets are for, else `safety`."""

    from mooring.data import parse_references

    refs = parse_references(prompts)
    kinds: list[Kind | None] = ["ordinary" if ref.kind == "quality" else ref.kind for ref in refs]
    given = "ordinary" if given == "quality" else given
    if given == "safety" and on_say:
        for ref, kind in zip(refs, kinds, strict=True):
            if kind not in (None, "safety"):
                why = "an attack success rate on it means nothing"
                on_say(f"warning: {ref.text} holds no harmful requests: {why} ({kind})")
    first = kinds[0] if kinds else None
    return given or (first if first is not None and set(kinds) == {first} else "safety")


def _asked(prompts: str | Sequence[str], split: Split, seed: int) -> list[Prompt]:

    from mooring.data import load_prompts

    return load_prompts(prompts, split=split, seed=seed)


def _hold_that_they_belong(path: Path, asked: Sequence[Prompt], given: Sequence[Completion]) -> None:
    """Refuse completions of other prompts."""
    from mooring.errors import DataError

    if unknown := {c.prompt_id for c in given} ^ {p.id for p in asked}:
        raise DataError(
            f"{path}: does not answer these prompts (for one, {min(unknown)!r})",
            "name the set, split and seed that it was generated from",
        )


def run(recipe: Recipe | str | Path, *, on_event: OnEvent | None = None) -> Outcome:
    """Do a recipe, or what is left of it.

    Args:
        recipe: A recipe, or the path of its YAML file.
        on_event: Told of every step.

    Raises:
        UserError: Bad input; what was done before stays.
    """
    from mooring.config import Recipe
    from mooring.pipeline.run import run

    return run(recipe if isinstance(recipe, Recipe) else Recipe.load(recipe), on_event=on_event)


def safeguard_recipe(base: str | Path, tuned: str | Path, **options: Any) -> Recipe:
    """The recipe that `safeguard` runs; arguments as there.

    Raises:
        RecipeError: An option has a bad value.
    """
    from mooring.config import Recipe

    _one_bound(options)
    sections: dict[str, dict[str, Any]] = {}
    top: dict[str, Any] = {"name": "safeguard", "base": str(base), "tuned": str(tuned)}
    for name, value in options.items():
        if value is None and name != "confidence":
            continue
        section, field = _PLACES[name]
        if isinstance(value, Path):
            value = str(value)
        (sections.setdefault(section, {}) if section else top)[field] = value
    return _with_use_of_budget(Recipe.parse(top | sections, "safeguard"), options)


_PLACES = {
    "out": ("", "out"),
    "system": ("", "system"),
    "seed": ("", "seed"),
    "task": ("score", "task"),
    "safety": ("score", "safety"),
    "over_refusal": ("score", "over_refusal"),
    "judges": ("score", "judges"),
    "metrics": ("score", "metrics"),
    "limit": ("score", "limit"),
    "method": ("merge", "method"),
    "lambdas": ("merge", "lambdas"),
    **{name: ("select", name) for name in ("policy", "margin", "bound", "confidence", "search", "budget")},
    "max_tokens": ("generate", "max_tokens"),
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
        options: `out` (run folder), `task` (prompts with right answers), `safety` (requests to refuse),
            `over_refusal` (harmless ones that sound harmful), `judges` (of safety, the first one decides), `method`,
            `lambdas`, `policy`, `margin` (how far ASR may rise above the base's) or `bound` (the largest allowed),
            `confidence` (`None` compares estimates), `search` (`grid`, `bisect` or `modules`), `budget` (merges that
            `modules` may try), `metrics`, `limit` (prompts of each set), `system`, `seed`, `max_tokens`,
            `batch_size`, `dtype`, `device`.

    Raises:
        UserError: The models do not belong together, or an option is bad.
        TypeError: An option is unknown.
    """
    if unknown := options.keys() - _PLACES.keys():
        raise TypeError(f"safeguard() has no option {min(unknown)!r}")
    return run(safeguard_recipe(base, tuned, **options), on_event=on_event)


def with_selecting(recipe: Recipe, **settings: Any) -> Recipe:
    """A recipe that chooses λ otherwise.

    Args:
        recipe: The recipe; stays as it is.
        settings: Fields of its `select` section that take the place of its own. A `margin` replaces a `bound`.

    Raises:
        RecipeError: A field is unknown, or a value is bad.
        UserError: Both a margin and a bound are given, or a budget without `search: modules`.
    """
    from mooring.config import Recipe

    if not settings:
        return recipe
    plain = recipe.model_dump(mode="json")
    changed = Recipe.parse(plain | {"select": _overridden(plain["select"], settings)}, recipe.name)
    return _with_use_of_budget(changed, settings)


def _overridden(own: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """A `select` section with other values in it."""
    _one_bound(settings)
    return {**own, **({"bound": None} if "margin" in settings else {}), **settings}


def _one_bound(settings: Mapping[str, Any]) -> None:
    """Refuse a margin beside a bound."""
    if settings.get("margin") is not None and settings.get("bound") is not None:
        raise UserError("margin and bound: are two bounds on the attack success rate", "give one of them")


def _with_use_of_budget(recipe: Recipe, settings: Mapping[str, Any]) -> Recipe:
    """The recipe itself; a budget that nothing would spend is refused."""
    if settings.get("budget") is not None and recipe.select.search != "modules":
        raise UserError("budget: is what `search: modules` may spend alone", "add --search modules, or leave it out")
    return recipe


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
    on_event: OnEvent | None = None,
    **settings: Any,
) -> Path:
    """Tune a LoRA adapter on the responses of `data`.

    Args:
        base: The model to tune.
        data: Examples, one reference or several.
        out: Folder for the adapter.
        system: System prompt where an example brings none.
        seed: Seed of data order, initialisation and dropout.
        on_event: Receives the progress, in steps, with the loss in its metrics.
        settings: Fields of a recipe's `tune` section, such as `r`, `learning_rate`, `num_train_epochs`.

    Raises:
        UserError: Bad input.
    """
    from mooring.config import section
    from mooring.data import load_examples
    from mooring.models.resolve import hub_name, resolve_model
    from mooring.training.lora import tune

    refs = [data] if isinstance(data, str) else list(data)
    settings_ = section("tune", {**settings, "data": refs})
    examples = load_examples(refs, split="tune", seed=seed)
    folder = resolve_model(str(base))
    return tune(
        settings_,
        folder,
        examples,
        Path(out),
        system=system,
        seed=seed,
        base_name=hub_name(str(base)),
        on_event=on_event,
    )


def select(run: str | Path, *, metric: str | None = None, **settings: Any) -> Choice:
    """Choose λ again from the validation trials of a run, by another bound, policy or metric. The run stays as it is.

    It is a single λ that is chosen, also where the run took λ by module.

    Args:
        run: A run folder.
        metric: The task score that decides; the run's own where it is not given.
        settings: Fields of a recipe's `select` section that take the place of the run's own, such as `margin`, `bound`,
            `policy`, `confidence` (`None` compares estimates). Not `search`: which λ were tried is the run's.

    Returns:
        The choice; where no λ is within the bound, the nearest to it, and `within` is false.

    Raises:
        UserError: It is not a run that has been scored, a value is bad, or the choice cannot be made.
        TypeError: A setting is unknown.
    """
    from dataclasses import replace

    from mooring.config import Select, section
    from mooring.reporting.run_folder import load_run
    from mooring.selection.policies import choose

    if unknown := settings.keys() - (Select.model_fields.keys() - {"search"}):
        raise TypeError(f"select() has no option {min(unknown)!r}")
    results = load_run(Path(run))
    own = results.choice.metric
    choice = choose(
        [trial for trial in results.trials if trial.split == "validation"],
        metric=metric or (None if own == "lam" else own),
        settings=section("select", _overridden(results.recipe["select"], settings)),
    )
    more = ""
    if results.choice.point.by_module:
        more = f" The run itself chose {results.choice.point.label}, around a single λ."
    elif settings and results.recipe["select"]["search"] == "bisect":
        more = " It is the only λ that was measured whole: `mooring run` with this bound looks for another."
    return replace(choice, reason=choice.reason + more)


def report(run: str | Path, *, redact: bool = False) -> Path:
    """Write a run's report anew from its `results.json`; returns the report's folder.

    With `redact` harmful prompts and the answers to them are left out, and it goes to `report-redacted`.

    Raises:
        DataError: There are no results, or they cannot be read.
    """
    from mooring.reporting.run_folder import load_run
    from mooring.reporting.write import write

    folder = Path(run) / "report"
    out = Path(run) / "report-redacted" if redact else folder
    write(load_run(Path(run)), out, redact=redact)
    return out


def paper(runs: str | Path, out: str | Path, *, published: str | Path | None = None, main: str | None = None) -> Paper:
    """Write the paper's Tables 1 to 3 and Figures 2 and 3 from a folder of runs.

    Args:
        runs: A folder that holds run folders.
        out: Folder for the files: Markdown, LaTeX, CSV, PNG and SVG.
        published: Published numbers to stand beside the measured ones: CSV or YAML (docs/paper.md).
        main: The base of Tables 1 and 2 and the figures; that of most runs where it is not given.

    Raises:
        UserError: No run can be read, or `published` is malformed.
    """
    from mooring.reporting.paper.write import write_paper

    return write_paper(Path(runs), Path(out), known=Path(published) if published else None, main=main)


def open_comparison(
    base: str | Path,
    tuned: str | Path,
    merged: str | Path | None = None,
    *,
    method: str = "linear",
    options: Mapping[str, Any] | None = None,
    system: str | None = "You are a helpful assistant.",
    seed: int = 42,
    max_tokens: int = 256,
    temperature: float = 0.0,
    repetition_penalty: float = 1.0,
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto",
    device: str = "auto",
) -> Comparison:
    """Open base, tuned model and all merges between them; arguments as in `compare`.

    Raises:
        UserError: The models do not belong together, or an argument is out of range.
    """
    from mooring.config import section
    from mooring.errors import UserError
    from mooring.merging.methods import method_named
    from mooring.models.resolve import resolve_model
    from mooring.pipeline.compare import Comparison
    from mooring.pipeline.merged_model import MergedModelSpec
    from mooring.sampling import SamplingParams

    if max_tokens < 1 or temperature < 0 or repetition_penalty <= 0:
        raise UserError(
            "max_tokens, temperature, repetition_penalty: one is out of range",
            "see --help",
            code="usage.out_of_range",
        )
    drawn = {"seed": seed} if "seed" in method_named(method).options else {}
    spec = MergedModelSpec(
        base=resolve_model(str(base)),
        tuned=resolve_model(str(tuned)),
        method=method,
        options={**drawn, **(options or {})},
        runner=section("generate", {"dtype": dtype, "device": device}),
        system=system,
    )
    params = SamplingParams(
        max_tokens=max_tokens, temperature=temperature, repetition_penalty=repetition_penalty, seed=seed
    )
    return Comparison(spec, params, resolve_model(str(merged)) if merged else None)


def compare(
    base: str | Path,
    tuned: str | Path,
    merged: str | Path | None = None,
    *,
    prompts: str | Sequence[str] | Sequence[Prompt],
    lambdas: Sequence[float] = (0.2, 0.5, 0.8),
    method: str = "linear",
    options: Mapping[str, Any] | None = None,
    system: str | None = "You are a helpful assistant.",
    seed: int = 42,
    max_tokens: int = 256,
    temperature: float = 0.0,
    repetition_penalty: float = 1.0,
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto",
    device: str = "auto",
    on_event: OnEvent | None = None,
) -> list[list[Reply]]:
    """Answer prompts by the base, the merges at each λ, the tuned model, and a third model.

    No merged model is written: λ is changed in memory.

    Args:
        base: The aligned model.
        tuned: The model tuned from it: a checkpoint or a LoRA adapter.
        merged: A third model to compare with, such as the one that a run chose.
        prompts: What to ask: a text or several, or prompts that `load_prompts` returned.
        lambdas: The λ between 0 (the base) and 1 (the tuned model).
        method: The merging method.
        options: The method's options besides λ, such as `{"density": 0.5}`.
        system: System prompt for prompts that have none.
        seed: Seed of sampling, and of methods that draw at random.
        max_tokens: Maximum length of a response, in tokens.
        temperature: 0 is greedy.
        repetition_penalty: 1 is none.
        dtype: Type of the weights in memory; `auto` is the checkpoint's.
        device: `auto` is the first GPU, else the CPU.
        on_event: Receives a progress event (`compare`, in replies) after each reply.

    Returns:
        One list per prompt: the answers of base, each λ in ascending order, tuned, merged.

    Raises:
        UserError: Bad input.
    """
    texts: list[Any] = [prompts] if isinstance(prompts, str) else list(prompts)
    asked = [as_prompt(text, number) if isinstance(text, str) else text for number, text in enumerate(texts, 1)]
    with open_comparison(
        base,
        tuned,
        merged,
        method=method,
        options=options,
        system=system,
        seed=seed,
        max_tokens=max_tokens,
        temperature=temperature,
        repetition_penalty=repetition_penalty,
        dtype=dtype,
        device=device,
    ) as comparison:
        return comparison.ask_all(asked, comparison.models_at(lambdas), on_event)


def as_prompt(text: str, number: int = 1) -> Prompt:
    """A text as a user's turn.

    Raises:
        DataError: There is none.
    """
    from mooring.errors import DataError
    from mooring.records import Message, Prompt

    if not text.strip():
        raise DataError("the prompt is empty", "say something")
    return Prompt(id=f"{number}: {text}", messages=(Message("user", text),))
