"""Bisect on made-up curves: how often it breaks its bound, finds what the grid finds, and what it costs.

    python benchmarks/bisect_risk.py [--curves 1000]
    python benchmarks/bisect_risk.py --table                    # how many prompts a margin needs
    python benchmarks/bisect_risk.py --level                    # how often a λ at the margin itself passes

Each curve gives the true attack success rate (ASR) at every λ: logistic, or a step. Verdicts are drawn from it, alike
between λ to a degree (a prompt that is harmful at one λ tends to be at the next). The bound is on the ASR, or on its
rise above the base's. The grid asks every λ (0.05 apart) all prompts; cost is against a grid of 5 λ, harmful prompts
alone, the base's aside. `edge` are hard curves: a step that ends at the bound itself. `flat` are the hardest: every λ
lies there.

Columns: curves; λ found at or over the bound in truth, by bisect and by the grid; λ found within 0.05 of the grid's
(the last before the first that fails); the same, or within 0.05 of anything between that and the largest λ that passes;
responses against a 5-point grid's. Prints that share last.
"""

import argparse
import math
import random
import sys
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist, fmean

from mooring.selection.bisect import BisectResult, BisectSettings, bisect
from mooring.selection.limits import Rule, table
from mooring.stats import paired_within

NORMAL = NormalDist()
GRID = [round(0.05 * step, 2) for step in range(1, 20)]
SIZES = (130, 200, 300, 500)


@dataclass(frozen=True)
class Case:
    """A made-up curve with its bound, and the verdicts drawn from it."""

    kind: str
    truth: Callable[[float], float]
    rule: Rule
    prompts: int
    verdicts: Callable[[float], list[bool]]

    def over(self, lam: float) -> bool:
        """Whether the true rate (or its rise) at λ is at the bound or above."""
        rate = self.truth(lam) - (self.truth(0.0) if self.rule.paired else 0.0)
        return rate >= self.rule.bound - 1e-12

    def passes(self, lam: float) -> bool:
        """Whether λ keeps the bound on all prompts, as on a grid."""
        hits, base = self.verdicts(lam), self.verdicts(0.0)
        if not self.rule.paired:
            return self.rule.holds(self.prompts, sum(hits), 0)
        pairs = list(zip(base, hits, strict=True))
        return self.rule.holds(self.prompts, sum(b > a for a, b in pairs), sum(a > b for a, b in pairs))


@dataclass(frozen=True)
class Outcome:
    """What became of a case."""

    case: Case
    found: BisectResult
    grid: float
    last: float

    @property
    def broken(self) -> bool:
        """Whether the λ found is over the bound in truth."""
        return self.found.lam is not None and self.case.over(self.found.lam)

    @property
    def cost(self) -> float:
        """Responses, against those of a 5-point grid."""
        return self.found.responses / (5 * self.found.prompts)


def make(seed: int, kind: str) -> Case:
    """A case by its seed: `curve` (logistic or step, any height), `edge` (a step up to the bound itself) or `flat`."""
    draw = random.Random(seed)
    base, prompts = draw.choice((0.0, 0.01, 0.03, 0.05, 0.1)), draw.choice(SIZES)
    margin, paired, alike = draw.choice((0.05, 0.1)), draw.random() < 0.5, draw.choice((0.0, 0.5, 0.9, 1.0))
    top, middle, slope = draw.uniform(base + 0.05, 0.95), draw.uniform(0.1, 0.95), draw.uniform(5, 40)
    rule = Rule(margin if paired else base + margin, 0.95, paired)
    shape = draw.choice(("logistic", "step")) if kind == "curve" else kind
    top = top if kind == "curve" else base + margin
    middle = 1e-9 if kind == "flat" else middle
    common = [draw.gauss(0, 1) for _ in range(prompts)]
    kept: dict[float, list[bool]] = {}

    def truth(lam: float) -> float:
        if shape != "logistic":
            return base if lam < middle else top
        low, high, here = (1 / (1 + math.exp(-slope * (at - middle))) for at in (0.0, 1.0, lam))
        return base + (top - base) * (here - low) / (high - low)

    def verdicts(lam: float) -> list[bool]:
        if lam not in kept:
            noise = random.Random(f"{seed} {lam:g}")
            rate = truth(lam)
            line = NORMAL.inv_cdf(rate) if rate > 0 else -math.inf
            kept[lam] = [math.sqrt(alike) * c + math.sqrt(1 - alike) * noise.gauss(0, 1) < line for c in common]
        return kept[lam]

    return Case(shape, truth, rule, prompts, verdicts)


def play(seed: int, kind: str = "curve", doubt: float = 0.05) -> Outcome:
    """One search, and the full grid on the same verdicts."""
    case = make(seed, kind)
    plan = BisectSettings(rule=case.rule, doubt=doubt, seed=seed)

    def ask(lam: float, places: tuple[int, ...]) -> list[bool]:
        hits = case.verdicts(lam)
        return [hits[place] for place in places]

    found = bisect(plan, case.prompts, ask, case.verdicts(0.0))
    passed = [case.passes(lam) for lam in GRID]
    unbroken = next((place for place, one in enumerate(passed) if not one), len(GRID))
    last = max((lam for lam, one in zip(GRID, passed, strict=True) if one), default=0.0)
    return Outcome(case, found, GRID[unbroken - 1] if unbroken else 0.0, last)


def same(outcome: Outcome) -> bool:
    """Whether the λ found is the grid's, to 0.05: the last before the first that fails, or the largest that passes."""
    lam = outcome.found.lam or 0.0
    return min(outcome.grid, outcome.last) - 0.051 < lam < max(outcome.grid, outcome.last) + 0.051


def show(name: str, outcomes: list[Outcome]) -> None:
    """A line of the table."""
    grid_broken = fmean(outcome.grid > 0 and outcome.case.over(outcome.grid) for outcome in outcomes)
    print(
        f"{name:<22} {len(outcomes):>5}  {fmean(o.broken for o in outcomes):>7.1%}  {grid_broken:>7.1%}  "
        f"{fmean(abs((o.found.lam or 0) - o.grid) < 0.051 for o in outcomes):>6.1%}  "
        f"{fmean(same(o) for o in outcomes):>6.1%}  {fmean(o.cost for o in outcomes):>6.3f}",
        flush=True,
    )


def level(n: int, margin: float, confidence: float = 0.95) -> float:
    """The chance that a λ whose ASR lies just `margin` above the base's passes, the greatest over rates of flips.

    All outcomes (b, c) of `n` pairs are summed, each with its trinomial chance: nothing is drawn.
    """
    passing = [(b, c) for b in range(n + 1) for c in range(n + 1 - b) if paired_within(b, c, n, margin, confidence)]
    ways = {(b, c): math.lgamma(n + 1) - sum(math.lgamma(k + 1) for k in (b, c, n - b - c)) for b, c in passing}

    def chance(back: float) -> float:
        """With a share `back` of pairs that turn for the better, and `margin` more that turn for the worse."""
        worse, same = back + margin, 1 - 2 * back - margin
        return sum(
            math.exp(way + b * math.log(worse) + c * math.log(back) + (n - b - c) * math.log(same))
            for (b, c), way in ways.items()
        )

    return max(
        chance(back)
        for back in (1e-9, 0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.08, 0.12, 0.2, 0.3)
        if 2 * back + margin < 1
    )


def levels() -> None:
    """Print the level of the paired limit, a line for each number of prompts, a column for each margin."""
    margins = (0.05, 0.1, 0.2, 0.3, 0.5, 0.7)
    print("prompts  " + "  ".join(f"{100 * margin:.0f} points" for margin in margins))
    for n in (3, 11, 25, 40, 59, 60, 100, 200):
        print(f"{n:>7}  " + "  ".join(f"{level(n, margin):>9.1%}" for margin in margins), flush=True)


def main() -> None:
    """Play all curves, print a table, fail if the bound is broken more often than stated."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--curves", type=int, default=1000)
    parser.add_argument("--doubt", type=float, default=0.05)
    parser.add_argument("--table", action="store_true", help="print how many prompts a margin needs, and end")
    parser.add_argument("--level", action="store_true", help="print how near 5 %% the paired limit's risk is, and end")
    args = parser.parse_args()
    if args.level:
        levels()
        return
    if args.table:
        print(table(), end="")
        return
    print(f"{'':<22} {'n':>5}  {'broken':>7}  {'by grid':>7}  {'same':>6}  {'near':>6}  {'cost':>6}")
    curves = [play(seed, doubt=args.doubt) for seed in range(args.curves)]
    for shape in ("logistic", "step"):
        show(shape, [o for o in curves if o.case.kind == shape])
    for size in SIZES:
        show(f"{size} prompts", [o for o in curves if o.case.prompts == size])
    for paired in (False, True):
        show("rise above base" if paired else "rate", [o for o in curves if o.case.rule.paired == paired])
    for kind in ("edge", "flat"):
        hard = [play(seed, kind, args.doubt) for seed in range(args.curves)]
        show(kind, hard)
    show("all curves", curves)
    cost, broken = fmean(o.cost for o in curves), fmean(o.broken for o in curves)
    print(f"bound broken in {broken:.1%} of {len(curves)} curves; stated: at most 5 %")
    worst = fmean(outcome.broken for outcome in hard)
    print(f"in {worst:.1%} where every λ lies at it")
    print(f"responses, against a 5-point grid: {cost:.3f} (goal: at most 0.35)")
    if max(broken, worst) > 0.05:
        sys.exit("broken more often than stated")


if __name__ == "__main__":
    main()
