"""What a named set is: where its rows lie, how they are read, and how they are split."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from mooring.records import Prompt
from mooring.sources.rows import Row, read_rows
from mooring.sources.shapes import content

Kind = Literal["safety", "over_refusal", "ordinary", "quality", "task"]
"""What a set measures: requests to refuse, harmless ones that sound harmful, ordinary ones, answers, a task."""
Shape = Callable[[Sequence[Row]], list[Row]]
"""Rows as they are published, made rows that `to_prompts` knows."""


def as_they_are(rows: Sequence[Row]) -> list[Row]:
    """For rows that `to_prompts` knows already."""
    return list(rows)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """One table of rows, in one place: below `$MOORING_DATA` (`path`) or on the hub (`repo`).

    Attributes:
        path: Its file below `$MOORING_DATA`, or, with `*`, its files.
        repo: Its id on the hub.
        config, split: What `datasets` is asked for.
        files: The repository's files, where they are read as they lie and not by `datasets`.
        may_lack: Those of `files` that some versions do not have.
        read: How a file becomes rows.
        only: A field and its value: the rows to keep.
        counts: How many rows are then left: one of these. Empty where no number is known.
        shape: Makes them rows that `to_prompts` knows.
    """

    path: str = ""
    repo: str = ""
    config: str | None = None
    split: str | None = None
    files: tuple[str, ...] = ()
    may_lack: tuple[str, ...] = ()
    read: Callable[[Path], list[Row]] = read_rows
    only: tuple[str, str] | None = None
    counts: tuple[int, ...] = ()
    shape: Shape = as_they_are


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class NamedSet:
    """A public data set.

    Attributes:
        kind: What it measures.
        tables: Where its rows are looked for, in this order.
        reads: What is read, in a few words.
        licence: Its licence, as its publishers name it.
        gated: Whether the hub gives it only to those who accept its terms.
        validation: Share of the rows that is the validation part; 0 where the set is not split. What is left is the
            training part.
        test: How many rows make up the test part: drawn from `test_tables`, or held out of the rows before all else; 0
            is all of `test_tables`.
        test_tables: As `tables`, for a test part that lies elsewhere.
        same: What is equal for prompts that no two parts may share out.
        group: What its category is called in its own rows, for `#N/field`.
        lacking: What to do where it is neither below `$MOORING_DATA` nor on the hub.
    """

    kind: Kind
    tables: tuple[Table, ...]
    reads: str
    licence: str
    gated: bool = False
    validation: float = 0
    test: int = 0
    test_tables: tuple[Table, ...] = ()
    same: Callable[[Prompt], str] = content
    group: str = "category"
    lacking: str = ""
