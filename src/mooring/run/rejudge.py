"""Other judges over the completions that a run has kept: nothing is generated, and the run's choice stays."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from mooring.errors import DataError
from mooring.recipe import Judge, Recipe
from mooring.records import Completion, Score, Verdict, read_jsonl
from mooring.run.judging import Judging
from mooring.run.sets import Name, asked, evaluation_sets
from mooring.run.store import LEDGER
from mooring.run.trials import verdict_file
from mooring.score import judges
from mooring.sources import Half


@dataclasses.dataclass(frozen=True, slots=True)
class Rejudged:
    """One judge on what one model answered to one set.

    Attributes:
        lam: The model's λ.
        split: The half of the set.
        name: The set.
        judge: The judge.
        scores: What it makes of the answers.
        beside: How far it agrees with the run's own judge; `None` where it is that one.
    """

    lam: float
    split: Half
    name: Name
    judge: str
    scores: Mapping[str, Score]
    beside: judges.Agreement | None


def rejudge(
    folder: Path, sections: Sequence[Judge], on_progress: Callable[[str, int, int, int], None] | None = None
) -> list[Rejudged]:
    """Judge a run's kept completions by other judges.

    Verdicts and a judge's own answers are written beside the completions. What is there already is read again, so
    that a stopped call, made again, goes on.

    Args:
        folder: A run folder.
        sections: The judges.
        on_progress: Called with (what is judged, answers done, answers in all, tokens made).

    Raises:
        DataError: It is no run folder, holds no completions, or they are not of its prompt sets any more.
        UserError: A judge or its model cannot be had.
    """
    if not (folder / LEDGER).is_file():
        raise DataError(f"{folder}: is not a run folder", "name the folder of a run, or a file of completions")
    recipe = Recipe.load(folder / "recipe.yaml")
    own = Judging(recipe.score.judges, lambda path, measure: "")
    judging = Judging(sections, lambda path, measure: measure(path))
    sets = evaluation_sets(recipe)
    found: list[Rejudged] = []
    places = sorted((folder / "completions").glob("lam-*"), key=lambda path: float(path.name.removeprefix("lam-")))
    halves: tuple[Half, ...] = ("validation", "test")
    for judge in judging.sections:
        for place in places:
            lam = float(place.name.removeprefix("lam-"))
            for split in halves:
                for name, prompts in asked(sets, split).items():
                    kept = place / f"{name}-{split}.jsonl"
                    if name == "task" or judge not in judging.of(name) or not kept.is_file():
                        continue
                    completions = read_jsonl(kept, Completion)
                    out = place / verdict_file(name, split, judge)
                    label = f"λ = {lam:g}: {name} ({split}) by {judge}"

                    def tell(done: int, total: int, tokens: int, label: str = label) -> None:
                        if on_progress:
                            on_progress(label, done, total, tokens)

                    verdicts = judging.judge(judge, prompts, completions, out, tell)
                    beside = _beside(place, name, split, own.of(name)[0], judge, verdicts)
                    found.append(Rejudged(lam, split, name, judge, judging.scores(judge, name, verdicts), beside))
    if not found:
        raise DataError(f"{folder}: holds no completions to judge", "has the run answered anything yet?")
    return found


def _beside(
    place: Path, name: Name, split: Half, first: str, judge: str, verdicts: Sequence[Verdict]
) -> judges.Agreement | None:
    path = place / verdict_file(name, split, first)
    return judges.agreement(read_jsonl(path, Verdict), verdicts) if judge != first and path.is_file() else None
