"""From a run folder to what the report shows."""

import dataclasses
import importlib.metadata
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path

from mooring.plain import read_as
from mooring.recipe import Recipe
from mooring.records import ByModule, Choice, Trial, Verdict, read_jsonl
from mooring.report.results import BY_MODULE, Agreement, Results, kept_gains
from mooring.run.changes import read_changes
from mooring.run.judging import Judging
from mooring.run.rows import MEASURES, rows
from mooring.run.sets import Name, Sets, asked
from mooring.run.sweep.answers import folder_of
from mooring.run.trials import Trials, verdict_file
from mooring.score import judges
from mooring.sources import Half, digest

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
    merged = folder_of(choice.lam, choice.modules)
    by_module = [trial for trial in (best, found.test if found else None) if trial]
    return Results(
        title=recipe.report.title,
        recipe=recipe.model_dump(mode="json", exclude={"out"}),
        models=models,
        trials=scored,
        choice=choice,
        judges=[judging.label(judge) for judge in judging.sections],
        notes=[*_notes(recipe, trials), *_misses([*scored, *by_module])],
        gains=kept_gains([*scored, *by_module], choice.lam),  # of two merged ones the last counts
        curves=curves,
        rows=rows(folder, _asked_lams(scored), trials, {BY_MODULE: merged} if choice.modules else {}),
        agreement=list(_agreement(folder, merged, trials.sets, judging)),
        changes=read_changes(folder),
        prompts={
            split: {name: digest(prompts) for name, prompts in asked(trials.sets, split).items()} for split in HALVES
        },
        versions={name: importlib.metadata.version(name) for name in VERSIONS},
        by_module=found,
    )


def _asked_lams(scored: Sequence[Trial]) -> dict[Half, list[float]]:
    """The λ of the models that each split was asked of."""
    return {split: sorted({trial.lam for trial in scored if trial.split == split}) for split in HALVES}


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
                lam = "λ by module" if trial.modules else f"λ = {trial.lam:g}"
                who = trial.model if trial.model != "merged" else lam
                yield (
                    f"{score.name} of {who} ({trial.split}): {missed:g} of {total:g} answers of {score.method} could "
                    "not be read and are left out."
                )


def _agreement(folder: Path, merged: str, sets: Sets, judging: Judging) -> Iterator[Agreement]:
    """How far every two judges agree on the test split, over all three models, set by set."""
    for first, second in combinations(judging.sections, 2):
        for name in sets:
            if name == "task" or not {first, second} <= set(judging.of(name)):
                continue
            both: list[list[Verdict]] = [[], []]
            for key in (folder_of(0.0), folder_of(1.0), merged):
                for found, judge in zip(both, (first, second), strict=True):
                    path = folder / "completions" / key / verdict_file(name, "test", judge)
                    found += [_of(key, verdict, name) for verdict in read_jsonl(path, Verdict)]
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
