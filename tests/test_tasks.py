"""The paper's tasks as recipes: their defaults, and how a recipe differs from the paper."""

import os
import re
from pathlib import Path

import pytest
import yaml

from mooring.config import TASKS, Recipe, departures, fill
from mooring.metrics import is_task_metric
from mooring.pipeline.forecast import forecast

HALVED = "safety: reported on the 50% of each set that λ was not chosen on (the paper: whole sets)"
LONGER = "score.lm_eval: bbh's answers have up to 1,024 tokens, as in lm-eval (the paper: 512)"
ALWAYS = {task: [HALVED, LONGER] if task == "reasoning" else [HALVED] for task in TASKS}
"""Where each task departs though the recipe says nothing."""
PAPER = sorted((Path(__file__).parents[1] / "recipes" / "paper").glob("*.yaml"))


@pytest.mark.parametrize("task", TASKS)
def test_a_task_fills_in_what_the_recipe_leaves_out(task: str) -> None:
    recipe = Recipe.parse({"base": "b", "task": task})
    assert recipe.tune is not None
    assert recipe.tune.data
    assert recipe.score.safety == ("advbench", "hex-phi")
    assert [judge.name for judge in recipe.score.judges] == ["wildguard"]
    assert recipe.score.validation_task
    assert recipe.score.task or recipe.score.lm_eval
    assert all(is_task_metric(metric) for metric in recipe.score.metrics)
    assert recipe.departures() == ALWAYS[task]


def test_the_papers_settings_stand_in_the_tasks() -> None:
    """PROTOCOL's tables: prompts, generation, the step that is reported."""
    code = Recipe.parse({"base": "b", "task": "code"})
    drawn = code.generate.sampling("task", 42)
    assert (drawn.temperature, drawn.top_p, drawn.top_k, drawn.n) == (0.6, 0.9, 50, 50)
    assert code.generate.sampling("safety", 42).temperature == 0
    assert code.score.task_system == (
        "You are a helpful assistant.\nComplete the following code and return only the completed code, without any "
        "explanations or additional text."
    )
    assert code.score.metrics[0] == "pass@10"
    medical = Recipe.parse({"base": "b", "task": "medical"})
    assert medical.generate.task.repetition_penalty == medical.generate.safety.repetition_penalty == 1.2
    assert medical.tune is not None
    assert medical.tune.system == medical.score.task_system
    assert medical.system == "You are a helpful assistant."
    assert (medical.score.bertscore_model, medical.tune.checkpoint_step) == ("microsoft/deberta-xlarge-mnli", None)
    steps = {}
    for task in TASKS:
        section = Recipe.parse({"base": "b", "task": task}).tune
        assert section is not None
        steps[task] = section.checkpoint_step
    assert steps == {"reasoning": 500, "medical": None, "code": 500, "tool": 200}


def test_what_the_recipe_says_stands_and_is_said_to_depart() -> None:
    recipe = Recipe.parse(
        {
            "base": "b",
            "task": "medical",
            "tune": {"r": 16},
            "score": {"judges": ["rules"], "limit": 20},
            "generate": {"max_tokens": 64},
        }
    )
    assert recipe.tune is not None
    assert (recipe.tune.r, recipe.tune.data) == (16, ("chatdoctor:train#max10000",))
    assert recipe.score.task == "chatdoctor:test"
    said = recipe.departures()
    assert "tune.r: 16 (the paper: 8)" in said
    assert "generate.max_tokens: 64 (the paper: 512)" in said
    assert "score.limit: 20 (the paper: none)" in said
    assert "score.judges: rules (the paper: wildguard)" in said
    assert said[0] == HALVED
    assert len(said) == 5
    again = Recipe.parse(yaml.safe_load(recipe.dump()))
    assert again == recipe
    assert again.departures() == said


def test_a_tuned_model_replaces_tuning() -> None:
    recipe = Recipe.parse({"base": "b", "tuned": "t", "task": "tool"})
    assert recipe.tune is None
    assert recipe.score.metrics == ("bert_score", "call_match")
    assert recipe.departures() == ALWAYS["tool"]


def test_judges_that_differ_are_named_with_their_models() -> None:
    judges = ["wildguard", {"name": "llm", "model": "some/model"}]
    recipe = Recipe.parse({"base": "b", "task": "tool", "score": {"judges": judges}})
    assert recipe.departures()[1:] == ["score.judges: wildguard, llm (some/model) (the paper: wildguard)"]
    same = Recipe.parse({"base": "b", "task": "tool", "score": {"judges": [{"name": "wildguard", "batch_size": 4}]}})
    assert same.departures()[1:] == ["score.judges: wildguard, set otherwise (the paper: wildguard)"]


def test_the_share_that_is_reported_is_listed() -> None:
    recipe = Recipe.parse({"base": "b", "task": "tool", "score": {"validation": 0.2}})
    assert recipe.departures() == [HALVED.replace("50%", "80%")]


def test_a_recipe_without_a_task_has_no_departures() -> None:
    assert Recipe.parse({"base": "b", "tuned": "t", "select": {"margin": 0.2}}).departures() == []


def test_fill_and_departures() -> None:
    assert fill({"a": {"b": 1}, "c": None}, {"a": {"b": 2, "d": 3}, "c": {"e": 4}, "f": 5}) == {
        "a": {"b": 1, "d": 3},
        "c": None,
        "f": 5,
    }
    assert list(departures({"a": [1, 2], "b": {"c": None}}, {"a": [], "b": {"c": True}})) == [
        "a: 1, 2 (the paper: none)",
        "b.c: none (the paper: True)",
    ]


def test_there_is_a_recipe_for_each_model_and_task_of_the_paper() -> None:
    names = {f"{model}-{task}" for model in ("llama-3-8b", "llama-3.1-8b", "gemma-2b") for task in TASKS}
    assert {path.stem for path in PAPER} == names


@pytest.mark.parametrize("task", TASKS)
def test_the_recipes_of_a_task_of_the_paper_differ_only_in_the_model(task: str) -> None:
    recipes = [Recipe.load(path) for path in PAPER if path.stem.endswith(task)]
    same = [recipe.model_dump(exclude={"name", "base", "report"}) for recipe in recipes]
    assert same == [same[0]] * 3
    assert recipes[0].departures() == ALWAYS[task]
    assert recipes[0].seed == 42


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_every_task_of_the_paper_is_planned_offline(task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The plan names what is missing on this machine."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    path = next(path for path in PAPER if path.stem.endswith(task))
    recipe = Recipe.load(path).model_copy(update={"out": str(tmp_path / "run")})
    planned = forecast(recipe)
    stages = dict(planned.stages)
    assert "LoRA r=8" in stages["tune"]
    assert stages["judge"] == "wildguard (allenai/wildguard)"
    assert any(fact.startswith("not here: ") for fact in planned.facts)
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif("MOORING_DATA" not in os.environ, reason="MOORING_DATA does not name the folder of real data")
def test_medical_is_planned_on_what_there_is_of_chatdoctor() -> None:
    tune = dict(forecast(Recipe.parse({"base": "b", "task": "medical"})).stages)["tune"]
    rows = re.search(r"chatdoctor:train#max10000 \((\d+) rows\)", tune)
    assert rows
    assert 1000 < int(rows[1]) <= 10000
