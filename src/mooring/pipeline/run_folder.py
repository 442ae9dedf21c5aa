"""The run folder: what was asked, what is done, and what each done thing was made from.

A step is done when the ledger has it under a key, the digest of everything that it was made from, and its outputs are
there. So a run that was stopped goes on, a finished one does nothing, and a changed recipe redoes just what it touches.
"""

import contextlib
import fcntl
import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mooring.errors import DataError, OutputError
from mooring.files import PARTIAL, atomic_text
from mooring.ledger import AS_LEFT, LEDGER, Ledger, Measured, Step, as_plain, edited, read_ledger, sha256

_RECORDS = (".json", ".jsonl")
"""Suffixes of what a step writes for others to read: the ledger keeps the digests of these."""
_LOG = "loss.json"
"""A record in a folder that tuning wrote; of models there are other digests."""


@dataclass(frozen=True, slots=True)
class Event:
    """Something that a run tells whoever watches it.

    Attributes:
        step: The step's name.
        kind: `start`, `progress`, `done`, `kept` (it was done before), or `say` (a line for the user).
        done: Units done so far, of `total`.
        note: What a person would want to read beside the bar.
        tokens: Tokens generated so far by this step.
    """

    step: str
    kind: Literal["start", "progress", "done", "kept", "say"]
    done: int = 0
    total: int = 0
    note: str = ""
    tokens: int = 0


OnEvent = Callable[[Event], None]


def key_of(inputs: Any) -> str:
    """The SHA-256 of plain JSON values, in hexadecimal."""
    return hashlib.sha256(json.dumps(inputs, sort_keys=True, default=str).encode()).hexdigest()


class Store:
    """A run folder and its ledger.

    Args:
        folder: It need not exist; where it does, it is empty or a run folder.
        on_event: Told of every step.

    Raises:
        OutputError: `folder` holds something else.
        DataError: Its ledger cannot be read.
    """

    def __init__(self, folder: Path, on_event: OnEvent | None = None) -> None:
        self.folder = folder
        self.emit: OnEvent = on_event or (lambda _: None)
        self.worked = False
        """Whether any step had to be done since the folder was opened."""
        if folder.is_file():
            raise OutputError(f"{folder}: is a file", "name a folder")
        if (folder / LEDGER).is_file():
            known = read_ledger(folder)
        elif folder.is_dir() and any(p.name != ".lock" for p in folder.iterdir()):
            raise OutputError(f"{folder}: holds something that is not a run", "name another folder, or empty this one")
        else:
            known = Ledger(steps={})
        self._steps, self._digests = dict(known.steps), dict(known.digests)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for this process alone, and clear what a killed one left half-written.

        Raises:
            OutputError: Another process is at work in it.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / ".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise OutputError(f"{self.folder}: another run is at work in it", "wait for it to end") from None
            for rubbish in self.folder.rglob(f"{PARTIAL}*"):
                shutil.rmtree(rubbish) if rubbish.is_dir() else rubbish.unlink()
            self._save()
            yield

    def is_done(self, step: str, key: str, outputs: Sequence[Path]) -> bool:
        """Whether `step` was made from what `key` stands for, and its outputs are still there.

        Raises:
            DataError: A record that it wrote is not as it left it.
        """
        entry = self._steps.get(step)
        done = bool(entry and entry.key == key and entry.done and all(p.exists() for p in outputs))
        if entry and done and (odd := edited(self.folder, entry)):
            (made,) = [path for path in outputs if (self.folder / odd).is_relative_to(path)] or [self.folder / odd]
            whole = "it" if made == self.folder / odd else made
            hint = f"put it back as it was, or delete {whole} to make it anew"
            raise DataError(f"{self.folder / odd}: {AS_LEFT}", hint)
        return done

    def _written(self, outputs: Sequence[Path]) -> dict[str, str]:
        """Digests of the records among outputs, by their paths below the run folder: of a folder, the tuning's log."""
        paths = [path / _LOG if path.suffix not in _RECORDS else path for path in outputs]
        return {str(path.relative_to(self.folder)): sha256(path) for path in paths if path.is_file()}

    def once(self, step: str, inputs: Any, outputs: Sequence[Path], make: Callable[[], object]) -> str:
        """Do a step, unless it is done.

        Args:
            step: Its name in the ledger and for the user.
            inputs: Everything that its outputs depend on, as plain JSON values.
            outputs: Files and folders that it makes; those made from other inputs are removed first.
            make: Makes them. What it leaves when it is stopped is there when it is called again.

        Returns:
            The step's key, to be an input of the steps that build on it.
        """
        key = key_of([step, inputs])
        if self.is_done(step, key, outputs):
            self.emit(Event(step, "kept"))
            return key
        if step not in self._steps or self._steps[step].key != key:
            for path in outputs:
                for stale in (path, path.with_name(f".work-{path.name}"), path.with_name(f"{path.name}.part")):
                    remove(stale)
        self.worked = True
        for path in outputs:
            self._digests.pop(self._name(path), None)
        self._steps[step] = Step(key=key, done=False)
        self._save()
        self.emit(Event(step, "start"))
        begun = time.monotonic()
        make()
        seconds = round(time.monotonic() - begun, 2)
        self._steps[step] = Step(key=key, done=True, seconds=seconds, files=self._written(outputs))
        self._save()
        self.emit(Event(step, "done", note=f"{seconds:.0f} s"))
        return key

    def digest(self, path: Path, measure: Callable[[Path], str]) -> str:
        """The digest of a folder of files, measured anew only where a name, size or time has changed.

        Raises:
            DataError: A folder that the run made was edited since it was measured.
        """
        files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
        stats = key_of([[str(p.relative_to(path)), p.stat().st_size, p.stat().st_mtime_ns] for p in files])
        known = self._digests.get(self._name(path))
        if known and known.stats == stats:
            return known.digest
        found = measure(path)
        if known and known.digest != found and path.is_relative_to(self.folder):
            raise DataError(f"{path}: {AS_LEFT}", "put it back as it was, or delete it to make it anew")
        self._digests[self._name(path)] = Measured(stats=stats, digest=found)
        self._save()
        return found

    def _name(self, path: Path) -> str:
        """What a measured folder is called in the ledger: one of the run goes with it where it is moved."""
        return str(path.relative_to(self.folder) if path.is_relative_to(self.folder) else path.absolute())

    def seconds(self) -> dict[str, float]:
        """How long each done step took."""
        return {name: step.seconds for name, step in self._steps.items() if step.done}

    def _save(self) -> None:
        plain = as_plain(Ledger(steps=self._steps, digests=self._digests))
        atomic_text(self.folder / LEDGER, json.dumps(plain, indent=1) + "\n")


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
