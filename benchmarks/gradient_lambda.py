"""λ by gradient on a real pair: does it keep more of the task than the single λ, at the same bound?

    python benchmarks/gradient_lambda.py BASE TUNED --lam 0.5                 # a bundled model or folders
    python benchmarks/gradient_lambda.py bundled:smollm2-135m-aligned runs/quickstart/tuned --lam 0.5 --groups tensors

Searches λ of each group around the single λ as `search: gradient` does, with the prompts and settings of the
quickstart's recipe. Then the base, the single λ and what was found answer: harmful requests of the validation half, by
which a run would hold it against its bound, and those and the task of the test half. "Rise at most": the upper limit of
the rise above the base's rate, 95 % confidence, in points. Prints the paired differences on the test half last.
"""

import argparse
import dataclasses
import json
from pathlib import Path

from timing import table

from mooring.config import Recipe, bundled_recipe
from mooring.inference.engine import Engine
from mooring.merge_point import BASE, MergePoint
from mooring.merging.pair import open_pair
from mooring.models.resolve import resolve_model
from mooring.pipeline.gradient import search_gradient
from mooring.pipeline.plan import Plan, build
from mooring.pipeline.sweeps.sweep import SweepSpec
from mooring.pipeline.sweeps.transformers import MergedModel
from mooring.records import Half, Score
from mooring.scoring import judges
from mooring.scoring.task import TaskData, task_scores
from mooring.stats import compare_rates, compare_scores, paired_upper, worst_flips

METRICS = ("call_match", "response_loss")


@dataclasses.dataclass(frozen=True)
class Asked:
    """What a model answered: whether each response is harmful, by half and prompt; and its task scores on test."""

    harmful: dict[Half, dict[str, bool | None]]
    task: dict[str, Score]


def ask(engine: Engine, plan: Plan) -> Asked:
    """Ask a model all that it is measured by."""
    harmful: dict[Half, dict[str, bool | None]] = {}
    for half in ("validation", "test"):
        prompts = plan.prompts(half)["safety"]
        made = {c.prompt_id: c for batch in engine.complete(prompts, plan.sampling("safety")) for c in batch}
        verdicts = judges.by_wording(judges.find("rules"), prompts, [made[prompt.id] for prompt in prompts])
        harmful[half] = {verdict.prompt_id: verdict.harmful for verdict in verdicts}
    prompts = plan.prompts("test")["task"]
    data = TaskData(
        prompts=prompts,
        completions=[c for batch in engine.complete(prompts, plan.sampling("task")) for c in batch],
        likelihoods=[each for batch in engine.likelihood(prompts) for each in batch],
        seed=plan.recipe.seed,
    )
    return Asked(harmful, task_scores(METRICS, data))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("base")
    parser.add_argument("tuned", type=Path)
    parser.add_argument("--lam", type=float, default=0.5, help="the single λ")
    parser.add_argument("--groups", choices=("modules", "layers", "tensors"), default="layers")
    parser.add_argument("--prompts", type=int, default=48, help="prompts of each kind for the search")
    parser.add_argument("--out", type=Path, help="a file for what the search found")
    given = parser.parse_args()
    values = Recipe.load(bundled_recipe("quickstart")).model_dump(mode="json", exclude_unset=True)
    del values["tune"]
    values |= {"base": given.base, "tuned": str(given.tuned), "out": "no-run-folder"}
    values["select"] |= {"search": "gradient", "groups": given.groups, "search_prompts": given.prompts}
    plan = build(Recipe.parse(values))
    pair = open_pair(resolve_model(given.base), resolve_model(str(given.tuned)))
    spec = SweepSpec(pair=pair, runner=plan.recipe.generate, system=plan.recipe.system)
    single = MergePoint(given.lam)
    found = search_gradient(
        spec, single, plan.search_sets, given.groups, lambda event: print(event.message, flush=True)
    )
    print(found.sentence)
    print(", ".join(f"{name} {lam:g}" for name, lam in zip(found.groups, found.lams, strict=True)), flush=True)
    if given.out:
        given.out.write_text(json.dumps(found.to_dict(), indent=1) + "\n")
    asked: dict[str, Asked] = {}
    with MergedModel(spec) as merged:
        for name, point in (("base", BASE), (f"single {single.label}", single), ("by gradient", found.point)):
            asked[name] = ask(merged.at(spec.lam_of(point)), plan)
    base, one, other = asked.values()
    rows = []
    for name, each in asked.items():
        cells = [name]
        for half in ("validation", "test"):
            hits = list(each.harmful[half].values())
            flips = worst_flips(base.harmful[half], each.harmful[half])
            upper = paired_upper(flips.worse, flips.better, flips.pairs)
            cells += [f"{sum(map(bool, hits))}/{len(hits)}", "" if each is base else f"{100 * upper:+.1f}"]
        rows.append([*cells, *(f"{each.task[metric].value:.4f}" for metric in METRICS)])
    heads = ["", "harmful, validation", "rise at most", "harmful, test", "rise at most", *METRICS]
    print(table([heads, *rows]))
    print("\nTest half, by gradient − single, on the same prompts, with 95 % intervals:")
    print("harmful:", compare_rates(one.harmful["test"], other.harmful["test"]))
    for metric in METRICS:
        first, second = one.task[metric], other.task[metric]
        print(f"{metric}:", compare_scores(first.each, second.each, weights=first.weights or None))


if __name__ == "__main__":
    main()
