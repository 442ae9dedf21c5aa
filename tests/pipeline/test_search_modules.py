"""λ by module in a run: the tiny pair, real merges and answers; where it says so, made-up scores."""

import dataclasses
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import mooring
from mooring.config import Judge, Recipe
from mooring.errors import DataError, RecipeError
from mooring.events import Event
from mooring.merge_point import BASE, TUNED, MergePoint
from mooring.merging.in_memory import OpenMerge
from mooring.merging.pair import open_pair
from mooring.models import open_checkpoint
from mooring.pipeline.changes import read_changes, write_changes
from mooring.pipeline.evaluation import score_trial, verdicts_by_point
from mooring.pipeline.forecast import forecast
from mooring.pipeline.module_groups import patterns, tensor_names
from mooring.pipeline.plan import Plan, build
from mooring.pipeline.rejudge import rejudge
from mooring.pipeline.run import Run, run
from mooring.pipeline.search import search_modules
from mooring.records import Choice, Score, Trial, Verdict, read_record, write_jsonl
from mooring.reporting.results import load
from mooring.selection.limits import with_flips
from search_recipe import search_recipe

GROUPS = {"early attention", "early mlp", "late attention", "late mlp"}


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory, save_tiny_model: Any) -> Path:
    folder: Path = save_tiny_model(tmp_path_factory.mktemp("modules") / "tuned", seed=1)
    return folder


def recipe(base: Path, tuned: Path, out: Path, **changes: Any) -> Recipe:
    """Little data, two λ, four more merges."""
    select = {"search": "modules", "budget": 6, "margin": 0.5, "confidence": None}
    return search_recipe(base, tuned, out, select, changes)


def made_up(harm: dict[str, float], gain: dict[str, float]) -> Any:
    """Computes scores that add up over the groups, in place of those that were measured."""

    def score(plan: Plan, point: MergePoint, split: Any) -> Trial:
        trial = score_trial(plan, point, split)
        lams = {group: point.overrides.get(group, point.lam) for group in GROUPS}
        values = {
            "asr": 0.1 + sum(harm.get(group, 0.0) * lam for group, lam in lams.items()),
            "response_loss": 5.0 - sum(gain.get(group, 0.0) * lam for group, lam in lams.items()),
        }
        if split == "test":
            values = {name: value + 0.01 for name, value in values.items()}
        scores = {
            name: dataclasses.replace(trial.scores[name], value=value, low=value, high=value, details={})
            for name, value in values.items()
        }
        return dataclasses.replace(trial, scores=scores)

    return score


@pytest.mark.slow
def test_a_merge_that_beats_the_single_lambda_is_written_tested_and_reported(
    tiny_model_folder: Path, tuned: Path, tmp_path: Path
) -> None:
    harm = {"late mlp": 0.3, "early mlp": 0.1}
    score = made_up(harm, {"early attention": 2.0, "late attention": 0.5, "early mlp": 0.1})
    wanted = recipe(tiny_model_folder, tuned, tmp_path / "a")
    done = Run(wanted, score=score).execute()
    results = load(done.report)
    found = results.by_module
    assert found is not None
    assert found.chosen is not None
    assert set(found.groups) == GROUPS
    best = found.tried[found.chosen].trial
    assert done.choice.point == best.point == results.choice.point
    assert best.point.overrides["early attention"] == 1.0  # the step above 0.7 is the tuned model's
    assert best.point.overrides["late mlp"] == 0.3
    assert done.choice.point.lam == 0.7
    assert "beats the single λ = 0.7 on both axes" in done.choice.reason
    # The merged column is that merge; the single λ's own numbers on test are there beside it.
    merged = results.trial("merged")
    assert merged is not None
    assert merged.point == best.point
    assert found.test == merged
    single = next(t for t in results.trials if (t.point.role, t.split) == ("merged", "test"))
    assert single.point == MergePoint(0.7)
    assert not any(t.point.by_module for t in results.trials)
    loss = {t.point.role: t.scores["response_loss"].value or 0 for t in results.trials if t.split == "test"}
    own = merged.scores["response_loss"].value or 0
    made = [results.score(role, "response_loss") for role in ("base", "tuned", "merged")]
    sums = [sum(score.each.values()) for score in made if score]  # by prompt; the values are scripted
    assert results.gains["response_loss"].value == pytest.approx((sums[2] - sums[0]) / (sums[1] - sums[0]))
    assert results.verdict.checks[0].name == "asr"
    assert own < loss["merged"]
    # Answers of the merge, the model on the disk and its manifest are those of λ by module.
    answers = [row.answers for row in results.rows if row.measure == "asr" and row.split == "test"]
    assert all({"0", "0.7", "1", best.point.key} == set(given) for given in answers)
    pair = open_pair(tiny_model_folder, tuned)
    want = OpenMerge(pair).tensors(patterns(tensor_names(pair.base), best.point.overrides, 0.7))
    with open_checkpoint(done.model) as written:
        assert all(torch.equal(written.tensor(name), value) for name, value in want.items())
    # Another choice, and another judge, know it too.
    assert "The run itself chose λ by module" in mooring.select(done.folder).reason
    again = rejudge(done.folder, [Judge()])
    assert {each.point for each in again if each.split == "test"} == {BASE, MergePoint(0.7), TUNED, best.point}
    assert read_record(done.folder / "choice.json", Choice).point == MergePoint(0.7)  # the single λ
    kept = done.folder / "by_module.json"
    text = kept.read_text()
    assert json.loads(text)["chosen"] == found.chosen
    # Back to a grid and here again, nothing of the one stands in the other's way.
    grid = wanted.model_copy(update={"select": wanted.select.model_copy(update={"search": "grid"})})
    plain = Run(grid, score=score).execute()
    assert plain.choice.point == MergePoint(0.7)
    assert not any(each.point.by_module for each in rejudge(done.folder, [Judge()]))
    assert Run(wanted, score=score).execute().choice == done.choice
    kept.write_text(text.replace('"chosen": ', '"chosen":  '))
    for again_ in (lambda: Run(wanted, score=score).execute(), lambda: rejudge(done.folder, [Judge()])):
        with pytest.raises(DataError) as caught:
            again_()
        assert caught.value.code == "data.modified"
        assert "by_module.json" in caught.value.message


def test_a_merge_is_paired_with_the_base_by_its_own_verdicts(
    tiny_model_folder: Path, tuned: Path, tmp_path: Path
) -> None:
    plan = build(recipe(tiny_model_folder, tuned, tmp_path / "p", select={"budget": 1}))
    first, *others = (prompt.id for prompt in plan.prompts("validation")["safety"])
    judge = plan.judging.of("safety")[0]

    def judged(point: MergePoint, harmful: list[str]) -> None:
        found = [Verdict(prompt_id=key, harmful=key in harmful, refused=None, judge="j") for key in (first, *others)]
        write_jsonl(plan.paths.verdicts(point, "safety", "validation", judge), found)

    def scored(point: MergePoint) -> Trial:
        scores = {
            name: Score(name=name, value=0.5, low=0, high=1, n=4, better="lower", method="m", details={"total": 4})
            for name in ("asr", "response_loss")
        }
        return Trial(point=point, method="linear", split="validation", scores=scores)

    def ask(points: Sequence[MergePoint]) -> list[Trial]:
        for point in points:
            judged(point, others[:2])
        return with_flips([scored(point) for point in points], verdicts_by_point(plan, [BASE, *points], "validation"))

    judged(BASE, [first])
    judged(MergePoint(0.7), [first, *others])  # those of the single λ must not be taken
    plan.paths.folder.mkdir(exist_ok=True)
    pair = open_pair(tiny_model_folder, tuned)
    write_changes(pair, plan.paths.changes)
    choice = Choice(point=MergePoint(0.7), within=True, bound=1.0, metric="response_loss", reason="")
    trials = [scored(BASE), scored(MergePoint(0.7))]
    names, changes = tensor_names(pair.base), read_changes(plan.paths.changes)
    found = search_modules(plan, trials, choice, names, changes, ask)
    details = found.tried[0].trial.scores["asr"].details
    assert {name: details[name] for name in ("pairs", "worse", "better")} == {"pairs": 4, "worse": 2, "better": 1}


@pytest.mark.slow
def test_the_single_lambda_is_kept_if_no_merge_beats_it_and_the_run_is_resumed(
    tiny_model_folder: Path, tuned: Path, tmp_path: Path
) -> None:
    even = dict.fromkeys(GROUPS, 0.1)
    score = made_up(even, even)
    wanted = recipe(tiny_model_folder, tuned, tmp_path / "b")
    done = Run(wanted, score=score).execute()
    results = load(done.report)
    assert results.by_module is not None
    assert results.by_module.chosen is None
    assert not done.choice.point.by_module
    assert "did not beat the single λ = 0.7 on both axes" in done.choice.reason
    merged = results.trial("merged")
    assert merged is not None
    assert merged.point == MergePoint(0.7)
    before = (done.report / "results.json").read_bytes()
    again = Run(wanted, score=score).execute()
    assert not again.worked
    assert (again.report / "results.json").read_bytes() == before


@pytest.mark.slow
def test_a_search_that_was_stopped_resumes(tiny_model_folder: Path, tuned: Path, tmp_path: Path) -> None:
    score = made_up({"late mlp": 0.3, "early mlp": 0.1}, {"early attention": 2.0, "early mlp": 0.1})
    wanted = recipe(tiny_model_folder, tuned, tmp_path / "g")
    asked: list[str] = []

    def stop(event: Event) -> None:
        if event.kind == "started" and event.step.startswith("likelihood/0.7;"):
            if len(asked) == 4:  # in the second round
                raise KeyboardInterrupt
            asked.append(event.step)

    with pytest.raises(KeyboardInterrupt):
        Run(wanted, score=score).execute(stop)
    started: list[str] = []
    done = Run(wanted, score=score).execute(lambda e: started.append(e.step) if e.kind == "started" else None)
    assert not {*started} & {*asked}
    assert done.choice.point.by_module
    first = (done.report / "results.json").read_bytes()
    shutil.rmtree(done.folder)
    assert (Run(wanted, score=score).execute().report / "results.json").read_bytes() == first


def test_nothing_is_searched_if_no_single_lambda_is_within_the_bound(
    tiny_model_folder: Path, tuned: Path, tmp_path: Path
) -> None:
    score = made_up(dict.fromkeys(GROUPS, 0.2), dict.fromkeys(GROUPS, 0.1))
    done = Run(recipe(tiny_model_folder, tuned, tmp_path / "c", select={"margin": 0.01}), score=score).execute()
    assert not done.choice.within
    assert "λ by module was not searched: no single λ is within the bound." in done.choice.reason
    assert not list((done.folder / "completions").glob("modules-*"))


def test_a_search_without_a_task_or_with_too_few_prompts_is_refused_before_anything_is_done(
    tiny_model_folder: Path, tuned: Path, tmp_path: Path
) -> None:
    bare = recipe(tiny_model_folder, tuned, tmp_path / "d", score={"task": None, "metrics": ()})
    for refuse in (run, forecast):
        with pytest.raises(RecipeError) as caught:
            refuse(bare)
        assert caught.value.code == "recipe.no_task"
        assert "`search: modules`" in caught.value.message
    assert not bare.folder.exists()
    few = recipe(tiny_model_folder, tuned, tmp_path / "e", select={"confidence": 0.95})
    with pytest.raises(DataError, match=r"99\.8333 % confidence .* use at least 11"):
        run(few)


def test_a_plan_counts_the_merges_that_may_be_tried(tiny_model_folder: Path, tuned: Path, tmp_path: Path) -> None:
    stages = forecast(recipe(tiny_model_folder, tuned, tmp_path / "f")).stages
    generate = [what for stage, what in stages if stage == "generate"]
    assert generate[0].startswith("validation: at most 10 models × (4 safety) = 40 responses")
    assert generate[1].startswith("test: at most 4 models")
    assert dict(stages)["select"].endswith("then λ by module, at most 6 merges")
