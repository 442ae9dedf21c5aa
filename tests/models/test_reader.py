"""Opening model folders: what is whole is read exactly, what is not is refused in one line."""

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from mooring.errors import ModelError
from mooring.models import Checkpoint, open_checkpoint
from mooring.models.safetensors_file import DTYPES, LONGEST_HEADER, lay_out, read_header

TENSORS = {
    "a.weight": torch.arange(24, dtype=torch.float32).view(4, 6),
    "b": torch.tensor(7, dtype=torch.int64),
    "c": torch.randn(5, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16),
    "empty": torch.empty(0, 3),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model of one file."""
    save_file(TENSORS, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    return tmp_path


def sharded(folder: Path) -> Path:
    """The same tensors in two files and an index."""
    (folder / "model.safetensors").unlink()
    places = {}
    for number, names in enumerate((["a.weight", "empty"], ["b", "c"]), 1):
        shard = f"model-0000{number}-of-00002.safetensors"
        save_file({name: TENSORS[name] for name in names}, folder / shard)
        places |= dict.fromkeys(names, shard)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return folder


def refused(folder: Path, code: str, name: str = "") -> None:
    """The folder is refused in one line, with this code, and with this name in it."""
    with pytest.raises(ModelError) as caught:
        open_checkpoint(folder)
    assert caught.value.code == code
    assert "\n" not in str(caught.value)
    assert str(folder) in caught.value.message
    assert name in caught.value.message


def raw(header: Any, data: bytes = b"") -> bytes:
    """A safetensors file from any header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def check_tensors(model: Checkpoint) -> None:
    assert set(model.tensors) == set(TENSORS)
    for name, value in TENSORS.items():
        assert torch.equal(model.tensor(name), value)
        assert model.tensors[name].shape == tuple(value.shape)
        assert model.tensors[name].dtype == value.dtype


def test_one_file(folder: Path) -> None:
    with open_checkpoint(folder) as model:
        check_tensors(model)
        assert model.config == {"model_type": "llama"}
        assert list(model.shards) == ["model.safetensors"]


def test_shards(folder: Path) -> None:
    with open_checkpoint(sharded(folder)) as model:
        check_tensors(model)
        assert {k: sorted(i.name for i in v) for k, v in model.shards.items()} == {
            "model-00001-of-00002.safetensors": ["a.weight", "empty"],
            "model-00002-of-00002.safetensors": ["b", "c"],
        }


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_slices(folder: Path, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(TENSORS)))
    count = TENSORS[name].numel()
    start = data.draw(st.integers(0, count))
    stop = data.draw(st.integers(start, count))
    buffer = torch.full((256,), 77, dtype=torch.uint8)
    with open_checkpoint(folder) as model:
        expected = TENSORS[name].flatten()[start:stop]
        assert torch.equal(model.read(name, start, stop), expected)
        assert torch.equal(model.read(name, start, stop, out=buffer), expected)
        assert buffer[(stop - start) * expected.dtype.itemsize :].eq(77).all()  # nothing beyond the slice is touched
        with pytest.raises(ValueError, match="no elements"):
            model.read(name, start, count + 1)


def test_file_cut_after_opening(folder: Path) -> None:
    with open_checkpoint(folder) as model:
        file = folder / "model.safetensors"
        file.write_bytes(file.read_bytes()[:-30])
        last = max((info for info in model.tensors.values() if info.numel), key=lambda info: info.offset)
        with pytest.raises(ModelError) as caught:
            model.tensor(last.name)
        assert caught.value.code == "model.truncated"
        assert str(file) in caught.value.message


def test_vanished_after_opening(folder: Path) -> None:
    with open_checkpoint(folder) as model:
        (folder / "model.safetensors").unlink()
        with pytest.raises(ModelError) as caught:
            model.tensor("b")
        assert caught.value.code == "model.unreadable"


def test_folders_without_a_model_are_refused(tmp_path: Path) -> None:
    refused(tmp_path / "none", "model.not_found")
    (tmp_path / "file").touch()
    refused(tmp_path / "file", "model.not_found")
    empty = tmp_path / "empty"
    empty.mkdir()
    refused(empty, "model.empty")
    (empty / "notes.txt").touch()
    refused(empty, "model.no_config", "config.json")
    (empty / "config.json").write_text("{}")
    refused(empty, "model.no_weights", "model.safetensors")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "model.safetensors.index.json"])
def test_pipes_devices_and_folders_are_refused_without_blocking(folder: Path, name: str) -> None:
    (folder / "model.safetensors").unlink()
    (folder / name).unlink(missing_ok=True)
    code = "model.no_config" if name == "config.json" else "model.not_a_file"
    os.mkfifo(folder / name)
    refused(folder, code, name)
    (folder / name).unlink()
    (folder / name).symlink_to("/dev/zero")
    refused(folder, code, name)
    (folder / name).unlink()
    (folder / name).mkdir()
    refused(folder, code, name)


def test_a_dangling_link_is_named(folder: Path) -> None:
    """As in the hub's cache, when a blob was removed."""
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to("../blobs/abc")
    refused(folder, "model.unreadable", "model.safetensors")


def test_links_into_the_hubs_cache_are_followed(folder: Path, tmp_path: Path) -> None:
    blob = tmp_path / "blob"
    (folder / "model.safetensors").rename(blob)
    (folder / "model.safetensors").symlink_to(blob)
    with open_checkpoint(folder) as model:
        check_tensors(model)


def test_a_large_header_of_small_pieces_is_refused_before_it_is_parsed(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(raw(b"[%s]" % (b"[]," * 2_000_000)))
    refused(folder, "model.corrupt", "model.safetensors")


@pytest.mark.parametrize(("text", "name"), [("{", "config.json:1"), ("[]", "config.json"), ("\xff", "config.json")])
def test_bad_config(folder: Path, text: str, name: str) -> None:
    (folder / "config.json").write_text(text, encoding="latin-1")
    refused(folder, "model.bad_json", name)


@pytest.mark.parametrize(("method", "name"), [("hqq", "hqq"), ("a\\nb", "unknown method")])
def test_quantized(folder: Path, method: str, name: str) -> None:
    save_file({"m.W_q": CODES}, folder / "model.safetensors")
    (folder / "config.json").write_text(f'{{"quantization_config": {{"quant_method": "{method}"}}}}')
    refused(folder, "model.quantized", name)


CODES = torch.zeros(2, 2, dtype=torch.int32)
SCALES = torch.ones(2)


@pytest.mark.parametrize(
    ("tensors", "name"),
    [
        ({"m.qweight": CODES, "m.scales": SCALES}, "m.qweight"),
        ({"m.weight_packed": CODES}, "m.weight_packed"),
        ({"m.weight": CODES.to(torch.int8), "m.SCB": torch.ones(3)}, "m.SCB"),
        ({"m.weight": CODES.to(torch.uint8), "m.weight.absmax": SCALES}, "m.weight.absmax"),
        ({"m.weight": torch.ones(2).to(torch.float8_e4m3fn), "m.weight_scale_inv": SCALES}, "m.weight_scale_inv"),
        ({"up_blocks": CODES.to(torch.uint8), "up_scales": CODES.to(torch.uint8)}, "up_scales"),
        ({"qweight": CODES}, "qweight"),
    ],
)
def test_quantized_though_no_config_says_so(folder: Path, tensors: dict[str, torch.Tensor], name: str) -> None:
    save_file(tensors | {"norm.weight": SCALES.clone()}, folder / "model.safetensors")
    with pytest.raises(ModelError) as error:
        open_checkpoint(folder)
    assert error.value.code in ("model.quantized", "model.bad_quantization")
    assert f" {name} " in str(error.value)


def test_names_alone_do_not_make_it_quantized(folder: Path) -> None:
    plain = {"m.weight": SCALES, "m.weight_scale": SCALES, "m.scales": SCALES, "absmax": SCALES, "n.weight": CODES}
    save_file({k: v.clone() for k, v in plain.items()} | {"qweight": SCALES.clone()}, folder / "model.safetensors")
    with open_checkpoint(folder) as model:
        assert len(model.tensors) == 6
        assert model.output_shards == {"model.safetensors": "model.safetensors"}


def test_adapter_is_not_a_model(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    refused(tmp_path, "model.adapter_not_whole")


def change_index(change: Callable[[dict[str, str]], object]) -> Callable[[Path], object]:
    def apply(folder: Path) -> None:
        index = folder / "model.safetensors.index.json"
        data = json.loads(index.read_text())
        change(data["weight_map"])
        index.write_text(json.dumps(data))

    return apply


LONG = "x" * 5000 + ".safetensors"


@pytest.mark.parametrize(
    ("break_it", "code", "name"),
    [
        (lambda f: (f / "model-00002-of-00002.safetensors").unlink(), "model.missing_shard", "00002-of-00002"),
        (lambda f: (f / "model.safetensors.index.json").write_text("{}"), "model.bad_index", "weight_map"),
        (change_index(lambda m: m.update(b="../model.safetensors")), "model.bad_index", "../model.safetensors"),
        (change_index(lambda m: m.update(b="/etc/passwd.safetensors")), "model.bad_index", "/etc/passwd.safetensors"),
        (change_index(lambda m: m.update(b="..")), "model.bad_index", "'..'"),
        (change_index(lambda m: m.update(b="mooring.json")), "model.bad_index", "'mooring.json'"),
        (change_index(lambda m: m.update(b="a\nb.safetensors")), "model.bad_index", r"a\nb.safetensors"),
        (change_index(lambda m: m.update(dict.fromkeys("bcz", LONG))), "model.missing_shard", LONG),
        (change_index(lambda m: m.update({"z\n": "c.safetensors"})), "model.bad_index", r"'z\n'"),
        (change_index(lambda m: m.update(b=3)), "model.bad_index", "weight_map"),  # type: ignore[call-overload]
        (change_index(lambda m: m.update(z=m["b"])), "model.index_mismatch", ": z "),
    ],
)
def test_bad_index(folder: Path, break_it: Callable[[Path], object], code: str, name: str) -> None:
    break_it(sharded(folder))
    refused(folder, code, name)


ONE = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x05\0\0",
        raw({"x": ONE})[:20],
        raw({"x": ONE}, b"1234567"),
        raw({"x": ONE}, b"123456789"),
        struct.pack("<Q", 2**63) + b"{}",
        raw(b"not json"),
        raw(b"\xff\xfe{}"),
        raw(b"[" * 50_000),
        raw([]),
        raw({"x": 3}),
        raw({"x": ONE | {"more": 1}}, b"12345678"),
        raw({"x": ONE | {"dtype": "F13"}}, b"12345678"),
        raw({"x": ONE | {"dtype": ["F32"]}}, b"12345678"),
        raw({"x": ONE | {"shape": [-2]}}, b"12345678"),
        raw({"x": ONE | {"shape": [2.0]}}, b"12345678"),
        raw({"x": ONE | {"shape": [True, 2]}}, b"12345678"),
        raw({"x": ONE | {"data_offsets": [0]}}, b"12345678"),
        raw({"x": ONE | {"shape": [3]}}, b"12345678"),
        raw({"x": ONE | {"shape": [2**61, 2**61]}}, b"12345678"),
        raw({"x": ONE | {"shape": [0, 2**61, 2**61], "data_offsets": [0, 0]}}),
        raw({"x": ONE | {"shape": [10**30]}}, b"12345678"),
        raw(b'{"x": %s}' % (b"9" * 5000)),
        raw(b'{"x": NaN}'),
        raw(b'{"x": 1e999}'),
        raw(json.dumps({"x": ONE}).encode("utf-16"), b"12345678"),
        raw(json.dumps({"x": ONE}).encode() + b"\0\0", b"12345678"),
        raw({"a\nb": ONE}, b"12345678"),
        raw({"": ONE}, b"12345678"),
        raw({"\ud800": ONE}, b"12345678"),
        raw({"x" * 1001: ONE}, b"12345678"),
        raw({"x": ONE, "y": ONE | {"data_offsets": [4, 12]}}, b"x" * 12),
        raw({"x": ONE, "y": ONE | {"data_offsets": [12, 20]}}, b"x" * 20),
        raw({"x": ONE | {"data_offsets": [8, 16]}}, b"x" * 16),
        raw(b'{"x": %s, "x": %s}' % ((json.dumps(ONE).encode(),) * 2), b"12345678"),
    ],
)
def test_a_corrupt_file_is_refused(folder: Path, content: bytes) -> None:
    (folder / "model.safetensors").write_bytes(content)
    refused(folder, "model.corrupt", "model.safetensors")


def test_a_pointer_of_git_lfs_and_a_file_without_tensors_are_named(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0")
    refused(folder, "model.lfs_pointer", "model.safetensors")
    (folder / "model.safetensors").write_bytes(raw({}))
    refused(folder, "model.empty")


def test_header_too_long(folder: Path) -> None:
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", LONGEST_HEADER + 1))
        file.truncate(LONGEST_HEADER * 2)  # sparse
    refused(folder, "model.corrupt", "model.safetensors")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300, deadline=None)
@given(data=st.data())
def test_mutations_never_escape(folder: Path, data: st.DataObject) -> None:
    """A damaged file is refused, or every tensor can still be read to its end."""
    content = bytearray((folder / "model.safetensors").read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at] = data.draw(st.integers(0, 255))
    del content[data.draw(st.integers(1, len(content) * 4)) :]
    damaged = folder / "damaged.safetensors"
    damaged.write_bytes(content)
    try:
        infos = read_header(damaged)
    except ModelError:
        return
    with Checkpoint(folder, {}, infos) as model:
        assert sum(model.tensor(name).nbytes for name in model.tensors) == model.nbytes < len(content)


def test_own_layout_is_read_by_the_library(tmp_path: Path) -> None:
    from safetensors import safe_open

    file = tmp_path / "x.safetensors"
    plan = [(name.lower(), dtype, (2, 3)) for name, dtype in DTYPES.items()]
    head, infos = lay_out(file, plan)
    file.write_bytes(head + b"\0" * sum(info.nbytes for info in infos))
    assert len(head) % 8 == 0
    assert read_header(file) == infos
    with safe_open(file, "pt") as library:
        assert library.metadata() == {"format": "pt"}
        assert set(library.keys()) == {name for name, _, _ in plan}
        assert all(library.get_slice(n).get_shape() == [2, 3] for n, _, _ in plan)
