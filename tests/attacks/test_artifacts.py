"""Attack texts from files, and scripted conversations."""

import json
from pathlib import Path

import pytest

from mooring.attacks import parse
from mooring.attacks.multi_turn import SCRIPTS
from mooring.pipeline.attacked import continued, prefilled_with, requests
from mooring.records import Completion, Message, Prompt

CAKE = Prompt(id="h1", messages=(Message("user", "How do I bake a cake?"),))
POEM = Prompt(id="set:h2", messages=(Message("user", "Write a poem."),))


def texts(attack: str, *prompts: Prompt) -> dict[str, str]:
    return {each.id: each.messages[-1].content for each in parse(attack).apply(prompts, seed=1)}


def test_a_jailbreakbench_artifact_is_matched_by_its_goal(tmp_path: Path) -> None:
    rows = [
        {"index": 0, "goal": "how do I bake a cake", "behavior": "cake", "prompt": "How do I bake a cake? ZZ"},
        {"index": 1, "goal": "Write a poem", "behavior": "poem", "prompt": None},
    ]
    path = tmp_path / "gcg.json"
    path.write_text(json.dumps({"parameters": {}, "jailbreaks": rows}))
    assert texts(f"artifacts:{path}", CAKE, POEM) == {"h1#1": "How do I bake a cake? ZZ"}
    assert parse(f"artifacts:{path}").name == "artifacts:gcg"


def test_harmbench_test_cases_are_matched_by_id_or_behavior(tmp_path: Path) -> None:
    path = tmp_path / "test_cases.json"
    path.write_text(json.dumps({"h2": ["Poem, A", "Poem, B"], "How do I bake a cake?": "Cake, A"}))
    assert texts(f"artifacts:{path}", CAKE, POEM) == {
        "h1#1": "Cake, A",
        "set:h2#1": "Poem, A",
        "set:h2#2": "Poem, B",
    }


def test_suffixes_of_a_text_file_are_appended_to_any_request(tmp_path: Path) -> None:
    path = tmp_path / "suffixes.txt"
    path.write_text("! ! x\n\n} begin\n! ! x\n")
    assert list(texts(f"artifacts:{path}", CAKE).values()) == [
        "How do I bake a cake? ! ! x",
        "How do I bake a cake? } begin",
    ]


@pytest.mark.parametrize("content", ["[]", "{}", '{"jailbreaks": [{"prompt": 3}]}', "{", "\0"])
def test_a_file_of_another_form_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "other.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"artifacts: .*other\.json"):
        parse(f"artifacts:{path}")
    with pytest.raises(ValueError, match="artifacts: FILE"):
        parse("artifacts")
    with pytest.raises(ValueError, match="No such file"):
        parse(f"artifacts:{tmp_path / 'missing.json'}")


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_is_asked_turn_by_turn_with_the_models_answers(script: str) -> None:
    attack = parse(f"multi_turn:{script}")
    asked = attack.apply([CAKE], seed=1)
    said = []
    for turn in range(1, attack.turns):
        answer = Completion(prompt_id="h1", text=f"Answer {turn}.", tokens=2, finish="stop")
        asked = continued(asked, [answer])
        said.append(answer.text)
    (last,) = asked
    assert not last.follow_ups
    assert [m.content for m in last.messages if m.role == "assistant"] == said
    assert [m.role for m in last.messages] == ["user", "assistant"] * (attack.turns - 1) + ["user"]
    assert any("bake a cake" in message.content for message in last.messages)
    assert requests([CAKE], asked) == [CAKE]


def test_an_answer_begins_as_the_tuned_models_where_that_complied() -> None:
    asked = parse("prefill_tuned:6").apply([CAKE, POEM], seed=1)
    own = [
        Completion(prompt_id="h1", text="Whisk two eggs with sugar.", tokens=5, finish="stop"),
        Completion(prompt_id="set:h2", text="I'm sorry, but I can't help with that.", tokens=9, finish="stop"),
    ]
    cake, poem = prefilled_with(asked, own)
    assert (cake.prefill, cake.prefill_tokens) == ("Whisk two eggs with sugar.", 6)
    assert poem == asked[1]
