"""A small whole job: a tiny random model, little data, a recipe. Real commands on real files."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

Command = Any
"""`command(*args) -> CompletedProcess` runs `python -m mooring`."""


def environment() -> dict[str, str]:
    """The environment of a command: offline, one thread, so that tests do not fight for the cores."""
    return os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "COLUMNS": "120"}


@pytest.fixture
def command(tmp_path: Path) -> Command:
    """Run the command line in an empty folder."""

    def run(*args: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "mooring", *map(str, args)],
            cwd=tmp_path,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=300,
        )

    return run


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


@pytest.fixture
def write_recipe(tmp_path: Path, tiny_model_folder: Path) -> Any:
    """`write_recipe(**changes) -> Path` writes the data and the recipe into the command's folder."""

    def write(**changes: Any) -> Path:
        write_data(tmp_path)
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(recipe(tiny_model_folder, **changes)))
        return path

    return write
