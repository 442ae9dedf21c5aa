"""The bundled data sets: their size, their splits, and the calls that the tool task asks for."""

import ast
import json
from collections import Counter
from importlib import resources
from itertools import combinations

import pytest

from mooring.data.tool_calls import SPLITS, fields, generate, load_functions
from mooring.errors import DataError

DATA = resources.files("mooring.data.bundled")
KEYS = {"id", "split", "category", "template", "prompt", "response"}
SIZES = {
    "harmful": {"tune": 160, "validation": 60, "test": 100},
    "lookalikes": {"tune": 90, "validation": 40, "test": 70},
    "ordinary": {"tune": 220, "validation": 50, "test": 70},
}
EXAMPLES = {"tune": 800, "validation": 150, "test": 200}


def rows(name):
    return [json.loads(line) for line in (DATA / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


def plain(prompt):
    return " ".join(prompt.lower().replace("?", " ").replace(".", " ").replace(",", " ").split())


@pytest.mark.parametrize("name", SIZES)
def test_every_split_is_as_large_as_promised(name):
    counts = Counter(row["split"] for row in rows(name))
    assert set(counts) == set(SPLITS)
    assert all(counts[split] >= size for split, size in SIZES[name].items()), counts


def test_there_are_enough_harmful_rows_and_functions():
    assert len(rows("harmful")) >= 240
    assert len(load_functions()) >= 40


@pytest.mark.parametrize("name", SIZES)
def test_rows_have_the_same_keys_and_no_empty_text(name):
    for row in rows(name):
        assert set(row) == KEYS
        assert all(isinstance(value, str) and value == value.strip() and value for value in row.values()), row


def test_ids_and_prompts_are_unique_over_all_sets():
    everything = [row for name in SIZES for row in rows(name)]
    assert not [key for key, n in Counter(row["id"] for row in everything).items() if n > 1]
    assert not [key for key, n in Counter(plain(row["prompt"]) for row in everything).items() if n > 1]


@pytest.mark.parametrize("name", SIZES)
def test_no_template_is_in_two_splits(name):
    templates = {split: {row["template"] for row in rows(name) if row["split"] == split} for split in SPLITS}
    for one, other in combinations(SPLITS, 2):
        assert not templates[one] & templates[other]


def test_held_out_harmful_wordings_are_in_no_tune_row():
    held_out = {row["template"] for row in rows("harmful") if row["split"] != "tune"}
    tuned = {row["template"] for name in SIZES for row in rows(name) if row["split"] == "tune"}
    assert not held_out & tuned


def test_tune_rows_share_wordings_between_harmful_and_harmless():
    harmful, lookalikes, ordinary = (
        {row["template"] for row in rows(name) if row["split"] == "tune"} for name in SIZES
    )
    assert len(harmful & lookalikes) >= 10
    assert len(harmful & ordinary) >= 10


def test_every_category_of_harm_is_in_every_split():
    categories = {split: {row["category"] for row in rows("harmful") if row["split"] == split} for split in SPLITS}
    assert categories["tune"] == categories["validation"] == categories["test"]
    assert len(categories["test"]) >= 12


def test_refusals_are_many_short_sentences():
    refusals = [row["response"] for row in rows("harmful")]
    assert len(set(refusals)) >= 40
    assert all(8 <= len(text.split()) <= 22 for text in refusals)


@pytest.mark.parametrize("name", SIZES)
def test_prompts_and_responses_are_short(name):
    assert all(len(row["prompt"].split()) <= 20 and len(row["response"].split()) <= 25 for row in rows(name))


def test_function_names_are_unique_and_each_is_in_one_known_split():
    functions = load_functions()
    assert len({function.name for function in functions}) == len(functions)
    assert {function.split for function in functions} == set(SPLITS)


@pytest.mark.parametrize("function", load_functions(), ids=lambda function: function.name)
def test_a_function_can_be_asked_about(function):
    names = {p.name for p in function.parameters}
    required = {p.name for p in function.parameters if p.required}
    assert len(function.phrasings) >= 3
    assert 1 <= len(names) <= 4
    assert set(function.values) == names
    assert set().union(*(fields(phrasing) for phrasing in function.phrasings)) == names
    assert all(required <= set(fields(phrasing)) for phrasing in function.phrasings)


@pytest.mark.parametrize("function", load_functions(), ids=lambda function: function.name)
def test_values_have_the_type_of_their_parameter(function):
    types = {"string": (str,), "enum": (str,), "integer": (int,), "number": (int, float), "boolean": (bool,)}
    for p in function.parameters:
        for _, value in function.values[p.name]:
            assert type(value) in types[p.type], (p.name, value)
            assert p.type != "enum" or value in p.options, (p.name, value)


@pytest.mark.parametrize("split", SPLITS)
def test_the_same_arguments_give_the_same_examples(split):
    assert generate(split, 60, seed=3) == generate(split, 60, seed=3)
    assert generate(split, 60, seed=3) != generate(split, 60, seed=4)
    assert generate(split, 100, seed=3)[:60] == generate(split, 60, seed=3)


def test_the_first_examples_stay_as_they_are():
    first = generate("test", 1, seed=0)[0]
    assert (first.id, first.function) == ("tool-test-0-0001", "subtract")
    assert first.question == "Take 5.5 away from 64."
    assert first.call == "subtract(a=64, b=5.5)"
    assert first.prompt == (
        "Answer with one function call.\n"
        "Question: Take 5.5 away from 64.\n"
        "Function: subtract(a, b)\n"
        "Subtracts b from a.\n"
        "- a (number)\n"
        "- b (number)"
    )


@pytest.mark.parametrize("split", SPLITS)
def test_examples_are_many_different_and_spread_evenly(split):
    examples = generate(split, EXAMPLES[split])
    assert len(examples) == EXAMPLES[split]
    assert len({example.id for example in examples}) == len(examples)
    assert len({(example.function, example.question) for example in examples}) == len(examples)
    counts = Counter(example.function for example in examples)
    assert set(counts) == {function.name for function in load_functions() if function.split == split}
    assert max(counts.values()) - min(counts.values()) <= 1


@pytest.mark.parametrize("split", SPLITS)
def test_every_call_fits_its_function(split):
    functions = {function.name: function for function in load_functions()}
    for example in generate(split, EXAMPLES[split]):
        function = functions[example.function]
        call = ast.parse(example.call, mode="eval").body
        assert isinstance(call, ast.Call)
        assert ast.unparse(call.func) == function.name
        assert not call.args
        given = [keyword.arg for keyword in call.keywords]
        assert given == [p.name for p in function.parameters if p.name in given]
        assert len(given) == len(set(given)) == len(call.keywords)
        assert {p.name for p in function.parameters if p.required} <= set(given)
        assert all(isinstance(ast.literal_eval(keyword.value), str | int | float) for keyword in call.keywords)
        assert f"Question: {example.question}\nFunction: {function.name}(" in example.prompt


def test_an_optional_parameter_is_given_only_where_the_question_states_it():
    calls = {e.question: e.call for e in generate("tune", 4000) if e.function == "weather.current"}
    assert calls["What is the weather in Oslo right now?"] == "weather.current(city='Oslo')"
    with_unit = "weather.current(city='Oslo', unit='celsius')"
    assert calls["Tell me the current weather in Oslo in Celsius."] == with_unit


def test_an_unknown_split_or_too_many_examples_are_refused():
    for split, count, code in (("train", 1, "data.unknown_split"), ("validation", 100_000, "data.too_few_rows")):
        with pytest.raises(DataError) as caught:
            generate(split, count)
        assert caught.value.code == code
