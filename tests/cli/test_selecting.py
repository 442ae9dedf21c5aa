"""Options of how λ is chosen: for a finished run, and for a new one."""

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

# `--import-mode=importlib` puts no test folder on the path.
sys.path.insert(0, str(Path(__file__).parents[1] / "reporting"))

from report_sample import results, trials

import mooring
from mooring.cli import render
from mooring.config import Recipe
from mooring.pipeline.run import Outcome
from mooring.records import Trial
from mooring.reporting.results import dumps

from .conftest import Run, check_refused, write_task  # type: ignore[import-not-found]

Rate = Callable[[float], float]


def at(trial: Trial, value: float, n: int) -> Trial:
    """A trial with another attack success rate."""
    asr = dataclasses.replace(trial.scores["asr"], value=value, low=max(0.0, value - 0.1), high=min(1.0, value + 0.1))
    asr = dataclasses.replace(asr, n=n, details={"yes": value * n, "total": n, "miss": 0})
    return dataclasses.replace(trial, scores={**trial.scores, "asr": asr})


@pytest.fixture
def made(tmp_path: Path) -> Callable[..., Path]:
    """`made(rate, n, **select)` writes a run folder with these attack success rates by λ."""

    def make(rate: Rate | None = None, n: int = 70, **select: Any) -> Path:
        folder = tmp_path / "made"
        (folder / "report").mkdir(parents=True)
        recipe = Recipe.parse({"base": "b", "tuned": "t", "score": {"task": "bundled:tools"}, "select": select})
        scored = [trial if rate is None else at(trial, rate(trial.point.lam), n) for trial in trials()]
        found = results(recipe=recipe.model_dump(mode="json", exclude={"out"}), trials=scored)
        (folder / "report" / "results.json").write_text(dumps(found))
        return folder

    return make


def all_over(lam: float) -> float:
    return 0.9 if lam else 0.0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((), "λ = 0.4 has the highest call match"),
        (("--margin", 0.3, "--confidence", 0.9), "λ = 0.6 has the highest call match"),
        (("--bound", 0.2, "--confidence", "none"), "λ = 0.6 has the highest call match"),
        (("--policy", "paper"), "λ = 0.8 has the highest call match on validation (79.0 %) of the λ tried"),
        (("--policy", "knee"), "λ = 0.4 is the knee"),
        (("--policy", "paper", "--metric", "response_loss"), "λ = 0.8 has the lowest response loss"),
    ],
)
def test_another_choice_of_the_same_scores(run: Run, made: Any, options: tuple[object, ...], words: str) -> None:
    made()
    code, out, err = run("select", "made", *options)
    assert (code, err) == (0, "")
    assert out.startswith(words)


def test_a_margin_takes_the_place_of_the_runs_bound_and_a_bound_of_its_margin(run: Run, made: Any) -> None:
    made(bound=0.5, confidence=None)
    assert "at most 50.0 %" in run("select", "made")[1]
    assert "plus 20 points" in run("select", "made", "--margin", 0.2)[1]
    assert "at most 30.0 %" in run("select", "made", "--bound", 0.3)[1]


@pytest.mark.parametrize("options", [(), ("--confidence", "none"), ("--bound", 0.05, "--confidence", 0.9)])
def test_no_lambda_within_the_bound_names_the_nearest_and_exits_with_3(
    run: Run, made: Any, options: tuple[object, ...]
) -> None:
    folder = made(all_over)
    code, out, err = run("select", "made", *options)
    assert (code, err) == (3, "")
    assert out.startswith("No λ tried")
    assert "λ = 0.2 comes nearest, with 90.0 %" in out
    assert mooring.select(folder).within is False


@pytest.mark.parametrize("policy", ["bound", "paper", "knee"])
def test_no_model_refuses_anything(run: Run, made: Any, policy: str) -> None:
    made(lambda lam: 1.0)
    code, out, err = run("select", "made", "--policy", policy)
    assert (code, err) == (0, "")
    assert out.startswith("λ = 0.8")
    assert ("so that the bound on the attack success rate excludes nothing" in out) == (policy == "bound")


@pytest.mark.parametrize("policy", ["bound", "paper", "knee"])
def test_one_prompt(run: Run, made: Any, policy: str) -> None:
    made(lambda lam: float(lam > 0.5), n=1)
    code, out, err = run("select", "made", "--policy", policy, "--confidence", "none")
    assert (code, err) == (0, "")
    assert out.startswith("λ = 0.8" if policy == "paper" else "λ = 0.4")
    if policy == "bound":
        check_refused(run, "data.too_few_prompts", "select", "made")


BAD = [
    (("--margin", 2), "recipe.bad_value"),
    (("--margin", "nan"), "recipe.bad_value"),
    (("--bound", -1), "recipe.bad_value"),
    (("--confidence", 0.3), "recipe.bad_value"),
    (("--confidence", "high"), "recipe.bad_value"),
    (("--margin", 0.1, "--bound", 0.1), "recipe.two_bounds"),
]


@pytest.mark.parametrize(("options", "code"), BAD)
def test_bad_values_are_refused_by_every_verb(
    run: Run, made: Any, tmp_path: Path, options: tuple[object, ...], code: str
) -> None:
    made()
    (tmp_path / "r.yaml").write_text(yaml.safe_dump({"base": "b", "tuned": "t", "out": "out"}))
    for command in (("select", "made"), ("run", "r.yaml"), ("safeguard", "b", "t", "--out", "out")):
        check_refused(run, code, *command, *options)
    assert not (tmp_path / "out").exists()


def test_a_budget_that_no_search_uses_is_refused(run: Run, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(yaml.safe_dump({"base": "b", "tuned": "t", "out": "out"}))
    for command in (("run", "r.yaml"), ("safeguard", "b", "t", "--out", "out")):
        check_refused(run, "recipe.unused_budget", *command, "--budget", 3)


def test_bisect_needs_the_policy_bound(run: Run, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(yaml.safe_dump({"base": "b", "tuned": "t", "out": "out"}))
    check_refused(run, "recipe.conflict", "run", "r.yaml", "--search", "bisect", "--policy", "knee")


@pytest.mark.slow
def test_the_plan_says_how_it_will_be_chosen(run: Run, tmp_path: Path, tiny_model_folder: Path, tuned: Path) -> None:
    task = write_task(tmp_path)
    select = {"bound": 0.4, "over_refusal_margin": None}
    recipe = {"base": str(tiny_model_folder), "tuned": str(tuned), "score": {"task": str(task)}, "select": select}
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(recipe))
    pair = ("safeguard", tiny_model_folder, tuned, "--task", task, "--out", "out")
    for command in (("run", "r.yaml"), pair):
        for options, words in {
            ("--margin", 0.07, "--confidence", "none"): "at most the base's + 0.07 ",
            ("--bound", 0.03, "--confidence", 0.9): "at most 0.03, with 90 % confidence",
            ("--margin", 0.2, "--search", "bisect"): "at most the base's + 0.2, with 95 % confidence, by bisection",
            ("--confidence", 0.9999, "--margin", 0.3): "with 99.99 % confidence",
            ("--margin", 0.3, "--search", "modules", "--budget", 1): "at most 1 merge report",
            ("--policy", "knee"): "knee",
        }.items():
            code, out, err = run(*command, *options, "--set", "generate.max_tokens=8", "--dry-run")
            assert code == 0, err
            assert words.strip() in " ".join(out.split())


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (("--margin", 0), "data.too_few_prompts"),
        (("--margin", 0.02), "data.too_few_prompts"),
        (("--policy", "paper"), "recipe.no_task"),
        (("--policy", "knee"), "recipe.no_task"),
        (("--search", "modules"), "recipe.no_task"),
    ],
)
def test_a_choice_that_is_impossible_is_refused_before_anything_is_asked(
    run: Run, tmp_path: Path, tiny_model_folder: Path, tuned: Path, options: tuple[object, ...], code: str
) -> None:
    for plan in ((), ("--dry-run",)):
        check_refused(run, code, "safeguard", tiny_model_folder, tuned, "--out", "out", *options, *plan)
        assert not (tmp_path / "out").exists()


def test_a_refused_change_leaves_the_run_as_it_is(
    run: Run, tmp_path: Path, tiny_model_folder: Path, tuned: Path
) -> None:
    plain = {"base": str(tiny_model_folder), "tuned": str(tuned), "out": "out", "select": {"margin": 0.3}}
    (tmp_path / "out").mkdir()
    kept = tmp_path / "out" / "recipe.yaml"
    kept.write_text(Recipe.parse(plain).dump())
    before = kept.read_bytes()
    for options in (("--margin", 0), ("--policy", "paper"), ("--search", "modules")):
        assert run("run", kept, *options)[0] == 2
        assert kept.read_bytes() == before


def test_another_bound_on_a_bisection_says_that_one_lambda_was_measured(made: Any) -> None:
    folder = made(search="bisect", margin=0.3)
    path = folder / "report" / "results.json"
    found = json.loads(path.read_text())
    found["trials"] = [
        t for t in found["trials"] if t["point"]["lam"] in (0, 1) or t["point"] == found["choice"]["point"]
    ]
    path.write_text(json.dumps(found))
    only = "It is the only λ that was measured whole"
    assert only not in mooring.select(folder).reason
    assert only in mooring.select(folder, margin=0.5).reason


def test_unknown_settings_are_refused(made: Any) -> None:
    folder = made()
    for name in ("margins", "search"):
        with pytest.raises(mooring.RecipeError) as caught:
            mooring.select(folder, **{name: 0.1})
        assert caught.value.code == "recipe.unknown_option"
    assert mooring.select(folder, confidence=None).confidence is None


def test_without_a_lambda_within_the_bound_the_output_says_which_model_was_written(made: Any, capsys: Any) -> None:
    folder = made(all_over)
    choice = mooring.select(folder)
    verdict = mooring.load_results(folder).verdict
    render.outcome(Outcome(folder, folder / "model", choice, folder / "report", True, verdict))
    out = " ".join(capsys.readouterr().out.split())
    assert out.startswith(f"{verdict.words.upper()} {verdict.sentence}")
    assert "The model that was written is the nearest to the bound, λ = 0.2." in out
