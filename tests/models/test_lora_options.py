"""Every option of the installed PEFT's `LoraConfig`: merged by its own formula, refused with a way out, or no effect.

A new version of PEFT with a new option fails here, until `OPTIONS` says what it means and an example shows it.
"""

import dataclasses
import json
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from peft.tuners.lora import config as peft_config
from safetensors.torch import load_file, save_file

from lora_models import load, logits_of, peft, say, tune, tuned_tensors  # type: ignore[import-not-found]
from mooring.errors import MismatchError, ModelError
from mooring.merging.adapter import merge_adapters
from mooring.merging.compatibility import pair_warnings
from mooring.merging.job import Job, Options
from mooring.merging.pair import open_pair
from mooring.merging.tensor_value import TensorValue
from mooring.models import open_adapter, open_checkpoint
from mooring.models.adapter_config import OPTIONS

FIELDS = [field.name for field in dataclasses.fields(LoraConfig)]
INITIALIZATIONS = [
    value
    for part in typing.get_args(typing.get_type_hints(LoraConfig)["init_lora_weights"])
    for value in (typing.get_args(part) or (part,))
]

MERGED: dict[str, tuple[str, dict[str, Any]]] = {
    "r": ("biased", {"r": 3}),
    "lora_alpha": ("biased", {"lora_alpha": 5}),
    "use_rslora": ("biased", {"use_rslora": True}),
    "rank_pattern": ("biased", {"rank_pattern": {"q_proj": 2}}),
    "alpha_pattern": ("biased", {"alpha_pattern": {r"layers\.1\.mlp\.up_proj": 1}}),
    "use_dora": ("biased", {"use_dora": True}),
    "lora_bias": ("biased", {"target_modules": ["q_proj"], "lora_bias": True}),
    "bias": ("biased", {"bias": "all"}),
    "fan_in_fan_out": ("gpt2", {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}),
    "modules_to_save": ("biased", {"modules_to_save": ["lm_head", "norm"]}),
    "trainable_token_indices": ("tied", {"trainable_token_indices": [3, 5, 17]}),
    "ensure_weight_tying": ("tied", {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}),
    "use_bdlora": (
        "biased",
        {
            "target_modules": ["q_proj", "o_proj", "up_proj"],
            "use_bdlora": peft_config.BdLoraConfig(
                target_modules_bd_a=["o_proj"], target_modules_bd_b=["q_proj"], nblocks=2, match_strict=False
            ),
        },
    ),
    "velora_config": ("biased", {"velora_config": peft_config.VeloraConfig(num_groups=4)}),
    "monteclora_config": ("biased", {"monteclora_config": peft_config.MontecloraConfig(num_samples=2)}),
    "target_modules": ("biased", {"target_modules": "all-linear"}),
    "exclude_modules": ("biased", {"target_modules": "all-linear", "exclude_modules": ["q_proj"]}),
    "layers_to_transform": ("biased", {"layers_to_transform": [1], "layers_pattern": "layers"}),
    "lora_dropout": ("biased", {"lora_dropout": 0.1}),
    "init_lora_weights": ("biased", {"init_lora_weights": "orthogonal"}),
}
"""Options that PEFT can be given here, and that decide what is merged, or might."""
BY_HAND = {
    "target_parameters": "tests/models/test_mixture_adapters.py",
    "use_qalora": "test_qalora_is_what_pefts_layer_computes",
    "qalora_group_size": "test_qalora_is_what_pefts_layer_computes",
    "peft_type": "tests/models/test_lora.py",
}
REFUSED: dict[str, Any] = {
    "alora_invocation_tokens": [1, 2],
    "arrow_config": {"top_k": 1},
    "kasa_config": {"beta": 0.1},
    "layer_replication": [[0, 2], [1, 2]],
    "init_lora_weights": "pissa",
}
UNCHANGED: dict[str, Any] = {
    "eva_config": {"rho": 1.5},
    "corda_config": {"verbose": True},
    "lora_ga_config": {"direction": "random"},
    "loftq_config": {"loftq_bits": 4},
    "layers_pattern": "layers",
    "megatron_config": {"a": 1},
    "megatron_core": "megatron",
    "runtime_config": {"ephemeral_gpu_offload": True},
    "inference_mode": False,
    "base_model_name_or_path": "somewhere/else",
    "revision": "main",
    "task_type": "SEQ_CLS",
    "auto_mapping": {"base_model_class": "X"},
    "peft_version": "0.1",
}
"""Options whose value in the file must not change what is merged."""


def changed_config(folder: Path, **fields: Any) -> Path:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))
    return folder


@pytest.mark.parametrize("name", FIELDS)
def test_every_option_of_peft_is_known_and_has_an_example(name: str) -> None:
    assert name in OPTIONS, f"PEFT has a new option, {name}: what does it mean for a merge?"
    kind = OPTIONS[name].kind
    examples = {"merged": {*MERGED, *BY_HAND}, "refused": REFUSED.keys(), "no effect": {*MERGED, *UNCHANGED}}
    assert name in examples[kind]
    assert (kind == "refused") == bool(OPTIONS[name].way_out)


def test_no_option_is_listed_that_peft_does_not_have() -> None:
    assert OPTIONS.keys() <= set(FIELDS)


@pytest.mark.parametrize("name", MERGED)
def test_a_merge_with_an_option_is_pefts_forward_pass(bases: Mapping[str, Path], tmp_path: Path, name: str) -> None:
    model, config = MERGED[name]
    folder = tune(bases[model], tmp_path / "a", **{"target_modules": ["q_proj", "up_proj"]} | config)
    with open_adapter(folder) as adapter, open_checkpoint(bases[model]) as base:
        adapter.bind(base)
        assert adapter.changed
        found = logits_of(bases[model], tuned_tensors(adapter, base), 0, adapter.breaks_tie)
    torch.testing.assert_close(found, say(peft(bases[model], folder)), rtol=0, atol=1e-5)
    assert not torch.allclose(found, say(load(bases[model]).eval()), atol=1e-3)


@pytest.mark.parametrize("name", ["use_bdlora", "trainable_token_indices", "velora_config", "monteclora_config"])
def test_these_options_give_adapters_too(bases: Mapping[str, Path], tmp_path: Path, name: str) -> None:
    """One scaled, which keeps A and B, and the mean of two, whose ranks are stacked."""
    model, config = MERGED[name]
    base, settings = bases[model], {"target_modules": ["q_proj", "up_proj"]} | config
    one, two = tune(base, tmp_path / "one", **settings), tune(base, tmp_path / "two", seed=2, **settings)

    def values(folder: Path) -> dict[str, torch.Tensor]:
        with open_adapter(folder) as adapter, open_checkpoint(base) as checkpoint:
            adapter.bind(checkpoint)
            found: dict[str, torch.Tensor] = tuned_tensors(adapter, checkpoint)
            return found

    plain = load_file(base / "model.safetensors")
    for adapters, share in (([one], 0.3), ([one, two], 0.15)):
        job = Job(method="linear", base="", tuned=(), options=Options(lam=TensorValue.of(0.3)))
        out = merge_adapters(base, adapters, tmp_path / f"out{len(adapters)}", job)
        tuned = [values(folder) for folder in adapters]
        weights = {k: v.double() + sum(share * (t[k].double() - v.double()) for t in tuned) for k, v in plain.items()}
        torch.testing.assert_close(say(peft(base, out)), logits_of(base, weights, 0, False), rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_names_the_way_out(bases: Mapping[str, Path], tmp_path: Path, name: str) -> None:
    folder = changed_config(tune(bases["tied"], tmp_path / "a", target_modules=["q_proj"]), **{name: REFUSED[name]})
    with pytest.raises(ModelError) as caught:
        open_adapter(folder)
    assert caught.value.code == "model.unsupported_adapter"
    assert caught.value.hint == OPTIONS[name].way_out
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", INITIALIZATIONS)
def test_every_initialization_is_merged_or_refused(bases: Mapping[str, Path], tmp_path: Path, value: Any) -> None:
    """Those that PEFT can do without data are merged above; here, what the file may say."""
    value = value if isinstance(value, (str, bool)) else True
    folder = changed_config(tune(bases["tied"], tmp_path / "a", target_modules=["q_proj"]), init_lora_weights=value)
    changes_base = str(value).startswith(("pissa", "olora", "corda", "loftq", "lora_ga"))
    assert changes_base or value in (True, False, "gaussian", "eva", "orthogonal", "mica"), "a new initialization"
    if changes_base:
        with pytest.raises(ModelError, match="changed its base too"):
            open_adapter(folder)
    else:
        open_adapter(folder).close()


@pytest.mark.parametrize("name", UNCHANGED)
def test_an_option_without_effect_has_none(bases: Mapping[str, Path], tmp_path: Path, name: str) -> None:
    folder = tune(bases["tied"], tmp_path / "a", target_modules=["q_proj"])
    with open_checkpoint(bases["tied"]) as base:
        found = []
        for fields in ({}, {name: UNCHANGED[name]}):
            with open_adapter(changed_config(folder, **fields)) as adapter:
                adapter.bind(base)
                found.append(tuned_tensors(adapter, base))
    assert all(torch.equal(found[0][key], found[1][key]) for key in found[0])


def test_an_option_of_a_newer_peft_is_noticed(bases: Mapping[str, Path], tmp_path: Path) -> None:
    folder = tune(bases["tied"], tmp_path / "a", target_modules=["q_proj"])
    with open_pair(bases["tied"], folder) as pair:
        assert not any("not known" in warning for warning in pair_warnings(pair))
    changed_config(folder, use_something_new={"a": 1}, off=False)
    with open_pair(bases["tied"], folder) as pair:
        assert any(warning.endswith("not followed: use_something_new") for warning in pair_warnings(pair))


def test_qalora_is_what_pefts_layer_computes(bases: Mapping[str, Path], tmp_path: Path) -> None:
    """Its A has one column for each group of inputs; PEFT has it for GPTQ layers, by the same function."""
    from types import SimpleNamespace

    from peft.tuners.lora.variants import QALoraLinearVariant

    folder = tune(bases["biased"], tmp_path / "a", target_modules=["up_proj"])
    tensors = load_file(folder / "adapter_model.safetensors")
    tensors = {key: v[:, ::16].contiguous() if "lora_A" in key else v for key, v in tensors.items()}
    save_file(tensors, folder / "adapter_model.safetensors")
    changed_config(folder, use_qalora=True, qalora_group_size=16)
    name = "model.layers.0.mlp.up_proj"
    a, b = (tensors[f"base_model.model.{name}.lora_{side}.weight"] for side in "AB")
    layer = SimpleNamespace(
        lora_A={"x": SimpleNamespace(weight=a)},
        lora_B={"x": SimpleNamespace(weight=b)},
        lora_dropout={"x": torch.nn.Identity()},
        scaling={"x": 6 / 4},
        qalora_group_size={"x": 16},
        training=False,
        in_features=64,
    )
    with open_adapter(folder) as adapter, open_checkpoint(bases["biased"]) as base:
        adapter.bind(base)
        weight = base.tensor(f"{name}.weight")
        tuned = adapter.read_tuned(f"{name}.weight", 0, weight.numel(), weight.view(-1)).view_as(weight)
    x = torch.randn(3, 64, generator=torch.Generator().manual_seed(0))
    expected = QALoraLinearVariant.forward(layer, "x", x, x @ weight.T)
    torch.testing.assert_close(x @ tuned.T, expected, rtol=1e-5, atol=1e-5)


def test_a_convolution_is_what_peft_merges(tmp_path: Path) -> None:
    """A 3 × 3 convolution, with DoRA and without."""
    from peft import get_peft_model

    for use_dora in (False, True):
        torch.manual_seed(0)
        net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3))
        base = tmp_path / f"base{use_dora}"
        base.mkdir()
        save_file(net.state_dict(), base / "model.safetensors")
        (base / "config.json").write_text("{}")
        model = get_peft_model(net, LoraConfig(r=2, lora_alpha=5, target_modules=["0"], use_dora=use_dora))
        with torch.no_grad():
            for value in model.parameters():
                if value.requires_grad:
                    value.add_(torch.randn_like(value))
        model.save_pretrained(tmp_path / f"adapter{use_dora}")
        merged = model.merge_and_unload().state_dict()["0.weight"]
        with open_adapter(tmp_path / f"adapter{use_dora}") as adapter, open_checkpoint(base) as checkpoint:
            adapter.bind(checkpoint)
            found = adapter.read_tuned("0.weight", 0, merged.numel(), checkpoint.read("0.weight")).view_as(merged)
        torch.testing.assert_close(found, merged, rtol=1e-5, atol=1e-5)


def test_rows_beyond_the_vocabulary_are_refused(bases: Mapping[str, Path], tmp_path: Path) -> None:
    """Rows of a vocabulary that grew, saved where PEFT could not see that it had."""
    folder = tune(bases["tied"], tmp_path / "a", target_modules=["q_proj"], trainable_token_indices=[1, 2])
    changed_config(folder, trainable_token_indices=[1, 20_000])
    with (
        open_adapter(folder) as adapter,
        open_checkpoint(bases["tied"]) as base,
        pytest.raises(MismatchError, match="trains row 20000"),
    ):
        adapter.bind(base)
