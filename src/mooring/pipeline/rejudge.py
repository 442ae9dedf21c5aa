"""Other judges over the completions that a run has kept: nothing is generated, and the run's choice stays."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from mooring.config import Judge, Recipe
from mooring.errors import DataError
from mooring.events import Event
from mooring.ledger import LEDGER, Ledger, check_as_left, read_ledger
from mooring.merge_point import MergePoint
from mooring.pipeline.evaluation import verdict_file
from mooring.pipeline.judging import Judging, said
from mooring.pipeline.module_search import FILE
from mooring.pipeline.run_folder import Store, key_of
from mooring.pipeline.sets import Sets, asked, evaluation_sets
from mooring.records import ByModule, Completion, Half, Kind, Prompt, Score, Verdict, read_jsonl, read_record
from mooring.scoring import judges


@dataclasses.dataclass(frozen=True, slots=True)
class Rejudged:
    """One judge on what one model answered to one set.

    Attributes:
        point: The model.
        split: The half of the set.
        name: The set.
        judge: The judge.
        scores: What it makes of the answers.
        beside: How far it agrees with the run's own judge; `None` where that one has not judged them.
    """

    point: MergePoint
    split: Half
    name: Kind
    judge: str
    scores: Mapping[str, Score]
    beside: judges.Agreement | None


def rejudge(
    folder: Path,
    sections: Sequence[Judge],
    on_progress: Callable[[str, int, int, int], None] | None = None,
    on_say: Callable[[str], None] | None = None,
) -> list[Rejudged]:
    """Judge a run's kept completions by other judges.

    Verdicts and a judge's own answers go below `rejudged/`, to a folder for each judge and model: what the run itself
    holds stays as it is. What is there already is read again, so that a stopped call, made again, goes on.

    Args:
        folder: A run folder.
        sections: The judges.
        on_progress: Called with (what is judged, answers done, answers in all, tokens made).
        on_say: Told what a paid judge will ask at most, in all, before it is asked.

    Raises:
        DataError: It is no run folder, holds no completions, they were edited, or are not of its prompt sets any more.
        OutputError: A run is at work in it.
        UserError: A judge or its model cannot be had.
    """
    if not (folder / LEDGER).is_file():
        raise DataError(f"{folder}: is not a run folder", "name the folder of a run, or a file of completions")
    store, ledger = Store(folder), read_ledger(folder)
    recipe = Recipe.load(folder / "recipe.yaml")
    own = Judging(recipe.score.judges, lambda path, measure: "")
    judging = Judging(sections, lambda path, measure: measure(path))
    kept = list(_kept(folder, ledger, evaluation_sets(recipe)))
    jobs = [(judge, each) for judge in judging.sections for each in kept if judge in judging.of(each.name)]
    if not jobs:
        raise DataError(f"{folder}: holds no completions to judge", "has the run answered anything yet?")
    found = []
    with store.locked():
        for judge in judging.sections:
            _foretell(judging, judge, [each for other, each in jobs if other == judge], on_say)
        for judge, each in jobs:
            out = folder / "rejudged" / f"{judge}-{key_of(judging.about(judge))[:8]}" / each.place.name
            label = f"{each.point.label}: {each.name} ({each.split}) by {judge}"

            def tell(event: Event, label: str = label) -> None:
                if on_progress:
                    on_progress(label, event.done, event.total, event.tokens)

            file = out / verdict_file(each.name, each.split, judge)
            verdicts = judging.judge(judge, each.prompts, each.completions, file, tell)
            first = each.place / verdict_file(each.name, each.split, own.of(each.name)[0])
            check_as_left(folder, ledger, first)
            beside = judges.measure_agreement(read_jsonl(first, Verdict), verdicts) if first.is_file() else None
            scores = judging.scores(judge, each.name, verdicts)
            found.append(Rejudged(each.point, each.split, each.name, judge, scores, beside))
    return found


@dataclasses.dataclass(frozen=True, slots=True)
class _Kept:
    """What one model answered to one set."""

    point: MergePoint
    place: Path
    split: Half
    name: Kind
    prompts: Sequence[Prompt]
    completions: Sequence[Completion]


def _kept(folder: Path, ledger: Ledger, sets: Sets) -> Iterator[_Kept]:
    """The completions of a run, by model, split and set; those of the task aside, merges not taken too."""
    halves: tuple[Half, ...] = ("validation", "test")
    singles = sorted(MergePoint.parse(path.name[4:]) for path in (folder / "completions").glob("lam-*"))
    for point in [*singles, *_taken(folder, ledger)]:
        place = folder / "completions" / point.folder
        for split in halves:
            for name, prompts in asked(sets, split).items():
                if name != "task" and (path := place / f"{name}-{split}.jsonl").is_file():
                    check_as_left(folder, ledger, path)
                    yield _Kept(point, place, split, name, prompts, read_jsonl(path, Completion))


def _taken(folder: Path, ledger: Ledger) -> list[MergePoint]:
    """λ by module, if that was chosen; its file stays when a recipe goes back to a grid."""
    path = folder / FILE
    if Recipe.load(folder / "recipe.yaml").select.search != "modules" or not path.is_file():
        return []
    check_as_left(folder, ledger, path)
    found = read_record(path, ByModule)
    if found.chosen is None:
        return []
    return [found.tried[found.chosen].trial.point]


def _foretell(judging: Judging, judge: str, kept: Sequence[_Kept], on_say: Callable[[str], None] | None) -> None:
    """Say what a paid judge will cost in all."""
    lines = [judging.cost(judge, each.prompts, each.completions) for each in kept]
    if on_say and (costs := [cost for cost in lines if cost]):
        on_say(said(judging.label(judge), costs))
