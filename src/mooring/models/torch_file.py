"""PyTorch's `.bin`: where its tensors are, without running what is pickled in it.

Since PyTorch 1.6 the file is a zip archive with nothing compressed: `<root>/data.pkl` describes the tensors and
`<root>/data/<key>` holds the bytes of one storage. `torch.load(weights_only=True, map_location="meta")` reads the
description alone; every tensor is then a run of bytes of the file, as in safetensors.
Format: https://docs.pytorch.org/docs/stable/notes/serialization.html.
"""

import os
import pickle
import pickletools
import re
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from mooring.bounded import ShortReads, UnusableError
from mooring.errors import ModelError
from mooring.models.safetensors_file import NAMES, TensorInfo, check_name, open_regular, refuse_pointer, unreadable

_LARGEST_PICKLE = 2**24
_LARGEST_DIRECTORY = 2**23
"""Bytes; enough for 60,000 tensors in one file."""

_DEEPEST = 64
"""Nested tuples; torch.save needs three."""

_ARCHIVE_ERRORS = (zipfile.BadZipFile, NotImplementedError, ValueError, OverflowError, struct.error, EOFError)
"""What `zipfile` raises on damaged archives."""

_LOCAL = struct.Struct("<4s22xHH")
"""What precedes a member: a signature, then the lengths of its name and of its extra field."""

_CONVERT = "load it with torch.load(..., weights_only=True) and save it as safetensors"


class _RejectedError(ValueError):
    """The content is not a state dict of contiguous tensors; the message says why."""


def read_pickled(file: Path) -> list[TensorInfo]:
    """Find the tensors of a `.bin`, in the order of their bytes.

    Tensors that share a storage (tied weights) are each returned, with the same offset.

    Raises:
        ModelError: The file cannot be read, is truncated or damaged, has the format before PyTorch 1.6 or TorchScript,
            or holds anything but contiguous tensors by name.
    """
    try:
        with os.fdopen(open_regular(file), "rb") as stream:
            _check_form(file, stream.read(8))
            records = _records(file, stream)
            infos = _infos(_load(stream), file, records)
    except OSError as error:
        raise unreadable(file, error) from None
    except (_RejectedError, UnusableError) as error:
        what = f"{file}: is not a state dict: {error}"
        raise ModelError(what, "get the model as safetensors", code="model.not_state_dict") from None
    except _ARCHIVE_ERRORS:
        raise ModelError(f"{file}: is damaged or truncated", "fetch the file again", code="model.corrupt") from None
    return sorted(infos, key=lambda info: (info.offset, info.nbytes))


def _check_form(file: Path, head: bytes) -> None:
    """Raise unless the file begins as a zip archive does."""
    refuse_pointer(file, head)
    if head.startswith(b"\x80"):
        what = f"{file}: is in PyTorch's format from before version 1.6"
        raise ModelError(what, _CONVERT, code="model.old_torch_format")
    if not head.startswith(b"PK\3\4"):
        what = f"{file}: is not a PyTorch file, or is damaged"
        raise ModelError(what, "fetch the file again", code="model.corrupt")


def _records(file: Path, stream: BinaryIO) -> dict[int, int]:
    """First byte to size, for every member of the archive; raises for an archive that torch.load must not see."""
    with zipfile.ZipFile(ShortReads(stream, _LARGEST_DIRECTORY)) as archive:
        members = {entry.orig_filename: entry for entry in archive.infolist()}
        if len(members) != len(archive.infolist()):
            raise _RejectedError("a file is in it twice")
        roots = [name.removesuffix("/data.pkl") for name in members if name.endswith("/data.pkl")]
        if len(roots) != 1:
            raise _RejectedError(f"it has {len(roots) or 'no'} data.pkl")
        (root,) = roots
        if any(name.startswith((f"{root}/code/", f"{root}/constants.pkl")) for name in members):
            what = f"{file}: is a TorchScript program, not a state dict"
            raise ModelError(what, "name the model's weights", code="model.torchscript")
        if any(e.compress_type != zipfile.ZIP_STORED or e.flag_bits & 1 for e in members.values()):
            raise _RejectedError("it is compressed or encrypted")
        if members[f"{root}/data.pkl"].file_size > _LARGEST_PICKLE:
            raise _RejectedError(f"{f'{root}/data.pkl'[:100]!a} is far too large")
        _check_tuples(archive.read(f"{root}/data.pkl"))
        order = members.get(f"{root}/byteorder")
        if order is not None and (order.file_size > 16 or archive.read(order) != b"little"):
            raise _RejectedError("its bytes are not in little-endian order")
    size, handle = os.fstat(stream.fileno()).st_size, stream.fileno()
    return dict(_place(handle, size, entry) for entry in members.values())


def _check_tuples(pickled: bytes) -> None:
    """Raise for tuples that are used twice or deeply nested: as a key, they take the unpickler forever to hash.

    Follows the stack of the pickle machine; a tuple is represented by its depth, anything else by 0.
    """
    stack: list[int] = []
    memo: dict[int, int] = {}
    try:
        for opcode, argument, _ in pickletools.genops(pickled):
            if opcode.name.endswith("PUT") or opcode.name == "MEMOIZE":
                memo[len(memo) if argument is None else argument] = stack[-1]
                continue
            if opcode.name.endswith("GET") and memo[int(argument or 0)]:
                raise _RejectedError("it uses a tuple twice")
            needs = list(opcode.stack_before)
            popped: list[int] = []
            if pickletools.markobject in needs:
                while (item := stack.pop()) >= 0:
                    popped.append(item)
                needs = needs[: needs.index(pickletools.markobject)]
            popped += [stack.pop() for _ in needs]
            depth = 1 + max(popped, default=0) if opcode.name.startswith("TUPLE") else 0
            if depth > _DEEPEST:
                raise _RejectedError("it nests tuples too deeply")
            stack += [-1 if opcode.name == "MARK" else depth] * len(opcode.stack_after)
    except _RejectedError:
        raise
    except (IndexError, KeyError, ValueError):
        raise _RejectedError("it is not a pickle") from None


def _place(handle: int, size: int, entry: zipfile.ZipInfo) -> tuple[int, int]:
    """First byte and size of a member; raises BadZipFile if it reaches beyond the file."""
    if not 0 <= entry.header_offset <= size or entry.file_size != entry.compress_size:
        raise zipfile.BadZipFile
    signature, name_length, extra_length = _LOCAL.unpack(os.pread(handle, _LOCAL.size, entry.header_offset))
    start = entry.header_offset + _LOCAL.size + name_length + extra_length
    if signature != b"PK\3\4" or start + entry.file_size > size:
        raise zipfile.BadZipFile
    return start, entry.file_size


def _load(stream: BinaryIO) -> Any:
    """The state dict with tensors on the meta device; raises for anything that `weights_only` does not accept."""
    try:
        stream.seek(0)
        return torch.load(stream, map_location="meta", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"Unsupported (?:global: GLOBAL|class|operand) (\S{1,80})", str(error))
        raise _RejectedError(f"torch.load refuses {found[1]!a}" if found else "torch.load refuses it") from None
    except Exception as error:  # on hostile input the unpickler raises nearly anything
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise _RejectedError(f"torch.load fails ({type(error).__name__})") from None


def _infos(state: Any, file: Path, records: Mapping[int, int]) -> list[TensorInfo]:
    """The tensors of a state dict; raises `_RejectedError` for anything else in it."""
    if not isinstance(state, dict) or not state:
        raise _RejectedError("it holds no mapping from names to tensors")
    infos = []
    for name, tensor in state.items():
        if not isinstance(name, str):
            raise _RejectedError("it holds more than a mapping from names to tensors")
        try:
            check_name(name)
        except ValueError as error:
            raise _RejectedError(str(error)) from None
        if isinstance(tensor, dict):
            what = f"{file}: holds a mapping within a mapping, under {name!r}"
            raise ModelError(what, "save that mapping alone, as safetensors", code="model.nested_state_dict")
        if not isinstance(tensor, Tensor) or name == "__metadata__":  # which is not a tensor in safetensors
            raise _RejectedError(f"{name!r} is not a tensor")
        infos.append(_info(name, tensor, file, records))
    return infos


def _info(name: str, tensor: Tensor, file: Path, records: Mapping[int, int]) -> TensorInfo:
    """A tensor's place in the file, from that of its storage."""
    if tensor.layout != torch.strided or tensor.dtype not in NAMES or tensor.is_conj() or tensor.is_neg():
        raise _RejectedError(f"{name!r} is a tensor of an unsupported type ({tensor.layout}, {tensor.dtype})")
    if not tensor.is_contiguous():
        raise _RejectedError(f"{name!r} is not contiguous (a transposed or strided view)")
    storage, width = tensor.untyped_storage(), tensor.dtype.itemsize
    offset, claimed = int(getattr(storage, "_checkpoint_offset", -1)), storage.nbytes()
    if records.get(offset) != claimed:
        raise _RejectedError(f"{name!r} does not match its storage in the archive ({claimed} bytes)")
    numel, start = tensor.numel(), int(tensor.storage_offset()) if tensor.numel() else 0
    if (start + numel) * width > claimed:
        raise _RejectedError(f"{name!r} reaches out of its storage")
    return TensorInfo(name, tensor.dtype, tuple(tensor.shape), file, offset + start * width, numel * width)
