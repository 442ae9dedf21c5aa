"""Loading a named set or one part of it, and the table of all of them."""

import dataclasses
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

from mooring.data.catalogue import SAFETY, SPLIT_SEED, TASKS, NamedSet, Table
from mooring.data.hub import load_hub_files, load_hub_rows
from mooring.data.rows import Row, to_prompts
from mooring.data.splits import draw, hold_out
from mooring.errors import DataError, FetchError
from mooring.records import Prompt

NAMED: dict[str, NamedSet] = SAFETY | TASKS
"""The sets that go by a name."""
Part = Literal["train", "validation", "test"]
PARTS: tuple[Part, ...] = get_args(Part)
"""The parts of task data, `name:part`. They share no question."""


def load_named(name: str, part: Part = "test") -> list[Prompt]:
    """A named set, from `$MOORING_DATA` where its files lie there, else from the hub.

    Args:
        name: One of `NAMED`.
        part: Of a set that is split; the others are given whole.

    Raises:
        FetchError: It cannot be had.
        DataError: It has not as many rows as it should, or a row lacks its fields.
    """
    known = NAMED[name]
    if not known.validation:
        return _prompts(name, known, known.tables)
    if part == "test" and _test_lies_apart(known):
        prompts = _prompts(name, known, known.test_tables)
        return draw(prompts, known.test, SPLIT_SEED) if known.test else prompts
    rest = _prompts(name, known, known.tables)
    if not _test_lies_apart(known):
        test, rest = hold_out(rest, known.test, SPLIT_SEED, known.same)
        if part == "test":
            return [dataclasses.replace(p, origin=f"{p.origin} (held out of the training rows)") for p in test]
    validation, train = hold_out(rest, round(known.validation * len(rest)), SPLIT_SEED, known.same)
    return train if part == "train" else validation


def table() -> str:
    """The named sets as a Markdown table, for the docs."""
    lines = [
        "| name | kind | rows | below `$MOORING_DATA` | on the hub | licence | what is read |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, known in NAMED.items():
        tables = (*known.tables, *known.test_tables)
        paths = ", ".join(f"`{t.path}`" for t in tables if t.path)
        repos = ", ".join(f"`{t.repo}`" for t in tables if t.repo) or "no"
        counts = [_sizes(place) for place in (known.tables, known.test_tables) if place]
        gated = " (gated)" if known.gated else ""
        kind = known.kind.replace("_", "-")
        cells = (f"`{name}`", kind, " + ".join(counts), paths, repos + gated, known.licence, known.reads)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _test_lies_apart(known: NamedSet) -> bool:
    """Whether the test part is read from its own table: a folder with the training rows alone brings its own."""
    if not known.test_tables:
        return False
    return not known.test or not _files(known.tables) or bool(_files(known.test_tables))


def _prompts(name: str, known: NamedSet, tables: Sequence[Table]) -> list[Prompt]:
    return to_prompts(_rows(name, known, tables))


def _rows(name: str, known: NamedSet, tables: Sequence[Table]) -> list[Row]:
    """The rows of the first table that is at hand, else of the one on the hub, in the shape of prompts."""
    found = _files(tables)
    if found:
        table, files = found
        rows = [row for file in files for row in table.read(file)]
        where = str(files[0] if len(files) == 1 else files[0].parent)
    else:
        table = next((t for t in tables if t.repo), Table())
        where = table.repo
        if not where:
            raise FetchError(f"{name}: lies neither below $MOORING_DATA nor on the hub", known.lacking)
        if table.files:
            rows = load_hub_files(table.repo, table.files, table.read, table.may_lack)
        else:
            rows = load_hub_rows(table.repo, table.config, table.split)
    if table.only:
        field, value = table.only
        rows = [row for row in rows if row.values.get(field) == value]
    if table.counts and len(rows) not in table.counts:
        unit = "rows" if known.kind == "task" else "prompts"
        raise DataError(f"{where}: `{name}` has {_counts(table)} {unit}, found {len(rows)}", "fetch the set again")
    return table.shape(rows)


def _sizes(tables: Sequence[Table]) -> str:
    """How many rows the first table has and, where that is another number, the one on the hub."""
    here, there = _counts(tables[0]), _counts(tables[-1])
    return here if here == there else f"{here} (hub: {there})"


def _counts(table: Table) -> str:
    return " or ".join(f"{count:,}" for count in table.counts) or "not checked"


def _files(tables: Sequence[Table]) -> tuple[Table, list[Path]] | None:
    """The first table whose files lie below `$MOORING_DATA`, with its files in the order of their numbers."""
    folder = os.environ.get("MOORING_DATA")
    if not folder:
        return None
    for table in tables:
        files = [path for path in Path(folder).expanduser().glob(table.path) if path.is_file()] if table.path else []
        if files:
            return table, sorted(files, key=lambda path: [part.zfill(9) for part in re.split(r"(\d+)", path.name)])
    return None
