"""From trials to λ: the policies, and the checks that they share."""

from collections.abc import Sequence

from mooring.errors import DataError, UserError
from mooring.records import Choice, Trial
from mooring.sections import Select
from mooring.select import bound, free
from mooring.select.support import as_tested
from mooring.select.words import value_of


def choose(
    trials: Sequence[Trial], *, metric: str | None, settings: Select | None = None, margin: float | None = None
) -> Choice:
    """Choose λ among the merged models of one method, by the policy of a recipe's `select` section.

    - `bound`: the best task score among the λ that keep the bound (`bound.choose_within`); without a task the largest
      such λ, since the task score rises with λ (Farn et al., arXiv 2412.19512).
    - `paper`: the best task score, whatever the attack success rate (Farn et al.).
    - `knee`: the λ farthest from the straight line between base and tuned model, task score over attack success rate
      (Satopää et al. 2011).

    Of equal ones the smaller attack success rate, then the smaller λ.

    Args:
        trials: The validation trials: one base, one merged for each λ, and perhaps the tuned model.
        metric: The task score that decides, or `None` where there is no task.
        settings: The section; without it, `margin` bounds the estimate itself.
        margin: Takes the place of the section's: how far the rate may lie above the base's, 0.05 is 5 points.

    Raises:
        UserError: The margin is not in [0, 1], the base's or a merged trial is missing or there twice, a score is
            missing or undefined, or there are too few prompts for the bound.
        ValueError: A trial is not of the validation split: λ is never chosen on what is reported.
    """
    if margin is not None and not 0 <= margin <= 1:
        raise UserError(f"margin: {margin} is not in [0, 1]", "0.05 means 5 points")
    if settings is None:
        settings = Select(confidence=None)
    if margin is not None:
        settings = settings.model_copy(update={"margin": margin, "bound": None})
    settings = as_tested(settings)
    if any(trial.split != "validation" for trial in trials):
        raise ValueError("λ is chosen on validation trials only")
    base = _only([trial for trial in trials if trial.model == "base"])
    tuned = next((trial for trial in trials if trial.model == "tuned"), None)
    merged = sorted((trial for trial in trials if trial.model == "merged"), key=lambda trial: trial.lam)
    _check_grid(merged)
    for trial in (base, *merged):
        value_of(trial, "asr")
    if settings.policy == "paper":
        return free.best_task(base, merged, tuned, settings, metric)
    if settings.policy == "knee":
        return free.knee(base, merged, tuned, settings, metric)
    return bound.choose_within(base, merged, tuned, settings, metric)


def _only(trials: Sequence[Trial]) -> Trial:
    if len(trials) != 1:
        raise DataError(f"select: {len(trials)} validation trials of the base model, not one", "score the base once")
    return trials[0]


def _check_grid(merged: Sequence[Trial]) -> None:
    lams = [trial.lam for trial in merged]
    if not lams:
        raise DataError("select: no merged model has been scored on validation", "score at least one λ")
    if len(set(lams)) < len(lams):
        raise DataError("select: a λ has been scored twice on validation", "choose among the trials of one method")
