"""Run a command and say how long it took and how much memory it held; sum runs up; lay rows out. No torch here.

The process that measures stays small on purpose: on Linux a child's peak begins at what its parent held at the fork.
"""

import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any


@dataclasses.dataclass(frozen=True, slots=True)
class Run:
    """One run of a command.

    Attributes:
        seconds: Wall-clock time: of the whole command, or of the part that it measured itself.
        peak: Peak resident memory, in MiB, of it or of its largest child.
        whole: Wall-clock time of the whole command.
    """

    seconds: float
    peak: float
    whole: float


def run(command: Sequence[str], environment: dict[str, str] | None = None) -> tuple[Run, str]:
    """Run a command to its end; returns what it took and what it printed.

    Raises:
        SystemExit: It failed; its last words are printed.
    """
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        started = time.perf_counter()
        child = subprocess.Popen(command, stdout=out, stderr=err, env={**os.environ, **(environment or {})})
        _, status, usage = os.wait4(child.pid, 0)
        seconds = time.perf_counter() - started
        child.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        if child.returncode:
            err.seek(0)
            sys.exit(f"{' '.join(command)}\nfailed with {child.returncode}:\n{err.read()[-4000:]}")
        return Run(seconds, usage.ru_maxrss / 1024, seconds), out.read()


def run_inside(script: Path, job: dict[str, Any]) -> Run:
    """Run a script that times a part of itself: it gets a job as JSON and prints `seconds` and `peak` as JSON."""
    command, printed = run([sys.executable, str(script), json.dumps(job)])
    return Run(**json.loads(printed.splitlines()[-1]), whole=command.whole)


@dataclasses.dataclass(frozen=True, slots=True)
class Summary:
    """Several runs: the median times with the least and the greatest of `seconds`, and the greatest peak."""

    seconds: float
    least: float
    most: float
    peak: float
    whole: float


def summary(runs: Iterable[Run]) -> Summary:
    """Sum runs up."""
    runs = list(runs)
    times = [each.seconds for each in runs]
    whole = statistics.median(each.whole for each in runs)
    return Summary(statistics.median(times), min(times), max(times), max(each.peak for each in runs), whole)


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows as a Markdown table, the first one its head."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])
