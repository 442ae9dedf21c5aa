"""Damaged and lying files, 2,000 of them: each is refused in one line, or every tensor lies in its file and is read.

The mutations come from seeds, so that the same ones run everywhere. Where the format's own library opens a file too,
both give the same values.
"""

import io
import json
import os
import random
import signal
import struct
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from mooring.errors import ModelError
from mooring.models import Checkpoint, open_checkpoint

Chance = random.Random
Values = dict[str, tuple[torch.dtype, tuple[int, ...], bytes]]

TENSORS = {
    "model.embed_tokens.weight": torch.arange(40, dtype=torch.float32).view(8, 5),
    "model.layers.0.mlp.weight": torch.arange(24).to(torch.bfloat16).view(4, 6),
    "model.layers.0.mlp.bias": torch.arange(6).to(torch.float16),
    "steps": torch.tensor(7),
    "mask": torch.tensor([True, False, True]),
    "empty": torch.empty(0, 3),
}
NUMBERS = (-(2**63), -1, 0, 1, 2, 7, 8, 255, 2**31, 2**32 - 1, 2**53, 2**61, 2**62, 2**63, 2**64 - 1, 2**64, 10**30)
THINGS = (None, True, 1.5, "", "F32", [], {}, [[]], [1], [0, 8], {"dtype": "F32"}, -1, 2**64)
SECONDS = 5


def flip(chance: Chance, data: bytes) -> bytes:
    out = bytearray(data)
    reach = len(out) if chance.random() < 0.5 else min(len(out), 600)  # where the headers are
    for _ in range(chance.randint(1, 8)):
        out[chance.randrange(reach)] ^= 1 << chance.randrange(8)
    return bytes(out)


def cut(chance: Chance, data: bytes) -> bytes:
    return data[: chance.randrange(len(data))] + chance.randbytes(chance.choice((0, 0, 1, 30)))


def extend(chance: Chance, data: bytes) -> bytes:
    return data + chance.choice((b"\0", b" ", data, chance.randbytes(40)))


def splice(chance: Chance, data: bytes) -> bytes:
    start, at = chance.randrange(len(data)), chance.randrange(len(data))
    piece = data[start : start + chance.randint(1, 80)]
    return data[:at] + piece + data[at + chance.choice((0, len(piece))) :]


def put_number(chance: Chance, data: bytes) -> bytes:
    """Four or eight bytes anywhere become a number that is often a limit."""
    width = chance.choice((4, 8))
    at = chance.choice((0, chance.randrange(max(1, len(data) - 8))))
    return data[:at] + (chance.choice(NUMBERS) % 2 ** (8 * width)).to_bytes(width, "little") + data[at + width :]


BYTES = (flip, cut, extend, splice, put_number)


def lie_in_header(chance: Chance, data: bytes) -> bytes:
    """A header that is well-formed JSON and says something else."""
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    for _ in range(chance.randint(1, 2)):
        name, other = (chance.choice([key for key in header if key != "__metadata__"]) for _ in range(2))
        entry = header[name]
        fields = sorted(entry) if isinstance(entry, dict) else []
        match chance.randrange(9):
            case 0 if "dtype" in fields:
                entry["dtype"] = chance.choice(
                    ("F64", "F32", "BF16", "I8", "U8", "BOOL", "C64", "F8_E8M0", "F4", "f32")
                )
            case 1 if isinstance(entry, dict) and entry.get("shape"):
                entry["shape"][chance.randrange(len(entry["shape"]))] = chance.choice(NUMBERS)
            case 2 if "shape" in fields:
                entry["shape"] = chance.choice(([], [0], [1] * 70, entry["shape"] + [1], entry["shape"][::-1]))
            case 3 if "data_offsets" in fields:
                entry["data_offsets"] = [chance.choice((*NUMBERS, *entry["data_offsets"])) for _ in range(2)]
            case 4 if "data_offsets" in fields:
                entry["data_offsets"] = [offset + chance.choice((-8, -1, 1, 8)) for offset in entry["data_offsets"]]
            case 5:
                header[name], header[other] = header[other], entry
            case 6:
                header[chance.choice(("", "a\nb", "\ud800", "é", "x" * 2000, "m.qweight"))] = header.pop(name)
            case 7 if fields:
                entry[chance.choice((*fields, "more"))] = chance.choice(THINGS)
            case _:
                header[name] = chance.choice(THINGS)
    text = json.dumps(header).encode()
    text += chance.choice((b"", b"   ", b"\0", b"}")) if chance.random() < 0.2 else b""
    return struct.pack("<Q", len(text)) + text + data[8 + length :]


def lie_in_index(chance: Chance, data: bytes) -> bytes:
    index = json.loads(data)
    places = index["weight_map"]
    name = chance.choice(sorted(places))
    match chance.randrange(5):
        case 0:
            places[name] = chance.choice(sorted(set(places.values())))
        case 1:
            del places[name]
        case 2:
            places[name] = chance.choice(("../x.safetensors", "/dev/zero", "config.json", "", ".", "\0", "x" * 300, 3))
        case 3:
            places[chance.choice(("new", "a\nb", "\ud800", ""))] = places[name]
        case _:
            index["weight_map"] = chance.choice(THINGS)
    return json.dumps(index).encode()


def nudge(chance: Chance, data: bytes) -> bytes:
    """One of the small numbers in a pickle (a size, a stride, an offset) becomes another."""
    places = [at for at in range(len(data) - 1) if data[at : at + 1] == b"K"]
    at = chance.choice(places or [0]) + 1
    number = chance.choice(
        (b"K" + chance.randbytes(1), b"J" + chance.randbytes(4), b"J\0" + chance.randbytes(1) + b"\0\0")
    )
    return data[: at - 1] + number + data[at + 1 :]


def lie_in_pickle(chance: Chance, data: bytes) -> bytes:
    """A whole archive around a pickle that is damaged, or around other storages."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as source, zipfile.ZipFile(out, "w") as target:
        victim = chance.choice(("/data.pkl", "/data.pkl", "/data.pkl", chance.choice(source.namelist())))
        for name in source.namelist():
            content = source.read(name)
            if name.endswith(victim) and content:
                content = chance.choice((nudge, nudge, flip, splice, cut))(chance, content)
            target.writestr(name, content)
    return out.getvalue()


def save_single(folder: Path) -> None:
    save_file(TENSORS, folder / "model.safetensors", {"format": "pt"})


def save_sharded(folder: Path) -> None:
    names, places = list(TENSORS), {}
    for number, part in enumerate((names[:3], names[3:]), 1):
        shard = f"model-0000{number}-of-00002.safetensors"
        save_file({name: TENSORS[name] for name in part}, folder / shard)
        places |= dict.fromkeys(part, shard)
    text = json.dumps({"metadata": {"total_size": 1}, "weight_map": places})
    (folder / "model.safetensors.index.json").write_text(text)


def save_pickled(folder: Path) -> None:
    tied = {"lm_head.weight": TENSORS["model.embed_tokens.weight"]}
    torch.save({**TENSORS, **tied}, folder / "pytorch_model.bin")


def values(model: Checkpoint) -> Values:
    """Every tensor, read to its end; each must lie in its file."""
    for info in model.tensors.values():
        assert 0 <= info.offset <= info.offset + info.nbytes <= info.file.stat().st_size
    return {name: described(model.tensor(name)) for name in model.tensors}


def described(tensor: torch.Tensor) -> tuple[torch.dtype, tuple[int, ...], bytes]:
    return tensor.dtype, tuple(tensor.shape), tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def by_safetensors(folder: Path) -> Values | None:
    try:
        with safe_open(folder / "model.safetensors", "pt") as library:
            return {name: described(library.get_tensor(name)) for name in library.keys()}  # noqa: SIM118
    except Exception:  # what is damaged makes it raise nearly anything
        return None


def by_torch(folder: Path) -> Values | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            state = torch.load(folder / "pytorch_model.bin", map_location="cpu", weights_only=True)
        return {name: described(tensor) for name, tensor in state.items()}
    except Exception:
        return None


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every read by position must lie in its file, and nothing may hang."""
    real = os.preadv

    def preadv(handle: int, buffers: Any, offset: int) -> int:
        assert 0 <= offset <= offset + sum(map(len, buffers)) <= os.fstat(handle).st_size, "a read outside the file"
        return real(handle, buffers, offset)

    def late(*_: object) -> None:
        raise TimeoutError("a case hangs")

    monkeypatch.setattr(os, "preadv", preadv)
    before = signal.signal(signal.SIGALRM, late)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


Mutation = Callable[[Chance, bytes], bytes]
Peer = Callable[[Path], Values | None]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("save", "lies", "peer", "count"),
    [
        (save_single, (lie_in_header, lie_in_header, lie_in_header), by_safetensors, 900),
        (save_sharded, (lie_in_index, lie_in_index), None, 500),
        (save_pickled, (lie_in_pickle, lie_in_pickle, lie_in_pickle), by_torch, 600),
    ],
    ids=["safetensors", "index", "bin"],
)
@pytest.mark.usefixtures("watched")
def test_mutations(
    tmp_path: Path, save: Callable[[Path], None], lies: tuple[Mutation, ...], peer: Peer | None, count: int
) -> None:
    folder = tmp_path
    (folder / "config.json").write_text("{}")
    save(folder)
    files = sorted(path for path in folder.iterdir() if path.name != "config.json")
    content = {file: file.read_bytes() for file in files}
    with open_checkpoint(folder) as model:
        assert set(TENSORS) <= set(values(model))
    opened = agreed = 0
    for seed in range(count):
        chance = Chance(seed)
        mutate = chance.choice((*BYTES, *lies))
        victims = [file for file in files if mutate in BYTES or (file.suffix == ".json") == (mutate is lie_in_index)]
        file = chance.choice(victims)
        file.write_bytes(mutate(chance, content[file]))
        case = f"seed {seed}, {mutate.__name__} of {file.name}"
        ours, line = attempt(folder, case)
        assert ours is not None or (line.isprintable() and str(folder) in line and len(line) < 2000), f"{case}: {line}"
        theirs = peer(folder) if peer and ours is not None else None
        assert theirs is None or ours == theirs, case
        opened, agreed = opened + (ours is not None), agreed + (theirs is not None)
        assert sorted(folder.iterdir()) == sorted([*files, folder / "config.json"]), case
        file.write_bytes(content[file])
    assert count / 30 < opened < count / 2  # not everything is refused at the door, and not much is left as it was
    assert peer is None or agreed > count / 30


def attempt(folder: Path, case: str) -> tuple[Values | None, str]:
    """What can be read of a model, or the line that refuses it; anything else fails, and says which case it was."""
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        with open_checkpoint(folder) as model:
            return values(model), ""
    except ModelError as error:
        return None, str(error)
    except BaseException as error:
        error.add_note(case)
        raise
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
