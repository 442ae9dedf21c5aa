"""`mooring run`: a whole run, a run that is stopped and resumed, and a run of a changed recipe."""

import contextlib
import json
import multiprocessing
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from mooring.cli import main

from .conftest import environment  # type: ignore[import-not-found]

KILLS = 10


def results(folder: Path) -> bytes:
    """The bytes of a run's results."""
    return (folder / "report" / "results.json").read_bytes()


def steps_done(folder: Path) -> int:
    """How many steps of a run are done."""
    ledger = folder / "ledger.json"
    return sum(step["done"] for step in json.loads(ledger.read_text())["steps"].values()) if ledger.is_file() else 0


def started(path: Path) -> "subprocess.Popen[str]":
    """Start a run of a recipe in its own process."""
    return subprocess.Popen(
        [sys.executable, "-m", "mooring", "run", str(path)],
        cwd=path.parent,
        env=environment() | {"PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_a_run_then_the_same_run_again_then_a_changed_recipe(command: Any, write_recipe: Any, tmp_path: Path) -> None:
    path = write_recipe()
    planned = command("run", path, "--dry-run")
    assert planned.returncode == 0, planned.stderr
    for word in ("align", "tune", "linear at λ = 0.3, 0.7", "task", "disk", "memory", "not started"):
        assert word in planned.stdout
    assert not (tmp_path / "run").exists()

    first = command("run", path)
    assert first.returncode == 0, first.stderr
    run = tmp_path / "run"
    for name in ("index.html", "report.md", "results.json", "tradeoff.png", "tradeoff.svg"):
        assert (run / "report" / name).stat().st_size > 0
    assert "run/report/index.html" in first.stdout
    assert json.loads((run / "choice.json").read_text())["reason"] in first.stdout.replace("\n", " ")
    assert not (run / "scratch").exists() or not any((run / "scratch").iterdir())
    before = results(run)
    stamps = {p: p.stat().st_mtime_ns for p in run.rglob("*") if p.is_file() and p.parent.name != "run"}

    second = command("run", path)
    assert second.returncode == 0, second.stderr
    assert "finished: nothing was left to do" in second.stdout
    assert "✓" not in second.stderr
    assert {p: p.stat().st_mtime_ns for p in stamps} == stamps

    write_recipe(merge={"lambdas": [0.3, 0.5, 0.7]})
    third = command("run", path)
    assert third.returncode == 0, third.stderr
    assert "✓ λ = 0.5: generate safety (validation)" in third.stderr
    assert "✓ tune" not in third.stderr
    assert "✓ λ = 0.3: generate" not in third.stderr
    assert results(run) != before


@pytest.mark.slow
def test_the_chosen_model_loads_in_transformers(finished: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, info = AutoModelForCausalLM.from_pretrained(finished / "model", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    tokenizer = AutoTokenizer.from_pretrained(finished / "model")
    assert tokenizer.chat_template
    assert (finished / "model" / "generation_config.json").is_file()
    assert model.config.vocab_size == len(tokenizer)


@pytest.mark.slow
def test_no_lambda_within_the_bound_exits_with_3(command: Any, finished: Path, tmp_path: Path) -> None:
    results = json.loads((finished / "report" / "results.json").read_text())
    for trial in results["trials"]:  # as if the base refused everything and no merged model did
        value = 0.0 if trial["point"]["lam"] == 0 else 1.0
        trial["scores"]["asr"] |= {"value": value, "low": value, "high": value, "details": {}}
    path = tmp_path / "copy" / "report" / "results.json"  # without its run, which has other digests
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(results))
    over = command("select", "copy", "--margin", "0.5")
    assert over.returncode == 3
    assert "No λ tried" in over.stdout
    assert command("select", finished, "--margin", "1").returncode == 0


@pytest.mark.slow
def test_a_run_that_is_killed_ten_times_ends_with_the_same_results(
    command: Any, write_recipe: Any, tmp_path: Path
) -> None:
    """The runs are forked from a process that has imported all libraries, so that most kills hit their work."""
    fork = multiprocessing.get_context("forkserver")
    fork.set_forkserver_preload(["mooring.pipeline.run", "mooring.pipeline.sweeps.transformers", "peft", "trl"])
    grid = {"lambdas": [0.1, 0.3, 0.5, 0.7, 0.9]}
    whole = command("run", write_recipe(out="whole", merge=grid))
    assert whole.returncode == 0, whole.stderr
    path = write_recipe(out="killed", merge=grid)
    killed, moments, steps = tmp_path / "killed", random.Random(20241219), steps_done(tmp_path / "whole")
    for number in range(KILLS):
        process = fork.Process(target=main, args=(["run", str(path)],))
        with contextlib.chdir(tmp_path):
            process.start()
        # Up to a share of the steps, so that the last kill is near the end; then somewhere in the next step.
        target = steps * number / (KILLS + 3) + moments.choice((0, 1, 2))
        while process.is_alive() and steps_done(killed) < target:
            time.sleep(0.01)
        time.sleep(moments.uniform(0, 0.1))
        assert process.is_alive(), f"the run ended after {number} kills"
        process.kill()
        process.join()
    last = command("run", path)
    assert last.returncode == 0, last.stderr
    assert "done before" in last.stderr
    assert results(killed) == results(tmp_path / "whole")
    assert not list(killed.rglob(".partial-*"))
    assert not list(killed.rglob("*.part"))


@pytest.mark.slow
def test_ctrl_c_stops_in_one_line_and_the_same_command_resumes(command: Any, write_recipe: Any, tmp_path: Path) -> None:
    path = write_recipe()
    with started(path) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stderr.readline()  # the first step is done, the second at work
        process.send_signal(signal.SIGINT)
        process.stdout.read()
        said = process.stderr.read()
    assert process.returncode == 130
    assert said.strip().splitlines()[-1] == "mooring: stopped; the same command continues from here"
    last = command("run", path)
    assert last.returncode == 0, last.stderr
    assert "done before" in last.stderr
