"""The ledger of a run folder: which steps are done, and what each was made from."""

import dataclasses
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mooring.errors import DataError
from mooring.jsonio import read_as

LEDGER = "ledger.json"
"""Its presence marks a run folder."""
AS_LEFT = "is not as the run left it"
"""What is said of a record that was edited or removed since its step ended."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A step of a run.

    Attributes:
        key: Digest of everything that it is made from.
        done: Whether it ended.
        seconds: How long it took.
        files: SHA-256 of the records that it wrote, by their paths below the run folder. Empty in older ledgers.
    """

    key: str
    done: bool
    seconds: float = 0.0
    files: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """The digest of a model's folder, and of the names, sizes and times that its files had when it was measured."""

    stats: str
    digest: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Ledger:
    """What `ledger.json` holds: steps by name, and measured digests by folder."""

    steps: Mapping[str, Step]
    digests: Mapping[str, Measured] = dataclasses.field(default_factory=dict)

    @property
    def ended(self) -> bool:
        """Whether the report, a run's last step, is done; true of a ledger that has no such step."""
        return "report" not in self.steps or self.steps["report"].done

    @property
    def unfinished(self) -> str | None:
        """The step at which the run stopped, if it did."""
        return next((name for name, step in self.steps.items() if not step.done), None)


def read_ledger(folder: Path) -> Ledger:
    """The ledger of a run folder.

    Raises:
        DataError: It cannot be read, or holds something else.
    """
    try:
        found: Ledger = read_as(folder / LEDGER, Ledger, "a ledger")
    except DataError as error:
        raise DataError(error.message, "put it back as it was, or name another run folder") from None
    return found


def as_plain(ledger: Ledger) -> dict[str, Any]:
    """A ledger as plain JSON values; what a step has not is left out."""
    plain = dataclasses.asdict(ledger)
    plain["steps"] = {
        name: {key: value for key, value in step.items() if value or key in ("key", "done")}
        for name, step in plain["steps"].items()
    }
    return plain


def check_as_left(folder: Path, ledger: Ledger, path: Path) -> None:
    """Hold that a record of a run is as the step that wrote it left it; where the ledger knows it.

    Raises:
        DataError: It was edited since.
    """
    name = str(path.relative_to(folder))
    if path.exists() and any(sha256(path) != step.files[name] for step in ledger.steps.values() if name in step.files):
        raise DataError(f"{path}: {AS_LEFT}", "put it back, or delete it: `mooring run` on its recipe makes it anew")


def edited(folder: Path, step: Step) -> str | None:
    """A record of a step that is not as the step left it, by its path below the run folder; `None` where all are."""
    return next((name for name, digest in step.files.items() if sha256(folder / name) != digest), None)


def sha256(path: Path) -> str:
    """The digest of a file; nothing where there is none."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
