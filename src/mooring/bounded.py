"""Reading what others wrote, in bounded memory: a file that is larger than its kind ever is, is refused."""

import dataclasses
import errno
import functools
import json
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO

_MARKS = ("[", "{", ",", ":")
_DEEPEST = 100
"""Values within values. A configuration has fewer than ten; much later code is recursive."""
_LONGEST_INTEGER = 300
"""Digits; a longer integer is beyond float64, and takes Python long to parse."""


@dataclasses.dataclass(frozen=True, slots=True)
class Limit:
    """How large a file of some kind may be.

    Attributes:
        size: Bytes.
        marks: Brackets, commas and colons of JSON. Each takes up to 120 bytes of memory when it is parsed.
    """

    size: int
    marks: int


CONFIG = Limit(2**24, 10**6)
"""A model's `config.json`, an adapter's, a recipe for a library: the largest, with a setting for every expert of a
large model, take a few MiB."""
INDEX = Limit(2**26, 2 * 10**6)
"""An index of shards: 10 MiB and 200,000 marks for 91,000 tensors."""
TOKENIZER = Limit(2**26, 4 * 10**6)
"""A `tokenizer.json`: 33 MiB and 2 million marks for 262,000 tokens."""
MANIFEST = Limit(2**27, 4 * 10**6)
"""The manifest of a merge: 30 MiB for 140,000 tensors."""
RECORD = Limit(2**26, 4 * 10**6)
"""A file of a run folder, or a server's answer."""
LINE = Limit(2**24, 10**6)
"""A line of JSON Lines: one prompt with its responses."""
DATA = Limit(2**31, 8 * 10**6)
"""A file of prompts or of examples, decompressed. It is held in memory; one of text may have more marks."""
YAML = Limit(2**18, 50_000)
"""A recipe; parsing YAML takes thousands of bytes and a tenth of a millisecond per mark."""


class UnusableError(ValueError):
    """It is larger than its limit, or is not text in UTF-8; the message says which."""


class NotRegularError(OSError):
    """The path leads to a folder, a pipe or a device, or to a file that the system makes up."""


def open_regular(path: Path) -> int:
    """A descriptor for reading an ordinary file, after following links; the caller closes it.

    Raises:
        NotRegularError: It is a folder, a pipe or a device, which could block the reader forever, or lies in /proc or
            /sys.
        OSError: It cannot be opened.
    """
    if _is_regular(Path(path).stat()):  # before opening, which acts on some devices
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        if _is_regular(os.fstat(handle)):
            return handle
        os.close(handle)
    raise NotRegularError(errno.EINVAL, "is not an ordinary file", str(path))


def _is_regular(found: os.stat_result) -> bool:
    return stat.S_ISREG(found.st_mode) and found.st_dev not in _made_up()


@functools.cache
def _made_up() -> set[int]:
    """The devices of the file systems whose files are made up by the kernel."""
    found = set()
    for place in ("/proc", "/sys"):
        if os.path.ismount(place):
            found.add(Path(place).stat().st_dev)
    return found


def read_bytes(path: Path, limit: Limit) -> bytes:
    """The content of an ordinary file.

    Raises:
        OSError: It cannot be read, or is not an ordinary file (`NotRegularError`).
        UnusableError: It has more bytes than the limit.
    """
    with os.fdopen(open_regular(path), "rb") as stream:
        data = stream.read(limit.size + 1)
    check_size(len(data), limit)
    return data


class ShortReads:
    """A binary stream that refuses large reads, so that no ZIP archive can claim a directory that fills the memory.

    Args:
        stream: The stream.
        most: Bytes of the largest read.
    """

    def __init__(self, stream: BinaryIO, most: int) -> None:
        self.seek, self.tell, self.seekable = stream.seek, stream.tell, stream.seekable
        self._read, self._most = stream.read, most

    def read(self, size: int = -1) -> bytes:
        """As `BinaryIO.read`; UnusableError if there is more than may be read at once."""
        data = self._read(size if 0 <= size <= self._most else self._most + 1)
        if len(data) > self._most:
            raise UnusableError("its directory is far too large")
        return data


def check_size(size: int, limit: Limit) -> None:
    """Raise UnusableError if a number of bytes is over a limit."""
    if size > limit.size:
        raise UnusableError(f"is larger than {limit.size // 2**20 or limit.size / 2**20:g} MiB, the most that is read")


def expanded_limit(size: int) -> Limit:
    """How large the content of a compressed file of data may be, given the bytes of the file.

    Text is rarely compressed to less than a hundredth; a few MiB that claim to be gigabytes are made to fill memory.
    """
    return Limit(min(DATA.size, max(2**28, 100 * size)), DATA.marks)


def parse_json(data: bytes | str, limit: Limit, **options: Any) -> Any:
    """The value of a JSON text, decoded or in UTF-8. `options` are those of `json.loads`.

    Raises:
        UnusableError: It is over the limit, or not text.
        ValueError: It is not JSON, nests too deeply, or holds an integer beyond float64.
    """
    check_size(len(data), limit)
    text = data if isinstance(data, str) else _text(data)
    if count_marks(text) > limit.marks:
        raise UnusableError(f"holds more than {limit.marks:,} values, the most that is read")
    try:
        value = json.loads(text, **{"parse_int": _integer, **options})
    except RecursionError:
        raise ValueError("nests too deeply") from None
    _check_depth(value)
    return value


def count_marks(text: str) -> int:
    """The marks of a JSON text (`Limit.marks`), also of those in strings."""
    return sum(map(text.count, _MARKS))


def _text(data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise UnusableError("is not text in UTF-8") from None


def _integer(digits: str) -> int:
    if len(digits) > _LONGEST_INTEGER:
        raise ValueError(f"{digits[:20]}… is a number of {len(digits)} digits")
    return int(digits)


def _check_depth(value: Any) -> None:
    level: list[Any] = [[value]]
    for _ in range(_DEEPEST):
        level = [
            child
            for each in level
            for child in (each.values() if isinstance(each, dict) else each)
            if isinstance(child, (dict, list))
        ]
        if not level:
            return
    raise ValueError("nests too deeply")


_WRONG_VALUES = (ValueError, AttributeError, LookupError, TypeError)
"""What PyYAML raises for a value that is not of its tag: `!!bool maybe`, a date that does not exist."""


class YAMLError(ValueError):
    """It is not YAML that is accepted; `line` is counted from 1, or None if it is not known."""

    def __init__(self, problem: str, line: int | None = None) -> None:
        super().__init__(problem)
        self.line = line


def parse_yaml(data: bytes, limit: Limit) -> Any:
    """The value of a YAML text in UTF-8, of plain types only.

    Raises:
        UnusableError: It is not text.
        YAMLError: It is over the limit, is not YAML, nests too deeply, refers to itself, or is over the limit once its
            references are followed.
    """
    import yaml

    text = _text(data)
    try:
        check_size(len(data), limit)
        if text.count("[") + text.count("{") > limit.marks:  # before parsing, which is quadratic in their depth
            raise UnusableError(f"holds more than {limit.marks:,} values, the most that is read")
        value = yaml.load(text, _loader(limit))  # a SafeLoader
        if _values(value, {}, _DEEPEST) > limit.marks:
            raise UnusableError(f"holds more than {limit.marks:,} values, the most that is read")
    except (yaml.YAMLError, RecursionError, *_WRONG_VALUES) as error:
        mark = getattr(error, "problem_mark", None)
        own = str(error) if type(error) in (ValueError, UnusableError) else "not YAML"
        raise YAMLError(getattr(error, "problem", None) or own, mark.line + 1 if mark else None) from None
    return value


@functools.cache
def _loader(limit: Limit) -> Any:
    """A safe loader of YAML in which merge keys (`<<`) bring at most as many entries as the limit has marks.

    Each copies the entries of what it names, so that a few lines of them would otherwise take minutes and gigabytes.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        merged = 0

        def flatten_mapping(self, node: yaml.MappingNode) -> None:
            super().flatten_mapping(node)
            self.merged += len(node.value)
            if self.merged > limit.marks:
                raise UnusableError(f"holds more than {limit.marks:,} values, the most that is read")

    return Loader


def _values(value: Any, known: dict[int, int], depth: int) -> int:
    """How many values a value holds, those that are referred to several times counted each time."""
    if not isinstance(value, (dict, list, set, tuple)):
        if type(value) is int and value.bit_length() > 1024:
            raise ValueError("holds a number beyond float64")
        return 1
    if id(value) not in known:
        if not depth:
            raise ValueError("nests too deeply")
        known[id(value)] = -1
        within = value.values() if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(_values(each, known, depth - 1) for each in within)
    elif known[id(value)] < 0:
        raise ValueError("refers to itself")
    return known[id(value)]
