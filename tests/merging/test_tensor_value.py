"""A number for every tensor."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mooring.errors import UserError
from mooring.merging.layers import depths, layer
from mooring.merging.tensor_value import TensorValue, interpolate, parse, parse_rule

MLP = "model.layers.{}.mlp.up_proj.weight"
Q = "model.layers.{}.self_attn.{}_proj.weight"
NUMBERS = st.floats(-2, 2, allow_nan=False)


def test_a_number_holds_for_every_tensor() -> None:
    setting = TensorValue.of(0.6)
    assert setting.constant == 0.6
    assert setting.at("anything", 0.3) == 0.6
    assert (
        TensorValue.of(1)
        == TensorValue.of(1.0)
        == TensorValue.of((1.0, 1.0))
        == TensorValue.of([1])
        == TensorValue.of({"*": 1})
    )
    assert TensorValue.of(setting) is setting


def test_a_ramp_runs_over_the_depth() -> None:
    setting = TensorValue.of((0.2, 0.4, 0.8))
    assert setting.constant is None
    found = [setting.at("x", depth) for depth in (0, 0.25, 0.5, 0.75, 1)]
    assert found == pytest.approx([0.2, 0.3, 0.4, 0.6, 0.8])


@given(st.lists(NUMBERS, min_size=2, max_size=6), st.floats(0, 1))
def test_a_ramp_stays_between_its_neighbours(values: list[float], depth: float) -> None:
    found = interpolate(tuple(values), depth)
    assert min(values) - 1e-12 <= found <= max(values) + 1e-12
    assert interpolate(tuple(values), 0) == values[0]
    assert interpolate(tuple(values), 1) == values[-1]


@pytest.mark.parametrize(
    ("pattern", "name", "matches"),
    [
        ("layers.{0-9}.mlp.*", MLP.format(3), True),
        ("layers.{0-9}.mlp.*", MLP.format(9), True),
        ("layers.{0-9}.mlp.*", MLP.format(10), False),
        ("layers.{8-11}.mlp.*", MLP.format(10), True),
        ("layers.{8-11}.mlp.*", MLP.format(110), False),
        ("layers.{0-9}*", MLP.format(12), False),
        ("layers.{0-2,7}.mlp.*", MLP.format(7), True),
        ("layers.{0-2,7}.mlp.*", MLP.format(6), False),
        ("{q,k,v}_proj.weight", Q.format(0, "k"), True),
        ("{q,k,v}_proj.weight", Q.format(0, "o"), False),
        ("self_attn.*", Q.format(0, "o"), True),
        ("attn.*", Q.format(0, "o"), False),
        ("*attn*", Q.format(0, "o"), True),
        ("model.layers.?.*", Q.format(5, "o"), True),
        ("model.layers.?.*", Q.format(55, "o"), False),
        ("q_proj", Q.format(0, "q"), False),
        ("lm_head.weight", "lm_head.weight", True),
        ("head.weight", "lm_head.weight", False),
        ("layers.0.mlp.*", "model.layersX0.mlp.up", False),
    ],
)
def test_patterns(pattern: str, name: str, matches: bool) -> None:
    setting = TensorValue.of({pattern: 0.3, "*": 0.6})
    assert setting.at(name, 0) == (0.3 if matches else 0.6)
    assert setting.unused([name]) == (() if matches else (pattern,))


def test_the_first_pattern_wins_but_the_star_comes_last() -> None:
    setting = TensorValue.of({"*": 0.1, "mlp.*": 0.2, "layers.0.*": (0.3, 0.5)})
    assert [pattern for pattern, _ in setting.rules] == ["mlp.*", "layers.0.*", "*"]
    assert setting.at(MLP.format(0), 0) == 0.2
    assert setting.at(Q.format(0, "q"), 1) == 0.5
    assert setting.at("model.norm.weight", 1) == 0.1


def test_a_tensor_that_no_pattern_matches_is_named() -> None:
    setting = TensorValue.of({"mlp.*": 0.2})
    assert setting.constant is None
    with pytest.raises(UserError) as caught:
        setting.at("model.norm.weight", 1)
    assert caught.value.code == "usage.no_pattern_matches"
    assert caught.value.message.startswith("model.norm.weight: ")


def test_constant_is_none_unless_all_tensors_have_it() -> None:
    assert TensorValue.of({"mlp.*": 0.2, "*": 0.2}).constant == 0.2
    assert TensorValue.of({"mlp.*": 0.2, "*": 0.3}).constant is None
    assert TensorValue.of({"mlp.*": 0.2}).constant is None


def test_containing_matches_parts_of_names() -> None:
    setting = TensorValue.containing([("mlp", 0.2), ("mlp", 0.9), ("", (0.3, 0.5)), ("self_attn", 1.0)])
    assert setting.rules == (("mlp", 0.2), ("*", (0.3, 0.5)))
    assert setting.at(MLP.format(1), 1) == 0.2
    assert setting.at(Q.format(1, "q"), 1) == 0.5
    assert setting.unused(["nothing"]) == ()


def test_containing_has_a_ramps_first_value_outside_the_layers() -> None:
    ramp = ((("*"), (0.3, 0.5)),)
    assert TensorValue.containing(ramp).at("model.norm.weight", 1) == 0.3
    assert TensorValue.of((0.3, 0.5)).at("model.norm.weight", 1) == 0.5
    assert TensorValue.containing(ramp) != TensorValue.of((0.3, 0.5))
    assert TensorValue.containing([("*", 0.5)]) == TensorValue.of(0.5)


def test_depths() -> None:
    names = ["model.embed_tokens.weight", *(MLP.format(i) for i in (10, 0, 5)), "model.norm.weight", "lm_head.weight"]
    assert list(depths(names).values()) == [0, 1, 0, 0.5, 1, 1]
    assert depths(["transformer.wte.weight", "transformer.h.0.a", "transformer.h.2.a", "transformer.ln_f.weight"]) == {
        "transformer.wte.weight": 0,
        "transformer.h.0.a": 0,
        "transformer.h.2.a": 1,
        "transformer.ln_f.weight": 1,
    }


def test_depths_count_each_stack_and_the_first_number() -> None:
    names = ["encoder.layers.1.a", "encoder.layers.2.a", "decoder.layers.1.a", "decoder.layers.4.a"]
    assert list(depths(names).values()) == [0.5, 1, 0.25, 1]
    assert layer("model.layers.3.experts.7.up.weight") == ("model.layers", 3)
    assert layer("encoder.block.2.layer.0.q.weight") == ("encoder.block", 2)
    assert layer("model.norm.weight") is None
    assert depths(["model.layers.0.a"]) == {"model.layers.0.a": 1}  # mergekit's convention
    assert depths(["gpt_neox.embed_in.weight", "embed_out.weight"]) == {
        "gpt_neox.embed_in.weight": 0,
        "embed_out.weight": 1,
    }


def test_parse() -> None:
    assert parse("0.6") == 0.6
    assert parse("0.2..0.8") == (0.2, 0.8)
    assert parse(" .2 .. 1e-1 .. 1. ") == (0.2, 0.1, 1.0)
    assert parse("-0.5") == -0.5
    assert parse_rule("layers.{0-9}.mlp.*=0.3") == ("layers.{0-9}.mlp.*", 0.3)
    assert parse_rule("* = 0.2..0.8") == ("*", (0.2, 0.8))


@given(NUMBERS, NUMBERS)
def test_parse_reads_what_python_writes(first: float, last: float) -> None:
    assert parse(repr(first)) == first
    assert parse(f"{first!r}..{last!r}") == ((first, last) if first != last else first)


@pytest.mark.parametrize("text", ["", "x", "nan", "inf", "1_0", "0.2..", "..0.8", "0.2...8x", "0,6", "٣", "1e999"])
def test_parse_refuses_what_is_not_a_number(text: str) -> None:
    with pytest.raises(UserError) as caught:
        parse(text)
    assert caught.value.code == "usage.bad_number"
    assert text in caught.value.message


@pytest.mark.parametrize("text", ["mlp", "=0.3", "mlp=x", "{0-9=0.3", "{9-0}=0.3", "{}=1", "{a,}=1", "{0-99999}=1"])
def test_parse_rule_refuses_malformed_rules(text: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_rule(text)
    assert caught.value.code == ("usage.bad_number" if text == "mlp=x" else "usage.bad_pattern")


@pytest.mark.parametrize("value", [math.nan, math.inf, True, "0.5", None, (), (0.1, "x"), {"a": 1}])
def test_values_that_are_not_numbers_are_refused(value: object) -> None:
    with pytest.raises(UserError):
        TensorValue.of({"mlp.*": value})
    if not isinstance(value, dict):
        with pytest.raises(UserError):
            TensorValue.of(value)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.int64])
def test_numbers_and_arrays_of_numpy_are_taken(kind: type) -> None:
    assert TensorValue.of(kind(1)) == TensorValue.of(1.0)
    assert TensorValue.of(np.array([0, 1], dtype=kind)) == TensorValue.of((0.0, 1.0))
    assert TensorValue.of({"mlp.*": kind(1), "*": 0.5}).at(MLP.format(0), 0) == 1.0
    with pytest.raises(UserError):
        TensorValue.of(np.ones((2, 2), dtype=kind))  # type: ignore[arg-type]


def test_a_range_has_at_most_ten_thousand_numbers() -> None:
    assert TensorValue.of({"layers.{5-10004}.*": 0.1, "*": 0.2}).at("layers.10004.x", 0) == 0.1
    assert TensorValue.of({"layers.{7-7}.*": 0.1, "*": 0.2}).at("layers.7.x", 0) == 0.1
    with pytest.raises(UserError) as caught:
        TensorValue.of({"layers.{5-10005}.*": 0.1})
    assert caught.value.code == "usage.bad_pattern"


def test_the_keys_of_a_mapping_must_be_patterns() -> None:
    for bad in ({}, {"": 1}, {3: 1}, {"a{b": 1}, {"a}": 1}):
        with pytest.raises(UserError):
            TensorValue.of(bad)  # type: ignore[arg-type]


@given(
    st.one_of(
        NUMBERS,
        st.lists(NUMBERS, min_size=1, max_size=4),
        st.dictionaries(st.sampled_from("abc*"), NUMBERS, min_size=1),
    )
)
def test_json_round_trip(given_: object) -> None:
    setting = TensorValue.of(given_)  # type: ignore[arg-type]
    assert TensorValue.of(json.loads(json.dumps(setting.to_json()))) == setting


def test_json_has_the_kind_of_matching() -> None:
    assert TensorValue.containing([("mlp", 0.2), ("*", (0, 1))]).to_json() == {"contains": {"mlp": 0.2, "*": [0, 1]}}
