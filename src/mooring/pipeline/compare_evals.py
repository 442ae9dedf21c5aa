"""Two files with the scores of samples, compared in pairs: logs of Inspect, samples of lm-evaluation-harness, …"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from mooring.data.evals import EvalScores, read_scores
from mooring.errors import DataError
from mooring.export import Record
from mooring.stats import compare_rates, compare_scores, paired_permutation

Means = Mapping[str, float]
"""By sample, the mean score of its answers."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class EvalDifference(Record):
    """The score of a second file minus that of a first one, on the same samples.

    Attributes:
        metric: The metric, as the files name it.
        first: The mean of the first file, over samples.
        second: That of the second.
        difference: `second` − `first`.
        low: Lower end of its 95 % interval, over samples.
        high: Upper end.
        p: The two-sided p-value that they differ.
        method: `mcnemar` for one right or wrong answer per sample (with Tango's interval), else `permutation` (of the
            two means of each sample, with a bootstrap interval).
        n: Samples; answers to one sample count as one.
        answers: Answers in the first and in the second file.
        only_first: With `mcnemar`, samples that score 1 in the first file only.
        only_second: With `mcnemar`, in the second file only.
        left_out: Samples that were left out, since only one of the two has a score.
    """

    metric: str
    first: float
    second: float
    difference: float
    low: float
    high: float
    p: float
    method: Literal["mcnemar", "permutation"]
    n: int
    answers: tuple[int, int]
    only_first: int = 0
    only_second: int = 0
    left_out: int = 0


def compare_evals(
    first: Path, second: Path, *, metrics: Sequence[str] = (), common: bool = False, seed: int = 0
) -> list[EvalDifference]:
    """Compare two files with scores; arguments and errors as in `mooring.compare_evals`."""
    one, two = read_scores(first, metrics), read_scores(second, metrics)
    _check_questions(one, two)
    shared = [name for name in one.metrics if name in two.metrics]
    if unknown := [name for name in metrics if name not in shared]:
        has = ", ".join(shared) or "none"
        what = f"--metric {unknown[0]}: is not in both {first} and {second}"
        raise DataError(what, f"they share: {has}", code="data.no_scores")
    if not shared:
        what = f"{first} has the scores {', '.join(one.metrics)}, and {second} {', '.join(two.metrics)}"
        raise DataError(what, "score both in the same way", code="data.no_scores")
    return [_compare(one, two, name, common, seed) for name in metrics or shared]


def _check_questions(one: EvalScores, two: EvalScores) -> None:
    """Raise an error if a sample of both files has different questions."""
    asked = {sample.id: sample.asked for sample in one.samples if sample.asked is not None}
    for sample in two.samples:
        if sample.asked is not None and asked.get(sample.id, sample.asked) != sample.asked:
            what = f"{one.path} and {two.path}: the sample {sample.id} has another question in the second"
            raise DataError(what, "compare files of the same task and the same version of it", code="data.unpaired")


def _compare(one: EvalScores, two: EvalScores, metric: str, common: bool, seed: int) -> EvalDifference:
    answers = _answers(one, metric), _answers(two, metric)
    scored = [
        {key: [each for each in found if each is not None] for key, found in side.items() if _usable(found, common)}
        for side in answers
    ]
    every = answers[0].keys() | answers[1].keys()
    both = sorted(scored[0].keys() & scored[1].keys())
    left_out = len(every) - len(both)
    if not both or (left_out and not common):
        missing = min(every - set(both))
        path = (one if missing not in scored[0] else two).path
        what = (
            f"{metric}: {left_out} of {len(every)} samples have no score in both files (for one, {missing} in {path})"
        )
        hint = "give files of the same samples, or --common to compare those that both have"
        raise DataError(what, hint, code="data.unpaired")
    first, second = ({key: side[key] for key in both} for side in scored)
    means = tuple({key: math.fsum(each) / len(each) for key, each in side.items()} for side in (first, second))
    counts = sum(map(len, first.values())), sum(map(len, second.values()))
    binary = all(value in (0.0, 1.0) for side in (first, second) for each in side.values() for value in each)
    shared = {
        "metric": metric,
        "first": math.fsum(means[0].values()) / len(both),
        "second": math.fsum(means[1].values()) / len(both),
        "n": len(both),
        "answers": counts,
        "left_out": left_out,
    }
    if binary and counts == (len(both), len(both)):
        found = compare_rates(*({key: value == 1.0 for key, value in side.items()} for side in means))
        test = {"method": "mcnemar", "p": found.p, "only_first": found.better, "only_second": found.worse}
    else:
        found = compare_scores(*means, seed=seed)
        p = paired_permutation([means[0][key] for key in both], [means[1][key] for key in both], seed=seed)
        test = {"method": "permutation", "p": p}
    return EvalDifference(**shared, **test, difference=found.value, low=found.low, high=found.high)  # type: ignore[arg-type]


def _answers(scores: EvalScores, metric: str) -> dict[str, list[float | None]]:
    """The scores of the answers to each sample."""
    found: dict[str, list[float | None]] = {}
    for sample in scores.samples:
        found.setdefault(sample.id, []).append(sample.scores.get(metric))
    return found


def _usable(found: Sequence[float | None], common: bool) -> bool:
    """Whether a sample has a score: of every answer, or, of what both have, of any."""
    return any(each is not None for each in found) if common else all(each is not None for each in found)
