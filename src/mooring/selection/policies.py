"""From trials to λ: the policies of a recipe's `select` section."""

from collections.abc import Sequence

from mooring.attacks.names import attack_of
from mooring.config import Select
from mooring.errors import DataError, UserError
from mooring.merge_point import MergePoint
from mooring.records import Choice, Trial
from mooring.selection.corrected import Corrections, corrected_trials
from mooring.selection.explain import best, label, loss, percent, show, value_of
from mooring.selection.limits import (
    MOST_PROMPTS,
    TOLERANCE,
    Limit,
    as_tested,
    enough_pairs,
    enough_prompts,
    limits,
    rules,
)
from mooring.selection.sensitivity import describe


def choose(
    trials: Sequence[Trial],
    *,
    metric: str | None,
    settings: Select | None = None,
    margin: float | None = None,
    corrections: Corrections | None = None,
) -> Choice:
    """Choose λ among the merged models of one method, by the policy of a recipe's `select` section.

    - `bound`: the best task score among the λ within the bound (`choose_within`); without a task the largest such λ,
      since the task score rises with λ (Farn et al., arXiv 2412.19512).
    - `paper`: the best task score, whatever the attack success rate (Farn et al.).
    - `knee`: the λ farthest from the straight line between base and tuned model, task score over attack success rate
      (Satopää et al. 2011).

    Ties go to the smaller attack success rate, then to the smaller λ.

    Args:
        trials: The validation trials: one of the base, one per merged λ, and optionally the tuned model's.
        metric: The task score that decides, or None without a task.
        settings: The section; without it, `margin` bounds the estimate itself.
        margin: Overrides the section's margin: how far the rate may lie above the base's, 0.05 is 5 points.
        corrections: The attack success rates corrected for the judge's error, which then take the place of the judge's.

    Raises:
        UserError: The margin is not in [0, 1] (`usage.margin_out_of_range`).
        DataError: The base's or a merged trial is missing or a duplicate, a score is missing or undefined, or there are
            too few prompts for the bound, or a model has no labels (`data.too_few_labels`).
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
    bases = [trial for trial in trials if trial.point.is_base]
    merged = sorted((trial for trial in trials if trial.point.role == "merged"), key=lambda trial: trial.point)
    tuned = next((trial for trial in trials if trial.point.is_tuned), None)
    if len(bases) != 1:
        raise DataError(
            f"select: {len(bases)} validation trials of the base model, not one",
            "score the base once",
            code="data.not_one_base",
        )
    if not merged:
        raise DataError(
            "select: no merged model has been scored on validation", "score at least one λ", code="data.no_merged_trial"
        )
    if len({trial.point for trial in merged}) < len(merged):
        raise DataError(
            "select: a λ has been scored twice on validation",
            "choose among the trials of one method",
            code="data.duplicate_trial",
        )
    (base,) = bases
    if corrections is not None:
        base, *merged = corrected_trials([base, *merged], corrections)
        tuned = corrected_trials([tuned], corrections)[0] if tuned is not None and tuned.point in corrections else None
    for trial in (base, *merged):
        value_of(trial, "asr")
    if settings.policy == "paper":
        return best_task(base, merged, tuned, settings, metric)
    if settings.policy == "knee":
        return knee(base, merged, tuned, settings, metric)
    return choose_within(base, merged, tuned, settings, metric, corrections)


# --- The policies without a bound ---


def best_task(
    base: Trial, merged: Sequence[Trial], tuned: Trial | None, settings: Select, metric: str | None
) -> Choice:
    """The policy `paper`; see `choose`."""
    if metric is None:
        raise DataError(
            "select: `policy: paper` takes the best task score, and there is none",
            "give a task",
            code="data.no_task_score",
        )
    chosen = min(merged, key=lambda trial: _rank(trial, metric))
    reason = (
        f"{chosen.point.label} has the {best(chosen, metric)} {label(metric)} on validation "
        f"({show(chosen, metric)}) of the λ tried, whatever the attack success rate: {_asr(chosen)}, "
        f"{_compared(base, tuned)}."
    )
    return _unbounded(chosen, base, settings, metric, reason)


def knee(base: Trial, merged: Sequence[Trial], tuned: Trial | None, settings: Select, metric: str | None) -> Choice:
    """The policy `knee`; see `choose`.

    Both axes are scaled to 0 at the base and 1 at the tuned model, so that the line is y = x and the distance
    (y − x) / √2 (Satopää et al. 2011, "Finding a kneedle in a haystack"); y grows with a better task score. If the
    tuned model has no higher attack success rate than the base, y alone decides.
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
    cost = value_of(tuned, "asr") - value_of(base, "asr")

    def above(trial: Trial) -> float:
        """y − x of a trial."""
        x = (value_of(trial, "asr") - value_of(base, "asr")) / cost if cost > 0 else 0.0
        return (loss(base, metric) - loss(trial, metric)) / gain - x

    chosen = min(merged, key=lambda t: (-round(above(t), 12), round(value_of(t, "asr"), 12), t.point))
    kept = (loss(base, metric) - loss(chosen, metric)) / gain
    reason = (
        f"{chosen.point.label} is the knee on validation: {percent(kept)} of the tuned model's gain in {label(metric)} "
        f"({show(chosen, metric)}) at an attack success rate of {_asr(chosen)}, {_compared(base, tuned)}"
    )
    if above(chosen) <= 0:
        reason += "; no λ lies above the straight line between base and tuned model"
    return _unbounded(chosen, base, settings, metric, reason + ".")


def _asr(trial: Trial) -> str:
    return percent(value_of(trial, "asr"))


def _compared(base: Trial, tuned: Trial | None) -> str:
    asr = tuned.scores.get("asr") if tuned else None
    then = f" and the tuned model's {percent(asr.value)}" if asr is not None and asr.value is not None else ""
    return f"compared with the base's {_asr(base)}{then}"


def _unbounded(chosen: Trial, base: Trial, settings: Select, metric: str, reason: str) -> Choice:
    bound = settings.bound if settings.bound is not None else min(1.0, value_of(base, "asr") + settings.margin)
    asr = chosen.scores["asr"]
    return Choice(
        point=chosen.point,
        within=True,
        bound=bound,
        metric=metric,
        reason=reason,
        policy=settings.policy,
        prompts=round(asr.n - asr.details.get("miss", 0)),
    )


# --- The policy `bound` ---


def choose_within(
    base: Trial,
    merged: Sequence[Trial],
    tuned: Trial | None,
    settings: Select,
    metric: str | None,
    corrections: Corrections | None = None,
) -> Choice:
    """Choose the best task score, or without a metric the largest λ, among the λ within the bounds (`limits`).

    With a confidence c, λ are tested from the smallest up, and testing ends with the first that does not pass. So the
    probability that any λ passes with a true rate above its bound is at most 1 − c in total, however many λ there are
    (fixed-sequence testing, Maurer, Hothorn & Lehmacher 1995; for risks, Angelopoulos et al. 2021, "Learn then Test").
    A λ passes if it is within every bound. Each bound is tested at the whole 1 − c: where a λ breaks any of them, that
    one's own test passes with a probability of at most 1 − c, and so do all together (intersection-union test, Berger
    1982). Without a confidence, estimates are compared with the bounds, and all λ within them are candidates.

    If no λ is within, the one that exceeds its bounds least is taken, then the smaller, marked `within=False`.
    """
    bounds = limits(base, merged, settings, corrections)
    asr, confident = bounds[0], settings.confidence is not None
    passing = [trial for trial in merged if not _excess(bounds, trial.point)]
    failing = [trial for trial in merged if trial not in passing]
    end = failing[0].point if confident and failing else None
    allowed = [trial for trial in passing if end is None or trial.point < end]
    skipped = [trial for trial in passing if trial not in allowed]
    if allowed:
        chosen = min(allowed, key=lambda trial: _rank(trial, metric))
        reason = _why(chosen, failing, bounds, settings, metric)
        if skipped and _rank(skipped[-1], metric)[0] < _rank(chosen, metric)[0]:
            reason += f"; {skipped[-1].point.label} is not taken, since a smaller one does not keep the bound"
    else:
        chosen = min(merged, key=lambda trial: (round(_excess(bounds, trial.point), 12), trial.point))
        reason = _why_none(chosen, bounds, settings)
    reason += _tuned_within(base, tuned, settings, metric, corrections)
    if corrections is not None:
        reason += f"; attack success rates are corrected by {_labels(corrections)} labels"
    on_asr = [limit for limit in bounds if limit.score != "over_refusal"]
    direct = rules(settings).get("asr")
    for limit in on_asr:
        if limit.allowed >= 1 - TOLERANCE:
            by_setting = settings.bound is not None or settings.margin >= 1  # whatever the base's rate is
            why = "" if by_setting else f"the base lets {percent(value_of(base, limit.score))} through, so that "
            reason += f"; {why}the bound on the {label(limit.score)} excludes nothing"
    return Choice(
        point=chosen.point,
        within=bool(allowed),
        bound=asr.allowed,
        metric=metric or "lam",
        reason=reason + ".",
        confidence=settings.confidence,
        upper={point.key: value for point, value in asr.values.items()} if confident else {},
        keeps=keeps_bounds(on_asr, merged if tuned is None else [*merged, tuned], confident=confident),
        bounds={limit.score: limit.allowed for limit in bounds},
        prompts=min(count for limit in bounds for count in limit.prompts.values()),
        sensitivity=describe(base, chosen, direct) if direct is not None and corrections is None else "",
    )


def keeps_bounds(bounds: Sequence[Limit], trials: Sequence[Trial], *, confident: bool) -> dict[str, bool]:
    """Which models are shown to keep all of several bounds on ASR, and which are not; see `keeps_bound`."""
    found = [keeps_bound(limit, trials, confident=confident) for limit in bounds]
    keys = [trial.point.key for trial in trials]
    failed = {key for key in keys if any(each.get(key) is False for each in found)}
    return {key: key not in failed for key in keys if key in failed or all(key in each for each in found)}


def keeps_bound(asr: Limit, trials: Sequence[Trial], *, confident: bool) -> dict[str, bool]:
    """Which models are shown to keep the bound on ASR, and which are not, by `MergePoint.key`.

    If upper confidence limits were tested (`confident`), the smallest λ with a limit above the bound ends the test:
    neither it nor a larger one is shown to keep it. Otherwise estimates were compared, each by itself. A model that was
    not tested and is within the bound by its estimate is left out.

    Args:
        asr: The bound, with what was compared with it.
        trials: The models' validation trials in ascending order of λ.
        confident: Whether upper confidence limits were tested.
    """
    found: dict[str, bool] = {}
    ended = False
    for trial in trials:
        score = trial.scores.get(asr.score)
        if score is None or score.value is None:
            continue
        tested = confident and trial.point in asr.values
        ended = ended or (tested and asr.excess(trial.point) > 0)
        if ended or score.value - asr.allowed > TOLERANCE:
            found[trial.point.key] = False
        elif tested or not confident:
            found[trial.point.key] = True
    return found


def _excess(bounds: Sequence[Limit], point: MergePoint) -> float:
    return max(limit.excess(point) for limit in bounds)


def _rank(trial: Trial, metric: str | None) -> tuple[float, ...]:
    """A sort key, best first. Rounded, so that equal quotients tie whatever their last bit."""
    if metric is None:
        return (-trial.point.lam,)
    return (round(loss(trial, metric), 12), round(value_of(trial, "asr"), 12), trial.point.lam)


# --- Reasons ---


def _why(chosen: Trial, failing: Sequence[Trial], bounds: Sequence[Limit], settings: Select, metric: str | None) -> str:
    """Why this λ, and what the next better one would have cost."""
    asr, *others = bounds
    confident = settings.confidence is not None
    words = asr.words + "".join(f" and whose {label(each.score)} is at most {each.words}" for each in others)
    words += f", {_confidence(settings)}" if confident else ""
    own = _value(chosen, asr, settings)
    if settings.search == "bisect":  # no other λ was measured on all prompts
        text = f"{chosen.point.label} (found by bisection) has an {label(asr.score)} on validation ({own}) of at most "
        text += words if metric is None else f"{words}; its {label(metric)} is {show(chosen, metric)}"
    elif metric is None:
        text = f"{chosen.point.label} is the largest whose {label(asr.score)} on validation ({own}) is at most {words}"
    else:
        text = (
            f"{chosen.point.label} has the {best(chosen, metric)} {label(metric)} on validation "
            f"({show(chosen, metric)}) of the λ whose {label(asr.score)} is at most {words} (its own: {own})"
        )
    rivals = [trial for trial in failing if _rank(trial, metric)[0] < _rank(chosen, metric)[0]]
    if not rivals:
        return text
    rival = min(rivals, key=lambda trial: (value_of(trial, "asr"), _rank(trial, metric)))
    score = "" if metric is None else f" scores {show(rival, metric)} but"
    limit = next(limit for limit in bounds if limit.excess(rival.point))
    rate = percent(limit.values[rival.point])
    if limit.score == "over_refusal":
        how = f"may refuse up to {rate} of harmless requests" if confident else f"refuses {rate} of harmless requests"
    else:
        how = f"may let up to {rate} through" if confident else f"lets {rate} through"
        how += "" if limit.score == "asr" else f" under {attack_of(limit.score)}"
    return f"{text}; {rival.point.label}{score} {how}"


def _why_none(chosen: Trial, bounds: Sequence[Limit], settings: Select) -> str:
    """That none keeps the bound, which comes nearest, and how many prompts would show that it does."""
    limit = max(bounds, key=lambda limit: limit.excess(chosen.point))
    absolute = settings.bound if limit.score != "over_refusal" else None
    text = f"No λ tried has an {label(limit.score)} on validation of at most {limit.words}"
    if absolute is None:
        text += f" ({percent(limit.allowed)})"
    own = _value(chosen, limit, settings)
    if settings.confidence is None:
        return f"{text}; {chosen.point.label} comes nearest, with {own}"
    text += f", {_confidence(settings)}; {chosen.point.label} comes nearest, with {own}"
    if limit.corrected:
        return f"{text}; more labels, or more prompts, would narrow it"
    details, rate = chosen.scores[limit.score].details, value_of(chosen, limit.score)
    if absolute is not None:
        enough = enough_prompts(rate, absolute, settings.confidence)
    elif "pairs" in details:
        margin = settings.margin if limit.score != "over_refusal" else settings.over_refusal_margin or 0.0
        worse, better = details["worse"] / details["pairs"], details["better"] / details["pairs"]
        enough = enough_pairs(worse, better, margin, settings.confidence)
    else:
        return text
    if enough is None:
        return f"{text}; that is over the bound by itself, and more prompts would not help"
    used = limit.prompts[chosen.point]
    needed = f"about {enough}" if enough <= MOST_PROMPTS else f"more than {MOST_PROMPTS:,}"
    return f"{text}; at these rates {needed} prompts would show that it keeps the bound, not {used}"


def _value(trial: Trial, limit: Limit, settings: Select) -> str:
    rate = percent(value_of(trial, limit.score))
    return rate if settings.confidence is None else f"{rate}, at most {percent(limit.values[trial.point])}"


def _confidence(settings: Select) -> str:
    assert settings.confidence is not None
    return f"with {100 * settings.confidence:g} % confidence"


def _labels(corrections: Corrections) -> str:
    """How many labels the corrected rates rest on, at the least and at the most."""
    counts = sorted(found.rate.labelled for found in corrections.values())
    return str(counts[0]) if counts[0] == counts[-1] else f"{counts[0]} to {counts[-1]}"


def _tuned_within(
    base: Trial, tuned: Trial | None, settings: Select, metric: str | None, corrections: Corrections | None = None
) -> str:
    """A note if the tuned model is within the bound, so that merging was not needed."""
    if tuned is None:
        return ""
    try:
        bounds = limits(base, [tuned], settings, corrections)
    except DataError:  # not measured, or on too few prompts: there is nothing to note
        return ""
    if _excess(bounds, tuned.point):
        return ""
    task = tuned.scores.get(metric) if metric else None
    score = f" and a {label(metric)} of {show(tuned, metric)}" if metric and task and task.value is not None else ""
    return f"; the tuned model itself is within the bound, with {_value(tuned, bounds[0], settings)}{score}"
