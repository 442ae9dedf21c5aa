"""Every kind of LoRA: the tuned weights are what PEFT computes, whatever the slices."""

import json
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lora_models import logits_of as logits  # type: ignore[import-not-found]
from lora_models import peft, say, tune  # type: ignore[import-not-found]
from lora_models import tuned_tensors as tuned  # type: ignore[import-not-found]
from mooring.errors import MismatchError
from mooring.models import lora, open_adapter, open_checkpoint

Save = Callable[..., Path]


ALL = ["q_proj", "k_proj", "o_proj", "up_proj", "down_proj"]
PLAIN: list[tuple[str, dict[str, Any]]] = [
    ("biased", {"target_modules": ALL}),
    ("biased", {"target_modules": ALL, "use_rslora": True}),
    ("biased", {"target_modules": ALL, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"layers.1.mlp.up_proj": 1}}),
    ("biased", {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "norm"]}),
    ("biased", {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "mlp"]}),
    ("biased", {"target_modules": ["embed_tokens", "lm_head", "v_proj"]}),
    ("biased", {"target_modules": ["q_proj", "down_proj"], "bias": "all"}),
    ("biased", {"target_modules": ["q_proj", "down_proj"], "bias": "lora_only"}),
    ("biased", {"target_modules": ["q_proj", "down_proj"], "lora_bias": True}),
    ("biased", {"target_modules": ["q_proj", "down_proj"], "lora_bias": True, "bias": "all"}),
    ("biased", {"target_modules": ALL, "use_dora": True}),
    ("biased", {"target_modules": ["embed_tokens", "q_proj"], "use_dora": True, "use_rslora": True}),
    ("gpt2", {"target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True}),
    ("gpt2", {"target_modules": ["attn.c_proj"]}),
    ("gpt2", {"target_modules": ["c_attn", "c_proj"], "use_dora": True, "bias": "lora_only"}),
    ("gpt2", {"target_modules": ["wpe", "c_fc"], "use_dora": True}),
    ("tied", {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}),
]
TIED: list[tuple[bool, dict[str, Any]]] = [
    (True, {"target_modules": ["lm_head", "q_proj"]}),
    (True, {"target_modules": ["embed_tokens"]}),
    (True, {"target_modules": ["embed_tokens", "lm_head"]}),
    (True, {"target_modules": ["embed_tokens", "lm_head"], "use_dora": True}),
    (True, {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}),
    (True, {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]}),
    (True, {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]}),
    (True, {"target_modules": ["embed_tokens"], "modules_to_save": ["lm_head"]}),
    (False, {"target_modules": ["embed_tokens"], "ensure_weight_tying": True}),
    (False, {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}),
]


@pytest.mark.parametrize(("model", "config"), PLAIN)
def test_tuned_weights_are_those_that_peft_merges(
    bases: Mapping[str, Path], tmp_path: Path, model: str, config: dict[str, Any]
) -> None:
    folder = tune(bases[model], tmp_path / "a", **config)
    merged = peft(bases[model], folder).merge_and_unload().state_dict()
    with open_adapter(folder) as adapter, open_checkpoint(bases[model]) as base:
        adapter.bind(base)
        weights = tuned(adapter, base)
        assert not adapter.unties
        assert not adapter.breaks_tie
        assert all(weights[name].dtype == torch.float32 for name in weights)
        touched = {name for name in weights if not torch.equal(weights[name], base.tensor(name))}
        assert touched <= adapter.changed
        for name, value in weights.items():
            torch.testing.assert_close(value, merged[name], rtol=1e-6, atol=1e-6, msg=name)
    assert touched


@pytest.mark.parametrize(("untied", "config"), TIED)
def test_a_tied_head_is_untied_as_in_pefts_forward_pass(
    bases: Mapping[str, Path], tmp_path: Path, untied: bool, config: dict[str, Any]
) -> None:
    folder = tune(bases["tied"], tmp_path / "a", **config)
    with open_adapter(folder) as adapter, open_checkpoint(bases["tied"]) as base:
        adapter.bind(base)
        assert adapter.unties == ({"lm_head.weight": "model.embed_tokens.weight"} if untied else {})
        assert adapter.breaks_tie == untied
        found = logits(bases["tied"], tuned(adapter, base), 0, untied)
    torch.testing.assert_close(found, say(peft(bases["tied"], folder)), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    ("model", "rows", "config"),
    [
        ("tied", 5, {"target_modules": ["q_proj"]}),
        ("tied", -7, {"target_modules": ["q_proj"]}),
        ("tied", 5, {"target_modules": ["q_proj", "embed_tokens"]}),
        ("biased", 5, {"target_modules": ["q_proj"]}),
        ("biased", 5, {"target_modules": ["embed_tokens", "lm_head"]}),
        ("biased", 5, {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]}),
        ("biased", 5, {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]}),
        ("biased", 5, {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}),
        ("tied", 5, {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]}),
        ("tied", 5, {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]}),
        ("tied", 5, {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}),
        ("biased", 5, {"target_modules": ["q_proj"], "trainable_token_indices": []}),
        ("tied", 5, {"target_modules": ["q_proj"], "trainable_token_indices": []}),
    ],
)
def test_a_resized_vocabulary(
    bases: Mapping[str, Path], tmp_path: Path, model: str, rows: int, config: dict[str, Any]
) -> None:
    if "trainable_token_indices" in config:  # one of them is of a token that was added
        size = json.loads((bases[model] / "config.json").read_text())["vocab_size"]
        config = config | {"trainable_token_indices": [3, size + 1]}
    folder = tune(bases[model], tmp_path / "a", rows=rows, **config)
    with open_adapter(folder) as adapter, open_checkpoint(bases[model]) as base:
        adapter.bind(base)
        old = base.tensors["model.embed_tokens.weight"].shape
        assert adapter.shape("model.embed_tokens.weight") == (old[0] + rows, old[1])
        assert adapter.shape("model.norm.weight") == base.tensors["model.norm.weight"].shape
        found = logits(bases[model], tuned(adapter, base), rows, adapter.breaks_tie)
    torch.testing.assert_close(found, say(peft(bases[model], folder, rows)), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    ("model", "config"),
    [
        ("biased", {"target_modules": [*ALL, "embed_tokens"]}),
        ("biased", {"target_modules": [*ALL, "embed_tokens"], "use_dora": True}),
        ("gpt2", {"target_modules": ["c_attn", "c_proj"], "use_dora": True, "bias": "all"}),
        ("tied", {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "mlp"]}),
    ],
)
@pytest.mark.parametrize("block", [1, 200, lora.BLOCK])
def test_any_slice_is_the_same_bytes(
    bases: Mapping[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    model: str,
    config: dict[str, Any],
    block: int,
) -> None:
    """Read on two threads, in slices of any size, by an adapter that has remembered nothing yet."""
    monkeypatch.setattr(lora, "BLOCK", block)
    folder = tune(bases[model], tmp_path / "a", **config)
    random = torch.Generator().manual_seed(block)
    with open_adapter(folder) as adapter, open_checkpoint(bases[model]) as base, open_adapter(folder) as other:
        adapter.bind(base)
        other.bind(base)
        for name, whole in tuned(adapter, base).items():
            source, flat = adapter.unties.get(name, name), whole.view(-1)
            ends = [0, *sorted(torch.randint(0, flat.numel(), (6,), generator=random).tolist()), flat.numel()]

            def part(piece: tuple[int, int], name: str = name, source: str = source) -> Tensor:
                return other.read_tuned(name, *piece, base.read(source, *piece))

            with ThreadPoolExecutor(2) as pool:
                parts = list(pool.map(part, pairwise(ends)))
            assert torch.equal(torch.cat(parts).view(torch.uint8), flat.view(torch.uint8))


def test_float64_and_float16_bases(tmp_path: Path, save_tiny_model: Save, bases: Mapping[str, Path]) -> None:
    """Wide enough, never rounded to the base's type."""
    folder = tune(bases["biased"], tmp_path / "a", target_modules=["q_proj"], use_dora=True)
    name = "model.layers.0.self_attn.q_proj.weight"
    with open_adapter(folder) as adapter, open_checkpoint(bases["biased"]) as base:
        adapter.bind(base)
        values = base.read(name)
        assert adapter.read_tuned(name, 0, 64, values[:64].double()).dtype == torch.float64
        assert adapter.read_tuned(name, 0, 64, values[:64].half()).dtype == torch.float32
        assert adapter.read_tuned("model.norm.weight", 0, 64, values[:64]).data_ptr() == values.data_ptr()


def test_names_without_the_first_component(bases: Mapping[str, Path], tmp_path: Path) -> None:
    """GPT-2 on the hub stores `h.0.attn…` where PEFT says `transformer.h.0.attn…`."""
    from safetensors.torch import load_file, save_file

    folder = tune(bases["gpt2"], tmp_path / "a", target_modules=["c_attn"])
    bare = tmp_path / "bare"
    bare.mkdir()
    weights = load_file(bases["gpt2"] / "model.safetensors")
    save_file({k.removeprefix("transformer."): v for k, v in weights.items()}, bare / "model.safetensors")
    (bare / "config.json").write_text((bases["gpt2"] / "config.json").read_text())
    with open_adapter(folder) as adapter, open_checkpoint(bare) as short, open_checkpoint(bases["gpt2"]) as base:
        adapter.bind(base)
        expected = tuned(adapter, base)
        adapter.bind(short)
        assert adapter.changed == {"h.0.attn.c_attn.weight", "h.1.attn.c_attn.weight"}
        for name, value in tuned(adapter, short).items():
            assert torch.equal(value, expected[f"transformer.{name}"])


def test_weights_as_bin(bases: Mapping[str, Path], tmp_path: Path) -> None:
    """What PEFT wrote before safetensors; no pickled code is run."""
    from safetensors.torch import load_file

    folder = tune(bases["biased"], tmp_path / "a", target_modules=ALL, modules_to_save=["lm_head"], use_dora=True)
    old = tmp_path / "old"
    old.mkdir()
    torch.save(load_file(folder / "adapter_model.safetensors"), old / "adapter_model.bin")
    (old / "adapter_config.json").write_text((folder / "adapter_config.json").read_text())
    with open_adapter(folder) as adapter, open_adapter(old) as other, open_checkpoint(bases["biased"]) as base:
        adapter.bind(base)
        other.bind(base)
        expected = tuned(adapter, base)
        assert all(torch.equal(value, expected[name]) for name, value in tuned(other, base).items())


def test_contradictory_tied_weights_are_refused(bases: Mapping[str, Path], tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = tune(bases["tied"], tmp_path / "a", rows=3, target_modules=["q_proj"])
    weights = load_file(folder / "adapter_model.safetensors")
    weights["base_model.model.lm_head.weight"] = weights["base_model.model.lm_head.weight"] + 1
    save_file(weights, folder / "adapter_model.safetensors")
    with (
        open_adapter(folder) as adapter,
        open_checkpoint(bases["tied"]) as base,
        pytest.raises(MismatchError) as caught,
    ):
        adapter.bind(base)
    assert caught.value.code == "model.contradictory_tie"


def test_lora_bias_without_a_bias_is_refused(bases: Mapping[str, Path], tmp_path: Path) -> None:
    folder = tune(bases["tied"], tmp_path / "a", target_modules=["q_proj"], lora_bias=True)
    with (
        open_adapter(folder) as adapter,
        open_checkpoint(bases["tied"]) as base,
        pytest.raises(MismatchError) as caught,
    ):
        adapter.bind(base)
    assert caught.value.code == "model.missing_tensor"
    assert "q_proj.bias" in caught.value.message
    assert "lora_bias" in caught.value.hint
