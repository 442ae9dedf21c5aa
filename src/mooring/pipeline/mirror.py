"""A copy of a run folder in a storage, kept up to date while the run works: another machine can go on from it."""

import contextlib
import dataclasses
import json
import os
import threading
import uuid
from collections.abc import Mapping
from pathlib import Path

from mooring.errors import StorageError, UserError
from mooring.events import Event, OnEvent, ignore
from mooring.files import PARTIAL, atomic_text, explained
from mooring.jsonio import read_as
from mooring.ledger import LEDGER
from mooring.pipeline.storage import Storage

MARK = ".storage.json"
"""The file in a run folder that records the state of its copy."""
LOCK = ".lock"
EVERY = 10.0
"""Seconds between two looks at what has changed."""
_DRIVER = ".driver"
"""The object that says which command wrote the copy last."""
_NOT_COPIED = (LOCK, MARK, "scratch")
"""The lock and the mark are those of this machine; merged models that are written temporarily are made again."""
Stats = Mapping[str, tuple[int, int]]
"""Size in bytes and time of modification in nanoseconds, of each file."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """The state of the copy, as recorded in the run folder.

    Attributes:
        url: Where the copy is.
        driver: The command that wrote the copy last, as far as this folder knows. If the copy names another, it is
            newer than this folder.
        files: The files as they were when they were copied.
    """

    url: str
    driver: str = ""
    files: Stats = dataclasses.field(default_factory=dict)


class Mirror:
    """The copy of a run folder.

    The run folder of this machine is the one that is worked in. The ledger is copied after the files that it names, so
    that whoever goes on from the copy finds what its ledger says. At most the last `EVERY` seconds are lost with this
    machine. The command that was started last owns the copy: an earlier one, perhaps on a machine that was given up,
    ends when it sees that.

    Args:
        storage: Where the copy is, in `runs/<name of the run folder>`.
        folder: The run folder, which this process has locked.
    """

    def __init__(self, storage: Storage, folder: Path) -> None:
        self._storage, self._folder = storage, folder
        self._below = f"runs/{folder.absolute().name}"
        self.url = f"{storage.url}/{self._below}"
        self._own, self._before = uuid.uuid4().hex, ""
        self._files: dict[str, tuple[int, int]] = {}
        """Each file as it was when it was copied."""
        self._ends = threading.Event()
        self._thread: threading.Thread | None = None
        self._on_event: OnEvent = ignore
        self._taken: StorageError | None = None

    def begin(self) -> bool:
        """Bring the run folder to the state of the copy, if that is newer. Returns whether it was.

        Raises:
            StorageError: The storage cannot be used, or holds another run of this name (`storage.another_run`).
        """
        self._storage.check()
        there = self._storage.sizes(self._below)
        self._before = (self._storage.read(f"{self._below}/{_DRIVER}") or b"").decode(errors="replace")
        path = self._folder / MARK
        mark: Mark = read_as(path, Mark, "what a run folder knows of its copy") if path.is_file() else Mark(url="")
        if mark.url == self.url and mark.driver == self._before:
            self._files = dict(mark.files)
        elif LEDGER in there:
            if mark.url != self.url and (self._folder / LEDGER).exists():
                what = f"{self.url}: holds a run, and {self._folder} holds another one"
                raise StorageError(what, "name another folder (out, --out)", code="storage.another_run")
            self._fetch(there)
            return True
        return False

    def start(self, on_event: OnEvent) -> None:
        """Begin to copy what changes, in a thread, unless that was started already."""
        if self._thread is not None:
            return
        self._on_event = on_event
        self._thread = threading.Thread(target=self._work, name="mooring-mirror", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise if another command has taken the run over.

        Raises:
            StorageError: It has (`storage.taken_over`).
        """
        if self._taken is not None:
            raise self._taken

    def finish(self) -> None:
        """Copy what is left, and end the thread.

        Raises:
            StorageError: It cannot be copied, or another command has taken the run over.
        """
        self._ends.set()
        if self._thread is not None:
            self._thread.join()
        self.check()
        self.copy()

    def copy(self) -> None:
        """Copy what has changed."""
        ledger = self._folder / LEDGER
        if not ledger.is_file():
            return
        self._claim()
        stats, state = _stats(ledger), ledger.read_bytes()  # before the files that it names
        found = self._scan()
        changed = [name for name in found if found[name] != self._files.get(name)]
        gone = [name for name in self._files if name not in found and name != LEDGER]
        self._storage.upload((self._folder / name, f"{self._below}/{name}") for name in changed)
        if stats != self._files.get(LEDGER):
            self._storage.write(f"{self._below}/{LEDGER}", state)
        self._storage.remove(f"{self._below}/{name}" for name in gone)
        files = {**found, LEDGER: stats}
        if files != self._files:
            self._files = files
            self._remember(self._own)

    # --- how ------------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        warned = False
        while not self._ends.wait(EVERY):
            try:
                self.copy()
                warned = False
            except UserError as error:
                if error.code == "storage.taken_over":
                    return
                if not warned:
                    message = f"the copy of the run is behind: {error.message}; it is tried again"
                    self._on_event(Event(step="storage", kind="warning", message=message))
                warned = True

    def _claim(self) -> None:
        """Make this command the owner of the copy."""
        owner = (self._storage.read(f"{self._below}/{_DRIVER}") or b"").decode(errors="replace")
        if owner == self._own:
            return
        if owner != self._before:
            what, hint = f"{self.url}: another command has continued this run", "leave the run to it"
            self._taken = StorageError(what, hint, code="storage.taken_over")
            raise self._taken
        self._storage.write(f"{self._below}/{_DRIVER}", self._own.encode())
        self._remember(self._own)

    def _fetch(self, there: Mapping[str, int]) -> None:
        """Fetch the copy: first its ledger, so that the folder is a run folder whenever this is stopped."""
        self._remember("")
        names = sorted((name for name in there if name != _DRIVER), key=lambda name: (name != LEDGER, name))
        for part in (names[:1], names[1:]):
            places = {name: self._folder / name for name in part}
            partial = {name: path.with_name(f"{PARTIAL}{path.name}") for name, path in places.items()}
            self._storage.download((f"{self._below}/{name}", partial[name]) for name in part)
            for name, path in places.items():
                with explained(path):
                    os.replace(partial[name], path)
                self._files[name] = _stats(path)
        self._remember(self._before)

    def _scan(self) -> dict[str, tuple[int, int]]:
        """The files that are copied, but for the ledger."""
        found, hidden = {}, (PARTIAL, ".probe-")
        for folder, folders, names in os.walk(self._folder):
            top = Path(folder) == self._folder
            folders[:] = [each for each in folders if not each.startswith(hidden) and not (top and each in _NOT_COPIED)]
            for name in names:
                path = Path(folder) / name
                left_out = name.startswith(hidden) or path.is_symlink() or (top and name in (*_NOT_COPIED, LEDGER))
                with contextlib.suppress(FileNotFoundError):  # removed since it was listed
                    if not left_out and path.is_file():
                        found[path.relative_to(self._folder).as_posix()] = _stats(path)
        return found

    def _remember(self, driver: str) -> None:
        mark = Mark(url=self.url, driver=driver, files=self._files)
        atomic_text(self._folder / MARK, json.dumps(dataclasses.asdict(mark), indent=1) + "\n")


def _stats(path: Path) -> tuple[int, int]:
    about = path.stat()
    return about.st_size, about.st_mtime_ns
