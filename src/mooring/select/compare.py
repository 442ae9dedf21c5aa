"""Several runs together: seeds as mean ± standard deviation, and two models compared on the same prompts."""

import dataclasses
import statistics
from collections.abc import Mapping, Sequence

from mooring.errors import DataError
from mooring.records import Trial
from mooring.select.flips import Hits, flips
from mooring.stats import Z95, bootstrap_difference, mcnemar, tango


@dataclasses.dataclass(frozen=True, slots=True)
class Spread:
    """One score over several seeds.

    Attributes:
        mean: Their mean.
        sd: Their standard deviation, with n − 1; `None` for one seed.
        n: How many seeds.
        values: The scores, in the order given.
    """

    mean: float
    sd: float | None
    n: int
    values: tuple[float, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Difference:
    """A second model's score less a first one's, on the same prompts.

    Attributes:
        value: The difference; `None` where it is undefined.
        low: Lower end of its 95 % interval.
        high: Upper end.
        n: Prompts that it rests on.
        p: The exact McNemar p-value, for rates; else `None`.
        worse: For rates, prompts that are a hit for the second model alone; else 0.
        better: For rates, prompts that are a hit for the first model alone; else 0.
    """

    value: float | None
    low: float | None
    high: float | None
    n: int
    p: float | None = None
    worse: int = 0
    better: int = 0


def spread(trials: Sequence[Trial]) -> dict[str, Spread]:
    """Mean and standard deviation of every score that all seeds have.

    Args:
        trials: One a seed: the same split, and the same role (base, tuned or merged); each seed may have its own λ.
            A score that is undefined for a seed is left out.

    Raises:
        DataError: There are none, they differ in split or role, or a score is measured in different ways.
    """
    if not trials:
        raise DataError("seeds: there are no trials", "give one run or more")
    if len({(trial.split, trial.model) for trial in trials}) > 1:
        raise DataError("seeds: trials of different splits or models do not go together", "compare like with like")
    found = {}
    for name in trials[0].scores:
        scores = [trial.scores[name] for trial in trials if name in trial.scores]
        values = [score.value for score in scores if score.value is not None]
        if len(values) < len(trials):
            continue
        if methods := sorted({score.method for score in scores})[1:]:
            raise DataError(
                f"seeds: `{name}` is measured in different ways ({scores[0].method}; {methods[0]})",
                "use the same judge and metric for all",
            )
        sd = statistics.stdev(values) if len(values) > 1 else None
        found[name] = Spread(statistics.fmean(values), sd, len(values), tuple(values))
    return found


def compare_rates(first: Hits, second: Hits) -> Difference:
    """The difference of two rates on the same prompts: Tango's interval, and McNemar's exact test of the flips.

    Args:
        first: By prompt, whether the first model's response is a hit (harmful, say); None is a miss.
        second: The second model's.

    Raises:
        DataError: The two were not asked the same prompts.
    """
    _same(first, second)
    found = flips(first, second)
    if not found.pairs:
        return Difference(None, None, None, 0)
    low, high = tango(found.worse, found.better, found.pairs, Z95)
    return Difference(
        value=(found.worse - found.better) / found.pairs,
        low=low,
        high=high,
        n=found.pairs,
        p=mcnemar(found.worse, found.better),
        worse=found.worse,
        better=found.better,
    )


def compare_scores(
    first: Mapping[str, float],
    second: Mapping[str, float],
    *,
    weights: Mapping[str, float] | None = None,
    seed: int = 0,
    draws: int = 2000,
) -> Difference:
    """The difference of two mean scores on the same prompts, with a paired bootstrap interval over prompts.

    Args:
        first: By prompt, the first model's score, such as BERTScore F1 or the share of samples that pass.
        second: The second model's.
        weights: By prompt, what the sum of scores is divided by, such as tokens where the scores are summed losses; 1
            without.
        seed: Seed of the draws.
        draws: Resamples.

    Raises:
        DataError: The two were not asked the same prompts.
    """
    _same(first, second)
    keys = sorted(first)
    below = [1.0 if weights is None else weights[key] for key in keys]
    tops = [first[key] for key in keys], [second[key] for key in keys]
    interval = bootstrap_difference((tops[1], below), (tops[0], below), seed=seed, draws=draws)
    if interval is None:
        return Difference(None, None, None, len(keys))
    value = (sum(tops[1]) - sum(tops[0])) / sum(below)
    return Difference(value, *interval, len(keys))


def _same(first: Mapping[str, object], second: Mapping[str, object]) -> None:
    if different := len(first.keys() ^ second.keys()):
        raise DataError(
            f"compare: {different} prompts were asked of one model alone", "compare models on the same prompts"
        )
