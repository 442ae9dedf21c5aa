"""The run folder: its lock, its ledger, and the rule that what is done is not done twice."""

import contextlib
import dataclasses
import errno
import fcntl
import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from mooring.errors import DataError, OutputError, UserError
from mooring.events import Event, OnEvent, ignore
from mooring.files import PARTIAL, atomic_text, expanded, explained, open_lock
from mooring.ledger import (
    LEDGER,
    MODIFIED,
    Ledger,
    Measured,
    StepRecord,
    as_plain,
    modified_record,
    read_ledger,
    sha256,
)
from mooring.pipeline.mirror import LOCK, MARK, Mirror
from mooring.pipeline.paths import RunPaths
from mooring.pipeline.steps import Step, digest_of

_RECORDS = (".json", ".jsonl")
"""Suffixes of the files that other steps read: the ledger keeps their digests."""
_LOG = "loss.json"
"""The record in a folder that tuning wrote."""


def check_place(folder: Path, models: Iterable[str]) -> None:
    """Check that a run folder can be made, or continued, where a recipe names it; makes nothing.

    Args:
        folder: The run folder.
        models: The models that the recipe names; those that are folders must not hold the run folder.

    Raises:
        OutputError: It holds something else, lies in a model's folder, or may not be written.
    """
    with explained(folder):
        RunFolder(folder)
        for model in models:
            source = expanded(model)
            if source.is_dir() and folder.resolve().is_relative_to(source.resolve()):
                problem = f"{folder}: lies in the folder of the model {model}, which a run leaves as it is"
                raise OutputError(problem, "name a folder outside of it (out, --out)", code="output.in_model")
        there = folder.absolute()
        while not there.exists():
            there = there.parent
        if not there.is_dir():
            raise OutputError(f"{there}: is a file", f"name a folder other than {folder}", code="output.is_a_file")
        if not os.access(there, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(there))


class RunFolder:
    """A run folder and its ledger.

    It is created when it is locked; if it exists, it must be empty or a run folder. `worked` tells whether any step had
    to be done since the folder was opened. Steps can be done in several threads at the same time.

    Args:
        folder: The folder.
        on_event: Receives every event.
        mirror: Its copy in a storage. While the folder is locked, the copy is kept up to date; if it is newer, the
            folder continues from it.
    """

    def __init__(self, folder: Path, on_event: OnEvent | None = None, mirror: Mirror | None = None) -> None:
        self.paths = RunPaths(folder)
        self.folder = folder
        self._lock = threading.RLock()
        self._on_event: OnEvent = on_event or ignore
        self._mirror = mirror
        self.worked = False
        if folder.is_file():
            raise OutputError(f"{folder}: is a file", "name a folder", code="output.is_a_file")
        known = Ledger(steps={})
        if (folder / LEDGER).is_file():
            known = read_ledger(folder)
        elif folder.is_dir() and any(path.name not in (LOCK, MARK) for path in folder.iterdir()):
            raise OutputError(
                f"{folder}: holds something that is not a run",
                "name another folder, or empty this one",
                code="output.not_a_run",
            )
        self._steps, self._digests = dict(known.steps), dict(known.digests)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the folder for this process, and remove what a killed process left half-written."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with open_lock(self.folder / LOCK) as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise OutputError(
                    f"{self.folder}: is locked by another run", "wait for it to end", code="output.locked"
                ) from None
            for leftover in self.folder.rglob(f"{PARTIAL}*"):
                remove(leftover)
            with self._mirrored():
                self._save()
                yield

    @contextlib.contextmanager
    def _mirrored(self) -> Iterator[None]:
        """Continue from the copy in the storage, if there is one, and keep it up to date."""
        mirror = self._mirror
        if mirror is None:
            yield
            return
        if mirror.begin():
            known = read_ledger(self.folder)
            self._steps, self._digests = dict(known.steps), dict(known.digests)
            self._report(Event(step="storage", kind="info", message=f"continues from {mirror.url}"))
        try:
            yield
        except BaseException:
            with contextlib.suppress(UserError):  # the first error says more
                self._end(mirror)
            raise
        self._end(mirror)

    def _end(self, mirror: Mirror) -> None:
        """Bring the copy up to date for the last time; of a run that was refused there is none."""
        if self.worked or not self.is_untouched:
            mirror.finish()
            self._report(Event(step="storage", kind="info", message=f"the run is copied to {mirror.url}"))

    def is_done(self, step: Step, key: str) -> bool:
        """Returns whether a step was done with this key and its outputs still exist."""
        record = self._steps.get(step.id)
        if record is None or record.key != key or not record.done or not all(p.exists() for p in step.outputs):
            return False
        if name := modified_record(self.folder, record):
            path = self.folder / name
            output = next((each for each in step.outputs if path.is_relative_to(each)), path)
            whole = "it" if output == path else output
            raise DataError(
                f"{path}: {MODIFIED}", f"restore it, or delete {whole} to make it again", code="data.modified"
            )
        return True

    def once(self, step: Step, key: str, make: Callable[[], object]) -> None:
        """Do a step, unless it is done.

        Outputs that were made with another key are removed first. `make` writes the outputs; if it is stopped, what it
        left is still there when it is called again.
        """
        if self.is_done(step, key):
            self.emit(Event(step=step.id, kind="cached", label=step.label))
            return
        if step.id not in self._steps or self._steps[step.id].key != key:
            for path in step.outputs:
                for stale in (path, path.with_name(f".work-{path.name}"), path.with_name(f"{path.name}.part")):
                    remove(stale)
        self.worked = True
        with self._lock:
            for path in step.outputs:
                self._digests.pop(self._name(path), None)
            self._steps[step.id] = StepRecord(label=step.label, key=key, done=False)
            self._save()
            if self._mirror is not None:  # not before: a run that is refused leaves nothing in the storage
                self._mirror.start(self._report)
        self.emit(Event(step=step.id, kind="started", label=step.label, total=step.units or 0, unit=step.unit))
        started = time.monotonic()
        make()
        seconds = round(time.monotonic() - started, 2)
        files = self._records(step.outputs)
        with self._lock:
            self._steps[step.id] = StepRecord(label=step.label, key=key, done=True, seconds=seconds, files=files)
            self._save()
        self.emit(Event(step=step.id, kind="finished", label=step.label, message=f"{seconds:.0f} s"))

    def reopen(self, steps: Iterable[str]) -> None:
        """Have steps that were done be done again by the next run."""
        with self._lock:
            for id in steps:
                if id in self._steps:
                    self._steps[id] = dataclasses.replace(self._steps[id], done=False)
            self._save()

    def emit(self, event: Event) -> None:
        """Pass an event on; events of several threads one after the other.

        Raises:
            StorageError: Another command has taken the run over (`storage.taken_over`).
        """
        if self._mirror is not None:
            self._mirror.check()
        self._report(event)

    def _report(self, event: Event) -> None:
        with self._lock:
            self._on_event(event)

    def relay(self, step: Step) -> OnEvent:
        """Returns a callback that passes on the events of an operation as those of a step."""
        return lambda event: self.emit(dataclasses.replace(event, step=step.id, label=step.label))

    def digest(self, path: Path, measure: Callable[[Path], str]) -> str:
        """The digest of a file or folder, measured again only if a name, size or time has changed."""
        files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
        stats = digest_of([[str(p.relative_to(path)), p.stat().st_size, p.stat().st_mtime_ns] for p in files])
        known = self._digests.get(self._name(path))
        if known and known.stats == stats:
            return known.digest
        found = measure(path)
        if known and known.digest != found and path.is_relative_to(self.folder):
            raise DataError(f"{path}: {MODIFIED}", "restore it, or delete it to make it again", code="data.modified")
        with self._lock:
            self._digests[self._name(path)] = Measured(stats=stats, digest=found)
            self._save()
        return found

    def seconds(self, step: str) -> float | None:
        """How long a step took; None if it is not done."""
        record = self._steps.get(step)
        return record.seconds if record and record.done else None

    @property
    def is_untouched(self) -> bool:
        """Whether no step has ever been done in it."""
        return not any(record.done for record in self._steps.values())

    def _records(self, outputs: Sequence[Path]) -> dict[str, str]:
        """Digests of the records among outputs, by path relative to the run folder; of a folder, the tuning log."""
        paths = [path / _LOG if path.suffix not in _RECORDS else path for path in outputs]
        return {str(path.relative_to(self.folder)): sha256(path) for path in paths if path.is_file()}

    def _name(self, path: Path) -> str:
        """What a measured folder is called in the ledger: relative if it is the run's own, so that a run can move."""
        return str(path.relative_to(self.folder) if path.is_relative_to(self.folder) else path.absolute())

    def _save(self) -> None:
        plain = as_plain(Ledger(steps=self._steps, digests=self._digests))
        atomic_text(self.folder / LEDGER, json.dumps(plain, indent=1) + "\n")


def remove(path: Path) -> None:
    """Remove a file or a folder, if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
