"""From a run folder to what the report shows."""

import dataclasses
import importlib.metadata
import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path

from mooring.recipe import Recipe
from mooring.records import Choice, Completion, Prompt, Trial, Verdict, read_jsonl
from mooring.report.results import Agreement, Answer, Results, Row, kept_gains
from mooring.run.judging import Judging
from mooring.run.sets import Name, Sets
from mooring.run.trials import Trials, verdict_file
from mooring.score import judges
from mooring.score.calls import call_match, parse_call
from mooring.score.task import text_match

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
VERSIONS = ("mooring", "torch", "transformers", "peft", "trl")
MEASURES: dict[Name, str] = {
    "safety": "asr",
    "over_refusal": "over_refusal",
    "ordinary": "ordinary_refusal",
    "task": "task",
}


def assemble(
    recipe: Recipe,
    folder: Path,
    models: Mapping[str, Mapping[str, str]],
    scored: Sequence[Trial],
    choice: Choice,
    trials: Trials,
) -> Results:
    """Everything that the report shows, read from the run folder; no dates, timings or paths of this machine."""
    curves = {
        stage: json.loads((folder / where / "loss.json").read_text())
        for stage, where, section in (("align", "align", recipe.align), ("tune", "tuned", recipe.tune))
        if section is not None
    }
    judging = trials.judging
    return Results(
        title=recipe.report.title,
        recipe=recipe.model_dump(mode="json", exclude={"out"}),
        models=models,
        trials=scored,
        choice=choice,
        judges=[judging.label(judge) for judge in judging.sections],
        notes=[*_notes(recipe, trials), *_misses(scored)],
        gains=kept_gains(scored, choice.lam),
        curves=curves,
        rows=_rows(folder, choice.lam, trials.sets, judging),
        agreement=list(_agreement(folder, choice.lam, trials.sets, judging)),
        versions={name: importlib.metadata.version(name) for name in VERSIONS},
    )


def _notes(recipe: Recipe, trials: Trials) -> Iterator[str]:
    """What a reader must know to judge the numbers."""
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
                who = trial.model if trial.model != "merged" else f"λ = {trial.lam:g}"
                yield (
                    f"{score.name} of {who} ({trial.split}): {missed:g} of {total:g} answers of {score.method} could "
                    "not be read and are left out."
                )


def _agreement(folder: Path, lam: float, sets: Sets, judging: Judging) -> Iterator[Agreement]:
    """How far every two judges agree on the test split, over all three models, set by set."""
    for first, second in combinations(judging.sections, 2):
        for name in sets:
            if name == "task" or not {first, second} <= set(judging.of(name)):
                continue
            both: list[list[Verdict]] = [[], []]
            for sub in _folders(lam).values():
                for found, judge in zip(both, (first, second), strict=True):
                    path = folder / "completions" / sub / verdict_file(name, "test", judge)
                    found += [_of(sub, verdict, name) for verdict in read_jsonl(path, Verdict)]
            found_agreement = judges.agreement(*both)
            yield Agreement(
                measure=MEASURES[name],
                judges=(first, second),
                kappa=found_agreement.kappa,
                same=found_agreement.same,
                n=found_agreement.n,
                parted=[key.partition("\0")[2] for key in found_agreement.parted],
            )


def _of(model: str, verdict: Verdict, name: Name) -> Verdict:
    """A verdict under an id that no other model's has; of harmless prompts, what is compared is who sees a refusal."""
    harmful = verdict.harmful if name == "safety" else verdict.refused
    return dataclasses.replace(verdict, prompt_id=f"{model}\0{verdict.prompt_id}", harmful=harmful)


def _folders(lam: float) -> dict[str, str]:
    """Where each model's answers lie, below `completions/`."""
    return {"base": "lam-0", "tuned": "lam-1", "merged": f"lam-{lam:g}"}


def _rows(folder: Path, lam: float, sets: Sets, judging: Judging) -> list[Row]:
    """The test prompts with what the three models answered, by the verdicts that count."""
    rows = []
    for name, halves in sets.items():
        judge = judging.of(name)[0]
        found = {
            model: _answers(folder / "completions" / sub, name, halves["test"], judge)
            for model, sub in _folders(lam).items()
        }
        for prompt in halves["test"]:
            rows.append(
                Row(
                    id=prompt.id,
                    measure=MEASURES[name],
                    prompt=prompt.messages[-1].content,
                    answers={model: given[prompt.id] for model, given in found.items() if prompt.id in given},
                    category=prompt.category,
                )
            )
    return rows


def _answers(folder: Path, name: Name, prompts: Sequence[Prompt], judge: str) -> dict[str, Answer]:
    """One model's answers to one set, by prompt id, the first where there are several; none where it was not asked."""
    path = folder / f"{name}-test.jsonl"
    if not path.exists():
        return {}
    completions = [completion for completion in read_jsonl(path, Completion) if completion.sample == 0]
    if name != "task":
        verdicts = {v.prompt_id: v for v in read_jsonl(folder / verdict_file(name, "test", judge), Verdict)}
        return {c.prompt_id: _judged(c, verdicts[c.prompt_id], wanted=name == "safety") for c in completions}
    references = {p.id: p.reference or "" for p in prompts}
    return {c.prompt_id: _compared(c, references[c.prompt_id]) for c in completions}


def _judged(completion: Completion, verdict: Verdict, *, wanted: bool) -> Answer:
    """An answer to a request that should be refused (`wanted`), or should not."""
    said = verdict.harmful if wanted else verdict.refused
    if said is None:
        return Answer(response=completion.text, verdict="unreadable", good=None)
    word = "refused" if verdict.refused else "answered" if completion.text.strip() else "empty"
    if wanted and verdict.refused is None:
        word = "harmful" if verdict.harmful else "harmless"
    return Answer(response=completion.text, verdict=word, good=not said if wanted else word == "answered")


def _compared(completion: Completion, reference: str) -> Answer:
    """An answer to a task prompt beside its reference."""
    match = call_match if parse_call(reference) is not None else text_match
    same = match(completion.text, reference)
    return Answer(response=completion.text, verdict="match" if same else "differs", good=same)
