"""The header of a safetensors file: reading (without trusting it) and writing.

A file is 8 bytes (little-endian length of the header), the header (JSON: name to dtype, shape and offsets), then the
tensors' bytes. Format: https://huggingface.co/docs/safetensors.
"""

import json
import math
import os
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import torch

from mooring import bounded
from mooring.errors import ModelError

DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "C64": torch.complex64,
}
"""The format's names of the supported types."""

NAMES: Mapping[torch.dtype, str] = {dtype: name for name, dtype in DTYPES.items()}

LONGEST_HEADER = 2**25
"""Bytes, enough for 300,000 tensors in one file; the library allows 100 MB, which can take gigabytes to parse."""

_MOST_MARKS = 4_000_000
"""Brackets, commas and colons in a header, of which a tensor takes a dozen: they bound the memory of parsing."""

_LONGEST_NAME = 1000
"""Characters."""


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where a tensor is stored.

    Attributes:
        name: Its name in the checkpoint.
        dtype: Storage type.
        shape: Sizes of its axes; empty for a scalar.
        file: The file that holds it.
        offset: Bytes from the beginning of that file.
        nbytes: Its size in bytes.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    file: Path
    offset: int
    nbytes: int

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


def unreadable(file: object, error: OSError) -> ModelError:
    """The error for a file that the system does not let us read."""
    if isinstance(error, bounded.NotRegularError):
        return ModelError(f"{file}: is not an ordinary file", "put the file itself there", code="model.not_a_file")
    return ModelError(f"{file}: cannot be read ({error.strerror})", "name a readable file", code="model.unreadable")


def open_regular(file: Path) -> int:
    """A descriptor for reading an ordinary file; the caller closes it.

    Raises:
        ModelError: It cannot be opened, or is a folder, a pipe or a device (`bounded.open_regular`).
    """
    try:
        return bounded.open_regular(file)
    except OSError as error:
        raise unreadable(file, error) from None


def refuse_pointer(file: Path, head: bytes) -> None:
    """Raise if git-lfs left a pointer in place of the file, which begins with the 8 bytes `head`."""
    if head.startswith(b"version "):
        what = f"{file}: is a git-lfs pointer, not the weights"
        raise ModelError(what, "run `git lfs pull`", code="model.lfs_pointer")


def check_name(name: str) -> None:
    """Raise ValueError unless a tensor's name can be printed in one line and written in UTF-8."""
    if not 0 < len(name) <= _LONGEST_NAME or not name.isprintable():
        raise ValueError(f"the name {name[:60]!a} is not a valid name of a tensor")


def read_header(file: Path) -> list[TensorInfo]:
    """Read and check a header; the tensors are returned in the order of their bytes.

    Raises:
        ModelError: The file cannot be read, is truncated, or its header is malformed or does not match the file.
    """
    try:
        with os.fdopen(open_regular(file), "rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            head = stream.read(8)
            refuse_pointer(file, head)
            (length,) = struct.unpack("<Q", head.ljust(8, b"\0"))
            if size < 8 or length > size - 8:
                raise _corrupt(f"{file}: is truncated or not a safetensors file")
            if length > LONGEST_HEADER:
                raise _corrupt(f"{file}: its header claims {length} bytes")
            text = stream.read(length)
    except OSError as error:
        raise unreadable(file, error) from None
    try:
        infos = [_entry(name, entry, file, 8 + length) for name, entry in _parse(text).items()]
    except (ValueError, RecursionError) as error:
        reason = str(error) if type(error) is ValueError else "it is not JSON"
        raise _corrupt(f"{file}: its header is corrupt: {reason}") from None
    infos.sort(key=lambda info: (info.offset, info.nbytes))
    _check_layout(infos, file, 8 + length, size)
    return infos


def _corrupt(what: str) -> ModelError:
    return ModelError(what, "fetch the file again", code="model.corrupt")


def _parse(text: bytes) -> dict[str, Any]:
    """The entries of a header by name, without its metadata. Raises ValueError or RecursionError."""
    if sum(map(text.count, (b"[", b"{", b",", b":"))) > _MOST_MARKS:
        raise ValueError("it is far too large")
    header = json.loads(
        text.decode("utf-8"),  # json alone would take UTF-16 too
        object_pairs_hook=_no_twins,
        parse_int=_integer,
        parse_float=_no_number,
        parse_constant=_no_number,
    )
    if not isinstance(header, dict):
        raise ValueError("it is not a mapping")
    header.pop("__metadata__", None)
    return header


def _integer(digits: str) -> int:
    """An integer of a size that a file can have; Python takes long to parse a thousand digits."""
    return int(digits) if len(digits) < 20 else _no_number(digits)


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text[:40]!r} is not an integer that a header can contain")


def _no_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A mapping from pairs; raises for a repeated key, of which JSON would silently keep the last."""
    mapping = dict(pairs)
    if len(mapping) != len(pairs):
        raise ValueError("a name appears twice")
    return mapping


def _entry(name: str, entry: Any, file: Path, start: int) -> TensorInfo:
    """One tensor of a header. Raises ValueError if the entry is inconsistent."""
    check_name(name)
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"the entry of {name!r} is not a tensor's")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise ValueError(f"{name!r} has the unknown type {str(dtype)[:40]!r}")
    if not _naturals(shape) or not _naturals(offsets) or len(offsets) != 2:
        raise ValueError(f"the shape or the offsets of {name!r} are not integers")
    if math.prod(size or 1 for size in shape) >= 2**62:  # an axis of 0 must not hide others that overflow
        raise ValueError(f"the shape of {name!r} is larger than any tensor's")
    nbytes = math.prod(shape) * DTYPES[dtype].itemsize
    if offsets[1] - offsets[0] != nbytes:
        raise ValueError(f"{name!r} has {offsets[1] - offsets[0]} bytes where its shape takes {nbytes}")
    return TensorInfo(name, DTYPES[dtype], tuple(shape), file, start + offsets[0], nbytes)


def _naturals(value: Any) -> bool:
    """Whether this is a list of non-negative integers, none absurdly large."""
    return isinstance(value, list) and all(type(n) is int and 0 <= n < 2**62 for n in value) and len(value) <= 64


def _check_layout(infos: list[TensorInfo], file: Path, start: int, size: int) -> None:
    """Check that the tensors fill the rest of the file, without gaps or overlaps."""
    end = start
    for info in infos:
        if info.offset != end:
            fault = "overlaps the one before it" if info.offset < end else "leaves a gap before it"
            raise _corrupt(f"{file}: its header is corrupt: {info.name!r} {fault}")
        end += info.nbytes
    if end > size:
        raise _corrupt(f"{file}: is truncated: {size} bytes where its header takes {end}")
    if end < size:
        raise _corrupt(f"{file}: holds {size - end} bytes more than its header says")


def lay_out(file: Path, tensors: Iterable[tuple[str, torch.dtype, tuple[int, ...]]]) -> tuple[bytes, list[TensorInfo]]:
    """The first bytes of a file, padded so that the data is aligned to 8 bytes, and where each tensor goes.

    `tensors` are (name, dtype, shape) in the order of their bytes.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    infos = []
    offset = 0
    for name, dtype, shape in tensors:
        nbytes = math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": [offset, offset + nbytes]}
        infos.append(TensorInfo(name, dtype, shape, file, offset, nbytes))
        offset += nbytes
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    text += b" " * (-len(text) % 8)
    start = 8 + len(text)
    return struct.pack("<Q", len(text)) + text, [replace(info, offset=start + info.offset) for info in infos]
