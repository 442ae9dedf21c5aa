"""Data sets by reference: files, named sets, bundled sets, joins, draws and splits."""

import json
import os
from pathlib import Path

import pytest

from mooring.data import load_examples, load_prompts, load_splits, parse_reference, parse_references, prompts_digest
from mooring.data.bundled import BUNDLED
from mooring.errors import DataError

real = pytest.mark.skipif("MOORING_DATA" not in os.environ, reason="MOORING_DATA does not name the folder of real data")
SIZES = {
    "harmful": (100, 120),
    "lookalikes": (40, 70),
    "ordinary": (70, 80),
    "tools": (60, 80),
    "tools-simple": (60, 80),
}


def data(name):
    return str(Path(os.environ["MOORING_DATA"]) / name)


def write(path, count, first=0, **more):
    lines = [json.dumps({"prompt": f"Question {n}?", **more}) for n in range(first, first + count)]
    path.write_text("\n".join(lines))
    return str(path)


def asked(prompts):
    return [p.messages[-1].content for p in prompts]


@real
def test_advbench_begins_on_line_two_and_its_target_is_not_a_response():
    prompts = load_prompts("advbench")
    assert [p.origin.rpartition(":")[2] for p in prompts] == [str(n) for n in range(2, 522)]
    with pytest.raises(DataError) as caught:
        load_examples("advbench")
    assert caught.value.code == "data.no_reference"
    assert "harmful_behaviors.csv:2: " in str(caught.value)


@real
@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("openfunctions/openfunctions_train.json", 2211),
        ("openfunctions/openfunctions_test.json", 112),
        ("chatdoctor/chatdoctor5k.json", 5452),
        ("bbh/tasks/navigate.json", 250),
    ],
)
def test_real_examples(name, count):
    examples = load_examples(data(name))
    assert len(examples) == len({p.id for p in examples}) == count
    assert all(p.reference for p in examples)


@real
def test_real_prompts_in_gzip():
    prompts = load_prompts(data("humaneval/HumanEval.jsonl.gz"))
    assert (len(prompts), prompts[163].origin.rpartition(":")[2]) == (164, "164")


@real
@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("refusal_labels/refusal.csv", 3),
        ("flan_cot/gsm8k_train.tsv", 2),
        ("hh_harmless/hh_harmless_base_test.jsonl.gz", 1),
    ],
)
def test_real_files_of_other_shapes(name, line):
    with pytest.raises(DataError) as caught:
        load_prompts(data(name))
    assert caught.value.code == "data.no_prompt"
    assert f"{name}:{line}: " in str(caught.value)
    assert len(str(caught.value)) < 500


def test_a_file_with_the_name_of_a_set_is_the_file(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    Path("advbench").write_text("x")
    with pytest.raises(DataError) as caught:
        load_prompts("advbench")
    assert caught.value.code == "data.unknown_format"


@pytest.mark.parametrize("name", BUNDLED)
def test_bundled_sets_have_their_own_splits(name):
    splits = load_splits(f"bundled:{name}")
    tune = load_examples(f"bundled:{name}")
    sides = [set(asked(side)) for side in (tune, *splits.values())]
    assert tuple(len(half) for half in splits.values()) == SIZES[name]
    assert len(tune) > len(splits["test"])
    assert not sides[0] & sides[1]
    assert not sides[0] & sides[2]
    assert not sides[1] & sides[2]
    assert all(p.reference and p.category and p.origin.startswith(f"bundled:{name}:") for p in tune)
    assert len({p.id for side in (tune, *splits.values()) for p in side}) == sum(map(len, sides))


def test_bundled_tools_are_generated_in_the_requested_number_whatever_the_seed():
    assert [len(load_examples("bundled:tools", split=s)) for s in ("tune", "validation", "test")] == [400, 60, 80]
    assert load_examples("bundled:tools#7", seed=1) == load_examples("bundled:tools", seed=2)[:7]
    assert [len(h) for h in load_splits("bundled:tools#9").values()] == [9, 9]
    with pytest.raises(DataError) as caught:
        load_examples("bundled:tools#100000")
    assert caught.value.code == "data.too_few_rows"


def test_number_of_rows_is_drawn_by_seed(tmp_path):
    ref = write(tmp_path / "a.jsonl", 60)
    whole = load_prompts(ref)
    some = load_prompts(f"{ref}#20", seed=1)
    assert len(some) == 20
    assert [p for p in whole if p in some] == some
    assert load_prompts(f"{ref}#20", seed=1) == some
    assert load_prompts(f"{ref}#20", seed=2) != some
    assert load_prompts(f"{ref}#60") == whole
    assert len(load_prompts("bundled:harmful#5")) == 5


def test_max_accepts_fewer_rows(tmp_path):
    ref = write(tmp_path / "a.jsonl", 60, lang="x")
    assert load_prompts(f"{ref}#max20", seed=1) == load_prompts(f"{ref}#20", seed=1)
    assert load_prompts(f"{ref}#max10000") == load_prompts(f"{ref}#max10000/lang") == load_prompts(ref)
    with pytest.raises(DataError) as caught:
        load_prompts(f"{ref}#10000")
    assert caught.value.code == "data.too_few_rows"
    assert "`#max10000`" in str(caught.value)
    for end in ("max", "max0", "maximum5"):
        with pytest.raises(DataError) as caught:
            load_prompts(f"{ref}#{end}")
        assert caught.value.code == "data.bad_count"
    with pytest.raises(DataError) as caught:
        load_prompts("bundled:tools#max9")
    assert caught.value.code == "data.not_drawable"
    assert "`max`" in str(caught.value)


@pytest.mark.parametrize(
    ("ref", "kind"),
    [
        ("advbench", "safety"),
        ("xstest#5", "over_refusal"),
        ("alpaca-eval", "quality"),
        ("openfunctions:test#5", "task"),
        ("bundled:harmful", "safety"),
        ("bundled:lookalikes#5", "over_refusal"),
        ("bundled:ordinary", "ordinary"),
        ("bundled:tools#9", "task"),
        ("mine.jsonl#5", None),
        ("owner/name@config:test", None),
    ],
)
def test_the_kind_of_a_set(ref, kind):
    assert parse_reference(ref).kind == kind


def test_a_file_with_the_name_of_a_set_is_of_no_known_kind(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    Path("advbench").write_text("x")
    assert parse_reference("advbench").kind is None


def test_rows_are_drawn_evenly_over_a_field(tmp_path):
    path = tmp_path / "a.jsonl"
    rows = [{"prompt": f"Question {n}?", "Lang": "few" if n < 5 else n % 2} for n in range(100)]
    path.write_text("\n".join(json.dumps(row) for row in rows))
    some = load_prompts(f"{path}#31/lang", seed=1)
    whole = load_prompts(str(path))
    assert [p for p in whole if p in some] == some
    few = sum(int(p.messages[0].content.split()[1][:-1]) < 5 for p in some)
    odd = sum(int(p.messages[0].content.split()[1][:-1]) % 2 for p in some[few:])
    assert (len(some), few, odd) == (31, 5, 13)
    assert load_prompts(f"{path}#31/lang", seed=2) != some
    assert load_prompts(f"{path}#100/lang") == whole


def test_a_missing_field_to_draw_over(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "P", "lang": "x"}\n{"prompt": "Q"}\n')
    with pytest.raises(DataError) as caught:
        load_prompts(f"{path}#1/lang")
    assert caught.value.code == "data.no_field"
    assert f"{path}:2: " in str(caught.value)
    with pytest.raises(DataError) as caught:
        load_prompts("bundled:tools#4/category")
    assert caught.value.code == "data.not_drawable"
    assert "`/category`" in str(caught.value)
    assert len({p.category for p in load_prompts("bundled:harmful#9/category")}) == 9


def test_a_folder_with_a_hash_is_not_a_draw():
    with pytest.raises(DataError) as caught:
        load_prompts("data#2/mine.jsonl")
    assert caught.value.code == "data.no_file"
    assert "data#2/mine.jsonl" in str(caught.value)


@pytest.mark.parametrize("number", ["0", "0/lang", "5/", "", "-3", "1.5", "ten", "²"])
def test_bad_number_of_rows(tmp_path, number):
    ref = write(tmp_path / "a.jsonl", 3)
    with pytest.raises(DataError) as caught:
        load_prompts(f"{ref}#{number}")
    assert caught.value.code == "data.bad_count"


def test_more_rows_than_there_are(tmp_path):
    ref = write(tmp_path / "a.jsonl", 3)
    with pytest.raises(DataError) as caught:
        load_prompts(f"{ref}#4")
    assert caught.value.code == "data.too_few_rows"
    assert "a.jsonl#4: " in str(caught.value)


def test_a_file_with_a_hash_in_its_name(tmp_path):
    assert len(load_prompts(write(tmp_path / "a#2.jsonl", 3))) == 3
    assert len(load_prompts(write(tmp_path / "a#2.jsonl", 3) + "#1")) == 1


def test_several_sets_are_joined_in_order(tmp_path):
    a, b = write(tmp_path / "a.jsonl", 2), write(tmp_path / "b.jsonl", 2, first=2)
    joined = load_prompts([b, a])
    assert asked(joined) == [f"Question {n}?" for n in (2, 3, 0, 1)]
    assert joined == load_prompts(b) + load_prompts(a)


def test_ids_stay_unique_when_sets_are_joined(tmp_path):
    a = write(tmp_path / "a.jsonl", 2)
    twice = load_prompts([a, a])
    assert [p.id for p in twice] == [f"{n}:{p.id}" for n in (1, 2) for p in load_prompts(a)]


def test_examples_need_responses_and_prompts_do_not(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "P", "completion": "C"}\n\n{"prompt": "Q", "completion": ""}\n')
    assert [p.reference for p in load_prompts(str(path))] == ["C", None]
    for load in (load_examples, lambda ref: load_splits(ref, references=True)):
        with pytest.raises(DataError) as caught:
            load(str(path))
        assert caught.value.code == "data.no_reference"
        assert str(caught.value).startswith(f"{path}:3: ")


def test_splits_of_a_file(tmp_path):
    ref = write(tmp_path / "a.jsonl", 40)
    splits = load_splits(ref, 0.25, seed=3)
    assert list(splits) == ["validation", "test"]
    assert [len(half) for half in splits.values()] == [10, 30]
    assert not {p.id for p in splits["validation"]} & {p.id for p in splits["test"]}
    assert load_splits(ref, 0.25, seed=3) == splits != load_splits(ref, 0.25, seed=4)
    assert [len(half) for half in load_splits(f"{ref}#20").values()] == [10, 10]


@pytest.mark.parametrize("make", [lambda path: write(path, 40), lambda path: "bundled:lookalikes"])
def test_limit_applies_to_each_split_and_draws_from_it(tmp_path, make):
    ref = make(tmp_path / "a.jsonl")
    whole, limited = load_splits(ref, seed=3), load_splits(ref, seed=3, limit=5)
    for half in whole:
        assert len(limited[half]) == 5
        assert [p for p in whole[half] if p in limited[half]] == limited[half]
    assert load_splits(ref, seed=3, limit=1000) == whole


@pytest.mark.parametrize(
    ("ref", "code", "hint"),
    [
        ("advbanch", "data.unknown_set", "did you mean `advbench`?"),
        ("XSTest", "data.unknown_set", "did you mean `xstest`?"),
        ("harmful", "data.unknown_set", "did you mean `bundled:harmful`?"),
        ("bundled:harmfull", "data.unknown_set", "did you mean `bundled:harmful`?"),
        ("qqqq", "data.unknown_set", "named sets: advbench"),
        ("humanevil", "data.unknown_set", "did you mean `humaneval`?"),
        ("advbench:test", "data.unknown_split", "write `advbench`"),
        ("openfunctions:dev", "data.unknown_split", "train, validation, test"),
        ("data/mine.jsonl", "data.no_file", ""),
        ("./mine", "data.no_file", ""),
        ("~/no/such/mine", "data.no_file", ""),
    ],
)
def test_a_set_that_does_not_exist(monkeypatch, tmp_path, ref, code, hint):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError) as caught:
        load_prompts(ref)
    assert caught.value.code == code
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("mine.jsonl#5", {"source": "file", "name": "mine.jsonl", "count": 5}),
        ("advbench", {"source": "named", "name": "advbench"}),
        ("magicoder:train#9/lang", {"name": "magicoder", "part": "tune", "count": 9, "stratify": "lang"}),
        ("bundled:tools#max9", {"source": "bundled", "name": "tools", "count": 9, "at_most": True}),
        ("me/set@v1:dev", {"source": "hub", "name": "me/set", "config": "v1", "hub_split": "dev"}),
    ],
)
def test_a_reference_is_parsed_once_and_then_passed_on(text, expected):
    reference = parse_reference(text)
    assert {name: getattr(reference, name) for name in expected} == expected
    assert reference.text == text
    assert parse_references([reference, text]) == [reference, reference]


def test_references_to_the_same_rows_have_one_address(tmp_path):
    ref = write(tmp_path / "a.jsonl", 2)
    for one, two in (
        (ref, f"{tmp_path}/../{tmp_path.name}/a.jsonl#1"),
        ("advbench", "advbench#5"),
        ("bundled:harmful", "bundled:harmful#max5"),
        ("me/set@v1", "me/set@v1#5/site"),
    ):
        assert parse_reference(one).address == parse_reference(two).address
    addresses = {parse_reference(ref).address for ref in ("magicoder", "magicoder:train", "magicoder:test", "me/set")}
    assert len(addresses) == 4


def test_home_is_expanded(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path / "a.jsonl", 4)
    assert len(load_prompts("~/a.jsonl")) == 4
    assert len(load_prompts("~/a.jsonl#2")) == 2


def test_digest_of_a_set_depends_only_on_its_content(tmp_path):
    (tmp_path / "b").mkdir()
    first = load_prompts(write(tmp_path / "a.jsonl", 4))
    assert prompts_digest(load_prompts(write(tmp_path / "b" / "c.jsonl", 4))) == prompts_digest(first)
    assert prompts_digest(load_prompts(write(tmp_path / "a.jsonl", 4, category="x"))) != prompts_digest(first)
