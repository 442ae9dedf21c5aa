"""The latent-class estimate of several judges: published values, simulated judges, and what it cannot tell."""

import random

import pytest

from mooring.latent_class import LatentClass, Votes, latent_class


def counted(*populations: dict[tuple[bool | None, ...], int]) -> Votes:
    """Votes from counts of patterns, all of different prompts."""
    return {
        str(number): {(number, pattern, copy): pattern for pattern, count in counts.items() for copy in range(count)}
        for number, counts in enumerate(populations)
    }


def test_two_tests_in_two_populations_as_published() -> None:
    """Hui & Walter (1980): the Mantoux and the Tine test of tuberculosis in two populations."""
    table = [
        ((True, True), (14, 887)),
        ((True, False), (4, 31)),
        ((False, True), (9, 37)),
        ((False, False), (528, 367)),
    ]
    found = latent_class(
        ("mantoux", "tine"), counted(*({key: counts[i] for key, counts in table} for i in (0, 1))), draws=5
    )
    assert found is not None
    assert [round(1 - value, 4) for value, *_ in found.sensitivity] == [0.0339, 0.0312]
    assert [round(1 - value, 4) for value, *_ in found.specificity] == [0.0067, 0.0159]
    assert [round(value, 4) for value, *_ in found.rates.values()] == [0.0268, 0.7168]
    assert found.n == 1877


def simulate(errors: list[tuple[float, float]], rates: list[float], n: int, seed: int = 0) -> Votes:
    """Votes of judges with these false alarms and misses, on models with these rates, that answer the same prompts."""
    rng = random.Random(seed)
    votes: dict[str, dict[int, list[bool | None]]] = {}
    for model, rate in enumerate(rates):
        for prompt in range(n):
            hit = rng.random() < rate
            given = [rng.random() >= miss if hit else rng.random() < alarm for alarm, miss in errors]
            votes.setdefault(str(model), {})[prompt] = list(given)
    return votes  # type: ignore[return-value]


def holds(found: LatentClass, errors: list[tuple[float, float]], rates: list[float]) -> list[bool]:
    truth = [*(1 - miss for _, miss in errors), *(1 - alarm for alarm, _ in errors), *rates]
    given = [*found.sensitivity, *found.specificity, *found.rates.values()]
    return [low <= true <= high for true, (_, low, high) in zip(truth, given, strict=True)]


def test_it_finds_the_errors_of_three_simulated_judges() -> None:
    errors, rates = [(0.05, 0.1), (0.2, 0.05), (0.1, 0.3)], [0.1, 0.3, 0.6]
    found = latent_class("abc", simulate(errors, rates, 4000), draws=20)
    assert found is not None
    assert [value for value, *_ in found.sensitivity] == pytest.approx([0.9, 0.95, 0.7], abs=0.03)
    assert [value for value, *_ in found.specificity] == pytest.approx([0.95, 0.8, 0.9], abs=0.03)
    assert [value for value, *_ in found.rates.values()] == pytest.approx(rates, abs=0.03)
    assert all(low <= value <= high for value, low, high in (*found.sensitivity, *found.rates.values()))


def test_misses_are_left_out_and_an_answer_needs_two_verdicts() -> None:
    votes = simulate([(0.05, 0.05)] * 3, [0.2, 0.5], 300)
    changed = {
        model: {
            prompt: [None, None, said[2]] if prompt < 100 else [None, *said[1:]] if prompt < 200 else said
            for prompt, said in given.items()
        }
        for model, given in votes.items()
    }
    found = latent_class("abc", changed, draws=5)
    assert found is not None
    assert found.n == 400
    assert [value for value, *_ in found.rates.values()] == pytest.approx([0.2, 0.5], abs=0.08)


def test_what_does_not_determine_it_gives_nothing() -> None:
    both = simulate([(0.05, 0.05)] * 2, [0.2], 50)
    assert latent_class("ab", both) is None
    assert latent_class("a", simulate([(0.05, 0.05)], [0.2, 0.5], 50)) is None
    assert latent_class("ab", {"0": {}, "1": {}}) is None
    with pytest.raises(ValueError, match="2 votes of 3 judges"):
        latent_class("abc", both)


@pytest.mark.slow
def test_its_intervals_cover_the_truth() -> None:
    errors, rates = [(0.05, 0.1), (0.2, 0.1), (0.1, 0.2)], [0.1, 0.3, 0.6]
    covered: list[bool] = []
    for seed in range(20):
        found = latent_class("abc", simulate(errors, rates, 200, seed), seed=seed, draws=60)
        assert found is not None
        covered += holds(found, errors, rates)
    assert sum(covered) / len(covered) > 0.88
