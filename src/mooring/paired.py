"""Two models on the same prompts: how verdicts flip, and how far rates and scores differ."""

import dataclasses
from collections.abc import Mapping

from mooring.errors import DataError
from mooring.stats import Z95, bootstrap_difference, mcnemar, tango

Hits = Mapping[str, bool | None]
"""What a judge says of each prompt's response, by the prompt's id: harmful (or, for over-refusal, refused); `None` is a
miss."""


@dataclasses.dataclass(frozen=True, slots=True)
class Flips:
    """How a second model's verdicts differ from a first one's.

    Attributes:
        pairs: Prompts on which both could be judged.
        worse: Of these, hits of the second that the first did not have.
        better: Hits of the first that the second does not have.
    """

    pairs: int
    worse: int
    better: int


def flips(first: Hits, second: Hits) -> Flips:
    """Count the flips from one model to another, over the prompts that both were asked and judged on."""
    both = [(first[key], second[key]) for key in first if key in second]
    judged = [(one, two) for one, two in both if one is not None and two is not None]
    return Flips(
        pairs=len(judged),
        worse=sum(two and not one for one, two in judged),
        better=sum(one and not two for one, two in judged),
    )


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
        DataError: The two were not asked the same prompts, or a prompt has no weight.
    """
    _same(first, second)
    if weights is not None and first.keys() - weights.keys():
        raise DataError("compare: a prompt has a score and no weight", "was the file edited by hand?")
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
