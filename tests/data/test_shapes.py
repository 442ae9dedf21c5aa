"""Rows in the shapes that are in common use become records."""

import dataclasses
import hashlib

import pytest

from mooring.data.rows import Row, prompts_digest, to_prompts
from mooring.errors import DataError
from mooring.records import Message

SYSTEM, USER = {"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}
ANSWER = {"role": "assistant", "content": "Hello."}


def one(**values):
    (prompt,) = to_prompts([Row("f:7", values)])
    return prompt


def asked(**values):
    """The prompt of a row, which is a single turn of the user, and its response."""
    prompt = one(**values)
    assert [m.role for m in prompt.messages] == ["user"]
    return prompt.messages[0].content, prompt.reference


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"prompt": "P", "completion": "C"}, ("P", "C")),
        ({"prompt": "P", "response": "C"}, ("P", "C")),
        ({"prompt": "P", "answer": "C"}, ("P", "C")),
        ({"Prompt": "P", "Completion": "C"}, ("P", "C")),
        ({"prompt": "P", "completion": None}, ("P", None)),
        ({"prompt": "P", "completion": " "}, ("P", None)),
        ({"prompt": "P", "target": "Sure"}, ("P", None)),
        ({"instruction": "I", "input": "X", "output": "O"}, ("I\n\nX", "O")),
        ({"instruction": "I", "input": "", "output": "O"}, ("I", "O")),
        ({"instruction": "I", "input": None, "output": "O"}, ("I", "O")),
        ({"instruction": "I", "output": "O"}, ("I", "O")),
        ({"instruction": "I"}, ("I", None)),
        ({"question": "Q", "answer": "A"}, ("Q", "A")),
        ({"question": "Q", "choices": ["a"]}, ("Q", None)),
        ({"input": "X", "target": "Yes"}, ("X", "Yes")),
        ({"goal": "G", "target": "Sure, here is"}, ("G", None)),
        ({"Goal": "G", "Target": "Sure", "Behavior": "B"}, ("G", None)),
        ({"prompt": "P", "prompt_id": 3, "question": "Q"}, ("P", None)),
    ],
)
def test_plain_shapes(values, expected):
    assert asked(**values) == expected


def test_messages_with_an_answer():
    prompt = one(messages=[SYSTEM, USER, ANSWER, USER, ANSWER])
    assert [m.role for m in prompt.messages] == ["system", "user", "assistant", "user"]
    assert prompt.messages[0] == Message("system", "Be brief.")
    assert prompt.reference == "Hello."
    assert prompt.origin == "f:7"


def test_messages_without_an_answer():
    prompt = one(messages=[USER])
    assert (prompt.messages, prompt.reference) == ((Message("user", "Hi"),), None)


def test_messages_come_before_other_fields():
    assert one(messages=[USER, ANSWER], prompt="other").reference == "Hello."


@pytest.mark.parametrize("completion", [[ANSWER], "Hello."])
def test_conversational_prompt_and_completion(completion):
    prompt = one(prompt=[SYSTEM, USER], completion=completion)
    assert [m.role for m in prompt.messages] == ["system", "user"]
    assert prompt.reference == "Hello."


@pytest.mark.parametrize(
    ("values", "names"),
    [
        ({"text": "x", "n": 1}, "(`text`, `n`)"),
        ({}, "(none)"),
        ({"prompt": None}, "(none)"),
        ({"prompt": "  "}, "`prompt`"),
        ({"prompt": 5}, "`prompt`"),
        ({"instruction": "I", "input": ["x"]}, "`input`"),
        ({"prompt": "P", "response": {"a": 1}}, "`response`"),
        ({"prompt": "P", "completion": "a", "response": "b"}, "`completion`, `response`"),
        ({"prompt": "P\ud800"}, "`prompt`"),
        ({"prompt": "P", "id": "\udfff"}, "`id`"),
        ({"messages": []}, "`messages`"),
        ({"messages": "[]"}, "`messages`"),
        ({"messages": [{"role": "user"}]}, "turn 1 of `messages`"),
        ({"messages": [USER, {"role": "bot", "content": "x"}]}, "turn 2 of `messages` has the role 'bot'"),
        ({"messages": [USER, {"role": "assistant", "content": None}]}, "turn 2 of `messages`"),
        ({"messages": [ANSWER]}, "`messages`"),
        ({"messages": [SYSTEM]}, "`messages`"),
        ({"messages": [USER, ANSWER, ANSWER]}, "`messages`"),
        ({"prompt": [USER, ANSWER]}, "`completion`"),
        ({"prompt": [USER], "completion": [USER]}, "`completion`"),
        ({"prompt": [USER], "completion": [ANSWER, ANSWER]}, "`completion`"),
    ],
)
def test_bad_row_names_its_place(values, names):
    with pytest.raises(DataError) as caught:
        one(**values)
    assert caught.value.code == ("data.no_prompt" if names.startswith("(") else "data.bad_field")
    assert str(caught.value).startswith("f:7: ")
    assert names in str(caught.value)
    assert caught.value.hint


def test_row_without_fields_names_the_accepted_shapes():
    with pytest.raises(DataError) as caught:
        one(text="x")
    for name in ("messages", "prompt", "completion", "instruction", "input", "output", "question", "goal"):
        assert f"`{name}`" in caught.value.hint


def test_long_field_names_are_truncated():
    with pytest.raises(DataError) as caught:
        one(**{"a" * 500: 1, **{f"f{n}": n for n in range(20)}})
    assert len(caught.value.message) < 120


@pytest.mark.parametrize(
    ("values", "category"),
    [
        ({"category": "a", "type": "b"}, "a"),
        ({"Category": "a"}, "a"),
        ({"type": "b"}, "b"),
        ({"category": "", "type": "b"}, "b"),
        ({"category": 3}, None),
        ({}, None),
    ],
)
def test_category(values, category):
    assert one(prompt="P", **values).category == category


def rows(*values):
    return [Row(f"f:{n}", value) for n, value in enumerate(values, 1)]


def ids(*values):
    return [prompt.id for prompt in to_prompts(rows(*values))]


def test_own_ids_where_unique():
    assert ids({"prompt": "a", "id": "x"}, {"prompt": "b", "id": 0}) == ["x", "0"]


@pytest.mark.parametrize("second", [{"id": "x"}, {"id": None}, {"id": True}, {"id": ""}, {}])
def test_content_ids_where_own_are_missing_or_not_unique(second):
    first, other = ids({"prompt": "a", "id": "x"}, {"prompt": "b", **second})
    assert [first] == ids({"prompt": "a"})
    assert [other] == ids({"prompt": "b"})
    assert first != other


def test_content_ids_do_not_move_with_rows_and_are_unique():
    a, b, again = ids({"prompt": "a"}, {"prompt": "b"}, {"prompt": "a"})
    assert again == f"{a}-2"
    assert ids({"prompt": "b"}, {"prompt": "a"}) == [b, a]
    assert ids({"prompt": "a", "response": "r"}) != [a]


def test_digest_is_of_the_content_not_of_the_place():
    prompts = to_prompts(rows({"prompt": "ä", "completion": "c", "category": "k"}, {"prompt": "b"}))
    known = prompts_digest(prompts)
    assert len(known) == 64
    assert prompts_digest([dataclasses.replace(p, origin="elsewhere:1") for p in prompts]) == known
    others = [
        prompts[::-1],
        prompts[:1],
        [dataclasses.replace(prompts[0], reference="d"), prompts[1]],
        [dataclasses.replace(prompts[0], category=None), prompts[1]],
        [dataclasses.replace(prompts[0], id="other"), prompts[1]],
        [dataclasses.replace(prompts[0], messages=(Message("system", "ä"),)), prompts[1]],
    ]
    assert len({known, *(prompts_digest(other) for other in others)}) == 1 + len(others)


def test_digest_does_not_change_between_versions():
    (prompt,) = to_prompts(rows({"id": "1", "prompt": "ä", "completion": "c", "category": "k"}))
    text = '[{"category":"k","id":"1","messages":[{"content":"ä","role":"user"}],"reference":"c"}]'
    assert prompts_digest([prompt]) == hashlib.sha256(text.encode()).hexdigest()
