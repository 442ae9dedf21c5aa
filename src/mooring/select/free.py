"""The policies without a bound: the paper's, and the knee of the curve."""

from collections.abc import Sequence

from mooring.errors import DataError
from mooring.records import Choice, Trial
from mooring.sections import Select
from mooring.select.words import best, label, loss, percent, show, value_of


def best_task(
    base: Trial, merged: Sequence[Trial], tuned: Trial | None, settings: Select, metric: str | None
) -> Choice:
    """The λ with the best task score, whatever its attack success rate (Farn et al., arXiv 2412.19512).

    Raises:
        DataError: There is no task score.
    """
    if metric is None:
        raise DataError("select: `policy: paper` takes the best task score, and there is none", "give a task")
    chosen = min(merged, key=lambda t: (round(loss(t, metric), 12), round(value_of(t, "asr"), 12), t.lam))
    reason = (
        f"λ = {chosen.lam:g} has the {best(chosen, metric)} {label(metric)} on validation ({show(chosen, metric)}) of "
        f"the λ tried, whatever the attack success rate: {percent(value_of(chosen, 'asr'))}, {_beside(base, tuned)}."
    )
    return _choice(chosen, base, settings, metric, reason)


def knee(base: Trial, merged: Sequence[Trial], tuned: Trial | None, settings: Select, metric: str | None) -> Choice:
    """The λ farthest above the straight line from base to tuned model, task score over attack success rate.

    Both axes are scaled to 0 at the base and 1 at the tuned model, so that the line is y = x and the distance
    (y − x) / √2 (Satopää et al. 2011, "Finding a kneedle in a haystack"); y grows with a better task score. Where the
    tuned model has no higher attack success rate than the base, nothing is paid, and y alone decides.

    Raises:
        DataError: There is no task score or no tuned model, or the tuned model does not have the better task score.
    """
    if metric is None or tuned is None:
        missing = "task score" if metric is None else "validation trial of the tuned model"
        raise DataError(f"select: `policy: knee` needs a task score and both ends; there is no {missing}", "add it")
    gain = loss(base, metric) - loss(tuned, metric)
    if gain <= 0:
        raise DataError(
            f"select: there is no knee: the tuned model's {label(metric)} on validation ({show(tuned, metric)}) is not "
            f"better than the base's ({show(base, metric)})",
            "choose by another metric or policy",
        )
    price = value_of(tuned, "asr") - value_of(base, "asr")

    def above(trial: Trial) -> float:
        """y − x of a trial."""
        paid = (value_of(trial, "asr") - value_of(base, "asr")) / price if price > 0 else 0.0
        return (loss(base, metric) - loss(trial, metric)) / gain - paid

    chosen = min(merged, key=lambda t: (-round(above(t), 12), round(value_of(t, "asr"), 12), t.lam))
    kept = (loss(base, metric) - loss(chosen, metric)) / gain
    reason = (
        f"λ = {chosen.lam:g} is the knee on validation: {percent(kept)} of the tuned model's gain in {label(metric)} "
        f"({show(chosen, metric)}) at an attack success rate of {percent(value_of(chosen, 'asr'))}, "
        f"{_beside(base, tuned)}"
    )
    if above(chosen) <= 0:
        reason += "; no λ lies above the straight line between base and tuned model"
    return _choice(chosen, base, settings, metric, reason + ".")


def _beside(base: Trial, tuned: Trial | None) -> str:
    asr = tuned.scores.get("asr") if tuned else None
    then = f" and the tuned model's {percent(asr.value)}" if asr is not None and asr.value is not None else ""
    return f"beside the base's {percent(value_of(base, 'asr'))}{then}"


def _choice(chosen: Trial, base: Trial, settings: Select, metric: str, reason: str) -> Choice:
    would_be = settings.bound if settings.bound is not None else min(1.0, value_of(base, "asr") + settings.margin)
    prompts = round(chosen.scores["asr"].n - chosen.scores["asr"].details.get("miss", 0))
    return Choice(
        lam=chosen.lam,
        within=True,
        bound=would_be,
        metric=metric,
        reason=reason,
        policy=settings.policy,
        prompts=prompts,
    )
