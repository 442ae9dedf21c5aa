"""From the files of a run to the results that its report shows."""

import dataclasses
import importlib.metadata
from collections.abc import Hashable, Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from types import MappingProxyType

from mooring.attacks import NONE, attack_of, kind_of, under
from mooring.config import Recipe
from mooring.jsonio import read_as
from mooring.latent_class import LatentClass, latent_class
from mooring.merge_point import BASE, TUNED, MergePoint
from mooring.pipeline.changes import read_changes
from mooring.pipeline.lengths import describe
from mooring.pipeline.plan import HALVES, Plan
from mooring.records import (
    Baselines,
    ByModule,
    Choice,
    Completion,
    Forgetting,
    Gain,
    Half,
    Kind,
    Prompt,
    RunVerdict,
    Score,
    SetName,
    Trial,
    Verdict,
    read_jsonl,
)
from mooring.reporting.results import Agreement, Answer, Results, Row, is_task
from mooring.scoring import judges
from mooring.scoring.function_calls import call_match, parse_call
from mooring.scoring.task import text_match
from mooring.selection.gains import kept_gains
from mooring.selection.verdict import decide
from mooring.text import model_name
from mooring.thinking import CUT_OFF, NO_ANSWER, cut_off_note, split_thoughts

ALIGN_NOTE = (
    "The base is not the published model: this run first tuned that one on refusals and ordinary answers, because it "
    "hardly refuses anything. For a model that is aligned already this stage does not exist."
)
NO_TASK_NOTE = "No task was given: λ is the largest within the bound, since the task score rises with λ."
UNSAFE_NOTE = "Model-written programs ran without the sandbox (`unsafe_exec`)."
Curve = Sequence[Mapping[str, float]]
MEASURES: dict[Kind, str] = {
    "safety": "asr",
    "over_refusal": "over_refusal",
    "ordinary": "ordinary_refusal",
    "task": "task",
}
"""The score that prompts of a kind count towards."""
VERSIONS = ("mooring", "torch", "transformers", "peft", "trl")


def measure_of(name: SetName) -> str:
    """The score that a set's prompts count towards: `asr+prefill:8` for `safety+prefill:8`."""
    return under(MEASURES[kind_of(name)], attack_of(name))


def assemble(
    plan: Plan,
    models: Mapping[str, Mapping[str, str]],
    trials: Sequence[Trial],
    choice: Choice,
    found: ByModule | None,
    warnings: Sequence[str],
    forgetting: Forgetting | None = None,
    baselines: Baselines | None = None,
) -> Results:
    """Everything that the report shows, read from the run folder; no dates, timings or paths of this machine.

    The trial of a λ by module that was taken is in `found`, all others are in `trials`.
    """
    recipe, paths, judging = plan.recipe, plan.paths, plan.judging
    curves = {
        stage: read_as(folder / "loss.json", Curve, "the log of a tuning")
        for stage, folder, section in (("align", paths.align, recipe.align), ("tune", paths.tuned, recipe.tune))
        if section is not None
    }
    best = found.tried[found.chosen].trial if found and found.chosen is not None else None
    by_module = [trial for trial in (best, found.test if found else None) if trial]
    points: dict[Half, list[MergePoint]] = {
        split: sorted({trial.point for trial in trials if trial.split == split}) for split in HALVES
    }
    if choice.point.by_module:
        for each in points.values():
            each.append(choice.point)
    whole = [*trials, *by_module]
    gains = gains_of(whole, TUNED, choice.point)
    return Results(
        verdict=verdict_of(plan, whole, choice.point, choice, gains),
        title=title_of(recipe),
        recipe=recipe.without_places(),
        models=models,
        trials=trials,
        choice=choice,
        judges=[judging.label(judge) for judge in judging.sections],
        notes=[*notes_of(plan, whole), *warnings],
        gains=gains,
        curves=curves,
        rows=rows(plan, points),
        agreement=list(agreements(plan, [BASE, TUNED, choice.point])),
        latent=_latent(plan, choice.point),
        changes=read_changes(paths.changes),
        prompts={split: {name: plan.digest(split, name) for name in plan.prompts(split)} for split in HALVES},
        versions=versions(),
        by_module=found,
        forgetting=forgetting,
        baselines=baselines,
    )


def gains_of(trials: Sequence[Trial], tuned: MergePoint, merged: MergePoint) -> dict[str, Gain]:
    """By task metric of the test half, the share of a tuned model's gain that a merged model keeps."""
    tested = {trial.point: trial for trial in trials if trial.split == "test"}
    metrics = [name for name in tested[merged].scores if is_task(name)]
    return kept_gains(tested[BASE], tested[tuned], tested[merged], metrics)


def verdict_of(
    plan: Plan,
    trials: Sequence[Trial],
    merged: MergePoint,
    choice: Choice,
    gains: Mapping[str, Gain],
    tuned: MergePoint = TUNED,
) -> RunVerdict:
    """Whether a merged model can be shipped, from the trials of both halves, with flips against the base."""
    judging, found = plan.judging, {(trial.split, trial.point): trial for trial in trials}
    return decide(
        {"base": found["test", BASE], "merged": found["test", merged]}
        | ({"tuned": found["test", tuned]} if ("test", tuned) in found else {}),
        {"base": found["validation", BASE], "merged": found["validation", merged]},
        choice=choice,
        settings=plan.recipe.select,
        gains=gains,
        judge=judging.label(next(iter(judging.sections))),
        by_wording=not judges.find(plan.recipe.score.judges[0].name).needs_model,
    )


def title_of(recipe: Recipe) -> str:
    """The heading of the report: that of the recipe, or the names of the models, and of the methods if there are
    several."""
    if recipe.report.title:
        return recipe.report.title
    base = model_name(recipe.base)
    by = f", by {', '.join(recipe.merge.methods)}" if recipe.merge.methods else ""
    if recipe.tuned is not None:
        return f"{', '.join(map(model_name, recipe.tuned_models.values()))} merged back towards {base}{by}"
    data = ", ".join(model_name(ref) for ref in recipe.tune.data) if recipe.tune else ""
    return f"{base} tuned on {data}, merged back{by}"


def versions() -> dict[str, str]:
    """The versions that a report names."""
    return {name: importlib.metadata.version(name) for name in VERSIONS}


def notes_of(plan: Plan, trials: Sequence[Trial]) -> list[str]:
    """What a reader must know to judge the numbers of these trials, a sentence each."""
    limit = plan.sampling("safety").max_tokens
    return [*_notes(plan), *_misses(trials), *_imbalance(trials), *_unanswered(trials, limit)]


def _notes(plan: Plan) -> Iterator[str]:
    """What a reader must know to judge the numbers."""
    recipe = plan.recipe
    yield from recipe.report.notes
    yield from _thinking_note(plan)
    if recipe.align is not None:
        yield ALIGN_NOTE
    if not plan.metrics["validation"]:
        yield NO_TASK_NOTE
    if plan.skipped:
        yield describe(plan.skipped)
    if recipe.score.unsafe_exec and any(metric.startswith("pass@") for metric in plan.metrics["test"]):
        yield UNSAFE_NOTE
    if departures := recipe.departures():
        yield f"Departs from the paper's settings for this task: {'; '.join(departures)}."


def _misses(trials: Sequence[Trial]) -> Iterator[str]:
    """A warning for each judge that gave no verdict on more than a twentieth of a model's answers."""
    found: dict[str, dict[str, list[str]]] = {}
    for trial in trials:
        counts = {name: _missed_of(score) for name, score in trial.scores.items()}
        for name, score in trial.scores.items():
            missed, total = counts[name]
            same_answers = (
                name.startswith("refusal") and counts.get(f"asr{name.removeprefix('refusal')}") == counts[name]
            )
            if total and missed / total > judges.MISS_WARNING and not same_answers:
                models = found.setdefault(score.method, {})
                models.setdefault(f"{_model_of(trial)} ({trial.split})", []).append(
                    f"{score.name} {missed:g} of {total:g}"
                )
    for judge, models in found.items():
        places = "; ".join(f"{model}: {', '.join(missed)}" for model, missed in models.items())
        yield f"{judge} gave no verdict on some answers, which are left out of its rates. {places}."


def _missed_of(score: Score) -> tuple[float, float]:
    """The answers that a judge gave no verdict on, but for those without an answer to judge; and all answers."""
    details = score.details
    return details.get("miss", 0) - details.get("unanswered", 0), details.get("total", 0)


def _model_of(trial: Trial) -> str:
    return "λ by module" if trial.point.by_module else trial.point.label


def _imbalance(trials: Sequence[Trial]) -> Iterator[str]:
    """A warning for each rate that rests on clearly more or fewer answers of a model than of the base."""
    bases = {trial.split: trial for trial in trials if trial.point.is_base}
    found: dict[str, list[str]] = {}
    for trial in trials:
        base = bases.get(trial.split)
        if base is None or trial is base:
            continue
        for name in ("asr", "over_refusal"):
            if name in trial.scores and name in base.scores:
                details = [each.scores[name].details for each in (trial, base)]
                missed, of_base = (d.get("miss", 0) / d["total"] if d.get("total") else 0.0 for d in details)
                if abs(missed - of_base) > judges.MISS_IMBALANCE:
                    rate = f"{name} ({trial.split}): no verdict on {100 * of_base:.1f} % of the base's answers"
                    found.setdefault(rate, []).append(f"{100 * missed:.1f} % of those of {_model_of(trial)}")
    for rate, models in found.items():
        yield f"{rate}, and on {', '.join(models)}: their rates rest on different prompts."


def _unanswered(trials: Sequence[Trial], limit: int) -> Iterator[str]:
    """A warning for each model and set of which responses ended inside their thinking."""
    for trial in trials:
        who = _model_of(trial)
        for name in ("asr", "over_refusal", "ordinary_refusal"):
            score = trial.scores.get(name)
            if score is not None and (count := score.details.get("unanswered", 0)):
                note = cut_off_note(int(count), int(score.details["total"]), limit)
                yield f"{score.name} of {who} ({trial.split}): {note}."


def _thinking_note(plan: Plan) -> Iterator[str]:
    """The thinking mode, if one was chosen."""
    mode = plan.recipe.generate.thinking
    if mode is not None:
        yield f"Thinking mode: {mode} (`generate.thinking`). The verdict holds for that mode."


def agreements(plan: Plan, points: Sequence[MergePoint]) -> Iterator[Agreement]:
    """How far every two judges agree on the test split, over these models, set by set."""
    for first, second in combinations(plan.judging.sections, 2):
        for name in plan.sets:
            if name == "task" or not {first, second} <= set(plan.judging.of(name)):
                continue
            both: list[list[Verdict]] = [[], []]
            for point in points:
                for verdicts, judge in zip(both, (first, second), strict=True):
                    path = plan.paths.verdicts(point, name, "test", judge)
                    verdicts += [_of(point.key, verdict, name) for verdict in read_jsonl(path, Verdict)]
            found = judges.measure_agreement(*both)
            yield Agreement(
                measure=measure_of(name),
                judges=(first, second),
                kappa=found.kappa,
                same=found.same,
                n=found.n,
                disagreements=[key.partition("\0")[2] for key in found.disagreements],
            )


def _latent(plan: Plan, chosen: MergePoint) -> LatentClass | None:
    """The latent-class estimate of all judges of harmful requests, on the test split, over all three models."""
    names = plan.judging.of("safety")
    if len(names) < 2:
        return None
    votes: dict[str, dict[Hashable, list[bool | None]]] = {}
    for point in (BASE, TUNED, chosen):
        given = votes.setdefault(point.role, {})
        for judge in names:
            for verdict in read_jsonl(plan.paths.verdicts(point, "safety", "test", judge), Verdict):
                given.setdefault(verdict.prompt_id, []).append(verdict.harmful)
    return latent_class(names, votes, seed=plan.recipe.seed)


def _of(model: str, verdict: Verdict, name: SetName) -> Verdict:
    """A verdict with an id that is unique among models; on harmless prompts, refusals are compared."""
    harmful = verdict.harmful if kind_of(name) == "safety" else verdict.refused
    return dataclasses.replace(verdict, prompt_id=f"{model}\0{verdict.prompt_id}", harmful=harmful)


def rows(plan: Plan, points: Mapping[Half, Sequence[MergePoint]]) -> list[Row]:
    """The prompts of both splits with the responses of the given models.

    Responses of other models, left by another recipe, are not read.
    """
    found = []
    for split, models in points.items():
        for name, prompts in plan.prompts(split).items():
            answers = {}
            for point in models:
                if name == "task":
                    answers[point.key] = _task(plan, point, split, prompts)
                else:
                    answers[point.key] = _judged(plan, point, name, split)
            made = (_row(prompt, measure_of(name), split, answers) for prompt in prompts)
            found += [row for row in made if row.answers]  # a task measured by its loss alone is never answered
    return found


def _row(prompt: Prompt, measure: str, split: Half, answers: Mapping[str, Mapping[str, Answer]]) -> Row:
    return Row(
        id=prompt.id,
        measure=measure,
        split=split,
        prompt=prompt.messages[-1].content if attack_of(measure) == NONE else _shown(prompt),
        answers={lam: given[prompt.id] for lam, given in answers.items() if prompt.id in given},
        category=prompt.category,
        variant_of=prompt.variant_of,
    )


def _shown(prompt: Prompt) -> str:
    """What the user says, and what comes between and after it under an attack."""
    turns = [message for message in prompt.messages if message.role != "system"]
    said = [f"{m.role}: {m.content}" if len(turns) > 1 else m.content for m in turns]
    return "\n\n".join([*said, *(f"user: {text}" for text in prompt.follow_ups)])


def _completions(path: Path) -> list[Completion]:
    """The first response to each prompt; empty if there is no file."""
    return [c for c in read_jsonl(path, Completion) if c.sample == 0] if path.is_file() else []


def _judged(plan: Plan, point: MergePoint, name: SetName, split: Half) -> dict[str, Answer]:
    """One model's responses to one set by prompt id, with the verdict of the first judge and those of all."""
    judges = plan.judging.of(name)
    completions = _completions(plan.paths.completions(point, name, split))
    if not completions:
        return {}
    verdicts = {
        judge: {v.prompt_id: v for v in read_jsonl(plan.paths.verdicts(point, name, split, judge), Verdict)}
        for judge in judges
    }
    wanted = kind_of(name) == "safety"
    found = {}
    for completion in completions:
        key = completion.prompt_id
        words = {judge: _word(by_id[key], wanted=wanted) for judge, by_id in verdicts.items() if key in by_id}
        if key in verdicts[judges[0]]:
            verdict = verdicts[judges[0]][key]
            found[key] = _answer(completion, verdict, words if len(judges) > 1 else {}, wanted=wanted)
    return found


def _word(verdict: Verdict, *, wanted: bool) -> str:
    """A judge's verdict as a word: whether the response is harmful, or, to a harmless prompt, whether it refuses."""
    found = verdict.harmful if wanted else verdict.refused
    if found is None:
        return _missed(verdict)
    return ("harmful" if found else "harmless") if wanted else ("refused" if found else "answered")


def _missed(verdict: Verdict) -> str:
    """Why there is no verdict, in a word or two."""
    if verdict.why in (CUT_OFF, NO_ANSWER):
        return verdict.why
    return "unsure" if judges.is_without_model(verdict.judge) else "unreadable"


def _answer(completion: Completion, verdict: Verdict, words: Mapping[str, str], *, wanted: bool) -> Answer:
    """An answer to a request that should be refused (`wanted`), or should not."""
    found = verdict.harmful if wanted else verdict.refused
    if found is None:
        return _said(completion, _missed(verdict), None, words)
    word = "refused" if verdict.refused else "answered" if completion.text.strip() else "empty"
    if wanted and verdict.refused is None:
        word = "harmful" if verdict.harmful else "harmless"
    return _said(completion, word, not found if wanted else word == "answered", words)


def _said(
    completion: Completion, verdict: str, good: bool | None, judges: Mapping[str, str] = MappingProxyType({})
) -> Answer:
    return Answer(
        response=completion.answer, thoughts=completion.thoughts or "", verdict=verdict, good=good, judges=dict(judges)
    )


def _task(plan: Plan, point: MergePoint, split: Half, prompts: Sequence[Prompt]) -> dict[str, Answer]:
    """One model's responses to the task, compared with their references if a metric compares texts."""
    references = {prompt.id: prompt.reference or "" for prompt in prompts}
    compared = {"call_match", "exact_match"} & set(plan.metrics[split])
    return {
        c.prompt_id: _compared(c, references[c.prompt_id])
        if compared
        else _said(c, "answered" if c.text.strip() else CUT_OFF if c.unanswered else "empty", None)
        for c in _completions(plan.paths.completions(point, "task", split))
        if c.prompt_id in references
    }


def _compared(completion: Completion, reference: str) -> Answer:
    reference = split_thoughts(reference).answer
    match = call_match if parse_call(reference) is not None else text_match
    same = match(completion.text, reference)
    return _said(completion, "match" if same else CUT_OFF if completion.unanswered else "differs", same)
