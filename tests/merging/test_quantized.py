"""Merges of quantized models: read as what their library dequantizes, written in 16 bits."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mooring import merge
from mooring.errors import MismatchError
from mooring.merging.compatibility import pair_warnings
from mooring.merging.pair import QUANTIZED_NAME, open_pair
from mooring.models import open_checkpoint
from quantized_tensors import NAME, Case, fp8_blocks, fp8_per_tensor, normal, write


def read(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any], dict[str, Any]]:
    """Tensors, configuration and manifest of a merged model."""
    config, manifest = (json.loads((folder / name).read_text()) for name in ("config.json", "mooring.json"))
    return load_file(folder / "model.safetensors"), config, manifest


def other(case: Case) -> Case:
    """The same format with other codes."""
    codes = case.stored[NAME]
    return case._replace(stored={**case.stored, NAME: codes.view(torch.uint8).flip(0).view(codes.dtype)})


def test_a_quantized_pair_is_merged_in_16_bits(tmp_path: Path) -> None:
    base, tuned = fp8_blocks(), other(fp8_blocks())
    write(tmp_path / "b", base)
    write(tmp_path / "t", tuned)
    with open_checkpoint(tmp_path / "t") as model:
        expected = torch.lerp(base.values.float(), model.tensor(NAME).float(), 0.3).to(torch.bfloat16)
    tensors, config, manifest = read(merge(tmp_path / "b", tmp_path / "t", out=tmp_path / "o", lam=0.3))
    assert sorted(tensors) == [NAME, "model.norm.weight"]
    torch.testing.assert_close(tensors[NAME].float(), expected.float(), rtol=2**-8, atol=0)
    assert "quantization_config" not in config
    assert any("FP8" in note for note in manifest["notes"])


@pytest.mark.parametrize("lam", [0.0, 1.0])
def test_the_ends_are_the_models(tmp_path: Path, lam: float) -> None:
    base = fp8_blocks()
    write(tmp_path / "b", base)
    (tmp_path / "b" / "hf_quant_config.json").write_text("{}")
    tuned = Case({NAME: normal(256, 384, seed=1).to(torch.bfloat16)}, {}, torch.empty(0))
    write(tmp_path / "t", tuned)
    tensors, _, _ = read(merge(tmp_path / "b", tmp_path / "t", out=tmp_path / "o", lam=lam))
    assert torch.equal(tensors[NAME], tuned.stored[NAME] if lam else base.values)
    assert not (tmp_path / "o" / "hf_quant_config.json").exists()


def test_a_left_over_configuration_is_dropped_with_a_warning(tmp_path: Path) -> None:
    settings = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    for name, seed in (("b", 0), ("t", 1)):
        write(tmp_path / name, Case({NAME: normal(8, 8, seed=seed).to(torch.bfloat16)}, settings, torch.empty(0)))
    with open_pair(tmp_path / "b", tmp_path / "t") as pair:
        assert any("bitsandbytes" in warning for warning in pair_warnings(pair))
    _, config, manifest = read(merge(tmp_path / "b", tmp_path / "t", out=tmp_path / "o", lam=0.5))
    assert "quantization_config" not in config
    assert any("bitsandbytes" in note for note in manifest["notes"])


def test_equal_models_are_refused(tmp_path: Path) -> None:
    base = fp8_per_tensor()
    write(tmp_path / "b", base)
    write(tmp_path / "t", Case({NAME: base.values}, {}, torch.empty(0)))
    with pytest.raises(MismatchError) as error:
        merge(tmp_path / "b", tmp_path / "t", out=tmp_path / "o", lam=0.5)
    assert error.value.code == "model.equal"


@pytest.mark.parametrize(
    ("name", "quantized"),
    [
        ("unsloth/llama-3-8b-bnb-4bit", True),
        ("TheBloke/Mistral-7B-AWQ", True),
        ("Qwen/Qwen3-8B-FP8", True),
        ("x/model.w4a16", False),
        ("RedHatAI/Llama-W4A16", True),
        ("Qwen/Qwen3-4B", False),
        ("meta-llama/Llama-3.2-1B-Instruct", False),
    ],
)
def test_names_of_quantized_repositories(name: str, quantized: bool) -> None:
    assert bool(QUANTIZED_NAME.search(name)) == quantized
