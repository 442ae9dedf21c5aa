"""From the files of a run that compares methods or tuned models to the results that its report shows."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

from mooring.merge_point import MergePoint, Series, SeriesPoint, plain
from mooring.pipeline.plan import HALVES, Plan
from mooring.pipeline.results import agreements, gains_of, notes_of, rows, title_of, verdict_of, versions
from mooring.records import Choice, Completion, Trial, read_jsonl
from mooring.reporting.comparison.records import Cost, MethodComparison, SeriesResult, TunedModel


def without_series(choice: Choice) -> Choice:
    """A choice with the points of a run of one method."""
    return dataclasses.replace(
        choice,
        point=plain(choice.point),
        upper={key.rpartition(":")[2]: value for key, value in choice.upper.items()},
        keeps={key.rpartition(":")[2]: value for key, value in choice.keeps.items()},
    )


def assemble_comparison(
    plan: Plan,
    base: Mapping[str, str],
    tuned: Mapping[str, Mapping[str, str]],
    trials: Sequence[Trial],
    choices: Mapping[Series, Choice],
    warnings: Sequence[str],
) -> MethodComparison:
    """Everything that the report shows, read from the run folder.

    Args:
        plan: The run, with all its points known.
        base: The base's `source` and `digest`.
        tuned: Those of the tuned models, by their names in the run.
        trials: Of both splits and all models, with flips against the base.
        choices: The chosen λ of each series.
        warnings: More notes.
    """
    recipe = plan.recipe
    several = len(tuned) > 1
    tested = [point for point in plan.points("test") if isinstance(point, MergePoint)]

    def of(wanted: Callable[[MergePoint], bool]) -> list[Trial]:
        return [dataclasses.replace(t, point=plain(t.point)) for t in trials if wanted(t.point)]

    def is_tuned(point: MergePoint, name: str) -> bool:
        return point.is_tuned and not (isinstance(point, SeriesPoint) and point.series.tuned != name)

    def of_series(series: Series, choice: Choice) -> SeriesResult:
        merged = series.at(choice.point)
        gains = gains_of(trials, plan.ends_of(series)[0], merged) if series.has_lam else {}
        return SeriesResult(
            method=series.method,
            tuned=series.tuned,
            seed=series.seed,
            options=plan.merge_options(series),
            trials=of(lambda point: isinstance(point, SeriesPoint) and point.series == series),
            choice=choice,
            verdict=verdict_of(plan, trials, merged, choice, gains, plan.ends_of(series)[0]),
            gains=gains,
        )

    return MethodComparison(
        title=title_of(recipe),
        recipe=recipe.without_places(),
        base=base,
        base_trials=of(lambda point: point.is_base),
        tuned=[
            TunedModel(
                name=name if several else "",
                source=about["source"],
                digest=about["digest"],
                trials=of(lambda point, name=name: is_tuned(point, name)),  # type: ignore[misc]
            )
            for name, about in tuned.items()
        ],
        series=[of_series(series, choice) for series, choice in choices.items()],
        judges=[plan.judging.label(judge) for judge in plan.judging.sections],
        notes=[*notes_of(plan, trials), *warnings],
        rows=rows(plan, {"test": tested}),
        agreement=list(agreements(plan, tested)),
        prompts={split: {name: plan.digest(split, name) for name in plan.prompts(split)} for split in HALVES},
        versions=versions(),
    )


def measure_cost(plan: Plan, point: MergePoint, seconds: Callable[[str], float | None]) -> Cost:
    """What a model's responses to the test split took; `seconds` tells it of a step by its id."""
    responses = tokens = 0
    took: list[float | None] = []
    for name in plan.prompts("test"):
        attack = plan.attack(name)
        for turn in (*range(1, attack.turns if attack else 1), 0):
            path = plan.paths.completions(point, name, "test", turn=turn)
            if path.is_file():
                found = read_jsonl(path, Completion)
                responses, tokens = responses + len(found), tokens + sum(each.tokens for each in found)
                id_ = f"generate/{point.key}/{name}/test"
                took.append(seconds(f"{id_}/turn-{turn}" if turn else id_))
    known = [each for each in took if each is not None]
    return Cost(
        model=point.key,
        responses=responses,
        tokens=tokens,
        seconds=round(sum(known), 2) if len(known) == len(took) else None,
    )
