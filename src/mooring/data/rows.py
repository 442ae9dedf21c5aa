"""Rows of data files, in the shapes that are in common use, converted to `Prompt` records."""

import csv
import dataclasses
import functools
import gzip
import hashlib
import io
import json
import re
import unicodedata
import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from mooring.bounded import DATA, LINE, Limit, UnusableError, check_size, parse_json, read_bytes
from mooring.errors import DataError
from mooring.records import Message, Prompt, Role

ACCEPTED = (
    "accepted: `messages`; `prompt` + `completion`; `instruction` (+ `input`) + `output`; "
    "or a prompt alone, as `prompt`, `instruction`, `question`, `goal` or `input`"
)
RESPONSES: Mapping[str, tuple[str, ...]] = {
    "prompt": ("completion", "response", "answer", "output"),
    "instruction": ("output", "response", "completion", "answer"),
    "question": ("answer", "response", "output"),
    "goal": (),  # `target` next to it is the answer that an attack aims for, not the right one
    "input": ("target", "output", "response", "answer"),
}
"""The names of a prompt's field, the first one present counting, each with the names of its response's field."""
_SURROGATE = re.compile("[\ud800-\udfff]")
"""JSON can contain half a surrogate pair; UTF-8 and tokenizers cannot."""


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """A row as it was read.

    Attributes:
        origin: `file:line` (JSONL, CSV, TSV) or `file:row N`, counted from 1.
        values: Its fields.
    """

    origin: str
    values: Mapping[str, Any]


def is_data_file(name: str) -> bool:
    """Whether a name has the suffix of a file that `read_rows` reads."""
    return _suffix(Path(name)) in (*_TEXT_READERS, ".parquet")


def read_rows(path: Path) -> list[Row]:
    """Read JSONL, JSON (a list, or an object that contains one list), CSV, TSV or Parquet; text formats also as `.gz`.

    CSV and TSV begin with a line of column names; `#` comment lines before it are skipped. Text is UTF-8.

    Raises:
        DataError: The file is missing, empty, of an unknown format, or malformed; the message names file and line.
    """
    if path.is_dir():
        raise DataError(f"{path}: is a folder", "name a data file in it", code="data.is_folder")
    if not path.is_file():
        raise DataError(f"{path}: no such file", "check the path", code="data.no_file")
    suffix = _suffix(path)
    if suffix == ".parquet":
        rows = _parquet(path)
    elif suffix in _TEXT_READERS:
        rows = _TEXT_READERS[suffix](path, read_text(path))
    else:
        hint = f"accepted are .parquet and, also with .gz, {', '.join(_TEXT_READERS)}"
        raise DataError(f"{path}: unknown format of data file", hint, code="data.unknown_format")
    if not rows:
        raise DataError(f"{path}: holds no rows", "add some, or name another file", code="data.empty")
    return rows


def _suffix(path: Path) -> str:
    """The suffix of the format, without `.gz`; Parquet has its own compression."""
    if path.suffix.lower() == ".gz":
        inner = Path(path.stem).suffix.lower()
        return inner if inner in _TEXT_READERS else ".gz"
    return path.suffix.lower()


def read_text(path: Path) -> str:
    """Read a text file, decompressed if it ends in `.gz`, without a byte order mark.

    Raises:
        DataError: It cannot be read (`data.unreadable`), is not gzip (`data.bad_gzip`) or UTF-8 (`data.not_utf8`).
    """
    try:
        data = read_bytes(path, DATA)
        if path.suffix.lower() == ".gz":
            with gzip.open(io.BytesIO(data)) as stream:
                data = stream.read(DATA.size + 1)
            check_size(len(data), DATA)
    except UnusableError as error:
        raise DataError(f"{path}: {error}", "split it into several files", code="data.too_large") from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path}: broken gzip file ({error})", "fetch it again", code="data.bad_gzip") from None
    except OSError as error:
        what = f"{path}: cannot be read ({error.strerror})"
        raise DataError(what, "check its permissions", code="data.unreadable") from None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}:{line}: is not UTF-8 text", "save the file as UTF-8", code="data.not_utf8") from None


def _jsonl(path: Path, text: str) -> list[Row]:
    rows = []
    for number, line in enumerate(text.split("\n"), 1):  # not splitlines: JSON may contain U+2028
        if not line.strip():
            continue
        try:
            value = parse_json(line, LINE)
        except ValueError as error:
            raise _not_json(f"{path}:{number}", error) from None
        rows.append(_row(f"{path}:{number}", value))
    return rows


def _json(path: Path, text: str) -> list[Row]:
    if not text.strip():
        return []
    try:
        value = parse_json(text, Limit(DATA.size, max(DATA.marks, len(text) // 8)))
    except ValueError as error:
        line = getattr(error, "lineno", 1)
        if getattr(error, "msg", "") == "Extra data" and line > 1:  # JSON Lines under the name .json: common on the hub
            return _jsonl(path, text)
        raise _not_json(f"{path}:{line}", error) from None
    if isinstance(value, dict):
        lists = [part for part in value.values() if isinstance(part, list)]
        if len(lists) != 1:
            what = f"{path}: contains {len(lists)} lists of rows"
            raise DataError(what, "keep one list of objects", code="data.not_rows")
        value = lists[0]
    if not isinstance(value, list):
        hint = "write [{…}, {…}], or one object per line as .jsonl"
        raise DataError(f"{path}: is not a list of objects", hint, code="data.not_rows")
    return [_row(f"{path}:row {number}", item) for number, item in enumerate(value, 1)]


def _not_json(place: str, error: ValueError) -> DataError:
    if isinstance(error, UnusableError):
        return DataError(f"{place}: {error}", "write it as JSON Lines, an example a line", code="data.too_large")
    reason = f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else error
    return DataError(f"{place}: not JSON ({reason})", "fix the JSON syntax there", code="data.not_json")


def _row(origin: str, value: Any) -> Row:
    if not isinstance(value, dict):
        raise DataError(f"{origin}: is not an object with fields", 'write {"prompt": …, …}', code="data.not_rows")
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
        line = comments + reader.line_num + 1  # where the next record begins; a record may span several lines
        try:
            cells = next(reader, None)
        except csv.Error as error:
            what = f"{path}:{line}: malformed row ({error})"
            raise DataError(what, "fix its quotes", code="data.malformed_row") from None
        if cells is None:
            return rows
        if not cells:
            continue
        if not header:
            header = cells
            if len(set(header)) < len(header):
                message = f"{path}:{line}: two columns have the same name"
                raise DataError(message, "rename one", code="data.duplicate_column")
            continue
        if len(cells) != len(header):
            message = f"{path}:{line}: has {len(cells)} cells, but the header has {len(header)}"
            raise DataError(message, "quote cells that contain the separator", code="data.malformed_row")
        rows.append(Row(f"{path}:{line}", dict(zip(header, cells, strict=True))))


def _parquet(path: Path) -> list[Row]:
    import pyarrow as pa  # type: ignore[import-untyped]
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    try:
        about = pq.ParquetFile(path).metadata
        size = sum(about.row_group(group).total_byte_size for group in range(about.num_row_groups))
        check_size(max(size, about.num_rows * about.num_columns), DATA)
        values = pq.read_table(path).to_pylist()
    except UnusableError as error:
        raise DataError(f"{path}: {error}", "split it into several files", code="data.too_large") from None
    except (pa.ArrowException, OSError) as error:
        reason = str(error).partition("\n")[0]
        what = f"{path}: not a readable Parquet file ({reason})"
        raise DataError(what, "fetch it again", code="data.bad_parquet") from None
    return [Row(f"{path}:row {number}", value) for number, value in enumerate(values, 1)]


_TEXT_READERS: dict[str, Callable[[Path, str], list[Row]]] = {
    ".jsonl": _jsonl,
    ".ndjson": _jsonl,
    ".json": _json,
    ".csv": _csv,
    ".tsv": functools.partial(_csv, delimiter="\t"),
}


def to_prompts(rows: Sequence[Row]) -> list[Prompt]:
    """Convert rows to records. Names of fields are case-insensitive; a field that is null counts as absent.

    Ids are the rows' own (`id`) if every row has one and they are unique; else digests of the content, which do not
    change when rows move.

    Raises:
        DataError: A row has no prompt (`data.no_prompt`), or a field is malformed (`data.bad_field`); the message names
            file and line.
    """
    parsed = [_prompt(row) for row in rows]
    own = [_own_id(row) for row in rows]
    ids = own if all(own) and len(set(own)) == len(own) else _content_ids(parsed)
    return [dataclasses.replace(prompt, id=id_) for prompt, id_ in zip(parsed, ids, strict=True)]


def content(prompt: Prompt) -> str:
    """Return the messages as canonical JSON: equal for two prompts exactly if a model sees the same."""
    return json.dumps([[m.role, m.content] for m in prompt.messages], ensure_ascii=False)


def alike(prompt: Prompt) -> str:
    """Return a key of the messages that ignores case, spacing and Unicode form (NFKC).

    Prompts with the same key count as one prompt, which must not be in two splits.
    """
    folded = [(m.role, unicodedata.normalize("NFKC", m.content).casefold()) for m in prompt.messages]
    return json.dumps([[role, " ".join(text.split())] for role, text in folded])


def prompts_digest(prompts: Sequence[Prompt]) -> str:
    """Return the SHA-256 of a data set: of ids, messages, references, categories and extras, but not of origins."""
    values = [
        # Fields that were added later count only if they are not empty.
        {k: v for k, v in p.to_dict().items() if k != "origin" and (v or k not in ("rendered", "extra"))}
        for p in prompts
    ]
    text = json.dumps(values, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _prompt(row: Row) -> Prompt:
    values = {key.casefold(): value for key, value in row.values.items() if isinstance(key, str) and value is not None}
    if "messages" in values:
        messages, reference = _conversation(_turns(values["messages"], "messages", row.origin), row.origin)
    elif isinstance(values.get("prompt"), list):
        messages = _turns(values["prompt"], "prompt", row.origin)
        reference = _response("prompt", values, row.origin)
        if messages[-1].role == "assistant":
            hint = "put that turn into `completion`"
            raise _bad_field(f"{row.origin}: the prompt ends with a turn of the assistant", hint)
    else:
        messages, reference = _plain(values, row.origin)
    groups = (_text(values[key], key, row.origin) for key in ("category", "type") if isinstance(values.get(key), str))
    category = next((group for group in groups if group), None)
    extra = values.get("extra", {})
    if not isinstance(extra, dict):
        raise _bad_field(f"{row.origin}: `extra` is not an object", 'write {"test": "…", …}')
    return Prompt(
        id="",
        messages=messages,
        reference=reference,
        category=category,
        origin=row.origin,
        extra={name: _text(value, f"extra.{name}", row.origin) for name, value in extra.items()},
    )


def _plain(values: Mapping[str, Any], origin: str) -> tuple[tuple[Message, ...], str | None]:
    """Return a prompt that is a single string, and its response."""
    name = next((name for name in RESPONSES if name in values), None)
    if name is None:
        raise DataError(f"{origin}: no prompt among its fields ({_names(values)})", ACCEPTED, code="data.no_prompt")
    text = _text(values[name], name, origin)
    if name == "instruction" and "input" in values:
        extra = _text(values["input"], "input", origin)
        text = f"{text}\n\n{extra}" if extra.strip() else text
    if not text.strip():
        raise _bad_field(f"{origin}: `{name}` is empty", "fill it in, or remove the row")
    return (Message("user", text),), _response(name, values, origin)


def _response(prompt: str, values: Mapping[str, Any], origin: str) -> str | None:
    """Return the response to the prompt in the field `prompt`; an empty one counts as absent."""
    responses = {}
    for name in RESPONSES[prompt]:
        value = values.get(name)
        if isinstance(value, list) and name == "completion":
            turns = _turns(value, name, origin)
            if len(turns) != 1 or turns[0].role != "assistant":
                raise _bad_field(f"{origin}: `{name}` is not a single turn of the assistant", "keep one")
            value = turns[0].content
        if value is not None and (text := _text(value, name, origin)).strip():
            responses[name] = text
    if len(responses) > 1:
        names = ", ".join(f"`{name}`" for name in responses)
        raise _bad_field(f"{origin}: more than one response: {names}", "keep one of them")
    return next(iter(responses.values()), None)


def _conversation(turns: tuple[Message, ...], origin: str) -> tuple[tuple[Message, ...], str | None]:
    """Split a conversation into the prompt and, if its last turn is the assistant's, the response."""
    reference = None
    if turns[-1].role == "assistant":
        turns, reference = turns[:-1], turns[-1].content
    if not turns or turns[-1].role not in ("user", "tool"):
        raise _bad_field(f"{origin}: no turn of the user before the last answer", "fix `messages`")
    return turns, reference if reference and reference.strip() else None


def _turns(value: Any, name: str, origin: str) -> tuple[Message, ...]:
    if not isinstance(value, list) or not value:
        raise _bad_field(f"{origin}: `{name}` is not a list of turns", 'write [{"role": "user", "content": …}, …]')
    turns = []
    for number, turn in enumerate(value, 1):
        if not isinstance(turn, dict) or "role" not in turn or "content" not in turn:
            raise _bad_field(f"{origin}: turn {number} of `{name}` lacks `role` or `content`", "add it")
        if turn["role"] not in get_args(Role):
            message = f"{origin}: turn {number} of `{name}` has the role {turn['role']!r}"
            raise _bad_field(message, f"known are {', '.join(get_args(Role))}")
        turns.append(Message(turn["role"], _text(turn["content"], f"content` of turn {number} of `{name}", origin)))
    return tuple(turns)


def _text(value: Any, name: str, origin: str) -> str:
    if not isinstance(value, str):
        raise _bad_field(f"{origin}: `{name}` is not text but {type(value).__name__}", "write it as a string")
    if _SURROGATE.search(value):
        raise _bad_field(f"{origin}: `{name}` contains half a surrogate pair", "fix its \\u escapes")
    return value


def _bad_field(message: str, hint: str) -> DataError:
    return DataError(message, hint, code="data.bad_field")


def _names(values: Mapping[str, Any]) -> str:
    """Format the names of the first fields, truncated: in a file without a header they are text of its first row."""
    names = [f"`{key[:24]}…`" if len(key) > 24 else f"`{key}`" for key in values]
    return ", ".join(names[:6] + ["…"] * (len(names) > 6)) or "none"


def _own_id(row: Row) -> str:
    """Return the row's own id, or an empty string."""
    value = row.values.get("id")
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return _text(value, "id", row.origin) if isinstance(value, str) else ""


def _content_ids(prompts: Sequence[Prompt]) -> list[str]:
    seen: Counter[str] = Counter()
    ids = []
    for prompt in prompts:
        text = json.dumps([content(prompt), prompt.reference], ensure_ascii=False)
        key = hashlib.sha256(text.encode()).hexdigest()[:12]
        seen[key] += 1
        ids.append(key if seen[key] == 1 else f"{key}-{seen[key]}")
    return ids
