"""PyTorch's `.bin`: where its tensors lie, without running what is pickled in it.

Since PyTorch 1.6 the file is a zip archive, nothing in it compressed: `<root>/data.pkl` says what there is, and
`<root>/data/<key>` holds the elements of a storage, so that a tensor is a run of bytes of the file, as in safetensors.
Format: https://docs.pytorch.org/docs/stable/notes/serialization.html.
"""

import math
import os
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from mooring.checkpoint.header import TensorInfo, check_name, open_regular, refuse_pointer
from mooring.checkpoint.unpickle import Stored, unpickle
from mooring.errors import ModelError

_LARGEST_PICKLE = 2**24
_LARGEST_DIRECTORY = 2**23
"""Bytes; enough for 60,000 tensors in one file."""

_DEFECTS = (zipfile.BadZipFile, NotImplementedError, ValueError, OverflowError, IndexError, struct.error, EOFError)
"""What `zipfile` raises on damaged archives."""

_LOCAL = struct.Struct("<4s22xHH")
"""What comes before a member: a signature, then the lengths of its name and of its extra field."""

_OLD = "load it with torch.load(..., weights_only=True) and save it as safetensors"


def read_pickled(file: Path) -> list[TensorInfo]:
    """Find the tensors of a `.bin`; they come in the order of their bytes.

    Tensors that share a storage (tied weights) are each given, at the same place.

    Raises:
        ModelError: The file cannot be read, is cut short or damaged, is of the form before PyTorch 1.6 or TorchScript,
            or holds anything but contiguous tensors by name.
    """
    try:
        with os.fdopen(open_regular(file), "rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            _check_form(file, stream.read(8))
            members = _members(stream)
            root = _root(members)
            if any(name.startswith((f"{root}/code/", f"{root}/constants.pkl")) for name in members):
                raise ModelError(f"{file}: is a TorchScript program, not a state dict", "name the model's weights")
            places = _Places(stream, size, members)
            order = places.content(f"{root}/byteorder", 16) if f"{root}/byteorder" in members else b"little"
            if order != b"little":
                raise ValueError("its bytes are not in little-endian order")
            state = unpickle(places.content(f"{root}/data.pkl", _LARGEST_PICKLE))
            infos = _infos(state, file, root, places)
    except OSError as error:
        raise ModelError(f"{file}: cannot be read ({error.strerror})", "name a file that can") from None
    except _DEFECTS as error:
        if type(error) is not ValueError:
            raise ModelError(f"{file}: is damaged or cut short", "fetch the file again") from None
        raise ModelError(f"{file}: is not a state dict: {error}", "get the model as safetensors") from None
    return sorted(infos, key=lambda info: (info.offset, info.nbytes))


def _check_form(file: Path, head: bytes) -> None:
    """Refuse what does not begin as a zip archive does."""
    refuse_pointer(file, head)
    if head.startswith(b"\x80"):
        raise ModelError(f"{file}: is in PyTorch's form from before version 1.6", _OLD)
    if not head.startswith(b"PK\3\4"):
        raise ModelError(f"{file}: is not a PyTorch file, or is damaged", "fetch the file again")


class _Bounded:
    """A file that refuses to give much at once, so that no archive can claim a directory that fills the memory."""

    def __init__(self, stream: BinaryIO) -> None:
        self.seek, self.tell, self.seekable = stream.seek, stream.tell, stream.seekable
        self._read = stream.read

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= _LARGEST_DIRECTORY:
            size = _LARGEST_DIRECTORY + 1
        data = self._read(size)
        if len(data) > _LARGEST_DIRECTORY:
            raise ValueError("its directory is far too large")
        return data


def _members(stream: BinaryIO) -> dict[str, zipfile.ZipInfo]:
    """What the archive holds, by name. Raises ValueError where a name is there twice."""
    with zipfile.ZipFile(_Bounded(stream)) as archive:
        entries = archive.infolist()
    members = {entry.orig_filename: entry for entry in entries}
    if len(members) != len(entries):
        raise ValueError("a file is in it twice")
    return members


def _root(members: Mapping[str, Any]) -> str:
    """The folder that everything lies in."""
    roots = [name.removesuffix("/data.pkl") for name in members if name.endswith("/data.pkl")]
    if len(roots) != 1:
        raise ValueError(f"it has {len(roots) or 'no'} data.pkl")
    return roots[0]


class _Places:
    """Where the members of an archive lie in its file."""

    def __init__(self, stream: BinaryIO, size: int, members: Mapping[str, zipfile.ZipInfo]) -> None:
        self._handle = stream.fileno()
        self._size = size
        self._members = members
        self._known: dict[str, tuple[int, int]] = {}

    def find(self, name: str) -> tuple[int, int]:
        """First byte and size of a member. Raises ValueError where it is missing, packed or reaches out of the file."""
        if name not in self._known:
            self._known[name] = self._find(name)
        return self._known[name]

    def _find(self, name: str) -> tuple[int, int]:
        member = self._members.get(name)
        if member is None:
            raise ValueError(f"{name[:100]!a} is missing")
        packed = member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size
        if packed or member.flag_bits & 1:
            raise ValueError("it is compressed or encrypted")
        if not 0 <= member.header_offset <= self._size:
            raise zipfile.BadZipFile
        head = os.pread(self._handle, _LOCAL.size, member.header_offset)
        signature, name_length, extra_length = _LOCAL.unpack(head)
        start = member.header_offset + _LOCAL.size + name_length + extra_length
        if signature != b"PK\3\4" or start + member.file_size > self._size:
            raise zipfile.BadZipFile
        return start, member.file_size

    def content(self, name: str, limit: int) -> bytes:
        """The bytes of a member. Raises ValueError where it is larger than the limit."""
        start, size = self.find(name)
        if size > limit:
            raise ValueError(f"{name[:100]!a} is far too large")
        return os.pread(self._handle, size, start)


def _infos(state: Any, file: Path, root: str, places: _Places) -> list[TensorInfo]:
    """The tensors of a state dict. Raises ValueError where there is anything else in it."""
    if not isinstance(state, dict) or not state:
        raise ValueError("it holds no mapping from names to tensors")
    infos = []
    for name, stored in state.items():
        check_name(name)
        if isinstance(stored, dict):
            mend = "save that mapping alone, as safetensors"
            raise ModelError(f"{file}: holds a mapping within a mapping, under {name!r}", mend)
        if not isinstance(stored, Stored) or name == "__metadata__":  # which would be no tensor in safetensors
            raise ValueError(f"{name!r} is not a tensor")
        infos.append(_info(name, stored, file, *places.find(f"{root}/data/{stored.storage.key}")))
    return infos


def _info(name: str, stored: Stored, file: Path, offset: int, size: int) -> TensorInfo:
    """One tensor's place in the file, from that of its storage."""
    if size != stored.storage.nbytes:
        raise ValueError(f"{name!r} lies in {size} bytes where {stored.storage.nbytes} are said to be")
    numel, width = math.prod(stored.shape), stored.dtype.itemsize
    if numel and not _contiguous(stored.shape, stored.strides):
        raise ValueError(f"{name!r} is not contiguous (a transposed or strided view)")
    if math.prod(axis or 1 for axis in stored.shape) >= 2**62 or (numel and (stored.start + numel) * width > size):
        raise ValueError(f"{name!r} reaches out of its storage")
    start = offset + stored.start * width if numel else offset
    return TensorInfo(name, stored.dtype, stored.shape, file, start, numel * width)


def _contiguous(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """Whether the elements lie one after the other, in the order of the axes."""
    step = 1
    for axis, stride in zip(reversed(shape), reversed(strides), strict=True):
        if axis != 1 and stride != step:
            return False
        step *= axis
    return True
