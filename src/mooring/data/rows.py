"""The ecosystem's shapes of a row, turned into `Prompt` records."""

import csv
import dataclasses
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

from mooring.errors import DataError
from mooring.records import Message, Prompt, Role, to_dict

# --- Rows of a data file, whatever its form, each with the place that it came from ---


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


RESPONSES: Mapping[str, tuple[str, ...]] = {
    "prompt": ("completion", "response", "answer", "output"),
    "instruction": ("output", "response", "completion", "answer"),
    "question": ("answer", "response", "output"),
    "goal": (),  # its neighbour `target` is what an attack wants to hear, not the right answer
    "input": ("target", "output", "response", "answer"),
}
"""What a prompt may be called, the first one found counting, and beside each what its response may be called."""

SURROGATE = re.compile("[\ud800-\udfff]")
"""JSON can hold half a surrogate pair; UTF-8 and tokenizers cannot."""

ACCEPTED = (
    "accepted: `messages`; `prompt` + `completion`; `instruction` (+ `input`) + `output`; "
    "or a prompt alone, as `prompt`, `instruction`, `question`, `goal` or `input`"
)


def to_prompts(rows: Sequence[Row]) -> list[Prompt]:
    """Rows as records. Names of fields are compared without regard to case; a field that is null counts as absent.

    Ids are the rows' own (`id`) where every row has one and no two are alike; else digests of the content, which do
    not change when rows move.

    Raises:
        DataError: A row lacks its fields, or one of them is not what it should be; the message names file and line.
    """
    parsed = [_parse(row) for row in rows]
    own = [_own_id(row) for row in rows]
    ids = own if all(own) and len(set(own)) == len(own) else _content_ids(parsed)
    return [dataclasses.replace(prompt, id=id_) for prompt, id_ in zip(parsed, ids, strict=True)]


def content(prompt: Prompt) -> str:
    """What is asked, as canonical JSON: equal for two prompts exactly if a model sees the same."""
    return json.dumps([[m.role, m.content] for m in prompt.messages], ensure_ascii=False)


def alike(prompt: Prompt) -> str:
    """What is asked, whatever its case, spacing and Unicode form (NFKC): what differs in no more counts as the same
    prompt where none may be in two halves."""
    return json.dumps([[m.role, " ".join(_folded(m.content).split())] for m in prompt.messages])


def _folded(text: str) -> str:
    return unicodedata.normalize("NFKC", text).casefold()


def prompts_digest(prompts: Sequence[Prompt]) -> str:
    """SHA-256 of a data set: of its ids, messages, references, categories, extras in order, not of where they lay."""
    values = [
        # fields that came later count only where they say something
        {k: v for k, v in to_dict(p).items() if k != "origin" and (v or k not in ("rendered", "extra"))}
        for p in prompts
    ]
    text = json.dumps(values, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _parse(row: Row) -> Prompt:
    values = {key.casefold(): value for key, value in row.values.items() if isinstance(key, str) and value is not None}
    if "messages" in values:
        messages, reference = _conversation(_turns(values["messages"], "messages", row.origin), row.origin)
    elif isinstance(values.get("prompt"), list):
        messages = _turns(values["prompt"], "prompt", row.origin)
        reference = _response("prompt", values, row.origin)
        if messages[-1].role == "assistant":
            raise DataError(f"{row.origin}: the prompt ends with the assistant", "put that turn into `completion`")
    else:
        messages, reference = _plain(values, row.origin)
    groups = (_text(values[key], key, row.origin) for key in ("category", "type") if isinstance(values.get(key), str))
    category = next((group for group in groups if group), None)
    extra = values.get("extra", {})
    if not isinstance(extra, dict):
        raise DataError(f"{row.origin}: `extra` is not an object", 'write {"test": "…", …}')
    return Prompt(
        id="",
        messages=messages,
        reference=reference,
        category=category,
        origin=row.origin,
        extra={name: _text(value, f"extra.{name}", row.origin) for name, value in extra.items()},
    )


def _plain(values: Mapping[str, Any], origin: str) -> tuple[tuple[Message, ...], str | None]:
    """A prompt that is one string, and its response."""
    name = next((name for name in RESPONSES if name in values), None)
    if name is None:
        raise DataError(f"{origin}: no prompt among its fields ({_names(values)})", ACCEPTED)
    text = _text(values[name], name, origin)
    if name == "instruction" and "input" in values:
        extra = _text(values["input"], "input", origin)
        text = f"{text}\n\n{extra}" if extra.strip() else text
    if not text.strip():
        raise DataError(f"{origin}: `{name}` is empty", "fill it in, or remove the row")
    return (Message("user", text),), _response(name, values, origin)


def _response(prompt: str, values: Mapping[str, Any], origin: str) -> str | None:
    """The response that goes with a prompt of this name; an empty one counts as absent."""
    found = {}
    for name in RESPONSES[prompt]:
        value = values.get(name)
        if isinstance(value, list) and name == "completion":
            turns = _turns(value, name, origin)
            if len(turns) != 1 or turns[0].role != "assistant":
                raise DataError(f"{origin}: `{name}` is not one turn of the assistant", "keep one")
            value = turns[0].content
        if value is not None and (text := _text(value, name, origin)).strip():
            found[name] = text
    if len(found) > 1:
        raise DataError(f"{origin}: more than one response: {', '.join(f'`{n}`' for n in found)}", "keep one of them")
    return next(iter(found.values()), None)


def _conversation(turns: tuple[Message, ...], origin: str) -> tuple[tuple[Message, ...], str | None]:
    """A conversation as what is asked and, where the assistant has the last word, its response."""
    reference = None
    if turns[-1].role == "assistant":
        turns, reference = turns[:-1], turns[-1].content
    if not turns or turns[-1].role not in ("user", "tool"):
        raise DataError(f"{origin}: no turn of the user before the last answer", "mend `messages`")
    return turns, reference if reference and reference.strip() else None


def _turns(value: Any, name: str, origin: str) -> tuple[Message, ...]:
    if not isinstance(value, list) or not value:
        raise DataError(f"{origin}: `{name}` is not a list of turns", 'write [{"role": "user", "content": …}, …]')
    turns = []
    for number, turn in enumerate(value, 1):
        if not isinstance(turn, dict) or "role" not in turn or "content" not in turn:
            raise DataError(f"{origin}: turn {number} of `{name}` lacks `role` or `content`", "add it")
        if turn["role"] not in get_args(Role):
            raise DataError(
                f"{origin}: turn {number} of `{name}` has the role {turn['role']!r}",
                f"known are {', '.join(get_args(Role))}",
            )
        turns.append(Message(turn["role"], _text(turn["content"], f"content` of turn {number} of `{name}", origin)))
    return tuple(turns)


def _text(value: Any, name: str, origin: str) -> str:
    if not isinstance(value, str):
        raise DataError(f"{origin}: `{name}` is not text but {type(value).__name__}", "write it as a string")
    if SURROGATE.search(value):
        raise DataError(f"{origin}: `{name}` holds half a surrogate pair", "mend its \\u escapes")
    return value


def _names(values: Mapping[str, Any]) -> str:
    """Names of fields for a message; the first ones, cut short, since a file without a header may show its text."""
    names = [f"`{key[:24]}…`" if len(key) > 24 else f"`{key}`" for key in values]
    return ", ".join(names[:6] + ["…"] * (len(names) > 6)) or "none"


def _own_id(row: Row) -> str:
    """The row's own id, or nothing."""
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
