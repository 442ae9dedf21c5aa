"""Plain values as bytes: what passes between the program in the sandbox and the process that checks it.

Neither `pickle` nor `marshal`: this reads bytes from a hostile program, and only plain values can come out. It is also
loaded inside the sandbox, so it uses only the standard library.
"""

from __future__ import annotations

from itertools import islice

TYPE_CHECKING = False  # `typing` takes longer to load than a small program takes to run
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

DEEPEST = 100
"""The deepest nesting of containers."""
MOST = 200_000
"""The most items taken from an iterator; a longer one, perhaps endless, is opaque."""


class Opaque:
    """A value that cannot be encoded. It equals only itself."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def __repr__(self) -> str:
        return f"<{self.kind}>"


def _number(text: str) -> Any:
    kind, digits = text.split(" ")
    if kind == "Fraction":
        from fractions import Fraction

        top, _, bottom = digits.partition("/")
        return Fraction(int(top), int(bottom or 1))
    if kind == "Decimal":
        from decimal import Decimal

        return Decimal(digits)
    raise ValueError(f"no such type: {kind!r}")


_CONSTANTS: dict[str, Any] = {"T": True, "F": False, "N": None}
_LEAVES: dict[str, tuple[type, Callable[[Any], str], Callable[[str], Any]]] = {
    "i": (int, lambda value: format(int(value), "x"), lambda text: int(text, 16)),  # linear time, no limit on digits
    "d": (float, float.__repr__, float),
    "c": (complex, lambda value: f"{value.real!r} {value.imag!r}", lambda text: complex(*map(float, text.split(" ")))),
    "u": (str, str.__str__, str),
    "g": (
        range,
        lambda value: f"{value.start:x} {value.stop:x} {value.step:x}",
        lambda text: range(*(int(part, 16) for part in text.split(" "))),
    ),
}
_CONTAINERS: dict[str, Any] = {"l": list, "t": tuple, "s": set, "f": frozenset}
_READERS: dict[str, Callable[[str], Any]] = {tag: read for tag, (_, _, read) in _LEAVES.items()}
_READERS |= {"o": Opaque, "n": _number}
_KEYS: Any = type({}.keys())
_VIEWS: Any = (type({}.values()), type({}.items()))


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
    for tag, constant in _CONSTANTS.items():
        if value is constant:
            return _leaf(tag, b"", parts)
    for tag, (kind, write, _) in _LEAVES.items():
        if isinstance(value, kind):
            return _leaf(tag, write(value).encode("utf-8", "surrogatepass"), parts)
    if isinstance(value, bytes | bytearray):
        return _leaf("b", bytes(value), parts)
    if isinstance(value, dict):
        return _items("m", [each for pair in value.items() for each in pair], parts, depth)
    for tag, container in _CONTAINERS.items():
        if isinstance(value, container):
            return _items(tag, list(value), parts, depth)
    if isinstance(value, _KEYS):
        return _items("s", list(value), parts, depth)
    if hasattr(type(value), "__next__") or isinstance(value, _VIEWS):
        items = list(islice(value, MOST + 1))
        if len(items) <= MOST:
            return _items("r", items, parts, depth)
    if type(value).__module__ in ("fractions", "decimal", "_decimal", "_pydecimal"):
        return _leaf("n", f"{type(value).__name__} {value}".encode("utf-8", "surrogatepass"), parts)
    return _leaf("o", type(value).__name__[:100].encode("utf-8", "surrogatepass"), parts)


def _leaf(tag: str, data: bytes, parts: list[bytes]) -> None:
    parts.append(b"%s%d:" % (tag.encode(), len(data)) + data)


def _items(tag: str, items: list[Any], parts: list[bytes], depth: int) -> None:
    parts.append(b"%s%d:" % (tag.encode(), len(items) // 2 if tag == "m" else len(items)))
    for item in items:
        _encode(item, parts, depth + 1)


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
    if tag == "m" or tag == "r" or tag in _CONTAINERS:
        items = []
        for _ in range(count * 2 if tag == "m" else count):
            item, at = _decode(data, at, depth + 1)
            items.append(item)
        if tag == "m":
            return dict(zip(items[::2], items[1::2], strict=True)), at
        return (iter(items) if tag == "r" else _CONTAINERS[tag](items)), at
    data = data[at : at + count]
    if tag in _CONSTANTS:
        return _CONSTANTS[tag], at + count
    return (data if tag == "b" else _READERS[tag](data.decode("utf-8", "surrogatepass"))), at + count
