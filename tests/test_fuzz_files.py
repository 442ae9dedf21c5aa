"""Recipes, ledgers and servers' answers that are anything at all: a value, or the documented error in one line."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from mooring.bounded import RECORD, parse_json
from mooring.config import Recipe
from mooring.errors import UserError
from mooring.inference.dialect import parse_completion
from mooring.inference.server import TransientError
from mooring.ledger import LEDGER, read_ledger

EXAMPLES = int(os.environ.get("MOORING_FUZZ", "60"))
"""How many inputs of each kind; `make fuzz` tries 10,000."""

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([10**400, -(2**63), float("inf"), float("nan"), 1e308, -1])
    | st.floats()
    | st.text(st.characters(), max_size=20)
    | st.sampled_from(["", "../x", "\x1b[31m", "\ud800", "a" * 300, "null", "1e999", "0.2..0.8", "{}", "<<"])
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
)
fuzzed = settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def one_line(error: UserError) -> None:
    """Check that an error is one line with a code."""
    assert "\n" not in str(error)
    assert error.code.count(".") == 1


def edited(original: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    """A mapping of which some values, at the top or one level below, are anything."""
    inner = {key: edited(value) | VALUES for key, value in original.items() if isinstance(value, dict) and value}
    return st.fixed_dictionaries(
        {}, optional={**{key: st.just(value) | VALUES for key, value in original.items()}, **inner}
    )


RECIPE = Recipe.parse({"base": "b", "tuned": "t", "score": {"safety": "bundled:harmful"}}).model_dump(mode="json")
STEP = {"label": "l", "key": "k", "done": True, "seconds": 1.0, "files": {"a.json": "0"}}
ANSWER = {
    "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "Hi"}}],
    "usage": {"completion_tokens": 1},
}


@seed(0)
@fuzzed
@given(data=edited(RECIPE) | VALUES)
def test_recipes(data: Any, tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(yaml.safe_dump(data, allow_unicode=False), encoding="utf-8", errors="surrogatepass")
    try:
        Recipe.load(path)
    except UserError as error:
        one_line(error)
    assert [each.name for each in tmp_path.iterdir()] == ["r.yaml"]


@seed(0)
@fuzzed
@given(data=st.binary(max_size=200) | st.text("[]{}&*<: -,\n!?|>%@`'\"#ab1.e", max_size=200).map(str.encode))
def test_recipes_that_are_hardly_yaml(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_bytes(data)
    with pytest.raises(UserError) as caught:
        Recipe.load(tmp_path / "r.yaml")
    one_line(caught.value)


@seed(0)
@fuzzed
@given(data=edited({"steps": {"a": STEP}, "digests": {"m": {"stats": "s", "digest": "d"}}}) | VALUES)
def test_ledgers(data: Any, tmp_path: Path) -> None:
    (tmp_path / LEDGER).write_text(json.dumps(data))
    try:
        read_ledger(tmp_path)
    except UserError as error:
        one_line(error)


@seed(0)
@fuzzed
@given(
    data=edited(ANSWER)
    | st.fixed_dictionaries(
        {"choices": st.lists(edited(ANSWER["choices"][0]), min_size=1, max_size=1), "usage": VALUES}
    )
    | VALUES
)
def test_answers_of_servers(data: Any) -> None:
    try:
        found = parse_completion(parse_json(json.dumps(data, default=str), RECORD), "p")
    except (TransientError, ValueError):
        return
    assert isinstance(found.text, str)
    assert 0 <= found.tokens < 2**31
