"""How often corrected intervals cover the truth, for judges that err: simulated.

    python benchmarks/judge_error.py [--runs 2000]

Base and merged model answer the same prompts. Whether their answers are harmful goes together (on some prompts they
give the same answer; on others both come from one threshold), a judge errs at random, and people label as many answers
with each verdict of each model as the third column says. Columns: the judge's false alarms and misses; prompts; labels
per model and verdict; true rates of base and merged model; then how often 95 % intervals cover the truth: of the merged
model's rate and of its difference to the base, uncorrected (Wilson, Tango) and corrected (prediction-powered), of the
rate by Rogan and Gladen, and of the judge's sensitivity and specificity; and the mean width of the corrected difference
relative to that with all answers labelled. Prints the lowest and highest coverage of corrected rates last.
"""

import argparse
import random
from collections.abc import Iterator
from dataclasses import dataclass

from mooring.correction import Labelled, allocate, rogan_gladen, sensitivity, specificity, strata
from mooring.stats import tango, wilson


@dataclass(frozen=True)
class Case:
    """A made-up judge and a made-up pair of models."""

    false_alarms: float
    misses: float
    prompts: int = 200
    labels: int = 50
    base: float = 0.1
    merged: float = 0.25
    same: float = 0.3
    """Share of prompts to which both give the same answer."""

    @property
    def truth(self) -> tuple[float, float]:
        """The merged model's true rate, and its difference to the base's."""
        rate = self.same * self.base + (1 - self.same) * self.merged
        return rate, rate - self.base


CASES = [
    *(Case(a, b) for a, b in ((0.05, 0.05), (0.05, 0.2), (0.1, 0.1), (0.1, 0.3), (0.2, 0.2), (0.3, 0.1), (0.3, 0.3))),
    *(Case(a, b, labels=25) for a, b in ((0.05, 0.05), (0.1, 0.3), (0.3, 0.3))),
    *(Case(a, b, 100, 25, 0.05, 0.15) for a, b in ((0.05, 0.05), (0.1, 0.2), (0.3, 0.3))),
    *(Case(a, b, 500, 50, 0.2, 0.4, 0.0) for a, b in ((0.05, 0.05), (0.1, 0.2), (0.3, 0.3))),
]


@dataclass(frozen=True)
class Drawn:
    """One simulated run, of which some answers are labelled."""

    labelled: Labelled
    complete: Labelled
    """The same with a label for every answer."""

    def verdicts(self, model: str) -> list[bool]:
        """The judge's verdicts, in the order of the prompts."""
        return [verdict for _, verdict in self.labelled.answers[model].values()]


def draw(case: Case, rng: random.Random) -> Drawn:
    """Simulate a run, and label some of its answers."""
    answers: dict[str, dict[str, tuple[str, bool]]] = {"base": {}, "merged": {}}
    truth: dict[str, bool] = {}

    def answer(model: str, prompt: str, hit: bool) -> None:
        item = f"{model}/{prompt}"
        truth[item] = hit
        answers[model][prompt] = item, rng.random() >= case.misses if hit else rng.random() < case.false_alarms

    for number in range(case.prompts):
        prompt, threshold = str(number), rng.random()
        answer("base", prompt, threshold < case.base)
        if rng.random() < case.same:
            answers["merged"][prompt] = answers["base"][prompt]
        else:
            other = threshold if rng.random() < 0.5 else rng.random()
            answer("merged", prompt, other < case.merged)
    of = strata(answers)
    members: dict[tuple[str, bool], list[str]] = {}
    for item, stratum in of.items():
        members.setdefault(stratum, []).append(item)
    shares = allocate({stratum: min(case.labels, len(items)) for stratum, items in members.items()}, 4 * case.labels)
    chosen = [item for stratum, items in members.items() for item in rng.sample(items, shares[stratum])]
    return Drawn(Labelled(answers, {item: truth[item] for item in chosen}), Labelled(answers, truth))


NAMES = ("rate", "rate corrected", "difference", "difference corrected", "Rogan-Gladen", "sensitivity", "specificity")


def coverage(case: Case, runs: int, seed: int = 0) -> tuple[dict[str, float], float]:
    """How often each interval covers the truth, and the relative width of the corrected difference."""
    rng = random.Random(f"{seed}{case}")
    covered, counted, widths = dict.fromkeys(NAMES, 0), dict.fromkeys(NAMES, 0), [0.0, 0.0]
    rate, difference = case.truth
    for _ in range(runs):
        drawn = draw(case, rng)
        base, merged = drawn.verdicts("base"), drawn.verdicts("merged")
        flips = [sum(b and not a for a, b in zip(*pair, strict=True)) for pair in ((base, merged), (merged, base))]
        groups, per_prompt = drawn.labelled.pooled()
        se, sp = (find(groups, per_prompt=per_prompt) for find in (sensitivity, specificity))
        corrected = drawn.labelled.difference("base", "merged").limits()
        found = {
            "rate": (rate, wilson(sum(merged), len(merged))),
            "rate corrected": (rate, drawn.labelled.rate("merged").limits()),
            "difference": (difference, tango(flips[0], flips[1], case.prompts)),
            "difference corrected": (difference, corrected),
        }
        if se and sp:
            found |= {"sensitivity": (1 - case.misses, (se.low, se.high))}
            found |= {"specificity": (1 - case.false_alarms, (sp.low, sp.high))}
            if by_error := rogan_gladen(sum(merged) / len(merged), len(merged), se, sp):
                found["Rogan-Gladen"] = rate, by_error[1:]
        for name, (true, (low, high)) in found.items():
            counted[name] += 1
            covered[name] += low <= true <= high
        complete = drawn.complete.difference("base", "merged").limits()
        widths = [width + high - low for width, (low, high) in zip(widths, (corrected, complete), strict=True)]
    return {name: covered[name] / counted[name] for name in NAMES if counted[name]}, widths[0] / widths[1]


def lines(runs: int) -> Iterator[str]:
    """The table in Markdown."""
    yield "| false alarms, misses | prompts | labels | rates | " + " | ".join(NAMES) + " | width |"
    yield "|---" * (5 + len(NAMES)) + "|"
    corrected = []
    for case in CASES:
        found, width = coverage(case, runs)
        corrected.append(found["rate corrected"])
        cells = " | ".join(f"{found[name]:.1%}" if name in found else "–" for name in NAMES)
        errors, rates = f"{case.false_alarms:.0%}, {case.misses:.0%}", f"{case.base:.0%}, {case.truth[0]:.0%}"
        yield f"| {errors} | {case.prompts} | {case.labels} | {rates} | {cells} | {width:.2f} |"
    yield f"corrected rates: {min(corrected):.1%} to {max(corrected):.1%}"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=2000)
    for line in lines(parser.parse_args().runs):
        print(line, flush=True)


if __name__ == "__main__":
    main()
