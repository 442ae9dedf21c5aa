"""Tiny real models: transformers loads what is written, and adapters merge as PEFT merges them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mooring.errors import MismatchError
from mooring.merging.compatibility import check_pair
from mooring.merging.inspect import inspect
from mooring.merging.merge import merge
from mooring.merging.pair import open_pair

Save = Callable[..., Path]


def load(folder: Path) -> Any:
    """The model, which must load without a word of missing or unexpected keys."""
    from transformers import AutoModelForCausalLM

    model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    return model


def tune(base: Path, folder: Path, **config: Any) -> Path:
    """A random LoRA adapter, saved by PEFT."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(3)
    model = get_peft_model(load(base), LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", **config))
    for name, weight in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(weight, std=0.05)
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    "config",
    [{}, {"use_rslora": True}, {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"layers.1.mlp.down_proj": 3}}],
)
@pytest.mark.parametrize("lam", [0.3, 1])
def test_adapter_as_peft_merges_it(tmp_path: Path, tiny_model_folder: Path, config: dict[str, Any], lam: float) -> None:
    from peft import PeftModel

    adapter = tune(tiny_model_folder, tmp_path / "adapter", **config)
    peft = PeftModel.from_pretrained(load(tiny_model_folder), adapter).merge_and_unload().state_dict()
    merged = load(merge(tiny_model_folder, adapter, tmp_path / "out", lam=lam, slice_bytes=500)).state_dict()
    base = load(tiny_model_folder).state_dict()
    moved = 0
    for name, value in base.items():
        expected = torch.lerp(value.double(), peft[name].double(), lam)
        torch.testing.assert_close(merged[name].double(), expected, rtol=1e-6, atol=1e-6)
        moved += not torch.equal(merged[name], value)
    assert moved == 14
    record = json.loads((tmp_path / "out" / "mooring.json").read_text())
    assert record["tuned"][0]["kind"] == "lora"
    assert record["tensors"]["changed"] == 14


def test_adapter_bytes_do_not_depend_on_slices(tmp_path: Path, tiny_model_folder: Path) -> None:
    adapter = tune(tiny_model_folder, tmp_path / "adapter")
    first = merge(tiny_model_folder, adapter, tmp_path / "a", lam=0.7, threads=1)
    second = merge(tiny_model_folder, adapter, tmp_path / "b", lam=0.7, threads=3, slice_bytes=777)
    assert {p.name: p.read_bytes() for p in first.iterdir()} == {p.name: p.read_bytes() for p in second.iterdir()}


def test_shards_in_and_out(tmp_path: Path, save_tiny_model: Save) -> None:
    folders = []
    for name, seed in (("base", 0), ("tuned", 1)):
        model = load(save_tiny_model(tmp_path / f"{name}-one", seed=seed))
        model.to(torch.bfloat16).save_pretrained(tmp_path / name, max_shard_size="60KB")
        folders.append(tmp_path / name)
    assert len(list(folders[0].glob("*.safetensors"))) > 2
    out = merge(*folders, tmp_path / "out", lam=0.5)
    assert {p.name for p in folders[0].iterdir()} | {"mooring.json"} == {p.name for p in out.iterdir()}
    base, tuned, merged = (load(folder).state_dict() for folder in (*folders, out))
    for name, value in merged.items():
        expected = (base[name].float() * 0.5 + tuned[name].float() * 0.5).to(torch.bfloat16)
        assert torch.equal(value, expected), name


def test_tokenizer_goes_along(tmp_path: Path, tiny_model_folder: Path, save_tiny_model: Save) -> None:
    from transformers import AutoTokenizer

    out = merge(tiny_model_folder, save_tiny_model(tmp_path / "t", seed=1), tmp_path / "out", lam=0.5)
    ours, theirs = AutoTokenizer.from_pretrained(out), AutoTokenizer.from_pretrained(tiny_model_folder)
    assert ours("Hello there")["input_ids"] == theirs("Hello there")["input_ids"]
    assert ours.chat_template == theirs.chat_template
    assert (out / "generation_config.json").is_file()


def test_swapped(tmp_path: Path, tiny_model_folder: Path) -> None:
    adapter = tune(tiny_model_folder, tmp_path / "adapter")
    for check in (open_pair, lambda *pair: merge(*pair, tmp_path / "out", lam=0.5)):
        with pytest.raises(MismatchError) as caught:
            check(adapter, tiny_model_folder)
        assert caught.value.code == "model.swapped"
        with pytest.raises(MismatchError) as caught:
            check(adapter, adapter)
        assert caught.value.code == "model.swapped"
    assert not (tmp_path / "out").exists()


def test_an_adapter_that_names_a_bundled_model(
    tmp_path: Path, tiny_model_folder: Path, save_tiny_model: Save, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = tune(tiny_model_folder, tmp_path / "adapter")
    file = adapter / "adapter_config.json"
    named = {"base_model_name_or_path": "bundled:smollm2-135m-instruct"}
    file.write_text(json.dumps(json.loads(file.read_text()) | named))
    monkeypatch.setattr("mooring.models.resolve.bundled_model", lambda ref: tiny_model_folder)
    assert check_pair(open_pair(tiny_model_folder, adapter)) == []
    with pytest.raises(MismatchError) as caught:
        open_pair(save_tiny_model(tmp_path / "other", 7), adapter)
    assert caught.value.code == "model.base_mismatch"


def test_adapter_of_another_base(tmp_path: Path, tiny_model_folder: Path, save_tiny_model: Save) -> None:
    other = save_tiny_model(tmp_path / "other", seed=5)
    adapter = tune(other, tmp_path / "adapter")
    with pytest.raises(MismatchError) as caught:
        merge(tiny_model_folder, adapter, tmp_path / "out", lam=0.5)
    assert caught.value.code == "model.base_mismatch"
    assert inspect(tiny_model_folder, adapter).problems
    copy = save_tiny_model(tmp_path / "copy", seed=5)
    assert check_pair(open_pair(copy, adapter)) == ["the adapter names other as its base, not copy"]


def test_adapter_that_does_nothing(tmp_path: Path, tiny_model_folder: Path) -> None:
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(load(tiny_model_folder), LoraConfig(r=4, target_modules=["q_proj"]))  # B begins as zeros
    model.save_pretrained(tmp_path / "adapter")
    with pytest.raises(MismatchError) as caught:
        merge(tiny_model_folder, tmp_path / "adapter", tmp_path / "out", lam=0.5)
    assert caught.value.code == "model.equal"
    with pytest.raises(MismatchError) as caught:
        check_pair(open_pair(tiny_model_folder, tmp_path / "adapter"))
    assert caught.value.code == "model.equal"
