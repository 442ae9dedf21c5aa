"""Merges in memory: bit for bit what is written to disk, for every method and kind of input."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from reference import PLAIN

from lora_models import tune
from mooring.errors import UserError
from mooring.memory import available_memory
from mooring.merge_methods import METHODS
from mooring.merging.in_memory import Memory, OpenMerge
from mooring.merging.job import Output
from mooring.merging.merge import merge
from mooring.merging.pair import ModelPair, OutputTensor, open_pair
from mooring.models import Adapter, Checkpoint

Write = Callable[..., Path]
Read = Callable[[Path], dict[str, torch.Tensor]]
SETTINGS: dict[str, dict[str, Any]] = {
    name: {"density": 0.5} for name in ("ties", "dare_linear", "dare_ties", "breadcrumbs", "breadcrumbs_ties")
} | {name: {"density": 0.5, "epsilon": 0.1} for name in ("della", "della_linear")}


def tensors(seed: int) -> dict[str, torch.Tensor]:
    """Three floating types, a scalar, nothing at all, and whole numbers."""
    random = torch.Generator().manual_seed(seed)
    kinds = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}
    made = {f"{k}.weight": torch.randn((43, 17), generator=random).to(kind) for k, kind in kinds.items()}
    return made | {"scalar": torch.tensor(float(seed)), "empty": torch.empty(0, 4), "steps": torch.arange(5)}


def same_bytes(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    """Whether names, types, shapes and bits are the same."""
    assert ours.keys() == theirs.keys()
    return all(
        (value.dtype, value.shape) == (theirs[name].dtype, theirs[name].shape)
        and torch.equal(value.flatten().view(torch.uint8), theirs[name].flatten().view(torch.uint8))
        for name, value in ours.items()
    )


@pytest.fixture
def pair(tmp_path: Path, write: Write, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """A base in two files and a tuned model; a grid so fine that their tensors have many slices."""
    monkeypatch.setattr(sys.modules["mooring.merging.slices"], "CELL", 64)
    return write(tmp_path / "base", tensors(1), shards=2), write(tmp_path / "tuned", tensors(2))


def merged_tensors(base: Path, tuned: Path | list[Path], lam: Any, **options: Any) -> dict[str, torch.Tensor]:
    with OpenMerge(open_pair(base, tuned), **options) as merged:
        return merged.tensors(lam)


@pytest.mark.parametrize("method", PLAIN)
def test_same_bits_as_on_disk(pair: tuple[Path, Path], tmp_path: Path, write: Write, read: Read, method: str) -> None:
    several = METHODS[method].least > 1
    tuned = [pair[1], write(tmp_path / "other", tensors(3))] if several else [pair[1]]
    given = {"lam": 0.6, "method": method} | SETTINGS.get(method, {})
    disk = read(merge(pair[0], tuned, tmp_path / "out", **given))
    memory = merged_tensors(pair[0], tuned, threads=2, **given)
    assert same_bytes(memory, disk)
    assert not same_bytes(memory, read(pair[0]))


def test_ends_are_the_inputs(pair: tuple[Path, Path], read: Read) -> None:
    assert same_bytes(merged_tensors(*pair, lam=0), read(pair[0]))
    assert same_bytes(merged_tensors(*pair, lam=1), read(pair[1]))


def test_type_and_side_files(pair: tuple[Path, Path], tmp_path: Path, read: Read) -> None:
    (pair[0] / "tokenizer.json").write_text("{}")
    side = tmp_path / "side"
    side.mkdir()
    wide = Output(dtype=torch.float32)
    disk = merge(*pair, tmp_path / "out", lam=0.5, output=wide)
    with OpenMerge(open_pair(*pair), output=wide) as merged:
        assert same_bytes(merged.tensors(0.5), read(disk))
        merged.write_side_files(side)
    assert sorted(path.name for path in side.iterdir()) == ["config.json", "tokenizer.json"]
    assert (side / "config.json").read_text() == (disk / "config.json").read_text()


@pytest.mark.parametrize("kind", ["tied", "biased"])
def test_adapter(bases: dict[str, Path], tmp_path: Path, read: Read, kind: str) -> None:
    adapter = tune(bases[kind], tmp_path / "adapter", target_modules=["q_proj", "down_proj"])
    disk = read(merge(bases[kind], adapter, tmp_path / "out", lam=0.3))
    assert same_bytes(merged_tensors(bases[kind], adapter, lam=0.3), disk)


def test_an_equal_model_and_bad_numbers_are_refused(pair: tuple[Path, Path]) -> None:
    for tuned, lam, code in ((pair[0], 0.5, "model.equal"), (pair[1], 2, "usage.lambda_out_of_range")):
        with pytest.raises(UserError) as caught:
            merged_tensors(pair[0], tuned, lam)
        assert caught.value.code == code
    with pytest.raises(UserError) as caught:
        open_pair(pair[0], [])
    assert caught.value.code == "usage.no_tuned_model"


def test_memory_converts_types_and_checks_the_size() -> None:
    wide, half = torch.zeros(2, 2), torch.zeros(2, dtype=torch.bfloat16)
    memory = Memory({"a": wide, "b": half})
    memory.write("a", 2, torch.tensor([1.0, 2.0]))
    memory.write("b", 0, torch.tensor([1.00390625, 3.0]))
    memory.write("no such place", 0, torch.ones(9))
    assert wide.tolist() == [[0, 0], [1, 2]]
    assert half.tolist() == [1, 3]
    with pytest.raises(ValueError, match="do not fit"):
        memory.write("a", 3, torch.ones(2))


@pytest.mark.parametrize("method", PLAIN)
def test_filled_in_place_from_one_lambda_to_another_and_back(
    pair: tuple[Path, Path], tmp_path: Path, write: Write, read: Read, method: str
) -> None:
    several = METHODS[method].least > 1
    tuned = [pair[1], write(tmp_path / "other", tensors(3))] if several else [pair[1]]
    with OpenMerge(open_pair(pair[0], tuned), method=method, threads=2, **SETTINGS.get(method, {})) as merged:
        places = merged.tensors(0)
        assert same_bytes(places, read(pair[0]))
        for lam in (0.6, 0.25, 0.6):
            merged.fill(lam, places)
            disk = read(
                merge(pair[0], tuned, tmp_path / f"{lam}", lam=lam, method=method, **SETTINGS.get(method, {}))
                if not (tmp_path / f"{lam}").exists()
                else tmp_path / f"{lam}"
            )
            assert same_bytes(places, disk)
        merged.fill(0, places)
        assert same_bytes(places, read(pair[0]))
        if not several:
            merged.fill(1, places, as_linear=True)
            assert same_bytes(places, read(pair[1]))


def test_numbers_for_single_modules_and_bad_ones(pair: tuple[Path, Path], tmp_path: Path, read: Read) -> None:
    lams = {"bf16.*": 0.25, "*": 0.75}
    with OpenMerge(open_pair(*pair)) as merged:
        assert same_bytes(merged.tensors(lams), read(merge(*pair, tmp_path / "out", lam=lams)))
        with pytest.raises(UserError) as caught:
            merged.tensors(2)
    assert caught.value.code == "usage.lambda_out_of_range"
    with OpenMerge(open_pair(*pair), density=0.5) as merged, pytest.raises(UserError) as caught:
        merged.tensors(0.5)
    assert caught.value.code == "usage.unknown_option"


@pytest.mark.parametrize("room", [0, 4000, None], ids=["no room", "room for some", "room for all"])
@pytest.mark.parametrize("method", PLAIN)
def test_kept_in_memory_as_far_as_there_is_room(
    pair: tuple[Path, Path],
    tmp_path: Path,
    write: Write,
    read: Read,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    room: int | None,
) -> None:
    settings = SETTINGS.get(method, {})
    tuned = [pair[1], write(tmp_path / "other", tensors(3))] if METHODS[method].least > 1 else [pair[1]]
    want = {
        lam: read(merge(pair[0], tuned, tmp_path / f"{lam}", lam=lam, method=method, **settings)) for lam in (0.3, 0.8)
    }
    if room is not None:
        monkeypatch.setattr("mooring.merging.in_memory.available_memory", lambda: 2 * room)
    reads: list[str] = []
    read_files = ModelPair.read

    def note(pair: ModelPair, tensor: OutputTensor, *given: Any) -> Any:
        reads.append(tensor.name)
        return read_files(pair, tensor, *given)

    merged = OpenMerge(open_pair(pair[0], tuned), method=method, **settings)
    places = merged.tensors(0.8)
    with monkeypatch.context() as patch:
        patch.setattr(ModelPair, "read", note)
        merged.fill(0.3, places, filled=places)
        assert merged.changed <= {*reads}
        assert same_bytes(places, want[0.3])
        for lam in (0.8, 0.3):
            reads.clear()
            merged.fill(lam, places, filled=places)
            assert same_bytes(places, want[lam])
            assert bool(merged.changed & {*reads}) == (room is not None)
        merged.fill(0, places, filled=places)
        assert same_bytes(places, read(pair[0]))
    assert merged.kept_bytes <= room if room is not None else merged.kept_bytes > 0
    merged.close()


def test_an_adapters_products_are_computed_once(
    bases: dict[str, Path], tmp_path: Path, read: Read, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = tune(bases["tied"], tmp_path / "adapter", target_modules=["q_proj", "down_proj"])
    want = {lam: read(merge(bases["tied"], adapter, tmp_path / f"{lam}", lam=lam)) for lam in (0.1, 0.4, 0.9)}
    with OpenMerge(open_pair(bases["tied"], adapter)) as merged:
        places = merged.tensors(0.4)
        merged.fill(0.9, places, filled=places)
        monkeypatch.setattr(Adapter, "read_tuned", None)
        monkeypatch.setattr(Checkpoint, "read", None)
        for lam in (0.1, 0.4, 0.9):
            merged.fill(lam, places, filled=places)
            assert same_bytes(places, want[lam])
        assert all(name.endswith(("q_proj.weight", "down_proj.weight")) for name in merged.changed)


def test_available_memory_is_what_the_container_leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert 2**20 < available_memory() < 2**50
    monkeypatch.setattr("mooring.memory._GROUP", tmp_path)
    for name, text in (("max", "1000"), ("current", "700"), ("stat", "anon 500\ninactive_file 150\n")):
        (tmp_path / f"memory.{name}").write_text(text)
    assert available_memory() == 450
    (tmp_path / "memory.max").write_text("max")
    assert available_memory() > 2**20
