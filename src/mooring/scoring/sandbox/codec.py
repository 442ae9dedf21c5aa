"""Plain values as bytes: what passes between the program in the sandbox and the process that checks it.

Neither `pickle` nor `marshal`: this reads bytes from a hostile program, and only plain values can come out. It is also
loaded inside the sandbox, so it uses only the standard library.
"""

from __future__ import annotations

TYPE_CHECKING = False  # `typing` takes longer to load than a small program takes to run
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

DEEPEST = 100
"""Containers within containers."""
MOST = 200_000
"""Most items taken from an iterator; a longer one, perhaps endless, is opaque."""
_MANY: dict[str, Any] = {"l": list, "t": tuple, "s": set, "f": frozenset, "r": iter}


class Opaque:
    """A value that cannot be encoded. It equals only itself."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def __repr__(self) -> str:
        return f"<{self.kind}>"


def encode(value: Any) -> bytes:
    """A value as bytes: a letter for its type, a length or a count, a colon, and the bytes or the items.

    None, bool, int, float, complex, str, bytes, list, tuple, set, frozenset, dict, range, Fraction and Decimal keep
    their type, values of a subclass become the plain type, iterators and dict views an iterator over their items.
    Anything else becomes an `Opaque`.

    Raises:
        ValueError: Containers are nested more than `DEEPEST` deep, or contain themselves.
    """
    parts: list[bytes] = []
    _encode(value, parts, 0)
    return b"".join(parts)


def _encode(value: Any, parts: list[bytes], depth: int) -> None:
    if depth > DEEPEST:
        raise ValueError("a value is nested too deep")
    if isinstance(value, bool) or value is None:
        parts.append({True: b"T0:", False: b"F0:", None: b"N0:"}[value])
    elif isinstance(value, int):
        _leaf("i", format(int(value), "x"), parts)  # base 16: no limit on digits, and linear time
    elif isinstance(value, float):
        _leaf("d", float.__repr__(value), parts)
    elif isinstance(value, complex):
        _leaf("c", f"{value.real!r} {value.imag!r}", parts)
    elif isinstance(value, str):
        _leaf("u", str.__str__(value), parts)
    elif isinstance(value, bytes | bytearray):
        parts.append(b"b%d:" % len(value) + bytes(value))
    elif isinstance(value, dict):
        items = list(value.items())
        parts.append(b"m%d:" % len(items))
        for key, item in items:
            _encode(key, parts, depth + 1)
            _encode(item, parts, depth + 1)
    elif isinstance(value, range):
        _leaf("g", f"{value.start:x} {value.stop:x} {value.step:x}", parts)
    elif (tag := _container(value)) is not None:
        items = _taken(value)
        if len(items) > MOST and tag == "r":
            return _leaf("o", type(value).__name__[:100], parts)
        parts.append(b"%s%d:" % (tag.encode(), len(items)))
        for item in items:
            _encode(item, parts, depth + 1)
    elif type(value).__module__ in ("fractions", "decimal", "_decimal", "_pydecimal"):
        _leaf("n", f"{type(value).__name__} {value}", parts)
    else:
        _leaf("o", type(value).__name__[:100], parts)


def _leaf(tag: str, text: str, parts: list[bytes]) -> None:
    data = text.encode("utf-8", "surrogatepass")
    parts.append(b"%s%d:" % (tag.encode(), len(data)) + data)


def _container(value: Any) -> str | None:
    for tag, kind in (("l", list), ("t", tuple), ("s", set), ("f", frozenset)):
        if isinstance(value, kind):
            return tag
    views: tuple[type, ...] = (type({}.keys()), type({}.values()), type({}.items()))
    if isinstance(value, type({}.keys())):
        return "s"
    return "r" if hasattr(type(value), "__next__") or isinstance(value, views) else None


def _taken(value: Iterable[Any]) -> list[Any]:
    if isinstance(value, list | tuple | set | frozenset):
        return list(value)
    items = []
    for item in value:
        items.append(item)
        if len(items) > MOST:
            break
    return items


def decode(data: bytes) -> Any:
    """The inverse of `encode`.

    Raises:
        ValueError: These are not the bytes of one value, or a set or a dict holds an unhashable value.
    """
    try:
        value, end = _decode(data, 0, 0)
    except (TypeError, IndexError, KeyError, ArithmeticError) as error:
        raise ValueError(f"not a value: {error}") from None
    if end != len(data):
        raise ValueError("bytes after the value")
    return value


def _decode(data: bytes, at: int, depth: int) -> tuple[Any, int]:
    colon = data.index(b":", at, at + 22)
    tag, count, at = chr(data[at]), int(data[at + 1 : colon]), colon + 1
    if depth > DEEPEST or not 0 <= count <= len(data) - at:
        raise ValueError("not a value")
    if tag in _MANY:
        items = []
        for _ in range(count):
            item, at = _decode(data, at, depth + 1)
            items.append(item)
        return _MANY[tag](items), at
    if tag == "m":
        pairs = {}
        for _ in range(count):
            key, at = _decode(data, at, depth + 1)
            pairs[key], at = _decode(data, at, depth + 1)
        return pairs, at
    return _plain(tag, data[at : at + count]), at + count


def _plain(tag: str, data: bytes) -> Any:
    if tag in "TFN":
        return {"T": True, "F": False, "N": None}[tag]
    if tag == "b":
        return data
    text = data.decode("utf-8", "surrogatepass")
    if tag == "u":
        return text
    if tag == "i":
        return int(text, 16)
    if tag == "d":
        return float(text)
    if tag == "c":
        return complex(*map(float, text.split(" ")))
    if tag == "g":
        return range(*(int(part, 16) for part in text.split(" ")))
    if tag == "o":
        return Opaque(text)
    if tag == "n":
        return _number(*text.split(" "))
    raise ValueError(f"no such type: {tag!r}")


def _number(kind: str, text: str) -> Any:
    if kind == "Fraction":
        from fractions import Fraction

        top, _, bottom = text.partition("/")
        return Fraction(int(top), int(bottom or 1))
    if kind != "Decimal":
        raise ValueError(f"no such type: {kind!r}")
    from decimal import Decimal

    return Decimal(text)
