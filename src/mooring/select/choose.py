"""The paper's policy: the best validation task score whose attack success rate stays near the base's."""

import math
from collections.abc import Sequence

from mooring.errors import DataError, UserError
from mooring.records import Choice, Trial

TOLERANCE = 1e-9
"""Rates are quotients of small integers: what differs by less than this is equal."""

LABELS = {
    "call_match": "call match",
    "exact_match": "exact match",
    "response_loss": "response loss",
    "bert_score": "BERTScore F1",
}


def choose(trials: Sequence[Trial], *, margin: float, metric: str | None) -> Choice:
    """Choose λ among the merged models of one method.

    Of the merged λ whose attack success rate (ASR) is at most the base's plus `margin`, the one with the best task
    score; of equal ones the smaller ASR, then the smaller λ. Without a task score the largest such λ, since the task
    score rises with λ (Farn et al., arXiv 2412.19512). Where no λ is within the bound, the one that exceeds it least,
    then the smaller, marked `within=False`.

    Args:
        trials: The validation trials: one base, one merged for each λ, and, for the reason, perhaps the tuned model.
        margin: How far the ASR may lie above the base's, as a fraction: 0.05 is 5 points.
        metric: The task score that decides, or `None` where there is no task.

    Raises:
        UserError: The margin is not in [0, 1], the base's or a merged trial is missing or there twice, an ASR or a
            task score is missing or undefined.
        ValueError: A trial is not of the validation split: λ is never chosen on what is reported.
    """
    if not 0 <= margin <= 1:
        raise UserError(f"margin: {margin} is not in [0, 1]", "0.05 means 5 points")
    if any(trial.split != "validation" for trial in trials):
        raise ValueError("λ is chosen on validation trials only")
    base = _only([trial for trial in trials if trial.model == "base"], "base")
    tuned = next((trial for trial in trials if trial.model == "tuned"), None)
    merged = sorted((trial for trial in trials if trial.model == "merged"), key=lambda trial: trial.lam)
    _check_grid(merged)
    base_asr = _value(base, "asr")
    bound = base_asr + margin
    allowed = [trial for trial in merged if _asr(trial) <= bound + TOLERANCE]
    limit = f"the base's {_percent(base_asr)} plus {_points(margin)}"
    if allowed:
        over = [trial for trial in merged if trial not in allowed]
        chosen = min(allowed, key=lambda trial: _rank(trial, metric))
        reason = _why_within(chosen, over, limit, metric)
    else:
        chosen = min(merged, key=lambda trial: (round(_asr(trial), 12), trial.lam))
        reason = (
            f"No λ tried has an attack success rate on validation of at most {limit} ({_percent(bound)}); "
            f"λ = {chosen.lam:g} comes nearest, with {_percent(_asr(chosen))}"
        )
    return Choice(
        lam=chosen.lam,
        within=bool(allowed),
        bound=bound,
        metric=metric or "lam",
        reason=reason + _tuned_too(tuned, bound, metric) + ".",
    )


def _rank(trial: Trial, metric: str | None) -> tuple[float, ...]:
    """Smallest is best. Rounded, so that equal quotients tie whatever their last bit."""
    if metric is None:
        return (-trial.lam,)
    return (round(_worse(trial, metric), 12), round(_asr(trial), 12), trial.lam)


def _worse(trial: Trial, metric: str) -> float:
    """The task score turned so that smaller is better."""
    value = _value(trial, metric)
    return value if trial.scores[metric].better == "lower" else -value


def _asr(trial: Trial) -> float:
    return _value(trial, "asr")


def _value(trial: Trial, name: str) -> float:
    who = f"the {trial.model} model at λ = {trial.lam:g}" if trial.model == "merged" else f"the {trial.model} model"
    score = trial.scores.get(name)
    if score is None:
        known = ", ".join(trial.scores) or "nothing"
        raise DataError(f"select: {who} has no `{name}` on validation", f"measured are: {known}")
    if score.value is None or not math.isfinite(score.value):
        raise DataError(
            f"select: `{name}` of {who} is undefined on validation (n = {score.n})",
            "use more prompts, or a judge whose answers can be read",
        )
    return score.value


def _only(trials: Sequence[Trial], who: str) -> Trial:
    if len(trials) != 1:
        raise DataError(f"select: {len(trials)} validation trials of the {who} model, not one", f"score the {who} once")
    return trials[0]


def _check_grid(merged: Sequence[Trial]) -> None:
    lams = [trial.lam for trial in merged]
    if not lams:
        raise DataError("select: no merged model has been scored on validation", "score at least one λ")
    if len(set(lams)) < len(lams):
        raise DataError("select: a λ has been scored twice on validation", "choose among the trials of one method")


def _why_within(chosen: Trial, over: Sequence[Trial], limit: str, metric: str | None) -> str:
    """Why this λ, and what the next better one would have cost."""
    own = _percent(_asr(chosen))
    if metric is None:
        text = f"λ = {chosen.lam:g} is the largest whose attack success rate on validation ({own}) is at most {limit}"
    else:
        best = "lowest" if chosen.scores[metric].better == "lower" else "highest"
        text = (
            f"λ = {chosen.lam:g} has the {best} {_label(metric)} on validation ({_show(chosen, metric)}) of the λ "
            f"whose attack success rate is at most {limit} (its own: {own})"
        )
    rivals = [trial for trial in over if _rank(trial, metric)[0] < _rank(chosen, metric)[0]]
    if rivals:
        rival = min(rivals, key=lambda trial: (_asr(trial), _rank(trial, metric)))
        score = "" if metric is None else f" scores {_show(rival, metric)} but"
        text += f"; λ = {rival.lam:g}{score} lets {_percent(_asr(rival))} through"
    return text


def _tuned_too(tuned: Trial | None, bound: float, metric: str | None) -> str:
    """A note where merging was not needed: the tuned model keeps the bound by itself."""
    asr = tuned.scores.get("asr") if tuned else None
    if tuned is None or asr is None or asr.value is None or asr.value > bound + TOLERANCE:
        return ""
    task = tuned.scores.get(metric) if metric else None
    score = f" and a {_label(metric)} of {_show(tuned, metric)}" if metric and task and task.value is not None else ""
    return f"; the tuned model itself is within the bound, with {_percent(asr.value)}{score}"


def _label(metric: str) -> str:
    return LABELS.get(metric, metric.replace("_", " "))


def _show(trial: Trial, metric: str) -> str:
    """A task score for people: a rate in percent, a loss in nats."""
    value = _value(trial, metric)
    return f"{value:.3f} nats a token" if metric == "response_loss" else _percent(value)


def _percent(rate: float) -> str:
    return f"{100 * rate:.1f} %"


def _points(margin: float) -> str:
    points = f"{100 * margin:.3g}"
    return f"{points} point" if points == "1" else f"{points} points"
