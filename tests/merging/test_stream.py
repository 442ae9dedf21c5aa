"""The engine: the formula on every tensor, the same bytes whatever the slices, and nothing left after a failure."""

import errno
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mooring.errors import MismatchError, ModelError, OutputError, UserError
from mooring.merging.merge import merge
from mooring.models import Checkpoint, Writer

Write = Callable[..., Path]
Read = Callable[[Path], dict[str, torch.Tensor]]


def linear(base: torch.Tensor, tuned: torch.Tensor, lam: float) -> torch.Tensor:
    """The formula, in float32 or float64, rounded once; the inputs' bytes at the ends."""
    if lam in (0, 1):
        return tuned.to(base.dtype) if lam else base
    wide = torch.float64 if torch.float64 in (base.dtype, tuned.dtype) else torch.float32
    return torch.lerp(base.to(wide), tuned.to(wide), lam).to(base.dtype)


def tensors(seed: int) -> dict[str, torch.Tensor]:
    """Every floating type, a scalar, nothing at all, and whole numbers."""
    random = torch.Generator().manual_seed(seed)
    shapes = {"bf16": (37, 19), "f16": (64, 8), "f32": (301,), "f64": (11, 3)}
    kinds = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32, "f64": torch.float64}
    made = {f"{k}.weight": torch.randn(shape, generator=random).to(kinds[k]) for k, shape in shapes.items()}
    return made | {
        "scalar": torch.tensor(float(seed)),
        "empty": torch.empty(0, 4),
        "steps": torch.arange(5),
        "mask": torch.tensor([True, False]),
    }


@pytest.fixture(autouse=True)
def small_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    """A grid so fine that small tensors have many slices."""
    monkeypatch.setattr(sys.modules["mooring.merging.slices"], "CELL", 16)  # `mooring.merge` may be the function


@pytest.fixture
def pair(tmp_path: Path, write: Write) -> tuple[Path, Path]:
    """A base and a tuned model."""
    tuned = tensors(2)
    tuned["f16.weight"] = tensors(1)["f16.weight"]  # left alone by the tuning
    return write(tmp_path / "base", tensors(1)), write(tmp_path / "tuned", tuned)


@pytest.mark.parametrize("lam", [0, 0.3, 0.5, 0.9, 1])
def test_formula_on_every_tensor(pair: tuple[Path, Path], tmp_path: Path, read: Read, lam: float) -> None:
    out = merge(*pair, tmp_path / "out", lam=lam)
    base, tuned, merged = read(pair[0]), read(pair[1]), read(out)
    assert merged.keys() == base.keys()
    for name, value in merged.items():
        expected = linear(base[name], tuned[name], lam) if value.is_floating_point() else base[name]
        assert torch.equal(value, expected), name
        assert value.dtype == base[name].dtype


def test_ends_are_the_inputs_bytes(pair: tuple[Path, Path], tmp_path: Path, read: Read) -> None:
    for lam, source in ((0, pair[0]), (1, pair[1])):
        merged = read(merge(*pair, tmp_path / f"out{lam}", lam=lam))
        for name, value in read(source).items():
            assert torch.equal(value.flatten().view(torch.uint8), merged[name].flatten().view(torch.uint8))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25, deadline=None)
@given(size=st.integers(1, 5000), threads=st.integers(1, 5), shards=st.integers(1, 3), lam=st.floats(0, 1))
def test_same_bytes_whatever_the_slices(
    tmp_path_factory: pytest.TempPathFactory, write: Write, read: Read, size: int, threads: int, shards: int, lam: float
) -> None:
    folder = tmp_path_factory.mktemp("merge")
    base, tuned = write(folder / "base", tensors(1)), write(folder / "tuned", tensors(2))
    whole = merge(base, tuned, folder / "whole", lam=lam, threads=1)
    again = merge(base, tuned, folder / "again", lam=lam, slice_bytes=size, threads=threads)
    assert {p.name: p.read_bytes() for p in whole.iterdir()} == {p.name: p.read_bytes() for p in again.iterdir()}
    spread = write(folder / "spread", tensors(1), shards), write(folder / "spread-tuned", tensors(2), 4 - shards)
    dealt = merge(*spread, folder / "dealt", lam=lam, slice_bytes=size, threads=threads)
    assert len(list(dealt.glob("*.safetensors"))) == shards
    merged = read(dealt)
    assert all(torch.equal(value, merged[name]) for name, value in read(whole).items())


def test_manifest(pair: tuple[Path, Path], tmp_path: Path) -> None:
    (pair[0] / "tokenizer.json").write_text("{}")
    (pair[0] / "README.md").write_text("another model")
    out = merge(*pair, tmp_path / "out", lam=0.25)
    record = json.loads((out / "mooring.json").read_text())
    assert (record["method"], record["lambda"]) == ("linear", 0.25)
    (tuned,) = record["tuned"]
    assert tuned["kind"] == "checkpoint"
    assert tuned["digest"] != record["base"]["digest"]
    half = json.loads((merge(*pair, tmp_path / "half", lam=0.5) / "mooring.json").read_text())
    assert (half["base"], half["tuned"]) == (record["base"], record["tuned"])
    again = json.loads((merge(out, pair[1], tmp_path / "again", lam=0.5) / "mooring.json").read_text())
    assert again["base"]["digest"] == f"xxh3:{record['digest']}"  # what one merge wrote, the next one reads
    assert record["tensors"] == {"all": 8, "changed": 4}  # bf16, f32, f64, scalar
    assert set(record["decisions"]) == {"steps", "mask"}
    assert record["made_with"]["torch"] == torch.__version__
    assert str(tmp_path) not in json.dumps(record)
    assert sorted(p.name for p in out.iterdir()) == [
        "config.json",
        "model.safetensors",
        "mooring.json",
        "tokenizer.json",
    ]


def test_progress_ends_at_the_whole(pair: tuple[Path, Path], tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    merge(
        *pair, tmp_path / "out", lam=0.5, slice_bytes=64, on_event=lambda event: seen.append((event.done, event.total))
    )
    assert len(seen) > 20
    assert seen == sorted(seen)
    assert seen[-1][0] == seen[-1][1] == sum(t.nbytes for t in tensors(1).values())


def test_reads_and_writes_a_slice_at_a_time(
    pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    preadv, pwrite = os.preadv, os.pwrite

    def spy_read(handle: int, buffers: list[memoryview], offset: int) -> int:
        sizes.append(sum(len(b) for b in buffers))
        return preadv(handle, buffers, offset)

    monkeypatch.setattr(os, "preadv", spy_read)
    merge(*pair, tmp_path / "out", lam=0.5, slice_bytes=256)
    assert len(sizes) > 10
    assert max(sizes) <= 256
    written: list[int] = []

    def spy_write(handle: int, data: memoryview, offset: int) -> int:
        if offset:  # the header lies at 0
            written.append(len(data))
        return pwrite(handle, data, offset)

    monkeypatch.setattr(os, "pwrite", spy_write)
    merge(*pair, tmp_path / "again", lam=0.5, slice_bytes=256)
    assert max(written) <= 256


def test_other_types_are_brought_to_the_bases(tmp_path: Path, write: Write, read: Read) -> None:
    base = {"w": tensors(1)["bf16.weight"], "v": torch.ones(3, dtype=torch.bfloat16)}
    tuned = {"w": tensors(2)["f32.weight"][:300].repeat(3)[:703].view(37, 19), "v": torch.ones(3)}
    out = merge(write(tmp_path / "b", base), write(tmp_path / "t", tuned), tmp_path / "out", lam=1)
    assert torch.equal(read(out)["w"], tuned["w"].to(torch.bfloat16))
    record = json.loads((out / "mooring.json").read_text())
    assert record["tensors"]["changed"] == 1  # v has the same values
    assert "bfloat16" in record["decisions"]["w"]


@pytest.mark.parametrize("stored_by", ["base", "tuned"])
def test_tied_head_stored_by_one_side(tmp_path: Path, write: Write, read: Read, stored_by: str) -> None:
    one, other = tensors(1)["bf16.weight"], tensors(2)["bf16.weight"]
    base, tuned = {"embed_tokens.weight": one}, {"embed_tokens.weight": other}
    (base if stored_by == "base" else tuned)["lm_head.weight"] = (one if stored_by == "base" else other).clone()
    out = merge(write(tmp_path / "b", base), write(tmp_path / "t", tuned), tmp_path / "out", lam=0.5)
    merged = read(out)
    assert merged.keys() == base.keys()
    assert all(torch.equal(value, linear(one, other, 0.5)) for value in merged.values())
    assert "tied" in json.loads((out / "mooring.json").read_text())["decisions"]["lm_head.weight"]


def refused(kind: type[UserError], folder: Path, base: Path, tuned: Path, **options: Any) -> UserError:
    """The merge is refused in one line; nothing appears beside what was there, and the inputs keep their bytes."""
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    entries = set(folder.rglob("*"))
    with pytest.raises(kind) as caught:
        merge(base, tuned, options.pop("out", folder / "out"), **{"lam": 0.5} | options)
    assert "\n" not in str(caught.value)
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before
    assert set(folder.rglob("*")) == entries
    return caught.value


@pytest.mark.parametrize(
    ("change", "name", "code"),
    [
        (lambda t: t.pop("f32.weight"), "f32.weight", "model.missing_tensor"),
        (lambda t: t.update(more=torch.ones(1)), "more", "model.extra_tensor"),
        (lambda t: t.update({"lm_head.weight": torch.ones(1)}), "lm_head.weight", "model.extra_tensor"),
        (lambda t: t.update({"f32.weight": torch.ones(300)}), "f32.weight", "model.shape_mismatch"),
        (lambda t: t.update(steps=torch.arange(5) * 2), "steps", "model.integers_differ"),
        (lambda t: t.update(steps=torch.arange(5.0)), "steps", "model.dtype_mismatch"),
        (lambda t: t.update({"f32.weight": torch.arange(301)}), "f32.weight", "model.dtype_mismatch"),
        (lambda t: t["f32.weight"].__setitem__(300, torch.nan), "tuned: f32.weight", "model.nonfinite"),
        (lambda t: t["bf16.weight"][3].__setitem__(3, -torch.inf), "tuned: bf16.weight", "model.nonfinite"),
        (lambda t: (t.clear(), t.update(tensors(1))), "", "model.equal"),
    ],
)
@pytest.mark.parametrize("size", [64, 2**20])
def test_tuned_models_that_do_not_fit(
    tmp_path: Path, write: Write, change: Callable[..., Any], name: str, code: str, size: int
) -> None:
    changed = tensors(2)
    change(changed)
    base, tuned = write(tmp_path / "base", tensors(1)), write(tmp_path / "tuned", changed)
    error = refused(UserError, tmp_path, base, tuned, slice_bytes=size)
    assert error.code == code
    assert name in error.message


@pytest.mark.parametrize("lam", [0, 0.5, 1])
def test_nan_in_the_base(tmp_path: Path, write: Write, lam: float) -> None:
    broken = tensors(1)
    broken["f16.weight"][5, 5] = torch.nan
    base, tuned = write(tmp_path / "base", broken), write(tmp_path / "tuned", tensors(2))
    error = refused(ModelError, tmp_path, base, tuned, lam=lam)
    assert error.code == "model.nonfinite"
    assert "base: f16.weight" in error.message


def test_bad_arguments(pair: tuple[Path, Path], tmp_path: Path) -> None:
    assert refused(UserError, tmp_path, *pair, lam=1.5).code == "usage.lambda_out_of_range"
    assert refused(UserError, tmp_path, *pair, method="magic").code == "usage.unknown_method"
    assert refused(ModelError, tmp_path, tmp_path / "none", pair[1]).code == "model.not_found"
    assert refused(ModelError, tmp_path, pair[0], tmp_path / "none").code == "model.not_found"
    assert refused(OutputError, tmp_path, *pair, out=pair[0] / "x").code == "output.inside_input"
    assert refused(OutputError, tmp_path, *pair, out=pair[1]).code == "output.inside_input"
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    assert refused(OutputError, tmp_path, *pair, out=tmp_path / "full").code == "output.not_empty"


def test_other_architecture(tmp_path: Path, write: Write) -> None:
    base = write(tmp_path / "base", tensors(1))
    error = refused(MismatchError, tmp_path, base, write(tmp_path / "t", tensors(2), model_type="gemma"))
    assert error.code == "model.architecture_mismatch"


def test_truncated_input(pair: tuple[Path, Path], tmp_path: Path) -> None:
    file = pair[1] / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    assert refused(ModelError, tmp_path, *pair).code == "model.corrupt"


def test_no_room(pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("mooring.files.shutil.disk_usage", lambda _: usage)
    assert refused(OutputError, tmp_path, *pair).code == "output.disk_full"


@pytest.mark.parametrize("after", [0, 5])
def test_disk_full_in_the_middle(
    pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    pwrite, calls = os.pwrite, iter(range(10**6))

    def full(*args: Any) -> int:
        if next(calls) >= after:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return pwrite(*args)

    monkeypatch.setattr(os, "pwrite", full)
    assert refused(OutputError, tmp_path, *pair, slice_bytes=128).code == "output.disk_full"


def test_interrupted(pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C between two slices: nothing stays, and no worker writes after its files are closed."""

    def interrupt(_: object) -> None:
        raise KeyboardInterrupt

    closed = threading.Event()
    close, write = Writer.close, Writer.write

    def slow_write(writer: Writer, *args: Any) -> None:
        time.sleep(0.005)
        late.append(closed.is_set())
        write(writer, *args)

    late: list[bool] = []
    monkeypatch.setattr(Writer, "close", lambda writer: (closed.set(), close(writer)))
    monkeypatch.setattr(Writer, "write", slow_write)
    with pytest.raises(KeyboardInterrupt):
        merge(*pair, tmp_path / "out", lam=0.5, slice_bytes=16, on_event=interrupt)
    monkeypatch.undo()
    assert late
    assert not any(late)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["base", "tuned"]
    merge(*pair, tmp_path / "out", lam=0.5)


def test_short_reads_and_writes(pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system may do a part of what it is asked."""
    whole = merge(*pair, tmp_path / "whole", lam=0.5)
    preadv, pwrite = os.preadv, os.pwrite
    monkeypatch.setattr(os, "preadv", lambda handle, buffers, at: preadv(handle, [buffers[0][:7]], at))
    monkeypatch.setattr(os, "pwrite", lambda handle, data, at: pwrite(handle, data[:5], at))
    parts = merge(*pair, tmp_path / "parts", lam=0.5)
    monkeypatch.undo()
    assert (whole / "model.safetensors").read_bytes() == (parts / "model.safetensors").read_bytes()


def test_threads_are_given_back(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """A merge leaves torch's threads as they were, for threads started later too."""
    own = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        merge(*pair, tmp_path / "out", lam=0.5)
        with ThreadPoolExecutor(1) as pool:
            assert (torch.get_num_threads(), pool.submit(torch.get_num_threads).result()) == (2, 2)
    finally:
        torch.set_num_threads(own)


def test_engine_uses_no_whole_reads(monkeypatch: pytest.MonkeyPatch, pair: tuple[Path, Path], tmp_path: Path) -> None:
    monkeypatch.setattr(Checkpoint, "tensor", lambda *_: pytest.fail("a whole tensor was read"))
    assert (merge(*pair, tmp_path / "out", lam=0.5) / "config.json").is_file()
