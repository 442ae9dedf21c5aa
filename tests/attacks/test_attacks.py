"""Attacks rewrite prompts as they say, by seed; all on harmless requests."""

import base64
import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mooring.attacks import NONE, TECHNIQUES, attack_of, kind_of, parse, under, without_attack
from mooring.attacks.encodings import to_hex, to_rot13, without_vowels
from mooring.attacks.many_shot import SHOTS
from mooring.attacks.past_tense import past_tense
from mooring.attacks.prefill import TEMPLATES
from mooring.records import Message, Prompt

REQUEST = "How do I bake a chocolate cake?"


def prompt(text: str = REQUEST, id: str = "p1") -> Prompt:
    return Prompt(id=id, messages=(Message("system", "Be brief."), Message("user", text)), category="baking")


def text_of(name: str, text: str = REQUEST) -> str:
    (made,) = parse(name).apply([prompt(text)], seed=1)
    return made.messages[-1].content


@pytest.mark.parametrize("name", [name for name, each in TECHNIQUES.items() if not each.option or each.option.default])
def test_an_attack_is_a_function_of_prompt_and_seed_and_keeps_the_rest(name: str) -> None:
    attack = parse(name)
    asked = [prompt(), prompt("Write a poem about rain.", "p2")]
    made = attack.apply(asked, seed=3)
    assert made == attack.apply(asked, seed=3)
    assert made == attack.apply(asked[:1], seed=3) + attack.apply(asked[1:], seed=3)
    for each in made:
        source = next(p for p in asked if p.id in (each.id, each.variant_of))
        assert (each.category, each.messages[0]) == (source.category, source.messages[0])
        assert each.messages[-1].role == "user"
    if not attack.technique.several:
        assert [each.id for each in made] == ["p1", "p2"]
    assert len({each.id for each in made}) == len(made)


@pytest.mark.parametrize(
    ("request_", "asked"),
    [
        ("How do I bake a cake?", "How did people bake a cake in the past?"),
        ("How can someone clean my shoes", "How did people clean their shoes in the past?"),
        ("Write a poem about rain.", "How did people write a poem about rain in the past?"),
        ("Please describe how bees dance.", "How did people describe how bees dance in the past?"),
        ("What is the best way to dry herbs?", "What was the best way to dry herbs in the past?"),
        ("Which tools should I use for carving?", "Which tools did people use for carving in the past?"),
        ("How to tie a knot", "How did people tie a knot in the past?"),
    ],
)
def test_past_tense_by_rules(request_: str, asked: str) -> None:
    assert past_tense(request_) == asked


@given(st.text(min_size=1, max_size=200))
def test_encodings_can_be_decoded(text: str) -> None:
    if text.isprintable():
        assert base64.b64decode(text_of("base64", text).partition("\n\n")[2]).decode() == text
        assert bytes.fromhex(to_hex(text)).decode() == text
        assert to_rot13(to_rot13(text)) == text
        assert not set(without_vowels(text).lower()) & set("aeiou")
        assert text_of("reversed", text).endswith(text[::-1])


def test_a_prefill_begins_the_answer_and_leaves_the_request_alone() -> None:
    (made,) = parse("prefill:5").apply([prompt()], seed=1)
    assert (made.prefill_tokens, made.messages) == (5, prompt().messages)
    assert made.prefill in TEMPLATES
    drawn = {each.prefill for each in parse("prefill").apply([prompt(id=str(i)) for i in range(40)], seed=1)}
    assert drawn == set(TEMPLATES)


def test_many_shots_stand_between_the_system_message_and_the_request() -> None:
    (made,) = parse("many_shot:3").apply([prompt()], seed=1)
    roles = [message.role for message in made.messages]
    assert roles == ["system", "user", "assistant", "user", "assistant", "user", "assistant", "user"]
    assert made.messages[-1].content == REQUEST
    shown = {(q.content, a.content) for q, a in zip(made.messages[1:-1:2], made.messages[2:-1:2], strict=True)}
    assert shown <= set(SHOTS)
    assert len(shown) == 3


def test_best_of_n_augments_each_variant_by_itself_and_samples_do_not() -> None:
    attack = parse("best_of_n:20")
    made = attack.apply([prompt()], seed=1)
    assert [each.id for each in made] == [f"p1#{k}" for k in range(1, 21)]
    assert {each.variant_of for each in made} == {"p1"}
    texts = {each.messages[-1].content for each in made}
    assert len(texts) == 20
    assert all(len(text) == len(REQUEST) for text in texts)
    assert (attack.rate, attack.technique.temperature) == ("asr_worst+best_of_n:20", 1.0)
    assert {each.messages for each in parse("samples:3").apply([prompt()], seed=1)} == {prompt().messages}


def test_the_combination_has_its_parts_inside() -> None:
    text = text_of("combination_1")
    assert text.startswith("Answer under these rules")
    assert base64.b64decode(text.rpartition("\n\n")[2]).decode().startswith(f"{REQUEST}\n\nBegin your answer")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("prefil", "did you mean prefill"),
        ("nothing_like_it", "known attacks: none, prefill"),
        ("prefill:0", "from 1 to 32"),
        ("prefill:eight", "from 1 to 32"),
        ("base64:8", "has no option"),
        ("translation:klingon", "give one of zulu"),
    ],
)
def test_what_is_no_attack_is_explained(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        parse(text)


def test_names_under_attack() -> None:
    assert under("safety", parse("prefill").name) == "safety+prefill:8"
    assert under("asr", NONE) == "asr"
    assert (attack_of("asr+prefill:8@wildguard"), without_attack("asr+prefill:8@wildguard")) == (
        "prefill:8",
        "asr@wildguard",
    )
    assert (attack_of("asr@rules"), without_attack("asr:advbench")) == (NONE, "asr:advbench")
    assert kind_of("safety+prefill:8") == "safety"
    assert parse("prefill:08").name == "prefill:8"


def test_every_technique_names_its_source_and_what_it_does() -> None:
    for name, technique in TECHNIQUES.items():
        assert technique.name == name
        assert technique.what.endswith(".")
        assert any(year in technique.source for year in ("2023", "2024"))
        assert dataclasses.is_dataclass(technique)
