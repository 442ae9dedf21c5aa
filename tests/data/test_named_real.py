"""Named sets on the real files in `$MOORING_DATA`."""

import os
from collections import Counter
from pathlib import Path

import pytest

from mooring.data import load_examples, load_prompts, load_splits
from mooring.data.catalogue import NAMED

pytestmark = pytest.mark.skipif(
    "MOORING_DATA" not in os.environ, reason="MOORING_DATA does not name the folder of data"
)


def asked(prompts):
    return {p.messages for p in prompts}


@pytest.mark.parametrize(
    ("name", "count", "grouped"),
    [
        ("advbench", 520, False),
        ("jailbreakbench", 100, True),
        ("jailbreakbench-benign", 100, True),
        ("xstest", 250, True),
        ("xstest-unsafe", 200, True),
        ("hh-rlhf", 2312, False),
    ],
)
def test_prompt_sets(name, count, grouped):
    prompts = load_prompts(name)
    assert len(prompts) == len({p.id for p in prompts}) == count
    assert all(p.origin.startswith(os.environ["MOORING_DATA"]) and p.reference is None for p in prompts)
    assert all(bool(p.category) == grouped for p in prompts)
    assert all(p.messages[-1].role == "user" for p in prompts)
    sizes = [len(half) for half in load_splits(name).values()]
    assert sizes == [count // 2, count // 2] if name != "hh-rlhf" else sum(sizes) == count


def test_transcripts_alternate_and_are_not_empty():
    for prompt in load_prompts("hh-rlhf"):
        roles = [m.role for m in prompt.messages]
        assert roles == ["user", "assistant"] * (len(roles) // 2) + ["user"]
        assert all(m.content.strip() for m in prompt.messages)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("flan-cot", [29199, 3244, 1000]),
        ("chatdoctor", [4007, 445, 1000]),
        ("mbxp", [4276, 475, 500]),
        ("openfunctions", [1990, 221, 112]),
    ],
)
def test_parts_of_task_data(name, sizes):
    parts = [load_examples(f"{name}:{part}") for part in ("train", "validation", "test")]
    assert [len(part) for part in parts] == sizes
    train, validation, test = map(asked, parts)
    assert not train & validation
    assert not (train | validation) & test
    assert len({p.id for part in parts for p in part}) == sum(sizes)


@pytest.mark.slow
def test_chains_of_thought():
    drawn = load_examples("flan-cot#2000")
    assert len(drawn) == 2000
    assert all(p.reference.endswith(".") and "So the answer is " in p.reference for p in drawn)
    assert set(Counter(p.category for p in drawn)) == {
        "aqua", "creak", "ecqa", "gsm8k", "qasc", "sensemaking", "strategyqa",
    }  # fmt: skip


def test_code_is_drawn_evenly_over_languages():
    drawn = Counter(p.category for p in load_examples("mbxp:train#600/language"))
    assert drawn == dict.fromkeys(("cpp", "csharp", "java", "javascript", "python", "typescript"), 100)


def test_programs():
    prompts = load_examples("humaneval", split="test")
    assert [p.id for p in prompts] == [f"HumanEval/{n}" for n in range(164)]
    assert all(set(p.extra) == {"test", "entry_point", "prompt"} for p in prompts)
    for prompt in prompts:
        compile(prompt.extra["prompt"] + prompt.reference + prompt.extra["test"], prompt.id, "exec")


def test_every_set_below_the_folder_is_tested():
    tested = {"advbench", "jailbreakbench", "jailbreakbench-benign", "xstest", "xstest-unsafe", "hh-rlhf"}
    tested |= {"flan-cot", "chatdoctor", "mbxp", "openfunctions", "humaneval"}
    folder = Path(os.environ["MOORING_DATA"])
    here = {name for name, known in NAMED.items() if list(folder.glob(known.tables[0].path))}
    assert here == tested
