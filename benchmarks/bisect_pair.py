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

from sweep_cost import GRID
from timing import table

from mooring.generate.engine import Settings
from mooring.recipe import Recipe
from mooring.records import Completion, Prompt
from mooring.run.search import search
from mooring.run.sweep.merged_model import MergedModel
from mooring.score import judges
from mooring.select.bisect import Bisect
from mooring.select.evidence import Rule
from mooring.sources import evaluation_sets

LAMS = [round(0.05 * step, 2) for step in range(1, 20)]


@dataclasses.dataclass(frozen=True)
class Asked:
    """What a model answered: whether each response is harmful, and its tokens."""

    harmful: list[bool | None]
    tokens: list[int]


def ask_all(run: Path, prompts: Sequence[Prompt], recipe: Recipe) -> dict[float, Asked]:
    """Every λ, the base among them (0), on all prompts."""
    section, found, last = recipe.generate, {}, dict[str, Completion]()
    how = Settings(
        max_new_tokens=section.safety_max_new_tokens or section.max_new_tokens,
        repetition_penalty=section.safety_repetition_penalty,
    )
    model = MergedModel(run / "base", run / "tuned", batch_size=section.batch_size, dtype=section.dtype)
    for lam in (0.0, *LAMS):
        drafts = {key: completion.text for key, completion in last.items()}
        batches = model.at(lam).complete_drafted(list(prompts), how, drafts)
        last = {completion.prompt_id: completion for batch in batches for completion in batch}
        answers = [last[prompt.id] for prompt in prompts]
        verdicts = judges.by_rules(prompts, answers)
        found[lam] = Asked([v.harmful for v in verdicts], [c.tokens for c in answers])
        print(f"λ = {lam:<4g}  harmful: {sum(v.harmful is True for v in verdicts)} of {len(prompts)}", flush=True)
    return found


def on_grid(found: dict[float, Asked], lams: Sequence[float], rule: Rule) -> float:
    """The λ that a grid finds: the last before the first that does not pass; 0 where none does."""
    best = 0.0
    for lam in lams:
        pairs = list(zip(found[0.0].harmful, found[lam].harmful, strict=True))
        known = [(a, b) for a, b in pairs if a is not None and b is not None]
        if not rule.holds(len(known), sum(b and not a for a, b in known), sum(a and not b for a, b in known)):
            return best
        best = lam
    return best


def play(found: dict[float, Asked], rule: Rule, seed: int) -> tuple[float, int]:
    """One search: the λ found (0 where there is none), and the tokens that it took."""
    spent = 0

    def ask(lam: float, places: tuple[int, ...]) -> list[bool | None]:
        nonlocal spent
        spent += sum(found[lam].tokens[place] for place in places)
        return [found[lam].harmful[place] for place in places]

    base = found[0.0].harmful
    return search(Bisect(rule=rule, seed=seed), len(base), ask, base).lam or 0.0, spent


def main() -> None:
    """Ask, play, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--set", default="bundled:harmful")
    parser.add_argument("--margin", type=float, help="how far ASR may lie above the base's; the recipe's if not given")
    parser.add_argument("--orders", type=int, default=200, help="orders of the prompts to play")
    given = parser.parse_args()
    recipe = Recipe.load(given.run / "recipe.yaml")
    prompts = evaluation_sets(given.set, recipe.score.validation, recipe.seed, None)["validation"]
    found = ask_all(given.run, prompts, recipe)
    rule = Rule(given.margin or recipe.select.margin, recipe.select.confidence, paired=True)
    five = sum(sum(found[lam].tokens) for lam in GRID)
    grid, coarse, halved = (
        on_grid(found, LAMS, rule),
        on_grid(found, GRID, rule),
        on_grid(found, LAMS, Bisect(rule=rule).test),
    )
    games = [play(found, rule, seed) for seed in range(given.orders)]
    near = [abs(lam - grid) < 0.051 for lam, _ in games]
    share = [spent / five for _, spent in games]
    counts = {lam: sum(one == lam for one, _ in games) for lam in sorted({one for one, _ in games})}
    rows = [
        ["", "λ", "tokens, against a grid of 5 λ"],
        ["grid of 5 λ", f"{coarse:g}", "1"],
        ["all 19 λ", f"{grid:g}", f"{sum(sum(found[lam].tokens) for lam in LAMS) / five:.2f}"],
        ["all 19 λ, tested at half the error", f"{halved:g}", ""],
        [
            f"bisect, {given.orders} orders of the prompts",
            ", ".join(f"{lam:g} ({count / given.orders:.0%})" for lam, count in counts.items()),
            f"{min(share):.2f} to {max(share):.2f}",
        ],
        ["bisect, the recipe's seed", *(f"{value:.3g}" for value in play(found, rule, recipe.seed))],
    ]
    rows[-1][-1] = f"{float(rows[-1][-1]) / five:.2f}"
    print(f"\n{len(prompts)} prompts, margin {rule.bound:g}, confidence {rule.confidence}\n\n{table(rows)}\n")
    print(f"within 0.05 of all 19 λ: {statistics.fmean(near):.0%}")
    print(f"tokens, against a grid of 5 λ: {statistics.fmean(share):.3f}")


if __name__ == "__main__":
    main()
