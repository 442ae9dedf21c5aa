"""Recipes: read, refused with the field and the mend, and written out."""

import json
from pathlib import Path
from typing import Any

import pytest

from mooring.config import Recipe, section
from mooring.errors import RecipeError
from mooring.pipeline.sets import evaluation_sets

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
    ("change", "message"),
    [
        ({"tunned": "x"}, "unknown key `tunned`; did you mean `tuned`?"),
        ({"merge": {"lamdas": [0.5]}}, "unknown key `merge.lamdas`; did you mean `lambdas`?"),
        (
            {"tune": {"data": ["x"], "lora_alfa": 3}, "tuned": None},
            "unknown key `tune.lora_alfa`; did you mean `lora_alpha`?",
        ),
        ({"zzz": 1}, "unknown key `zzz`; known here: name, out"),
        ({"merge": {"lambdas": [0.5, 1.5]}}, "`merge.lambdas.1` is 1.5; input should be less than or equal to 1"),
        ({"merge": {"lambdas": [-0.1]}}, "`merge.lambdas.0` is -0.1; input should be greater than or equal to 0"),
        ({"merge": {"lambdas": []}}, "`merge.lambdas` is []; give at least one"),
        ({"merge": {"lambdas": [0, 1]}}, "give a λ between 0"),
        ({"merge": {"method": "magic"}}, "`merge.method` is 'magic'; input should be 'linear', 'task_arithmetic'"),
        ({"select": {"margin": "much"}}, "`select.margin` is 'much'"),
        ({"tune": {"data": ["x"]}}, "either `tune`"),
        ({"tuned": None}, "either `tune`"),
        ({"base": None}, "`base` is None"),
        ({"tune": {"data": []}, "tuned": None}, "`tune.data`"),
        ({"task": ["code"]}, "`task` is ['code']; input should be 'reasoning'"),
        ({"task": {"a": 1}}, "`task`: input should be 'reasoning'"),
        (
            {"score": {"judges": [{"name": "llm", "engine": "openai"}]}},
            "mine.yaml: `score.judges.0`: `engine: openai` and `base_url` go together",
        ),
        ({"score": {"metrics": "bert_scor"}}, "`score.metrics.0` is 'bert_scor'; known metrics"),
        ({"score": {"judges": []}}, "`score.judges`"),
    ],
)
def test_a_bad_value_is_named_with_its_field(change: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        Recipe.parse({"base": "b", "tuned": "t"} | change, "mine.yaml")
    text = str(caught.value)
    assert text.startswith("mine.yaml: ")
    assert message in text
    assert "\n" not in text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("base: b\ntuned: [\n", "recipe.yaml:3"),
        ("- a\n- b\n", "is not a mapping"),
        ("", "is not a mapping"),
        ("tuned: t\n", "`base` is missing"),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(RecipeError) as caught:
        Recipe.load(tmp_path / "recipe.yaml")
    assert str(tmp_path / "recipe.yaml") in str(caught.value)
    assert message in str(caught.value)


def test_a_missing_or_binary_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="No such file"):
        Recipe.load(tmp_path / "none.yaml")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match="is not text"):
        Recipe.load(tmp_path / "binary")


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_a_recipe_read_from_its_dump_or_overridden_asks_for_the_same_steps(path: Path, tmp_path: Path) -> None:
    """Keys of steps are digests of these values as JSON, where 3 and 3.0 differ: a run would be tuned anew."""
    recipe = Recipe.load(path)
    (tmp_path / "recipe.yaml").write_text(recipe.dump())

    def sections(one: Recipe) -> dict[str, str]:
        return {name: json.dumps(value) for name, value in one.model_dump().items()}

    assert sections(Recipe.load(tmp_path / "recipe.yaml")) == sections(recipe)
    changed, own = sections(recipe.override({"select.margin": 0.07})), sections(recipe)
    assert {name for name in own if changed[name] != own[name]} == {"select"}


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
        ({"tune": {"data": ["x"]}}, None),
        ({"tune": {"data": ["x"], "system": "Tuned."}}, "Tuned."),
        ({"tune": {"data": ["x"], "system": "Tuned."}, "score": {"validation_system": "Own."}}, "Own."),
        ({"tuned": "t"}, "Task."),
        ({"tuned": "t", "score": {"validation_system": "Own."}}, "Own."),
        ({"tune": {"data": ["x"]}, "score": {"validation_task": None}}, "Task."),
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
    halves = evaluation_sets(recipe)["task"]
    found = {half: {m.content for p in halves[half] for m in p.messages if m.role == "system"} for half in halves}
    assert found == {"validation": {validation} - {None}, "test": {"Task."}}


def test_a_section_alone_is_checked_too() -> None:
    assert section("generate", {"max_tokens": 5}).max_tokens == 5
    with pytest.raises(RecipeError, match="tune: unknown key `lora_alfa`; did you mean `lora_alpha`"):
        section("tune", {"data": ["x"], "lora_alfa": 4})


@pytest.mark.parametrize(
    ("section", "values", "says"),
    [
        ("select", {"search": "bisect", "policy": "knee"}, "needs a grid"),
        ("select", {"search": "bisect", "over_refusal_margin": 0.1}, "needs a grid"),
        ("select", {"search": "modules", "policy": "paper"}, "`policy: paper` needs a grid"),
        ("select", {"search": "modules", "budget": 0}, "greater than or equal to 1"),
        ("merge", {"lambdas": [0.12345671, 0.12345672]}, "the same in six digits"),
    ],
)
def test_what_cannot_be_done_together_is_refused(section: str, values: dict[str, object], says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        Recipe.parse({"base": "b", "tuned": "t", section: values})


def test_lambda_by_module_is_refused_where_the_method_sets_it_itself() -> None:
    recipe = {"base": "b", "tuned": "t", "select": {"search": "modules"}}
    assert Recipe.parse(recipe).select.budget == 12
    with pytest.raises(RecipeError, match="sets λ by module, and so does `method: lines`"):
        Recipe.parse(recipe | {"merge": {"method": "lines"}})
