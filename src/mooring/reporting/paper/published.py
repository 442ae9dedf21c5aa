"""Published numbers that a reader may give, to stand beside the measured ones. None ships with Mooring."""

import csv
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mooring.bounded import CONFIG, YAML, YAMLError, parse_yaml, read_bytes
from mooring.errors import DataError
from mooring.reporting.paper.tables import Key, PaperTable
from mooring.reporting.render import as_csv
from mooring.reporting.tables import Column, Table

FIELDS = ("base", "task", "model", "measure", "value")
COLUMNS_HINT = f"its columns are {', '.join(FIELDS)}"


def read_published(path: Path) -> dict[Key, float]:
    """Published numbers from a CSV file, or from a YAML list of mappings with the same keys.

    A row with no `value` is passed over, so that the template can be filled in bit by bit. Values are in the units of
    the tables: percent for a rate or BERTScore, nats per token for a loss.

    Raises:
        DataError: It cannot be read, a column is missing, a value is no number, or a number is given twice.
    """
    try:
        text = read_bytes(path, CONFIG).decode("utf-8-sig")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or ("is not text" if type(error) is UnicodeDecodeError else error)
        raise DataError(
            f"{path}: {reason}", "name a CSV or YAML file of published numbers", code="data.unreadable"
        ) from None
    found: dict[Key, float] = {}
    for where, row in _yaml_rows(path, text) if path.suffix in (".yaml", ".yml") else _csv_rows(path, text):
        if missing := [field for field in FIELDS if field not in row]:
            raise DataError(f"{where}: has no `{missing[0]}`", COLUMNS_HINT, code="data.missing_field")
        said = row["value"]
        if said is None or not str(said).strip():
            continue
        base, task, model, measure = (str(row[field]).removeprefix("'") for field in FIELDS[:4])
        key = (base, task, model, measure)
        if key in found:
            raise DataError(f"{where}: {', '.join(key)} is there twice", "keep one", code="data.duplicate_value")
        found[key] = _number(said, where)
    return found


def _number(said: object, where: str) -> float:
    try:
        value = float(str(said).strip().removesuffix("%"))
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise DataError(f"{where}: `value` is {said!r}", "write a number, such as 12.3", code="data.not_a_number")
    return value


def _csv_rows(path: Path, text: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    reader = csv.DictReader(io.StringIO(text))
    try:
        if missing := [field for field in FIELDS if field not in (reader.fieldnames or ())]:
            raise DataError(f"{path}:1: has no column `{missing[0]}`", COLUMNS_HINT, code="data.missing_field")
        for row in reader:
            yield f"{path}:{reader.line_num}", row
    except csv.Error as error:
        raise DataError(f"{path}:{reader.line_num}: {error}", "write it as CSV", code="data.bad_csv") from None


def _yaml_rows(path: Path, text: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    try:
        rows = parse_yaml(text.encode(), YAML)
    except YAMLError as error:
        where = f"{path}:{error.line}" if error.line else str(path)
        raise DataError(f"{where}: {error}", "write a list of mappings", code="data.bad_yaml") from None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise DataError(f"{path}: is not a list of mappings", COLUMNS_HINT, code="data.not_a_list")
    for number, row in enumerate(rows, 1):
        yield f"{path}, entry {number}", row


def unused(published: Mapping[Key, float], tables: Sequence[PaperTable]) -> list[str]:
    """A line for each published number that no table has a place for."""
    places = {key for table in tables for key in table.keys}
    return [f"published: no run has a place for {', '.join(key)}" for key in published if key not in places]


def template(tables: Sequence[PaperTable], published: Mapping[Key, float]) -> str:
    """A CSV file with a row for every number of the tables, its value left blank unless it is known."""
    keys = dict.fromkeys(key for table in tables for key in table.keys)
    return as_csv(Table("", list(map(Column, FIELDS)), [[*key, published.get(key)] for key in keys]))
