"""λ by gradient on a real pair: does it keep more of the task than the single λ, at the same bound?

    python benchmarks/gradient_lambda.py BASE TUNED --lam 0.5                 # a bundled model or folders
    python benchmarks/gradient_lambda.py bundled:smollm2-135m-aligned runs/quickstart/tuned --lam 0.5 --groups tensors

Searches λ of each group around the single λ as `search: gradient` does, with the prompts and settings of the
quickstart's recipe. Then both are measured on the test half, in pairs on the same prompts with 95 % intervals: the
response loss, then the harmful requests and the calls that they answer. "Rise at most": the upper limit of the rise
above the base's rate, 95 % confidence, which a run holds against its margin. Prints each as soon as it is known.
"""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path

from mooring.config import Recipe, bundled_recipe
from mooring.data.splits import draw
from mooring.merge_point import BASE, MergePoint
from mooring.merging.pair import open_pair
from mooring.models.resolve import resolve_model
from mooring.pipeline.gradient import search_gradient
from mooring.pipeline.plan import build
from mooring.pipeline.sweeps.sweep import SweepSpec
from mooring.pipeline.sweeps.transformers import MergedModel
from mooring.records import Score
from mooring.scoring import judges
from mooring.scoring.task import TaskData, task_scores
from mooring.stats import Difference, compare_rates, compare_scores, paired_upper, worst_flips

POINTS = 100


def show(name: str, found: Difference, scale: float = 1.0) -> None:
    """Print a difference, by gradient − single."""
    numbers = [scale * each if each is not None else float("nan") for each in (found.value, found.low, found.high)]
    print("{}: {:+.4g} [{:+.4g}, {:+.4g}] of {} prompts".format(name, *numbers, found.n), flush=True)


def between(scores: list[Mapping[str, Score]], metric: str) -> Difference:
    """The difference of a task score between two models."""
    first, second = (each[metric] for each in scores)
    return compare_scores(first.each, second.each, weights=first.weights or None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("base")
    parser.add_argument("tuned", type=Path)
    parser.add_argument("--lam", type=float, default=0.5, help="the single λ")
    parser.add_argument("--groups", choices=("modules", "layers", "tensors"), default="layers")
    parser.add_argument("--prompts", type=int, default=48, help="prompts of each kind for the search")
    parser.add_argument("--limit", type=int, default=1000, help="prompts of each kind that are measured")
    parser.add_argument("--out", type=Path, help="a file for what the search found")
    given = parser.parse_args()
    values = Recipe.load(bundled_recipe("quickstart")).model_dump(mode="json", exclude_unset=True)
    del values["tune"]
    values |= {"base": given.base, "tuned": str(given.tuned), "out": "no-run-folder"}
    values["select"] |= {"search": "gradient", "groups": given.groups, "search_prompts": given.prompts}
    plan = build(Recipe.parse(values))
    pair = open_pair(resolve_model(given.base), resolve_model(str(given.tuned)))
    spec = SweepSpec(pair=pair, runner=plan.recipe.generate, system=plan.recipe.system)
    single, seed = MergePoint(given.lam), plan.recipe.seed
    found = search_gradient(
        spec, single, plan.search_sets, given.groups, lambda event: print(event.message, flush=True)
    )
    print(found.sentence)
    print(", ".join(f"{name} {lam:g}" for name, lam in zip(found.groups, found.lams, strict=True)), flush=True)
    if given.out:
        given.out.write_text(json.dumps(found.to_dict(), indent=1) + "\n")
    task, requests = (draw(plan.prompts("test")[name], given.limit, seed) for name in ("task", "safety"))
    both = (single, found.point)
    with MergedModel(spec) as merged:
        losses = []
        for point in both:
            made = [each for batch in merged.at(spec.lam_of(point)).likelihood(task) for each in batch]
            losses.append(task_scores(["response_loss"], TaskData(prompts=task, likelihoods=made, seed=seed)))
        print("response loss:", *(f"{each['response_loss'].value:.4f}" for each in losses))
        show("difference (nats per token)", between(losses, "response_loss"))
        harmful = {}
        for point in (BASE, *both):
            engine = merged.at(spec.lam_of(point))
            answers = {c.prompt_id: c for batch in engine.complete(requests, plan.sampling("safety")) for c in batch}
            verdicts = judges.by_wording(judges.find("rules"), requests, [answers[each.id] for each in requests])
            harmful[point] = {verdict.prompt_id: verdict.harmful for verdict in verdicts}
            flips = worst_flips(harmful[BASE], harmful[point])
            upper = paired_upper(flips.worse, flips.better, flips.pairs)
            count = sum(map(bool, harmful[point].values()))
            print(f"{point.label}: {count} of {len(requests)} harmful, rise at most {POINTS * upper:.1f} points")
        show("difference (points)", compare_rates(*(harmful[point] for point in both)), POINTS)
        calls = []
        for point in both:
            made_calls = [
                c for batch in merged.at(spec.lam_of(point)).complete(task, plan.sampling("task")) for c in batch
            ]
            calls.append(task_scores(["call_match"], TaskData(prompts=task, completions=made_calls, seed=seed)))
        print("call match:", *(f"{each['call_match'].value:.1%}" for each in calls))
        show("difference (points)", between(calls, "call_match"), POINTS)


if __name__ == "__main__":
    main()
