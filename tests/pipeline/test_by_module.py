"""λ by module in a run: the tiny pair, real merges and answers; where it says so, made-up scores."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import mooring
from mooring.config import Judge, Recipe
from mooring.errors import DataError, RecipeError
from mooring.merge_point import BASE, TUNED, MergePoint
from mooring.merging.in_memory import OpenMerge
from mooring.models import open_checkpoint
from mooring.pipeline.evaluation import Subject, Trials, verdict_file
from mooring.pipeline.module_groups import measure_changes, patterns, tensor_names
from mooring.pipeline.module_search import search
from mooring.pipeline.plan import plan
from mooring.pipeline.rejudge import rejudge
from mooring.pipeline.run import run
from mooring.pipeline.run_folder import Store
from mooring.pipeline.sets import evaluation_sets
from mooring.records import Choice, Score, Trial, Verdict, write_jsonl
from mooring.reporting.results import load

GROUPS = {"early attention", "early mlp", "late attention", "late mlp"}


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory, save_tiny_model: Any) -> Path:
    folder: Path = save_tiny_model(tmp_path_factory.mktemp("modules") / "tuned", seed=1)
    return folder


def recipe(base: Path, tuned: Path, out: Path, **changes: Any) -> Recipe:
    """Little data, two λ, four more merges."""
    out.mkdir()
    for name, rows in (
        ("refuse", [{"prompt": f"Break thing number {i}."} for i in range(8)]),
        ("task", [{"prompt": f"Set the alarm to {i}.", "completion": f"alarm.set(hour={i})"} for i in range(8)]),
    ):
        (out / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sections: dict[str, Any] = {
        "merge": {"lambdas": [0.3, 0.7]},
        "generate": {"max_tokens": 3, "batch_size": 16, "device": "cpu"},
        "score": {
            "safety": str(out / "refuse.jsonl"),
            "over_refusal": None,
            "ordinary": None,
            "task": str(out / "task.jsonl"),
            "metrics": "response_loss",
        },
        "select": {"search": "modules", "budget": 6, "margin": 0.5, "confidence": None},
    }
    for name, change in changes.items():
        sections[name] = sections[name] | change
    return Recipe.parse({"base": str(base), "tuned": str(tuned), "out": str(out / "run"), **sections})


def made_up(monkeypatch: pytest.MonkeyPatch, harm: dict[str, float], gain: dict[str, float]) -> None:
    """Scores that add up over the groups, in place of what was measured."""
    measured = Trials.score

    def score(self: Trials, subject: Any, split: Any) -> Trial:
        trial = measured(self, subject, split)
        lams = {group: subject.point.overrides.get(group, subject.point.lam) for group in GROUPS}
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

    monkeypatch.setattr(Trials, "score", score)


def test_what_beats_the_single_lambda_is_written_tested_and_reported(
    tiny_model_folder: Path, tuned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    harm = {"late mlp": 0.3, "early mlp": 0.1}
    made_up(monkeypatch, harm, {"early attention": 2.0, "late attention": 0.5, "early mlp": 0.1})
    wanted = recipe(tiny_model_folder, tuned, tmp_path / "a")
    done = run(wanted)
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
    single = next(t for t in results.trials if (t.point, t.split) == (MergePoint(0.7), "test"))
    assert single.point == MergePoint(0.7)
    assert all(not t.point.by_module for t in results.trials)
    loss = {t.point.role: t.scores["response_loss"].value or 0 for t in results.trials if t.split == "test"}
    own = merged.scores["response_loss"].value or 0
    assert results.gains["response_loss"] == pytest.approx((own - loss["base"]) / (loss["tuned"] - loss["base"]))
    assert own < loss["merged"]
    # Answers of the merge, the model on the disk and its manifest are those of λ by module.
    answers = [row.answers for row in results.rows if row.measure == "asr" and row.split == "test"]
    assert all({"0", "0.7", "1", best.point.key} == set(given) for given in answers)
    lam = patterns(tensor_names(tiny_model_folder), best.point.overrides, 0.7)
    want = OpenMerge(tiny_model_folder, tuned).tensors(lam)
    with open_checkpoint(done.model) as written:
        assert all(torch.equal(written.tensor(name), value) for name, value in want.items())
    # Another choice, and another judge, know it too.
    assert "The run itself chose λ by module" in mooring.select(done.folder).reason
    again = rejudge(done.folder, [Judge()])
    assert {each.point for each in again if each.split == "test"} == {BASE, MergePoint(0.7), TUNED, best.point}
    assert json.loads((done.folder / "choice.json").read_text())["point"] == {"lam": 0.7, "overrides": {}}
    kept = done.folder / "by_module.json"
    text = kept.read_text()
    assert json.loads(text)["chosen"] == found.chosen
    # Back to a grid and here again, nothing of the one stands in the other's way.
    plain = run(wanted.model_copy(update={"select": wanted.select.model_copy(update={"search": "grid"})}))
    assert plain.choice.point == MergePoint(0.7)
    assert not any(each.point.by_module for each in rejudge(done.folder, [Judge()]))
    assert run(wanted).choice == done.choice
    kept.write_text(text.replace('"chosen": ', '"chosen":  '))
    with pytest.raises(DataError, match=r"by_module\.json: is not as the run left it"):
        run(wanted)
    with pytest.raises(DataError, match=r"by_module\.json: is not as the run left it"):
        rejudge(done.folder, [Judge()])


def test_a_merge_is_paired_with_the_base_by_its_own_verdicts(
    tiny_model_folder: Path, tuned: Path, tmp_path: Path
) -> None:
    wanted = recipe(tiny_model_folder, tuned, tmp_path / "p", select={"budget": 1})
    sets, store = evaluation_sets(wanted), Store(wanted.folder)
    trials = Trials(wanted, store, sets)
    first, *others = (prompt.id for prompt in sets["safety"]["validation"])
    file = verdict_file("safety", "validation", trials.judging.of("safety")[0])

    def judged(name: str, harmful: list[str]) -> None:
        said = [Verdict(prompt_id=key, harmful=key in harmful, refused=None, judge="j") for key in (first, *others)]
        write_jsonl(store.folder / "completions" / name / file, said)

    def scored(point: MergePoint) -> Trial:
        scores = {
            name: Score(name=name, value=0.5, low=0, high=1, n=4, better="lower", method="m", details={"total": 4})
            for name in ("asr", "response_loss")
        }
        return Trial(point=point, method="linear", split="validation", scores=scores)

    def subject_at(point: MergePoint) -> Subject:
        judged(point.folder, others[:2])
        return Subject(point, "key", lambda: pytest.fail("nobody asks it"))

    judged("lam-0", [first])
    judged("lam-0.7", [first, *others])  # the single λ's, which stand beside it
    measure_changes(tiny_model_folder, tuned, store.folder / "changes.json")
    choice = Choice(point=MergePoint(0.7), within=True, bound=1.0, metric="response_loss", reason="")
    found = search(
        trials,
        [scored(BASE), scored(MergePoint(0.7))],
        choice,
        tensor_names(tiny_model_folder),
        subject_at,
        lambda subjects: [scored(each.point) for each in subjects],
    )
    details = found.tried[0].trial.scores["asr"].details
    assert {name: details[name] for name in ("pairs", "worse", "better")} == {"pairs": 4, "worse": 2, "better": 1}


def test_where_none_beats_it_the_single_lambda_stays_and_the_run_goes_on_from_what_is_done(
    tiny_model_folder: Path, tuned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    even = dict.fromkeys(GROUPS, 0.1)
    made_up(monkeypatch, even, even)
    wanted = recipe(tiny_model_folder, tuned, tmp_path / "b")
    done = run(wanted)
    results = load(done.report)
    assert results.by_module is not None
    assert results.by_module.chosen is None
    assert done.choice.point == MergePoint(0.7)
    assert "did not beat the single λ = 0.7 on both axes" in done.choice.reason
    merged = results.trial("merged")
    assert merged is not None
    assert merged.point == MergePoint(0.7)
    before = (done.report / "results.json").read_bytes()
    again = run(wanted)
    assert not again.worked
    assert (again.report / "results.json").read_bytes() == before


def test_a_search_that_was_stopped_goes_on_from_what_was_asked(
    tiny_model_folder: Path, tuned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made_up(monkeypatch, {"late mlp": 0.3, "early mlp": 0.1}, {"early attention": 2.0, "early mlp": 0.1})
    wanted = recipe(tiny_model_folder, tuned, tmp_path / "g")
    asked: list[str] = []
    ask = Trials.ask

    def stop(self: Trials, subject: Any, split: Any) -> None:
        if subject.point.by_module and len(asked) == 4:  # in the second round
            raise KeyboardInterrupt
        asked.extend([subject.point.label] if subject.point.by_module else [])
        ask(self, subject, split)

    with monkeypatch.context() as patch:
        patch.setattr(Trials, "ask", stop)
        with pytest.raises(KeyboardInterrupt):
            run(wanted)
    begun: list[str] = []
    done = run(wanted, on_event=lambda event: begun.append(event.step) if event.kind == "start" else None)
    assert not [step for step in begun if any(step.startswith(f"{label}: answer") for label in asked)]
    assert done.choice.point.by_module
    first = (done.report / "results.json").read_bytes()
    shutil.rmtree(done.folder)
    assert (run(wanted).report / "results.json").read_bytes() == first


def test_nothing_is_searched_where_no_single_lambda_is_within(
    tiny_model_folder: Path, tuned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made_up(monkeypatch, dict.fromkeys(GROUPS, 0.2), dict.fromkeys(GROUPS, 0.1))
    done = run(recipe(tiny_model_folder, tuned, tmp_path / "c", select={"margin": 0.01}))
    assert not done.choice.within
    assert "λ by module was not searched: no single λ is within the bound." in done.choice.reason
    assert not list((done.folder / "completions").glob("modules-*"))


def test_a_search_without_a_task_or_with_too_few_prompts_is_refused_before_anything_is_done(
    tiny_model_folder: Path, tuned: Path, tmp_path: Path
) -> None:
    bare = recipe(tiny_model_folder, tuned, tmp_path / "d", score={"task": None, "metrics": ()})
    with pytest.raises(RecipeError, match="there is no task"):
        run(bare)
    with pytest.raises(RecipeError, match="there is no task"):
        plan(bare)
    assert not bare.folder.exists()
    few = recipe(tiny_model_folder, tuned, tmp_path / "e", select={"confidence": 0.95})
    with pytest.raises(DataError, match=r"99\.8333 % confidence .* use at least 9"):
        run(few)


def test_a_plan_counts_the_merges_that_may_be_tried(tiny_model_folder: Path, tuned: Path, tmp_path: Path) -> None:
    stages = plan(recipe(tiny_model_folder, tuned, tmp_path / "f")).stages
    generate = [what for stage, what in stages if stage == "generate"]
    assert generate[0].startswith("validation: at most 10 models × (4 safety) = 40 responses")
    assert generate[1].startswith("test: at most 4 models")
    assert dict(stages)["select"].endswith("then λ by module, at most 6 merges")
