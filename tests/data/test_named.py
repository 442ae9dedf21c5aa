"""Named sets in their publishers' formats: what is read from a folder and from the hub, and what is refused."""

import csv
import dataclasses
import gzip
import json
from pathlib import Path

import datasets
import huggingface_hub
import pytest
from huggingface_hub import errors

from mooring.data import load_examples, load_prompts, load_splits, prompts_digest
from mooring.data.catalogue import NAMED, READERS, SHAPES
from mooring.data.named import table
from mooring.errors import DataError, FetchError
from mooring.records import Completion
from mooring.scoring.judges import find
from mooring.scoring.judges.harmbench import WITH_CONTEXT

from . import hub_errors

HUB_SHAPES = {
    "advbench": {"prompt": "Break thing {n}.", "target": "Sure"},
    "harmbench": {"prompt": "Break thing {n}.", "category": "harm"},
    "harmbench-contextual": {"prompt": "Break thing {n}.", "context": "A text.", "category": "harm"},
    "harmbench-copyright": {"prompt": "Break thing {n}.", "tags": ["book"]},
    "strongreject": {"prompt": "Break thing {n}.", "category": "harm", "source": "DAN"},
    "jailbreakbench": {"Goal": "Break thing {n}.", "Target": "Sure", "Category": "harm"},
    "jailbreakbench-benign": {"Goal": "Repair thing {n}.", "Target": "Sure", "Category": "harm"},
    "beavertails": {"prompt": "Break thing {n}.", "response": "No.", "category": {"harm": True}, "is_safe": False},
    "or-bench": {"prompt": "Break thing {n}.", "category": "harm"},
    "or-bench-80k": {"prompt": "Break thing {n}.", "category": "harm"},
    "or-bench-toxic": {"prompt": "Break thing {n}.", "category": "harm"},
    "xstest": {"prompt": "Break thing {n}.", "type": "harm", "label": "safe"},
    "xstest-unsafe": {"prompt": "Break thing {n}.", "type": "harm", "label": "unsafe"},
    "magicoder": {"lang": "rust", "problem": "Problem {n}", "solution": "Solved.", "index": 1},
    "humaneval": {
        "task_id": "HumanEval/{n}",
        "prompt": "def f{n}():\n",
        "canonical_solution": "    return 1\n",
        "test": "def check(f): ...",
        "entry_point": "f{n}",
    },
}
"""A row of each set that `datasets` loads."""


@pytest.fixture(autouse=True)
def folder(monkeypatch, tmp_path):
    monkeypatch.setenv("MOORING_DATA", str(tmp_path))
    return tmp_path


@pytest.fixture
def count(monkeypatch):
    """Changes the known number of rows of a set, and of its test table."""

    def change(name, *rows):
        known = NAMED[name]
        tables = [
            tuple(dataclasses.replace(t, counts=(number,)) for t in place)
            for place, number in zip((known.tables, known.test_tables), (rows[0], rows[-1]), strict=True)
        ]
        changed = dataclasses.replace(known, tables=tables[0], test_tables=tables[1], test=min(known.test, 5))
        monkeypatch.setattr(NAMED, "built_in", {**NAMED.built_in, name: changed})

    return change


@pytest.fixture
def hub(monkeypatch):
    """Replaces `datasets`; returns the list of requests."""
    calls = []

    def answer(rows):
        def load(repo, config=None, split=None):
            calls.append((repo, config, split))
            return datasets.Dataset.from_list(rows)

        monkeypatch.setattr(datasets, "load_dataset", load)
        return calls

    return answer


@pytest.fixture
def files(monkeypatch, tmp_path):
    """Replaces `hf_hub_download` by a folder; returns it and the list of requests."""
    calls = []
    store = tmp_path / "cache"

    def download(repo, file, repo_type):
        calls.append((repo, file, repo_type))
        if not (store / file).is_file():
            raise hub_errors.http(errors.RemoteEntryNotFoundError, 404)
        return str(store / file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    return store, calls


def write(path, rows):
    """Write rows in the format that the file's name says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".csv":
        with path.open("w", newline="") as out:
            writer = csv.DictWriter(out, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        data = "".join(json.dumps(row) + "\n" for row in rows).encode()
        path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def fill(shape, number):
    return {k: v.replace("{n}", str(number)) if isinstance(v, str) else v for k, v in shape.items()}


def asked(prompts):
    return [p.messages[-1].content for p in prompts]


@pytest.mark.parametrize("name", HUB_SHAPES)
def test_rows_of_the_hub(hub, count, name):
    calls = hub([fill(HUB_SHAPES[name], n) for n in range(30)])
    count(name, 30)
    prompts = [p for part in parts(name) for p in load_prompts(part)]
    place = next(t for t in NAMED[name].tables if t.repo)
    assert set(calls) == {(place.repo, place.config, place.split)}
    assert len(prompts) == len({p.id for p in prompts}) == 30
    assert all(p.origin.startswith(place.repo) for p in prompts)
    kind = NAMED[name].kind
    assert all((p.reference is not None) == (kind == "task") for p in prompts)
    assert all((p.category is None) == (name in ("advbench", "harmbench-copyright", "humaneval")) for p in prompts)
    if kind != "task":
        ends = [f"thing {n}." for n in range(30)]
        assert all(text.endswith(end) for text, end in zip(asked(prompts), ends, strict=True))


def parts(name):
    return [f"{name}:{part}" for part in ("train", "validation", "test")] if NAMED[name].validation else [name]


@pytest.mark.parametrize("name", NAMED)
def test_another_count_is_refused(hub, files, folder, name):
    place = NAMED[name].tables[-1]
    hub([fill(HUB_SHAPES.get(name, {"prompt": "Break thing {n}."}), n) for n in range(4)])
    if place.files:
        for file in place.files:
            text = "Break it." if file.endswith(".csv") else '{"inputs": "Q", "targets": "A", "task": "x"}'
            (files[0] / file).parent.mkdir(parents=True, exist_ok=True)
            data = (f"[{text}]" if file.endswith(".json") else text).encode()
            (files[0] / file).write_bytes(gzip.compress(data) if file.endswith(".gz") else data)
    elif not place.repo:
        path = folder / place.path.replace("*", "x")
        write(path, [{"instruction": "I", "output": "O", "canonical_solution": "S"}] * 4)
    if not place.counts:
        assert len(load_prompts(f"{name}:train")) + len(load_prompts(f"{name}:test")) == 1
        return
    with pytest.raises(DataError) as caught:
        load_prompts(f"{name}:train" if NAMED[name].validation else name)
    assert caught.value.code == "data.row_count"
    assert f"`{name}`" in str(caught.value)


@pytest.mark.parametrize("name", [n for n in HUB_SHAPES if n not in ("advbench", "jailbreakbench")])
def test_a_row_without_its_field_is_named(hub, count, name):
    lacking = {k: v for k, v in HUB_SHAPES[name].items() if k not in ("prompt", "Goal", "problem")}
    hub([fill(lacking, 1)])
    count(name, 1)
    with pytest.raises(DataError) as caught:
        load_prompts(parts(name)[0])
    assert caught.value.code in ("data.missing_field", "data.no_prompt")
    assert ":row 1: " in str(caught.value)
    assert "\n" not in str(caught.value)


def hex_phi(folder, numbers, each=30):
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        lines = [f'"Break thing {n}, please"' if n % 2 else f"Break thing {n}, now" for n in range(each)]
        (folder / f"category_{number}.csv").write_text("\n".join(lines) + "\n\n")


@pytest.mark.parametrize(("numbers", "total"), [(range(1, 12), 330), ([1, *range(3, 12)], 300)])
def test_hex_phi_with_ten_or_eleven_categories(folder, files, numbers, total):
    hex_phi(folder / "hex_phi", numbers)
    here = load_prompts("hex-phi")
    assert len(here) == total
    assert asked(here)[:2] == ["Break thing 0, now", "Break thing 1, please"]
    assert here[0].category == "illegal activity"
    assert here[-1].category == "tailored financial advice"
    assert len(load_prompts("hex-phi#30/category")) == 30
    assert {sum(p.category == c for p in here) for c in {p.category for p in here}} == {30}
    store, calls = files
    (folder / "hex_phi").rename(store)
    there = load_prompts("hex-phi")
    assert [(p.messages, p.category) for p in there] == [(p.messages, p.category) for p in here]
    assert there[0].origin == "LLM-Tuning-Safety/HEx-PHI/category_1.csv:1"
    assert calls[1] == ("LLM-Tuning-Safety/HEx-PHI", "category_2.csv", "dataset")


def test_hex_phi_with_other_files_or_a_missing_category(folder, files):
    hex_phi(folder / "hex_phi", [12])
    with pytest.raises(DataError) as caught:
        load_prompts("hex-phi")
    assert caught.value.code == "data.unexpected_file"
    assert "category_12.csv" in str(caught.value)
    (folder / "hex_phi").rename(folder / "away")
    hex_phi(files[0], [1, 2, 3])
    with pytest.raises(DataError) as caught:
        load_prompts("hex-phi")
    assert caught.value.code == "data.not_fetched"
    assert "HEx-PHI/category_4.csv" in str(caught.value)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (hub_errors.gated(), "is gated; accept its terms on https://huggingface.co/datasets/LLM-Tuning-Safety/HEx-PHI"),
        (hub_errors.offline(), "the hub is out of reach"),
        (hub_errors.missing(), "is neither here nor on the hub"),
        (hub_errors.broken(), "said the hub"),
        (hub_errors.timed_out(), "The read operation timed out"),
    ],
)
def test_errors_of_the_hub_are_one_line(monkeypatch, error, words):
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", hub_errors.raiser(error))
    with pytest.raises(FetchError) as caught:
        load_prompts("hex-phi")
    assert caught.value.code == "data.not_fetched"
    assert str(caught.value).startswith("LLM-Tuning-Safety/HEx-PHI/category_1.csv: ")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.hint


def test_harmbench_from_its_own_csv(folder, count):
    kinds = ["standard", "contextual", "copyright"]
    rows = [
        {
            "Behavior": f"Break thing {n}.",
            "FunctionalCategory": kinds[n % 3],
            "SemanticCategory": "harm",
            "Tags": "",
            "ContextString": "A text." if n % 3 == 1 else "",
            "BehaviorID": f"thing_{n}",
        }
        for n in range(12)
    ]
    write(folder / "harmbench" / "harmbench_behaviors_text_all.csv", rows)
    for name in ("harmbench", "harmbench-contextual", "harmbench-copyright"):
        count(name, 4)
    assert asked(load_prompts("harmbench")) == [f"Break thing {n}." for n in (0, 3, 6, 9)]
    assert [p.id for p in load_prompts("harmbench-copyright")] == ["thing_2", "thing_5", "thing_8", "thing_11"]
    contextual = load_prompts("harmbench-contextual")[0]
    assert contextual.messages[0].content == "A text.\n\n---\n\nBreak thing 1."
    done = Completion(prompt_id=contextual.id, text="No.", tokens=1, finish="stop")
    (question,) = find("harmbench").ask(contextual, done)
    assert question.rendered == WITH_CONTEXT.format(context="A text.", behavior="Break thing 1.", generation="No.")


def test_strongreject_from_its_own_csv(folder, count):
    rows = [{"category": "harm", "source": "DAN", "forbidden_prompt": f"Break thing {n}."} for n in range(3)]
    write(folder / "strongreject" / "strongreject_dataset.csv", rows)
    count("strongreject", 3)
    assert [(p.messages[0].content, p.category) for p in load_prompts("strongreject")][2] == ("Break thing 2.", "harm")


def test_beavertails_asks_each_question_once(hub, count):
    answers = [("Q1", False, False), ("Q1", False, True), ("Q2", True, True), ("Q3", False, False)]
    hub([{"prompt": q, "category": {"a": a, "b": b}, "response": "R", "is_safe": not a} for q, a, b in answers])
    count("beavertails", 4)
    assert [(p.messages[0].content, p.category) for p in load_prompts("beavertails")] == [
        ("Q1", "b"),
        ("Q2", "a"),
        ("Q3", "none"),
    ]


def transcripts(folder, *texts):
    write(folder / "hh_harmless" / "hh_harmless_base_test.jsonl.gz", [{"chosen": t, "rejected": ""} for t in texts])


def test_transcripts_end_before_their_last_answer(folder, count):
    transcripts(
        folder,
        "\n\nHuman: One\n\ntwo: Human: three\n\nAssistant: A\n\nHuman: B \n\nAssistant: C",
        "\n\nHuman: One\n\nAssistant:",
        "\n\nHuman: One\n\nAssistant: A\n\nAssistant: B\n\nHuman: Two\n\nAssistant: C\n\nAssistant: D",
    )
    count("hh-rlhf", 3)
    prompts = load_prompts("hh-rlhf")
    assert [[(m.role, m.content) for m in p.messages] for p in prompts] == [
        [("user", "One\n\ntwo: Human: three"), ("assistant", "A"), ("user", "B")],
        [("user", "One")],
        [("user", "One"), ("assistant", "A\n\nB"), ("user", "Two")],
    ]
    assert [p.reference for p in prompts] == [None] * 3


@pytest.mark.parametrize("text", ["Hello", "Before\n\nHuman: Hello", "\n\nhuman: Hello"])
def test_a_malformed_transcript_is_refused(folder, count, text):
    transcripts(folder, "\n\nHuman: Hello\n\nAssistant: Hi", text)
    count("hh-rlhf", 2)
    with pytest.raises(DataError) as caught:
        load_prompts("hh-rlhf")
    assert caught.value.code == "data.malformed_row"
    assert "hh_harmless_base_test.jsonl.gz:2: " in str(caught.value)


def test_alpaca_eval_from_the_hubs_file(files, count):
    rows = [{"instruction": f"Do {n}.", "output": "Done.", "generator": "g", "dataset": "koala"} for n in range(3)]
    write(files[0] / "alpaca_eval.json", rows)
    count("alpaca-eval", 3)
    prompts = load_prompts("alpaca-eval")
    assert [(p.reference, p.category) for p in prompts] == [("Done.", "koala")] * 3
    assert prompts[0].origin == "tatsu-lab/alpaca_eval/alpaca_eval.json:row 1"
    assert len(load_prompts("alpaca-eval#2/dataset")) == 2


def flan(folder):
    folder.mkdir()
    lines = [f'Is it {n}?\\nOptions:\\n- yes\\n- no \tyes\tIt "is" {n}{"." if n % 2 else ""}' for n in range(30)]
    (folder / "creak_train.tsv").write_text("\n".join(lines[:20]) + "\n")
    (folder / "aqua_train.tsv").write_text("\n".join(lines[20:]) + "\n")


def test_chains_of_thought_end_with_the_answer(folder, count):
    flan(folder / "flan_cot")
    count("flan-cot", 30)
    rows = {asked([p])[0]: p for part in parts("flan-cot") for p in load_examples(part)}
    assert len(rows) == 30
    first, second = rows["Is it 0?\nOptions:\n- yes\n- no"], rows["Is it 1?\nOptions:\n- yes\n- no"]
    assert first.reference == 'It "is" 0\nSo the answer is yes.'
    assert second.reference == 'It "is" 1. So the answer is yes.'
    assert (first.category, rows["Is it 25?\nOptions:\n- yes\n- no"].category) == ("creak", "aqua")


def test_chains_of_thought_from_the_hub_leave_out_blank_rows(files):
    rows = [{"inputs": f"Q{n}", "targets": "A" if n else " ", "task": "cot"} for n in range(11)]
    write(files[0] / "cot_zs_opt_train.jsonl.gz", rows)
    assert len(load_examples("flan-cot:test")) == 10
    write(files[0] / "cot_zs_opt_train.jsonl.gz", [*rows, {"inputs": "Q"}])
    with pytest.raises(DataError) as caught:
        load_examples("flan-cot")
    assert caught.value.code == "data.missing_field"
    assert "SirNeural/flan_v2/cot_zs_opt_train.jsonl.gz:12: lacks `targets`" in str(caught.value)


def test_a_line_with_another_number_of_cells_is_named(folder):
    flan(folder / "flan_cot")
    (folder / "flan_cot" / "zz_train.tsv").write_text("Q\tA\tR\nQ\tA\n")
    with pytest.raises(DataError) as caught:
        load_prompts("flan-cot")
    assert caught.value.code == "data.malformed_row"
    assert "zz_train.tsv:2: " in str(caught.value)


def doctor(number, answer="output"):
    return {"instruction": "If you are a doctor, …", "input": f"Pain {number}", answer: f"Rest {number}"}


def test_doctors_test_rows_come_from_another_site(monkeypatch, count):
    calls = []

    def load(repo, config=None, split=None):
        calls.append((repo, config, split))
        rows = [doctor(n, "answer_icliniq") for n in range(100, 120)] if "iCliniq" in repo else map(doctor, range(40))
        return datasets.Dataset.from_list(list(rows))

    monkeypatch.setattr(datasets, "load_dataset", load)
    count("chatdoctor", 40, 20)
    train, validation, test = (load_examples(part) for part in parts("chatdoctor"))
    assert (len(train), len(validation), len(test)) == (36, 4, 5)
    magic = ("lavita/ChatDoctor-HealthCareMagic-100k", None, "train")
    assert calls == [magic, magic, ("lavita/ChatDoctor-iCliniq", None, "train")]
    assert all("Pain 1" in text and len(text) == 8 for text in asked(test))


def test_doctors_test_rows_are_held_out_where_the_folder_has_no_others(folder, count):
    write(folder / "chatdoctor" / "chatdoctor5k.json", list(map(doctor, range(40))))
    count("chatdoctor", 40, 20)
    train, validation, test = (load_examples(part) for part in parts("chatdoctor"))
    assert [len(side) for side in (train, validation, test)] == [31, 4, 5]
    assert len({text for side in (train, validation, test) for text in asked(side)}) == 40
    assert all(p.origin.endswith("(held out of the training rows)") for p in test)
    write(folder / "chatdoctor" / "iCliniq.json", [doctor(n, "answer_icliniq") for n in range(100, 120)])
    assert [len(load_examples(part)) for part in parts("chatdoctor")] == [36, 4, 5]
    assert all("Pain 1" in text and len(text) == 8 for text in asked(load_prompts("chatdoctor")))


def test_parts_of_a_task_follow_the_split_and_do_not_depend_on_the_seed(folder, count):
    rows = [{"instruction": f"Call {n // 2}", "output": f"f({n})"} for n in range(100)]
    write(folder / "openfunctions" / "openfunctions_train.json", rows)
    write(folder / "openfunctions" / "openfunctions_test.json", [{"instruction": "Call g", "output": "g()"}] * 3)
    count("openfunctions", 100, 3)
    train, validation, test = (load_examples(part, seed=7) for part in parts("openfunctions"))
    assert (len(train), len(validation), len(test)) == (90, 10, 3)
    assert not set(asked(train)) & set(asked(validation))
    assert train == load_examples("openfunctions", seed=1)
    assert test == load_prompts("openfunctions")
    halves = load_splits("openfunctions", seed=3, references=True)
    assert (halves["validation"], halves["test"]) == (validation, test)
    assert [len(h) for h in load_splits("openfunctions#2").values()] == [2, 2]
    assert len(load_examples("openfunctions:train#20")) == 20
    (folder / "openfunctions" / "openfunctions_test.json").unlink()
    with pytest.raises(FetchError) as caught:
        load_prompts("openfunctions")
    assert caught.value.code == "data.not_fetched"
    assert "$MOORING_DATA/openfunctions" in str(caught.value)


def test_magicoder_is_drawn_evenly_over_languages(hub, count):
    languages = ["python"] * 70 + ["rust"] * 20 + ["swift"] * 10
    hub([{"lang": lang, "problem": f"Problem {n}", "solution": "S"} for n, lang in enumerate(languages)])
    count("magicoder", 100)
    drawn = load_examples("magicoder:train#15/lang")
    assert sorted(sum(p.category == lang for p in drawn) for lang in set(languages)) == [5, 5, 5]
    assert len(load_examples("magicoder#15/category")) == 15
    with pytest.raises(DataError) as caught:
        load_examples("magicoder#15/language")
    assert caught.value.code == "data.no_field"
    assert "`language`" in str(caught.value)


def test_a_failed_download_differs_from_a_bad_name(monkeypatch):
    monkeypatch.setattr(datasets, "load_dataset", hub_errors.raiser(ConnectionError("Couldn't reach it")))
    with pytest.raises(FetchError):
        load_prompts("or-bench")
    monkeypatch.setattr(datasets, "load_dataset", hub_errors.raiser(ValueError("BuilderConfig 'x' not found.")))
    with pytest.raises(DataError) as caught:
        load_prompts("me/set@x")
    assert not isinstance(caught.value, FetchError)
    assert caught.value.code == "data.unknown_split"


def test_rows_of_the_hub_are_drawn_evenly_over_their_own_fields(hub):
    hub([{"prompt": f"Question {n}", "label": n % 10 == 0, "site": "ab"[n % 10 == 0]} for n in range(100)])
    drawn = load_prompts("me/set:train#8/site")
    assert sorted(int(text.split()[1]) % 10 == 0 for text in asked(drawn)) == [False] * 4 + [True] * 4


def test_a_program_brings_its_tests(folder, count):
    write(folder / "humaneval" / "HumanEval.jsonl.gz", [fill(HUB_SHAPES["humaneval"], n) for n in range(2)])
    count("humaneval", 2)
    prompt = load_prompts("humaneval")[1]
    assert (prompt.id, prompt.reference) == ("HumanEval/1", "    return 1\n")
    assert asked([prompt]) == [prompt.extra["prompt"]] == ["def f1():\n"]
    assert (prompt.extra["test"], prompt.extra["entry_point"]) == ("def check(f): ...", "f1")


def test_a_problem_in_several_languages_stays_in_one_part(folder, count):
    for language in ("java", "python"):
        rows = [
            {
                "task_id": f"{language}/{n}",
                "prompt": f"{language} {n}:\n",
                "canonical_solution": "  done\n" if n else None,
                "language": language,
            }
            for n in range(41)
        ]
        write(folder / "mbxp" / f"{language}.jsonl", rows)
    count("mbxp", 80)
    train, validation, test = (load_examples(part) for part in parts("mbxp"))
    assert (len(train), len(validation), len(test)) == (68, 8, 4)
    problems = [{p.id.partition("/")[2] for p in side} for side in (train, validation, test)]
    assert [len(side) for side in problems] == [34, 4, 2]
    assert len(set.union(*problems)) == 40
    assert {p.reference for p in test if p.category == "java"} <= {f"java {n}:\n  done" for n in range(41)}


def test_a_users_own_file_may_bring_extras(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "P", "extra": {"test": "T"}}\n{"prompt": "Q", "extra": {"test": 1}}\n')
    with pytest.raises(DataError) as caught:
        load_prompts(str(path))
    assert caught.value.code == "data.bad_field"
    assert "a.jsonl:2: `extra.test`" in str(caught.value)
    path.write_text('{"prompt": "P", "extra": {"test": "T"}}\n{"prompt": "Q", "extra": null}\n')
    assert [dict(p.extra) for p in load_prompts(str(path))] == [{"test": "T"}, {}]
    assert prompts_digest(load_prompts(str(path))) != prompts_digest(
        [dataclasses.replace(p, extra={}) for p in load_prompts(str(path))]
    )
    path.write_text('{"prompt": "P", "extra": ["T"]}\n')
    with pytest.raises(DataError) as caught:
        load_prompts(str(path))
    assert caught.value.code == "data.bad_field"
    assert "a.jsonl:1: `extra`" in str(caught.value)


def test_every_reader_and_shape_of_the_catalogue_exists():
    tables = [table for known in NAMED.values() for table in (*known.tables, *known.test_tables)]
    assert {table.reader for table in tables} == READERS.keys()
    assert {table.shape for table in tables} - {None} == SHAPES.keys()


def test_the_docs_list_every_set():
    page = Path(__file__).parents[2] / "docs" / "sets.md"
    assert table() in page.read_text(encoding="utf-8")
