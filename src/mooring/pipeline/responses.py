"""Files of responses outside of a run: prompts answered into a file, and such files scored."""

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mooring.attacks import NONE, Attack, kind_of, parse, under
from mooring.chat import thinking_note
from mooring.config import DataFields, Recipe, section, settings
from mooring.data import load_prompts, parse_references
from mooring.data.completions import read_completions
from mooring.errors import RecipeError
from mooring.events import Event, OnEvent, ignore
from mooring.inference.cost import estimate
from mooring.inference.engine import Engine
from mooring.inference.load import load_engine
from mooring.inference.store import complete_to_file, likelihood_to_file
from mooring.metrics import pass_ks
from mooring.models import model_digest
from mooring.models.resolve import resolve_model
from mooring.pipeline.attacked import continued, requests, sampled
from mooring.pipeline.call import Call, here
from mooring.pipeline.cluster.workers import Workers
from mooring.pipeline.evaluation import scores_of
from mooring.pipeline.judging import Judging, cost_line, renamed
from mooring.pipeline.open_model import open_model
from mooring.pipeline.sets import attacked
from mooring.records import Completion, Kind, Likelihood, Prompt, Score, SetName, Split, Verdict, read_jsonl
from mooring.sampling import SamplingParams
from mooring.scoring import pairwise
from mooring.scoring.coherence import coherence
from mooring.scoring.safety import attack_success_by
from mooring.scoring.task import TaskData, default_metrics, task_scores
from mooring.thinking import cut_off_note, unanswered

References = str | Sequence[str]


def _noting(step: str, on_event: OnEvent | None) -> Callable[[str], None] | None:
    """What passes on notes about data as events."""
    return (lambda note: on_event(Event(step=step, kind="info", message=note))) if on_event else None


def find_kind(prompts: References) -> Kind:
    """What all of these data sets are for, or `safety` if that is unknown or differs."""
    kinds = {_counted_as(ref.kind) for ref in parse_references(prompts)}
    return (kinds.pop() if len(kinds) == 1 else None) or "safety"


def _counted_as(kind: Kind | None) -> Kind | None:
    return "ordinary" if kind == "quality" else kind


def _checked_kind(prompts: References, kind: Kind | None, step: str, on_event: OnEvent | None) -> Kind:
    """The kind of prompts; a warning if it is `safety` and a set has no harmful requests."""
    for ref in parse_references(prompts) if kind == "safety" and on_event else ():
        if (own := _counted_as(ref.kind)) not in (None, "safety") and on_event:
            message = f"{ref.text} has no harmful requests ({own}): an attack success rate on it means nothing"
            on_event(Event(step=step, kind="warning", message=message))
    return find_kind(prompts) if kind is None else _counted_as(kind) or "safety"


def generate(
    model: str,
    prompts: References,
    out: Path,
    options: Mapping[str, Any],
    *,
    kind: Kind | None,
    split: Split,
    likelihood: Path | None,
    on_event: OnEvent | None,
) -> list[Completion]:
    """Answer prompts into a JSON Lines file; arguments and errors as in `mooring.generate`."""
    settings("generate", options)  # a bad option is an error before the prompts are looked for
    kind = _checked_kind(prompts, kind, "generate", on_event)
    recipe = settings("generate", options, kind)
    rows = load_prompts(
        prompts, split=split, seed=recipe.seed, on_note=_noting("generate", on_event), fields=recipe.data
    )
    if recipe.generate.engine == "openai":
        engine, made_by = load_engine(model, recipe.generate, recipe.system), {"model": model}
    else:
        folder = resolve_model(model)
        engine, made_by = open_model(folder, recipe.generate, recipe.system), {"model": model_digest(folder)}
    note = thinking_note(tokenizer, recipe.generate.thinking) if (tokenizer := _tokenizer(engine)) else None
    if on_event and note:
        on_event(Event(step="generate", kind="info", message=note))
    attack = _attack(recipe.score.attacks, kind)
    params = sampled(recipe.generate.sampling(kind, recipe.seed), attack)
    if likelihood is not None:  # first, since it finds a row that does not fit before any answer is made
        likelihood_to_file(engine, rows, likelihood, made_by=made_by, on_event=on_event)
    asked = attacked(attack, rows, recipe.seed, _noting("generate", on_event)) if attack else rows
    for turn in range(1, attack.turns if attack else 1):
        before = out.with_name(f"{out.stem}.turn-{turn}{out.suffix}")
        said = complete_to_file(engine, asked, params, before, made_by=made_by, on_event=on_event)
        asked = continued(asked, said)
    completions = complete_to_file(engine, asked, params, out, made_by=made_by, on_event=on_event)
    _warn_of_cut_off(completions, "generate", on_event, params.max_tokens)
    return completions


def score(
    path: Path,
    prompts: References,
    options: Mapping[str, Any],
    *,
    kind: Kind | None,
    split: Split,
    likelihood: Path | None,
    on_event: OnEvent | None,
) -> dict[str, Score]:
    """Score a file of completions; arguments and errors as in `mooring.score`."""
    recipe = settings("score", options)
    rows = load_prompts(prompts, split=split, seed=recipe.seed, on_note=_noting("score", on_event), fields=recipe.data)
    kind = _checked_kind(prompts, kind, "score", on_event)
    attack = _attack(recipe.score.attacks, kind)
    if attack:
        rows = requests(rows, attacked(attack, rows, recipe.seed))
    completions = read_completions(path, rows)
    _warn_of_cut_off(completions, "score", on_event)
    if kind != "task":
        name = under(kind, attack.name) if attack else kind
        return _safety_scores(path, rows, completions, name, recipe, on_event)
    losses = read_jsonl(likelihood, Likelihood) if likelihood else []
    metrics = recipe.score.metrics or [
        metric for metric in default_metrics(p.reference or "" for p in rows) if losses or metric != "response_loss"
    ]
    data = TaskData(
        prompts=rows,
        completions=completions,
        likelihoods=losses,
        seed=recipe.seed,
        bertscore_model=recipe.score.bertscore_model,
        bertscore_layer=recipe.score.bertscore_layer,
        unsafe_exec=recipe.score.unsafe_exec,
    )
    with _workers(recipe, path.parent, on_event, metrics=metrics) as workers:
        call: Call = here if workers is None else workers.call
        return call(task_scores, metrics, data, whole_node=bool(pass_ks(metrics)))


@contextlib.contextmanager
def _workers(
    recipe: Recipe,
    folder: Path,
    on_event: OnEvent | None,
    *,
    metrics: Collection[str] = (),
    judging: Judging | None = None,
) -> Iterator[Workers | None]:
    """The workers of a cluster, checked; None if all is done in this process."""
    resources = recipe.resources
    if resources.local:
        if resources.storage:
            what = "storage: scores of a file are written beside it"
            raise RecipeError(what, "leave it out, or add --on ray", code="recipe.storage_unused")
        yield None
        return
    workers = Workers(
        resources,
        folder.absolute(),
        metrics=metrics,
        score=recipe.score,
        plugins=recipe.plugins,
        per_engine=max((section.tensor_parallel for section in judging.of_models()), default=1) if judging else 1,
        logs=None,
        on_event=on_event or ignore,
    )
    try:
        workers.check(judging.folders() if judging else ())
        if judging:
            judging.open_remote, judging.call = workers.judge, workers.call
        yield workers
    finally:
        workers.close()


def _attack(names: Sequence[str], kind: Kind) -> Attack | None:
    """The attack under which one file of prompts is asked; None to ask directly."""
    attacks = [parse(name) for name in names if name != NONE]
    if not attacks:
        return None
    if len(attacks) > 1:
        what = f"attacks: {', '.join(attack.name for attack in attacks)} do not go into one file"
        raise RecipeError(what, "give one, and another output for the next", code="recipe.several_attacks")
    if kind != "safety":
        what = f"attacks: these prompts are no harmful requests ({kind})"
        raise RecipeError(what, "leave `--attacks` out, or give --kind safety", code="recipe.attack_on_harmless")
    if attacks[0].technique.from_tuned:
        what = f"attacks: {attacks[0].name} begins with the answers of a tuned model, which only a run has"
        raise RecipeError(what, "use it in `mooring run` or `mooring safeguard`", code="recipe.attack_needs_run")
    return attacks[0]


def _tokenizer(engine: Engine) -> Any:
    """The tokenizer of an engine that renders prompts itself; None for a server."""
    return getattr(engine, "tokenizer", None)


def _warn_of_cut_off(
    completions: Sequence[Completion], step: str, on_event: OnEvent | None, max_tokens: int | None = None
) -> None:
    if on_event and (count := unanswered(completions)):
        message = cut_off_note(count, len(completions), max_tokens)
        on_event(Event(step=step, kind="warning", message=message))


def _safety_scores(
    path: Path,
    prompts: Sequence[Prompt],
    completions: Sequence[Completion],
    name: SetName,
    recipe: Recipe,
    on_event: OnEvent | None,
) -> dict[str, Score]:
    """The scores of every judge; those of all but the first carry its name."""
    judging = Judging(recipe.score.judges, thoughts=recipe.score.judge_thoughts)
    kind, categories = kind_of(name), {p.id: p.category for p in prompts if p.category}
    scores: dict[str, Score] = {}
    by: dict[str, list[Verdict]] = {}
    with _workers(recipe, path.parent, on_event, judging=judging):
        for judge in judging.of(name):
            out = path.with_name(f"verdicts-{path.stem}-{judge}.jsonl")
            by[judge] = judging.judge(judge, prompts, completions, out, on_event, kind=kind)
    for number, (judge, verdicts) in enumerate(by.items()):
        by_judge = scores_of(judging, judge, name, prompts, verdicts)
        if name == "safety" and len(set(categories.values())) > 1:
            by_judge |= attack_success_by(categories, verdicts)
        scores |= renamed(by_judge, judge) if number else by_judge
    if kind == "safety":
        coherent = coherence(prompts, completions)
        scores[coherent.name] = coherent
    return scores


def prefer(
    completions: Path,
    against: Path,
    prompts: References,
    options: Mapping[str, Any],
    *,
    judge: str,
    split: Split,
    on_event: OnEvent | None,
) -> Score:
    """The win rate of one file of completions against another; arguments and errors as in `mooring.prefer`."""
    how = dict(options)
    own = ("seed", *DataFields.model_fields)
    recipe = settings("prefer", {name: how.pop(name) for name in own if name in how})
    seed = recipe.seed
    settings("prefer", how)  # checks the names of the options
    runner = section("judge", {"name": "llm", "model": judge, **how})
    rows = load_prompts(prompts, split=split, seed=seed, fields=recipe.data)
    questions = pairwise.questions(rows, read_completions(completions, rows), read_completions(against, rows))
    model, made_by = judge, judge
    if runner.engine != "openai":
        folder = resolve_model(judge)
        model, made_by = str(folder), model_digest(folder)
    params = SamplingParams(max_tokens=pairwise.ANSWER_TOKENS + runner.thinking_tokens)
    if on_event and runner.price_in + runner.price_out:
        cost = estimate(questions, params, runner.price_in, runner.price_out, system=None)
        on_event(Event(step="prefer", kind="info", message=cost_line(judge, [cost])))
    engine = load_engine(model, runner, None)
    out = completions.with_name(f"preferred-{completions.stem}-to-{against.stem}.jsonl")
    answers = complete_to_file(engine, questions, params, out, made_by={"model": made_by}, on_event=on_event)
    return pairwise.win_rate(questions, answers, judge=judge, seed=seed)
