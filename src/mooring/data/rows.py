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
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from mooring import calls
from mooring.bounded import DATA, LINE, Limit, UnusableError, check_size, expanded_limit, parse_json, read_bytes
from mooring.config import DataFields
from mooring.errors import DataError
from mooring.records import Message, Prompt, Role, ToolCall
from mooring.thinking import joined, split_thoughts

ACCEPTED = (
    "accepted: `messages`; `prompt` + `completion`; `instruction` (+ `input` or `context`) + `output`; "
    "or a prompt alone, as `prompt`, `instruction`, `question`, `goal` or `input`; with any of them `system`, `history`"
)
SYSTEM = ("system", "system_prompt", "system_message")
"""The names of a system prompt beside a prompt or a conversation."""
THOUGHTS = ("reasoning_content", "reasoning", "thinking")
"""The names of what an assistant thought, in its turn."""
CALLS = ("tool_calls", "function_call")
"""The names of calls in an assistant's turn."""
TOOLS = ("tools", "functions")
"""The names of the functions that a model may call."""
SHAREGPT: Mapping[str, Role] = {
    "human": "user",
    "gpt": "assistant",
    "bot": "assistant",
    "function_call": "assistant",
    "tool_call": "assistant",
    "observation": "tool",
    "function": "tool",
}
"""ShareGPT's names of roles, and the older name of OpenAI's API for a function's result."""
CALLING = ("function_call", "tool_call")
"""ShareGPT's roles whose text is a call, as JSON."""
CONVERSATIONS = ("messages", "conversations", "conversation")
"""The names of a conversation's field."""
SHOWN = 8
"""Names of fields in a note about those that are not read."""
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


class Fields(Mapping[str, Any]):
    """The fields of a row that are not null, by their names in lower case; which of them were read is remembered.

    Args:
        values: The row.
        named: Which fields hold the prompt, the response and the conversation; each then has its usual name, and the
            other fields that could be taken for it are not read.
    """

    def __init__(self, values: Mapping[str, Any], named: DataFields | None = None) -> None:
        own = {key.casefold(): value for key, value in values.items() if isinstance(key, str) and value is not None}
        self._values = own
        self.unread = dict.fromkeys(own)
        if named is not None and any(name in own for name in named.names):
            self._values = _as_named(own, named)
            self.unread = dict.fromkeys(name for name in own if name not in named.names)

    def __getitem__(self, name: str) -> Any:
        value = self._values[name]
        self.unread.pop(name, None)
        return value

    def __contains__(self, name: object) -> bool:
        return name in self._values

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


def _as_named(own: Mapping[str, Any], named: DataFields) -> dict[str, Any]:
    """Fields under their usual names, where a user has named them."""
    prompt, completion, messages = (
        name.casefold() if name else None for name in (named.prompt_field, named.completion_field, named.messages_field)
    )
    replaced: dict[str, Any] = {}
    dropped: set[str] = set()
    if messages in own:  # beside a response of its own, it is the prompt
        replaced["prompt" if completion in own else "messages"] = own[str(messages)]
        dropped |= {*CONVERSATIONS, *RESPONSES}
    elif prompt in own:
        replaced["prompt"] = own[str(prompt)]
        dropped |= {*CONVERSATIONS, *RESPONSES}
    if completion in own:
        replaced["completion"] = own[str(completion)]
        dropped |= {*CONVERSATIONS, *(name for names in RESPONSES.values() for name in names)}
        if "prompt" not in replaced and (usual := next((name for name in RESPONSES if name in own), None)):
            names = RESPONSES[usual]
            replaced[names[0] if names else "completion"] = replaced.pop("completion")
    others = {name: value for name, value in own.items() if name not in dropped and name not in named.names}
    return others | replaced


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
            limit = expanded_limit(len(data))
            with gzip.open(io.BytesIO(data)) as stream:
                data = stream.read(limit.size + 1)
            check_size(len(data), limit)
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

    try:
        values = _parquet_values(path)
    except UnusableError as error:
        raise DataError(f"{path}: {error}", "split it into several files", code="data.too_large") from None
    except (pa.ArrowException, OSError) as error:
        reason = str(error).partition("\n")[0]
        what = f"{path}: not a readable Parquet file ({reason})"
        raise DataError(what, "fetch it again", code="data.bad_parquet") from None
    return [Row(f"{path}:row {number}", value) for number, value in enumerate(values, 1)]


def _parquet_values(path: Path) -> list[dict[str, Any]]:
    """The rows of a Parquet file, read in parts: a value that is repeated takes no room in the file."""
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    with pq.ParquetFile(path) as file:
        about = file.metadata
    groups = (about.row_group(number) for number in range(about.num_row_groups))
    columns = [group.column(number) for group in groups for number in range(group.num_columns)]
    stored = path.stat().st_size
    limit, most = expanded_limit(stored), max(DATA.marks, stored)
    check_size(sum(column.total_uncompressed_size for column in columns), limit)
    if max(sum(column.num_values for column in columns), about.num_rows) > most:
        raise UnusableError(f"holds more than {most:,} values, the most that is read")
    schema = (about.schema.column(number) for number in range(about.num_columns))
    texts = [each.path for each in schema if each.physical_type == "BYTE_ARRAY" and each.logical_type.type != "DECIMAL"]
    values: list[dict[str, Any]] = []
    size = 0
    with pq.ParquetFile(path, read_dictionary=texts) as file:
        for batch in file.iter_batches(_BATCH):
            size += sum(map(_decoded_size, batch.columns))
            check_size(size, limit)
            values += batch.to_pylist()
    return values


_BATCH = 1024


def _decoded_size(array: Any) -> int:
    """Bytes of an Arrow array, each repetition of a text counted."""
    import pyarrow as pa
    import pyarrow.compute as pc  # type: ignore[import-untyped]

    kind = array.type
    if pa.types.is_dictionary(kind):
        return pc.sum(pc.binary_length(array.dictionary).take(array.indices)).as_py() or 0
    if pa.types.is_struct(kind):
        return sum(map(_decoded_size, array.flatten()))
    if pa.types.is_map(kind):
        return _decoded_size(array.keys) + _decoded_size(array.items)
    lists = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    return _decoded_size(array.flatten()) if lists else array.nbytes


_TEXT_READERS: dict[str, Callable[[Path, str], list[Row]]] = {
    ".jsonl": _jsonl,
    ".ndjson": _jsonl,
    ".json": _json,
    ".csv": _csv,
    ".tsv": functools.partial(_csv, delimiter="\t"),
}


def to_prompts(
    rows: Sequence[Row], on_note: Callable[[str], object] | None = None, named: DataFields | None = None
) -> list[Prompt]:
    """Convert rows to records. Names of fields are case-insensitive; a field that is null counts as absent.

    `on_note` receives one line about all fields that are not read, and in how many rows they are. `named` says which
    fields hold the prompt, the response and the conversation; rows of which none has these are read as usual, with a
    note.

    Ids are the rows' own (`id`) if every row has one and they are unique; else digests of the content, which do not
    change when rows move.

    Raises:
        DataError: A row has no prompt (`data.no_prompt`), or a field is malformed (`data.bad_field`); the message names
            file and line.
    """
    unread: Counter[str] = Counter()
    parsed = []
    for row in rows:
        fields = Fields(row.values, named)
        parsed.append(_prompt(row, fields))
        unread.update(fields.unread.keys())
    if on_note and unread:
        on_note(_unread_note(rows, unread))
    if on_note and named and named.names:
        present = {key.casefold() for row in rows for key in row.values if isinstance(key, str)}
        for name in (name for name in named.names if name not in present):
            on_note(f"{_file(rows)}: no row has the field `{name}`, so that the usual names count")
    own = [_own_id(row) for row in rows]
    ids = own if all(own) and len(set(own)) == len(own) else _content_ids(parsed)
    return [dataclasses.replace(prompt, id=id_) for prompt, id_ in zip(parsed, ids, strict=True)]


def content(prompt: Prompt) -> str:
    """Return the messages as canonical JSON: equal for two prompts, with the same tools, if a model sees the same."""
    return json.dumps([[m.role, calls.as_text(m)] for m in prompt.messages], ensure_ascii=False)


def alike(prompt: Prompt) -> str:
    """Return a key of the messages that ignores case, spacing and Unicode form (NFKC).

    Prompts with the same key count as one prompt, which must not be in two splits.
    """
    folded = [(m.role, unicodedata.normalize("NFKC", calls.as_text(m)).casefold()) for m in prompt.messages]
    return json.dumps([[role, " ".join(text.split())] for role, text in folded])


LATER = ("rendered", "extra", "prefill", "prefill_tokens", "variant_of", "follow_ups", "tools", "reference_turn")
"""Fields of a prompt that were added later: digests contain them only if they are not empty."""
LATER_OF_TURNS = ("tool_calls", "tool_call_id", "name")
"""Fields of a turn that were added later."""


def prompts_digest(prompts: Sequence[Prompt]) -> str:
    """Return the SHA-256 of a data set: of ids, messages, references, categories and extras, but not of origins."""
    values = [{k: v for k, v in p.to_dict().items() if k != "origin" and (v or k not in LATER)} for p in prompts]
    for value in values:
        value["messages"] = [
            {k: v for k, v in turn.items() if v or k not in LATER_OF_TURNS} for turn in value["messages"]
        ]
    text = json.dumps(values, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _unread_note(rows: Sequence[Row], unread: Counter[str]) -> str:
    """A line about the fields that were not read."""
    names = [f"`{name}` ({count} of {len(rows)} rows)" for name, count in unread.most_common(SHOWN)]
    more = f" and {len(unread) - SHOWN} more" if len(unread) > SHOWN else ""
    return f"{_file(rows)}: fields that are not read: {', '.join(names)}{more}"


def _file(rows: Sequence[Row]) -> str:
    """The file that rows are from."""
    return re.sub(r":(?:row )?\d+$", "", rows[0].origin)


def _prompt(row: Row, values: Fields) -> Prompt:
    named = next((name for name in CONVERSATIONS if name in values), None)
    if named is not None:
        turns = _turns(values[named], named, row.origin, values)
        messages, response = _conversation(turns, row.origin)
    elif "prompt" in values and isinstance(values["prompt"], list):
        messages = _turns(values["prompt"], "prompt", row.origin, values)
        response = _response("prompt", values, row.origin)
        if messages[-1].role == "assistant":
            hint = "put that turn into `completion`"
            raise _bad_field(f"{row.origin}: the prompt ends with a turn of the assistant", hint)
    else:
        messages, response = _plain(values, row.origin)
    messages = (*_before(values, messages, row.origin), *messages)
    groups = [
        _text(value, key, row.origin) for key in ("category", "type") if isinstance(value := values.get(key), str)
    ]
    category = next((group for group in groups if group), None)
    values.unread.pop("id", None)
    extra = values.get("extra", {})
    if not isinstance(extra, dict):
        raise _bad_field(f"{row.origin}: `extra` is not an object", 'write {"test": "…", …}')
    return Prompt(
        id="",
        messages=messages,
        reference=calls.as_text(response) if response else None,
        category=category,
        origin=row.origin,
        extra={name: _text(value, f"extra.{name}", row.origin) for name, value in extra.items()},
        tools=_tools(values, row.origin),
        reference_turn=response if response and response.tool_calls else None,
    )


def _tools(values: Fields, origin: str) -> tuple[Mapping[str, Any], ...]:
    """The functions that a model may call."""
    name = next((name for name in TOOLS if not _is_blank(values.get(name))), None)
    if name is None:
        return ()
    try:
        return calls.parse_tools(values[name])
    except ValueError as error:
        hint = 'write [{"type": "function", "function": {"name": …, "description": …, "parameters": …}}]'
        raise _bad_field(f"{origin}: `{name}`: {error}", hint) from None


def _before(values: Fields, messages: Sequence[Message], origin: str) -> list[Message]:
    """The system message and the earlier turns that are in fields of their own."""
    before: list[Message] = []
    for name in SYSTEM:
        if isinstance(values.get(name), str) and (text := _text(values[name], name, origin)).strip():
            before.append(Message("system", text))
    own = [message.content for message in messages[:1] if message.role == "system"]
    texts = dict.fromkeys([*(message.content for message in before), *own])
    if len(texts) > 1:
        raise _bad_field(f"{origin}: has {len(texts)} different system prompts", "keep one of them")
    history = _history(values.get("history"), origin)
    if history and len(messages) > 1:
        raise _bad_field(f"{origin}: has `history` beside a conversation", "put its turns into the conversation")
    return [*([] if own else before[:1]), *history]


def _history(value: Any, origin: str) -> list[Message]:
    """Earlier turns: LLaMA-Factory's pairs of a question and its answer, or messages."""
    if _is_blank(value):
        return []
    hint = 'write [["question", "answer"], …], or put them into `messages`'
    if not isinstance(value, list):
        raise _bad_field(f"{origin}: `history` is not a list of turns", hint)
    if all(isinstance(turn, dict) for turn in value):
        return list(_turns(value, "history", origin))
    turns: list[Message] = []
    for pair in value:
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise _bad_field(f"{origin}: `history` has a turn that is not a question and its answer", hint)
        asked, answered = (_text(part, "history", origin) for part in pair)
        turns += [Message("user", asked), Message("assistant", answered)]
    return turns


def _is_blank(value: Any) -> bool:
    """Whether a field says nothing: null, or an empty text, list or object, also as JSON in a text."""
    if isinstance(value, str):
        return value.strip() in ("", "[]", "{}", "null")
    return value is None or (isinstance(value, list | tuple | dict) and not value)


def _plain(values: Fields, origin: str) -> tuple[tuple[Message, ...], Message | None]:
    """Return a prompt that is a single string, and its response."""
    name = next((name for name in RESPONSES if name in values), None)
    if name is None:
        raise DataError(f"{origin}: no prompt among its fields ({_names(values)})", ACCEPTED, code="data.no_prompt")
    text = _text(values[name], name, origin)
    if name == "instruction" and "input" in values:
        extra = _text(values["input"], "input", origin)
        text = f"{text}\n\n{extra}" if extra.strip() else text
    if "context" in values and isinstance(values["context"], str):
        extra = _text(values["context"], "context", origin)
        text = f"{text}\n\n{extra}" if extra.strip() else text
    elif "context" in values:
        values.unread["context"] = None
    if not text.strip():
        raise _bad_field(f"{origin}: `{name}` is empty", "fill it in, or remove the row")
    return (Message("user", text),), _response(name, values, origin)


def _response(prompt: str, values: Fields, origin: str) -> Message | None:
    """Return the response to the prompt in the field `prompt`, with its thoughts; an empty one counts as absent."""
    responses: dict[str, Message] = {}
    for name in RESPONSES[prompt]:
        value = values.get(name)
        if isinstance(value, list) and name == "completion":
            turns = _turns(value, name, origin, values)
            if len(turns) != 1 or turns[0].role != "assistant":
                raise _bad_field(f"{origin}: `{name}` is not a single turn of the assistant", "keep one")
            responses |= {name: turns[0]} if calls.as_text(turns[0]).strip() else {}
        elif value is not None and (text := _text(value, name, origin)).strip():
            responses[name] = Message("assistant", text)
    if len(responses) > 1:
        names = ", ".join(f"`{name}`" for name in responses)
        raise _bad_field(f"{origin}: more than one response: {names}", "keep one of them")
    response = next(iter(responses.values()), None)
    if response is not None and "reasoning_content" in values and isinstance(values["reasoning_content"], str):
        thoughts = _text(values["reasoning_content"], "reasoning_content", origin)
        return dataclasses.replace(response, content=_with_thoughts(thoughts, response.content))
    return response


def _with_thoughts(thoughts: str, answer: str) -> str:
    """A response with what was thought before it, which `thinking.split_thoughts` finds again."""
    return joined(thoughts.strip(), answer) if thoughts.strip() and split_thoughts(answer).thoughts is None else answer


def _conversation(turns: tuple[Message, ...], origin: str) -> tuple[tuple[Message, ...], Message | None]:
    """Split a conversation into the prompt and, if its last turn is the assistant's, the response."""
    response = None
    if turns[-1].role == "assistant":
        turns, response = turns[:-1], turns[-1]
    if not turns or turns[-1].role not in ("user", "tool"):
        raise _bad_field(f"{origin}: no turn of the user before the last answer", "fix `messages`")
    return turns, response if response and calls.as_text(response).strip() else None


def _turns(value: Any, name: str, origin: str, row: Fields | None = None) -> tuple[Message, ...]:
    """The turns in a field; names of fields in them that are not read are added to the row's, as `messages[].name`."""
    if not isinstance(value, list) or not value:
        raise _bad_field(f"{origin}: `{name}` is not a list of turns", 'write [{"role": "user", "content": …}, …]')
    turns = []
    for number, turn in enumerate(value, 1):
        place = f"turn {number} of `{name}`"
        if not isinstance(turn, dict):
            raise _bad_field(f"{origin}: {place} lacks `role` or `content`", "add it")
        fields = Fields(turn)
        sharegpt = "role" not in fields and "from" in fields
        role: Any
        role, content = (fields.get(key) for key in (("from", "value") if sharegpt else ("role", "content")))
        named = next((key for key in CALLS if not _is_blank(fields.get(key))), None)
        made = () if named is None else _made(fields[named], f"{origin}: {place}: `{named}`")
        if sharegpt and role in CALLING:
            made, content = _made(content, f"{origin}: {place}"), ""
        if role is None or (content is None and not made):
            raise _bad_field(f"{origin}: {place} lacks `role` or `content`", "add it")
        content = "" if content is None else content
        if isinstance(role, str) and (sharegpt or role == "function"):
            role = SHAREGPT.get(role, role)
        if role not in get_args(Role):
            message = f"{origin}: {place} has the role {role!r}"
            raise _bad_field(message, f"known are {', '.join(get_args(Role))}")
        if made and role != "assistant":
            raise _bad_field(f"{origin}: {place} calls functions, which only the assistant does", "fix its role")
        text = _text(_joined_parts(content), f"content` of turn {number} of `{name}", origin)
        if role == "assistant" and number == len(value):  # templates leave out the thoughts of earlier turns
            thoughts = next((each for key in THOUGHTS if isinstance(each := fields.get(key), str) and each.strip()), "")
            text = _with_thoughts(_text(thoughts, THOUGHTS[0], origin), text)
        result = {}
        if role == "tool":
            result = {key: _text(fields[key], key, origin) for key in ("tool_call_id", "name") if key in fields}
        if row is not None:
            row.unread.update(dict.fromkeys(f"{name}[].{key}" for key in fields.unread))
        turns.append(Message(role, text, made, **result))
    return tuple(turns)


def _made(value: Any, place: str) -> tuple[ToolCall, ...]:
    """The calls of a turn."""
    try:
        return calls.parse_calls(value)
    except ValueError as error:
        hint = 'write [{"type": "function", "function": {"name": …, "arguments": {…}}}]'
        raise _bad_field(f"{place} has {error}", hint) from None


def _joined_parts(content: Any) -> Any:
    """Content that is a list of texts, as OpenAI's API has it, as one text; any other content as it is."""
    if isinstance(content, list) and content:
        parts = [part if isinstance(part, dict) else {} for part in content]
        if all(part.get("type") == "text" and isinstance(part.get("text"), str) for part in parts):
            return "".join(part["text"] for part in parts)
    return content


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
