"""Reading a merged model again: what was written passes, and whatever differs from it is named in one line."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reference import PLAIN
from safetensors.torch import load_file, save_file

from mooring.errors import ModelError
from mooring.merge_methods import METHODS
from mooring.merging.adapter import merge_adapters
from mooring.merging.job import Job, Options, Output
from mooring.merging.merge import merge
from mooring.merging.tensor_value import TensorValue
from mooring.merging.verify import verify

Write = Callable[..., Path]

MODULE = "model.layers.0.up"


def tensors(seed: int) -> dict[str, torch.Tensor]:
    """Several types, a scalar, nothing at all, and whole numbers."""
    random = torch.Generator().manual_seed(seed)
    weight = torch.randn(16, 8, generator=random)
    return {
        f"{MODULE}.weight": weight.bfloat16(),
        "twin.weight": torch.randn(16, 8, generator=random).bfloat16(),
        "half": weight.half(),
        "single": weight.clone(),
        "scalar": torch.tensor(float(seed)),
        "empty": torch.empty(0, 4),
        "steps": torch.arange(5),
    }


def lora(folder: Path) -> Path:
    """A LoRA adapter as PEFT lays it out."""
    folder.mkdir()
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["up"], "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    parts = {"lora_A": torch.ones(2, 8), "lora_B": torch.arange(32.0).view(16, 2)}
    named = {f"base_model.model.{MODULE}.{k}.weight": v for k, v in parts.items()}
    save_file(named, folder / "adapter_model.safetensors")
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, write: Write) -> dict[str, Path]:
    """A merged model in one file, one in three, and an adapter. Shared: copy before changing one."""
    folder = tmp_path_factory.mktemp("made")
    base = write(folder / "base", tensors(1))
    tuned, adapter = write(folder / "tuned", tensors(2), 2), lora(folder / "lora")
    job = Job(method="linear", base="", tuned=("",), options=Options(lam=TensorValue.of(0.5)))
    return {
        "whole": merge(base, tuned, folder / "whole", lam=0.5),
        "shards": merge(base, tuned, folder / "shards", lam=0.5, output=Output(max_shard_size=300)),
        "adapter": merge_adapters(base, [adapter], folder / "adapter", job),
    }


@pytest.fixture
def copy(made: dict[str, Path], tmp_path: Path) -> Callable[[str], Path]:
    """`copy(kind)` gives a copy of one of them that may be changed."""

    def give(kind: str) -> Path:
        shutil.copytree(made[kind], tmp_path / kind)
        return tmp_path / kind

    return give


def fails(folder: Path) -> str:
    """The code of the error with which a folder fails, in one line that names it."""
    with pytest.raises(ModelError) as caught:
        verify(folder)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)
    assert caught.value.hint
    return caught.value.code


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    """Change the tensors of a model in one file."""
    file = next(folder.glob("*.safetensors"))
    held = load_file(file)
    change(held)
    save_file(held, file)


def edit(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change a manifest."""
    record = json.loads((folder / "mooring.json").read_text())
    change(record)
    (folder / "mooring.json").write_text(json.dumps(record))


@pytest.mark.parametrize("kind", ["whole", "shards", "adapter"])
def test_what_was_written_passes(made: dict[str, Path], kind: str) -> None:
    record = verify(made[kind])
    assert record["tensors"]["all"] == len(record["digests"]) > 1
    assert verify(made[kind], threads=3) == record


@pytest.mark.parametrize("method", sorted(PLAIN))
def test_every_method_s_output_passes(tmp_path: Path, write: Write, method: str) -> None:
    models = [write(tmp_path / str(seed), tensors(seed)) for seed in range(3)]
    out = merge(models[0], models[1:][: METHODS[method].most or 2], tmp_path / "out", method=method, lam=0.5)
    assert verify(out)["method"] == method


def test_every_output_of_several_passes(tmp_path: Path, write: Write) -> None:
    pair = write(tmp_path / "b", tensors(1)), write(tmp_path / "t", tensors(2))
    out = merge(*pair, tmp_path / "out", lambdas=[0.0, 0.5])
    assert [verify(out / name)["lambda"] for name in ("lam-0", "lam-0.5")] == [0.0, 0.5]
    assert fails(out) == "model.no_manifest"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(kind=st.sampled_from(["whole", "shards", "adapter"]), where=st.floats(0, 1), bit=st.integers(0, 7))
def test_one_flipped_bit_anywhere(
    made: dict[str, Path], tmp_path_factory: pytest.TempPathFactory, kind: str, where: float, bit: int
) -> None:
    """In any weight, or in what says how it lies; only what a reader passes over (a file's metadata) may differ."""
    folder = tmp_path_factory.mktemp("flip") / kind
    shutil.copytree(made[kind], folder)
    shards = sorted(folder.glob("*.safetensors"))
    whole = sum(shard.stat().st_size for shard in shards)
    at = min(int(where * whole), whole - 1)
    for shard in shards:
        if at < shard.stat().st_size:
            break
        at -= shard.stat().st_size
    data = bytearray(shard.read_bytes())
    data[at] ^= 1 << bit
    shard.write_bytes(data)
    if at >= 8 + int.from_bytes(data[:8], "little"):
        assert fails(folder) in ("model.tensor_differs", "model.nonfinite")
        return
    try:
        verify(folder)
    except ModelError:
        return
    ours, theirs = load_file(shard), load_file(made[kind] / shard.name)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[name]) and value.dtype == theirs[name].dtype for name, value in ours.items())


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda t: t.pop("single"), "model.tensor_list_differs"),
        (lambda t: t.update(more=torch.ones(1)), "model.tensor_list_differs"),
        (lambda t: t.update(single=t["single"].view(8, 16)), "model.tensor_differs"),
        (lambda t: t.update(half=t["half"].bfloat16()), "model.tensor_differs"),
        (lambda t: t.update(steps=t["steps"].flip(0)), "model.tensor_differs"),
        (lambda t: t["single"][15].__setitem__(7, torch.nan), "model.nonfinite"),
        (lambda t: t["half"][15].__setitem__(7, -torch.inf), "model.nonfinite"),
        (lambda t: t.update(scalar=t["scalar"] + 1), "model.tensor_differs"),
        (lambda t: t.update({"twin.weight": t[f"{MODULE}.weight"].clone()}), "model.tensor_differs"),
    ],
)
def test_changed_tensors(copy: Callable[[str], Path], change: Callable[..., Any], code: str) -> None:
    folder = copy("whole")
    rewrite(folder, change)
    assert fails(folder) == code


def test_swapped_shards_hold_the_same_model(copy: Callable[[str], Path]) -> None:
    """Loaders read every shard, whatever the index says of them."""
    folder = copy("shards")
    first, second = sorted(folder.glob("*.safetensors"))[:2]
    first.rename(folder / "x")
    second.rename(first)
    (folder / "x").rename(second)
    verify(folder)
    second.unlink()
    assert fails(folder) == "model.missing_shard"


def test_swapped_tensors(copy: Callable[[str], Path]) -> None:
    """Two of one shape and type that changed places."""
    folder = copy("whole")
    rewrite(folder, lambda t: t.update({f"{MODULE}.weight": t["twin.weight"], "twin.weight": t[f"{MODULE}.weight"]}))
    assert fails(folder) == "model.tensor_differs"


@pytest.mark.parametrize("file", ["model-00002-of-*.safetensors", "model.safetensors.index.json", "config.json"])
def test_a_missing_file(copy: Callable[[str], Path], file: str) -> None:
    folder = copy("shards")
    next(folder.glob(file)).unlink()
    fails(folder)


def test_a_truncated_shard(copy: Callable[[str], Path]) -> None:
    folder = copy("shards")
    shard = max(folder.glob("*.safetensors"), key=lambda path: path.stat().st_size)
    os.truncate(shard, shard.stat().st_size - 1)
    assert fails(folder) == "model.corrupt"


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda r: r["digests"].pop("single"), "model.bad_manifest"),
        (lambda r: (r["digests"].pop("single"), r["tensors"].update(all=6)), "model.tensor_list_differs"),
        (lambda r: (r["digests"].update(x=["F32", [1], "0"]), r["tensors"].update(all=8)), "model.tensor_list_differs"),
        (lambda r: r["digests"].update(more=["F32", [1], "00"]), "model.bad_manifest"),
        (lambda r: r["digests"]["single"].__setitem__(2, "0" * 32), "model.tensor_differs"),
        (lambda r: r["digests"]["single"].__setitem__(0, "F64"), "model.tensor_differs"),
        (lambda r: r["digests"]["single"].__setitem__(1, 5), "model.bad_manifest"),
        (lambda r: r["digests"]["single"].__setitem__(1, [16, "8"]), "model.tensor_differs"),
        (lambda r: r["digests"].update(single="F32"), "model.bad_manifest"),
        (lambda r: r["digests"]["single"].__setitem__(2, ["0"]), "model.bad_manifest"),
        (lambda r: r.update(digest="0" * 32), "model.digest_mismatch"),
        (lambda r: r.update(notes=5), "model.bad_manifest"),
        (lambda r: r.pop("digest"), "model.digest_mismatch"),
        (lambda r: r.pop("tensors"), "model.bad_manifest"),
        (lambda r: r.pop("digests"), "model.old_manifest"),
        (lambda r: r.update(digests=[]), "model.bad_manifest"),
    ],
)
def test_an_edited_manifest(copy: Callable[[str], Path], change: Callable[..., Any], code: str) -> None:
    folder = copy("whole")
    edit(folder, change)
    assert fails(folder) == code


@pytest.mark.parametrize("text", ["", "[]", "{", '{"method": "linear", "lambda": 0.5}'])
def test_an_invalid_or_missing_manifest(copy: Callable[[str], Path], text: str) -> None:
    folder = copy("whole")
    (folder / "mooring.json").write_text(text)
    assert fails(folder) in ("model.bad_json", "model.old_manifest")
    (folder / "mooring.json").unlink()
    assert fails(folder) == "model.no_manifest"
    shutil.rmtree(folder)
    assert fails(folder) == "model.not_found"


def test_verify_after_allow_nonfinite(tmp_path: Path, write: Write) -> None:
    broken = tensors(2)
    broken["single"][3, 3] = torch.nan
    pair = write(tmp_path / "b", tensors(1)), write(tmp_path / "t", broken)
    out = merge(*pair, tmp_path / "out", lam=0.5, output=Output(allow_nonfinite=True))
    verify(out)
    edit(out, lambda record: record.pop("allow_nonfinite"))
    assert fails(out) == "model.nonfinite"


def test_a_disk_that_corrupts_data(tmp_path: Path, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """The merge itself reads its output again, and leaves nothing where that differs."""
    pair = write(tmp_path / "b", tensors(1)), write(tmp_path / "t", tensors(2))
    pwrite = os.pwrite

    def flips(handle: int, data: memoryview, offset: int) -> int:
        bad = bytes([*data[:-1], data[-1] ^ 1]) if len(data) == 40 else data  # the whole numbers
        return pwrite(handle, bad, offset)

    monkeypatch.setattr(os, "pwrite", flips)
    with pytest.raises(ModelError) as caught:
        merge(*pair, tmp_path / "out", lam=0.5)
    assert caught.value.code == "model.tensor_differs"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b", "t"]
