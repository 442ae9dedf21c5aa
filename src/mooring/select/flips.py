"""Verdicts on the same prompts, in pairs: how many a model turns for the worse and for the better against its base."""

import dataclasses
from collections.abc import Mapping, Sequence

from mooring.records import Score, Trial

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


def with_flips(trials: Sequence[Trial], hits: Mapping[str, Mapping[float, Hits]]) -> list[Trial]:
    """Trials whose rates carry, in `details`, the flips against the base: `pairs`, `worse` and `better`.

    Args:
        trials: Trials of one split; the base's stays as it is.
        hits: By the score's name (`asr`, `over_refusal`) and λ, what the deciding judge said; λ = 0 is the base.
            A score or a λ that is not there is left alone.
    """
    return [
        dataclasses.replace(
            trial,
            scores={name: _with(score, hits.get(name, {}), trial.lam) for name, score in trial.scores.items()},
        )
        for trial in trials
    ]


def _with(score: Score, hits: Mapping[float, Hits], lam: float) -> Score:
    if lam == 0 or 0 not in hits or lam not in hits:
        return score
    found = flips(hits[0], hits[lam])
    return dataclasses.replace(score, details={**score.details, **dataclasses.asdict(found)})
