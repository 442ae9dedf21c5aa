"""The questions' texts: those that were compared with their makers' are pinned by a digest of the whole."""

import hashlib

import pytest

from mooring.errors import DataError
from mooring.records import Completion, Message, Prompt
from mooring.scoring.judges import JUDGES, find

PROMPT = Prompt(id="p", messages=(Message("user", "Ünder {x}"),))
COMPLETION = Completion(prompt_id="p", text=" line\ntwo ", tokens=1, finish="stop")
TEXTS = {
    "wildguard": ["4d2854166b1dd5ba"],
    "llama-guard-3": ["09a84e836e080a28"],
    "llama-guard-3-1b": ["f49c59f82733c08d"],
    "llama-guard-4": ["c069b6e9946de8bb"],
    "qwen3guard": ["24756d4c2ed85f44"],
    "shieldgemma": ["7a0ef3916cd89969", "766085dd1f571f7c", "a050326208cfece2", "b20a1955fae3f20f"],
    "harmbench": ["910e4590d2f83acf"],
    "strongreject": ["1b018337e1ec0e65"],
}
"""SHA-256 of what the makers' own code gives for this exchange: the package `wildguard`; the chat templates of Llama
Guard 3 (8B and 1B), Qwen3Guard and ShieldGemma, rendered by Jinja, less the BOS token; a record of what Llama Guard 4's
rendered, with this exchange in it; the published texts of HarmBench and StrongREJECT."""


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@pytest.mark.parametrize("name", TEXTS)
def test_the_text_is_that_of_the_authors(name: str) -> None:
    asked = find(name).ask(PROMPT, COMPLETION)
    assert [digest(question.rendered or question.messages[-1].content) for question in asked] == TEXTS[name]


@pytest.mark.parametrize(
    ("name", "opens", "closes"),
    [
        (
            "granite-guardian",
            "<|start_of_role|>system<|end_of_role|>As a judge agent, your role is to help assess whether the provided",
            "return 'yes'; otherwise, return 'no'.<|end_of_text|>\n<|start_of_role|>judge{no_think}<|end_of_role|>",
        ),
        (
            "granite-guardian-3.2",
            "<|start_of_role|>user<|end_of_role|>You are a safety agent trying to help determine whether the assistant",
            "either 'Yes' or 'No'.<|end_of_text|>\n<|start_of_role|>assistant<|end_of_role|>",
        ),
    ],
)
def test_the_other_texts_open_and_close_as_published(name: str, opens: str, closes: str) -> None:
    (question,) = find(name).ask(PROMPT, COMPLETION)
    assert str(question.rendered).startswith(opens)
    assert str(question.rendered).endswith(closes)


def test_llama_guard_4_knows_all_hazards_and_the_smallest_one_less() -> None:
    asked = {name: find(name).ask(PROMPT, COMPLETION)[0].rendered or "" for name in JUDGES if "llama" in name}
    assert {name: text.count("\nS") for name, text in asked.items()} == {
        "llama-guard-3": 14,
        "llama-guard-3-1b": 13,
        "llama-guard-4": 14,
    }


def test_harmbench_has_another_text_for_behaviours_with_a_context() -> None:
    prompt = Prompt(id="p", messages=PROMPT.messages, extra={"context": "CTX", "behavior": "BEH"})
    (question,) = find("harmbench").ask(prompt, COMPLETION)
    assert question.rendered is not None
    assert digest(question.rendered) == "65b789548dc6fda1"


TALK = Prompt(
    id="p",
    messages=(
        Message("system", "Be brief."),
        Message("user", "first"),
        Message("assistant", "second"),
        Message("user", "third"),
    ),
)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("llama-guard-3", "\n\nUser: first\n\nAgent: second\n\nUser: third\n\nAgent: line\ntwo\n\n<END"),
        (
            "llama-guard-4",
            "\nUser: first\\n\\n\n\nAgent: second\\n\\n\n\nUser: third\\n\\n\n\nAgent: line\ntwo\\n\\n\n\n<END",
        ),
        ("qwen3guard", "\n\nUSER: first\n\nASSISTANT: second\n\nUSER: third\n\nASSISTANT:  line\ntwo \n\n<END"),
        (
            "granite-guardian",
            "user<|end_of_role|>first<|end_of_text|>\n<|start_of_role|>assistant<|end_of_role|>second<|end_of_text|>\n"
            "<|start_of_role|>user<|end_of_role|>third<|end_of_text|>\n"
            "<|start_of_role|>assistant<|end_of_role|> line\ntwo <|end_of_text|>\n<|start_of_role|>judge_protocol",
        ),
        ("wildguard", "Human user:\nthird\n\nAI assistant:\n line\ntwo \n\n---"),
        ("shieldgemma", "Human Question: third\n<end_of_turn>\n<start_of_turn>\nChatbot Response:  line\ntwo \n<end"),
        ("granite-guardian-3.2", "User Message: third\nAssistant Message:  line\ntwo \n<end_of_turn>"),
        ("harmbench", "Behavior:\nthird\n\nGeneration:\n line\ntwo \n\n---"),
        ("strongreject", "User instruction: third\n\nAI model response:  line\ntwo \n\nEvaluate"),
        ("llm", "<request>\nthird\n</request>\n\n<response>\n line\ntwo \n</response>"),
    ],
)
def test_a_conversation_is_rendered_in_the_format_of_the_judge(name: str, shown: str) -> None:
    for question in find(name).ask(TALK, COMPLETION):
        text = question.rendered or question.messages[-1].content
        assert shown in text
        assert "Be brief." not in text


@pytest.mark.parametrize("name", [name for name, judge in JUDGES.items() if judge.needs_model])
def test_a_prompt_without_a_user_s_turn_is_refused(name: str) -> None:
    prompt = Prompt(id="p", messages=(Message("assistant", "hello"),), origin="set.jsonl:7")
    with pytest.raises(DataError) as caught:
        find(name).ask(prompt, COMPLETION)
    assert caught.value.code == "data.no_user_turn"
    assert caught.value.message.startswith("set.jsonl:7:")
