"""Fields of common data sets: put to their use, refused, or said to be left out; never dropped in silence."""

import json
from pathlib import Path
from typing import Any

import pytest

from mooring.config import DataFields
from mooring.data import load_prompts
from mooring.errors import DataError
from mooring.records import Message, Prompt, ToolCall


@pytest.fixture
def load(tmp_path: Path) -> Any:
    def read(*rows: dict[str, Any]) -> tuple[list[Prompt], list[str]]:
        path, notes = tmp_path / "rows.jsonl", list[str]()
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return load_prompts(str(path), on_note=notes.append), notes

    return read


def turns(prompt: Prompt) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in prompt.messages]


def test_the_context_of_a_question_is_asked_with_it(load: Any) -> None:
    dolly = {"instruction": "When?", "context": "It began in 2000.", "response": "2000", "category": "closed_qa"}
    (prompt,), notes = load(dolly)
    assert turns(prompt) == [("user", "When?\n\nIt began in 2000.")]
    assert (prompt.reference, prompt.category, notes) == ("2000", "closed_qa", [])
    assert turns(load({**dolly, "context": ""})[0][0]) == [("user", "When?")]


def test_history_and_system_are_turns(load: Any) -> None:
    row = {
        "instruction": "And of Sweden?",
        "output": "Stockholm",
        "system": "One word.",
        "history": [["Norway?", "Oslo"]],
    }
    expected = [("system", "One word."), ("user", "Norway?"), ("assistant", "Oslo"), ("user", "And of Sweden?")]
    (prompt,), notes = load(row)
    assert (turns(prompt), notes) == (expected, [])
    as_messages = [{"role": "user", "content": "Norway?"}, {"role": "assistant", "content": "Oslo"}]
    assert turns(load(row | {"history": as_messages})[0][0]) == expected


@pytest.mark.parametrize("name", ["system", "system_prompt", "system_message"])
def test_a_system_prompt_beside_messages(load: Any, name: str) -> None:
    own = {"role": "system", "content": "Be kind."}
    row = {"messages": [{"role": "user", "content": "Hi"}], name: "Be kind."}
    assert turns(load(row)[0][0]) == [("system", "Be kind."), ("user", "Hi")]
    row["messages"] = [own, {"role": "user", "content": "Hi"}]
    assert turns(load(row)[0][0]) == [("system", "Be kind."), ("user", "Hi")]
    with pytest.raises(DataError, match="2 different system prompts"):
        load(row | {name: "Be brief."})


WEATHER = {"name": "get_weather", "description": "The weather.", "parameters": {"type": "object"}}
OSLO = ToolCall("get_weather", '{"city": "Oslo"}')


@pytest.mark.parametrize(
    "tools",
    [
        [{"type": "function", "function": WEATHER}],
        [WEATHER],
        json.dumps([WEATHER]),
    ],
)
def test_functions_that_may_be_called_are_read(load: Any, tools: Any) -> None:
    (prompt,), notes = load({"prompt": "Hi", "tools": tools})
    assert prompt.tools == ({"type": "function", "function": WEATHER},)
    assert notes == []


@pytest.mark.parametrize(
    "turn",
    [
        {"role": "assistant", "tool_calls": [{"function": {"name": "get_weather", "arguments": '{"city": "Oslo"}'}}]},
        {"role": "assistant", "content": None, "function_call": {"name": "get_weather", "arguments": {"city": "Oslo"}}},
        {"from": "function_call", "value": '{"name": "get_weather", "arguments": {"city": "Oslo"}}'},
    ],
)
def test_calls_are_read_in_the_forms_of_openai_and_sharegpt(load: Any, turn: dict[str, Any]) -> None:
    asked, result = {"role": "user", "content": "Hi"}, {"role": "tool", "content": "Rain", "tool_call_id": "1"}
    (prompt,), notes = load({"messages": [asked, turn]})
    assert prompt.reference == '{"name": "get_weather", "arguments": {"city": "Oslo"}}'
    assert prompt.reference_turn == Message("assistant", "", (OSLO,))
    assert notes == []
    (prompt,), _ = load({"messages": [asked, turn, result, {"role": "assistant", "content": "Rain."}]})
    assert prompt.messages[1:] == (Message("assistant", "", (OSLO,)), Message("tool", "Rain", (), "1"))
    assert (prompt.reference, prompt.reference_turn) == ("Rain.", None)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt": "Hi", "tools": [{"type": "function"}]}, "`tools`: a function without a name"),
        ({"prompt": "Hi", "tools": "f(x)"}, "`tools`: not JSON"),
        ({"prompt": "Hi", "functions": 3}, "`functions`: not a list of functions"),
        ({"messages": [{"role": "assistant", "tool_calls": [{"id": "1"}]}]}, "a call without the name"),
        ({"messages": [{"role": "assistant", "function_call": {"name": "f", "arguments": "[1]"}}]}, "not an object"),
        ({"messages": [{"role": "user", "content": "", "tool_calls": [{"name": "f"}]}]}, "only the assistant does"),
    ],
)
def test_malformed_functions_and_calls_are_refused(load: Any, row: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError, match=words) as caught:
        load(row)
    assert caught.value.code == "data.bad_field"


ROW = {"query": "Q", "reply": "R", "prompt": "other", "answer": "wrong", "turns": [{"role": "user", "content": "T"}]}


@pytest.mark.parametrize(
    ("named", "expected"),
    [
        ({"prompt_field": "query", "completion_field": "Reply"}, ("Q", "R")),
        ({"prompt_field": "query"}, ("Q", "wrong")),
        ({"completion_field": "reply"}, ("other", "R")),
        ({"messages_field": "turns"}, ("T", None)),
        ({"messages_field": "turns", "completion_field": "reply"}, ("T", "R")),
    ],
)
def test_named_fields_take_the_place_of_the_usual_ones(
    load: Any, tmp_path: Path, named: dict[str, str], expected: tuple[str, str | None]
) -> None:
    load(ROW)
    notes = list[str]()
    (prompt,) = load_prompts(str(tmp_path / "rows.jsonl"), fields=DataFields(**named), on_note=notes.append)
    assert (prompt.messages[-1].content, prompt.reference) == expected
    unread = {name for note in notes for name in ROW if f"`{name}`" in note}
    assert not unread & {name.casefold() for name in named.values()}


def test_a_field_that_no_row_has_is_noted(load: Any, tmp_path: Path) -> None:
    load({"prompt": "P", "completion": "C"})
    notes = list[str]()
    (prompt,) = load_prompts(
        str(tmp_path / "rows.jsonl"), fields=DataFields(prompt_field="promt"), on_note=notes.append
    )
    assert prompt.reference == "C"
    assert notes == [f"{tmp_path / 'rows.jsonl'}: no row has the field `promt`, so that the usual names count"]


def test_empty_tools_and_calls_say_nothing(load: Any) -> None:
    message = {"role": "user", "content": "Hi", "tool_calls": []}
    assert load({"messages": [message], "tools": "[]"})[1] == []


def test_thoughts_of_the_last_turn_are_part_of_the_reference(load: Any) -> None:
    said = {"role": "assistant", "content": "4", "reasoning_content": "Two and two."}
    asked = {"role": "user", "content": "2+2?"}
    expected = "<think>\nTwo and two.\n</think>\n\n4"
    assert load({"messages": [asked, said]})[0][0].reference == expected
    assert load({"prompt": "2+2?", "completion": "4", "reasoning_content": "Two and two."})[0][0].reference == expected
    (prompt,), notes = load({"messages": [asked, said, asked, {"role": "assistant", "content": "4"}]})
    assert prompt.reference == "4"
    assert "`messages[].reasoning_content` (1 of 1 rows)" in notes[0]


def test_other_names_of_turns_and_content_in_parts(load: Any) -> None:
    sharegpt = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]
    (prompt,), _ = load({"conversations": sharegpt, "system": "Be kind."})
    assert (turns(prompt), prompt.reference) == ([("system", "Be kind."), ("user", "Hi")], "Hello")
    parts = [{"type": "text", "text": "H"}, {"type": "text", "text": "i"}]
    assert turns(load({"messages": [{"role": "user", "content": parts}]})[0][0]) == [("user", "Hi")]
    with pytest.raises(DataError, match="is not text but list"):
        load({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]})


def test_one_line_names_all_fields_that_are_not_read(load: Any) -> None:
    _, notes = load({"prompt": "a", "source": "x", "weight": 1}, {"prompt": "b", "source": "y", "context": {"a": 1}})
    assert len(notes) == 1
    assert notes[0].endswith(
        "rows.jsonl: fields that are not read: `source` (2 of 2 rows), `weight` (1 of 2 rows), `context` (1 of 2 rows)"
    )
