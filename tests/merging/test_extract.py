"""LoRA adapters from two whole models: as good as a full decomposition, and merged as any other adapter."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from mooring.errors import UserError
from mooring.merging.extract import extract_lora, low_rank
from mooring.merging.merge import merge
from mooring.merging.verify import verify
from tiny_adapters import with_peft

Read = Callable[[Path], dict[str, torch.Tensor]]


def tuned_from(base: Path, out: Path, rank: int, seed: int = 0) -> Path:
    """A whole model whose every matrix differs by a change of a rank; a norm differs too."""
    import shutil

    shutil.copytree(base, out)
    file, rng = out / "model.safetensors", torch.Generator().manual_seed(seed)
    tensors = load_file(file)
    for name, value in tensors.items():
        if value.ndim == 2 and "embed" not in name:
            left = torch.randn((value.shape[0], rank), generator=rng) * 0.05
            tensors[name] = value + (left @ torch.randn((rank, value.shape[1]), generator=rng)).to(value.dtype)
    tensors["model.norm.weight"] = tensors["model.norm.weight"] + 0.5
    save_file(tensors, file, metadata={"format": "pt"})
    return out


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, save_tiny_model: Any) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("extract")
    save_tiny_model(folder / "base", tie_word_embeddings=False)
    return folder / "base", tuned_from(folder / "base", folder / "tuned", 3)


def changes(base: Path, tuned: Path) -> dict[str, torch.Tensor]:
    ours, theirs = load_file(base / "model.safetensors"), load_file(tuned / "model.safetensors")
    return {
        name: theirs[name].double() - ours[name].double() for name in ours if not torch.equal(ours[name], theirs[name])
    }


@pytest.mark.parametrize(("shape", "rank"), [((60, 40), 5), ((40, 60), 5), ((30, 30), 30), ((4, 50), 9), ((50, 4), 9)])
def test_as_good_as_a_full_decomposition(shape: tuple[int, int], rank: int) -> None:
    rng = np.random.default_rng(0)
    u, v = (np.linalg.qr(rng.normal(size=(side, min(shape))))[0] for side in shape)
    values = 0.8 ** np.arange(min(shape))
    matrix = torch.as_tensor((u * values) @ v.T, dtype=torch.float32)
    b, a = low_rank(matrix, rank, "w")
    assert (b.shape, a.shape) == ((shape[0], rank), (rank, shape[1]))
    best = np.sqrt((values[rank:] ** 2).sum())
    error = float((matrix.double() - b.double() @ a.double()).norm())
    assert error <= 1.001 * best + 1e-6
    again = low_rank(matrix, rank, "w")
    assert torch.equal(b, again[0])
    assert torch.equal(a, again[1])


def test_a_change_of_its_rank_is_found(models: tuple[Path, Path], tmp_path: Path, read: Read) -> None:
    base, tuned = models
    found = extract_lora(base, tuned, tmp_path / "lora", rank=3)
    changed = changes(base, tuned)
    assert found.errors.keys() | found.left_out.keys() == changed.keys()
    assert list(found.left_out) == ["model.norm.weight"]
    share = float(changed["model.norm.weight"].square().sum() / sum(c.square().sum() for c in changed.values()))
    assert found.left_out["model.norm.weight"] == pytest.approx(share)
    assert max(found.errors.values()) < 1e-5
    assert verify(tmp_path / "lora")["errors"] == found.errors
    merged, whole = read(merge(base, tmp_path / "lora", tmp_path / "out", lam=1.0)), read(tuned)
    for name in found.errors:
        assert torch.allclose(merged[name], whole[name], atol=1e-6)
    peft = with_peft(base, tmp_path / "lora").merge_and_unload().state_dict()
    assert all(torch.allclose(peft[name], whole[name], atol=1e-6) for name in found.errors)


def test_the_reported_error_is_that_of_the_written_factors(models: tuple[Path, Path], tmp_path: Path) -> None:
    base, tuned = models
    found = extract_lora(base, tuned, tmp_path / "lora", rank=2, dtype="bfloat16")
    factors = load_file(tmp_path / "lora" / "adapter_model.safetensors")
    assert {value.dtype for value in factors.values()} == {torch.bfloat16}
    for name, error in found.errors.items():
        change = changes(base, tuned)[name]
        key = f"base_model.model.{name.removesuffix('.weight')}.lora_"
        product = factors[f"{key}B.weight"].double() @ factors[f"{key}A.weight"].double()
        assert error == pytest.approx(float((change - product).norm() / change.norm()), rel=1e-5)
        best = np.linalg.svd(change.numpy(), compute_uv=False)
        assert error >= 0.999 * float(np.sqrt((best[2:] ** 2).sum() / (best**2).sum()))
    assert found.sentence.startswith(f"{len(found.errors)} matrices at rank 2")


def test_what_is_refused(models: tuple[Path, Path], tmp_path: Path) -> None:
    def code(*inputs: Path, **options: Any) -> str:
        with pytest.raises(UserError) as caught:
            extract_lora(*inputs, tmp_path / "out", **{"rank": 4} | options)
        assert not (tmp_path / "out").exists()
        return caught.value.code

    base, tuned = models
    lora = extract_lora(base, tuned, tmp_path / "lora", rank=2).folder
    assert code(base, base) == "model.equal"
    assert code(base, lora) == "usage.already_an_adapter"
    assert code(base, tuned, rank=0) == "usage.bad_option"
    assert code(base, tuned, dtype="int8") == "usage.bad_dtype"
    with pytest.raises(UserError) as caught:
        extract_lora(base, tuned, lora, rank=2)
    assert caught.value.code == "output.not_empty"


@pytest.mark.slow
def test_no_worse_than_mergekit(models: tuple[Path, Path], tmp_path: Path) -> None:
    pytest.importorskip("immutables", reason="mergekit is not installed: pip install -e '.[peers]'")
    base, tuned = models
    found = extract_lora(base, tuned, tmp_path / "ours", rank=2)
    command = [sys.executable, "-m", "mergekit.scripts.extract_lora", "--model", str(tuned), "--base-model", str(base)]
    command += ["--out-path", str(tmp_path / "theirs"), "--max-rank", "2", "--no-cuda"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    theirs = load_file(tmp_path / "theirs" / "adapter_model.safetensors")
    config = json.loads((tmp_path / "theirs" / "adapter_config.json").read_text())
    scale, compared = config["lora_alpha"] / config["r"], 0
    for name, change in changes(base, tuned).items():
        key = f"base_model.model.{name.removesuffix('.weight')}.lora_"
        if name in found.errors and f"{key}B.weight" in theirs:
            product = scale * theirs[f"{key}B.weight"].double() @ theirs[f"{key}A.weight"].double()
            assert found.errors[name] <= float((change - product).norm() / change.norm()) * 1.0001 + 1e-6
            compared += 1
    assert compared > 5
