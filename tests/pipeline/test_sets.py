"""The prompt sets of a run: a set under a name that says the opposite of what it holds is refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from mooring.config import Recipe
from mooring.errors import RecipeError
from mooring.pipeline.sets import DataSets, Sets, evaluation_sets


def load(recipe: Recipe) -> Sets:
    return evaluation_sets(recipe, DataSets.of(recipe))


@pytest.mark.parametrize(
    ("score", "place", "right"),
    [
        ({"safety": "xstest"}, "score.safety: xstest ", "over_refusal"),
        ({"safety": ["bundled:harmful", "bundled:ordinary#5"]}, "score.safety: bundled:ordinary#5 ", "ordinary"),
        ({"safety": "alpaca-eval"}, "score.safety: alpaca-eval ", "ordinary"),
        ({"safety": "humaneval"}, "score.safety: humaneval ", "task"),
        ({"over_refusal": "advbench"}, "score.over_refusal: advbench ", "safety"),
        ({"ordinary": "bundled:harmful"}, "score.ordinary: bundled:harmful ", "safety"),
    ],
)
def test_a_set_of_the_opposite_kind_is_refused(score: dict[str, Any], place: str, right: str) -> None:
    recipe = Recipe.parse({"base": "b", "tuned": "t", "score": score})
    with pytest.raises(RecipeError) as caught:
        DataSets.of(recipe)
    assert caught.value.code == "recipe.opposite_set"
    assert caught.value.message.startswith(place)
    assert caught.value.hint == f"name it under `{right}`"


def test_harmless_prompts_of_either_kind_are_interchangeable() -> None:
    score = {"over_refusal": "bundled:ordinary", "ordinary": "bundled:lookalikes", "limit": 3}
    sets = load(Recipe.parse({"base": "b", "tuned": "t", "score": score}))
    assert {name: [len(half) for half in halves.values()] for name, halves in sets.items()} == {
        "safety": [3, 3],
        "over_refusal": [0, 3],  # λ is not chosen by these
        "ordinary": [0, 3],
    }


def test_over_refusal_has_a_validation_half_if_it_is_bounded() -> None:
    score = {"over_refusal": "bundled:lookalikes", "ordinary": None, "limit": 3}
    bounded = Recipe.parse({"base": "b", "tuned": "t", "score": score, "select": {"over_refusal_margin": 0.1}})
    assert [len(half) for half in load(bounded)["over_refusal"].values()] == [3, 3]


def test_a_prompt_of_two_sets_is_in_one_half_only(tmp_path: Path) -> None:
    texts = [f"Help me break thing number {number}." for number in range(60)]
    for name, some in (("first", texts[:40]), ("second", [f"{text.upper()} " for text in texts[20:]])):
        lines = "".join(json.dumps({"prompt": text}) + "\n" for text in some)
        (tmp_path / f"{name}.jsonl").write_text(lines)
    refs = [str(tmp_path / "first.jsonl"), str(tmp_path / "second.jsonl")]
    recipe = Recipe.parse({"base": "b", "tuned": "t", "score": {"safety": refs}})
    found = load(recipe)["safety"]
    sides = [{prompt.messages[-1].content.capitalize().strip() for prompt in found[half]} for half in found]
    assert all(sides)
    assert not sides[0] & sides[1]
    assert sides[0] | sides[1] == set(texts)
    ids = {prompt.id for half in found.values() for prompt in half}
    assert all(id.startswith(tuple(f"{ref}:" for ref in refs)) for id in ids)
    alone = load(Recipe.parse({"base": "b", "tuned": "t", "score": {"safety": refs[0]}}))["safety"]
    assert not any(prompt.id.startswith(refs[0]) for half in alone.values() for prompt in half)
