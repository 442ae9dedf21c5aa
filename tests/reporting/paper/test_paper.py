"""The paper's tables and figures: which runs stand together, what the cells say, and in what form."""

import csv
import dataclasses
import io
import json
import re
import statistics
from pathlib import Path
from typing import Any

import pytest
from report_sample import CURVES

from mooring.errors import DataError, OutputError
from mooring.reporting.paper.runs import Run, as_run, differences
from mooring.reporting.paper.write import write_paper
from mooring.text import csv_cell, latex

from .conftest import MakeRun, found  # type: ignore[import-not-found]


def paper(tmp_path: Path, **options: Any) -> tuple[Path, list[str]]:
    made = write_paper(tmp_path / "runs", tmp_path / "out", **options)
    assert sorted(p.name for p in made.folder.iterdir()) == sorted(made.files)
    return made.folder, list(made.notes)


def table(folder: Path, name: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO((folder / name).read_text())))


def one(rows: list[dict[str, str]], **wanted: str) -> dict[str, str]:
    (found,) = [row for row in rows if all(row[key] == value for key, value in wanted.items())]
    return found


def cells_of(markdown: str) -> list[list[str]]:
    return [[c.strip() for c in line.strip("|").split("|")] for line in markdown.splitlines() if line.startswith("|")]


def test_table_1_holds_base_tuned_and_merged_of_every_task(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("tools")
    make_run("med", task="medical.jsonl", by=0.02)
    folder, notes = paper(tmp_path)
    assert notes == []
    rows = table(folder, "table1.csv")
    assert [(r["task"], r["model"], r["lambda"]) for r in rows[::4]] == [
        (task, model, lam)
        for task in ("bundled:tools", "medical.jsonl")
        for model, lam in (("base", "0"), ("tuned", "1"), ("linear", "0.4"))
    ]
    merged = one(rows, task="medical.jsonl", model="linear", measure="call_match")
    assert float(merged["value"]) == pytest.approx(100 * (CURVES["call_match"][0.4] + 0.01 + 0.02))
    assert float(merged["low"]) < float(merged["value"]) < float(merged["high"])
    asr = one(rows, task="bundled:tools", model="tuned", measure="asr:bundled:harmful")
    assert float(asr["value"]) == pytest.approx(100 * (CURVES["asr"][1.0] + 0.01))
    shown = cells_of((folder / "table1.md").read_text())
    rates = ["ASR, bundled:harmful", "over-refusal (look-alikes)", "refuses ordinary"]
    assert shown[0] == ["task", "model", "λ", "task measure", "task score", *rates, "seeds"]
    assert shown[7][:4] == ["medical.jsonl", "merged (linear)", "0.4", "call match"]
    assert shown[7][4].startswith("64.0 % ")
    # One method and one base: no other tables, and no empty files for them.
    assert not (folder / "table2.md").exists()
    assert not (folder / "table3.tex").exists()


def test_several_seeds_are_mean_and_standard_deviation(make_run: MakeRun, tmp_path: Path) -> None:
    shifts = {42: 0.0, 1024: 0.03, 48763: 0.09}
    for seed, by in shifts.items():
        make_run(f"s{seed}", seed=seed, by=by)
    folder, notes = paper(tmp_path)
    assert notes == []
    values = [100 * (CURVES["asr"][0.4] + 0.01 + by) for by in shifts.values()]
    row = one(table(folder, "table1.csv"), model="linear", measure="asr:bundled:harmful")
    assert float(row["value"]) == pytest.approx(statistics.fmean(values), abs=1e-3)
    assert float(row["sd"]) == pytest.approx(statistics.stdev(values), abs=1e-3)
    assert row["seeds"] == "42, 1024, 48763"
    assert (row["low"], row["high"]) == ("", "")
    cell = cells_of((folder / "table1.md").read_text())[4][5]
    assert cell == f"{statistics.fmean(values):.1f} ± {statistics.stdev(values):.1f} %"
    point = one(table(folder, "figure3.csv"), **{"lambda": "0.6"})
    assert float(point["value"]) == pytest.approx(100 * (CURVES["asr"][0.6] + 0.04), abs=1e-3)


def test_tables_2_and_3_hold_methods_and_other_models(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("linear")
    make_run("slerp", method="slerp", by=0.01)
    make_run("dare", method="dare_linear", merge={"density": 0.5}, by=0.02)
    make_run("gemma", base="google/gemma-2b-it")
    folder, notes = paper(tmp_path)
    assert notes == []
    methods = table(folder, "table2.csv")
    assert [row["model"] for row in methods[::4]] == ["linear", "dare_linear (density 0.5)", "slerp"]
    assert {row["base"] for row in methods} == {"meta-llama/Llama-3.1-8B-Instruct"}
    assert {row["base"] for row in table(folder, "table3.csv")} == {"google/gemma-2b-it"}
    assert cells_of((folder / "table3.md").read_text())[2][0] == "google/gemma-2b-it"
    curves = table(folder, "figure2.csv")
    assert {row["method"] for row in curves} == {"linear", "slerp", "dare_linear (density 0.5)"}
    assert [row["lambda"] for row in curves if row["method"] == "slerp"] == ["0", "0.2", "0.4", "0.6", "0.8", "1"]
    assert [row["lambda"] for row in curves if row["chosen"] == "yes"] == ["0.4"] * 3

    folder, _ = paper(tmp_path, main="google/gemma-2b-it")
    assert {row["base"] for row in table(folder, "table1.csv")} == {"google/gemma-2b-it"}
    assert not (folder / "table2.csv").exists()  # of the call before: it would tell of another base
    with pytest.raises(DataError) as caught:
        paper(tmp_path, main="gpt2")
    assert caught.value.code == "data.unknown_base"


def test_several_safety_sets_have_a_column_each(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run("two", safety=["advbench", "/home/someone/own.jsonl"])
    path = run / "report" / "results.json"
    data = json.loads(path.read_text())
    for trial in data["trials"]:
        for name, shift in (("advbench", 0.0), ("/home/someone/own.jsonl", 0.1)):
            asr = dict(trial["scores"]["asr"])
            for key in ("value", "low", "high"):
                asr[key] = min(1.0, asr[key] + shift)
            trial["scores"][f"asr:{name}"] = asr | {"name": f"asr:{name}"}
    path.write_text(json.dumps(data))
    folder, _ = paper(tmp_path)
    header = cells_of((folder / "table1.md").read_text())[0]
    assert header[5:7] == ["ASR, advbench", "ASR, own.jsonl"]
    assert "someone" not in "".join(p.read_text() for p in folder.iterdir() if p.suffix in (".md", ".tex", ".csv"))
    rows = table(folder, "table1.csv")
    own, bench = (float(one(rows, model="base", measure=f"asr:{s}")["value"]) for s in ("own.jsonl", "advbench"))
    assert own == pytest.approx(bench + 10)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"safety": ["advbench"]}, "score.safety advbench, not bundled:harmful"),
        ({"judges": ("wildguard",)}, "score.judges wildguard, not refusal rules"),
        ({"generate": {"max_tokens": 99}}, "generate.max_tokens 99, not 512"),
        ({"limit": 50}, "score.limit 50, not none"),
    ],
)
def test_a_run_that_does_not_compare_is_kept_out_of_a_mean(
    make_run: MakeRun, tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    make_run("a")
    make_run("b", seed=43)
    make_run("c", seed=44, by=0.3, **changes)
    folder, notes = paper(tmp_path)
    assert notes == [f"c: left out, since it does not compare with a: {said}"]
    assert one(table(folder, "table1.csv"), model="base", measure="call_match")["seeds"] == "42, 43"


def test_a_file_that_has_grown_does_not_compare(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("a")
    path = make_run("b", seed=43) / "report" / "results.json"
    data = json.loads(path.read_text())
    for trial in data["trials"]:
        trial["scores"]["asr"]["n"] = 90
    path.write_text(json.dumps(data))
    _, notes = paper(tmp_path)
    assert notes == ["b: left out, since it does not compare with a: harmful prompts tested 90, not 70"]


ASKED = {"validation": {"safety": "a", "task": "b"}, "test": {"safety": "c", "task": "d"}}
OTHER = {"validation": {"safety": "a", "task": "x"}, "test": {"safety": "y", "task": "d"}}


def test_seeds_of_other_prompts_are_kept_out_of_a_mean(make_run: MakeRun, tmp_path: Path) -> None:
    """All drawn by one seed: then another digest means another file."""
    for name, seed, prompts in (("a", 42, ASKED), ("b", 43, ASKED), ("c", 44, OTHER)):
        path = make_run(name, seed=seed, prompts=prompts) / "report" / "results.json"
        data = json.loads(path.read_text())
        data["recipe"]["tune"]["seed"], data["recipe"]["seed"] = seed, 42
        path.write_text(json.dumps(data))
    folder, notes = paper(tmp_path)
    said = "other prompts (safety test, task validation)"
    assert notes == [f"c: left out, since it does not compare with a: {said}"]
    assert one(table(folder, "table1.csv"), model="base", measure="call_match")["seeds"] == "42, 43"


def test_seeds_that_drew_their_prompts_are_averaged_with_a_note(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("a", prompts=ASKED)
    make_run("b", seed=43, prompts=OTHER)
    folder, notes = paper(tmp_path)
    (note,) = notes
    assert note.startswith("b: drew other prompts than a by its seed (safety test, task validation): mean ±")
    assert one(table(folder, "table1.csv"), model="base", measure="call_match")["seeds"] == "42, 43"


def test_rows_of_other_prompts_are_marked(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("a", prompts=ASKED)
    make_run("b", method="slerp", prompts=OTHER)
    make_run("c", task="c.jsonl", prompts=OTHER)  # of another task: only the requests to refuse matter
    folder, _ = paper(tmp_path)
    said = "does not compare with a: other prompts"
    assert rf"slerp \[a\] {said}".split(" does")[0] in (folder / "table2.md").read_text()
    assert f"{said} (safety test, task validation)" in (folder / "table2.md").read_text()
    assert f"{said} (safety test)" in (folder / "table1.md").read_text()


def test_a_set_at_another_path_counts_by_its_prompts_and_tuning_data_by_their_name() -> None:
    here, there = (as_run("a", found("a", task=f"/{place}/task.jsonl", prompts=ASKED)) for place in ("x", "y"))
    assert differences(here, there) == []
    other = as_run("b", found("b", task="/y/task.jsonl", prompts=OTHER))
    assert differences(here, other) == ["other prompts (task validation, safety test)"]
    assert differences(here, as_run("c", found("c", task="/y/own.jsonl"))) == ["score.task task.jsonl, not own.jsonl"]
    tuned = {**there.results.recipe, "tune": {**there.results.recipe["tune"], "data": ["/y/train.jsonl"]}}
    moved = as_run("d", dataclasses.replace(there.results, recipe=tuned))
    assert differences(here, moved) == ["tune.data train.jsonl in another place"]


def test_speed_does_not_matter(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("a")
    make_run("b", seed=1, generate={"batch_size": 3, "device": "cpu"})
    _, notes = paper(tmp_path)
    assert notes == []


def test_a_budget_counts_only_where_it_is_spent() -> None:
    def chosen(**values: Any) -> Run:
        made = found("a")
        recipe = {**made.recipe, "select": {**made.recipe["select"], **values}}
        return as_run("a", dataclasses.replace(made, recipe=recipe))

    assert differences(chosen(budget=3), chosen(budget=5)) == []
    three, five = (chosen(search="modules", budget=budget) for budget in (3, 5))
    assert differences(three, five) == ["select.budget 3, not 5"]


def test_rows_that_do_not_compare_are_marked(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("a")
    make_run("b", method="slerp", limit=50)
    make_run("c", task="c.jsonl", judges=("wildguard",))
    make_run("d", task="d.jsonl", generate={"task": {"n": 5, "temperature": 0.6}})  # its ASR is measured alike
    make_run("e", base="google/gemma-2b-it", seed=7)
    folder, notes = paper(tmp_path)
    text = (folder / "table1.md").read_text()
    assert r"\[a\] does not compare with a: score.judges wildguard, not refusal rules" in text
    assert [row[1] for row in cells_of(text) if row[0] != "task"][1::3] == ["base", r"base \[a\]", "base"]
    assert r"slerp \[a\]" in (folder / "table2.md").read_text()
    assert "score.limit 50, not none" in (folder / "table2.tex").read_text()
    assert "seeds 7, not 42" in (folder / "table3.md").read_text()
    assert len(notes) == 3
    assert all("\n" not in note for note in notes)


def test_the_same_tuned_model_counts_once(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("a")
    make_run("a-again")
    _, notes = paper(tmp_path)
    assert notes == ["a-again: left out, since a measured the same tuned model by the same rule"]


def test_masks_of_one_tuned_model_are_measurements_of_their_own(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("linear")
    for mask, by in ((1, 0.0), (2, 0.1)):
        make_run(f"mask{mask}", method="dare_linear", merge={"seeds": [mask]}, by=by)
    make_run("again", method="dare_linear", merge={"seeds": [2]}, by=0.1)
    folder, notes = paper(tmp_path)
    assert notes == ["mask2: left out, since again measured the same tuned model by the same rule"]
    row = one(table(folder, "table2.csv"), model="dare_linear", measure="call_match")
    assert row["seeds"] == "masks 1, 2"
    assert float(row["sd"]) > 0


def test_what_cannot_be_read_is_named_in_a_line_and_the_rest_goes_on(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("good")
    half = tmp_path / "runs" / "half"
    half.mkdir()
    (half / "ledger.json").write_text('{"steps": {}}')
    again = make_run("started-again", seed=1)
    (again / "ledger.json").write_text('{"steps": {"report": {"label": "report", "key": "", "done": false}}}')
    for name, change in {
        "old": lambda d: d.update(format=1),
        "text": lambda d: d["trials"][0]["scores"]["asr"].update(value="low"),
        "outside": lambda d: d["trials"][0]["scores"]["asr"].update(value=0.9),
        "counts": lambda d: d["trials"][0]["scores"]["asr"].update(details={"yes": 9, "total": 9, "miss": 0}),
        "no-tuned": lambda d: d.update(trials=[t for t in d["trials"] if t["point"]["lam"] != 1]),
        "no-recipe": lambda d: d.update(recipe={}),
    }.items():
        path = make_run(name, seed=1) / "report" / "results.json"
        data = json.loads(path.read_text())
        change(data)
        path.write_text(json.dumps(data))
    (make_run("cut", seed=1) / "report" / "results.json").write_text("{")
    folder, notes = paper(tmp_path)
    said = {note.partition(":")[0]: note for note in notes}
    assert said.keys() == {
        *("half", "started-again", "old", "text", "outside", "counts", "no-tuned", "no-recipe", "cut"),
    }
    for name, words in {
        "half": "`mooring run runs/half/recipe.yaml` continues it",
        "started-again": "started again",
        "old": "format",
        "text": "value",
        "outside": "lies outside its own interval",
        "counts": "is not what its counts say",
        "no-tuned": "the tuned model has no trial",
        "no-recipe": "its recipe is not one",
        "cut": "not results",
    }.items():
        assert words in said[name]
        assert str(tmp_path) not in said[name]
    assert one(table(folder, "table1.csv"), model="base", measure="call_match")["seeds"] == "42"


def test_no_run_at_all(tmp_path: Path) -> None:
    for code in ("data.not_found", "data.no_finished_run"):
        with pytest.raises(DataError) as caught:
            paper(tmp_path)
        assert caught.value.code == code
        (tmp_path / "runs").mkdir(exist_ok=True)
    assert not (tmp_path / "out").exists()


def test_the_folder_of_a_run_is_not_written_over(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run("a")
    with pytest.raises(OutputError) as caught:
        write_paper(tmp_path / "runs", run / "report")
    assert caught.value.code == "output.not_empty"


def test_published_numbers_stand_beside_the_measured_ones(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("a")
    folder, _ = paper(tmp_path)
    assert "published" not in (folder / "table1.md").read_text()
    template = (folder / "published-template.csv").read_text()
    base = "meta-llama/Llama-3.1-8B-Instruct,bundled:tools"
    assert f"{base},tuned,asr:bundled:harmful,\n" in template
    filled = tmp_path / "filled.csv"
    filled.write_text(template.replace("tuned,asr:bundled:harmful,", "tuned,asr:bundled:harmful,12.3"))
    folder, notes = paper(tmp_path, known=filled)
    assert notes == []
    shown = cells_of((folder / "table1.md").read_text())
    assert shown[0][5:7] == ["ASR, bundled:harmful", "published"]
    assert [row[6] for row in shown[2:]] == ["–", "12.3 %", "–"]
    assert one(table(folder, "table1.csv"), model="tuned", measure="asr:bundled:harmful")["published"] == "12.3"
    assert "tuned,asr:bundled:harmful,12.3" in (folder / "published-template.csv").read_text()
    listed = tmp_path / "filled.yaml"
    entry = "base: meta-llama/Llama-3.1-8B-Instruct\n  task: {}\n  model: linear\n  measure: call_match\n  value: 61"
    listed.write_text(f"- {entry.format('bundled:tools')}\n- {entry.format('elsewhere')}\n")
    folder, notes = paper(tmp_path, known=listed)
    (note,) = notes
    assert "no run has a place for meta-llama/Llama-3.1-8B-Instruct, elsewhere, linear, call_match" in note
    assert r"& 61.0 \% &" in (folder / "table1.tex").read_text()


@pytest.mark.parametrize(
    ("name", "text", "place", "code"),
    [
        ("p.csv", "base,task,model,value\n", "p.csv:1", "data.missing_field"),
        ("p.csv", "base,task,model,measure,value\na,b,c,d,much\n", "p.csv:2", "data.not_a_number"),
        ("p.csv", "base,task,model,measure,value\na,b,c,d,nan\n", "p.csv:2", "data.not_a_number"),
        ("p.csv", "base,task,model,measure,value\na,b,c,d,1\na,b,c,d,2\n", "p.csv:3", "data.duplicate_value"),
        ("p.yaml", "base: a\n", "p.yaml", "data.not_a_list"),
        ("p.yaml", "- [\n", "p.yaml:2", "data.bad_yaml"),
        ("p.yaml", "- {base: a}\n", "p.yaml, entry 1", "data.missing_field"),
        ("p.csv", None, "p.csv", "data.unreadable"),
    ],
)
def test_a_bad_file_of_published_numbers(
    make_run: MakeRun, tmp_path: Path, name: str, text: str | None, place: str, code: str
) -> None:
    make_run("a")
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(DataError) as caught:
        paper(tmp_path, known=tmp_path / name)
    assert caught.value.code == code
    assert caught.value.message.startswith(f"{tmp_path}/{place}: ")
    assert not (tmp_path / "out").exists()


def test_the_same_runs_give_the_same_bytes_and_pictures_are_pictures(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("a")
    make_run("b", method="slerp", by=0.02)
    make_run("c", task="c")
    make_run("d", task="d")
    first = {p.name: p.read_bytes() for p in paper(tmp_path)[0].iterdir()}
    second = {p.name: p.read_bytes() for p in paper(tmp_path)[0].iterdir()}
    assert first == second
    assert first["figure2.png"].startswith(b"\x89PNG")
    drawn = first["figure3.svg"].decode()
    for word in ("linear", "slerp", "bundled:tools", ">c<", ">d<", "attack success rate (%)"):
        assert word in drawn


HOSTILE = "x_{1}&\\input{/etc/passwd}%|<script>[a](b)`~^#$\u202e\x1b[31m"


def test_names_do_nothing_in_any_form(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("a", task=HOSTILE, judges=(HOSTILE,))
    folder, _ = paper(tmp_path)
    tex, md = (folder / "table1.tex").read_text(), (folder / "paper.md").read_text()
    assert r"\input" not in tex
    assert r"\textbackslash{}input\{/etc/passwd\}\%|" in tex
    row = next(line for line in tex.splitlines() if "passwd" in line and "& base &" in line)
    assert len(re.findall(r"(?<!\\)&", row)) == 8
    assert "<script>" not in md
    for text in (tex, md, (folder / "table1.csv").read_text(), (folder / "figure2.svg").read_text()):
        assert "\u202e" not in text
        assert "\x1b" not in text
    assert "<script>" not in (folder / "figure2.svg").read_text()
    assert all(len(row) == 9 for row in cells_of((folder / "table1.md").read_text().replace(r"\|", "")))


def test_latex_and_spreadsheets() -> None:
    assert latex("50 % ± 3 [1, 2]\nλ") == r"50 \% $\pm$ 3 {[}1, 2{]} $\lambda$"
    assert [csv_cell(t) for t in ("=1+1", "@x", "＝1", "＋1", "－x", "＠x", "plain", "1")] == [
        "'=1+1",
        "'@x",
        "'＝1",
        "'＋1",
        "'－x",
        "'＠x",
        "plain",
        "1",
    ]


def test_from_the_command_line(
    make_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from mooring.cli import main

    def call(*args: str) -> tuple[object, str, str]:
        with pytest.raises(SystemExit) as stop:
            main(["paper", *args])
        return (stop.value.code, *capsys.readouterr())

    monkeypatch.chdir(tmp_path)
    code, out, err = call("runs", "--out", "out")
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert "no such folder" in err
    make_run("a")
    (make_run("b") / "report" / "results.json").write_text("{")
    code, out, err = call("runs", "--out", "out")
    assert code in (0, None)
    assert out == "1 run: the tables and figures are in out/paper.md.\n"
    assert err.startswith("mooring: b: left out: report/results.json: not results")
    code, _, err = call("runs/a", "--published", "p.csv")
    assert code == 2
    assert "--out" in err
