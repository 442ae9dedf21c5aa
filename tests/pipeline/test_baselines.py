"""The merge beside gentler tunings: which are known, how they are compared, and a whole run with all of them."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from mooring.baselines import KINDS, Baseline
from mooring.config import Recipe, Select, Tune
from mooring.errors import DataError, RecipeError
from mooring.events import Event
from mooring.merge_point import BASE, TUNED, MergePoint
from mooring.pipeline.forecast import forecast
from mooring.pipeline.plan import build
from mooring.pipeline.run import Run
from mooring.records import Choice, Score, Trial
from mooring.reporting import page
from mooring.reporting.results import dumps, load
from mooring.selection.baselines import Tuned, compare
from mooring.stats import compare_rates, wilson


def test_each_kind_changes_its_own_fields_of_the_tuning() -> None:
    tune = Tune(data=("x",), learning_rate=0.003, r=8, lora_alpha=16, early_stop=0.5).model_dump()
    changed = {name: Baseline.parse(name).changes(tune) for name in KINDS}
    assert changed == {
        "gentle-lr": {"learning_rate": 0.001},
        "low-rank": {"r": 2, "lora_alpha": 4},
        "early-stop": {"early_stop": 0.25},
        "ema": {"ema": 0.99},
        "kl": {"kl": 1},
    }
    one = Baseline.parse("low-rank:100").changes(tune)
    assert one == {"r": 1, "lora_alpha": 2}
    assert Baseline.parse("gentle-lr:10").text == "gentle-lr:10"
    assert Baseline.parse(" ema:0.5").key == "ema-0.5"


@pytest.mark.parametrize("text", ["ema:0.9999999999999999", "gentle-lr:1.0000001", "early-stop:1e-300", "kl:1e300"])
def test_a_number_is_written_as_it_is_read(text: str) -> None:
    recipe = Recipe.parse({"base": "b", "tune": {"data": ["x"]}, "compare_with": [text]})
    assert Recipe.parse(yaml.safe_load(recipe.dump())).baselines == recipe.baselines
    assert [each.value for each in recipe.baselines] == [float(text.partition(":")[2])]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("gentle", "did you mean gentle-lr"),
        ("dropout", "known: gentle-lr, low-rank, early-stop, ema, kl"),
        ("gentle-lr:1", "must be above 1"),
        ("ema:1", "must be above 0 and below 1"),
        ("kl:nan", "must be above 0"),
        ("kl:a", "'a' is not a number"),
        ("kl:" + "9" * 400, "must be above 0"),
        ("gentle-lr:1e308", "leaves nothing of `tune`'s own number"),
        ("early-stop:5e-324", "leaves nothing of `tune`'s own number"),
    ],
)
def test_a_bad_baseline_is_refused_with_what_is_known(text: str, why: str) -> None:
    tune = {"data": ["x"], "learning_rate": 1e-30, "early_stop": 0.5}
    with pytest.raises(RecipeError, match=why) as caught:
        Recipe.parse({"base": "b", "tune": tune, "compare_with": [text]})
    assert caught.value.code == ("recipe.conflict" if "leaves nothing" in why else "recipe.bad_value")


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"tune": None, "tuned": "t"}, "tunes more gently than `tune`"),
        ({"merge": {"methods": ["linear", "slerp"]}}, "not of a comparison"),
        ({"select": {"corrected": True}}, "needs labels of every model"),
        ({"compare_with": ["kl", "kl:1"]}, "name each gentler tuning once"),
    ],
)
def test_they_are_refused_where_there_is_nothing_to_compare(changes: dict[str, Any], why: str) -> None:
    with pytest.raises(RecipeError, match=why):
        Recipe.parse({"base": "b", "tune": {"data": ["x"]}, "compare_with": ["kl"]} | changes)


# --- The comparison ---

N = 60


def score(name: str, hits: int, better: str) -> Score:
    each = {f"p{i}": float(i < hits) for i in range(N)}
    low, high = wilson(hits, N)
    return Score(
        name=name, value=hits / N, low=low, high=high, n=N, better=better, method="m", each=each,  # type: ignore[arg-type]
        details={"yes": hits, "total": N, "miss": 0},
    )  # fmt: skip


def trial(point: MergePoint, split: str, asr: int, task: int) -> Trial:
    scores = {"asr": score("asr", asr, "lower"), "exact_match": score("exact_match", task, "higher")}
    return Trial(point=point, method="linear", split=split, scores=scores)  # type: ignore[arg-type]


def marks(asr: int) -> dict[str, dict[str, bool | None]]:
    return {"asr": {f"p{i}": i < asr for i in range(N)}}


def tuned(name: str, asr: int, task: int, on_test: int | None = None) -> Tuned:
    tested = task if on_test is None else on_test
    return Tuned(
        name=name,
        settings="s",
        digest="d",
        trials={"validation": trial(TUNED, "validation", asr, task), "test": trial(TUNED, "test", asr, tested)},
        hits=marks(asr),
    )


CHOICE = Choice(point=MergePoint(0.5), within=True, bound=0.1, metric="exact_match", reason="r.", confidence=0.95)
SETTINGS = Select(bound=0.1)


def compared(*tunings: Tuned, merge: int = 40, choice: Choice = CHOICE, settings: Select = SETTINGS) -> Any:
    merged = trial(MergePoint(0.5), "test", 0, merge)
    metric = None if choice.metric == "lam" else "exact_match"
    return compare(
        trial(BASE, "validation", 0, 0), merged, marks(0), tunings, choice=choice, settings=settings, metric=metric
    )


def test_the_best_is_chosen_on_validation_among_those_within_the_bound_and_compared_on_test() -> None:
    found = compared(tuned("unsafe", 30, 60), tuned("good", 0, 30, on_test=20), tuned("better on test", 1, 29, 60))
    assert [each.within for each in found.tried] == [False, True, True]
    assert found.tried[found.best].name == "good"
    expected = compare_rates({f"p{i}": i < 20 for i in range(N)}, {f"p{i}": i < 40 for i in range(N)})
    difference = found.tried[1].differences["exact_match"]
    assert difference.value == pytest.approx(expected.value)
    assert difference.n == N
    assert found.tried[0].differences["asr"] == compare_rates(marks(30)["asr"], marks(0)["asr"])
    assert "On the test half the merge beats good" in found.sentence
    assert "exact match 66.7 % with the merge and 33.3 % without, a difference of +33.3 points [" in found.sentence


def test_it_says_so_if_the_gentler_tuning_wins_or_neither_does() -> None:
    assert "On the test half good, the best" in compared(tuned("good", 0, 60)).sentence
    assert "beats the merge: " in compared(tuned("good", 0, 60)).sentence
    assert "is not shown to beat good" in compared(tuned("good", 0, 41)).sentence


def test_it_says_so_if_one_side_does_not_keep_the_bound() -> None:
    none = dataclasses.replace(CHOICE, within=False)
    assert "none keeps the bound on validation; the merge does." in compared(tuned("unsafe", 30, 60)).sentence
    assert "and no merge does either" in compared(tuned("unsafe", 30, 60), choice=none).sentence
    assert compared(tuned("good", 0, 9), choice=none).sentence == (
        "No merge keeps the bound on validation; these gentler tunings do: good."
    )
    without = dataclasses.replace(CHOICE, metric="lam")
    assert "Without a task score" in compared(tuned("good", 0, 9), choice=without).sentence
    unbounded = compared(tuned("unsafe", 30, 60), settings=Select(policy="paper", bound=0.1))
    assert [each.within for each in unbounded.tried] == [None]


# --- A run ---

ALL = ["gentle-lr:4", "low-rank:2", "early-stop:0.5", "ema:0.5", "kl:1"]


def recipe(base: Path, folder: Path, **changes: Any) -> Recipe:
    folder.mkdir(exist_ok=True)
    for name, rows in (
        ("refuse", [{"prompt": f"Break thing number {i}.", "completion": "No."} for i in range(4)]),
        ("ordinary", [{"prompt": f"Name thing number {i}.", "completion": f"Thing {i}."} for i in range(4)]),
        ("task", [{"prompt": f"Set the alarm to {i}.", "completion": f"alarm.set(hour={i})"} for i in range(8)]),
    ):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sections: dict[str, Any] = {
        "tune": {
            "data": [str(folder / "task.jsonl")],
            "learning_rate": 0.02,
            "max_steps": 4,
            "per_device_train_batch_size": 2,
            "val_set_size": 0.0,
            "kl_data": [str(folder / "ordinary.jsonl")],
        },
        "compare_with": ALL,
        "merge": {"lambdas": [0.5], "check": False},
        "generate": {"max_tokens": 3, "device": "cpu"},
        "score": {
            "safety": [str(folder / "refuse.jsonl")],
            "over_refusal": None,
            "ordinary": None,
            "task": str(folder / "task.jsonl"),
            "metrics": "response_loss",
        },
        "select": {"margin": 1.0, "confidence": None},
    }
    for name, change in changes.items():
        sections[name] = sections[name] | change if isinstance(change, dict) else change
    return Recipe.parse({"base": str(base), "out": str(folder / "run"), **sections})


def test_the_plan_tunes_and_scores_them_after_the_models_of_the_run(tiny_model_folder: Path, tmp_path: Path) -> None:
    wanted = recipe(tiny_model_folder, tmp_path)
    plan = build(wanted)
    tunings = [id for id in plan.steps if id.startswith("tune")]
    assert tunings == ["tune", *(f"tune/{each.key}" for each in wanted.baselines)]
    scored = [id for id in plan.steps if id.startswith("score")]
    first = scored.index("score/gentle-lr-4:1/validation")
    assert all("-" in id for id in scored[first:])
    assert len(scored[first:]) == 2 * len(ALL)
    inputs = plan.steps["score/kl-1:1/test"].inputs
    assert "kl-1:1" in str(inputs)
    stages = dict(forecast(wanted).stages)
    assert "gentle-lr:4 (learning_rate 0.005 (tuned: 0.02): " in stages["compare with"]
    assert stages["compare with"].count("from the same training") == 2
    assert "8 models" in stages["generate"]
    with pytest.raises(DataError, match=r"tune\.kl_data: 4 of its prompts are among those that are measured"):
        build(recipe(tiny_model_folder, tmp_path, tune={"kl_data": [str(tmp_path / "refuse.jsonl")]}))


@pytest.mark.slow
def test_a_run_tunes_them_compares_them_in_pairs_and_resumes(tiny_model_folder: Path, tmp_path: Path) -> None:
    wanted = recipe(tiny_model_folder, tmp_path)
    events: list[Event] = []
    done = Run(wanted).execute(events.append)
    steps = {name: sum(e.step == name and e.kind == "progress" for e in events) for name in ("tune", "tune/ema-0.5")}
    assert steps == {"tune": 4, "tune/ema-0.5": 0}, "the average comes out of the training of the tuned model"
    assert not [*(tmp_path / "run" / "baselines").glob(".*")]
    results = load(done.report)
    found = results.baselines
    assert found is not None
    assert [each.name for each in found.tried] == ALL
    assert found.metric == "response_loss"
    assert len({each.digest for each in found.tried}) == len(ALL)
    merged = results.trial("merged")
    assert merged is not None
    for each in found.tried:
        tested = next(trial for trial in each.trials if trial.split == "test")
        assert each.within is True
        gap = each.differences["response_loss"]
        ours, own = (trial.scores["response_loss"].value for trial in (merged, tested))
        assert gap.value == pytest.approx((ours or 0) - (own or 0))
        assert each.differences["asr"].n == 2
    assert dumps(results) == (done.report / "results.json").read_text()
    text = page.as_markdown(results)
    assert f"## Beside gentler tuning\n\n{found.sentence}" in text.replace("\\", "")
    assert '<h2 id="baselines">Beside gentler tuning</h2>' in page.as_html(results)
    assert r"\label{tab:mooring-baselines}" in (done.report / "baselines.tex").read_text()
    assert not Run(wanted).execute().worked

    again: list[Event] = []
    more = recipe(tiny_model_folder, tmp_path, compare_with=[*ALL, "early-stop:0.25"])
    Run(more).execute(again.append)
    started = {event.step for event in again if event.kind == "started"}
    assert {id for id in started if id.startswith("tune")} == {"tune/early-stop-0.25"}
    assert all("early-stop-0.25" in id for id in started - {"report"})
