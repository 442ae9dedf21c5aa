"""λ by gradient on a real pair: does it keep more of the task than the single λ, at the same bound?

    python benchmarks/gradient_lambda.py BASE TUNED --lam 0.5                 # a bundled model or folders
    python benchmarks/gradient_lambda.py bundled:smollm2-135m-aligned runs/quickstart/tuned --lam 0.5 --groups tensors

Searches λ of each group around the single λ as `search: gradient` does, with the prompts and settings of the
quickstart's recipe. Then both are measured on the test half, in pairs on the same prompts with 95 % intervals: the
response loss, then the harmful requests and the calls that they answer. "Rise at most": the upper limit of the rise
above the base's rate, 95 % confidence, which a run holds against its margin. Prints each as soon as it is known.
"""

import argparse
import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

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


def kept(values: Sequence[float | None], difference: Difference) -> dict[str, Any]:
    """A score of the single λ and of λ by gradient, and their difference, as plain values."""
    single, gradient = values
    return {"single": single, "gradient": gradient, "difference": dataclasses.asdict(difference)}


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
    parser.add_argument("--out", type=Path, help="a file for what was measured")
    given = parser.parse_args()
    measured = measure(given.base, given.tuned, given.lam, given.groups, prompts=given.prompts, limit=given.limit)
    if given.out:
        given.out.write_text(json.dumps(measured, indent=1) + "\n")


def measure(
    base: str,
    tuned: Path,
    lam: float,
    groups: str,
    *,
    prompts: int,
    limit: int,
    score: Mapping[str, Any] = MappingProxyType({}),
) -> dict[str, Any]:
    """Search, measure both on the test half, print each number, and return them as plain values; `score` has other
    values of the quickstart's section."""
    values = Recipe.load(bundled_recipe("quickstart")).model_dump(mode="json", exclude_unset=True)
    del values["tune"]
    values |= {"base": base, "tuned": str(tuned), "out": "no-run-folder"}
    values["score"] |= score
    values["select"] = values.get("select", {}) | {"search": "gradient", "groups": groups, "search_prompts": prompts}
    plan = build(Recipe.parse(values))
    pair = open_pair(resolve_model(base), resolve_model(str(tuned)))
    spec = SweepSpec(pair=pair, runner=plan.recipe.generate, system=plan.recipe.system)
    single, seed = MergePoint(lam), plan.recipe.seed
    found = search_gradient(
        spec, single, plan.search_sets, plan.recipe.select.groups, lambda event: print(event.message, flush=True)
    )
    print(found.sentence)
    print(", ".join(f"{name} {at:g}" for name, at in zip(found.groups, found.lams, strict=True)), flush=True)
    measured: dict[str, Any] = {"search": found.to_dict(), "groups": groups, "prompts": prompts, "test": {}}
    test = measured["test"]
    task, requests = (draw(plan.prompts("test")[name], limit, seed) for name in ("task", "safety"))
    both = (single, found.point)
    with MergedModel(spec) as merged:
        losses = []
        for point in both:
            made = [each for batch in merged.at(spec.lam_of(point)).likelihood(task) for each in batch]
            losses.append(task_scores(["response_loss"], TaskData(prompts=task, likelihoods=made, seed=seed)))
        print("response loss:", *(f"{each['response_loss'].value:.4f}" for each in losses))
        show("difference (nats per token)", between(losses, "response_loss"))
        test["response_loss"] = kept([each["response_loss"].value for each in losses], between(losses, "response_loss"))
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
        judged = [[hit for hit in harmful[point].values() if hit is not None] for point in both]
        rates = [sum(hits) / len(hits) if hits else None for hits in judged]
        test["asr"] = kept(rates, compare_rates(*(harmful[point] for point in both)))
        show("difference (points)", compare_rates(*(harmful[point] for point in both)), POINTS)
        calls = []
        for point in both:
            made_calls = [
                c for batch in merged.at(spec.lam_of(point)).complete(task, plan.sampling("task")) for c in batch
            ]
            calls.append(task_scores(["call_match"], TaskData(prompts=task, completions=made_calls, seed=seed)))
        print("call match:", *(f"{each['call_match'].value:.1%}" for each in calls))
        show("difference (points)", between(calls, "call_match"), POINTS)
        test["call_match"] = kept([each["call_match"].value for each in calls], between(calls, "call_match"))
    return measured


if __name__ == "__main__":
    main()
