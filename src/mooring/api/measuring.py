"""Asking models, and scoring what they answered."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from mooring.generate.store import Progress
    from mooring.records import Completion, Prompt, Score, Split
    from mooring.run.rejudge import Rejudged
    from mooring.sections import Judge

Kind = Literal["safety", "over_refusal", "ordinary", "task"]
"""What a set of prompts is for."""


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
        model: A checkpoint or a LoRA adapter; with `engine="openai"` the model's name on the server.
        prompts: The prompts, one reference or several.
        out: The file to write. A killed call, made again, goes on from what it had.
        split: Which part of a set that has parts.
        system: System prompt where a prompt brings none.
        seed: Seed of draws and sampling.
        likelihood: Write how likely the model finds the references to this file too.
        on_progress: Told (answers done, answers in all, tokens made).
        settings: Fields of a recipe's `generate` section, `samples` (1 or more) and `repetition_penalty` (1 is none).

    Raises:
        UserError: Bad input.
    """
    from mooring import sources
    from mooring.checkpoint import digest
    from mooring.errors import UserError
    from mooring.generate.engine import Settings, load_engine
    from mooring.generate.store import complete_to_file, likelihood_to_file
    from mooring.recipe import section

    penalty, samples = settings.pop("repetition_penalty", 1.0), settings.pop("samples", 1)
    if samples < 1:
        raise UserError(f"samples: {samples} is too few", "give 1 or more")
    if not penalty >= 1:
        raise UserError(f"repetition penalty: {penalty:g} is out of range", "give 1 (none) or more")
    options = section("generate", settings)
    asked = sources.load_prompts(prompts, split=split, seed=seed)
    drawn = Settings(
        max_new_tokens=options.max_new_tokens,
        temperature=options.temperature,
        top_p=options.top_p,
        top_k=options.top_k,
        repetition_penalty=penalty,
        samples=samples,
        seed=seed,
    )
    if options.engine == "openai":
        engine, made_by = load_engine(str(model), options, system), {"model": str(model)}
    else:
        folder = sources.resolve_model(str(model))
        engine, made_by = load_engine(folder, options, system), {"model": digest(folder)}
    completions = complete_to_file(engine, asked, drawn, Path(out), made_by, on_progress)
    if likelihood is not None:
        likelihood_to_file(engine, asked, Path(likelihood), made_by)
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
    on_progress: Progress | None = None,
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
        on_progress: Told of a model judge's answers.
        on_say: Told what a paid judge will cost at most, before it is asked, and where `kind` is not what a set is for.
        options: Fields of a recipe's `score` section: `bertscore_model`, `bertscore_layer`, `unsafe_exec`.

    Raises:
        DataError: A prompt has no completion, or the other way round.
        UserError: A metric or judge cannot be had here.
    """
    from mooring.recipe import section
    from mooring.records import Completion, Likelihood, read_jsonl
    from mooring.score.task import TaskOptions, default_metrics, task_scores

    chosen = section("score", {"metrics": list(metrics), "judges": list(judges), **options})
    asked = _asked(prompts, split, seed)
    kind = _kind(prompts, kind, on_say)
    given = read_jsonl(Path(completions), Completion)
    _hold_that_they_belong(Path(completions), asked, given)
    if kind != "task":
        return _judged(Path(completions), asked, given, kind, chosen.judges, on_progress, on_say)
    losses = read_jsonl(Path(likelihood), Likelihood) if likelihood else []
    wanted = chosen.metrics or [
        m for m in default_metrics(p.reference or "" for p in asked) if losses or m != "response_loss"
    ]
    programs = TaskOptions(chosen.bertscore_model, chosen.bertscore_layer, chosen.unsafe_exec)
    return task_scores(wanted, asked, given, losses, seed=seed, options=programs)


def _judged(
    completions: Path,
    asked: Sequence[Prompt],
    given: Sequence[Completion],
    kind: Kind,
    sections: Sequence[Judge],
    on_progress: Progress | None,
    on_say: Callable[[str], None] | None,
) -> dict[str, Score]:
    """Safety scores of every judge."""
    from mooring.run.judging import Judging, renamed
    from mooring.score.safety import attack_success_by

    assert kind != "task"
    judging = Judging(sections, lambda path, measure: measure(path))
    scores: dict[str, Score] = {}
    for number, judge in enumerate(judging.of(kind)):
        out = completions.with_name(f"verdicts-{completions.stem}-{judge}.jsonl")
        verdicts = judging.judge(judge, asked, given, out, on_progress, on_say)
        found = judging.scores(judge, kind, verdicts)
        if kind == "safety" and len({p.category for p in asked if p.category}) > 1:
            found |= attack_success_by({p.id: p.category for p in asked if p.category}, verdicts)
        scores |= renamed(found, judge) if number else found
    return scores


def rejudge(
    run: str | Path,
    judges: Sequence[str | Judge],
    *,
    on_progress: Callable[[str, int, int, int], None] | None = None,
    on_say: Callable[[str], None] | None = None,
) -> list[Rejudged]:
    """Judge the completions that a run has kept by other judges. Nothing is generated, and the choice of λ stays.

    Args:
        run: A run folder.
        judges: The judges.
        on_progress: Told (what is judged, answers done, answers in all, tokens made).
        on_say: Told what a paid judge will cost at most, before it is asked.

    Raises:
        DataError: It is no run folder, or holds no completions.
        UserError: A judge cannot be had.
    """
    from mooring.recipe import section
    from mooring.run.rejudge import rejudge

    return rejudge(Path(run), section("score", {"judges": list(judges)}).judges, on_progress, on_say)


def lm_eval(base: str | Path, tuned: str | Path | None = None, **options: Any) -> dict[str, Score]:
    """Run tasks of lm-evaluation-harness on a model, or on the merge of two at λ, which is never written to disk.

    Arguments as those of `mooring.run.lm_eval.evaluate.score_lm_eval`: `tasks`, `lam`, `method`, `limit`, `samples`, …

    Raises:
        UserError: Bad input, or lm-eval is not installed.
    """
    from mooring.errors import UserError
    from mooring.run.lm_eval.evaluate import score_lm_eval

    if (shots := options.get("num_fewshot")) is not None and shots < 0:
        raise UserError(f"few-shot: {shots} is too few", "give 0 or more, or leave it out for the task's own number")
    return score_lm_eval(base, tuned, **options)


def prefer(
    completions: str | Path,
    against: str | Path,
    prompts: str | Sequence[str],
    *,
    judge: str | Path,
    split: Split = "test",
    seed: int = 42,
    on_progress: Progress | None = None,
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
        on_progress: Told of the judge's answers, which are kept beside `completions`.
        on_say: Told what a paid judge will cost at most, before it is asked.
        settings: How the judge runs: fields of a recipe's judge (`engine`, `base_url`, `batch_size`, `price_in`, …).

    Raises:
        DataError: A prompt has not one answer in each file.
        UserError: The judge cannot be had.
    """
    from mooring import sources
    from mooring.checkpoint import digest
    from mooring.generate.cost import estimate
    from mooring.generate.engine import Settings, load_engine
    from mooring.generate.store import complete_to_file
    from mooring.recipe import section
    from mooring.records import Completion, read_jsonl
    from mooring.score import pairs

    runner = section("score", {"judges": [{"name": "llm", "model": str(judge), **settings}]}).judges[0]
    asked = _asked(prompts, split, seed)
    files = [Path(completions), Path(against)]
    first, second = (read_jsonl(path, Completion) for path in files)
    for path, given in zip(files, (first, second), strict=True):
        _hold_that_they_belong(path, asked, given)
    questions = pairs.questions(asked, first, second)
    if runner.engine == "openai":
        model, made_by = str(judge), str(judge)
    else:
        folder = sources.resolve_model(str(judge))
        model, made_by = str(folder), digest(folder)
    out = files[0].with_name(f"preferred-{files[0].stem}-to-{files[1].stem}.jsonl")
    limit = Settings(max_new_tokens=pairs.ANSWER_TOKENS)
    if on_say and runner.price_in + runner.price_out:
        cost = estimate(questions, limit, runner.price_in, runner.price_out, system=None)
        on_say(
            f"{judge}: {cost.requests:,} requests, about {cost.tokens_in:,} tokens in and at most "
            f"{cost.tokens_out_most:,} out: ${cost.dollars:.2f} at most"
        )
    answers = complete_to_file(load_engine(model, runner, None), questions, limit, out, {"model": made_by}, on_progress)
    return pairs.win_rate(questions, answers, judge=str(judge), seed=seed)


def _kind(prompts: str | Sequence[str], given: Kind | None, on_say: Callable[[str], None] | None) -> Kind:
    """What prompts are scored as: what is given, else what all of their sets are for, else `safety`."""
    from mooring import sources

    refs = [prompts] if isinstance(prompts, str) else list(prompts)
    found = [sources.kind_of(ref) for ref in refs]
    kinds: list[Kind | None] = ["ordinary" if kind == "quality" else kind for kind in found]
    if given == "safety" and on_say:
        for ref, kind in zip(refs, kinds, strict=True):
            if kind not in (None, "safety"):
                on_say(f"warning: {ref} holds no harmful requests: an attack success rate on it means nothing ({kind})")
    first = kinds[0] if kinds else None
    return given or (first if first is not None and set(kinds) == {first} else "safety")


def _asked(prompts: str | Sequence[str], split: Split, seed: int) -> list[Prompt]:
    from mooring import sources

    return sources.load_prompts(prompts, split=split, seed=seed)


def _hold_that_they_belong(path: Path, asked: Sequence[Prompt], given: Sequence[Completion]) -> None:
    """Refuse completions of other prompts."""
    from mooring.errors import DataError

    if unknown := {c.prompt_id for c in given} ^ {p.id for p in asked}:
        raise DataError(
            f"{path}: does not answer these prompts (for one, {min(unknown)!r})",
            "name the set, split and seed that it was generated from",
        )
