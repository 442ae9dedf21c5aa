"""PyTorch's `.bin`: every tensor at its bytes, and nothing that is pickled in it is run."""

import collections
import io
import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mooring.errors import ModelError
from mooring.models import open_checkpoint
from mooring.models.checkpoint import TensorFiles
from mooring.models.torch_file import read_pickled


def state_dict() -> dict[str, torch.Tensor]:
    """Every type that a state dict comes in, views and tied tensors among them."""
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(4, 6, generator=generator)
    state: Any = collections.OrderedDict(
        a=a,
        tied=a,
        view=a[1:3],
        thin=a[2:3, 1:],
        parameter=torch.nn.Parameter(torch.randn(3, generator=generator).bfloat16()),
        half=torch.randn(2, 1, 3, generator=generator).half(),
        double=torch.randn(2, generator=generator).double(),
        narrow=torch.randn(4, generator=generator).to(torch.float8_e4m3fn),
        unsigned=torch.arange(3).to(torch.uint16),
        scalar=torch.tensor(3),
        empty=torch.empty(0, 3),
        truth=torch.tensor([True, False]),
        complex=torch.randn(2, generator=generator, dtype=torch.complex64),
    )
    state._metadata = collections.OrderedDict({"": {"version": 1}})
    return state  # type: ignore[no-any-return]


def raw(tensor: torch.Tensor) -> bytes:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def refused(file: Path, code: str = "model.not_state_dict", word: str = "") -> None:
    """The file is refused in one line that names it, with this code and this name in it."""
    with pytest.raises(ModelError) as caught:
        read_pickled(file)
    assert caught.value.code == code
    assert "\n" not in str(caught.value)
    assert file.name in str(caught.value)
    assert word in str(caught.value)


def archive(file: Path, pickled: bytes, members: dict[str, bytes] | None = None, **options: Any) -> Path:
    """A file in PyTorch's form around any pickle."""
    with zipfile.ZipFile(file, "w", **options) as target:
        target.writestr("x/data.pkl", pickled)
        target.writestr("x/version", b"3\n")
        for name, data in (members or {}).items():
            target.writestr(name, data)
    return file


class Named(pickle.Pickler):
    """Writes stand-ins of PyTorch's own names, so that a test can lie about any argument."""

    def persistent_id(self, value: Any) -> Any:
        return value[1:] if isinstance(value, tuple) and value and value[0] == "persistent" else None


class Call:
    """Pickled as a call of a function with any arguments."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> Any:
        return self.function, self.arguments


def lie(
    file: Path,
    *,
    key: Any = "0",
    count: Any = 4,
    start: Any = 0,
    shape: Any = (4,),
    strides: Any = (1,),
    stored: bytes = b"\0" * 16,
    more: tuple[Any, ...] = (),
) -> Path:
    """A file of one float32 tensor, `t`, with any of these values."""
    storage = ("persistent", "storage", torch.FloatStorage, key, "cpu", count)
    tensor = Call(torch._utils._rebuild_tensor_v2, storage, start, shape, strides, False, Call(dict_type), *more)
    stream = io.BytesIO()
    Named(stream, 2).dump({"t": tensor})
    return archive(file, stream.getvalue(), {"x/data/0": stored})


dict_type = collections.OrderedDict


@pytest.mark.parametrize("protocol", [2, 3])  # torch.load(weights_only=True) reads no others
def test_every_tensor_is_found_at_its_bytes(tmp_path: Path, protocol: int) -> None:
    state = state_dict()
    torch.save(state, tmp_path / "x.bin", pickle_protocol=protocol)
    infos = read_pickled(tmp_path / "x.bin")
    assert [i.offset for i in infos] == sorted(i.offset for i in infos)
    with TensorFiles(infos) as files:
        assert set(files.tensors) == set(state)
        for name, value in state.items():
            found = files.tensor(name)
            assert (found.dtype, found.shape) == (value.dtype, value.shape)
            assert raw(found) == raw(value), name
        assert files.tensors["a"].offset == files.tensors["tied"].offset
        assert files.tensors["view"].offset == files.tensors["a"].offset + 6 * 4


def test_a_folder_with_a_bin_opens_as_a_model(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    state = state_dict()
    torch.save(state, tmp_path / "pytorch_model.bin")
    with open_checkpoint(tmp_path) as model:
        assert {name: raw(model.tensor(name)) for name in model.tensors} == {k: raw(v) for k, v in state.items()}
        assert model.output_shards == {"pytorch_model.bin": "model.safetensors"}


def shard(folder: Path) -> Path:
    """The same in two shards and an index."""
    (folder / "config.json").write_text("{}")
    places = {}
    for number, names in enumerate((["a", "tied", "view"], ["scalar", "half"]), 1):
        name = f"pytorch_model-0000{number}-of-00002.bin"
        torch.save({key: state_dict()[key] for key in names}, folder / name)
        places |= dict.fromkeys(names, name)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": places}))
    return folder


def test_shards(tmp_path: Path) -> None:
    with open_checkpoint(shard(tmp_path)) as model:
        assert {k: {i.name for i in v} for k, v in model.shards.items()} == {
            "pytorch_model-00001-of-00002.bin": {"a", "tied", "view"},
            "pytorch_model-00002-of-00002.bin": {"scalar", "half"},
        }
        assert model.output_shards == {
            "pytorch_model-00001-of-00002.bin": "model-00001-of-00002.safetensors",
            "pytorch_model-00002-of-00002.bin": "model-00002-of-00002.safetensors",
        }
        assert all(raw(model.tensor(name)) == raw(state_dict()[name]) for name in model.tensors)


def test_shards_whose_output_names_would_clash_are_numbered(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    places = {"a": "pytorch_a.bin", "scalar": "a.bin"}
    for key, name in places.items():
        torch.save({key: state_dict()[key]}, tmp_path / name)
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": places}))
    with open_checkpoint(tmp_path) as model:
        assert model.output_shards == {
            "a.bin": "model-00001-of-00002.safetensors",
            "pytorch_a.bin": "model-00002-of-00002.safetensors",
        }


def test_a_missing_shard_and_a_path_are_named(tmp_path: Path) -> None:
    shard(tmp_path)
    (tmp_path / "pytorch_model-00002-of-00002.bin").unlink()
    with pytest.raises(ModelError) as caught:
        open_checkpoint(tmp_path)
    assert caught.value.code == "model.missing_shard"
    assert "00002-of-00002.bin" in caught.value.message
    index = tmp_path / "pytorch_model.bin.index.json"
    for bad in ("../x.bin", "/x.bin", "x.safetensors"):
        index.write_text(json.dumps({"weight_map": {"a": bad}}))
        with pytest.raises(ModelError) as caught:
            open_checkpoint(tmp_path)
        assert caught.value.code == "model.bad_index"


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("where", ["value", "top", "tensor", "key"])
def test_nothing_pickled_is_run(tmp_path: Path, protocol: int, where: str) -> None:
    target = tmp_path / "made"
    attack = Call(os.mkdir, str(target))
    assert pickle.loads(pickle.dumps(attack)) is None  # it works where it is run
    target.rmdir()
    tensor = Call(torch._utils._rebuild_tensor_v2, attack, 0, (1,), (1,), False, Call(dict_type))
    content: Any = {"value": {"w": attack}, "top": attack, "tensor": {"w": tensor}, "key": {"w": {attack: 1}}}[where]
    refused(archive(tmp_path / "x.bin", pickle.dumps(content, protocol)))
    assert not target.exists()


@pytest.mark.parametrize(
    "pickled",
    [
        b"cposix\nmkdir\n(S'made'\ntR.",
        b"(S'made'\niposix\nmkdir\n.",
        b"\x80\x02cposix\nmkdir\nX\x04\0\0\0made\x85\x81.",
        b"\x80\x02c__builtin__\neval\nX\x01\0\0\x001\x85R.",
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2.__globals__\n.",
        b"\x80\x04\x8c\x05torch\x8c\x04load\x93.",
        b"\x80\x02ccollections\nOrderedDict\n}X\x09\0\0\0__class__Nsb.",
        b"\x80\x02}X\x08\0\0\0__init__ctorch\nSize\ns}b.",
        b"\x80\x02\x82\x01.",
    ],
)
def test_other_ways_to_call_are_refused(tmp_path: Path, pickled: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    refused(archive(tmp_path / "x.bin", pickled))
    assert [p.name for p in tmp_path.iterdir()] == ["x.bin"]


DOUBLING = b"\x80\x02)" + b"q\0h\0\x86" * 3000
"""A tuple of two of the same, again and again: small, and exponentially large to whoever walks it."""


@pytest.mark.slow
@pytest.mark.parametrize(
    "pickled",
    [
        DOUBLING + b".",
        b"\x80\x02}" + DOUBLING[2:] + b"Ns.",
        b"\x80\x04" + DOUBLING[2:] + b"\x8c\x01a\x93.",
        b"\x80\x02ctorch\nSize\n" + DOUBLING[2:] + b"\x85R.",
        b"\x80\x02r\xff\xff\xff\xff.",
        b"\x80\x02Nr\xff\xff\xff\xff.",
        b"\x80\x05\x96" + b"\xff" * 7 + b"\x7f.",
        b"\x80\x05\x8e" + b"\xff" * 7 + b"\x7f.",
        b"\x80\x02\x8b\xff\xff\xff\x7f.",
        b"I" + b"9" * 100_000 + b"\n.",
        b"\x80\x02" + b"(" * 300_000 + b"t" * 299_999 + b".",
        b"\x80\x02" + b"N" * 2_100_000 + b".",
        b"\x80\x02}" + b"N0" * 10,
        b"\x80\x02}",
        b"\x80\x02t.",
        b"\x80\x02h\x05.",
        b"",
    ],
)
def test_archive_bombs_and_damage_are_refused_cheaply(tmp_path: Path, pickled: bytes) -> None:
    refused(archive(tmp_path / "x.bin", pickled))


def test_the_size_of_a_pickle_is_limited(tmp_path: Path) -> None:
    refused(archive(tmp_path / "x.bin", b"N" * (2**24 + 1)), word="'x/data.pkl'")


def test_the_size_of_the_archives_directory_is_limited(tmp_path: Path) -> None:
    file = lie(tmp_path / "x.bin")
    data = file.read_bytes()
    end = data.rindex(b"PK\5\6")
    with file.open("wb") as stream:
        stream.write(data[:end])
        stream.seek(2**33)  # sparse
        stream.write(struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 9, 9, 2**32 - 2**20, 2**20, 0))
    refused(file)


@pytest.mark.parametrize(
    "change",
    [
        {"strides": (2,), "shape": (2,)},
        {"strides": (1, 2), "shape": (2, 2)},
        {"strides": (0,)},
        {"shape": (5,)},
        {"start": 1},
        {"start": 2**61},
        {"start": -1},
        {"shape": (-4,)},
        {"shape": (True,)},
        {"shape": (2**70,)},
        {"shape": 4},
        {"shape": (2, 2)},
        {"shape": (1,) * 65, "strides": (1,) * 65},
        {"count": 5},
        {"count": 3, "shape": (3,)},
        {"count": 2**63},
        {"key": "1"},
        {"key": "../0"},
        {"more": ({"conj": True},)},
    ],
)
def test_inconsistent_tensors_are_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    read_pickled(lie(tmp_path / "good.bin"))
    refused(lie(tmp_path / "x.bin", **change))


@pytest.mark.parametrize(
    "value",
    [
        torch.zeros(2),
        {},
        {"w": torch.zeros(2), "epoch": 3},
        {"w": torch.zeros(2, 3).t()},
        {"w": torch.zeros(2).expand(3, 2)},
        {"w": torch.zeros(2).to_sparse()},
        {"w": torch.zeros(2, dtype=torch.complex64).conj()},
        {"w": torch.zeros(2, dtype=torch.complex128)},
        {"a\nb": torch.zeros(2)},
        {"__metadata__": torch.zeros(2)},
        {1: torch.zeros(2)},
        [torch.zeros(2)],
        torch.nn.Linear(2, 2),
    ],
)
def test_anything_but_a_state_dict_is_refused(tmp_path: Path, value: Any) -> None:
    torch.save(value, tmp_path / "x.bin")
    refused(tmp_path / "x.bin")


def test_a_nested_state_dict_is_named(tmp_path: Path) -> None:
    torch.save({"state_dict": {"w": torch.zeros(2)}}, tmp_path / "x.bin")
    refused(tmp_path / "x.bin", "model.nested_state_dict", "'state_dict'")


def test_a_tensor_without_entries_takes_no_bytes(tmp_path: Path) -> None:
    (info,) = read_pickled(lie(tmp_path / "x.bin", shape=(0, 2**61, 2**61), strides=(1, 1, 1)))
    assert info.nbytes == 0


def test_other_formats_are_refused_with_a_fix(tmp_path: Path) -> None:
    file = tmp_path / "x.bin"
    torch.save({"w": torch.zeros(2)}, file, _use_new_zipfile_serialization=False)
    refused(file, "model.old_torch_format", "weights_only=True")
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(file))
    refused(file, "model.torchscript")
    file.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    refused(file, "model.lfs_pointer", "git lfs pull")
    file.write_bytes(b"")
    refused(file, "model.corrupt")
    file.unlink()
    refused(file, "model.unreadable")
    os.mkfifo(file)
    refused(file, "model.not_a_file")


def test_archives_that_are_not_pytorchs(tmp_path: Path) -> None:
    file = tmp_path / "x.bin"
    good = lie(file)
    pickled = zipfile.ZipFile(good).read("x/data.pkl")
    archive(file, pickled, {"x/data/0": b"\0" * 16}, compression=zipfile.ZIP_DEFLATED)
    refused(file)
    archive(file, pickled, {"x/data/0": b"\0" * 16, "x/byteorder": b"big"})
    refused(file, word="little-endian")
    archive(file, pickled, {"x/data/0": b"\0" * 16, "x/byteorder": b"little"})
    assert [info.name for info in read_pickled(file)] == ["t"]
    archive(file, pickled, {"y/data.pkl": pickled})
    refused(file, word="2 data.pkl")
    with pytest.warns(UserWarning, match="Duplicate name"):
        archive(file, pickled, {"x/data.pkl": pickled})
    refused(file)
    with zipfile.ZipFile(file, "w") as target:
        target.writestr("x/other", b"")
    refused(file, word="no data.pkl")


def test_a_member_that_claims_more_than_the_file_holds(tmp_path: Path) -> None:
    file = lie(tmp_path / "x.bin", count=2**28, shape=(2**28,))
    data = bytearray(file.read_bytes())
    entry = data.rindex(b"x/data/0") - 46  # in the directory
    data[entry + 20 : entry + 28] = struct.pack("<2L", 2**30, 2**30)
    file.write_bytes(data)
    refused(file, "model.corrupt")
    file.write_bytes(lie(tmp_path / "y.bin").read_bytes()[:-30])
    refused(file, "model.corrupt")


def test_thousands_of_tensors_are_within_the_limits(tmp_path: Path) -> None:
    state = {f"layers.{i}.weight": torch.full((1,), float(i)) for i in range(3000)}
    torch.save(state, tmp_path / "x.bin")
    with TensorFiles(read_pickled(tmp_path / "x.bin")) as files:
        assert all(files.tensor(name).item() == value.item() for name, value in state.items())
