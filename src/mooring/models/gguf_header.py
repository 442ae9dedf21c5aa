"""The header of a GGUF file, checked before a library reads it: every count and length lies in the file.

A file is `GGUF`, a version, the numbers of tensors and of metadata, the metadata (key, type, value), the tensors (name,
shape, type, offset), padding, and the tensors' bytes. Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

import math
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from mooring.errors import ModelError
from mooring.models.safetensors_file import open_regular

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""Type of a value to its form in `struct`."""
_STRING, _ARRAY = 8, 9
_MOST_VALUES = 4_000_000
"""Values of all metadata together: a vocabulary of 262,000 tokens has 1.3 million with its merges."""
_MOST_TENSORS = 300_000
_LONGEST_NAME = 1000
_LONGEST_TEXT = 2**24
"""Bytes, of which a chat template takes some thousands."""
_LONGEST_HEADER = 2**27
_MOST_AXES = 4
_LARGEST_SIZE = 2**21
"""Of a layer or a vocabulary, and of counts such as heads and experts."""
_ALIGNMENT = "general.alignment"


def check_header(file: Path) -> None:
    """Check that a GGUF file has a usable header, and all the bytes that the header says.

    Raises:
        ModelError: It cannot be read (`model.unreadable`), is not GGUF (`model.not_gguf`), or is truncated or malformed
            (`model.corrupt`).
    """
    with os.fdopen(open_regular(file), "rb") as stream:
        if stream.read(len(_MAGIC)) != _MAGIC:
            raise ModelError(f"{file}: is not a GGUF file", "name a .gguf file", code="model.not_gguf")
        try:
            _Header(stream, os.fstat(stream.fileno()).st_size).check()
        except ValueError as error:
            raise ModelError(
                f"{file}: is truncated or corrupt: {error}", "fetch it again", code="model.corrupt"
            ) from None


class _Header:
    """Reads a header from behind its magic number; every fault is a ValueError."""

    def __init__(self, stream: BinaryIO, size: int) -> None:
        self._stream, self._size, self._values = stream, size, 0

    def check(self) -> None:
        """Read the header to its end, and compare it with the size of the file."""
        if (version := self._number("I")) not in _VERSIONS:
            raise ValueError(f"version {version} is unknown")
        tensors, metadata = self._number("Q"), self._number("Q")
        if not 0 < tensors <= _MOST_TENSORS:
            raise ValueError(f"it cannot hold {tensors} tensors")
        self._count(metadata)
        known = dict(self._pairs(metadata))
        self._check_sizes(known, tensors)
        alignment = known.get(_ALIGNMENT, 32)
        if type(alignment) is not int or not 8 <= alignment <= 2**16 or alignment & (alignment - 1):
            raise ValueError(f"{_ALIGNMENT} is not a power of two")
        places = list(self._tensors(tensors, alignment))
        start = -(-self._stream.tell() // alignment) * alignment
        needed = start + max(max(offset + nbytes for offset, nbytes in places), sum(nbytes for _, nbytes in places))
        if needed > self._size:  # by their sum too: tensors that overlap would be read again and again
            raise ValueError(f"it has {self._size} bytes where its header takes {needed}")

    def _check_sizes(self, known: dict[str, Any], tensors: int) -> None:
        """Check that no layer is larger, and that there are not more of them, than tensors in a file can be."""
        prefix = f"{known.get('general.architecture')}."
        for key, value in known.items():
            name = key.removeprefix(prefix)
            if name == key or type(value) is not int or name.endswith("context_length"):
                continue
            most = tensors if name == "block_count" else _LARGEST_SIZE
            if not 0 <= value <= most and name.endswith(("_count", "_length", "_size", "_count_kv")):
                raise ValueError(f"{key} is {value}")

    def _pairs(self, count: int) -> Iterator[tuple[str, Any]]:
        """Keys with their values; those of arrays are left out."""
        seen = set()
        for _ in range(count):
            key = self._name()
            if key in seen:
                raise ValueError(f"{key} stands twice")
            seen.add(key)
            yield key, self._value(self._number("I"), 0)

    def _value(self, kind: int, depth: int) -> Any:
        if kind in _SCALARS:
            return self._number(_SCALARS[kind])
        if kind == _STRING:
            return self._text(_LONGEST_TEXT)
        if kind != _ARRAY or depth > 1:
            raise ValueError(f"type {kind} of a value is unknown")
        of, count = self._number("I"), self._number("Q")
        self._count(count)
        if of in _SCALARS:
            self._skip(count * struct.calcsize(f"<{_SCALARS[of]}"))
        else:
            for _ in range(count):
                self._value(of, depth + 1)
        return None

    def _tensors(self, count: int, alignment: int) -> Iterator[tuple[int, int]]:
        """The offset of each tensor from the beginning of the data, and its size, in bytes."""
        from gguf import GGML_QUANT_SIZES

        sizes = {int(kind): size for kind, size in GGML_QUANT_SIZES.items()}
        seen = set()
        for _ in range(count):
            name, axes = self._name(), self._number("I")
            if name in seen or axes > _MOST_AXES:
                raise ValueError(f"{name} {'stands twice' if name in seen else f'has {axes} axes'}")
            seen.add(name)
            shape = [self._number("Q") for _ in range(axes)]
            kind, offset = self._number("I"), self._number("Q")
            if kind not in sizes:
                raise ValueError(f"{name} has the unknown type {kind}")
            block, nbytes = sizes[kind]
            if any(not 0 < size < 2**40 for size in shape) or (shape and shape[0] % block) or offset % alignment:
                raise ValueError(f"{name} has no usable shape or offset")
            yield offset, math.prod(shape) // block * nbytes

    def _name(self) -> str:
        name = self._text(_LONGEST_NAME)
        if not name or not name.isprintable():
            raise ValueError(f"the name {name[:60]!a} is not valid")
        return name

    def _text(self, longest: int) -> str:
        length = self._number("Q")
        if length > longest:
            raise ValueError(f"a text of {length} bytes is too long")
        try:
            return self._read(length).decode("utf-8")
        except UnicodeDecodeError:
            raise ValueError("a text is not UTF-8") from None

    def _number(self, form: str) -> Any:
        (number,) = struct.unpack(f"<{form}", self._read(struct.calcsize(f"<{form}")))
        return number

    def _read(self, count: int) -> bytes:
        self._skip(count)
        self._stream.seek(-count, os.SEEK_CUR)
        return self._stream.read(count)

    def _skip(self, count: int) -> None:
        end = self._stream.tell() + count
        if end > min(self._size, _LONGEST_HEADER):
            raise ValueError("it ends within its header" if end > self._size else "its header is too long")
        self._stream.seek(count, os.SEEK_CUR)

    def _count(self, values: int) -> None:
        self._values += values
        if self._values > _MOST_VALUES:
            raise ValueError(f"it cannot hold {self._values} values")
