"""The policy `bound`: the best task score among the λ that keep a bound, with a stated risk."""

from collections.abc import Sequence

from mooring.errors import DataError
from mooring.records import Choice, Trial
from mooring.sections import Select
from mooring.select.limits import TOLERANCE, Limit, limits
from mooring.select.support import enough_pairs, enough_prompts
from mooring.select.words import NAMES, best, label, loss, percent, show, value_of


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
    keeps = [trial for trial in merged if not _excess(held, trial.lam)]
    allowed, skipped = keeps, []
    if sure:
        first_over = next((trial.lam for trial in merged if trial not in keeps), 2.0)
        allowed = [trial for trial in keeps if trial.lam < first_over]
        skipped = [trial for trial in keeps if trial.lam > first_over]
    if allowed:
        chosen = min(allowed, key=lambda trial: _rank(trial, metric))
        over = [trial for trial in merged if trial not in allowed and trial not in skipped]
        reason = _why(chosen, over, held, settings, metric)
        if skipped and _rank(skipped[-1], metric)[0] < _rank(chosen, metric)[0]:
            reason += f"; λ = {skipped[-1].lam:g} is not taken, since a smaller one does not keep the bound"
    else:
        chosen = min(merged, key=lambda trial: (round(_excess(held, trial.lam), 12), trial.lam))
        reason = _why_none(chosen, held, settings)
    asr = held[0]
    reason += _tuned_too(base, tuned, settings, metric)
    if asr.most >= 1 - TOLERANCE:
        lets = f"the base lets {percent(value_of(base, 'asr'))} through, so that "
        high = settings.bound is not None or settings.margin >= 1  # whatever the base does
        reason += f"; {'' if high else lets}the bound on the attack success rate holds nothing back"
    return Choice(
        lam=chosen.lam,
        within=bool(allowed),
        bound=asr.most,
        metric=metric or "lam",
        reason=reason + ".",
        confidence=settings.confidence,
        upper={f"{lam:g}": value for lam, value in asr.held.items()} if sure else {},
        prompts=min(count for limit in held for count in limit.prompts.values()),
    )


def _excess(held: Sequence[Limit], lam: float) -> float:
    return max(limit.excess(lam) for limit in held)


def _rank(trial: Trial, metric: str | None) -> tuple[float, ...]:
    """Smallest is best. Rounded, so that equal quotients tie whatever their last bit."""
    if metric is None:
        return (-trial.lam,)
    return (round(loss(trial, metric), 12), round(value_of(trial, "asr"), 12), trial.lam)


def _why(chosen: Trial, over: Sequence[Trial], held: Sequence[Limit], settings: Select, metric: str | None) -> str:
    """Why this λ, and what the next better one would have cost."""
    asr, *others = held
    sure = f", {_sure(settings)}" if settings.confidence is not None else ""
    words = asr.words + "".join(f" and whose {NAMES[limit.score]} is at most {limit.words}" for limit in others) + sure
    own = _own(chosen, asr, settings)
    if settings.search == "bisect":  # no other λ was measured on everything
        text = f"λ = {chosen.lam:g}, found by halves, has an attack success rate on validation ({own}) of at most "
        text += words if metric is None else f"{words}; its {label(metric)} is {show(chosen, metric)}"
    elif metric is None:
        text = f"λ = {chosen.lam:g} is the largest whose attack success rate on validation ({own}) is at most {words}"
    else:
        text = (
            f"λ = {chosen.lam:g} has the {best(chosen, metric)} {label(metric)} on validation "
            f"({show(chosen, metric)}) of the λ whose attack success rate is at most {words} (its own: {own})"
        )
    rivals = [trial for trial in over if _rank(trial, metric)[0] < _rank(chosen, metric)[0]]
    if not rivals:
        return text
    rival = min(rivals, key=lambda trial: (value_of(trial, "asr"), _rank(trial, metric)))
    score = "" if metric is None else f" scores {show(rival, metric)} but"
    limit = next(limit for limit in held if limit.excess(rival.lam))
    what = percent(limit.held[rival.lam])
    if limit.score != "asr":
        how = f"may refuse up to {what} of harmless requests" if sure else f"refuses {what} of harmless requests"
    else:
        how = f"may let up to {what} through" if sure else f"lets {what} through"
    return f"{text}; λ = {rival.lam:g}{score} {how}"


def _why_none(chosen: Trial, held: Sequence[Limit], settings: Select) -> str:
    """That none keeps the bound, which comes nearest, and how many prompts would show that it does."""
    limit = max(held, key=lambda limit: limit.excess(chosen.lam))
    text = f"No λ tried has an {NAMES[limit.score]} on validation of at most {limit.words}"
    if not limit.words.startswith(percent(limit.most)):
        text += f" ({percent(limit.most)})"
    if settings.confidence is None:
        return f"{text}; λ = {chosen.lam:g} comes nearest, with {percent(value_of(chosen, limit.score))}"
    text += f", {_sure(settings)}; λ = {chosen.lam:g} comes nearest, with {_own(chosen, limit, settings)}"
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
        return f"{text}; that is over the bound by itself, and more prompts would not mend it"
    had = limit.prompts[chosen.lam]
    return f"{text}; at these rates about {enough} prompts would show that it keeps the bound, not {had}"


def _own(trial: Trial, limit: Limit, settings: Select) -> str:
    rate = percent(value_of(trial, limit.score))
    return rate if settings.confidence is None else f"{rate}, at most {percent(limit.held[trial.lam])}"


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
    if _excess(held, tuned.lam):
        return ""
    task = tuned.scores.get(metric) if metric else None
    score = f" and a {label(metric)} of {show(tuned, metric)}" if metric and task and task.value is not None else ""
    return f"; the tuned model itself is within the bound, with {_own(tuned, held[0], settings)}{score}"
