"""A run that measures as the paper does: several sets and judges, a task by name, programs, all on tiny models."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from answering_model import make_answering
from mooring.data import load_prompts

from .conftest import lines, write_data  # type: ignore[import-not-found]

ROLES = {0: "base", 1: "tuned"}
"""What the ends of λ are called."""


def results(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "report" / "results.json").read_text())  # type: ignore[no-any-return]


def write(folder: Path, base: Path, tuned: Path, **score: Any) -> Path:
    document = {
        "name": "measures",
        "out": "run",
        "base": str(base),
        "tuned": str(tuned),
        "merge": {"lambdas": [0.5]},
        "generate": {"max_tokens": 6, "batch_size": 4},
        "select": {"margin": 1.0},
        "score": {"over_refusal": None, "ordinary": "answer.jsonl", **score},
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


@pytest.fixture
def pair(tmp_path: Path, tiny_model_folder: Path, save_tiny_model: Any) -> tuple[Path, Path]:
    """A base and a tuned model, and small sets beside them."""
    write_data(tmp_path)
    return tiny_model_folder, save_tiny_model(tmp_path / "tuned-model", seed=1)


@pytest.fixture
def judge(tmp_path: Path, save_tiny_model: Any) -> Path:
    """A random model with room for a judge's question."""
    return save_tiny_model(tmp_path / "judge", seed=2, max_position_embeddings=2048)  # type: ignore[no-any-return]


@pytest.fixture
def guard(judge: Path) -> Path:
    """A model that calls every answer safe, as Llama Guard does."""
    return make_answering(judge, "safe")


@pytest.mark.slow
def test_two_judges_two_sets_and_a_task_with_its_own_validation(
    command: Any, tmp_path: Path, pair: tuple[Path, Path], guard: Path
) -> None:
    base, tuned = pair
    lines(tmp_path / "more.jsonl", [{"prompt": f"Harm thing {i}.", "category": "things"} for i in range(6)])
    lines(
        tmp_path / "held.jsonl",
        [{"prompt": f"Wake me at {i}.", "completion": f"alarm.set(hour={i})"} for i in range(100, 110)],
    )
    recipe = write(
        tmp_path,
        base,
        tuned,
        safety=["refuse.jsonl", "more.jsonl"],
        judges=["rules", {"name": "llama-guard-3", "model": str(guard), "batch_size": 8}],
        task="task.jsonl",
        validation_task="held.jsonl",
        validation_metrics=["response_loss"],
        metrics=["call_match", "bert_score"],
        bertscore_model="bundled:minilm",
        limit=6,
    )
    told = "These sets are made up."
    recipe.write_text(recipe.read_text() + f"report: {{notes: {told}}}\n", encoding="utf-8")
    done = command("run", recipe)
    assert done.returncode == 0, done.stderr
    found = results(tmp_path / "run")
    assert found["choice"]["metric"] == "response_loss"
    tests = {ROLES.get(t["point"]["lam"], "merged"): t["scores"] for t in found["trials"] if t["split"] == "test"}
    validation = [t["scores"] for t in found["trials"] if t["split"] == "validation"]
    assert all("response_loss" in scores and "call_match" not in scores for scores in validation)
    sets = {"asr:refuse.jsonl", "asr:more.jsonl"}
    judged = {"asr", "refusal", "ordinary_refusal", *sets}
    for scores in tests.values():
        by_guard = {f"{name}@llama-guard-3" for name in ("asr", *sets)}
        assert set(scores) == judged | by_guard | {"incoherent", "call_match", "bert_score"}
        assert scores["asr"]["n"] == scores["asr:refuse.jsonl"]["n"] + scores["asr:more.jsonl"]["n"]
        assert (scores["asr@llama-guard-3"]["value"], scores["asr@llama-guard-3"]["details"]["miss"]) == (0.0, 0)
        assert "all-MiniLM" in scores["bert_score"]["method"] or "minilm" in scores["bert_score"]["method"]
    assert told in found["notes"]
    assert [(a["measure"], a["judges"], a["n"]) for a in found["agreement"]] == [
        ("asr", ["rules", "llama-guard-3"], sum(scores["asr"]["n"] for scores in tests.values())),
    ]
    categories = {row["category"] for row in found["rows"] if row["measure"] == "asr"}
    assert categories == {"refuse.jsonl", "more.jsonl: things"}
    raw = (
        (tmp_path / "run" / "completions" / "lam-0" / "verdicts-safety-test-llama-guard-3.jsonl")
        .read_text()
        .splitlines()
    )
    assert all(json.loads(line)["raw"] for line in raw)
    page = (tmp_path / "run" / "report" / "index.html").read_text()
    assert "Agreement of the judges" in page

    again = command("run", recipe)
    assert again.returncode == 0, again.stderr
    assert "nothing was left to do" in again.stdout


@pytest.mark.slow
def test_another_judge_on_existing_responses_generates_nothing(
    command: Any, tmp_path: Path, pair: tuple[Path, Path], guard: Path
) -> None:
    base, tuned = pair
    recipe = write(tmp_path, base, tuned, safety="refuse.jsonl")
    assert command("run", recipe).returncode == 0
    run = tmp_path / "run"
    before = {p: p.read_bytes() for p in run.rglob("*.jsonl")}
    report = (run / "report" / "results.json").read_bytes()
    shutil.rmtree(run / "model")  # no model is asked, so none is needed but the judge's
    shutil.rmtree(tuned)
    done = command("rejudge", run, "--judges", "llama-guard-3,rules", "--judge-model", guard, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert {(r["point"]["lam"], r["split"], r["judge"]) for r in found if r["name"] == "safety"} == {
        (lam, split, judge)
        for lam in (0.0, 0.5, 1.0)
        for split in ("validation", "test")
        for judge in ("llama-guard-3", "rules")
    }
    assert {path: path.read_bytes() for path in before} == before
    assert (run / "report" / "results.json").read_bytes() == report
    (llama,) = run.glob("rejudged/llama-guard-3-*")
    kept = {path: path.stat().st_mtime_ns for path in llama.rglob("answers-*.jsonl")}
    assert (llama / "lam-0.5" / "verdicts-safety-test-llama-guard-3.jsonl").is_file()
    again = command("rejudge", run, "--judges", "llama-guard-3,rules", "--judge-model", guard, "--json")
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout) == found
    assert {path: path.stat().st_mtime_ns for path in llama.rglob("answers-*.jsonl")} == kept  # nobody was asked again
    shown = command("rejudge", run, "--judges", "rules")
    assert shown.returncode == 0, shown.stderr
    assert "the run's choice and report stay as they are" in shown.stdout


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed: apt install bubblewrap")
def test_programs_are_run_and_counted(command: Any, tmp_path: Path, pair: tuple[Path, Path]) -> None:
    base, tuned = pair
    rows = [
        {
            "prompt": f"def add{i}(a, b):\n    '''Add.'''\n",
            "completion": "    return a + b\n",
            "extra": {
                "prompt": f"def add{i}(a, b):\n    '''Add.'''\n",
                "entry_point": f"add{i}",
                "test": f"def check(candidate):\n    assert candidate(1, {i}) == 1 + {i}\n",
            },
        }
        for i in range(4)
    ]
    lines(tmp_path / "code.jsonl", rows)
    document = yaml.safe_load(
        write(tmp_path, base, tuned, safety="refuse.jsonl", task="code.jsonl", metrics=["pass@2", "pass@1"]).read_text()
    )
    document["generate"] |= {"task": {"temperature": 1.0, "n": 3}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(document))
    done = command("run", tmp_path / "recipe.yaml")
    assert done.returncode == 0, done.stderr
    tests = {
        ROLES.get(t["point"]["lam"], "merged"): t["scores"]
        for t in results(tmp_path / "run")["trials"]
        if t["split"] == "test"
    }
    for scores in tests.values():
        assert scores["pass@2"]["value"] == 0.0  # random words are no program
        assert scores["pass@2"]["details"]["samples"] == 6
    right = tmp_path / "right.jsonl"
    lines(
        right,
        [
            {"prompt_id": p["prompt_id"], "text": "    return a + b\n", "tokens": 5, "finish": "stop", "sample": s}
            for p in map(json.loads, (tmp_path / "run/completions/lam-0/task-test.jsonl").read_text().splitlines())
            for s in [p["sample"]]
        ],
    )
    wanted = {json.loads(line)["prompt_id"] for line in right.read_text().splitlines()}
    asked = [row for row in _with_ids(tmp_path / "code.jsonl") if row["id"] in wanted]
    lines(tmp_path / "asked.jsonl", asked)
    scored = command("score", right, "asked.jsonl", "--kind", "task", "--metrics", "pass@1,pass@2", "--json")
    assert scored.returncode == 0, scored.stderr
    assert {name: s["value"] for name, s in json.loads(scored.stdout).items()} == {"pass@1": 1.0, "pass@2": 1.0}


def _with_ids(path: Path) -> list[dict[str, Any]]:
    """The rows of a file with the ids that they get."""

    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [{**row, "id": prompt.id} for row, prompt in zip(rows, load_prompts(str(path)), strict=True)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("score", "message"),
    [
        ({"judges": ["wildgard"]}, "did you mean wildguard?"),
        ({"judges": ["llm"]}, "llm has no model of its own"),
        ({"judges": [{"name": "llm", "model": "./nowhere"}]}, "nowhere: no such folder"),
        ({"task": "task.jsonl", "metrics": ["pass@5"]}, "pass@5 needs 5 samples"),
        ({"lm_eval": ["no_such_task"]}, "no_such_task"),
        ({"task": "task.jsonl", "validation_task": "task.jsonl"}, "of its prompts are in score.task too"),
    ],
)
def test_a_measure_that_cannot_work_is_refused_before_any_work(
    command: Any, tmp_path: Path, pair: tuple[Path, Path], score: dict[str, Any], message: str
) -> None:
    done = command("run", write(tmp_path, *pair, safety="refuse.jsonl", **score))
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_answers_are_compared_in_pairs_by_a_judge_model(
    command: Any, tmp_path: Path, pair: tuple[Path, Path], judge: Path
) -> None:
    """A random judge answers nothing readable: every pair is a miss, and no rate is made up."""
    lines(tmp_path / "ask.jsonl", [{"instruction": f"Write about thing {i}."} for i in range(3)])
    for name, model in zip(("base", "tuned"), pair, strict=True):
        made = command("generate", model, "ask.jsonl", "--max-tokens", 4, "--out", f"{name}.jsonl")
        assert made.returncode == 0, made.stderr
    done = command("prefer", "tuned.jsonl", "base.jsonl", "ask.jsonl", "--judge", judge, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["win_rate"]
    assert (found["value"], found["n"], found["details"]["miss"]) == (None, 3, 3)
    kept = [json.loads(line) for line in (tmp_path / "preferred-tuned-to-base.jsonl").read_text().splitlines()]
    assert sorted(row["prompt_id"][-3:] for row in kept) == ["/ab"] * 3 + ["/ba"] * 3


def answers(path: Path, prompts: str, text: str) -> Path:
    """The same answer to every prompt of a set."""

    asked = load_prompts(prompts)
    return lines(path, [{"prompt_id": p.id, "text": text, "tokens": 1, "finish": "stop"} for p in asked])  # type: ignore[no-any-return]


def test_a_paid_judge_of_pairs_reports_its_cost_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from mooring.cli import main
    from scripted_engine import ScriptedEngine

    lines(tmp_path / "ask.jsonl", [{"prompt": f"Write about thing {i}."} for i in range(3)])
    monkeypatch.chdir(tmp_path)
    for name in ("mine", "other"):
        answers(tmp_path / f"{name}.jsonl", "ask.jsonl", name)
    asked_before: list[str] = []

    def judge(_: Any) -> str:
        asked_before.append(capsys.readouterr().err)
        return "A"

    monkeypatch.setattr("mooring.pipeline.responses.load_engine", lambda *_, **__: ScriptedEngine(judge))
    command = ["prefer", "mine.jsonl", "other.jsonl", "ask.jsonl", "--judge", "gpt-x"]
    server = ["--engine", "openai", "--base-url", "http://127.0.0.1:9/v1"]
    with pytest.raises(SystemExit) as stop:
        main([*command, *server, "--price-in", "1000000", "--price-out", "1000000"])
    assert not stop.value.code
    assert "mooring: gpt-x: 6 requests, about " in asked_before[0]  # before the first question
    assert " tokens in and at most 48 out: $" in asked_before[0]


def test_a_set_is_scored_as_what_it_is_for(command: Any, tmp_path: Path) -> None:
    refusals = answers(tmp_path / "a.jsonl", "bundled:lookalikes", "I'm sorry, but I can't help with that.")
    plain = command("score", refusals, "bundled:lookalikes", "--json")
    assert plain.returncode == 0, plain.stderr
    assert plain.stderr == ""
    assert json.loads(plain.stdout)["over_refusal"]["value"] == 1.0
    odd = command("score", refusals, "bundled:lookalikes", "--kind", "safety", "--json")
    assert odd.returncode == 0, odd.stderr
    assert json.loads(odd.stdout)["asr"]["value"] == 0.0
    assert odd.stderr.startswith("mooring: warning: bundled:lookalikes has no harmful requests")
    assert odd.stderr.count("\n") == 1
    harmful = answers(tmp_path / "b.jsonl", "bundled:harmful", "I can't help with that.")
    assert "asr" in json.loads(command("score", harmful, "bundled:harmful", "--kind", "safety", "--json").stdout)


def test_names_in_the_table_are_not_shortened(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from mooring.cli import render
    from mooring.records import Score

    monkeypatch.setenv("COLUMNS", "60")
    names = ["asr:a [set] with a long name of its own", "pass@1"]
    score = Score(
        name="s", value=0.25, low=None, high=None, n=1, better="higher", method="by a method of many words and more",
        details={"passed": 1, "failed": 2, "timed_out": 3},
    )  # fmt: skip
    render.scores(dict.fromkeys(names, score), as_json=False)
    out = capsys.readouterr().out
    assert "…" not in out
    assert all(f"{name} " in out for name in names)
    assert out.count("25.0 %") == 2
    assert "timed_out" in out


def test_asr_by_category_and_several_samples(command: Any, tmp_path: Path, tiny_model_folder: Path) -> None:
    rows = [{"prompt": f"Break thing {i}.", "category": "ab"[i % 2], "id": str(i)} for i in range(4)]
    lines(tmp_path / "ask.jsonl", rows)
    made = command(
        "generate", tiny_model_folder, "ask.jsonl", "--max-tokens", 3, "--n", 2, "--temperature", 1,
        "--top-k", 20, "--out", "answers.jsonl",
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    assert "8 completions" in made.stdout
    done = command("score", "answers.jsonl", "ask.jsonl", "--json")
    assert done.returncode == 0, done.stderr
    scores = json.loads(done.stdout)
    assert {name: s["n"] for name, s in scores.items()} == {
        "asr": 8,
        "refusal": 8,
        "asr:a": 4,
        "asr:b": 4,
        "incoherent": 8,
    }
    assert (tmp_path / "verdicts-answers-classifier.jsonl").read_text().count("\n") == 8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("score", "a.jsonl"), "Missing argument 'PROMPTS'"),
        (("rejudge", "runs/x", "advbench"), "Got unexpected extra argument (advbench)"),
        (("score", "a.jsonl", "advbench", "--tuned", "t"), "No such option '--tuned'"),
        (("lm-eval", "base", "t", "--tasks", "bbh"), "t: there is no λ to merge it with"),
        (("lm-eval", "base", "--lam", "0.5", "--tasks", "bbh"), "λ is given, but no tuned model"),
        (("lm-eval", "base"), "Missing option '--tasks'"),
        (("rejudge", "nothing"), "nothing: is not a run folder"),
        (("prefer", "a.jsonl", "b.jsonl", "c.jsonl"), "Missing option '--judge'"),
        (("score", "a.jsonl", "b.jsonl", "--engine", "openai"), "`engine: openai` and `base_url` go together"),
        (("score", "a.jsonl", "b.jsonl", "--base-url", "http://x"), "`engine: openai` and `base_url` go together"),
        (("lm-eval", "base", "--tasks", "bbh", "--num-fewshot", "-1"), "few-shot: -1 is too few"),
        (("lm-eval", "base", "--tasks", "bbh", "--engine", "vllm"), "No such option '--engine'"),
    ],
)
def test_bad_usage_is_refused_in_a_line(command: Any, arguments: tuple[str, ...], message: str) -> None:
    done = command(*arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
