"""Exit codes by real processes, and errors as JSON."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from mooring.cli import main

from .conftest import Run  # type: ignore[import-not-found]

CRASH = (
    "import sys\nimport mooring\n"
    "def broken(*args, **options):\n    raise ZeroDivisionError('a bug')\n"
    "mooring.{verb} = broken\n"
    "from mooring.cli import main\nmain(sys.argv[1:])\n"
)


def process(folder: Path, *args: object, code: str = "") -> "subprocess.CompletedProcess[str]":
    start = [sys.executable, "-c", code] if code else [sys.executable, "-m", "mooring"]
    return subprocess.run([*start, *map(str, args)], cwd=folder, env=os.environ, capture_output=True, text=True)


def test_success_is_0(tmp_path: Path) -> None:
    assert process(tmp_path, "--version").returncode == 0


@pytest.mark.parametrize("verb", ["report", "select", "verify"])
def test_a_crash_is_1_and_keeps_its_traceback(tmp_path: Path, verb: str) -> None:
    done = process(tmp_path, verb, "x", code=CRASH.format(verb=verb))
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "ZeroDivisionError: a bug" in done.stderr
    done = process(tmp_path, verb, "x", "--json", code=CRASH.format(verb=verb))
    assert done.returncode == 1
    assert json.loads(done.stdout)["error"]["code"] == "internal.error"


def test_bad_input_and_usage_are_2_in_one_line(tmp_path: Path) -> None:
    for args in (("report", "none"), ("merge", "--nonsense"), ("no-such-verb",), ("tune", "b", "d")):
        done = process(tmp_path, *args)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith("mooring: ")
        assert done.stderr.count("\n") == 1


def test_an_interrupt_is_130(tmp_path: Path) -> None:
    code = CRASH.format(verb="report").replace("ZeroDivisionError('a bug')", "KeyboardInterrupt")
    assert process(tmp_path, "report", "x", code=code).returncode == 130


@pytest.mark.parametrize(
    ("args", "code"),
    [
        (("verify", "none", "--json"), "model."),
        (("select", "none", "--json"), "data."),
        (("select", "none", "--margin", "2", "--json"), ""),
        (("merge", "a", "b", "--json"), "usage.invalid"),
    ],
)
def test_errors_are_json_with_json(run: Run, args: tuple[str, ...], code: str) -> None:
    status, out, err = run(*args)
    assert status == 2
    error = json.loads(out)["error"]
    assert error.keys() == {"code", "message", "hint"}
    assert error["code"].startswith(code)
    assert err.startswith("mooring: ")


def test_set_overrides_any_field_and_the_last_one_counts(run: Run, tmp_path: Path, monkeypatch: Any) -> None:
    import mooring

    seen: list[Any] = []
    monkeypatch.setattr(mooring, "plan", lambda recipe: _stop(seen, recipe))
    (tmp_path / "r.yaml").write_text(yaml.safe_dump({"base": "b", "tuned": "t"}))
    for args, margin in (
        (("--margin", "0.2", "--set", "select.margin=0.3"), 0.3),
        (("--set", "select.margin=0.3", "--margin", "0.2"), 0.2),
        (("--set", "select.margin=0.3", "--margin", "0.2", "--set", "select.margin=0.4"), 0.4),
    ):
        for verb in (("run", "r.yaml"), ("safeguard", "b", "t", "--out", "o")):
            with pytest.raises(StopError):
                main([*verb, *args, "--dry-run"])
            assert seen[-1].select.margin == margin
    with pytest.raises(StopError):
        main(["quickstart", "--set", "merge.lambdas=[0.5]", "--set", "generate.safety.max_tokens=3", "--dry-run"])
    assert (seen[-1].merge.lambdas, seen[-1].generate.safety.max_tokens) == ((0.5,), 3)


class StopError(BaseException):
    """Ends a command once its recipe is known."""


def _stop(seen: list[Any], recipe: Any) -> None:
    seen.append(recipe)
    raise StopError


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("select.margn=0.1", "recipe.unknown_key"),
        ("select.margin=9", "recipe.bad_value"),
        ("select.margin", "recipe.bad_override"),
        ("select.margin=[", "recipe.bad_override"),
    ],
)
def test_a_bad_set_names_its_key(run: Run, tmp_path: Path, text: str, code: str) -> None:
    (tmp_path / "r.yaml").write_text(yaml.safe_dump({"base": "b", "tuned": "t"}))
    status, out, err = run("run", "r.yaml", "--set", text, "--dry-run", "--json")
    assert status == 2
    assert json.loads(out)["error"]["code"] == code
    assert text.partition("=")[0] in err


def test_the_installed_command_leaves_the_shutdown_to_the_interpreter(tmp_path: Path) -> None:
    code = (
        "import threading\nfrom importlib.metadata import entry_points\n"
        "(command,) = entry_points(group='console_scripts', name='mooring')\nmain = command.load()\n"
        "threading.Thread(target=lambda: threading.main_thread().join() or print('thread')).start()\n"
        "try:\n    main()\nfinally:\n    print('finally')\n"
    )
    done = process(tmp_path, "--version", code=code)
    assert done.returncode == 0
    assert done.stdout.split()[-2:] == ["finally", "thread"]
