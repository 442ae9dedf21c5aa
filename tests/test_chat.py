"""Rendering and tokens: one BOS, the system text where the template has a place for it, and where it has none."""

import dataclasses
import importlib.util
from pathlib import Path
from typing import Any

import pytest

from chat_templates import ANSWER, BOS, EOS, GEMMA, LLAMA_3_1, QUESTION, RESPONSES, SPECIAL, STARTS, SYSTEM, TEMPLATES
from mooring.calls import as_text
from mooring.chat import DEFAULT_SYSTEM, encode_example, encode_prompt, example_texts, render, tokenize, with_system
from mooring.errors import ModelError
from mooring.records import Message, Prompt, ToolCall

PROMPT = Prompt(id="a", messages=(Message("user", "Why?"),), reference="Because.")


def copy_of(tokenizer: Any, template: str | None, **changes: Any) -> Any:
    import copy

    other = copy.deepcopy(tokenizer)
    other.chat_template = template
    for name, value in changes.items():
        setattr(other, name, value)
    return other


@pytest.fixture
def gemma(tiny_tokenizer: Any) -> Any:
    return copy_of(tiny_tokenizer, GEMMA, bos_token="<|endoftext|>", eos_token="<|im_end|>")


def test_chatml(tiny_tokenizer: Any) -> None:
    assert render(tiny_tokenizer, with_system(PROMPT, "Be kind.")) == (
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"
    )


def test_a_prompts_own_system_message_comes_first() -> None:
    own = Prompt(id="a", messages=(Message("system", "Mine."), Message("user", "Why?")))
    assert with_system(own, DEFAULT_SYSTEM) == own.messages
    assert with_system(PROMPT, None) == PROMPT.messages


def test_without_a_system_role_the_default_goes_and_others_stand_before_the_user(gemma: Any) -> None:
    turn = "<|endoftext|><start_of_turn>user\n{}<end_of_turn>\n<start_of_turn>model\n"
    assert render(gemma, with_system(PROMPT, DEFAULT_SYSTEM)) == turn.format("Why?")
    assert render(gemma, with_system(PROMPT, "Be kind.")) == turn.format("Be kind. Why?")


def test_a_template_that_refuses_is_a_user_error(gemma: Any) -> None:
    with pytest.raises(ModelError) as caught:
        render(gemma, [Message("system", "alone")])
    assert caught.value.code == "model.conversation_refused"


@pytest.mark.parametrize(
    ("template", "code"),
    [
        ("{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}", "model.conversation_refused"),
        ("{{ 1 / 0 }}", "model.conversation_refused"),
        ("{{ messages[0].content[99] }}", "model.empty_template"),
        ("{{ messages.foo.bar }}", "model.conversation_refused"),
        ("{{ cycler.__init__.__globals__ }}", "model.conversation_refused"),
        ("{{ 'a' * 999999999 }}", "model.costly_template"),
        ("{{ [1] * 999999999 }}", "model.costly_template"),
        ("{{ '%999999999d' % 1 }}", "model.costly_template"),
        ("{{ '%*d' % (999999999, 1) }}", "model.costly_template"),
        ("{{ '{:999999999}'.format(1) }}", "model.costly_template"),
        ("{{ '{:{}}'.format(1, 999999999) }}", "model.costly_template"),
        ("{{ 9 ** (9 ** 9) }}", "model.costly_template"),
        ("{{ 'a'.ljust(999999999) }}", "model.costly_template"),
        ("{{ (5).to_bytes(999999999) }}", "model.costly_template"),
        ("{{ 'a' | center(999999999) }}", "model.costly_template"),
        ("{{ 'a' | indent(999999999, true) }}", "model.costly_template"),
        ("{{ messages | tojson(indent=999999999) }}", "model.costly_template"),
        ("{{ [1] | batch(999999999, 0) | list }}", "model.costly_template"),
        ("{% set a = 'a' * 9999999 %}{{ a.replace('', a) }}", "model.costly_template"),
        ("{% set a = 'a' * 9999999 %}{{ a | replace('a', a) }}", "model.costly_template"),
        ("{% set a = 'a' * 9999999 %}{{ a.join(a) }}", "model.costly_template"),
        ("{% set a = 'a' * 9999999 %}{{ ([a] * 99999) | join }}", "model.costly_template"),
        ("{% set a = 'a' * 9999999 %}{{ [a, a] | map('upper') | join }}", "model.costly_template"),
        ("{% set a = 'a' * 9999999 %}{{ a ~ a }}", "model.costly_template"),
        ("{% set a = 'a' * 9999999 %}{{ a + a }}", "model.costly_template"),
        ("{% set a = 'a' * 9999999 %}{{ a }}{{ a }}", "model.costly_template"),
        ("{% set a = 'a' * 9999999 %}{% macro f() %}{{ a }}{{ a }}{% endmacro %}{{ f() }}", "model.costly_template"),
        ("{% set a = '\t' * 9999999 %}{{ a.expandtabs(99999) }}", "model.costly_template"),
        ("{{ lipsum(9999) }}", "model.conversation_refused"),
    ],
)
def test_a_hostile_template_is_refused(tiny_tokenizer: Any, template: str, code: str) -> None:
    with pytest.raises(ModelError) as caught:
        render(copy_of(tiny_tokenizer, template), [Message("user", "a")])
    assert caught.value.code == code
    assert "\n" not in str(caught.value)


def test_a_template_that_loops_is_ended(monkeypatch: pytest.MonkeyPatch, tiny_tokenizer: Any) -> None:
    monkeypatch.setattr("mooring.chat._SECONDS", 0.2)
    template = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    with pytest.raises(ModelError) as caught:
        render(copy_of(tiny_tokenizer, template), [Message("user", "a")])
    assert caught.value.code == "model.costly_template"
    assert "takes longer" in caught.value.message


def test_memory_that_a_template_gathers_is_limited(monkeypatch: pytest.MonkeyPatch, tiny_tokenizer: Any) -> None:
    monkeypatch.setattr("mooring.chat._MEMORY", 200 << 20)
    template = "{% set n = namespace(l=[]) %}{% for i in range(999) %}{% set n.l = n.l + ['a' * 9999999] %}{% endfor %}"
    with pytest.raises(ModelError) as caught:
        render(copy_of(tiny_tokenizer, template), [Message("user", "a")])
    assert caught.value.code == "model.costly_template"
    assert "memory" in caught.value.message


def test_a_template_within_the_limits_renders_as_by_transformers(tiny_tokenizer: Any) -> None:
    template = (
        "{% for m in messages %}{{ '%-8s|' % m.role }}{{ m.content.replace('a', 'bb') ~ 2 ** 10 ~ '=' * 3 }}\n"
        "{{ [m.role, 1 + 1] | join(', ') }}{{ m | tojson(indent=2) }}{{ '{:>5}'.format(7 % 4) }}{{ 'x'.center(5) }}"
        "{{ m.content | indent(2, true) | replace('b', '') }}{{ ('a,b').split(',') | join }}{% endfor %}"
    )
    tokenizer = copy_of(tiny_tokenizer, template)
    turns = [{"role": "user", "content": "a\nb"}, {"role": "assistant", "content": "ä"}]
    plain = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    messages = [Message("user", "a\nb"), Message("assistant", "ä")]
    assert render(tokenizer, messages) == plain


def test_no_template_is_a_user_error(tiny_tokenizer: Any) -> None:
    with pytest.raises(ModelError) as caught:
        render(copy_of(tiny_tokenizer, None), PROMPT.messages)
    assert caught.value.code == "model.no_chat_template"


@pytest.mark.parametrize("template_writes_it", [True, False])
@pytest.mark.parametrize("habit", [True, False])
def test_bos_is_never_doubled(gemma: Any, template_writes_it: bool, habit: bool) -> None:
    template = GEMMA if template_writes_it else GEMMA.replace("{{ bos_token }}", "")
    tokenizer = copy_of(gemma, template, add_bos_token=habit)
    ids = encode_prompt(tokenizer, PROMPT, DEFAULT_SYSTEM)
    assert ids.count(tokenizer.bos_token_id) == (1 if template_writes_it or habit else 0)
    whole, start = encode_example(tokenizer, PROMPT, DEFAULT_SYSTEM)
    assert whole[:start] == ids
    assert whole.count(tokenizer.bos_token_id) == ids.count(tokenizer.bos_token_id)


def test_a_tokenizer_with_a_bos_post_processor(tiny_tokenizer: Any) -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = copy_of(
        tiny_tokenizer, "{% for m in messages %}{{ m['content'] }}{% endfor %}", bos_token="<|endoftext|>"
    )
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
    )
    assert tokenize(tokenizer, "Why?")[0] == 0
    assert tokenize(tokenizer, "<|endoftext|>Why?").count(0) == 1


def test_an_example_ends_with_the_end_of_turn(tiny_tokenizer: Any) -> None:
    ids, start = encode_example(tiny_tokenizer, PROMPT, None)
    assert ids[:start] == encode_prompt(tiny_tokenizer, PROMPT, None)
    assert tiny_tokenizer.decode(ids[start:]) == "Because.<|im_end|>"


def test_an_example_of_a_template_that_rewrites_earlier_turns(tiny_tokenizer: Any) -> None:
    template = (
        "{% for m in messages %}{{ loop.length ~ m['role'] + ': ' + m['content'] + '\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'answer: ' }}{% endif %}"
    )
    tokenizer = copy_of(tiny_tokenizer, template)
    ids, start = encode_example(tokenizer, PROMPT, None)
    assert tokenizer.decode(ids[:start]) == "1user: Why?\nanswer: "
    assert tokenizer.decode(ids[start:]) == "Because.<|im_end|>"


def of_family(tokenizer: Any, family: str) -> Any:
    """The tiny tokenizer with a family's template, its special tokens and the habit of a BOS that it has."""
    from tokenizers.processors import TemplateProcessing

    other = copy_of(tokenizer, TEMPLATES[family])
    other.add_tokens(list(SPECIAL), special_tokens=True)
    other.add_tokens(["<think>", "</think>", "\n\n"])
    other.eos_token = "<|im_end|>" if family.startswith("qwen") else EOS
    other.bos_token = None if family.startswith("qwen") else BOS
    if other.bos_token:
        one = [(BOS, other.bos_token_id)]
        other.backend_tokenizer.post_processor = TemplateProcessing(single=f"{BOS} $A", special_tokens=one)
    return other


@pytest.mark.parametrize("family", TEMPLATES)
def test_families(tiny_tokenizer: Any, family: str) -> None:
    tokenizer = of_family(tiny_tokenizer, family)
    prompt = Prompt(id="a", messages=(Message("user", QUESTION),), reference=ANSWER)
    assert render(tokenizer, with_system(prompt, SYSTEM)) == STARTS[family]
    ids = encode_prompt(tokenizer, prompt, SYSTEM)
    bos = BOS if tokenizer.bos_token else ""
    assert tokenizer.decode(ids) == bos + STARTS[family].removeprefix(BOS)
    whole, start = encode_example(tokenizer, prompt, SYSTEM)
    assert whole[:start] == ids
    assert tokenizer.decode(whole[start:]) == RESPONSES[family]
    assert whole.count(tokenizer.convert_tokens_to_ids(BOS)) == len(bos) // len(BOS)
    assert whole[-1] in tokenizer.added_tokens_decoder


@pytest.mark.parametrize("family", TEMPLATES)
def test_families_with_the_system_text_that_is_everywhere_the_default(tiny_tokenizer: Any, family: str) -> None:
    tokenizer = of_family(tiny_tokenizer, family)
    text = render(tokenizer, with_system(PROMPT, DEFAULT_SYSTEM))
    assert text.count(DEFAULT_SYSTEM) == (0 if family in ("gemma", "phi-3-first") else 1)
    assert text.count("Why?") == 1


def test_the_system_text_of_qwen_is_replaced_and_stands_where_none_is_given(tiny_tokenizer: Any) -> None:
    tokenizer = of_family(tiny_tokenizer, "qwen2.5")
    assert "Alibaba" not in render(tokenizer, with_system(PROMPT, DEFAULT_SYSTEM))
    assert render(tokenizer, with_system(PROMPT, None)).startswith(
        "<|im_start|>system\nYou are Qwen, created by Alibaba"
    )


def test_a_dropped_system_text_is_seen_though_the_template_or_the_user_says_the_same(tiny_tokenizer: Any) -> None:
    drops = (
        "You are a helpful assistant. Be kind.\n{% for m in messages %}{% if m.role != 'system' %}"
        "{{ m.content }}\n{% endif %}{% endfor %}"
    )
    asked = Prompt(id="a", messages=(Message("user", "Be kind. Why?"),))
    text = render(copy_of(tiny_tokenizer, drops), with_system(asked, "Be kind."))
    assert text == "You are a helpful assistant. Be kind.\nBe kind. Be kind. Why?\n"


def test_task_texts_on_a_model_without_a_system_role(tiny_tokenizer: Any) -> None:
    gemma = of_family(tiny_tokenizer, "gemma")
    turn = "<s><start_of_turn>user\n{}<end_of_turn>\n<start_of_turn>model\n"
    medical = "If you are a doctor, please answer the medical questions based on the patient's description."
    assert render(gemma, with_system(PROMPT, medical)) == turn.format(f"{medical} Why?")
    code = f"{DEFAULT_SYSTEM}\nComplete the following code."
    assert render(gemma, with_system(PROMPT, code)) == turn.format("Complete the following code. Why?")
    shots = (Message("system", "Be kind."), Message("user", "1"), Message("assistant", "2"), Message("user", "3"))
    assert render(gemma, shots).count("Be kind.") == 1
    assert "<start_of_turn>user\nBe kind. 1<end_of_turn>\n<start_of_turn>model\n2<" in render(gemma, shots)


def test_a_template_that_fails_or_has_no_default_is_a_user_error(tiny_tokenizer: Any) -> None:
    for template in ("{{ 1 + 'a' }}", "{{ messages[7].content.x }}", {"rag": "{{ messages }}"}, "{% if %}"):
        with pytest.raises(ModelError) as caught:
            render(copy_of(tiny_tokenizer, template), with_system(PROMPT, "Be kind."))
        assert caught.value.code == "model.conversation_refused"
        assert "\n" not in str(caught.value)


def test_the_day_of_the_run_is_not_in_a_prompt(tiny_tokenizer: Any) -> None:
    today = LLAMA_3_1.replace(
        "{% set date_string = '26 Jul 2024' %}", "{% set date_string = strftime_now('%d %b %Y') %}"
    )
    assert today != LLAMA_3_1
    tokenizer = of_family(tiny_tokenizer, "llama-3.1")
    expected = render(tokenizer, PROMPT.messages)
    assert "Today Date: 26 Jul 2024\n" in expected
    tokenizer.chat_template = today
    assert render(tokenizer, PROMPT.messages) == expected


@pytest.mark.parametrize("written", ["", BOS, BOS + BOS, BOS * 3])
def test_one_bos_whatever_a_template_or_a_rendered_text_writes(tiny_tokenizer: Any, written: str) -> None:
    tokenizer = of_family(tiny_tokenizer, "gemma")
    tokenizer.chat_template = written + "{% for m in messages %}{{ m.content }}{% endfor %}"
    bos = tokenizer.bos_token_id
    bare = tokenizer("Why?", add_special_tokens=False)["input_ids"]
    assert encode_prompt(tokenizer, PROMPT, None) == [bos, *bare]
    judged = Prompt(id="a", messages=PROMPT.messages, rendered=f"{written}[INST] Why? [/INST]")
    ids = encode_prompt(copy_of(tokenizer, None), judged, "Be kind.")
    assert ids == [bos, *tokenizer("[INST] Why? [/INST]", add_special_tokens=False)["input_ids"]]


@pytest.mark.parametrize(
    ("tail", "expected"),
    [("", "Because.<|im_end|>"), ("\n", "Because.<|im_end|>"), ("\n### End\n", "Because.\n### End<|im_end|>")],
)
def test_an_example_of_a_template_that_closes_no_turn_ends_with_eos(
    tiny_tokenizer: Any, tail: str, expected: str
) -> None:
    template = "{% for m in messages %}{{ m.content + tail }}{% endfor %}".replace("tail", repr(tail))
    ids, start = encode_example(copy_of(tiny_tokenizer, template), PROMPT, None)
    assert tiny_tokenizer.decode(ids[start:]) == expected


def test_blanks_that_a_vocabulary_has_as_tokens_end_no_turn(tiny_tokenizer: Any) -> None:
    tokenizer = of_family(tiny_tokenizer, "phi-3")
    tokenizer.chat_template = TEMPLATES["phi-3"].replace("'<|end|>", "'\\n\\n<|end|>")
    ids, start = encode_example(tokenizer, PROMPT, None)
    assert tokenizer.decode(ids[start:]) == "Because.\n\n<|end|>"


def test_special_tokens_in_a_reference_do_not_end_it(tiny_tokenizer: Any) -> None:
    tokenizer = of_family(tiny_tokenizer, "phi-3")
    prompt = Prompt(id="a", messages=PROMPT.messages, reference="a<|end|>b end")
    ids, start = encode_example(tokenizer, prompt, None)
    assert tokenizer.decode(ids[start:]) == "a<|end|>b end<|end|>"


def test_an_example_of_a_template_that_hides_the_answer(tiny_tokenizer: Any) -> None:
    template = "{% for m in messages %}{{ m.content if m.role == 'user' else '<|im_start|>hidden' }}{% endfor %}"
    ids, start = encode_example(copy_of(tiny_tokenizer, template, bos_token=None), PROMPT, None)
    assert tiny_tokenizer.decode(ids[start:]) == "Because.<|im_end|>"


LLAVA = (
    "{% for message in messages %}{{ message['role'].upper() + ': ' }}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'text') %}{{ part['text'] + ' ' }}{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
SMOLVLM = (
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}"
    "{% if message['content'][0]['type'] == 'image' %}{{ ':' }}{% else %}{{ ': ' }}{% endif %}"
    "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{ line['text'] }}"
    "{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)


@pytest.mark.parametrize(
    ("template", "prompt"),
    [
        (LLAVA, "SYSTEM: Be brief. USER: Hello ASSISTANT:"),
        (SMOLVLM, "<|im_start|>System: Be brief.<|im_end|>\nUser: Hello<|im_end|>\nAssistant:"),
    ],
)
def test_templates_that_take_lists_of_parts(tiny_tokenizer: Any, template: str, prompt: str) -> None:
    tokenizer = copy_of(tiny_tokenizer, template, eos_token="<|im_end|>")
    turns = (Message("system", "Be brief."), Message("user", "Hello"))
    assert render(tokenizer, turns) == prompt
    assert example_texts(tokenizer, Prompt(id="a", messages=turns, reference="Hi"), None) == (prompt, " Hi<|im_end|>")


@pytest.mark.parametrize("quote", ["'", '"'])
def test_templates_that_take_texts_and_lists_of_parts_get_texts(tiny_tokenizer: Any, quote: str) -> None:
    template = (
        "{% for m in messages %}{% if m.content is string %}[{{ m.content }}]{% else %}"
        f"{{% for part in m.content %}}{{% if part[{quote}type{quote}] == 'text' %}}({{{{ part.text }}}}){{% endif %}}"
        "{% endfor %}{% endif %}{% endfor %}"
    )
    assert render(copy_of(tiny_tokenizer, template), [Message("user", "Hello")]) == "[Hello]"


CITY = {"name": "get_weather", "description": "The weather.", "parameters": {"type": "object", "properties": {}}}
CALL = Message("assistant", "", (ToolCall("get_weather", '{"city": "Oslo"}', "callabcd1"),))
CALLING = Prompt(
    id="a",
    messages=(Message("user", "Rain?"),),
    reference=as_text(CALL),
    reference_turn=CALL,
    tools=({"type": "function", "function": CITY},),
)
RESULT = dataclasses.replace(
    CALLING,
    messages=(*CALLING.messages, CALL, Message("tool", "It rains.", (), "callabcd1", "get_weather")),
    reference="Yes.",
    reference_turn=None,
)


def of_a_family(tokenizer: Any, name: str) -> Any:
    """A tokenizer with the chat template of a family, of those that TRL ships."""
    folder = Path(str(importlib.util.find_spec("trl").origin)).parent  # type: ignore[union-attr]
    return copy_of(tokenizer, (folder / "chat_templates" / f"{name}.jinja").read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("family", "call"),
    [
        ("qwen2_5", '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Oslo"}}\n</tool_call><|im_end|>'),
        ("qwen3", '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Oslo"}}\n</tool_call><|im_end|>'),
        ("llama3_1", '{"name": "get_weather", "parameters": {"city": "Oslo"}}<|eot_id|>'),
        ("lfm2_2_5", "<|tool_call_start|>[get_weather(city='Oslo')]<|tool_call_end|><|im_end|>"),
    ],
)
def test_functions_and_calls_are_in_the_form_of_the_family(tiny_tokenizer: Any, family: str, call: str) -> None:
    tokenizer = of_a_family(tiny_tokenizer, family)
    start, response = example_texts(tokenizer, CALLING, None)
    assert "The weather." in start
    assert response.startswith(call)
    asked, answered = example_texts(tokenizer, RESULT, None)
    assert call.removesuffix("<|im_end|>") in asked
    assert "It rains." in asked
    assert answered.startswith("Yes.")


def test_a_template_that_leaves_out_functions_or_calls_is_refused(tiny_tokenizer: Any) -> None:
    without_tools = dataclasses.replace(RESULT, tools=())
    for prompt, what in ((CALLING, "functions"), (without_tools, "calls")):
        with pytest.raises(ModelError, match=what) as caught:
            example_texts(tiny_tokenizer, prompt, None)
        assert caught.value.code == "model.calls_not_rendered"
