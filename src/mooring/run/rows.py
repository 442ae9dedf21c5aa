"""Every prompt of a run with what each model answered and what the judges said of it, read from the run folder."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from mooring.records import Completion, Prompt, Verdict, read_jsonl
from mooring.report.results import Answer, Row, lam_key
from mooring.run.sets import Name, asked
from mooring.run.sweep.answers import folder_of
from mooring.run.trials import Trials, verdict_file
from mooring.score.calls import call_match, parse_call
from mooring.score.task import text_match
from mooring.sections import Metric
from mooring.sources import Half

MEASURES: dict[Name, str] = {
    "safety": "asr",
    "over_refusal": "over_refusal",
    "ordinary": "ordinary_refusal",
    "task": "task",
}
"""The score that a set's prompts count towards."""


def rows(
    folder: Path, lams: Mapping[Half, Sequence[float]], trials: Trials, more: Mapping[str, str] | None = None
) -> list[Row]:
    """The prompts of both splits with the answers of every model that was asked.

    Args:
        folder: The run folder.
        lams: By split, the λ of those models. Answers of other λ, left from another recipe, stay out.
        trials: The run's prompts, judges and metrics.
        more: Of other models, the key of their answers and the name of their folder.
    """
    found = []
    for split, grid in lams.items():
        models = {lam_key(lam): folder_of(lam) for lam in grid} | dict(more or {})
        for name, prompts in asked(trials.sets, split).items():
            answers = {}
            for key, place_name in models.items():
                place = folder / "completions" / place_name
                if name == "task":
                    answers[key] = _task(place, split, prompts, trials.metrics(split))
                else:
                    answers[key] = _judged(place, name, split, trials.judging.of(name))
            made = (_row(prompt, MEASURES[name], split, answers) for prompt in prompts)
            found += [row for row in made if row.answers]  # a task measured by its loss alone is never answered
    return found


def _row(prompt: Prompt, measure: str, split: Half, answers: Mapping[str, Mapping[str, Answer]]) -> Row:
    return Row(
        id=prompt.id,
        measure=measure,
        split=split,
        prompt=prompt.messages[-1].content,
        answers={lam: given[prompt.id] for lam, given in answers.items() if prompt.id in given},
        category=prompt.category,
    )


def _completions(path: Path) -> list[Completion]:
    """The first answer to each prompt; none where it was not asked."""
    return [c for c in read_jsonl(path, Completion) if c.sample == 0] if path.is_file() else []


def _judged(place: Path, name: Name, split: Half, judges: Sequence[str]) -> dict[str, Answer]:
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
