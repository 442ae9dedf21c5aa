"""From trials to λ: the policies, and the checks that they share."""

from collections.abc import Sequence

from mooring.config import Select
from mooring.errors import DataError, UserError
from mooring.merge_point import MergePoint
from mooring.metrics import METRICS
from mooring.records import Choice, Trial
from mooring.selection.explain import best, label, loss, percent, show, value_of
from mooring.selection.limits import TOLERANCE, Limit, as_tested, enough_pairs, enough_prompts, limits

# --- The policies without a bound: the paper's, and the knee of the curve ---


def best_task(
    base: Trial, merged: Sequence[Trial], tuned: Trial | None, settings: Select, metric: str | None
) -> Choice:
    """The λ with the best task score, whatever its attack success rate (Farn et al., arXiv 2412.19512).

    Raises:
        DataError: There is no task score.
    """
    if metric is None:
        raise DataError(
            "select: `policy: paper` takes the best task score, and there is none",
            "give a task",
            code="data.no_task_score",
        )
    chosen = min(merged, key=lambda t: (round(loss(t, metric), 12), round(value_of(t, "asr"), 12), t.point))
    reason = (
        f"{chosen.point.label} has the {best(chosen, metric)} {label(metric)} on validation "
        f"({show(chosen, metric)}) of the λ tried, whatever the attack success rate: "
        f"{percent(value_of(chosen, 'asr'))}, {_beside(base, tuned)}."
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
        raise DataError(
            f"select: `policy: knee` needs a task score and both ends; there is no {missing}",
            "add it",
            code="data.no_task_score",
        )
    gain = loss(base, metric) - loss(tuned, metric)
    if gain <= 0:
        raise DataError(
            f"select: there is no knee: the tuned model's {label(metric)} on validation ({show(tuned, metric)}) is not "
            f"better than the base's ({show(base, metric)})",
            "choose by another metric or policy",
            code="data.no_knee",
        )
    price = value_of(tuned, "asr") - value_of(base, "asr")

    def above(trial: Trial) -> float:
        """y − x of a trial."""
        paid = (value_of(trial, "asr") - value_of(base, "asr")) / price if price > 0 else 0.0
        return (loss(base, metric) - loss(trial, metric)) / gain - paid

    chosen = min(merged, key=lambda t: (-round(above(t), 12), round(value_of(t, "asr"), 12), t.point))
    kept = (loss(base, metric) - loss(chosen, metric)) / gain
    reason = (
        f"{chosen.point.label} is the knee on validation: {percent(kept)} of the tuned model's gain in {label(metric)} "
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
        point=chosen.point,
        within=True,
        bound=would_be,
        metric=metric,
        reason=reason,
        policy=settings.policy,
        prompts=prompts,
    )


# --- The policy `bound`: the best task score among the λ that keep a bound, with a stated risk ---


def choose_within(
    base: Trial, merged: Sequence[Trial], tuned: Trial | None, settings: Select, metric: str | None
) -> Choice:
    """Choose among the λ whose rates are held within their limits (`limits`).

    With a confidence c, λ are tested from the smallest up, and testing ends with the first that does not pass: so the
    chance that any λ is let by whose true rate is over a bound is at most 1 − c in all, however many λ there are
    (fixed-sequence testing, Maurer, Hothorn & Lehmacher 1995; for risks, Angelopoulos et al. 2021, "Learn then Test").
    Without one, estimates are compared with the bound, and all λ that keep it stand to be chosen.

    Where no λ does, the one that exceeds its bounds least, then the smaller, marked `within=False`.

    Args:
        base: The base's trial.
        merged: The merged models', λ rising.
        tuned: The tuned model's, for the reason.
        settings: The recipe's section.
        metric: The task score that decides; the largest λ without one.

    Raises:
        DataError: A score is missing or undefined, or there are too few prompts.
    """
    held = limits(base, merged, settings)
    sure = settings.confidence is not None
    keeps = [trial for trial in merged if not _excess(held, trial.point)]
    allowed, skipped = keeps, []
    if sure:
        first_over = next((trial.point for trial in merged if trial not in keeps), None)
        allowed = [trial for trial in keeps if first_over is None or trial.point < first_over]
        skipped = [trial for trial in keeps if trial not in allowed]
    if allowed:
        chosen = min(allowed, key=lambda trial: _rank(trial, metric))
        over = [trial for trial in merged if trial not in allowed and trial not in skipped]
        reason = _why(chosen, over, held, settings, metric)
        if skipped and _rank(skipped[-1], metric)[0] < _rank(chosen, metric)[0]:
            reason += f"; {skipped[-1].point.label} is not taken, since a smaller one does not keep the bound"
    else:
        chosen = min(merged, key=lambda trial: (round(_excess(held, trial.point), 12), trial.point))
        reason = _why_none(chosen, held, settings)
    asr = held[0]
    reason += _tuned_too(base, tuned, settings, metric)
    if asr.most >= 1 - TOLERANCE:
        lets = f"the base lets {percent(value_of(base, 'asr'))} through, so that "
        high = settings.bound is not None or settings.margin >= 1  # whatever the base does
        reason += f"; {'' if high else lets}the bound on the attack success rate holds nothing back"
    return Choice(
        point=chosen.point,
        within=bool(allowed),
        bound=asr.most,
        metric=metric or "lam",
        reason=reason + ".",
        confidence=settings.confidence,
        upper={point.key: value for point, value in asr.held.items()} if sure else {},
        keeps=keeps_bound(asr, merged if tuned is None else [*merged, tuned], sure=sure),
        prompts=min(count for limit in held for count in limit.prompts.values()),
    )


def keeps_bound(asr: Limit, trials: Sequence[Trial], *, sure: bool) -> dict[str, bool]:
    """Which models are shown to keep the bound on ASR, and which are not.

    Args:
        asr: The bound, with what was compared with it.
        trials: The models' validation trials, λ rising.
        sure: Whether upper confidence limits were tested. The smallest λ whose limit is over the bound ends the test:
            neither it nor a larger one is shown to keep it. Otherwise estimates were compared, one by one.

    Returns:
        Verdicts by `MergePoint.key`. A model that was not tested and is within the bound by its estimate has none.
    """
    found: dict[str, bool] = {}
    ended = False
    for trial in trials:
        score = trial.scores.get(asr.score)
        if score is None or score.value is None:
            continue
        point, over = trial.point, score.value - asr.most > TOLERANCE
        tested = sure and point in asr.held
        ended = ended or (tested and asr.excess(point) > 0)
        if over or ended:
            found[point.key] = False
        elif tested or not sure:
            found[point.key] = True
    return found


def _excess(held: Sequence[Limit], point: MergePoint) -> float:
    return max(limit.excess(point) for limit in held)


def _rank(trial: Trial, metric: str | None) -> tuple[float, ...]:
    """Smallest is best. Rounded, so that equal quotients tie whatever their last bit."""
    if metric is None:
        return (-trial.point.lam,)
    return (round(loss(trial, metric), 12), round(value_of(trial, "asr"), 12), trial.point.lam)


def _why(chosen: Trial, over: Sequence[Trial], held: Sequence[Limit], settings: Select, metric: str | None) -> str:
    """Why this λ, and what the next better one would have cost."""
    asr, *others = held
    sure = f", {_sure(settings)}" if settings.confidence is not None else ""
    words = (
        asr.words
        + "".join(f" and whose {METRICS[limit.score].short} is at most {limit.words}" for limit in others)
        + sure
    )
    own = _own(chosen, asr, settings)
    if settings.search == "bisect":  # no other λ was measured on everything
        text = f"{chosen.point.label} (found by bisection) has an attack success rate on validation ({own}) of at most "
        text += words if metric is None else f"{words}; its {label(metric)} is {show(chosen, metric)}"
    elif metric is None:
        text = f"{chosen.point.label} is the largest whose attack success rate on validation ({own}) is at most {words}"
    else:
        text = (
            f"{chosen.point.label} has the {best(chosen, metric)} {label(metric)} on validation "
            f"({show(chosen, metric)}) of the λ whose attack success rate is at most {words} (its own: {own})"
        )
    rivals = [trial for trial in over if _rank(trial, metric)[0] < _rank(chosen, metric)[0]]
    if not rivals:
        return text
    rival = min(rivals, key=lambda trial: (value_of(trial, "asr"), _rank(trial, metric)))
    score = "" if metric is None else f" scores {show(rival, metric)} but"
    limit = next(limit for limit in held if limit.excess(rival.point))
    what = percent(limit.held[rival.point])
    if limit.score != "asr":
        how = f"may refuse up to {what} of harmless requests" if sure else f"refuses {what} of harmless requests"
    else:
        how = f"may let up to {what} through" if sure else f"lets {what} through"
    return f"{text}; {rival.point.label}{score} {how}"


def _why_none(chosen: Trial, held: Sequence[Limit], settings: Select) -> str:
    """That none keeps the bound, which comes nearest, and how many prompts would show that it does."""
    limit = max(held, key=lambda limit: limit.excess(chosen.point))
    text = f"No λ tried has an {METRICS[limit.score].short} on validation of at most {limit.words}"
    if not limit.words.startswith(percent(limit.most)):
        text += f" ({percent(limit.most)})"
    if settings.confidence is None:
        return f"{text}; {chosen.point.label} comes nearest, with {percent(value_of(chosen, limit.score))}"
    text += f", {_sure(settings)}; {chosen.point.label} comes nearest, with {_own(chosen, limit, settings)}"
    details, rate = chosen.scores[limit.score].details, value_of(chosen, limit.score)
    if limit.score == "asr" and settings.bound is not None:
        enough = enough_prompts(rate, settings.bound, settings.confidence)
    elif "pairs" in details:
        margin = settings.margin if limit.score == "asr" else settings.over_refusal_margin or 0.0
        worse, better = details["worse"] / details["pairs"], details["better"] / details["pairs"]
        enough = enough_pairs(worse, better, margin, settings.confidence)
    else:
        return text
    if enough is None:
        return f"{text}; that is over the bound by itself, and more prompts would not help"
    had = limit.prompts[chosen.point]
    return f"{text}; at these rates about {enough} prompts would show that it keeps the bound, not {had}"


def _own(trial: Trial, limit: Limit, settings: Select) -> str:
    rate = percent(value_of(trial, limit.score))
    return rate if settings.confidence is None else f"{rate}, at most {percent(limit.held[trial.point])}"


def _sure(settings: Select) -> str:
    assert settings.confidence is not None
    return f"with {100 * settings.confidence:g} % confidence"


def _tuned_too(base: Trial, tuned: Trial | None, settings: Select, metric: str | None) -> str:
    """A note where merging was not needed: the tuned model keeps the bound by itself."""
    if tuned is None:
        return ""
    try:
        held = limits(base, [tuned], settings)
    except DataError:  # not measured, or not on enough prompts: there is nothing to note
        return ""
    if _excess(held, tuned.point):
        return ""
    task = tuned.scores.get(metric) if metric else None
    score = f" and a {label(metric)} of {show(tuned, metric)}" if metric and task and task.value is not None else ""
    return f"; the tuned model itself is within the bound, with {_own(tuned, held[0], settings)}{score}"


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
        raise UserError(f"margin: {margin} is not in [0, 1]", "0.05 means 5 points", code="usage.margin_out_of_range")
    if settings is None:
        settings = Select(confidence=None)
    if margin is not None:
        settings = settings.model_copy(update={"margin": margin, "bound": None})
    settings = as_tested(settings)
    if any(trial.split != "validation" for trial in trials):
        raise ValueError("λ is chosen on validation trials only")
    base = _only([trial for trial in trials if trial.point.is_base])
    tuned = next((trial for trial in trials if trial.point.is_tuned), None)
    merged = sorted((trial for trial in trials if trial.point.role == "merged"), key=lambda trial: trial.point)
    _check_grid(merged)
    for trial in (base, *merged):
        value_of(trial, "asr")
    if settings.policy == "paper":
        return best_task(base, merged, tuned, settings, metric)
    if settings.policy == "knee":
        return knee(base, merged, tuned, settings, metric)
    return choose_within(base, merged, tuned, settings, metric)


def _only(trials: Sequence[Trial]) -> Trial:
    if len(trials) != 1:
        raise DataError(
            f"select: {len(trials)} validation trials of the base model, not one",
            "score the base once",
            code="data.not_one_base",
        )
    return trials[0]


def _check_grid(merged: Sequence[Trial]) -> None:
    points = [trial.point for trial in merged]
    if not points:
        raise DataError(
            "select: no merged model has been scored on validation", "score at least one λ", code="data.no_merged_trial"
        )
    if len(set(points)) < len(points):
        raise DataError(
            "select: a λ has been scored twice on validation",
            "choose among the trials of one method",
            code="data.duplicate_trial",
        )
