"""The ledger of a run folder: which steps are done, with which key, and the digests of what they wrote."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mooring import files
from mooring.errors import DataError
from mooring.jsonio import read_as

LEDGER = "ledger.json"
"""Its presence marks a run folder."""
MODIFIED = "was modified after the run wrote it"
"""What errors say of a record that was edited or removed since its step was done."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class StepRecord:
    """What the ledger knows of a step.

    Attributes:
        label: The step in words.
        key: Digest of all that it depends on.
        done: Whether it was finished.
        seconds: How long it took.
        files: SHA-256 of the records that it wrote, by path relative to the run folder.
    """

    label: str
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
    """What `ledger.json` holds: steps by id, and measured digests by folder."""

    steps: Mapping[str, StepRecord]
    digests: Mapping[str, Measured] = dataclasses.field(default_factory=dict)

    @property
    def finished(self) -> bool:
        """Whether the report, the last step of a run, is done."""
        return "report" in self.steps and self.steps["report"].done

    @property
    def unfinished(self) -> str | None:
        """The label of the step at which the run stopped, if it did."""
        return next((step.label for step in self.steps.values() if not step.done), None)


def read_ledger(folder: Path) -> Ledger:
    """The ledger of a run folder.

    Raises:
        DataError: It cannot be read, or holds something else.
    """
    hint = "restore it, or name another run folder"
    try:
        found: Ledger = read_as(folder / LEDGER, Ledger, "a ledger")
    except DataError as error:
        raise DataError(error.message, hint, code="data.bad_ledger") from None
    for name in (name for step in found.steps.values() for name in step.files):
        path = Path(name)
        if path.is_absolute() or ".." in path.parts or not path.parts or "\0" in name:
            problem = f"{folder / LEDGER}: names {name!a}, which is no file in the run folder"
            raise DataError(problem, hint, code="data.ledger_outside")
    return found


def as_plain(ledger: Ledger) -> dict[str, Any]:
    """A ledger as plain JSON values; empty fields of a step are left out."""
    plain = dataclasses.asdict(ledger)
    plain["steps"] = {
        name: {key: value for key, value in step.items() if value or key in ("label", "key", "done")}
        for name, step in plain["steps"].items()
    }
    return plain


def check_unmodified(folder: Path, ledger: Ledger, path: Path) -> None:
    """Check that a record of a run is as its step wrote it, if the ledger knows it.

    Raises:
        DataError: It was modified since (`data.modified`).
    """
    name = str(path.relative_to(folder))
    if path.exists() and any(sha256(path) != step.files[name] for step in ledger.steps.values() if name in step.files):
        raise DataError(
            f"{path}: {MODIFIED}", "restore it, or delete it and run the recipe again", code="data.modified"
        )


def check_all_unmodified(folder: Path, ledger: Ledger) -> None:
    """Check that every record of a run that exists is as its step wrote it.

    Raises:
        DataError: One was modified since (`data.modified`).
    """
    for name in sorted({name for step in ledger.steps.values() for name in step.files}):
        check_unmodified(folder, ledger, folder / name)


def modified_record(folder: Path, step: StepRecord) -> str | None:
    """The first record of a step that was modified since, by path relative to the run folder; None if none was."""
    return next((name for name, digest in step.files.items() if sha256(folder / name) != digest), None)


def sha256(path: Path) -> str:
    """The digest of a file; an empty text if there is none."""
    try:
        return files.sha256(path) if path.is_file() else ""
    except OSError:  # the name is too long, or the file may not be read
        return ""
