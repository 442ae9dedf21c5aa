"""From JSON on the disk to values of the right types: what else a file holds is refused in one line."""

import dataclasses
import functools
import json
import math
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from mooring.errors import DataError

EDITED = "was the file edited by hand?"
"""What is asked of a file that holds something else than Mooring writes."""


def loads(text: str) -> Any:
    """A JSON value as Mooring writes it.

    Raises:
        ValueError: It is not JSON, holds NaN or a number that no float holds, a key twice, or nests too deeply.
    """
    try:
        return json.loads(text, parse_constant=_refuse, parse_float=_number, object_pairs_hook=_once)
    except RecursionError:
        raise ValueError("it nests too deeply") from None


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not a JSON number")


def _number(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _refuse(text[:20])


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} is there twice")
    return found


def read_text(path: Path) -> str:
    """The text of a file that Mooring wrote.

    Raises:
        DataError: It cannot be read, or is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}", "name a file that mooring wrote") from None
    except UnicodeDecodeError:
        raise DataError(f"{path}: is not UTF-8 text", "name a file that mooring wrote") from None


def read_json(path: Path) -> Any:
    """The value of a JSON file that Mooring wrote.

    Raises:
        DataError: It cannot be read, or is not JSON.
    """
    try:
        return loads(read_text(path))
    except ValueError as error:
        raise DataError(f"{path}: not JSON: {error}", EDITED) from None


def read_as(path: Path, kind: Any, what: str) -> Any:
    """The value of a JSON file that Mooring wrote, of a type as `fit` takes them; `what` names it in errors.

    Raises:
        DataError: It cannot be read, or holds something else.
    """
    value = read_json(path)
    try:
        return fit(kind, value)
    except ValueError as error:
        raise DataError(f"{path}: not {what}: {error}", EDITED) from None


class MisfitError(ValueError):
    """A value is not of the type that is wanted of it, or, where `place` says more, something in it is not."""

    def __init__(self, what: str, *place: object) -> None:
        self.what, self.place = what, place
        where = ".".join(map(str, place))
        super().__init__(f"`{where}`: {what}" if place else what)


def fit(kind: Any, value: Any) -> Any:
    """A plain value as a value of a type: dataclasses from mappings, all else as it is.

    Args:
        kind: A dataclass, `str`, `int`, `float`, `bool`, `None`, `Any`, or a `Literal`, union, `Mapping`, `Sequence` or
            `tuple` of these. An int will do for a float, but nothing else for anything else.
        value: Plain JSON values.

    Raises:
        ValueError: It does not fit; the message names the place in it: `trials.0.scores.asr.value`.
    """
    if kind is Any:
        return value
    if dataclasses.is_dataclass(kind):
        return _record(kind, value)
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Literal:
        if not isinstance(value, str) or value not in inner:
            raise ValueError(f"{_said(value)} is not one of {', '.join(inner)}")
        return value
    if origin in (types.UnionType, typing.Union):
        if value is None and types.NoneType in inner:
            return None
        return fit(next(each for each in inner if each is not types.NoneType), value)
    if origin is Mapping:
        return {_key(key): _at(key, inner[1], each) for key, each in _of(dict, value, "a mapping").items()}
    if origin is tuple and inner[1] is not ...:
        if len(_of(list, value, "a list")) != len(inner):
            raise ValueError(f"holds {len(value)} values, not {len(inner)}")
        return tuple(_at(place, each, part) for place, (each, part) in enumerate(zip(inner, value, strict=True)))
    if origin in (tuple, Sequence):
        found = [_at(place, inner[0], each) for place, each in enumerate(_of(list, value, "a list"))]
        return tuple(found) if origin is tuple else found
    return _scalar(kind, value)


def _scalar(kind: Any, value: Any) -> Any:
    if kind is float and type(value) in (int, float):
        try:
            number = float(value)
        except OverflowError:
            raise ValueError("is too large a number") from None
        return number if math.isfinite(number) else _refuse(str(number))
    if type(value) is not kind:
        raise ValueError(f"{_said(value)} is not {_NAMES[kind]}")
    if kind is int and abs(value) >= 2**63:
        raise ValueError("is too large a number")
    return value


_NAMES = {str: "a text", int: "a whole number", float: "a number", bool: "true or false", types.NoneType: "null"}


def _record(kind: Any, value: Any) -> Any:
    hints, needed = _fields(kind)
    if not isinstance(value, Mapping):
        raise ValueError(f"{type(value).__name__} is no mapping of keys to values")
    if unknown := [key for key in value if key not in hints]:
        raise MisfitError("unknown key", unknown[0])
    if missing := [name for name in needed if name not in value]:
        raise MisfitError("is missing", missing[0])
    return kind(**{name: _at(name, hints[name], each) for name, each in value.items()})


@functools.cache
def _fields(kind: Any) -> tuple[dict[str, Any], list[str]]:
    """The types of a dataclass's fields, and the names of those without a default."""
    fields = dataclasses.fields(kind)
    none = dataclasses.MISSING
    needed = [each.name for each in fields if each.default is none and each.default_factory is none]
    hints = typing.get_type_hints(kind)
    return {each.name: hints[each.name] for each in fields}, needed


def _at(place: object, kind: Any, value: Any) -> Any:
    """`fit`, with the place in the message."""
    try:
        return fit(kind, value)
    except ValueError as error:
        what, inner = (error.what, error.place) if isinstance(error, MisfitError) else (str(error), ())
        raise MisfitError(what, place, *inner) from None


def _of(kind: type, value: Any, name: str) -> Any:
    if isinstance(value, tuple) and kind is list:
        return value
    if not isinstance(value, kind):
        raise ValueError(f"{_said(value)} is not {name}")
    return value


def _key(key: Any) -> str:
    return str(_scalar(str, key))


def _said(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}…"
