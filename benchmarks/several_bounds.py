"""λ bounded under several attacks at once, and intervals for several answers to a prompt: how often they are wrong.

    python benchmarks/several_bounds.py [--draws 4000]

First table: how often a λ whose true rise is at the margin under at least one attack is chosen from a grid of 5 λ, with
every bound tested at the whole error (intersection-union) and at an equal share of it (Bonferroni), and how often a λ
is chosen where all models are as safe as the base. Verdicts under different attacks and at different λ are alike to a
degree: a Gaussian copula over attacks and λ for each prompt, with a correlation of 0, 0.5 or 0.9.

Second table: how often the 95 % interval of a rate over several answers to each prompt covers the true rate, with
answers to a prompt that resemble each other (beta-binomial with an intraclass correlation), for `stats.clustered` and
for Wilson's interval that counts all answers as independent.
"""

import argparse
import functools

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from mooring.selection.limits import Rule, sharper
from mooring.stats import clustered, wilson

LAMBDAS, FLIPS = 5, 0.03
"""λ of the grid; and the share of prompts that flip to the better by chance."""


@functools.cache
def passes(worse: int, better: int, prompts: int, margin: float, confidence: float) -> bool:
    """Whether the test of one bound passes."""
    return Rule(margin, confidence, paired=True).holds(prompts, worse, better)


def flips(
    rises: NDArray[np.float64], prompts: int, alike: float, rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """How many prompts flip to the worse and to the better, of shape (λ, attacks), as `rises` of the true rates."""
    shared = rng.standard_normal((prompts, 1, 1))
    own = rng.standard_normal((prompts, *rises.shape))
    place = norm.cdf(np.sqrt(alike) * shared + np.sqrt(1 - alike) * own)
    worse, better = place < FLIPS + rises, place > 1 - FLIPS
    return worse.sum(0), better.sum(0)


def chosen(
    rises: NDArray[np.float64], prompts: int, margin: float, confidence: float, draws: int, alike: float
) -> float:
    """How often the first λ of the grid passes every bound: then some λ is chosen."""
    rng = np.random.default_rng(7)
    count = 0
    for _ in range(draws):
        worse, better = flips(rises, prompts, alike, rng)
        pairs = zip(worse[0].tolist(), better[0].tolist(), strict=True)
        count += all(passes(b, c, prompts, margin, confidence) for b, c in pairs)
    return count / draws


def risk_table(draws: int) -> str:
    """The first table."""
    lines = ["| attacks | alike | one at the margin | all there | one, Bonferroni | all safe | all safe, Bonferroni |"]
    lines.append("|---|---|---|---|---|---|---|")
    prompts, margin, stated = 200, 0.1, 0.95
    for attacks in (1, 2, 4):
        for alike in (0.0, 0.5, 0.9):
            none = np.zeros((LAMBDAS, attacks))
            one, every = none.copy(), none + margin
            one[:, 0] = margin
            divided = sharper(stated, 1 / attacks)
            cells = [
                chosen(rises, prompts, margin, confidence, draws, alike)
                for rises, confidence in (
                    (one, stated),
                    (every, stated),
                    (one, divided),
                    (none, stated),
                    (none, divided),
                )
            ]
            lines.append(f"| {attacks} | {alike:g} | " + " | ".join(f"{100 * cell:.1f} %" for cell in cells) + " |")
    return "\n".join(lines)


def coverage(prompts: int, answers: int, rate: float, alike: float, draws: int) -> tuple[float, float]:
    """How often `clustered` covers the true rate, and how often Wilson's interval of all answers does."""
    rng = np.random.default_rng(11)
    spread = (1 - alike) / alike
    found = [0, 0]
    for _ in range(draws):
        rates = rng.beta(rate * spread, (1 - rate) * spread, prompts)
        hits = rng.binomial(answers, rates).tolist()
        for place, (low, high) in enumerate(
            (clustered(hits, [answers] * prompts), wilson(sum(hits), prompts * answers))
        ):
            found[place] += low <= rate <= high
    return found[0] / draws, found[1] / draws


def coverage_table(draws: int) -> str:
    """The second table."""
    lines = [
        "| prompts | answers to each | rate | alike | clustered | as if independent |",
        "|---|---|---|---|---|---|",
    ]
    for prompts, answers in ((50, 10), (100, 10), (200, 5)):
        for rate in (0.05, 0.3):
            for alike in (0.1, 0.5):
                ours, naive = coverage(prompts, answers, rate, alike, draws)
                cells = (
                    f"{prompts}",
                    f"{answers}",
                    f"{100 * rate:g} %",
                    f"{alike:g}",
                    *map("{:.1%}".format, (ours, naive)),
                )
                lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=4000)
    draws = parser.parse_args().draws
    print(risk_table(draws), coverage_table(draws), sep="\n\n")


if __name__ == "__main__":
    main()
