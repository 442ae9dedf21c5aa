"""How much of what tuning gained a merged model keeps."""

from collections.abc import Iterable, Mapping

from mooring.errors import DataError
from mooring.records import Gain, Score, Trial
from mooring.stats import bootstrap_difference, bootstrap_ratio, compare_rates, compare_scores, flips, paired_upper

CHANCE = 0.05
"""The two-sided error at which a gain differs from zero."""


def kept_gains(base: Trial, tuned: Trial, merged: Trial, metrics: Iterable[str]) -> dict[str, Gain]:
    """The share of the tuned model's gain that the merged model keeps, by task metric; of metrics that all three have.

    Args:
        base: The base's trial of the test split.
        tuned: The tuned model's.
        merged: The merged model's.
        metrics: Names of task scores.
    """
    trials = base, tuned, merged
    names = [name for name in metrics if all(name in trial.scores for trial in trials)]
    return {name: kept_gain(*(trial.scores[name] for trial in trials)) for name in names}


def kept_gain(base: Score, tuned: Score, merged: Score) -> Gain:
    """(merged − base) / (tuned − base), with the percentile interval of a paired bootstrap over prompts.

    It has no value if the interval of tuned − base holds zero, or, for scores of 0 and 1, if McNemar's exact test does
    not tell the two apart: a ratio to a number that may be zero says nothing.
    """
    n = min(score.n for score in (base, tuned, merged))
    if any(score.value is None for score in (base, tuned, merged)):
        return Gain(value=None, n=n, why="a score is undefined")
    if not base.each or not base.each.keys() == tuned.each.keys() == merged.each.keys():
        return Gain(value=None, n=n, why="the scores are not known by prompt")
    sign = 1 if base.better == "higher" else -1
    gain = _difference(base, tuned)
    if gain is None or gain[0] * sign <= 0:
        return Gain(value=None, n=n, why="tuning gained nothing to keep")
    if not gain[1]:
        return Gain(value=None, n=n, why=f"a gain by tuning cannot be distinguished from zero on {n} prompts")
    keys = sorted(base.each)
    kept = [sign * (merged.each[key] - base.each[key]) for key in keys]
    gained = [sign * (tuned.each[key] - base.each[key]) for key in keys]
    interval = bootstrap_ratio(kept, gained)
    assert interval is not None  # the sum of `gained` is above zero
    return Gain(value=sum(kept) / sum(gained), low=interval[0], high=interval[1], n=n)


def behind(tuned: Score, merged: Score, confidence: float) -> tuple[float, float] | None:
    """How far a merged model's score is behind the tuned model's on the same prompts, and its one-sided upper limit.

    Of scores of 0 and 1 the limit is that of paired rates (`paired_upper`), of others the percentile of a paired
    bootstrap over prompts. None if the scores are not known by prompt, or the prompts differ.
    """
    if not tuned.each or tuned.each.keys() != merged.each.keys():
        return None
    first, second = (merged, tuned) if tuned.better == "higher" else (tuned, merged)
    if _is_binary(first.each.values()) and _is_binary(second.each.values()):
        found = flips(_hits(first.each), _hits(second.each))
        value = (found.worse - found.better) / found.pairs
        return value, paired_upper(found.worse, found.better, found.pairs, confidence)
    keys = sorted(first.each)
    below = [first.weights.get(key, 1.0) for key in keys]
    tops = [[score.each[key] for key in keys] for score in (second, first)]
    interval = bootstrap_difference((tops[0], below), (tops[1], below), level=2 * confidence - 1)
    return None if interval is None else ((sum(tops[0]) - sum(tops[1])) / sum(below), interval[1])


def clear_difference(first: Score, second: Score) -> int:
    """1 if the second score is clearly better on the same prompts, −1 if it is clearly worse, 0 if neither is shown."""
    found = _difference(first, second)
    if found is None or not found[1]:
        return 0
    return 1 if (found[0] > 0) == (first.better == "higher") else -1


def _difference(first: Score, second: Score) -> tuple[float, bool] | None:
    """The second score minus the first, and whether that can be distinguished from zero; `None` if it is undefined."""
    try:
        found = compare_scores(first.each, second.each, weights=first.weights or None)
    except DataError:
        return None
    if found.value is None or found.low is None or found.high is None:
        return None
    clear = not found.low <= 0 <= found.high
    if clear and _is_binary(first.each.values()) and _is_binary(second.each.values()):
        exact = compare_rates(_hits(first.each), _hits(second.each))
        clear = exact.p is not None and exact.p <= CHANCE
    return found.value, clear


def _is_binary(values: Iterable[float]) -> bool:
    return all(value in (0, 1) for value in values)


def _hits(each: Mapping[str, float]) -> dict[str, bool]:
    return {key: bool(value) for key, value in each.items()}
