"""PyTorch's `.bin`: where its tensors lie, without running what is pickled in it.

Since PyTorch 1.6 the file is a zip archive, nothing in it compressed: `<root>/data.pkl` says what there is, and
`<root>/data/<key>` holds the elements of a storage, so that a tensor is a run of bytes of the file, as in safetensors.
Format: https://docs.pytorch.org/docs/stable/notes/serialization.html.
"""

import dataclasses
import math
import os
import pickletools
import struct
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch

from mooring.errors import ModelError
from mooring.models.safetensors_file import NAMES, TensorInfo, check_name, open_regular, refuse_pointer

# --- The pickle in a PyTorch file, read without running it ---


_MOST_INSTRUCTIONS = 2_000_000
"""A tensor takes about 35."""

_STORAGES: Mapping[str, torch.dtype | None] = {
    "torch DoubleStorage": torch.float64,
    "torch FloatStorage": torch.float32,
    "torch HalfStorage": torch.float16,
    "torch BFloat16Storage": torch.bfloat16,
    "torch LongStorage": torch.int64,
    "torch IntStorage": torch.int32,
    "torch ShortStorage": torch.int16,
    "torch CharStorage": torch.int8,
    "torch ByteStorage": torch.uint8,
    "torch BoolStorage": torch.bool,
    "torch ComplexFloatStorage": torch.complex64,
    "torch.storage UntypedStorage": None,
}
_DTYPES: Mapping[str, torch.dtype] = {str(dtype).replace(".", " "): dtype for dtype in NAMES}
_CALLS = {
    "collections OrderedDict",
    "torch Size",
    "torch._utils _rebuild_tensor_v2",
    "torch._utils _rebuild_tensor_v3",
    "torch._utils _rebuild_parameter",
    "torch._utils _rebuild_parameter_with_state",
}
_KNOWN = {*_STORAGES, *_DTYPES, *_CALLS}

_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_LITERALS = {"BININT", "BININT1", "BININT2", "LONG1", "BINUNICODE", "SHORT_BINUNICODE"}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


@dataclasses.dataclass(frozen=True, slots=True)
class Storage:
    """A run of elements in a file of its own in the archive.

    Attributes:
        key: Name of that file.
        nbytes: Its size.
        dtype: Type of its elements; `None` where each tensor says it.
    """

    key: str
    nbytes: int
    dtype: torch.dtype | None


@dataclasses.dataclass(frozen=True, slots=True)
class Stored:
    """A tensor's place in a storage.

    Attributes:
        storage: Where its elements lie.
        dtype: Their type.
        start: First element, counted from the beginning of the storage.
        shape: Sizes of its axes.
        strides: Elements from one entry to the next, along each axis.
    """

    storage: Storage
    dtype: torch.dtype
    start: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class _Name:
    """Something that the pickle would import."""

    text: str


_MARK = object()


def unpickle(data: bytes) -> Any:
    """What a pickle stands for: mappings, tuples, strings, whole numbers, and a `Stored` for a tensor.

    Raises:
        ValueError: It is damaged, too large, or holds anything that a state dict of tensors does not; with the reason.
    """
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    try:
        for count, (opcode, argument, _) in enumerate(_instructions(data)):
            if count > _MOST_INSTRUCTIONS:
                raise ValueError("it is far too large")
            if opcode.name == "STOP":
                return stack.pop()
            _step(opcode.name, argument, stack, memo)
    except (IndexError, KeyError):  # an empty stack, an unknown memo
        pass
    raise ValueError("it is not a pickle")


def _instructions(data: bytes) -> Iterator[tuple[pickletools.OpcodeInfo, Any, int | None]]:
    try:
        yield from pickletools.genops(data)
    except ValueError:
        raise ValueError("it is not a pickle") from None


def _step(instruction: str, argument: Any, stack: list[Any], memo: dict[int, Any]) -> None:
    """Run one instruction."""
    if instruction in _LITERALS:
        stack.append(argument)
    elif instruction in _CONSTANTS:
        stack.append(_CONSTANTS[instruction])
    elif instruction in ("BINPUT", "LONG_BINPUT"):
        memo[argument] = stack[-1]
    elif instruction == "MEMOIZE":
        memo[len(memo)] = stack[-1]
    elif instruction in ("BINGET", "LONG_BINGET"):
        stack.append(memo[argument])
    elif instruction == "MARK":
        stack.append(_MARK)
    elif instruction == "TUPLE":
        items = _to_mark(stack)
        stack.append(tuple(items))
    elif instruction in _TUPLES:
        stack.append(tuple(_pop(stack, _TUPLES[instruction])))
    elif instruction == "EMPTY_DICT":
        stack.append({})
    elif instruction == "SETITEM":
        items = _pop(stack, 2)
        _set(stack[-1], items)
    elif instruction == "SETITEMS":
        items = _to_mark(stack)
        _set(stack[-1], items)
    elif instruction == "GLOBAL":
        stack.append(_name(argument))
    elif instruction == "STACK_GLOBAL":
        module, name = _pop(stack, 2)
        stack.append(_name(f"{module} {name}" if isinstance(module, str) and isinstance(name, str) else ""))
    elif instruction == "BINPERSID":
        stack.append(_storage(stack.pop()))
    elif instruction == "REDUCE":
        function, arguments = _pop(stack, 2)
        stack.append(_call(function, arguments))
    elif instruction == "BUILD":
        if not isinstance(stack.pop(), dict) or not isinstance(stack[-1], dict):
            raise ValueError("it sets the state of something that is no mapping")
    elif instruction not in ("PROTO", "FRAME"):
        raise ValueError(f"it holds the instruction {instruction}, which a state dict has no need of")


def _pop(stack: list[Any], count: int) -> list[Any]:
    """Take that many off the stack, in the order in which they were put there."""
    if len(stack) < count:
        raise IndexError
    items = stack[-count:]
    del stack[-count:]
    return items


def _to_mark(stack: list[Any]) -> list[Any]:
    """Take everything off the stack down to the last mark, and the mark."""
    items = []
    while (item := stack.pop()) is not _MARK:
        items.append(item)
    return items[::-1]


def _set(target: Any, items: list[Any]) -> None:
    keys = items[::2]
    if not isinstance(target, dict) or len(items) % 2 or not all(isinstance(key, str) for key in keys):
        raise ValueError("it holds more than a mapping from names to tensors")
    target.update(zip(keys, items[1::2], strict=True))


def _name(text: str) -> _Name:
    if text not in _KNOWN:
        raise ValueError(f"it would load {text.replace(' ', '.')[:80]!a}, which tensors have no need of")
    return _Name(text)


def _naturals(*values: Any) -> bool:
    return all(type(value) is int and 0 <= value < 2**62 for value in values)


def _storage(value: Any) -> Storage:
    """What a persistent id stands for: ("storage", type, key, place, number of elements)."""
    match value:
        case ("storage", _Name(text), str(key), str(), count) if text in _STORAGES and _naturals(count):
            if key.isascii() and key.isdigit():
                dtype = _STORAGES[text]
                return Storage(key, count * (dtype.itemsize if dtype else 1), dtype)
    raise ValueError("it names a storage in a form that is not known")


def _call(function: Any, arguments: Any) -> Any:
    """What PyTorch's functions would make of these arguments, as plain records."""
    match function, arguments:
        case _Name("collections OrderedDict"), ():
            return {}
        case _Name("torch Size"), (tuple(shape),):
            return shape
        case _Name("torch._utils _rebuild_parameter"), (Stored() as stored, _, _):
            return stored
        case _Name("torch._utils _rebuild_parameter_with_state"), (Stored() as stored, _, _, _):
            return stored
        case _Name("torch._utils _rebuild_tensor_v2"), (Storage() as storage, start, shape, strides, _, _, *more):
            if storage.dtype is not None and not any(more):
                return _tensor(storage, storage.dtype, start, shape, strides)
        case _Name("torch._utils _rebuild_tensor_v3"), (
            Storage() as storage,
            start,
            shape,
            strides,
            _,
            _,
            _Name(text),
            *more,
        ):
            if text in _DTYPES and not any(more):
                return _tensor(storage, _DTYPES[text], start, shape, strides)
    raise ValueError("it makes a tensor in a form that is not known")


def _tensor(storage: Storage, dtype: torch.dtype, start: Any, shape: Any, strides: Any) -> Stored:
    if not isinstance(shape, tuple) or not isinstance(strides, tuple) or len(shape) != len(strides) or len(shape) > 64:
        raise ValueError("a tensor has a shape that is none")
    if not _naturals(start, *shape, *strides):
        raise ValueError("a tensor has a size that is not a whole number")
    return Stored(storage, dtype, start, shape, strides)


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
            hint = "save that mapping alone, as safetensors"
            raise ModelError(f"{file}: holds a mapping within a mapping, under {name!r}", hint)
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
