"""Recipes: read, refused with the field and the mend, and written out."""

import json
from pathlib import Path
from typing import Any

import pytest

from mooring.config import Recipe, section
from mooring.errors import RecipeError
from mooring.pipeline.sets import DataSets, evaluation_sets

RECIPES = sorted((Path(__file__).parents[1] / "recipes").rglob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_every_recipe_that_ships_loads(path: Path) -> None:
    assert Recipe.load(path).name == path.stem


def test_there_is_a_quickstart() -> None:
    assert "quickstart" in [path.stem for path in RECIPES]


def test_the_defaults_are_the_papers() -> None:
    recipe = Recipe.parse({"base": "b", "tune": {"data": ["x"]}})
    assert recipe.tune is not None
    values = recipe.tune.model_dump()
    paper = {
        "r": 8,
        "lora_alpha": 16,
        "target_modules": "all-linear",
        "learning_rate": 1e-4,
        "lr_scheduler_type": "cosine",
        "warmup_ratio": 0.1,
        "per_device_train_batch_size": 8,
        "num_train_epochs": 3,
        "max_length": 1024,
        "val_set_size": 0.1,
    }
    assert {key: values[key] for key in paper} == paper
    assert recipe.merge.lambdas == (0.2, 0.4, 0.6, 0.8)
    assert (recipe.generate.max_tokens, recipe.generate.temperature) == (512, 0)
    assert recipe.generate.safety.repetition_penalty == 1.2
    assert (recipe.seed, recipe.system) == (42, "You are a helpful assistant.")


@pytest.mark.parametrize(
    ("change", "code", "field", "hint"),
    [
        ({"tunned": "x"}, "unknown_key", "tunned", "did you mean `tuned`?"),
        ({"merge": {"lamdas": [0.5]}}, "unknown_key", "merge.lamdas", "did you mean `lambdas`?"),
        ({"tune": {"data": ["x"], "lora_alfa": 3}, "tuned": None}, "unknown_key", "tune.lora_alfa", "`lora_alpha`?"),
        ({"zzz": 1}, "unknown_key", "zzz", "known here: plugins, name, out"),
        ({"merge": {"lambdas": [0.5, 1.5]}}, "bad_value", "merge.lambdas.1", "less than or equal to 1"),
        ({"merge": {"lambdas": [-0.1]}}, "bad_value", "merge.lambdas.0", "greater than or equal to 0"),
        ({"merge": {"lambdas": []}}, "bad_value", "merge.lambdas", "give at least one"),
        ({"merge": {"lambdas": [0, 1]}}, "bad_value", "merge.lambdas", "give a λ between 0"),
        ({"merge": {"method": "magic"}}, "bad_value", "merge.method", "linear, task_arithmetic"),
        ({"select": {"margin": "much"}}, "bad_value", "select.margin", ""),
        ({"tune": {"data": ["x"]}}, "conflict", "tune", ""),
        ({"tuned": None}, "conflict", "tune", ""),
        ({"base": None}, "bad_value", "base", ""),
        ({"tune": {"data": []}, "tuned": None}, "bad_value", "tune.data", "give at least one"),
        ({"task": ["code"]}, "bad_value", "task", "'reasoning'"),
        ({"task": {"a": 1}}, "bad_value", "task", ""),
        ({"score": {"judges": [{"name": "llm", "engine": "openai"}]}}, "conflict", "score.judges.0", ""),
        ({"score": {"metrics": "bert_scor"}}, "bad_value", "score.metrics.0", "known metrics"),
        ({"score": {"judges": []}}, "bad_value", "score.judges", "give at least one"),
    ],
)
def test_a_bad_value_is_named_with_its_field(change: dict[str, Any], code: str, field: str, hint: str) -> None:
    with pytest.raises(RecipeError) as caught:
        Recipe.parse({"base": "b", "tuned": "t"} | change, "mine.yaml")
    error = caught.value
    assert error.code == f"recipe.{code}"
    assert error.message.startswith("mine.yaml: ")
    assert f"`{field}`" in error.message
    assert hint in error.hint
    assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("text", "code", "place"),
    [
        ("base: b\ntuned: [\n", "invalid_yaml", ":3"),
        ("- a\n- b\n", "not_a_mapping", ""),
        ("", "not_a_mapping", ""),
        ("tuned: t\n", "missing_key", ""),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, text: str, code: str, place: str) -> None:
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(RecipeError) as caught:
        Recipe.load(tmp_path / "recipe.yaml")
    assert caught.value.code == f"recipe.{code}"
    assert caught.value.message.startswith(f"{tmp_path / 'recipe.yaml'}{place}: ")


def test_a_missing_or_binary_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    for name in ("none.yaml", "binary"):
        with pytest.raises(RecipeError) as caught:
            Recipe.load(tmp_path / name)
        assert caught.value.code == "recipe.unreadable"
        assert str(tmp_path / name) in caught.value.message


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_a_recipe_read_from_its_dump_or_overridden_has_the_same_steps(path: Path, tmp_path: Path) -> None:
    """Keys of steps are digests of these values as JSON, where 3 and 3.0 differ: a run would be tuned again."""
    recipe = Recipe.load(path)
    (tmp_path / "recipe.yaml").write_text(recipe.dump())

    def sections(one: Recipe) -> dict[str, str]:
        return {name: json.dumps(value) for name, value in one.model_dump().items()}

    assert sections(Recipe.load(tmp_path / "recipe.yaml")) == sections(recipe)
    changed, own = sections(recipe.override({"select.margin": 0.07})), sections(recipe)
    assert {name for name in own if changed[name] != own[name]} == {"select"}


def test_judge_keys_set_the_fields_of_every_judge_with_a_model() -> None:
    score = {"judges": ["rules", {"name": "llm", "model": "m"}, "wildguard"]}
    recipe = Recipe.parse({"base": "b", "tuned": "t", "score": score})
    changed = recipe.override({"judge.engine": "vllm", "judge.gpu_memory": 0.3, "select.margin": 0.2})
    rules, llm, wildguard = changed.score.judges
    assert rules == recipe.score.judges[0]
    assert (llm.name, llm.model, llm.engine, llm.gpu_memory) == ("llm", "m", "vllm", 0.3)
    assert (wildguard.name, wildguard.engine, wildguard.gpu_memory) == ("wildguard", "vllm", 0.3)
    assert changed.select.margin == 0.2
    named = recipe.override({"judge.engine": "vllm", "score.judges": ["wildguard"]})  # whatever their order
    assert [(judge.name, judge.engine) for judge in named.score.judges] == [("wildguard", "vllm")]


def test_a_task_s_judges_get_the_fields_too() -> None:
    recipe = Recipe.parse({"base": "b", "tuned": "t", "task": "tool"}).override({"judge.engine": "vllm"})
    assert [(judge.name, judge.engine) for judge in recipe.score.judges] == [("wildguard", "vllm")]


@pytest.mark.parametrize(
    ("values", "code", "words"),
    [
        ({"judge.engine": "vllm"}, "recipe.no_judge_model", "--judges"),
        ({"judge.engin": "vllm", "score.judges": ["wildguard"]}, "recipe.unknown_key", "engine"),
        ({"judge.engine": "openai", "score.judges": ["wildguard"]}, "recipe.conflict", "base_url"),
        ({"judge.gpu_memory": 1.5, "score.judges": ["wildguard"]}, "recipe.bad_value", "1.5"),
        ({"generate.gpu_memory": 0}, "recipe.bad_value", "generate.gpu_memory"),
        ({"generate.max_model_len": 0}, "recipe.bad_value", "generate.max_model_len"),
    ],
)
def test_bad_engine_options_are_refused(values: dict[str, object], code: str, words: str) -> None:
    with pytest.raises(RecipeError) as caught:
        Recipe.parse({"base": "b", "tuned": "t"}).override(values)
    assert caught.value.code == code
    assert words in f"{caught.value.message} {caught.value.hint}"


def test_what_is_dumped_loads_again(tmp_path: Path) -> None:
    recipe = Recipe.parse({"base": "b", "tune": {"data": ["x", "y#5"]}, "merge": {"lambdas": [0.5, 0.1, 0.5, 1]}})
    assert recipe.merge.lambdas == (0.1, 0.5)
    (tmp_path / "again.yaml").write_text(recipe.dump())
    assert Recipe.load(tmp_path / "again.yaml") == recipe


def test_one_of_several_needs_no_list() -> None:
    score = {"judges": "rules", "metrics": "bert_score", "validation_metrics": "pass@1", "lm_eval": "bbh"}
    listed = {key: [value] for key, value in score.items()}
    recipe = Recipe.parse({"base": "b", "tuned": "t", "score": score})
    assert recipe == Recipe.parse({"base": "b", "tuned": "t", "score": listed})
    assert recipe.score.lm_eval == ("bbh",)
    one = section("score", {"judges": {"name": "llm", "model": "m"}})
    assert section("score", {"judges": one.judges[0]}) == one
    assert [(judge.name, judge.model) for judge in one.judges] == [("llm", "m")]


@pytest.mark.parametrize(
    ("changes", "validation"),
    [
        ({"tune": {"data": ["bundled:tools#5"]}}, None),
        ({"tune": {"data": ["bundled:tools#5"], "system": "Tuned."}}, "Tuned."),
        ({"tune": {"data": ["bundled:tools#5"], "system": "Tuned."}, "score": {"validation_system": "Own."}}, "Own."),
        ({"tuned": "t"}, "Task."),
        ({"tuned": "t", "score": {"validation_system": "Own."}}, "Own."),
        ({"tune": {"data": ["bundled:tools#5"]}, "score": {"validation_task": None}}, "Task."),
    ],
)
def test_the_system_text_that_lambda_is_chosen_under(
    tmp_path: Path, changes: dict[str, Any], validation: str | None
) -> None:
    """Rows on which the tuning is measured are asked as the model was tuned, not under the test's instruction."""
    for name in ("task", "held"):
        rows = [{"prompt": f"{name} {i}", "completion": "x"} for i in range(4)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    score = {
        "over_refusal": None,
        "ordinary": None,
        "task": f"{tmp_path}/task.jsonl",
        "validation_task": f"{tmp_path}/held.jsonl",
        "task_system": "Task.",
    }
    recipe = Recipe.parse({"base": "b", **changes, "score": score | changes.get("score", {})})
    halves = evaluation_sets(recipe, DataSets.of(recipe))["task"]
    found = {half: {m.content for p in halves[half] for m in p.messages if m.role == "system"} for half in halves}
    assert found == {"validation": {validation} - {None}, "test": {"Task."}}


def test_a_section_alone_is_checked_too() -> None:
    assert section("generate", {"max_tokens": 5}).max_tokens == 5
    with pytest.raises(RecipeError) as caught:
        section("tune", {"data": ["x"], "lora_alfa": 4})
    assert caught.value.code == "recipe.unknown_key"


@pytest.mark.parametrize(
    ("section", "values", "code"),
    [
        ("select", {"search": "bisect", "policy": "knee"}, "conflict"),
        ("select", {"search": "bisect", "bound_on": ["none", "multi_turn"]}, "conflict"),
        ("select", {"search": "bisect", "bound_on": ["prefill_tuned"]}, "conflict"),
        ("select", {"search": "modules", "policy": "paper"}, "conflict"),
        ("select", {"search": "modules", "budget": 0}, "bad_value"),
        ("merge", {"lambdas": [0.12345671, 0.12345672]}, "bad_value"),
    ],
)
def test_options_that_exclude_each_other(section: str, values: dict[str, object], code: str) -> None:
    with pytest.raises(RecipeError) as caught:
        Recipe.parse({"base": "b", "tuned": "t", section: values})
    assert caught.value.code == f"recipe.{code}"


def test_lambda_by_module_is_refused_if_the_method_sets_it_itself() -> None:
    recipe = {"base": "b", "tuned": "t", "select": {"search": "modules"}}
    assert Recipe.parse(recipe).select.budget == 12
    with pytest.raises(RecipeError) as caught:
        Recipe.parse(recipe | {"merge": {"method": "lines"}})
    assert caught.value.code == "recipe.conflict"
