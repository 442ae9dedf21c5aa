"""The chosen merge beside gentler tunings: which of them keep the same bounds, and whether the merge beats the best."""

import dataclasses
from collections.abc import Mapping, Sequence

from mooring.config import Select
from mooring.errors import DataError
from mooring.metrics import find_metric
from mooring.records import BaselineResult, Baselines, Choice, Half, Score, Trial
from mooring.selection.explain import label, loss, percent, value_of
from mooring.selection.gains import clear_difference
from mooring.selection.limits import TOLERANCE, limits
from mooring.stats import Difference, Hits, compare_rates, compare_scores


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Tuned:
    """A gentler tuning, scored.

    Attributes:
        name: Its kind and its number, such as `gentle-lr:3`.
        settings: What it changes in the tuning, in words.
        digest: That of its adapter's weights.
        trials: Its scores by half, with flips against the base.
        hits: The verdicts on its answers of the test half, by score.
    """

    name: str
    settings: str
    digest: str
    trials: Mapping[Half, Trial]
    hits: Mapping[str, Hits]


def compare(
    base: Trial,
    merged: Trial,
    hits: Mapping[str, Hits],
    tuned: Sequence[Tuned],
    *,
    choice: Choice,
    settings: Select,
    metric: str | None,
) -> Baselines:
    """Compare a chosen merge with gentler tunings, in pairs on the test half.

    Whether a tuning keeps the bounds is tested on validation at the stated confidence, as one λ is. The best of those
    that do is chosen there too, by the task score that chose λ, so that the test half is only for the comparison.

    Args:
        base: The base's trial of the validation half.
        merged: The merge's trial of the test half.
        hits: The verdicts on the merge's answers of the test half, by score.
        tuned: The tunings.
        choice: The chosen λ.
        settings: The recipe's `select` section.
        metric: The task score of the test half that is compared; None without a task.
    """
    tried = [_result(base, merged, hits, each, settings) for each in tuned]
    within = [place for place, each in enumerate(tried) if each.within is not False]
    best = None
    if choice.metric != "lam" and within:
        best = min(within, key=lambda place: round(loss(tuned[place].trials["validation"], choice.metric), 12))
    return Baselines(
        tried=tried,
        best=best,
        metric=metric or "",
        sentence=_sentence(tried, best, merged, choice, metric),
    )


def _result(base: Trial, merged: Trial, hits: Mapping[str, Hits], each: Tuned, settings: Select) -> BaselineResult:
    validated, tested = each.trials["validation"], each.trials["test"]
    bounded = settings.policy == "bound"
    found = limits(base, [validated], settings if bounded else settings.model_copy(update={"confidence": None}))
    return BaselineResult(
        name=each.name,
        settings=each.settings,
        digest=each.digest,
        trials=[validated, tested],
        within=all(limit.excess(validated.point) <= TOLERANCE for limit in found) if bounded else None,
        upper=found[0].values[validated.point],
        differences={
            name: difference
            for name in merged.scores
            if name in tested.scores
            and (difference := _difference(name, tested.scores[name], merged.scores[name], each.hits, hits))
        },
    )


def _difference(
    name: str, own: Score, of_merge: Score, own_hits: Mapping[str, Hits], hits: Mapping[str, Hits]
) -> Difference | None:
    """The merge's score minus the tuning's, on the same prompts; None if they are not known by prompt."""
    try:
        if name in hits and name in own_hits:
            found = compare_rates(own_hits[name], hits[name])
        elif own.each:
            found = compare_scores(own.each, of_merge.each, weights=own.weights or None)
        else:
            return None
    except DataError:  # other prompts
        return None
    return None if found.value is None else found


def _sentence(
    tried: Sequence[BaselineResult], best: int | None, merged: Trial, choice: Choice, metric: str | None
) -> str:
    """Whether the merge beats the best gentler tuning at the same bound."""
    names = ", ".join(each.name for each in tried)
    keeping = [each for each in tried if each.within is not False]
    bound = "" if choice.policy != "bound" else " that keeps the bound on validation"
    if not keeping:
        none = f"Of the gentler tunings ({names}) none keeps the bound on validation"
        return f"{none}; the merge does." if choice.within else f"{none}, and no merge does either."
    if not choice.within:
        kept = ", ".join(each.name for each in keeping)
        return f"No merge keeps the bound on validation; these gentler tunings do: {kept}."
    if best is None or metric is None:
        kept = ", ".join(each.name for each in keeping)
        return f"Without a task score the merge cannot be ranked beside gentler tunings. Within the bound too: {kept}."
    found = tried[best]
    own = next(trial for trial in found.trials if trial.split == "test")
    if metric not in own.scores or metric not in merged.scores:
        return f"The best gentler tuning{bound} is {found.name}; {label(metric)} was not measured on the test half."
    ours, theirs = value_of(merged, metric), value_of(own, metric)
    clear = clear_difference(own.scores[metric], merged.scores[metric])
    outcome = {
        1: f"the merge beats {found.name}, the best gentler tuning{bound}",
        -1: f"{found.name}, the best gentler tuning{bound}, beats the merge",
        0: f"the merge is not shown to beat {found.name}, the best gentler tuning{bound}, nor that to beat it",
    }[clear]
    difference = found.differences.get(metric)
    gap = "" if difference is None else f", a difference of {_gap(difference, metric)}"
    asr = found.differences.get("asr")
    safety = "" if asr is None else f"; their {label('asr')} differs by {_gap(asr, 'asr')}"
    return (
        f"On the test half {outcome}: {label(metric)} {_show(ours, metric)} with the merge and {_show(theirs, metric)} "
        f"without{gap}{safety} (merge − {found.name}, in pairs on the same prompts)."
    )


def _is_rate(metric: str) -> bool:
    known = find_metric(metric)
    return known is None or known.unit != "nats"


def _show(value: float, metric: str) -> str:
    return percent(value) if _is_rate(metric) else f"{value:.3f} nats"


def _gap(difference: Difference, metric: str) -> str:
    """A difference with its interval, of rates in points."""
    assert difference.value is not None
    scale, unit, digits = (100, "points", 1) if _is_rate(metric) else (1, "nats", 3)
    text = f"{scale * difference.value:+.{digits}f} {unit}".replace("-", "−")
    if difference.low is None or difference.high is None:
        return text
    ends = (f"{scale * end:.{digits}f}".replace("-", "−") for end in (difference.low, difference.high))
    return f"{text} [{', '.join(ends)}]"
