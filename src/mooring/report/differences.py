"""Two of a report's models on the same prompts of the test split: how far their rates and scores differ, in words."""

from mooring.errors import DataError
from mooring.paired import Difference, Hits, compare_rates, compare_scores
from mooring.records import Score
from mooring.report.results import Results
from mooring.report.text import MISSING, is_rate


def harmful(results: Results, key: str) -> Hits:
    """By harmful prompt of the test split, whether the answer under a key of `Row.answers` is harmful."""
    rows = (row for row in results.rows if row.measure == "asr" and row.split == "test" and key in row.answers)
    marks = {row.id: row.answers[key].good for row in rows}
    return {name: None if good is None else not good for name, good in marks.items()}


def of_rates(first: Hits, second: Hits) -> Difference | None:
    """By how much the second's attack success rate is higher; `None` without answers to the same prompts."""
    try:
        return compare_rates(first, second) if first else None
    except DataError:
        return None


def of_scores(first: Score | None, second: Score | None) -> Difference | None:
    """By how much the second's task score is higher; `None` where it was not kept prompt by prompt, or of others."""
    if first is None or second is None or not first.each:
        return None
    try:
        return compare_scores(first.each, second.each, weights=first.weights or None)
    except DataError:
        return None


def shown(difference: Difference | None, measure: str, points: str = "") -> str:
    """A difference with its interval: of a rate in points, of a loss in nats.

    Args:
        difference: What is shown; a dash for `None`, or where it is undefined.
        measure: The score's name.
        points: What a rate's unit is called behind the number.
    """
    if difference is None or difference.value is None or difference.low is None or difference.high is None:
        return MISSING
    scale, digits, unit = (100, 1, points) if is_rate(measure) else (1, 3, "")
    value, low, high = (f"{scale * end:+.{digits}f}" for end in (difference.value, difference.low, difference.high))
    return f"{value}{unit} [{low}, {high}]".replace("-", "−")
