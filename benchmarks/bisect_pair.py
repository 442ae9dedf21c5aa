"""Bisect on a run's own models: does it find the grid's λ, and with how much of its tokens?

    python benchmarks/bisect_pair.py runs/quickstart                      # its margin, its harmful prompts
    python benchmarks/bisect_pair.py runs/quickstart --set advbench --margin 0.05

The base and every λ, 0.05 apart, answer the validation half once; from these verdicts the search is played with many
orders of the prompts, and held against the grid of all λ (tested at the stated confidence, the last before the first
that fails) and against the tokens of a grid of 5 λ. Prints that share last.
"""

import argparse
import dataclasses
import statistics
from collections.abc import Sequence
from pathlib import Path

from finished_run import base_of
from sweep_cost import GRID
from timing import table

from mooring.config import Recipe
from mooring.data import load_splits
from mooring.merging.pair import open_pair
from mooring.pipeline.search import bisection
from mooring.pipeline.sweeps.sweep import SweepSpec
from mooring.pipeline.sweeps.transformers import MergedModel
from mooring.records import Completion, Prompt
from mooring.scoring import judges
from mooring.selection.bisect import BisectSettings, bisect
from mooring.selection.limits import Rule

LAMS = [round(0.05 * step, 2) for step in range(1, 20)]


@dataclasses.dataclass(frozen=True)
class Asked:
    """What a model answered: whether each response is harmful, and its tokens."""

    harmful: list[bool | None]
    tokens: list[int]


def ask_all(run: Path, prompts: Sequence[Prompt], recipe: Recipe) -> dict[float, Asked]:
    """Every λ, the base among them (0), on all prompts."""
    section, found, last = recipe.generate, {}, dict[str, Completion]()
    how = section.sampling("safety", recipe.seed)
    model = MergedModel(SweepSpec(pair=open_pair(base_of(run), run / "tuned"), runner=section))
    for lam in (0.0, *LAMS):
        drafts = {key: completion.text for key, completion in last.items()}
        batches = model.at(lam).complete(list(prompts), how, drafts=drafts)
        last = {completion.prompt_id: completion for batch in batches for completion in batch}
        answers = [last[prompt.id] for prompt in prompts]
        verdicts = judges.by_wording(judges.find("classifier"), prompts, answers)
        found[lam] = Asked([v.harmful for v in verdicts], [c.tokens for c in answers])
        print(f"λ = {lam:<4g}  harmful: {sum(v.harmful is True for v in verdicts)} of {len(prompts)}", flush=True)
    return found


def on_grid(found: dict[float, Asked], lams: Sequence[float], rule: Rule) -> float:
    """The λ that a grid finds: the last before the first that does not pass; 0 where none does."""
    best = 0.0
    for lam in lams:
        first = found[0.0].harmful if rule.paired else [False] * len(found[lam].harmful)
        pairs = list(zip(first, found[lam].harmful, strict=True))
        known = [(a, b) for a, b in pairs if a is not None and b is not None]
        if not rule.holds(len(known), sum(b and not a for a, b in known), sum(a and not b for a, b in known)):
            return best
        best = lam
    return best


def play(found: dict[float, Asked], settings: BisectSettings) -> tuple[float, int]:
    """One search: the λ found (0 where there is none), and the tokens that it took."""
    spent = 0

    def ask(lam: float, places: tuple[int, ...]) -> list[bool | None]:
        nonlocal spent
        spent += sum(found[lam].tokens[place] for place in places)
        return [found[lam].harmful[place] for place in places]

    base = found[0.0].harmful
    return bisect(settings, len(base), ask, base).lam or 0.0, spent


def main() -> None:
    """Ask, play, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--set", default="bundled:harmful")
    parser.add_argument(
        "--margin", type=float, help="how far ASR may lie above the base's; the recipe's bound if not given"
    )
    parser.add_argument("--orders", type=int, default=200, help="orders of the prompts to play")
    given = parser.parse_args()
    recipe = Recipe.load(given.run / "recipe.yaml")
    prompts = load_splits(given.set, recipe.score.validation, recipe.seed, None)["validation"]
    found = ask_all(given.run, prompts, recipe)
    update = {} if given.margin is None else {"margin": given.margin, "bound": None}
    plan = bisection(recipe.select.model_copy(update=update), recipe.seed)
    five = sum(sum(found[lam].tokens) for lam in GRID)
    whole = sum(sum(found[lam].tokens) for lam in LAMS) / five
    grid = on_grid(found, LAMS, plan.rule)
    games = [play(found, dataclasses.replace(plan, seed=seed)) for seed in range(given.orders)]
    share = [spent / five for _, spent in games]
    lams = sorted({lam for lam, _ in games})
    seen = ", ".join(f"{lam:g} ({statistics.fmean(one == lam for one, _ in games):.0%})" for lam in lams)
    lam, spent = play(found, plan)
    rows = [
        ["", "λ", "tokens, against a grid of 5 λ"],
        ["grid of 5 λ", f"{on_grid(found, GRID, plan.rule):g}", "1"],
        ["all 19 λ", f"{grid:g}", f"{whole:.2f}"],
        ["all 19 λ, tested as each of a bisection", f"{on_grid(found, LAMS, plan.test):g}", f"{whole:.2f}"],
        [f"bisect, {given.orders} orders of the prompts", seen, f"{min(share):.2f} to {max(share):.2f}"],
        ["bisect, the recipe's seed", f"{lam:g}", f"{spent / five:.2f}"],
    ]
    print(f"\n{len(prompts)} prompts, bound {plan.rule.bound:g}, confidence {plan.rule.confidence}\n\n{table(rows)}\n")
    print(f"within 0.05 of all 19 λ: {statistics.fmean(abs(lam - grid) < 0.051 for lam, _ in games):.0%}")
    print(f"tokens, against a grid of 5 λ: {statistics.fmean(share):.3f}")


if __name__ == "__main__":
    main()
