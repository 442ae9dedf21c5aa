"""The pickle in a PyTorch file, read without running it.

A pickle is a program for a small stack machine. This one knows only the instructions and the names that a state dict of
tensors takes: a name stays a name, nothing is imported, and "calling" one of the few that are known makes a plain
record. Each instruction makes at most one small object, and their number is bounded. Format: `pickletools` in Python's
library, and https://docs.pytorch.org/docs/stable/notes/serialization.html.
"""

import dataclasses
import pickletools
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from mooring.checkpoint.header import NAMES

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
