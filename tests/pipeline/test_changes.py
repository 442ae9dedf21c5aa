"""What tuning changed, from two models to the numbers of the report's heat map."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mooring.errors import DataError
from mooring.merging.pair import open_pair
from mooring.pipeline.changes import read_changes, write_changes

UP, NORM, HEAD = "model.layers.{}.mlp.up_proj.weight", "model.layers.1.input_layernorm.weight", "lm_head.weight"


def model(folder: Path, scale: float) -> Path:
    """Two layers; the second one's matrix and the head are `scale` times as large."""
    folder.mkdir()
    tensors = {UP.format(0): torch.ones(4, 4), UP.format(1): torch.ones(4, 4) * scale, NORM: torch.ones(4)}
    save_file({**tensors, HEAD: torch.ones(8, 4) * scale}, folder / "model.safetensors", {"format": "pt"})
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "torch_dtype": "float32"}
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 2, "vocab_size": 8}))
    return folder


def test_each_layer_and_module_has_its_relative_change(tmp_path: Path) -> None:
    with open_pair(model(tmp_path / "base", 1.0), model(tmp_path / "tuned", 1.25)) as pair:
        write_changes(pair, tmp_path / "changes.json")
    found = read_changes(tmp_path / "changes.json")
    assert found is not None
    assert list(found.layers) == ["0", "1"]
    assert sorted(found.modules) == ["input_layernorm.weight", "mlp.up_proj.weight"]
    cells = {
        (layer, module): value
        for layer, line in zip(found.layers, found.relative, strict=True)
        for module, value in zip(found.modules, line, strict=True)
    }
    assert cells == {
        ("0", "mlp.up_proj.weight"): 0.0,
        ("1", "mlp.up_proj.weight"): 0.25,
        ("0", "input_layernorm.weight"): None,
        ("1", "input_layernorm.weight"): 0.0,
    }
    assert found.outside == {HEAD: 0.25}


def test_no_file_has_no_changes(tmp_path: Path) -> None:
    assert read_changes(tmp_path / "changes.json") is None


@pytest.mark.parametrize("text", ['{"layers": []', '{"layer": []}'])
def test_a_malformed_file_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "changes.json").write_text(text)
    with pytest.raises(DataError) as caught:
        read_changes(tmp_path / "changes.json")
    assert caught.value.code == "data.bad_record"
