"""Fields of common data sets: put to their use, refused, or said to be left out; never dropped in silence."""

import json
from pathlib import Path
from typing import Any

import pytest

from mooring.data import load_prompts
from mooring.errors import DataError
from mooring.records import Prompt


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


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Hi", "tools": [{"type": "function"}]},
        {"prompt": "Hi", "tools": '[{"name": "f"}]'},
        {
            "messages": [
                {"role": "user", "content": "Hi"},
                {"role": "assistant", "content": "", "tool_calls": [{"id": "1"}]},
            ]
        },
        {
            "messages": [
                {"role": "user", "content": "Hi"},
                {"role": "assistant", "content": "", "function_call": {"a": 1}},
            ]
        },
    ],
)
def test_calls_and_tools_are_refused(load: Any, row: dict[str, Any]) -> None:
    with pytest.raises(DataError) as caught:
        load(row)
    assert caught.value.code == "data.unsupported_calls"


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
