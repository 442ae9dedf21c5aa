"""The server of a run's page: its progress while it is at work, the report when it is done."""

import contextlib
import fcntl
import os
from collections import Counter
from pathlib import Path

from mooring.bounded import open_regular
from mooring.errors import DataError, UserError
from mooring.jsonio import read_text
from mooring.ledger import LEDGER, Ledger, read_ledger
from mooring.pipeline.loopback import LoopbackServer
from mooring.pipeline.plan import Plan
from mooring.pipeline.progress import duration
from mooring.pipeline.rejudge import open_plan
from mooring.pipeline.results import title_of
from mooring.pipeline.steps import Step
from mooring.records import Trial, read_record
from mooring.reporting import figures
from mooring.reporting.live_page import LiveState, StageState, as_html


class RunServer(LoopbackServer):
    """Serves the page of a run folder. It reads the folder alone, and changes nothing in it.

    Args:
        folder: A run folder.
        host: An address of this machine's loopback interface.
        port: A port; 0 takes a free one.

    Raises:
        DataError: It is not a run folder, or its data sets are gone.
        UserError: `host` is not a loopback address (`usage.not_loopback`).
        OutputError: The port is in use, or may not be used (`output.port`).
    """

    def __init__(self, folder: Path, *, host: str = "127.0.0.1", port: int = 0) -> None:
        if not (folder / LEDGER).is_file():
            raise DataError(f"{folder}: is not a run folder", "start the run first", code="data.not_a_run")
        self._folder = folder
        self._plan: tuple[int, Plan] | None = None
        if not self._finished(read_ledger(folder)):
            self._open_plan()
        super().__init__(self._page, host=host, port=port)

    def _page(self) -> str:
        ledger = read_ledger(self._folder)
        if self._finished(ledger):
            return read_text(self._folder / "report" / "index.html")
        plan = self._open_plan()
        names = ["asr", *plan.metrics["validation"][:1]]
        drawing = figures.over_lambda(_trials(plan), names)
        return as_html(_state(plan, ledger), title=title_of(plan.recipe), figure=drawing)

    def _finished(self, ledger: Ledger) -> bool:
        """Whether the run is done, and not at work again."""
        done = ledger.finished and ledger.unfinished is None
        return done and not _is_locked(self._folder) and (self._folder / "report" / "index.html").is_file()

    def _open_plan(self) -> Plan:
        """The plan, read again when the recipe or a choice has changed."""
        paths = [self._folder / name for name in ("recipe.yaml", "choice.json", "search.json", "by_module.json")]
        stamp = hash(tuple(path.stat().st_mtime_ns if path.is_file() else 0 for path in paths))
        if self._plan is None or self._plan[0] != stamp:
            self._plan = (stamp, open_plan(self._folder))
        return self._plan[1]


def _is_locked(folder: Path) -> bool:
    """Whether a process is at work in a run folder."""
    try:
        with (folder / ".lock").open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _trials(plan: Plan) -> list[Trial]:
    """The scores on validation that there are."""
    found = []
    for path in sorted(plan.paths.folder.glob("completions/*/trial-validation.json")):
        try:
            found.append(read_record(path, Trial))
        except UserError:
            continue  # half of another version of the run; the run itself will say so
    return found


def _state(plan: Plan, ledger: Ledger) -> LiveState:
    steps, records = plan.steps, ledger.steps
    done = {id for id in steps if id in records and records[id].done}
    current = next((step for id, step in steps.items() if id in records and not records[id].done), None)
    stages, times = Counter(map(_stage, steps)), Counter[str]()
    finished = Counter(map(_stage, done))
    for id in done:
        times[_stage(id)] += round(records[id].seconds)
    at_work = _is_locked(plan.paths.folder)
    return LiveState(
        sentence="The run is at work." if at_work else "The run is not at work: start it again, and it continues.",
        done=len(done),
        steps=len(steps),
        current=current.label if current else "",
        units=_units(current) if current else 0,
        total=(current.units or 0) if current else 0,
        unit=current.unit if current else "",
        stages=[
            StageState(name, finished[name], count, duration(times[name]) if times[name] else "")
            for name, count in stages.items()
        ],
    )


def _stage(id: str) -> str:
    return id.partition("/")[0].replace("_", " ")


def _units(step: Step) -> int:
    """How many responses a step has written so far."""
    found = 0
    for path in step.outputs:
        part = path.with_name(f"{path.name}.part")
        with contextlib.suppress(OSError), os.fdopen(open_regular(part), "rb") as stream:
            lines = sum(chunk.count(b"\n") for chunk in iter(lambda: stream.read(2**20), b""))
            found += max(0, lines - 1)  # its first line is about the others
    return found
