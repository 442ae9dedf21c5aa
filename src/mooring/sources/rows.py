"""Rows of a data file, whatever its form, each with the place that it came from."""

import csv
import dataclasses
import gzip
import io
import json
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mooring.errors import DataError


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """One row, as it was read.

    Attributes:
        origin: `file:line` (JSONL, CSV, TSV) or `file:row N`, counted from 1.
        values: Its fields.
    """

    origin: str
    values: Mapping[str, Any]


def is_data_file(name: str) -> bool:
    """Whether the name ends like a file that `read_rows` reads."""
    return _suffix(Path(name)) in (*_TEXT_READERS, ".parquet")


def read_rows(path: Path) -> list[Row]:
    """Read JSONL, JSON (a list, or an object that holds one list), CSV, TSV or Parquet; the text forms also as `.gz`.

    CSV and TSV begin with a line of column names; `#` comment lines before it are passed over. Text is UTF-8.

    Raises:
        DataError: The file is missing, empty, of another form, or malformed; the message names file and line.
    """
    if path.is_dir():
        raise DataError(f"{path}: is a folder", "name a data file in it")
    if not path.is_file():
        raise DataError(f"{path}: no such file", "check the path")
    suffix = _suffix(path)
    if suffix == ".parquet":
        rows = _parquet(path)
    elif suffix in _TEXT_READERS:
        rows = _TEXT_READERS[suffix](path, read_text(path))
    else:
        raise DataError(
            f"{path}: unknown kind of data file",
            f"accepted are .parquet and, also with .gz, {', '.join(_TEXT_READERS)}",
        )
    if not rows:
        raise DataError(f"{path}: holds no rows", "add some, or name another file")
    return rows


def _suffix(path: Path) -> str:
    """The suffix that says the form, `.gz` aside; Parquet brings its own compression."""
    if path.suffix.lower() == ".gz":
        inner = Path(path.stem).suffix.lower()
        return inner if inner in _TEXT_READERS else ".gz"
    return path.suffix.lower()


def read_text(path: Path) -> str:
    """A file's text, decompressed where it ends in `.gz`, a byte order mark removed.

    Raises:
        DataError: It cannot be read, is broken, or is not UTF-8.
    """
    try:
        data = path.read_bytes()
        if path.suffix.lower() == ".gz":
            data = gzip.decompress(data)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path}: broken gzip file ({error})", "fetch it again") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})", "check its permissions") from None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}:{line}: is not UTF-8 text", "save the file as UTF-8") from None


def _jsonl(path: Path, text: str) -> list[Row]:
    rows = []
    for number, line in enumerate(text.split("\n"), 1):  # not splitlines: JSON may hold U+2028 raw
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(
                f"{path}:{number}: not JSON ({error.msg} at column {error.colno})", "mend the line"
            ) from None
        rows.append(_row(f"{path}:{number}", value))
    return rows


def _json(path: Path, text: str) -> list[Row]:
    if not text.strip():
        return []
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and error.lineno > 1:  # JSON Lines under the name .json: common on the hub
            return _jsonl(path, text)
        raise DataError(f"{path}:{error.lineno}: not JSON ({error.msg} at column {error.colno})", "mend it") from None
    if isinstance(value, dict):
        lists = [part for part in value.values() if isinstance(part, list)]
        if len(lists) != 1:
            raise DataError(f"{path}: holds {len(lists)} lists of rows", "keep one list of objects")
        value = lists[0]
    if not isinstance(value, list):
        raise DataError(f"{path}: is not a list of objects", "write [{…}, {…}], or one object a line as .jsonl")
    return [_row(f"{path}:row {number}", item) for number, item in enumerate(value, 1)]


def _row(origin: str, value: Any) -> Row:
    if not isinstance(value, dict):
        raise DataError(f"{origin}: is not an object with fields", 'write {"prompt": …, …}')
    return Row(origin, value)


def _csv(path: Path, text: str, delimiter: str = ",") -> list[Row]:
    comments = 0
    while text.startswith("#"):
        text = text.partition("\n")[2]
        comments += 1
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    header: list[str] = []
    rows: list[Row] = []
    while True:
        line = comments + reader.line_num + 1  # where the next record begins; one record may span several lines
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise DataError(f"{path}:{line}: malformed row ({error})", "mend its quotes") from None
        if cells is None:
            return rows
        if not cells:
            continue
        if not header:
            header = cells
            if len(set(header)) < len(header):
                raise DataError(f"{path}:{line}: two columns have the same name", "rename one")
            continue
        if len(cells) != len(header):
            raise DataError(
                f"{path}:{line}: has {len(cells)} cells where the header has {len(header)}",
                "quote cells that hold the separator",
            )
        rows.append(Row(f"{path}:{line}", dict(zip(header, cells, strict=True))))


def _tsv(path: Path, text: str) -> list[Row]:
    return _csv(path, text, "\t")


def _parquet(path: Path) -> list[Row]:
    import pyarrow as pa  # type: ignore[import-untyped]
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    try:
        values = pq.read_table(path).to_pylist()
    except (pa.ArrowException, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise DataError(f"{path}: not a Parquet file that can be read ({reason})", "fetch it again") from None
    return [Row(f"{path}:row {number}", value) for number, value in enumerate(values, 1)]


_TEXT_READERS: dict[str, Callable[[Path, str], list[Row]]] = {
    ".jsonl": _jsonl,
    ".ndjson": _jsonl,
    ".json": _json,
    ".csv": _csv,
    ".tsv": _tsv,
}
