"""The layout of a model's files, compared with the weights that transformers itself loads from them."""

import json
from pathlib import Path

import pytest
import torch

from mooring.models import open_checkpoint
from mooring.models.layout import Layout, NoLayoutError, layout_of
from tiny_models import BUILDERS, build, save


def held(layout: Layout, folder: Path, model: torch.nn.Module) -> dict[str, int]:
    """Compare every stored tensor with the parameters of the model; how many entries of each are stored."""
    state, counts = model.state_dict(), dict.fromkeys(model.state_dict(), 0)
    with open_checkpoint(folder) as checkpoint:
        assert {*layout.places} | {*layout.unused} == {*checkpoint.tensors}
        for name, places in layout.places.items():
            stored = checkpoint.tensor(name)
            assert sum(place.numel for place in places) == stored.numel()
            for place in places:
                counts[place.parameter] += place.numel
                assert torch.equal(place.of_parameter(state[place.parameter]), place.of_stored(stored)), name
    return counts


FUSED = ("qwen3_moe", "mixtral", "deepseek_v3")
"""Architectures that can be saved with all experts of a layer in one tensor."""


@pytest.mark.parametrize(("name", "original"), [(n, True) for n in BUILDERS] + [(n, False) for n in FUSED])
def test_every_stored_entry_is_where_transformers_puts_it(name: str, original: bool, tmp_path: Path) -> None:
    model = build(name)
    folder = save(model, tmp_path / name, save_original_format=original)
    with open_checkpoint(folder) as checkpoint:
        layout = layout_of(checkpoint)
        counts = held(layout, folder, model)
        assert not layout.unused
        incomplete = {key for key, count in counts.items() if count != model.state_dict()[key].numel()}
        assert incomplete <= {"lm_head.weight"}  # where it is tied
        if original:
            tied = {each for each in layout.saved if each.endswith("lm_head.weight")} if incomplete else set()
            assert {*layout.saved} - tied == {*checkpoint.tensors}
            for each, places in layout.places.items():
                assert sorted(map(str, layout.saved[each])) == sorted(map(str, places))


def test_names_in_other_classes_and_versions(tmp_path: Path) -> None:
    with open_checkpoint(save(build("gemma3"), tmp_path / "m")) as checkpoint:
        layout = layout_of(checkpoint)
        assert layout.text == "model.language_model"
        for name in ("model.layers.0.mlp", "language_model.model.layers.0.mlp", "model.language_model.layers.0.mlp"):
            found = layout.canonical(f"{name}.up_proj.weight")
            assert found == "model.language_model.layers.0.mlp.up_proj.weight"
        assert layout.canonical("language_model.lm_head.weight") == "lm_head.weight"
        assert layout.canonical("model.layers.7.mlp.up_proj.weight") is None


def test_tensors_that_the_class_does_not_use(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = save(build("qwen3_moe"), tmp_path / "m")
    file = folder / "model.safetensors"
    more = {"mtp.fc.weight": torch.zeros(3), "model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(4)}
    save_file(load_file(file) | more, file, {"format": "pt"})
    with open_checkpoint(folder) as checkpoint:
        unused = layout_of(checkpoint).unused
    assert unused.keys() == more.keys()
    assert "Qwen3MoeForCausalLM has no such parameter" in unused["mtp.fc.weight"]
    assert "computed" in unused["model.layers.0.self_attn.rotary_emb.inv_freq"]


@pytest.mark.parametrize(
    "change",
    [
        {"model_type": "unheard_of"},
        {"num_hidden_layers": 10**9},
        {"num_experts": 10**9},
        {"num_attention_heads": "many"},
    ],
)
def test_no_layout(change: dict[str, object], tmp_path: Path) -> None:
    folder = save(build("llama"), tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    if "model_type" in change:
        config.pop("architectures")
    (folder / "config.json").write_text(json.dumps(config | change))
    with open_checkpoint(folder) as checkpoint, pytest.raises(NoLayoutError):
        layout_of(checkpoint)
