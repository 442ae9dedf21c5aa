"""Searches over the models of a run: bisection for the largest λ, and λ by module or by gradient around a single λ.

The rules are those of `mooring.selection`; here models generate, and judges judge, for them.
"""

from collections.abc import Callable, Sequence

from mooring.config import Select
from mooring.merge_point import MergePoint
from mooring.pipeline.module_groups import changed
from mooring.pipeline.plan import Plan
from mooring.records import ByModule, Choice, GradientSearch, Trial
from mooring.reporting.results import Changes
from mooring.selection.bisect import BisectResult, BisectSettings
from mooring.selection.by_gradient import measure_found
from mooring.selection.limits import rules
from mooring.selection.per_module import by_module


def bisection(settings: Select, seed: int) -> BisectSettings:
    """The bisection that keeps the bounds, by the same tests as `choose`; its own rule is that of the first."""
    return BisectSettings(rule=next(iter(rules(settings).values())), seed=seed)


def bisection_notes(found: BisectResult) -> list[str]:
    """What a user should know of a bisection, a line each."""
    notes = [
        f"{MergePoint(small).label} is significantly more often harmful than {MergePoint(large).label}: "
        "a larger λ may be within the bound"
        for small, large in found.reversals
    ]
    end = "no λ is within the bound" if found.lam is None else f"the largest λ found within the bound is {found.lam:g}"
    return [*notes, f"{end}; {found.responses} responses were judged"]


def search_modules(
    plan: Plan,
    trials: Sequence[Trial],
    choice: Choice,
    names: Sequence[str],
    changes: Changes | None,
    measure: Callable[[Sequence[MergePoint]], Sequence[Trial]],
) -> ByModule:
    """Search λ by module around the chosen single λ.

    `trials` are the validation trials of the grid, and `measure` generates and judges merges on validation and returns
    their trials in order; both with flips against the base.
    """
    settings = plan.recipe.select
    base = next(trial for trial in trials if trial.point.is_base)
    single = next(trial for trial in trials if trial.point == choice.point)
    groups = changed(names, changes) if changes else []
    why = "no single λ is within the bound" if not choice.within else ""
    if len(groups) < 2:
        why = "tuning changed fewer than two groups of modules"
    if why:
        return ByModule(
            single=single,
            groups=groups,
            budget=settings.budget,
            confidence=settings.confidence,
            tried=(),
            chosen=None,
            sentence=f"λ by module was not searched: {why}.",
        )
    levels = plan.recipe.merge.lambdas
    return by_module(base, single, groups, levels, settings, choice.metric, settings.budget, measure)


def try_gradient(
    plan: Plan,
    trials: Sequence[Trial],
    choice: Choice,
    found: GradientSearch,
    measure: Callable[[Sequence[MergePoint]], Sequence[Trial]],
) -> ByModule:
    """Test what a search by gradient found around the chosen single λ; arguments as in `search_modules`."""
    base = next(trial for trial in trials if trial.point.is_base)
    single = next(trial for trial in trials if trial.point == choice.point)
    return measure_found(base, single, found, plan.recipe.select, choice.metric, measure)
