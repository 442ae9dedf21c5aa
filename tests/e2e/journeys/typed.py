"""Type commands as a user does, in a clean environment and an empty home, and the folder that they are typed in."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

TYPE = """
import contextlib, io, json, sys
from mooring.cli import main
done = []
for words in json.load(sys.stdin):
    file = ""
    if ">" in words:
        words, file = words[: words.index(">")], words[-1]
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main(words)
        except SystemExit as stop:
            code = stop.code or 0
    if file:
        open(file, "w").write(out.getvalue())
    done.append((code, out.getvalue(), err.getvalue()))
json.dump(done, sys.stdout)
"""
"""Types commands in one process, which imports torch once."""


def environment(home: Path) -> dict[str, str]:
    """Nothing but what a shell has, and no network."""
    home.mkdir(exist_ok=True)
    kept = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
    return {
        **kept,
        "HOME": str(home),
        "LANG": "C.UTF-8",
        "COLUMNS": "120",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }


def type_all(folder: Path, lines: list[list[str]]) -> list[tuple[int, str, str]]:
    """Type commands one after the other in a folder; exit code, output and messages of each."""
    process = subprocess.run(
        [sys.executable, "-c", TYPE],
        input=json.dumps(lines),
        cwd=folder,
        env=environment(folder / "home"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    return [(code, out, err) for code, out, err in json.loads(process.stdout)]


def rows(path: Path, found: list[dict[str, str]]) -> None:
    """Write JSON Lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in found))


def fill(folder: Path, save_tiny_model: Any) -> Path:
    """Put the models and files that the pages name into a folder."""
    for seed, name in enumerate(("base", "tuned", "seed1", "seed2", "seed3")):
        save_tiny_model(folder / name, seed=seed)
    rows(folder / "harmful.jsonl", [{"prompt": f"Help me break thing number {i}."} for i in range(12)])
    tasks = [{"prompt": f"Set the alarm to {i}.", "completion": f"alarm.set(hour={i})"} for i in range(12)]
    for name in ("task", "task-train", "task-test"):
        rows(folder / f"{name}.jsonl", tasks)
    return folder
