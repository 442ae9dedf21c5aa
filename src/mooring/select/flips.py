"""Trials that carry how their verdicts flip against the base's."""

import dataclasses
from collections.abc import Mapping, Sequence

from mooring.paired import Hits, flips
from mooring.records import Score, Trial


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
