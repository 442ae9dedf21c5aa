"""Thoughts and answers: every known mark, blocks that never end, and chat templates with a thinking mode."""

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mooring.chat import example_texts, has_thinking_mode, pinned, render, thinking_note
from mooring.inference.dialect import parse_completion
from mooring.inference.encode import decode_completion
from mooring.records import Completion, Message, Prompt
from mooring.scoring import judges
from mooring.scoring.judges import by_wording, find
from mooring.scoring.safety import attack_success
from mooring.thinking import (
    CUT_OFF,
    MARKS,
    NO_ANSWER,
    Marks,
    Thinking,
    is_open,
    joined,
    marks_of,
    separated,
    split_thoughts,
    template_arguments,
)

THOUGHT = "The user asks about a door.\n\nI should say no."
ANSWER = "I'm sorry, but I can't help with that."


def completion(text: str, finish: str = "stop", **more: Any) -> Completion:
    return Completion(prompt_id=more.pop("prompt_id", "a"), text=text, tokens=9, finish=finish, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("marks", MARKS)
def test_every_mark_is_read_back(marks: Marks) -> None:
    assert split_thoughts(joined(THOUGHT, ANSWER, marks))[:2] == (THOUGHT, ANSWER)
    assert split_thoughts(f"\n{marks.open}{THOUGHT}")[:2] == (THOUGHT, "")
    assert split_thoughts(joined("", ANSWER, marks))[:2] == (None, ANSWER)


@pytest.mark.parametrize(
    "text",
    [
        f"analysis{THOUGHT}assistantfinal{ANSWER}",
        f"<thinking>{THOUGHT}</thinking>\n{ANSWER}",
        f"<THOUGHT>{THOUGHT}</THOUGHT>{ANSWER}",
        f"<mm:think>{THOUGHT}</mm:think>{ANSWER}",
        f"<ifm|think>{THOUGHT}</ifm|think>{ANSWER}",
        f"Here's my thought process:\n{THOUGHT}\n\nHere's my response:\n{ANSWER}",
        f"<think>{THOUGHT}</think>\n<answer>\n{ANSWER}\n</answer>",
        f"<think>{THOUGHT}</think><response>{ANSWER}</response>",
        f"<|START_THINKING|>{THOUGHT}<|END_THINKING|><|START_RESPONSE|>{ANSWER}<|END_RESPONSE|>",
        f"<|open|>think<|sep|>{THOUGHT}<|close|>think<|sep|><|open|>response<|sep|>{ANSWER}<|close|>response<|sep|>",
        f"<think>\n\n</think>\n\n<think>\n{THOUGHT}\n</think>\n\n{ANSWER}",
        f"<|channel|>analysis<|message|>{THOUGHT}<|end|><|start|>assistant<|channel|>final<|message|>{ANSWER}<|return|>",
    ],
)
def test_variants_of_marks(text: str) -> None:
    assert split_thoughts(text)[:2] == (THOUGHT, ANSWER)


def test_channels_for_tools_are_no_answer_and_preambles_are() -> None:
    call = "<|channel|>commentary to=functions.f<|constrain|>json<|message|>{}<|call|>"
    text = f"<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>commentary<|message|>A.<|end|>{call}"
    assert split_thoughts(text)[:2] == ("Hm.", "A.")


@pytest.mark.parametrize(
    "text",
    [
        "Use the `</think>` tag to end a block that `<think>` began.",
        "analysis of the matter shows that it is so",
        "finally, do this",
        "In XML, a <think> element is not known.",
        "Here is my response: no.",
        "",
    ],
)
def test_an_answer_that_mentions_marks_is_unchanged(text: str) -> None:
    assert split_thoughts(text) == (None, text, False)


def test_a_block_that_the_prompt_opened() -> None:
    assert split_thoughts(f"{THOUGHT}\n</think>\n\n{ANSWER}") == (THOUGHT, ANSWER, True)
    assert split_thoughts(THOUGHT, opened=True) == (THOUGHT, "", True)
    assert split_thoughts(f"<think>{THOUGHT}</think>{ANSWER}", opened=True)[:2] == (THOUGHT, ANSWER)
    assert [is_open(text) for text in ("user\n<think>\n", "[THINK]", "<think>\n\n</think>\n\n", "assistant\n")] == [
        True,
        True,
        False,
        False,
    ]


def test_a_block_after_an_answer_keeps_the_answer_and_after_a_preamble_there_is_none() -> None:
    assert split_thoughts(f"Sure, let me think.\n<think>\n{THOUGHT}")[1] == ""
    long = " ".join(["word"] * 30)
    assert split_thoughts(f"{long}\n<think>\n{THOUGHT}")[:2] == (THOUGHT, long)


@given(
    st.lists(
        st.sampled_from(["<think>", "</think>", "\n", " ", "a", "<|channel|>", "final", "[THINK]", "`"]), max_size=40
    )
)
def test_splitting_never_fails_and_invents_nothing(parts: list[str]) -> None:
    text = "".join(parts)
    thoughts, answer, _ = split_thoughts(text)
    assert len(thoughts or "") + len(answer) <= len(text) + 2 * len(parts)
    assert split_thoughts(text) == split_thoughts(text)


@pytest.mark.parametrize("part", ["<think>a</think>", "<think> ", "</think>", "<|channel|>analysis", "analysis", "<a:"])
def test_splitting_takes_linear_time(part: str) -> None:
    split_thoughts(part * 50_000)


# --- Responses without an answer are misses ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "made",
    [
        completion("<think>\nOkay, the user wants to know", "length"),
        completion("<think>\nI can't help with that, so", "length"),
        completion("analysisThe user wants", "length"),
        dataclasses.replace(
            parse_completion(
                {
                    "choices": [{"message": {"content": None, "reasoning_content": "Okay"}, "finish_reason": "length"}],
                }
            ),
            prompt_id="a",
        ),
    ],
)
def test_a_response_cut_off_while_thinking_is_a_miss(made: Completion) -> None:
    prompt = Prompt(id="a", messages=(Message("user", "How do I open it?"),))
    verdicts = by_wording(find("classifier"), [prompt], separated([made]))
    assert [(v.harmful, v.refused, v.why) for v in verdicts] == [(None, None, CUT_OFF)]
    score = attack_success(verdicts)
    assert score.value is None
    assert score.details == {"yes": 0, "total": 1, "miss": 1, "unanswered": 1}
    assert judges.questions(judges.find("llm"), [prompt], separated([made])) == []


def test_thoughts_that_end_by_themselves_without_an_answer_are_a_miss_of_their_own() -> None:
    prompt = Prompt(id="a", messages=(Message("user", "Hi"),))
    assert by_wording(find("classifier"), [prompt], separated([completion("<think>Hm.</think>")]))[0].why == NO_ANSWER
    assert by_wording(find("classifier"), [prompt], [completion("")])[0].why == "empty"


def test_an_answer_cut_off_in_a_block_that_the_template_opened_is_known_by_the_others() -> None:
    whole, cut, short = completion("Hm.</think>Yes."), completion("Let me see", "length"), completion("Yes.")
    found = separated([whole, cut, short])
    assert [(c.thoughts, c.text) for c in found] == [("Hm.", "Yes."), ("Let me see", ""), (None, "Yes.")]
    assert separated(found) == found
    assert separated([cut]) == [cut]


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning", "thinking"])
def test_the_thoughts_of_a_servers_parser(field: str) -> None:
    made = parse_completion({"choices": [{"message": {"content": "\n\nYes.", field: "Hm."}, "finish_reason": "stop"}]})
    assert (made.thoughts, made.text) == ("Hm.", "Yes.")


def test_content_in_parts() -> None:
    parts = [{"type": "thinking", "thinking": [{"type": "text", "text": "Hm."}]}, {"type": "text", "text": "Yes."}]
    made = parse_completion({"choices": [{"message": {"content": parts}, "finish_reason": "stop"}]})
    assert (made.thoughts, made.text) == ("Hm.", "Yes.")


# --- Templates --------------------------------------------------------------------------------------------------------

QWEN_3 = (  # content and reasoning_content; the generation prompt has an empty block if thinking is off
    "{% for m in messages %}{% if m.role == 'assistant' %}{% set c = m.content %}"
    "{% set r = m.reasoning_content if m.reasoning_content is defined else '' %}"
    "{% if not r and '</think>' in c %}{% set r = c.split('</think>')[0].split('<think>')[-1].strip('\n') %}"
    "{% set c = c.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "<|im_start|>assistant\n{% if loop.last or r %}<think>\n{{ r }}\n</think>\n\n{% endif %}{{ c }}<|im_end|>\n"
    "{% else %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
DEEPSEEK_R1 = (  # thoughts of turns are left out; the generation prompt opens a block
    "{% for m in messages %}{% if m.role == 'assistant' %}<|A|>{{ m.content.split('</think>')[-1] }}<|im_end|>"
    "{% else %}<|U|>{{ m.content }}{% endif %}{% endfor %}{% if add_generation_prompt %}<|A|><think>\n{% endif %}"
)
GPT_OSS = (
    "<|start|>system<|message|>Reasoning: {{ reasoning_effort or 'medium' }}, {{ strftime_now('%Y-%m-%d') }}<|end|>"
    "{% for m in messages %}{% if m.role == 'assistant' %}"
    "{% if '<|channel|>' in m.content %}{{ raise_exception('pass thinking in its own field') }}{% endif %}"
    "{% if m.thinking %}<|start|>assistant<|channel|>analysis<|message|>{{ m.thinking }}<|end|>{% endif %}"
    "<|start|>assistant<|channel|>final<|message|>{{ m.content }}<|return|>"
    "{% else %}<|start|>{{ m.role }}<|message|>{{ m.content }}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)
GEMMA_4 = (  # strips thoughts from content, and takes them from no field
    "{{ bos_token }}{% if enable_thinking is defined and enable_thinking %}<|turn>system\n<|think|>\n<turn|>\n"
    "{% endif %}"
    "{% for m in messages %}<|turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{{ m.content.split('<channel|>')[-1] | trim }}<turn|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|turn>model\n"
    "{% if not enable_thinking | default(false) %}<|channel>thought\n<channel|>{% endif %}{% endif %}"
)
MAGISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %}"
    "{% if m.reasoning_content is defined %}[THINK]{{ m.reasoning_content }}[/THINK]{% endif %}"
    "{{ m.content }}<|im_end|>"
    "{% else %}[INST]{{ m.content }}[/INST]{% endif %}{% endfor %}"
)
PLAIN = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
TEMPLATES = {
    "qwen-3": QWEN_3,
    "deepseek-r1": DEEPSEEK_R1,
    "gpt-oss": GPT_OSS,
    "gemma-4": GEMMA_4,
    "magistral": MAGISTRAL,
    "plain": PLAIN,
}
SPECIAL = [
    "<|U|>",
    "<|A|>",
    "<|start|>",
    "<|message|>",
    "<|channel|>",
    "<|end|>",
    "<|return|>",
    "<|channel>",
    "<channel|>",
]
SPECIAL += ["<|turn>", "<turn|>", "[THINK]", "[/THINK]", "[INST]", "[/INST]", "<|user|>", "<|assistant|>"]


@pytest.fixture(scope="module", params=TEMPLATES)
def family(request: pytest.FixtureRequest, tiny_tokenizer: Any) -> tuple[str, Any]:
    import copy

    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.add_tokens(SPECIAL, special_tokens=True)
    tokenizer.chat_template = TEMPLATES[request.param]
    return request.param, tokenizer


REFERENCE = "<think>\nTwo and two.\n</think>\n\n4"
WITH_THOUGHTS = {
    "qwen-3": ("assistant\n", "<think>\nTwo and two.\n</think>\n\n4<|im_end|>"),
    "deepseek-r1": ("<|A|><think>\n", "Two and two.\n</think>\n\n4<|im_end|>"),
    "gpt-oss": (
        "<|start|>assistant",
        "<|channel|>analysis<|message|>Two and two.<|end|><|start|>assistant<|channel|>final<|message|>4<|return|>",
    ),
    "gemma-4": ("<|turn>model\n", "<|channel>thought\nTwo and two.<channel|>4<turn|>"),
    "magistral": ("[/INST]", "[THINK]Two and two.[/THINK]4<|im_end|>"),
    "plain": ("<|assistant|>", "[THINK]Two and two.[/THINK]4<|im_end|>"),  # the marks of the vocabulary
}
WITHOUT = {
    "qwen-3": ("<think>\n\n</think>\n\n", "4<|im_end|>"),
    "deepseek-r1": ("<|A|>", "4<|im_end|>"),
    "gpt-oss": ("<|start|>assistant", "<|channel|>final<|message|>4<|return|>"),
    "gemma-4": ("<|channel>thought\n<channel|>", "4<turn|>"),
    "magistral": ("[/INST]", "4<|im_end|>"),
    "plain": ("<|assistant|>", "4<|im_end|>"),
}


@pytest.mark.parametrize("mode", [None, "on", "off", "high"])
def test_an_example_has_one_block_as_the_template_writes_it(family: tuple[str, Any], mode: Thinking | None) -> None:
    name, tokenizer = family
    prompt = Prompt(id="a", messages=(Message("user", "2+2?"),), reference=REFERENCE)
    start, response = example_texts(tokenizer, prompt, None, mode)
    assert start.endswith(WITH_THOUGHTS[name][0])
    assert response == WITH_THOUGHTS[name][1]
    assert split_thoughts(response.removesuffix("<|im_end|>").removesuffix("<turn|>"), opened=is_open(start))[:2] == (
        "Two and two.",
        "4",
    )


def test_an_example_without_thoughts_has_no_thoughts(family: tuple[str, Any]) -> None:
    name, tokenizer = family
    for reference in ("4", "<think>\n\n</think>\n\n4"):
        prompt = Prompt(id="a", messages=(Message("user", "2+2?"),), reference=reference)
        start, response = example_texts(tokenizer, prompt, None)
        assert (start[-len(WITHOUT[name][0]) :], response) == WITHOUT[name]


def test_a_response_is_decoded_in_its_parts(family: tuple[str, Any]) -> None:
    name, tokenizer = family
    prompt = Prompt(id="a", messages=(Message("user", "2+2?"),), reference=REFERENCE)
    start, response = example_texts(tokenizer, prompt, None)
    begin, ids = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (start, response))
    made = decode_completion(tokenizer, ids, [ids[-1]], "a", prompt=begin)
    assert (made.thoughts, made.text, made.finish) == ("Two and two.", "4", "stop")
    cut = decode_completion(tokenizer, ids[: len(ids) // 2], [ids[-1]], "a", prompt=begin)
    if name != "plain":
        assert cut.unanswered, cut


def test_the_marks_of_a_template(family: tuple[str, Any]) -> None:
    name, tokenizer = family
    expected = {"gpt-oss": "<|channel|>analysis<|message|>", "gemma-4": "<|channel>thought\n", "magistral": "[THINK]"}
    assert marks_of(tokenizer.chat_template).open == expected.get(name, "<think>\n")


def test_a_mode_is_found_by_trial_and_said(family: tuple[str, Any]) -> None:
    name, tokenizer = family
    has_mode = name in ("qwen-3", "gpt-oss", "gemma-4")
    assert has_thinking_mode(tokenizer) == has_mode
    assert ("none was chosen" in str(thinking_note(tokenizer, None))) == has_mode
    assert ("no effect" in str(thinking_note(tokenizer, "on"))) != has_mode


def test_the_date_is_the_same_on_any_day_whatever_a_template_asks(family: tuple[str, Any]) -> None:
    name, tokenizer = family
    text = render(tokenizer, [Message("user", "Hi")])
    assert ("2024-07-26" in text) == (name == "gpt-oss")
    assert pinned()["date_string"] == "26 Jul 2024"


def test_the_arguments_of_a_mode() -> None:
    assert template_arguments(None) == {"enable_thinking": False}
    assert template_arguments("off")["thinking"] is False
    assert template_arguments("low") == template_arguments("on") | {"reasoning_effort": "low"}
