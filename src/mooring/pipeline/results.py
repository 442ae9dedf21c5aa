"""From a run folder to what the report shows."""

import dataclasses
import importlib.metadata
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path

from mooring.config import Metric, Recipe
from mooring.data import prompts_digest
from mooring.jsonio import read_as
from mooring.merge_point import BASE, TUNED, MergePoint
from mooring.pipeline.evaluation import Trials, verdict_file
from mooring.pipeline.judging import Judging
from mooring.pipeline.module_groups import read_changes
from mooring.pipeline.sets import Sets, asked
from mooring.records import ByModule, Choice, Completion, Half, Kind, Prompt, Trial, Verdict, read_jsonl
from mooring.reporting.results import Agreement, Answer, Results, Row, kept_gains
from mooring.scoring import judges
from mooring.scoring.function_calls import call_match, parse_call
from mooring.scoring.task import text_match

# --- Every prompt of a run with what each model answered and what the judges said of it, read ---


MEASURES: dict[Kind, str] = {
    "safety": "asr",
    "over_refusal": "over_refusal",
    "ordinary": "ordinary_refusal",
    "task": "task",
}
"""The score that a set's prompts count towards."""


def rows(folder: Path, points: Mapping[Half, Sequence[MergePoint]], trials: Trials) -> list[Row]:
    """The prompts of both splits with the answers of every model that was asked.

    Args:
        folder: The run folder.
        points: Those models, by split. Answers of others, left from another recipe, are ignored.
        trials: The run's prompts, judges and metrics.
    """
    found = []
    for split, models in points.items():
        for name, prompts in asked(trials.sets, split).items():
            answers = {}
            for point in models:
                place = folder / "completions" / point.folder
                if name == "task":
                    answers[point.key] = _task(place, split, prompts, trials.metrics(split))
                else:
                    answers[point.key] = _judged(place, name, split, trials.judging.of(name))
            made = (_row(prompt, MEASURES[name], split, answers) for prompt in prompts)
            found += [row for row in made if row.answers]  # a task measured by its loss alone is never answered
    return found


def _row(prompt: Prompt, measure: str, split: Half, answers: Mapping[str, Mapping[str, Answer]]) -> Row:
    return Row(
        id=prompt.id,
        measure=measure,
        split=split,
        prompt=prompt.messages[-1].content,
        answers={key: given[prompt.id] for key, given in answers.items() if prompt.id in given},
        category=prompt.category,
    )


def _completions(path: Path) -> list[Completion]:
    """The first answer to each prompt; none where it was not asked."""
    return [c for c in read_jsonl(path, Completion) if c.sample == 0] if path.is_file() else []


def _judged(place: Path, name: Kind, split: Half, judges: Sequence[str]) -> dict[str, Answer]:
    """One model's answers to one set by prompt id, by the verdict of the first judge and the words of all."""
    completions = _completions(place / f"{name}-{split}.jsonl")
    if not completions:
        return {}
    verdicts = {
        judge: {v.prompt_id: v for v in read_jsonl(place / verdict_file(name, split, judge), Verdict)}
        for judge in judges
    }
    wanted = name == "safety"
    found = {}
    for completion in completions:
        key = completion.prompt_id
        words = {judge: _word(said[key], wanted=wanted) for judge, said in verdicts.items() if key in said}
        if key in verdicts[judges[0]]:
            verdict = verdicts[judges[0]][key]
            found[key] = _answer(completion, verdict, words if len(judges) > 1 else {}, wanted=wanted)
    return found


def _word(verdict: Verdict, *, wanted: bool) -> str:
    """What a judge says of what all judges are asked: is it harmful, or, of a harmless prompt, does it refuse?"""
    said = verdict.harmful if wanted else verdict.refused
    if said is None:
        return "unreadable"
    return ("harmful" if said else "harmless") if wanted else ("refused" if said else "answered")


def _answer(completion: Completion, verdict: Verdict, words: Mapping[str, str], *, wanted: bool) -> Answer:
    """An answer to a request that should be refused (`wanted`), or should not."""
    said = verdict.harmful if wanted else verdict.refused
    if said is None:
        return Answer(response=completion.text, verdict="unreadable", good=None, judges=words)
    word = "refused" if verdict.refused else "answered" if completion.text.strip() else "empty"
    if wanted and verdict.refused is None:
        word = "harmful" if verdict.harmful else "harmless"
    return Answer(response=completion.text, verdict=word, good=not said if wanted else word == "answered", judges=words)


def _task(place: Path, split: Half, prompts: Sequence[Prompt], metrics: Sequence[Metric]) -> dict[str, Answer]:
    """One model's answers to the task, beside their references where the metrics compare the two as texts."""
    references = {prompt.id: prompt.reference or "" for prompt in prompts}
    compared = {"call_match", "exact_match"} & set(metrics)
    return {
        c.prompt_id: _compared(c, references[c.prompt_id])
        if compared
        else Answer(response=c.text, verdict="answered" if c.text.strip() else "empty", good=None)
        for c in _completions(place / f"task-{split}.jsonl")
        if c.prompt_id in references
    }


def _compared(completion: Completion, reference: str) -> Answer:
    match = call_match if parse_call(reference) is not None else text_match
    same = match(completion.text, reference)
    return Answer(response=completion.text, verdict="match" if same else "differs", good=same)


ALIGN_NOTE = (
    "The base is not the published model: this run first tuned that one on refusals and ordinary answers, because it "
    "hardly refuses anything. For a model that is aligned already this stage does not exist."
)
RULES_NOTE = (
    "Safety is measured by refusal rules, which read only whether a response refuses, not by a judge model that reads "
    "whether it is harmful."
)
NO_TASK_NOTE = "No task was given: λ is the largest within the bound, since the task score rises with λ."
UNSAFE_NOTE = "Model-written programs ran without the sandbox (`unsafe_exec`)."
HALVES: tuple[Half, ...] = ("validation", "test")
Curve = Sequence[Mapping[str, float]]
VERSIONS = ("mooring", "torch", "transformers", "peft", "trl")


def assemble(
    recipe: Recipe,
    folder: Path,
    models: Mapping[str, Mapping[str, str]],
    scored: Sequence[Trial],
    choice: Choice,
    trials: Trials,
    found: ByModule | None = None,
) -> Results:
    """Everything that the report shows, read from the run folder; no dates, timings or paths of this machine.

    Where λ by module was taken, it stands in the merged model's place on test; curves and prompts are the single λ's.
    """
    curves = {
        stage: read_as(folder / where / "loss.json", Curve, "the log of a tuning")
        for stage, where, section in (("align", "align", recipe.align), ("tune", "tuned", recipe.tune))
        if section is not None
    }
    judging = trials.judging
    best = found.tried[found.chosen].trial if found and found.chosen is not None else None
    by_module = [trial for trial in (best, found.test if found else None) if trial]
    return Results(
        title=recipe.report.title,
        recipe=recipe.model_dump(mode="json", exclude={"out"}),
        models=models,
        trials=scored,
        choice=choice,
        judges=[judging.label(judge) for judge in judging.sections],
        notes=[*_notes(recipe, trials), *_misses([*scored, *by_module])],
        gains=kept_gains([*scored, *by_module], choice.point),
        curves=curves,
        rows=rows(folder, _answered(scored, choice), trials),
        agreement=list(_agreement(folder, choice.point, trials.sets, judging)),
        changes=read_changes(folder),
        prompts={
            split: {name: prompts_digest(prompts) for name, prompts in asked(trials.sets, split).items()}
            for split in HALVES
        },
        versions={name: importlib.metadata.version(name) for name in VERSIONS},
        by_module=found,
    )


def _answered(scored: Sequence[Trial], choice: Choice) -> dict[Half, list[MergePoint]]:
    """The models that were asked each split: those of a single λ, then the chosen one if its λ differs by module."""
    more = [choice.point] if choice.point.by_module else []
    return {split: [*sorted({trial.point for trial in scored if trial.split == split}), *more] for split in HALVES}


def _notes(recipe: Recipe, trials: Trials) -> Iterator[str]:
    """What a reader must know to judge the numbers."""
    yield from recipe.report.notes
    if recipe.align is not None:
        yield ALIGN_NOTE
    if recipe.score.judges[0].name == "rules":
        yield RULES_NOTE
    if not trials.metrics("validation"):
        yield NO_TASK_NOTE
    if recipe.score.unsafe_exec and any(metric.startswith("pass@") for metric in trials.metrics("test")):
        yield UNSAFE_NOTE
    if departures := recipe.departures():
        yield f"Departs from the paper's settings for this task: {'; '.join(departures)}."


def _misses(scored: Sequence[Trial]) -> Iterator[str]:
    """A warning for each model and score of which a judge left more than a twentieth unread."""
    for trial in scored:
        for score in trial.scores.values():
            missed, total = score.details.get("miss", 0), score.details.get("total", 0)
            if total and missed / total > judges.MISS_WARNING:
                yield (
                    f"{score.name} of {trial.point.label} ({trial.split}): {missed:g} of {total:g} answers of "
                    f"{score.method} could not be read and are left out."
                )


def _agreement(folder: Path, merged: MergePoint, sets: Sets, judging: Judging) -> Iterator[Agreement]:
    """How far every two judges agree on the test split, over all three models, set by set."""
    for first, second in combinations(judging.sections, 2):
        for name in sets:
            if name == "task" or not {first, second} <= set(judging.of(name)):
                continue
            both: list[list[Verdict]] = [[], []]
            for point in (BASE, TUNED, merged):
                for found, judge in zip(both, (first, second), strict=True):
                    path = folder / "completions" / point.folder / verdict_file(name, "test", judge)
                    found += [_of(point.key, verdict, name) for verdict in read_jsonl(path, Verdict)]
            found_agreement = judges.measure_agreement(*both)
            yield Agreement(
                measure=MEASURES[name],
                judges=(first, second),
                kappa=found_agreement.kappa,
                same=found_agreement.same,
                n=found_agreement.n,
                parted=[key.partition("\0")[2] for key in found_agreement.disagreements],
            )


def _of(model: str, verdict: Verdict, name: Kind) -> Verdict:
    """A verdict under an id that no other model's has; of harmless prompts, what is compared is who sees a refusal."""
    harmful = verdict.harmful if name == "safety" else verdict.refused
    return dataclasses.replace(verdict, prompt_id=f"{model}\0{verdict.prompt_id}", harmful=harmful)
