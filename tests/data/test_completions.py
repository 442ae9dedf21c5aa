"""Answers that other tools wrote, each in its real form: read, matched with the prompts, or refused in a line."""

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from mooring.data.completions import read_completions
from mooring.errors import DataError
from mooring.records import Completion, Message, Prompt, write_jsonl

ASKS = [f"Explain how to open door {number}." for number in range(12)]
ANSWERS = [f"No, not door {number}." for number in range(12)]
PROMPTS = [Prompt(id=f"p{n}", messages=(Message("user", ask),)) for n, ask in enumerate(ASKS)]
PAIRS = list(zip(ASKS, ANSWERS, strict=True))


def chat(text: str | None, finish: str = "stop", **more: Any) -> dict[str, Any]:
    message = {"role": "assistant", "content": text, **more}
    return {"choices": [{"message": message, "finish_reason": finish}], "usage": {"completion_tokens": 7}}


def lm_eval(number: int, ask: str, answer: str, name: str = "none", **doc: Any) -> dict[str, Any]:
    templated = f"<|im_start|>user\n{ask}<|im_end|>\n<|im_start|>assistant\n"
    return {
        "doc_id": number,
        "doc": doc,
        "target": "",
        "arguments": {"gen_args_0": {"arg_0": templated, "arg_1": {"until": []}}},
        "resps": [[answer]],
        "filtered_resps": [answer],
        "filter": name,
    }


def inspect_sample(number: int, ask: Any, answer: Any) -> dict[str, Any]:
    choices = [{"message": {"role": "assistant", "content": answer}, "stop_reason": "stop"}]
    return {"id": number, "epoch": 1, "input": ask, "target": "x", "output": {"model": "m", "choices": choices}}


FORMS: dict[str, Any] = {
    "lm-eval.jsonl": [lm_eval(n, q, a) for n, (q, a) in enumerate(PAIRS)],
    "lm-eval-two-filters.jsonl": [
        lm_eval(n, q, a, name) for name in ("strict", "flexible") for n, (q, a) in enumerate(PAIRS)
    ],
    "lm-eval-doc.jsonl": [{**lm_eval(n, "?", a), "doc": {"question": q}} for n, (q, a) in enumerate(PAIRS)],
    "lm-eval-lists.jsonl": [{**lm_eval(n, q, a), "arguments": [[q, {}]]} for n, (q, a) in enumerate(PAIRS)],
    "batch.jsonl": [
        {"id": "x", "custom_id": f"request-{n}", "response": {"status_code": 200, "body": chat(a)}, "error": None}
        for n, a in enumerate(ANSWERS)
    ],
    "batch-shuffled.jsonl": [{"custom_id": f"p{n}", "response": {"body": chat(a)}} for n, a in enumerate(ANSWERS)][
        ::-1
    ],
    "anthropic.jsonl": [
        {"custom_id": f"p{n}", "result": {"type": "succeeded", "message": {"content": [{"type": "text", "text": a}]}}}
        for n, a in enumerate(ANSWERS)
    ],
    "inspect.json": {
        "version": 2,
        "eval": {},
        "samples": [inspect_sample(n, q, a) for n, (q, a) in enumerate(PAIRS, 1)],
    },
    "inspect-messages.json": {
        "eval": {},
        "samples": [
            inspect_sample(n, [{"role": "user", "content": q}], [{"type": "text", "text": a}])
            for n, (q, a) in enumerate(PAIRS, 1)
        ],
    },
    "responses.jsonl": [{"prompt": q, "response": a} for q, a in PAIRS],
    "alpaca-eval.json": [{"instruction": q, "output": a, "generator": "m"} for q, a in PAIRS],
    "alpaca-eval-shuffled.json": [{"instruction": q, "output": a, "generator": "m"} for q, a in PAIRS[::-1]],
    "messages.jsonl": [
        {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]} for q, a in PAIRS
    ],
    "predictions.jsonl": [{"prompt": f"user\n{q}\nassistant\n", "predict": a, "label": "x"} for q, a in PAIRS],
    "evalplus.jsonl": [{"task_id": f"p{n}", "completion": a} for n, a in enumerate(ANSWERS)],
    "bare.jsonl": [{"prompt_id": f"p{n}", "text": a} for n, a in enumerate(ANSWERS)],
    "harmbench.json": {f"b{n}": [{"test_case": q, "generation": a}] for n, (q, a) in enumerate(PAIRS)},
    "jailbreakbench.json": {
        "parameters": {},
        "jailbreaks": [{"index": n, "goal": q, "response": a} for n, (q, a) in enumerate(PAIRS)],
    },
}


CALL = '{"name": "get_weather", "arguments": {"city": "Oslo"}}'
SPECIAL = {
    "a refusal in a field of its own": (
        {"content": None, "refusal": "I can't help with that."},
        "I can't help with that.",
    ),
    "a refusal among the parts": ({"content": [{"type": "refusal", "refusal": "No."}]}, "No."),
    "a call": (
        {"content": None, "tool_calls": [{"function": {"name": "get_weather", "arguments": '{"city": "Oslo"}'}}]},
        CALL,
    ),
    "Inspect's call": (
        {"content": "Wait.", "tool_calls": [{"id": "1", "function": "get_weather", "arguments": {"city": "Oslo"}}]},
        f"Wait.\n{CALL}",
    ),
    "Anthropic's call": (
        {"content": [{"type": "tool_use", "id": "1", "name": "get_weather", "input": {"city": "Oslo"}}]},
        CALL,
    ),
}


@pytest.mark.parametrize("kind", SPECIAL)
def test_refusals_and_calls_outside_of_the_text_are_answers(tmp_path: Path, kind: str) -> None:
    message, answer = SPECIAL[kind]
    path = tmp_path / "batch.jsonl"
    row = {"custom_id": "p0", "response": {"body": {"choices": [{"message": message, "finish_reason": "stop"}]}}}
    path.write_text(json.dumps(row) + "\n")
    (found,) = read_completions(path, [Prompt(id="p0", messages=(Message("user", "Hm?"),))])
    assert found.text == answer


@pytest.mark.parametrize("name", FORMS)
def test_the_answers_of_other_tools(tmp_path: Path, name: str) -> None:
    form, path = FORMS[name], tmp_path / name
    path.write_text(json.dumps(form) if name.endswith(".json") else "".join(json.dumps(row) + "\n" for row in form))
    found = read_completions(path, PROMPTS)
    assert [(c.prompt_id, c.text, c.finish, c.sample) for c in found] == [
        (f"p{n}", answer, "stop", 0) for n, answer in enumerate(ANSWERS)
    ]


def test_a_table_and_several_samples(tmp_path: Path) -> None:
    path = tmp_path / "answers.csv"
    path.write_text("forbidden,prompt,response\n" + "".join(f"x,{q},{a.replace(',', '')}\n" for q, a in PAIRS))
    assert len(read_completions(path, PROMPTS)) == 12
    path = tmp_path / "samples.jsonl"
    path.write_text("".join(json.dumps({"prompt": q, "responses": [a, "Yes."]}) + "\n" for q, a in PAIRS))
    found = read_completions(path, PROMPTS)
    assert [(c.prompt_id, c.sample, c.text) for c in found[:3]] == [
        ("p0", 0, ANSWERS[0]),
        ("p0", 1, "Yes."),
        ("p1", 0, ANSWERS[1]),
    ]


def test_thoughts_in_any_of_them_are_apart_and_a_response_without_an_answer_has_none(tmp_path: Path) -> None:
    cut = chat(None, "length", reasoning_content="Hm, let me")
    bodies = [chat("No.", reasoning_content="Hm."), chat("<think>Hm.</think>No."), cut]
    path = tmp_path / "batch.jsonl"
    rows = [{"custom_id": f"p{n}", "response": {"body": body}} for n, body in enumerate(bodies)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = read_completions(path, PROMPTS[:3])
    assert [(c.thoughts, c.text, c.finish) for c in found] == [
        ("Hm.", "No.", "stop"),
        ("Hm.", "No.", "stop"),
        ("Hm, let me", "", "length"),
    ]
    assert [c.unanswered for c in found] == [False, False, True]


@pytest.mark.parametrize(
    ("rows", "code"),
    [
        ([{"score": 1}], "data.not_completions"),
        ([{"doc_id": 0, "doc": {}, "resps": [[["-1.5", "False"]]]}], "data.not_completions"),
        ([{"custom_id": "p0", "response": None, "error": {"code": "x"}}], "data.failed_request"),
        ([{"prompt": "Something else", "response": "No."}], "data.other_prompts"),
        ([{"prompt_id": "p0", "text": "a", "tokens": 1, "finish": "later"}], "data.bad_record"),
        ([{"prompt_id": "p0", "text": "a"}, {"prompt_id": "q", "text": "b"}], "data.other_prompts"),
    ],
)
def test_anything_else_is_refused_with_what_is_wanted(tmp_path: Path, rows: list[Any], code: str) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError) as caught:
        read_completions(path, PROMPTS[:1])
    assert caught.value.code == code
    if code == "data.not_completions":
        assert "prompt_id" in str(caught.value) or "generate_until" in str(caught.value)


def test_a_compressed_log_of_inspect(tmp_path: Path) -> None:
    path = tmp_path / "log.eval"
    with zipfile.ZipFile(path, "w") as archive:
        for number, (ask, answer) in enumerate(PAIRS, 1):
            archive.writestr(f"samples/{number}_epoch_1.json", json.dumps(inspect_sample(number, ask, answer)))
    assert [c.text for c in read_completions(path, PROMPTS)] == ANSWERS
    path.write_bytes(b"PK no")
    with pytest.raises(DataError, match="inspect log convert"):
        read_completions(path, PROMPTS)


def test_our_own_files_are_read_whatever_their_name(tmp_path: Path) -> None:
    own = [Completion(prompt_id="p0", text="a", tokens=1, finish="stop", sample=n) for n in (0, 1)]
    write_jsonl(tmp_path / "answers", own)
    assert read_completions(tmp_path / "answers", PROMPTS[:1]) == own
    with pytest.raises(DataError):
        read_completions(tmp_path / "absent.jsonl", PROMPTS)
