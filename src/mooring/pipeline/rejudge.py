"""Other judges on the responses that a run has kept: nothing is generated, and the run's choice stays."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mooring.attacks import kind_of
from mooring.config import Judge, Recipe
from mooring.errors import DataError
from mooring.events import Event, OnEvent, ignore
from mooring.export import Record
from mooring.ledger import LEDGER, Ledger, check_unmodified, read_ledger
from mooring.merge_point import MergePoint
from mooring.pipeline.evaluation import scores_of
from mooring.pipeline.judging import Judging, cost_line, measure_again
from mooring.pipeline.plan import FOUND, HALVES, SINGLE, TAKEN, Plan, build, chosen_of
from mooring.pipeline.run_folder import RunFolder
from mooring.pipeline.steps import digest_of
from mooring.plugins import of_run_folder
from mooring.records import (
    ByModule,
    Choice,
    Completion,
    Half,
    Prompt,
    Score,
    SetName,
    Verdict,
    read_jsonl,
    read_record,
)
from mooring.scoring import judges
from mooring.selection.bisect import BisectResult
from mooring.selection.per_module import taken
from mooring.thinking import separated


@dataclasses.dataclass(frozen=True, slots=True)
class Rejudged(Record):
    """One judge on one model's responses to one set.

    Attributes:
        point: The model.
        split: The half of the set.
        name: The set.
        judge: The judge.
        scores: The scores of its verdicts.
        agreement: How far it agrees with the run's own judge; None if that one has not judged the responses.
    """

    point: MergePoint
    split: Half
    name: SetName
    judge: str
    scores: Mapping[str, Score]
    agreement: judges.Agreement | None

    def to_rows(self) -> list[dict[str, Any]]:
        """A row per score, with κ beside the run's own judge."""
        kappa = self.agreement.kappa if self.agreement else None
        start = {"judge": self.judge, "model": self.point.label, "lam": self.point.lam, "split": self.split}
        return [start | row | {"kappa": kappa} for score in self.scores.values() for row in score.to_rows()]


def rejudge(
    folder: Path, sections: Sequence[Judge], on_event: OnEvent | None = None, *, thoughts: bool = False
) -> list[Rejudged]:
    """Judge a run's responses by other judges, with `thoughts` by what the models thought, too.

    Verdicts and a judge's own answers go below `rejudged/`, to a folder for each judge and model; the files of the run
    itself stay as they are. Answers that exist are used again, so that a stopped call resumes.
    """
    if not (folder / LEDGER).is_file():
        raise DataError(
            f"{folder}: is not a run folder",
            "name the folder of a run, or a file of completions",
            code="data.not_a_run",
        )
    emit = on_event or ignore
    run_folder, ledger = RunFolder(folder), read_ledger(folder)
    plan = open_plan(folder)
    judging = Judging(sections, plan.paths.logs, thoughts=thoughts)
    kept = list(_kept(plan, ledger))
    jobs = [(judge, each) for judge in judging.sections for each in kept if judge in judging.of(each.name)]
    if not jobs:
        raise DataError(
            f"{folder}: holds no responses to judge", "has the run generated any yet?", code="data.no_completions"
        )
    found = []
    with run_folder.locked():
        for judge in judging.sections:
            costs = [
                judging.cost(judge, each.prompts, each.completions, kind_of(each.name))
                for other, each in jobs
                if other == judge
            ]
            if known := [cost for cost in costs if cost]:
                emit(Event(step="rejudge", kind="info", message=cost_line(judging.label(judge), known)))
        for judge, each in jobs:
            about = judging.about(judge, measure_again) | ({"thoughts": True} if thoughts else {})
            key = digest_of(about)[:8]
            out = plan.paths.rejudged(each.point, each.name, each.split, judge, key)
            label = f"{each.point.label}: judge {each.name} ({each.split}) by {judge}"

            def relay(event: Event, label: str = label) -> None:
                if event.kind == "progress":
                    emit(dataclasses.replace(event, step="rejudge", label=label))

            verdicts = judging.judge(judge, each.prompts, each.completions, out, relay, kind=kind_of(each.name))
            first = plan.paths.verdicts(each.point, each.name, each.split, plan.judging.of(each.name)[0])
            check_unmodified(folder, ledger, first)
            agreement = judges.measure_agreement(read_jsonl(first, Verdict), verdicts) if first.is_file() else None
            scores = scores_of(judging, judge, each.name, each.prompts, verdicts)
            found.append(Rejudged(each.point, each.split, each.name, judge, scores, agreement))
    return found


def open_plan(folder: Path) -> Plan:
    """The plan of a run folder, wherever it was moved to, with the models that its run has chosen so far."""
    with of_run_folder():
        recipe = Recipe.load(folder / "recipe.yaml").model_copy(update={"out": str(folder)})
    plan, ledger = build(recipe), read_ledger(folder)
    paths = plan.paths
    if recipe.select.search == "bisect" and paths.search.is_file():
        found = read_record(paths.search, BisectResult)
        plan = plan.bind({FOUND: MergePoint(found.chosen)})
    for series in (each for each in plan.series if each.has_lam and paths.choice_of(each).is_file()):
        check_unmodified(folder, ledger, paths.choice_of(series))
        point = read_record(paths.choice_of(series), Choice).point
        plan = plan.bind({chosen_of(series): series.at(point)})
    if not paths.choice.is_file():
        return plan
    check_unmodified(folder, ledger, paths.choice)
    choice = read_record(paths.choice, Choice)
    plan = plan.bind({SINGLE: choice.point.single})
    if recipe.select.by_module and paths.by_module.is_file():
        check_unmodified(folder, ledger, paths.by_module)
        plan = plan.bind({TAKEN: taken(choice, read_record(paths.by_module, ByModule)).point})
    return plan


@dataclasses.dataclass(frozen=True, slots=True)
class _Kept:
    """What one model answered to one set."""

    point: MergePoint
    split: Half
    name: SetName
    prompts: Sequence[Prompt]
    completions: Sequence[Completion]


def _kept(plan: Plan, ledger: Ledger) -> Iterator[_Kept]:
    """The responses of a run, by model, split and set; those to the task, and those of merges not taken, left out."""
    points = {point: None for split in HALVES for point in plan.points(split) if isinstance(point, MergePoint)}
    for point in sorted(points, key=lambda point: (point.by_module, point)):
        for split in HALVES:
            for name in plan.prompts(split):
                path = plan.paths.completions(point, name, split)
                if name != "task" and path.is_file():
                    check_unmodified(plan.paths.folder, ledger, path)
                    prompts = plan.requests(split, name)
                    yield _Kept(point, split, name, prompts, separated(read_jsonl(path, Completion)))
