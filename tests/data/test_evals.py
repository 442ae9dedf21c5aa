"""Scores in files of other tools, and two of these compared in pairs."""

import itertools
import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

import mooring
from mooring.data.completions import read_completions
from mooring.data.evals import read_scores
from mooring.records import Message, Prompt
from mooring.stats import mcnemar, paired_permutation, tango

FIRST = [1, 1, 0, 0, 1, 0, 1, 0]
SECOND = [1, 0, 1, 1, 1, 1, 1, 0]


def lines(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def whole(path: Path, value: Any) -> Path:
    path.write_text(json.dumps(value))
    return path


def inspect_log(path: Path, scores: list[int], epochs: int = 1) -> Path:
    samples = [
        {"id": f"q{n}", "epoch": e, "input": f"Question {n}", "scores": {"match": {"value": "C" if hit else "I"}}}
        for n, hit in enumerate(scores)
        for e in range(1, epochs + 1)
    ]
    return whole(path, {"version": 2, "eval": {}, "samples": samples})


def lm_eval(path: Path, scores: list[int]) -> Path:
    rows = [
        {"doc_id": n, "doc": {}, "doc_hash": f"h{n}", "filter": name, "metrics": ["exact_match"], "exact_match": value}
        for name, values in (("strict-match", scores), ("flexible-extract", [1] * len(scores)))
        for n, value in enumerate(values)
    ]
    return lines(path, rows)


def harmbench(path: Path, scores: list[int]) -> Path:
    answers = {f"b{n}": [{"test_case": "x", "generation": "y", "label": hit}] for n, hit in enumerate(scores)}
    return whole(path, answers)


def jailbreakbench(path: Path, scores: list[int]) -> Path:
    rows = [{"index": n, "goal": f"g{n}", "response": "y", "jailbroken": bool(hit)} for n, hit in enumerate(scores)]
    return whole(path, {"parameters": {"judge": "x"}, "jailbreaks": rows})


def strong_reject(path: Path, scores: list[int]) -> Path:
    rows = "".join(f"request {n},answer,{hit}\n" for n, hit in enumerate(scores))
    path.write_text("forbidden_prompt,response,score\n" + rows)
    return path


def verdicts(path: Path, scores: list[int]) -> Path:
    return lines(path, [{"prompt_id": f"p{n}", "harmful": bool(hit), "raw": "x"} for n, hit in enumerate(scores)])


FORMS = {
    "match": (inspect_log, "json"),
    "exact_match,strict-match": (lm_eval, "jsonl"),
    "label": (harmbench, "json"),
    "jailbroken": (jailbreakbench, "json"),
    "score": (strong_reject, "csv"),
    "harmful": (verdicts, "jsonl"),
}


@pytest.mark.parametrize("metric", FORMS)
def test_right_and_wrong_answers_are_compared_by_mcnemar(tmp_path: Path, metric: str) -> None:
    write, suffix = FORMS[metric]
    files = write(tmp_path / f"a.{suffix}", FIRST), write(tmp_path / f"b.{suffix}", SECOND)
    found = {each.metric: each for each in mooring.compare_evals(*files)}[metric]
    assert (found.first, found.second, found.n, found.method) == (4 / 8, 6 / 8, 8, "mcnemar")
    assert (found.only_first, found.only_second) == (1, 3)
    assert found.difference == 2 / 8
    assert (found.low, found.high) == tango(3, 1, 8)
    assert found.p == mcnemar(3, 1)


def test_epochs_are_averaged_and_samples_counted(tmp_path: Path) -> None:
    once = mooring.compare_evals(inspect_log(tmp_path / "a.json", FIRST), inspect_log(tmp_path / "b.json", SECOND))[0]
    files = inspect_log(tmp_path / "a5.json", FIRST, epochs=5), inspect_log(tmp_path / "b2.json", SECOND, epochs=2)
    found = mooring.compare_evals(*files)[0]
    assert (found.n, found.answers, found.method) == (8, (40, 16), "permutation")
    assert found.difference == once.difference
    assert found.p == pytest.approx(
        once.p
    )  # five times the same answer is no more evidence: 4 flips of samples either way


def test_the_permutation_test_counts_all_ways() -> None:
    first, second = [0.1, 0.5, 0.3, 0.9, 0.2, 0.4], [0.6, 0.4, 0.9, 1.0, 0.2, 0.7]
    moved = [b - a for a, b in zip(first, second, strict=True)]
    sums = [sum(s * d for s, d in zip(signs, moved, strict=True)) for signs in itertools.product((1, -1), repeat=6)]
    expected = sum(abs(each) >= sum(moved) - 1e-9 for each in sums) / len(sums)
    assert paired_permutation(first, second) == pytest.approx(expected)
    assert paired_permutation(second, first) == pytest.approx(expected)
    assert paired_permutation(first, first) == 1.0
    many = [0.0, 0.5] * 20, [0.5, 0.75] * 20
    assert paired_permutation(*many) == paired_permutation(*many) < 0.001


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda samples: samples[:-1], "data.unpaired"),
        (lambda samples: [*samples[:-1], {**samples[-1], "scores": {}}], "data.unpaired"),
        (lambda samples: [*samples[:-1], {**samples[-1], "input": "Another question"}], "data.unpaired"),
        (lambda samples: [{**each, "scores": {"other": {"value": 1}}} for each in samples], "data.no_scores"),
        (lambda samples: [{**each, "scores": {}} for each in samples], "data.no_scores"),
    ],
)
def test_files_that_do_not_match_are_refused(tmp_path: Path, change: Any, code: str) -> None:
    first, second = inspect_log(tmp_path / "a.json", FIRST), inspect_log(tmp_path / "b.json", SECOND)
    log = json.loads(second.read_text())
    whole(second, {**log, "samples": change(log["samples"])})
    with pytest.raises(mooring.DataError) as caught:
        mooring.compare_evals(first, second)
    assert caught.value.code == code
    assert "a.json" in str(caught.value) or "b.json" in str(caught.value)


def test_common_samples_can_be_compared_alone(tmp_path: Path) -> None:
    files = inspect_log(tmp_path / "a.json", FIRST), inspect_log(tmp_path / "b.json", SECOND[:6])
    found = mooring.compare_evals(*files, common=True)[0]
    assert (found.n, found.left_out) == (6, 2)


def test_another_field_is_named(tmp_path: Path) -> None:
    rows = [{"id": n, "rating": n / 7} for n in range(8)]
    files = lines(tmp_path / "a.jsonl", rows), lines(tmp_path / "b.jsonl", [{**r, "rating": 0} for r in rows])
    found = mooring.compare_evals(*files, metrics=["rating"])[0]
    assert found.difference == pytest.approx(-0.5)
    with pytest.raises(mooring.DataError, match="--metric"):
        mooring.compare_evals(*files)


def test_the_command_prints_a_table_or_json(tmp_path: Path) -> None:
    files = [str(inspect_log(tmp_path / name, s)) for name, s in (("a.json", FIRST), ("b.json", SECOND))]
    command = [sys.executable, "-m", "mooring", "compare-evals", *files]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "50.0 %" in shown
    assert "+25.0" in shown
    told = json.loads(subprocess.run([*command, "--json"], capture_output=True, text=True, check=True).stdout)
    assert told[0]["metric"] == "match"


def test_logs_that_inspect_wrote(tmp_path: Path) -> None:
    log = pytest.importorskip("inspect_ai.log", reason="needs inspect-ai")
    from inspect_ai.model import ModelOutput
    from inspect_ai.scorer import Score

    samples = [
        log.EvalSample(
            id=f"q{n}",
            epoch=1,
            input=f"Question {n} " + "and more " * 40,
            target="x",
            output=ModelOutput.from_content("m", f"Answer {n}"),
            scores={"match": Score(value="C" if hit else "I"), "parts": Score(value={"a": n, "b": True})},
        )
        for n, hit in enumerate(FIRST)
    ]
    spec = log.EvalSpec(
        created="2026-01-01T00:00:00+00:00",
        task="t",
        dataset=log.EvalDataset(),
        model="m",
        config=log.EvalConfig(),
    )
    prompts = [Prompt(id=f"q{n}", messages=(Message("user", s.input),)) for n, s in enumerate(samples)]
    for suffix in ("eval", "json"):
        path = tmp_path / f"log.{suffix}"
        log.write_eval_log(log.EvalLog(eval=spec, status="success", samples=samples), str(path))
        if suffix == "eval":
            with zipfile.ZipFile(path) as archive:
                assert {each.compress_type for each in archive.infolist()} == {93}  # Zstandard
        found = read_scores(path)
        assert found.metrics == ("match", "parts/a", "parts/b")
        by_id = {sample.id: sample for sample in found.samples}
        assert [by_id[f"q{n}"].scores["match"] for n in range(8)] == FIRST
        assert by_id["q3"].asked == samples[3].input
        assert [c.text for c in read_completions(path, prompts)] == [f"Answer {n}" for n in range(8)]


@pytest.mark.slow
def test_samples_that_lm_eval_wrote(tmp_path: Path) -> None:
    lm_eval = pytest.importorskip("lm_eval", reason="needs lm-eval")
    from lm_eval.loggers import EvaluationTracker
    from lm_eval.tasks import TaskManager

    rows = [{"question": f"What is {n} + {n}?", "answer": str(2 * n)} for n in range(6)]
    lines(tmp_path / "rows.jsonl", rows)
    task = {
        "task": "sums",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "rows.jsonl")}},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{answer}}",
        "generation_kwargs": {"until": ["\n"]},
        "metric_list": [{"metric": "exact_match"}],
    }
    (tmp_path / "tasks").mkdir()
    whole(tmp_path / "tasks" / "sums.yaml", task)  # JSON is YAML
    manager = TaskManager(include_path=str(tmp_path / "tasks"), include_defaults=False)
    results = lm_eval.simple_evaluate(model="dummy", tasks=["sums"], task_manager=manager, log_samples=True)
    files = []
    for name in "ab":
        tracker = EvaluationTracker(output_path=str(tmp_path / name))
        tracker.general_config_tracker.model_name_sanitized = "dummy"
        tracker.save_results_aggregated(results=results, samples=results["samples"])
        tracker.save_results_samples("sums", results["samples"]["sums"])
        files += (tmp_path / name).rglob("samples_*.jsonl")
    found = mooring.compare_evals(*files)
    assert [(each.metric, each.n, each.difference) for each in found] == [("exact_match,none", 6, 0.0)]
    prompts = [Prompt(id=str(n), messages=(Message("user", row["question"]),)) for n, row in enumerate(rows)]
    answers = [sample["resps"][0][0] for sample in results["samples"]["sums"]]
    assert [c.text for c in read_completions(files[0], prompts)] == answers
