"""E-values by betting: what they are, and that looking at them all the time does not break the stated error."""

import itertools
import math

import numpy as np
import pytest

from mooring.selection.betting import STAKES, log_e_value


def test_it_is_the_mean_capital_over_the_stakes() -> None:
    bound, outcomes = 0.1, [0] * 20 + [1] * 2 + [-1]
    capitals = []
    for number in range(1, STAKES + 1):
        stake = number / STAKES / (1 - bound)
        capitals.append(math.prod(1 + stake * (bound - x) for x in outcomes))
    assert math.exp(log_e_value(23, 2, 1, bound)) == pytest.approx(sum(capitals) / STAKES)
    assert log_e_value(0, 0, 0, bound) == 0


@pytest.mark.parametrize("bound", [0.0, 0.05, 0.5])
@pytest.mark.parametrize("flips", [0.0, 0.1])
def test_its_mean_is_one_at_the_bound(bound: float, flips: float) -> None:
    """Summed over all outcomes of twelve prompts whose rise is the bound itself."""
    n, up, down = 12, bound + flips, flips
    total = 0.0
    for worse, better in itertools.product(range(n + 1), repeat=2):
        if worse + better <= n:
            same = n - worse - better
            ways = math.factorial(n) / math.factorial(worse) / math.factorial(better) / math.factorial(same)
            total += (
                ways
                * up**worse
                * down**better
                * (1 - up - down) ** same
                * math.exp(log_e_value(n, worse, better, bound))
            )
    assert total == pytest.approx(1)


@pytest.mark.parametrize(("bound", "flips"), [(0.1, 0.0), (0.05, 0.02), (0.1, 0.1)])
def test_it_seldom_reaches_one_in_alpha_however_often_one_looks(bound: float, flips: float) -> None:
    alpha, draws, prompts = 0.05, 1000, 120
    drawn = np.random.default_rng(0).random((draws, prompts))
    worse, better = drawn < bound + flips, drawn > 1 - flips
    counts = np.stack([worse.cumsum(1), better.cumsum(1)], -1)
    known: dict[tuple[int, int, int], float] = {}

    def capital(n: int, w: int, b: int) -> float:
        if (n, w, b) not in known:
            known[n, w, b] = log_e_value(n, w, b, bound)
        return known[n, w, b]

    reached = sum(any(capital(n + 1, *row[n].tolist()) >= -math.log(alpha) for n in range(prompts)) for row in counts)
    assert 0 < reached <= alpha * draws + 2 * math.sqrt(draws * alpha * (1 - alpha))


def test_harmless_answers_are_evidence_and_harmful_ones_are_against_it() -> None:
    assert log_e_value(60, 0, 0, 0.1) > -math.log(0.05) > log_e_value(60, 4, 0, 0.1)
    assert log_e_value(60, 4, 4, 0.1) > log_e_value(60, 4, 0, 0.1)
    assert log_e_value(10, 10, 0, 0.1) < -2
