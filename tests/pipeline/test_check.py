"""The check of a merged model: what is right passes, and each kind of fault is found and named."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import mooring
from mooring.models.adapter_config import LoraSettings
from mooring.pipeline import check
from mooring.records import MergeCheck


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, save_tiny_model: Any) -> Path:
    """`base`, `tuned`, and adapters on `base`: `lora` and `dora`."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    made = tmp_path_factory.mktemp("checked")
    save_tiny_model(made / "base")
    save_tiny_model(made / "tuned", seed=1)
    for name, options in (("lora", {"use_rslora": True}), ("dora", {"use_dora": True})):
        model = AutoModelForCausalLM.from_pretrained(made / "base")
        wrapped = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", **options))
        torch.manual_seed(0)
        with torch.no_grad():
            for key, value in wrapped.named_parameters():
                if ".lora_" in key:
                    value.normal_(std=0.1)
        wrapped.save_pretrained(made / name)
    return made


def merged(folders: Path, out: Path, tuned: str = "tuned", **options: Any) -> Path:
    return mooring.merge(folders / "base", folders / tuned, out=out, **{"lam": 0.6, **options})


def checked(folders: Path, folder: Path, tuned: str = "tuned") -> MergeCheck:
    return mooring.check_merge(folder, folders / "base", folders / tuned)


def test_a_merge_is_compared_at_three_points(folders: Path, tmp_path: Path) -> None:
    found = checked(folders, merged(folders, tmp_path / "m", "lora", dtype="bfloat16"), "lora")
    assert found.passed, found.faults
    references = {each.model: each.reference for each in found.logits}
    assert references == {
        "the written model at λ = 0.6": "(1−λ)·base + λ·tuned",
        "the merge at λ = 1": "the tuned model",
        "the merge at λ = 0": "the base",
    }
    assert all(each.same_top == 1 and each.difference < each.allowed / 3 for each in found.logits)
    assert found.tensors == 21  # with the head, which is tied
    assert found.notes == ()


OTHERS: dict[str, tuple[str, dict[str, Any]]] = {
    "full": ("tuned", {}),
    "float16": ("tuned", {"dtype": "float16"}),
    "dora": ("dora", {}),
    "adapter": ("lora", {"as_adapter": True}),
    "ramp": ("tuned", {"lam": (0.2, 0.8)}),
    "by module": ("lora", {"lam": {"*.mlp.*": 0.3, "*": 0.7}}),
    "slerp": ("tuned", {"method": "slerp"}),
    "dare": ("tuned", {"method": "dare_linear", "density": 0.5, "seed": 1}),
    "task arithmetic": ("lora", {"method": "task_arithmetic", "weights": 0.5}),
    "λ = 0": ("tuned", {"lam": 0.0}),
    "λ = 1": ("tuned", {"lam": 1.0}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_every_kind_of_merge_passes(name: str, folders: Path, tmp_path: Path) -> None:
    tuned, options = OTHERS[name]
    found = checked(folders, merged(folders, tmp_path / "m", tuned, **options), tuned)
    assert found.passed, found.faults
    assert {each.model for each in found.logits} >= {"the merge at λ = 1", "the merge at λ = 0"}
    assert found.tensors or options.get("as_adapter")


@pytest.mark.slow
def test_several_tuned_models_are_compared_one_by_one(folders: Path, tmp_path: Path) -> None:
    tuned = [folders / "tuned", folders / "lora"]
    out = mooring.merge(folders / "base", tuned, out=tmp_path / "m", method="ties", lam=0.5, density=0.5)
    found = mooring.check_merge(out, folders / "base", tuned)
    assert found.passed, found.faults
    assert [each.reference for each in found.logits] == ["the tuned model 1", "the tuned model 2", "the base"]
    assert found.reference == "the method's formula in float64"


@pytest.mark.slow
@pytest.mark.parametrize("method", ["safe_merge", "lox"])
def test_a_merge_with_a_third_model_passes_and_needs_it(
    folders: Path, tmp_path: Path, save_tiny_model: Any, method: str
) -> None:
    options: dict[str, Any] = {"method": method, "unaligned": folders / "tuned"}
    out = merged(folders, tmp_path / "m", "lora", check=True, **options)
    recorded = json.loads((out / "mooring.json").read_text())
    assert recorded["check"]["passed"]
    assert recorded["check"]["reference"] == "the method's formula in float64"
    assert recorded["unaligned"]["name"] == "tuned"
    with pytest.raises(mooring.UserError) as caught:
        checked(folders, out, "lora")
    assert caught.value.code == "usage.missing_model"
    if method == "safe_merge":  # its gates alone depend on the pre-trained model
        return
    save_tiny_model(tmp_path / "other", seed=5)
    found = mooring.check_merge(out, folders / "base", folders / "lora", unaligned=tmp_path / "other")
    assert not found.passed
    assert any("the method's formula" in fault for fault in found.faults)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["tied", "biased", "gpt2"])
def test_other_bases_pass(kind: str, bases: dict[str, Path], tmp_path: Path) -> None:
    tuned = tmp_path / "tuned"
    shutil.copytree(bases[kind], tuned)
    held = load_file(tuned / "model.safetensors")
    save_file({key: value * 1.1 for key, value in held.items()}, tuned / "model.safetensors", {"format": "pt"})
    out = mooring.merge(bases[kind], tuned, out=tmp_path / "m", lam=0.5, check=True)
    recorded = json.loads((out / "mooring.json").read_text())["check"]
    assert recorded["passed"]
    without_tokenizer = ["prompts, since there is no tokenizer: other tokens were taken"]
    assert recorded["notes"] == (without_tokenizer if kind == "gpt2" else [])


# --- faults -----------------------------------------------------------------------------------------------------------


def altered(folder: Path, name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Change a tensor of a written model."""
    held = load_file(folder / "model.safetensors")
    held[name] = change(held[name]).contiguous()
    save_file(held, folder / "model.safetensors", {"format": "pt"})


@pytest.fixture(params=["whole", "tensors alone"])
def memory(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Whether models fit into memory."""
    if request.param != "whole":
        monkeypatch.setattr(check, "available_memory", lambda: 2**20)
    return str(request.param)


def test_a_wrong_tensor_is_found_and_named(memory: str, folders: Path, tmp_path: Path) -> None:
    folder = merged(folders, tmp_path / "m", dtype="bfloat16")
    altered(folder, "model.layers.1.self_attn.o_proj.weight", lambda value: value * 1.05)
    found = checked(folders, folder)
    assert not found.passed
    assert len(found.faults) == 1
    assert "model.layers.*.self_attn.o_proj.weight" in found.faults[0]
    if memory != "whole":
        assert found.notes[0].startswith("logits, since a model in float32 takes")
        assert found.logits == ()


@pytest.mark.slow
def test_a_right_model_passes_without_memory(folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "available_memory", lambda: 2**20)
    found = checked(folders, merged(folders, tmp_path / "m", "lora"), "lora")
    assert found.passed, found.faults
    assert found.tensors == 20
    assert "Not checked: logits, since" in found.sentence


@pytest.mark.slow
def test_another_λ_is_found(folders: Path, tmp_path: Path) -> None:
    folder = merged(folders, tmp_path / "m")
    manifest = json.loads((folder / "mooring.json").read_text())
    (folder / "mooring.json").write_text(json.dumps(manifest | {"lambda": 0.61}))
    assert not checked(folders, folder).passed


@pytest.mark.slow
def test_a_wrong_scale_of_an_adapter_is_found(folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = LoraSettings.rank_and_scale

    def doubled(settings: LoraSettings, module: str) -> tuple[int, float]:
        rank, scale = right(settings, module)
        return rank, 2 * scale

    monkeypatch.setattr(LoraSettings, "rank_and_scale", doubled)
    found = checked(folders, merged(folders, tmp_path / "m", "lora"), "lora")
    assert not found.passed
    at_one = next(fault for fault in found.faults if fault.startswith("at λ = 1 it is not the tuned model"))
    assert "model.layers.*.mlp.up_proj.weight (2)" in at_one or "other kinds" in at_one


@pytest.mark.slow
def test_a_tuned_model_with_another_configuration_is_found(folders: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(folders / "tuned", other)
    config = json.loads((other / "config.json").read_text())
    config["rope_parameters"] = {"rope_type": "default", "rope_theta": 500.0}
    (other / "config.json").write_text(json.dumps(config))
    out = mooring.merge(folders / "base", other, out=tmp_path / "m", lam=0.6)
    found = mooring.check_merge(out, folders / "base", other)
    assert found.faults == ("at λ = 1 it is not the tuned model (its config.json has another rope_parameters)",)


@pytest.mark.slow
def test_a_model_that_cannot_be_loaded_is_found(folders: Path, tmp_path: Path) -> None:
    folder = merged(folders, tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    found = checked(folders, folder)
    assert any("it cannot be loaded" in fault and "lm_head.weight" in fault for fault in found.faults)


@pytest.mark.slow
def test_a_tokenizer_with_too_many_tokens_is_found(folders: Path, tmp_path: Path, tiny_tokenizer: Any) -> None:
    import copy

    folder = merged(folders, tmp_path / "m")
    larger = copy.deepcopy(tiny_tokenizer)
    larger.add_tokens(["<extra>"])
    larger.save_pretrained(folder)
    faults = checked(folders, folder).faults
    rows = len(tiny_tokenizer)
    assert faults == (f"the tokenizer has {rows + 1} tokens, and the embedding {rows} rows",)


def test_a_failed_merge_is_kept_and_marked(folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = MergeCheck(passed=False, faults=["it is wrong"])
    monkeypatch.setattr(check, "check_merge", lambda *_: failed)
    with pytest.raises(mooring.ModelError) as caught:
        merged(folders, tmp_path / "m", check=True)
    assert caught.value.code == "model.check_failed"
    assert "it is wrong" in caught.value.message
    assert (tmp_path / "m" / "model.safetensors").is_file()
    with pytest.raises(mooring.ModelError) as caught:
        mooring.verify(tmp_path / "m")
    assert caught.value.code == "model.check_failed"
