"""JSON files that Mooring wrote, read back as values of their types; anything else is refused in one line."""

import contextlib
import functools
import json
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from mooring.bounded import LINE, RECORD, Limit, UnusableError, check_size, open_regular, parse_json, read_bytes
from mooring.errors import DataError, UserError

EDITED = "the file may have been edited"
"""The hint for a file that holds something Mooring does not write."""
_LIMITS: dict[str, Any] = {
    "str": {},
    "bool": {},
    "float": {"allow_inf_nan": False},
    "int": {"gt": -(2**63), "lt": 2**63},
}


def dumps(value: Any, **options: Any) -> str:
    """Format plain values as JSON that has a form in UTF-8: a lone surrogate, which has none, is escaped.

    `options` are those of `json.dumps`; characters outside of ASCII stay as they are.
    """
    text = json.dumps(value, ensure_ascii=False, **options)
    # It can only stand inside a string, where JSON can escape it.
    return re.sub("[\ud800-\udfff]", lambda match: f"\\u{ord(match[0]):04x}", text)


def loads(text: str, limit: Limit = RECORD) -> Any:
    """Parse JSON; raise ValueError also for NaN, numbers beyond float64, duplicate keys, deep nesting, and its size."""
    return parse_json(text, limit, parse_constant=_refuse, parse_float=_float, object_pairs_hook=_unique)


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not a JSON number")


def _float(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _refuse(text[:20])


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"duplicate key {next(key for key in keys if keys.count(key) > 1)!r}")
    return values


def read_text(path: Path) -> str:
    """Read a UTF-8 file that Mooring wrote; DataError `data.unreadable` or `data.not_utf8`."""
    with _explained(path):
        return read_bytes(path, RECORD).decode("utf-8")


def read_lines(path: Path) -> Iterator[str]:
    """The lines of a UTF-8 file that Mooring wrote, without their ends; each is within `bounded.LINE`.

    Raises:
        DataError: As `read_text`.
    """
    with _explained(path), os.fdopen(open_regular(path), encoding="utf-8", newline="\n") as stream:
        while line := stream.readline(LINE.size + 1):
            check_size(len(line), LINE)
            yield line.removesuffix("\n")


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    hint = "give a file that mooring wrote"
    try:
        yield
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}", hint, code="data.unreadable") from None
    except UnicodeDecodeError:
        raise DataError(f"{path}: is not UTF-8 text", hint, code="data.not_utf8") from None
    except UnusableError as error:
        raise DataError(f"{path}: {error}", hint, code="data.too_large") from None


def read_as(path: Path, kind: Any, what: str) -> Any:
    """Read a JSON file as a value of a type (`convert`), called `what` in errors; also DataError `data.bad_record`."""
    text = read_text(path)
    try:
        return convert(kind, loads(text))
    except ValueError as error:
        raise DataError(f"{path}: not {what}: {error}", EDITED, code="data.bad_record") from None


def convert(kind: Any, value: Any) -> Any:
    """Convert plain JSON values to a type: objects to dataclasses, arrays to tuples; scalars are never coerced.

    Args:
        kind: A dataclass, or any other type that pydantic knows.
        value: Plain JSON values.

    Raises:
        ValueError: It is not of that type; the message names the place: `trials.0.scores.asr.value`.
    """
    from pydantic import ValidationError

    try:
        return _validator(kind).validate_python(value, extra="forbid")
    except UserError as error:  # a value out of range, such as that of a `MergePoint`
        raise ValueError(error.message) from None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
    messages = {
        "missing": "is missing",
        "unexpected_keyword_argument": "unknown key",
        "dataclass_type": "not an object",
    }
    message = messages.get(first["type"]) or first["msg"][0].lower() + first["msg"][1:]
    place = ".".join(map(str, first["loc"]))
    raise ValueError(f"`{place}`: {message}" if place else message)


@functools.cache
def _validator(kind: Any) -> Any:
    """Pydantic's validator of a type, strict about scalars alone.

    Its own strict mode takes an object for a dataclass only from JSON text, and its parser of that refuses the lone
    surrogates that a model's answer can contain.
    """
    from pydantic import TypeAdapter
    from pydantic_core import SchemaValidator

    def strict(schema: Any) -> Any:
        if isinstance(schema, list):
            return [strict(item) for item in schema]
        if not isinstance(schema, dict):
            return schema
        inner = {key: strict(item) for key, item in schema.items()}
        name = schema.get("type")
        return inner | {"strict": True, **_LIMITS[name]} if isinstance(name, str) and name in _LIMITS else inner

    return SchemaValidator(strict(TypeAdapter(kind).core_schema))
