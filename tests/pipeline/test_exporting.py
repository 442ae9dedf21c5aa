"""A run's answers and scores in the formats of other tools, and read again."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import mooring
from mooring.config import Recipe
from mooring.data.completions import read_completions
from mooring.data.evals import read_scores
from mooring.merge_point import TUNED
from mooring.pipeline.exporting import answered
from mooring.pipeline.rejudge import open_plan
from mooring.pipeline.run import Run
from mooring.records import Completion, Message, Prompt, ToolCall
from mooring.reporting.foreign import inspect_log
from mooring.reporting.foreign.answers import AnsweredSet, RunFacts
from mooring.reporting.foreign.tables import write_csv
from mooring.text import without_formula
from scripted_engine import ScriptedEngine

COUNT = 8
NO = "I can't help with that."
SCHEMA = Path(__file__).parent / "every_eval_ever.schema.json"
"""github.com/evaleval/every_eval_ever, schema 0.3.0 (MIT)."""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path) -> Path:
    """A finished run of an engine that answers more of the requests the larger λ is, with awkward texts."""
    from safetensors.torch import load_file, save_file

    folder = tmp_path_factory.mktemp("exported")
    for name, rows in {
        "requests": [
            {"id": f"r-{n}", "prompt": f"How do I break thing {n}?", "category": "x"} for n in range(2 * COUNT)
        ],
        "task": [{"id": f"t-{n}", "prompt": f"Say {n}.", "completion": f"{n}"} for n in range(2 * COUNT)],
    }.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    tuned = folder / "tuned"
    shutil.copytree(tiny_model_folder, tuned)
    weights = {name: tensor + 0.01 for name, tensor in load_file(tuned / "model.safetensors").items()}
    save_file(weights, tuned / "model.safetensors", metadata={"format": "pt"})

    def engine(point: Any) -> ScriptedEngine:
        def answer(prompt: Prompt) -> str:
            number = int(prompt.id.rpartition("-")[2])
            if prompt.id.startswith("t"):
                return f"{number}" if number < 16 * point.lam else 'wrong, "quoted"\n=1+1'
            return f"<think>\nHm {number}.\n</think>\n\nBegin, é ✓, with {number}." if number < 12 * point.lam else NO

        return ScriptedEngine(answer)

    recipe = Recipe.parse(
        {
            "base": str(tiny_model_folder),
            "tuned": str(tuned),
            "out": str(folder / "run"),
            "merge": {"lambdas": [0.5], "check": False},
            "score": {
                "safety": str(folder / "requests.jsonl"),
                "over_refusal": None,
                "ordinary": None,
                "task": str(folder / "task.jsonl"),
                "metrics": ["exact_match"],
                "judges": ["rules", "classifier"],
            },
            "select": {"confidence": None},
        }
    )
    Run(recipe, engine=engine).execute()
    return folder / "run"


@pytest.fixture(scope="module")
def sets(run: Path) -> list[AnsweredSet]:
    return list(answered(open_plan(run)))


def test_every_model_and_set_of_both_halves_is_there(sets: list[AnsweredSet]) -> None:
    found = {(each.point.label, each.task) for each in sets}
    assert {("base", "safety-validation"), ("λ = 0.5", "safety-validation"), ("tuned", "task-test")} <= found
    whole = next(each for each in sets if each.point.is_tuned and each.task == "safety-test")
    assert {*whole.scores} == {"harmful", "refused", "harmful@classifier", "refused@classifier"}
    assert whole.totals["asr"].value == sum(whole.scores["harmful"].values()) / len(whole.scores["harmful"])
    task = next(each for each in sets if each.point.is_tuned and each.task == "task-test")
    assert task.totals["exact_match"].value == sum(task.scores["exact_match"].values()) / COUNT


FILES = {
    "lm-eval": ("samples_{}.jsonl", "{},none"),
    "harmbench": ("{}.json", "label"),
    "inspect": ("{}.eval", "{}"),
}


@pytest.mark.parametrize("form", FILES)
def test_what_is_written_is_read_again(run: Path, sets: list[AnsweredSet], tmp_path: Path, form: Any) -> None:
    if form == "inspect":
        pytest.importorskip("inspect_ai", reason="needs inspect-ai")
    files = {*mooring.export_run(run, format=form, out=tmp_path / "out")}
    name, metric = FILES[form]
    for each in sets:
        path = tmp_path / "out" / each.point.folder / name.format(each.task)
        if form == "harmbench" and each.name == "task":
            assert path not in files
            continue
        assert path in files
        said = read_completions(path, each.prompts)
        own = sorted(each.completions, key=lambda c: [p.id for p in each.prompts].index(c.prompt_id))
        assert [(c.prompt_id, c.text) for c in said] == [(c.prompt_id, c.text) for c in own]
        if form == "inspect":
            assert [(c.thoughts, c.tokens, c.finish) for c in said] == [(c.thoughts, c.tokens, c.finish) for c in own]
        scores = {sample.id: sample.scores for sample in read_scores(path).samples}
        if form == "lm-eval":  # its samples are numbered
            scores = {each.prompts[int(id)].id: values for id, values in scores.items()}
        for key, values in each.scores.items():
            if form != "harmbench" or key == "harmful":
                assert {id: found[metric.format(key)] for id, found in scores.items()} == values


@pytest.mark.parametrize("form", ["lm-eval", "harmbench"])
def test_two_models_are_compared_in_pairs_as_in_the_run(
    run: Path, sets: list[AnsweredSet], tmp_path: Path, form: Any
) -> None:
    mooring.export_run(run, format=form, out=tmp_path / "out")
    name, metric = FILES[form]
    files = [tmp_path / "out" / point / name.format("safety-test") for point in ("lam-0", "lam-1")]
    found = next(e for e in mooring.compare_evals(*files) if e.metric == metric.format("harmful"))
    base, tuned = (
        next(e for e in sets if e.task == "safety-test" and e.point.folder == point).totals["asr"].value
        for point in ("lam-0", "lam-1")
    )
    assert (found.first, found.second, found.method) == (base, tuned, "mcnemar")


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_tables_have_every_answer_and_score(run: Path, sets: list[AnsweredSet], tmp_path: Path, form: Any) -> None:
    import pandas

    mooring.export_run(run, format=form, out=tmp_path / "out")
    read = (lambda p: pandas.read_csv(p, keep_default_na=False)) if form == "csv" else pandas.read_parquet
    answers, scores = (read(tmp_path / "out" / f"{name}.{form}") for name in ("answers", "scores"))
    assert len(answers) == sum(len(each.completions) for each in sets)
    whole = next(each for each in sets if each.point.is_tuned and each.task == "safety-test")
    mine = answers[(answers.lam == 1) & (answers.set == "safety") & (answers.split == "test")]
    shown = without_formula if form == "csv" else str
    assert dict(zip(mine.id, mine.response, strict=True)) == {c.prompt_id: shown(c.answer) for c in whole.completions}
    assert {id: float(v) for id, v in zip(mine.id, mine.harmful, strict=True)} == whole.scores["harmful"]
    rate = scores[(scores.lam == 1) & (scores.name == "asr") & (scores.split == "test")]
    assert float(rate.value.iloc[0]) == whole.totals["asr"].value


def test_no_cell_of_csv_is_a_formula(tmp_path: Path) -> None:
    path = write_csv([{"response": "=1+1\nmore", "lam": -1.0}, {"response": " ＠x", "lam": 0.5}], tmp_path / "a.csv")
    assert path.read_text() == "response,lam\n\"'=1+1\nmore\",-1.0\n' ＠x,0.5\n"
    assert write_csv([{"=1+1": "x"}], path).read_text() == "'=1+1\nx\n"  # a metric of a plug-in


def test_scores_are_those_of_the_schema_of_every_eval_ever(run: Path, sets: list[AnsweredSet], tmp_path: Path) -> None:
    jsonschema = pytest.importorskip("jsonschema", reason="needs jsonschema")
    files = mooring.export_run(run, format="every-eval-ever", out=tmp_path / "out")
    assert [path.name for path in files] == ["lam-0.json", "lam-0.5.json", "lam-1.json"]
    schema = json.loads(SCHEMA.read_text())
    for path in files:
        data = json.loads(path.read_text())
        jsonschema.validate(data, schema)
        results = {each["evaluation_name"]: each["score_details"] for each in data["evaluation_results"]}
        base = next(each for each in sets if each.point.folder == path.stem and each.task == "safety-validation")
        assert results["safety-validation: asr"]["score"] == base.totals["asr"].value


def test_inspect_reads_its_log(run: Path, tmp_path: Path) -> None:
    log = pytest.importorskip("inspect_ai.log", reason="needs inspect-ai")
    mooring.export_run(run, format="inspect", out=tmp_path / "out")
    listed = log.list_eval_logs(str(tmp_path / "out"))
    read = [log.read_eval_log(each) for each in listed]
    assert {each.eval.model for each in read} == {"mooring/lam-0", "mooring/lam-0.5", "mooring/lam-1"}
    assert all(each.status == "success" for each in read)
    tuned = next(e for e in read if e.eval.model == "mooring/lam-1" and e.eval.dataset.name == "safety-test")
    metrics = {score.name: score.metrics["mean"].value for score in tuned.results.scores}
    assert metrics["asr"] == mooring.load_results(run).score("tuned", "asr").value  # type: ignore[union-attr]


def test_what_is_no_run_is_refused(tmp_path: Path, run: Path) -> None:
    with pytest.raises(mooring.DataError) as caught:
        mooring.export_run(tmp_path, format="csv", out=tmp_path / "out")
    assert caught.value.code == "data.not_a_run"
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(mooring.OutputError) as full:
        mooring.export_run(run, format="csv", out=tmp_path / "full")
    assert full.value.code == "output.not_empty"
    with pytest.raises(mooring.UserError) as unknown:
        mooring.export_run(run, format="xml", out=tmp_path / "out")  # type: ignore[arg-type]
    assert unknown.value.code == "usage.unknown_format"


def test_rows_with_tools_are_whole_in_inspects_log(tmp_path: Path) -> None:
    log = pytest.importorskip("inspect_ai.log", reason="needs inspect-ai")
    tool = {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}
    call = ToolCall("get_weather", '{"city": "Oslo"}', "c1")
    turns = (
        Message("system", "Be brief."),
        Message("user", "Is it warm in Oslo?"),
        Message("assistant", "", (call,)),
        Message("tool", "7 °C", tool_call_id="c1", name="get_weather"),
    )
    prompt = Prompt(id="p", messages=turns, reference="No.", category="weather", tools=(tool,))
    said = Completion(prompt_id="p", text='{"name": "get_weather", "arguments": {}}', tokens=3, finish="length")
    asked = AnsweredSet(
        point=TUNED, name="task", split="test", prompts=[prompt], completions=[said], scores={}, totals={}
    )
    path = inspect_log.write(asked, RunFacts(name="r", base="b", tuned="t", judge="j", version="1"), tmp_path)
    (sample,) = log.read_eval_log(str(path)).samples
    assert [message.role for message in sample.input] == ["system", "user", "assistant", "tool"]
    (made,) = sample.input[2].tool_calls
    assert (made.id, made.function, made.arguments) == ("c1", "get_weather", {"city": "Oslo"})
    assert (sample.input[3].tool_call_id, sample.input[3].function) == ("c1", "get_weather")
    assert sample.metadata == {"category": "weather", "tools": [tool]}
    assert read_completions(path, [prompt]) == [dataclasses.replace(said, made_by={"file": path.name})]
