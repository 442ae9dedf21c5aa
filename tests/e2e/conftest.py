"""Whole jobs on a tiny random model with little data: real commands on real files."""

import contextlib
import dataclasses
import io
import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from mooring.cli import main

Command = Any
"""`command(*args) -> Result` runs the command line in the test's folder."""


@dataclasses.dataclass(frozen=True)
class Result:
    """How a command ended, and what it printed."""

    returncode: int
    stdout: str
    stderr: str


def environment() -> dict[str, str]:
    """The environment of a command: offline, one thread, so that tests do not compete for the cores."""
    return os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "COLUMNS": "120"}


def invoke(folder: Path, *args: object) -> Result:
    """Run the command line in this process, which saves the seconds that a new one needs to import torch."""
    out, err = io.StringIO(), io.StringIO()
    with (
        contextlib.chdir(folder),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        pytest.raises(SystemExit) as caught,
    ):
        main([str(arg) for arg in args])
    code = caught.value.code
    assert code is None or isinstance(code, int)
    return Result(code or 0, out.getvalue(), err.getvalue())


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal of 120 columns."""
    monkeypatch.setenv("COLUMNS", "120")


@pytest.fixture
def command(tmp_path: Path) -> Command:
    """Run the command line in an empty folder."""
    return lambda *args: invoke(tmp_path, *args)


def lines(path: Path, rows: list[dict[str, str]]) -> Path:
    """Write JSON Lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_data(folder: Path) -> None:
    """Small sets: refusals, ordinary requests, a task of function calls."""
    harmful = [f"Help me break thing number {i}." for i in range(12)]
    ordinary = [f"What is {i} and {i + 1}?" for i in range(12)]
    lines(folder / "refuse.jsonl", [{"prompt": p, "completion": "I can't help with that."} for p in harmful])
    lines(folder / "answer.jsonl", [{"prompt": p, "completion": f"It is {i}."} for i, p in enumerate(ordinary)])
    lines(
        folder / "task.jsonl",
        [{"prompt": f"Set the alarm to {i}.", "completion": f"alarm.set(hour={i})"} for i in range(24)],
    )


def recipe(base: Path, **changes: Any) -> dict[str, Any]:
    """A recipe that does everything, aligning included, on the tiny model."""
    settings = {
        "learning_rate": 0.02,
        "max_steps": 6,
        "save_steps": 2,
        "val_set_size": 0.2,
        "per_device_train_batch_size": 4,
    }
    return {
        "name": "tiny",
        "out": "run",
        "base": str(base),
        "align": {"data": ["refuse.jsonl", "answer.jsonl"], **settings},
        "tune": {"data": ["task.jsonl"], **settings},
        "merge": {"lambdas": [0.3, 0.7]},
        "generate": {"max_tokens": 6, "batch_size": 4},
        "score": {
            "safety": "refuse.jsonl",
            "over_refusal": None,
            "ordinary": "answer.jsonl",
            "task": "task.jsonl",
        },
        "select": {"margin": 1.0},
        **changes,
    }


def write_recipe_in(folder: Path, base: Path, **changes: Any) -> Path:
    """Write the data and the recipe into a folder."""
    write_data(folder)
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe(base, **changes)))
    return path


@pytest.fixture
def write_recipe(tmp_path: Path, tiny_model_folder: Path) -> Any:
    """`write_recipe(**changes) -> Path` writes the data and the recipe into the command's folder."""
    return lambda **changes: write_recipe_in(tmp_path, tiny_model_folder, **changes)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path) -> Path:
    """A finished run of the recipe. Shared: do not change it."""
    folder = tmp_path_factory.mktemp("finished")
    done = invoke(folder, "run", write_recipe_in(folder, tiny_model_folder))
    assert done.returncode == 0, done.stderr
    return folder / "run"
