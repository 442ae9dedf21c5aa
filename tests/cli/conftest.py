"""Run commands in this process, and a pair of tiny models."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mooring.cli import main

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """`run(*args) -> (exit code, stdout, stderr)` runs a command in an empty folder, in this process."""
    monkeypatch.chdir(tmp_path)

    def call(*args: object) -> tuple[int, str, str]:
        capsys.readouterr()  # what fixtures printed
        with pytest.raises(SystemExit) as stop:
            main([str(arg) for arg in args])
        captured = capsys.readouterr()
        return int(stop.value.code or 0), captured.out, captured.err

    return call


def check_refused(run: Run, code: str, *args: object, names: str = "") -> None:
    """Check that a command exits with 2, and prints this code as JSON and one line that contains `names`."""
    status, out, err = run(*args, "--json")
    assert status == 2, err
    assert err.startswith("mooring: ")
    assert err.count("\n") == 1
    assert json.loads(out)["error"]["code"] == code, err
    assert names in err


@pytest.fixture
def tuned(tmp_path_factory: pytest.TempPathFactory, save_tiny_model: Any) -> Path:
    """A checkpoint like the base, with other weights."""
    return save_tiny_model(tmp_path_factory.mktemp("pair") / "tuned", seed=1)  # type: ignore[no-any-return]


def write_task(folder: Path, text: str | None = None) -> Path:
    """A small task file."""
    rows = [{"prompt": f"Set the alarm to {i}.", "completion": f"alarm.set(hour={i})"} for i in range(6)]
    path = folder / "task.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) if text is None else text)
    return path
