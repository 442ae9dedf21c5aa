"""The gentler tunings of a run beside its merge: their settings in words, and what `selection.baselines` compares."""

from collections.abc import Mapping, Sequence

from mooring.baselines import KINDS, Baseline
from mooring.config import Recipe
from mooring.merge_point import BASE, MergePoint
from mooring.pipeline.plan import Plan
from mooring.records import Baselines, Choice, Half, Trial
from mooring.selection.baselines import Tuned, compare
from mooring.stats import Hits


def compare_baselines(
    plan: Plan,
    choice: Choice,
    trials: Sequence[Trial],
    scored: Mapping[Baseline, Mapping[Half, Trial]],
    digests: Mapping[Baseline, str],
    hits: Mapping[str, Mapping[MergePoint, Hits]],
) -> Baselines:
    """Compare a run's chosen merge with its gentler tunings.

    Args:
        plan: The run.
        choice: The chosen λ.
        trials: Those of the report, of both halves.
        scored: The trials of each tuning by half, with flips against the base.
        digests: Those of the adapters' weights.
        hits: The verdicts of the test half by score and model, those of the chosen merge and of every tuning.
    """
    points = plan.baselines
    by_place = {(trial.split, trial.point): trial for trial in trials}
    metrics = [*plan.metrics["test"], *(f"lm_eval:{name}" for name in plan.recipe.score.lm_eval)]
    metric = choice.metric if choice.metric in metrics else next(iter(metrics), None)
    return compare(
        by_place["validation", BASE],
        by_place["test", choice.point],
        _of(hits, choice.point),
        [
            Tuned(
                name=each.text,
                settings=in_words(plan.recipe, each),
                digest=digests[each],
                trials=scored[each],
                hits=_of(hits, points[each]),
            )
            for each in points
        ],
        choice=choice,
        settings=plan.recipe.select,
        metric=metric,
    )


def _of(hits: Mapping[str, Mapping[MergePoint, Hits]], point: MergePoint) -> dict[str, Hits]:
    return {name: by_point[point] for name, by_point in hits.items() if point in by_point}


def in_words(recipe: Recipe, baseline: Baseline) -> str:
    """What a gentler tuning changes: `learning_rate 0.000433 (0.0013): the learning rate is divided by 3`."""
    assert recipe.tune is not None
    before, after = recipe.tune, recipe.baselines[baseline]
    changed = []
    for name in baseline.changes(before.model_dump()):
        old, new = getattr(before, name), getattr(after, name)
        changed.append(f"{name} {new:.3g}" + ("" if not old else f" (tuned: {old:.3g})"))
    return f"{', '.join(changed)}: {KINDS[baseline.kind].what}"
