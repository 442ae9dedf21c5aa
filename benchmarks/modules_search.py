"""λ by module on made-up models: how often what is taken truly beats the single λ, and how often it breaks its bound.

    python benchmarks/modules_search.py [--models 500] [--budget 12]

Each model has six groups of modules. Its true task score and attack success rate (ASR) are sums over the groups of an
effect times λ. Verdicts are drawn for every prompt and merge, alike between merges to a degree. The single λ is chosen
on the grid 0.2 … 0.8 as a run does, and the search is the run's own. Kinds of model:

    uneven   each group's effects are drawn by themselves: something better than the single λ exists, as a rule
    even     ASR rises exactly as the task score does: nothing is better, what is taken is taken by luck
    flat     every merge, the single λ too, has its ASR at the bound itself; the task effects are as in `uneven`
    edge     every merge with λ by module lies at the bound, the single λ at 0.8 of the way to it

Columns: models; with a single λ within the bound; of these, λ by module taken; of all models, one taken that truly
beats the single λ on both axes; of those taken, such as do; what taking them truly changed on average, in points of
task score and of ASR; models where what is chosen has a true ASR at the bound or over it. Prints the summary last.
"""

import argparse
import math
import random
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean

from mooring.config import GRID, Select
from mooring.merge_point import BASE, MergePoint
from mooring.records import Choice, Score, Trial
from mooring.selection.limits import SINGLE_SHARE, attempt_confidence, sharper, smallest_set, with_flips
from mooring.selection.per_module import by_module
from mooring.selection.policies import choose

NORMAL = NormalDist()
GROUPS = [f"{depth} {kind}" for depth in ("early", "middle", "late") for kind in ("attention", "mlp")]
EDGE = 1e-9


@dataclass(frozen=True)
class Model:
    """A made-up model: what is true of it, and the verdicts drawn from that."""

    seed: int
    kind: str
    base: float
    margin: float
    prompts: int
    alike: float
    task: Mapping[str, float]
    harm: Mapping[str, float]

    def truth(self, modules: Mapping[str, float]) -> tuple[float, float]:
        """Task score and ASR of a merge."""
        task = 0.1 + sum(self.task[name] * lam for name, lam in modules.items())
        harm = self.base + sum(self.harm[name] * lam for name, lam in modules.items())
        if self.kind in ("flat", "edge") and any(modules.values()):
            single = len(set(modules.values())) == 1
            harm = self.base + self.margin * (0.8 if single and self.kind == "edge" else 1.0)
        return min(task, 1.0), min(harm, 1.0)

    def over(self, modules: Mapping[str, float]) -> bool:
        """Whether a merge's true ASR is at the bound or over it."""
        return self.truth(modules)[1] >= self.base + self.margin - EDGE

    def trial(self, point: MergePoint) -> tuple[Trial, dict[str, bool | None]]:
        """What is measured of a merge, and its verdicts."""
        modules = lambdas(point)
        found: dict[str, Score] = {}
        hits: dict[str, bool | None] = {}
        for name, rate in zip(("call_match", "asr"), self.truth(modules), strict=True):
            common, own = random.Random(f"{self.seed} {name}"), random.Random(f"{self.seed} {name} {modules}")
            line = NORMAL.inv_cdf(rate) if 0 < rate < 1 else math.copysign(math.inf, rate - 0.5)
            a, b = math.sqrt(self.alike), math.sqrt(1 - self.alike)
            drawn = [a * common.gauss(0, 1) + b * own.gauss(0, 1) < line for _ in range(self.prompts)]
            counts = {"yes": float(sum(drawn)), "total": float(self.prompts), "miss": 0.0}
            found[name] = Score(
                name=name,
                value=fmean(drawn),
                low=None,
                high=None,
                n=self.prompts,
                better="lower" if name == "asr" else "higher",
                method="made up",
                details=counts,
            )
            hits = {str(i): hit for i, hit in enumerate(drawn)}
        return Trial(point=point, method="linear", split="validation", scores=found), hits


def lambdas(point: MergePoint) -> dict[str, float]:
    """λ of every group."""
    return {name: point.overrides.get(name, point.lam) for name in GROUPS}


def make(seed: int, kind: str) -> Model:
    """A model by its seed."""
    draw = random.Random(f"{seed} {kind}")
    task = [draw.expovariate(1) for _ in GROUPS]
    harm = task if kind == "even" else [draw.expovariate(1) for _ in GROUPS]
    gain, cost = draw.uniform(0.2, 0.8), draw.uniform(0.05, 0.5)
    return Model(
        seed=seed,
        kind=kind,
        base=draw.choice((0.0, 0.02, 0.05)),
        margin=draw.choice((0.1, 0.15)),
        prompts=draw.choice((100, 200, 400)),
        alike=draw.choice((0.5, 0.8, 0.95)),
        task={name: gain * value / sum(task) for name, value in zip(GROUPS, task, strict=True)},
        harm={name: cost * value / sum(harm) for name, value in zip(GROUPS, harm, strict=True)},
    )


@dataclass(frozen=True)
class Outcome:
    """What became of a model."""

    within: bool
    taken: bool = False
    beats: bool = False
    broken: bool = False
    task: float = 0.0
    asr: float = 0.0


def play(model: Model, settings: Select, budget: int) -> Outcome:
    """The grid, then the search."""
    settings = settings.model_copy(update={"margin": model.margin})
    measured = {point: model.trial(point) for point in (BASE, *map(MergePoint, GRID))}
    hits = {"asr": {point: said for point, (_, said) in measured.items()}}
    grid = with_flips([trial for trial, _ in measured.values()], hits)
    assert settings.confidence is not None
    sure = sharper(settings.confidence, SINGLE_SHARE)
    choice: Choice = choose(grid, metric="call_match", settings=settings.model_copy(update={"confidence": sure}))
    if not choice.within:
        return Outcome(within=False)
    single = next(trial for trial in grid if trial.point == choice.point)

    def ask(points: Sequence[MergePoint]) -> list[Trial]:
        trials: list[Trial] = []
        for point in points:
            trial, said = model.trial(point)
            trials += with_flips([trial], {"asr": {BASE: hits["asr"][BASE], point: said}})
        return trials

    found = by_module(grid[0], single, GROUPS, GRID, settings, "call_match", budget, ask)
    alone = lambdas(choice.point)
    if found.chosen is None:
        return Outcome(within=True, broken=model.over(alone))
    best = lambdas(found.tried[found.chosen].trial.point)
    before, after = model.truth(alone), model.truth(best)
    task, asr = after[0] - before[0], before[1] - after[1]
    beats = task > EDGE and (asr > EDGE or after[1] <= EDGE)
    return Outcome(within=True, taken=True, beats=beats, broken=model.over(best), task=task, asr=asr)


def show(kind: str, outcomes: list[Outcome]) -> None:
    """A line of the table."""
    within, taken = [o for o in outcomes if o.within], [o for o in outcomes if o.taken]
    of_taken = f"{fmean(o.beats for o in taken):>6.1%}" if taken else f"{'–':>6}"
    gains = f"{100 * fmean(o.task for o in taken):>+6.1f}  {-100 * fmean(o.asr for o in taken):>+6.1f}" if taken else ""
    print(
        f"{kind:<8} {len(outcomes):>5}  {len(within) / len(outcomes):>6.1%}  {len(taken) / max(len(within), 1):>6.1%}  "
        f"{fmean(o.taken and o.beats for o in outcomes):>6.1%}  {of_taken}  {gains:>14}  "
        f"{fmean(o.broken for o in outcomes):>6.1%}",
        flush=True,
    )


def main() -> None:
    """Play all models, print a table, fail if the bound is broken oftener than stated."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=500, help="of each kind")
    parser.add_argument("--budget", type=int, default=12)
    args = parser.parse_args()
    settings = Select()
    print(
        f"{'':<8} {'n':>5}  {'within':>6}  {'taken':>6}  {'better':>6}  {'truly':>6}  {'task':>6}  {'ASR':>6}  broken"
    )
    played = {}
    for kind in ("uneven", "even", "flat", "edge"):
        played[kind] = [play(make(seed, kind), settings, args.budget) for seed in range(args.models)]
        show(kind, played[kind])
    each = attempt_confidence(0.95, args.budget)
    needed = ", ".join(f"{smallest_set(margin, each)} for {100 * margin:.0f}" for margin in (0.02, 0.05, 0.1))
    print(f"each try is tested at {100 * each:.5g} %; fewest prompts, by points of margin: {needed}")
    taken = [o for o in played["uneven"] if o.taken]
    worst = max(fmean(o.broken for o in outcomes) for outcomes in played.values())
    luck = fmean(o.taken for o in played["even"] if o.within)
    truly = fmean(o.beats for o in taken) if taken else 0.0
    print(
        f"of what is taken, {truly:.0%} truly beats the single λ on both axes; where nothing is better, {luck:.1%} is "
        f"taken by luck; bound broken in {worst:.1%} at most (stated: at most 5 %)"
    )
    if worst > 0.05:
        sys.exit("broken oftener than stated")


if __name__ == "__main__":
    main()
