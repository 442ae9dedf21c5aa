"""The errors of several judges and true rates without labels of people: a latent-class model, fitted by EM.

Whether an answer truly is a hit is not observed. Judges say so with errors that are theirs (a sensitivity and a
specificity each) and that are independent of each other given the truth; the share of true hits is each model's own.
Dawid & Skene (1979), with a prevalence for each population as in Hui & Walter (1980). Judges that err alike, such as
two that read the same words, break the independence: they then look better than they are.
"""

import dataclasses
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from mooring.export import Record

Estimate = tuple[float, float, float]
"""A number with the ends of its 95 % interval."""
Votes = Mapping[str, Mapping[Hashable, Sequence[bool | None]]]
"""By population (a model) and prompt, what each judge says, in the order of the judges; None is a miss."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LatentClass(Record):
    """The estimate, each number with the ends of its 95 % percentile bootstrap interval over prompts.

    Attributes:
        judges: The judges.
        sensitivity: Each judge's, in the same order.
        specificity: Each judge's.
        rates: The share of true hits by population.
        n: Answers that at least two judges have a verdict on.
    """

    judges: Sequence[str]
    sensitivity: Sequence[Estimate]
    specificity: Sequence[Estimate]
    rates: Mapping[str, Estimate]
    n: int


def latent_class(judges: Sequence[str], votes: Votes, *, seed: int = 0, draws: int = 200) -> LatentClass | None:
    """Fit the model to the votes of several judges.

    Three judges, or two over at least two populations whose rates differ, determine it (Hui & Walter 1980).

    Args:
        judges: Their names.
        votes: Their votes; populations that answered the same prompts are resampled together.
        seed: Seed of the bootstrap.
        draws: Number of resamples.

    Returns:
        None if there are too few judges or populations, or no answers.

    Raises:
        ValueError: A prompt has not one vote per judge.
    """
    import numpy as np

    populations = list(votes)
    if len(judges) < 2 or (len(judges) == 2 and len(populations) < 2):
        return None
    patterns: dict[tuple[bool | None, ...], int] = {}
    places: dict[Hashable, list[tuple[int, int]]] = {}
    for number, population in enumerate(populations):
        for prompt, given in votes[population].items():
            if len(given) != len(judges):
                raise ValueError(f"{len(given)} votes of {len(judges)} judges")
            if sum(vote is not None for vote in given) >= 2:
                pattern = patterns.setdefault(tuple(given), len(patterns))
                places.setdefault(prompt, []).append((number, pattern))
    counts = np.zeros((len(places), len(populations), max(1, len(patterns))))
    for row, cells in enumerate(places.values()):
        for number, pattern in cells:
            counts[row, number, pattern] += 1
    whole = counts.sum(axis=0)
    if not places or (whole.sum(axis=1) == 0).any():
        return None
    said = np.array([[-1 if vote is None else int(vote) for vote in pattern] for pattern in patterns])
    start = np.array([[0.1, 0.9]] * len(judges))  # the share of votes for a hit, of answers that are none and that are
    rates = np.full(len(populations), 0.5)
    found = _fit(said, whole, start, rates)
    generator, samples = np.random.default_rng(seed), []
    for _ in range(draws):
        drawn = counts[generator.integers(0, len(counts), len(counts))].sum(axis=0)
        if (drawn.sum(axis=1) > 0).all():
            samples.append(_flat(*_fit(said, drawn, *found, most=50, least=1e-6)))
    low, high = np.quantile(np.array(samples), [0.025, 0.975], axis=0)
    value = _flat(*found)
    triples = [(float(v), float(min(v, a)), float(max(v, b))) for v, a, b in zip(value, low, high, strict=True)]
    k = len(judges)
    return LatentClass(
        judges=list(judges),
        sensitivity=triples[:k],
        specificity=triples[k : 2 * k],
        rates=dict(zip(populations, triples[2 * k :], strict=True)),
        n=int(whole.sum()),
    )


def _flat(says: Any, rates: Any) -> Any:
    """Sensitivities, specificities and rates in one array."""
    import numpy as np

    return np.concatenate((says[:, 1], 1 - says[:, 0], rates))


def _fit(said: Any, counts: Any, says: Any, rates: Any, *, most: int = 5000, least: float = 1e-9) -> tuple[Any, Any]:
    """Maximize the likelihood by EM from a start.

    Args:
        said: Patterns × judges: 1, 0, or −1 for a miss.
        counts: Populations × patterns.
        says: Judges × truth (0, 1): the probability of a vote for a hit.
        rates: The share of true hits by population.
        most: Maximum number of steps.
        least: The change at which it ends.

    Returns:
        `says` and `rates`; turned around if the judges would together be worse than chance.
    """
    import numpy as np

    voted, hit = said >= 0, said == 1
    for _ in range(most):
        chance = np.where(voted[:, :, None], np.where(hit[:, :, None], says[None], 1 - says[None]), 1.0)
        likely = chance.prod(axis=1)  # patterns × truth
        joint = np.stack((1 - rates, rates), axis=1)[:, None, :] * likely[None]
        total = joint.sum(axis=2, keepdims=True)
        weight = counts[:, :, None] * np.divide(joint, total, out=np.full_like(joint, 0.5), where=total > 0)
        by_pattern = weight.sum(axis=0)
        votes = voted.T.astype(float) @ by_pattern  # judges × truth
        hits = hit.T.astype(float) @ by_pattern
        new_says = np.divide(hits, votes, out=np.full_like(hits, 0.5), where=votes > 0)
        new_rates = weight[:, :, 1].sum(axis=1) / counts.sum(axis=1)
        change = max(np.abs(new_says - says).max(), np.abs(new_rates - rates).max())
        says, rates = new_says, new_rates
        if change < least:
            break
    if (says[:, 1] - says[:, 0]).sum() < 0:
        says, rates = says[:, ::-1], 1 - rates
    return says, rates
