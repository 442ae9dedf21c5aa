"""Load named sets: from `$MOORING_DATA` if their files are there, else from the hub."""

import dataclasses
import os
import re
from collections.abc import Sequence
from pathlib import Path

from mooring.data.catalogue import FETCH_AGAIN, NAMED, SPLIT_SEED, NamedSet, Table
from mooring.data.hub import load_hub_files, load_hub_rows
from mooring.data.rows import Row, to_prompts
from mooring.data.splits import draw, hold_out
from mooring.errors import DataError, FetchError
from mooring.files import expanded
from mooring.records import Prompt, Split


def load_named(name: str, split: Split = "test") -> list[Prompt]:
    """Load a named set.

    Args:
        name: A key of `NAMED`.
        split: The part of a set that has parts; the others are loaded whole.

    Raises:
        FetchError: It cannot be fetched (`data.not_fetched`).
        DataError: It does not have its known number of rows (`data.row_count`), or a row lacks its fields.
    """
    known = NAMED[name]
    if known.load is not None:
        rows = known.load(split if known.validation else "test")
        return to_prompts([Row(f"{name}:row {number}", values) for number, values in enumerate(rows, 1)])
    if not known.validation:
        return to_prompts(_rows(name, known, known.tables))
    separate = _has_separate_test(known)
    if split == "test" and separate:
        prompts = to_prompts(_rows(name, known, known.test_tables))
        return draw(prompts, known.test, SPLIT_SEED) if known.test else prompts
    rest = to_prompts(_rows(name, known, known.tables))
    if not separate:
        test, rest = hold_out(rest, known.test, SPLIT_SEED, known.group)
        if split == "test":
            return [dataclasses.replace(p, origin=f"{p.origin} (held out of the training rows)") for p in test]
    validation, train = hold_out(rest, round(known.validation * len(rest)), SPLIT_SEED, known.group)
    return train if split == "tune" else validation


def table() -> str:
    """Format the named sets as a Markdown table, for docs/sets.md."""
    lines = [
        "| name | kind | rows | below `$MOORING_DATA` | on the hub | licence | what is read |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, known in NAMED.items():
        tables = (*known.tables, *known.test_tables)
        paths = ", ".join(f"`{t.path}`" for t in tables if t.path)
        repos = ", ".join(f"`{t.repo}`" for t in tables if t.repo) or "no"
        counts = [_sizes(tables) for tables in (known.tables, known.test_tables) if tables]
        gated = " (gated)" if known.gated else ""
        kind = known.kind.replace("_", "-")
        cells = (f"`{name}`", kind, " + ".join(counts), paths, repos + gated, known.licence, known.reads)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _has_separate_test(known: NamedSet) -> bool:
    """Whether the test part is read from its own table; a folder with only the training rows holds it out."""
    if not known.test_tables:
        return False
    return not known.test or not _local_files(known.tables) or bool(_local_files(known.test_tables))


def _rows(name: str, known: NamedSet, tables: Sequence[Table]) -> list[Row]:
    """Read the first table that has local files, else the one on the hub."""
    if local := _local_files(tables):
        table, files = local
        rows = [row for file in files for row in table.read(file)]
        place = str(files[0] if len(files) == 1 else files[0].parent)
    else:
        table = next((t for t in tables if t.repo), Table())
        place = table.repo
        if not place:
            message = f"{name}: is neither below $MOORING_DATA nor on the hub"
            raise FetchError(message, known.instructions, code="data.not_fetched")
        if table.files:
            rows = load_hub_files(table.repo, table.files, table.read, table.optional)
        else:
            rows = load_hub_rows(table.repo, table.config, table.split)
    rows = [row for row in rows if all(row.values.get(field) == value for field, value in table.where.items())]
    if table.counts and len(rows) not in table.counts:
        unit = "rows" if known.kind == "task" else "prompts"
        message = f"{place}: `{name}` has {_counts(table)} {unit}, found {len(rows)}"
        raise DataError(message, FETCH_AGAIN, code="data.row_count")
    return table.convert(rows)


def _sizes(tables: Sequence[Table]) -> str:
    """Format the number of rows of the first table and, if it differs, of the one on the hub."""
    here, there = _counts(tables[0]), _counts(tables[-1])
    return here if here == there else f"{here} (hub: {there})"


def _counts(table: Table) -> str:
    return " or ".join(f"{count:,}" for count in table.counts) or "not checked"


def _local_files(tables: Sequence[Table]) -> tuple[Table, list[Path]] | None:
    """Return the first table that has files below `$MOORING_DATA`, and the files in numeric order."""
    folder = os.environ.get("MOORING_DATA")
    if not folder:
        return None
    for table in tables:
        files = [path for path in expanded(folder).glob(table.path) if path.is_file()] if table.path else []
        if files:
            return table, sorted(files, key=lambda path: [part.zfill(9) for part in re.split(r"(\d+)", path.name)])
    return None
