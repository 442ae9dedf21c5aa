"""A tuned model in other names, or another layout, than its base: merged as if both were saved alike."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from mooring.errors import MismatchError
from mooring.merging.in_memory import OpenMerge
from mooring.merging.inspect import inspect
from mooring.merging.merge import merge
from mooring.merging.pair import open_pair
from mooring.models import read_json
from tiny_models import IDS, build, moved, save

FUSED = {"save_original_format": False}


def load(folder: Path, like: Any) -> Any:
    """The model in a folder, which has to hold all its weights and nothing else."""
    model, info = type(like).from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    return model.eval()


def check(base: Path, tuned: Path, model: Any, expected: dict[str, torch.Tensor], out: Path) -> dict[str, Any]:
    """Merge at λ = 1 and 0.5, compare all weights with a reference, and return the manifest.

    `model` is the base, and `expected` the weights of the tuned model by the base's parameters.
    """
    state = model.state_dict()
    for lam in (1.0, 0.5):
        folder = merge(base, tuned, out / f"{lam}", lam=lam)
        merged = load(folder, model).state_dict()
        assert merged.keys() == state.keys()
        for name, value in merged.items():
            theirs = expected.get(name, state[name])
            if lam == 1:
                assert torch.equal(value, theirs), name
            else:
                reference = (state[name].double() + theirs.double()) / 2
                assert (value.double() - reference).abs().max() <= 1e-7, name
    assert {*load_file(folder / "model.safetensors")} == {*load_file(base / "model.safetensors")}
    return read_json(folder / "mooring.json")


def rename(folder: Path, name: Callable[[str], str]) -> Path:
    """Rename the tensors of a folder."""
    file = folder / "model.safetensors"
    save_file({name(key): value for key, value in load_file(file).items()}, file, {"format": "pt"})
    return folder


def add(folder: Path, tensors: dict[str, torch.Tensor]) -> Path:
    """Add tensors to a folder."""
    file = folder / "model.safetensors"
    save_file(load_file(file) | tensors, file, {"format": "pt"})
    return folder


@pytest.mark.parametrize("name", ["qwen3_moe", pytest.param("mixtral", marks=pytest.mark.slow), "deepseek_v3"])
@pytest.mark.parametrize("fused", ["base", "tuned"])
def test_experts_in_one_tensor_and_in_many(name: str, fused: str, tmp_path: Path) -> None:
    base = save(build(name), tmp_path / "base", save_original_format=fused != "base")
    tuned = moved(build(name))
    folder = save(tuned, tmp_path / "tuned", save_original_format=fused != "tuned")
    manifest = check(base, folder, build(name), tuned.state_dict(), tmp_path)
    assert any("MergeModulelist" in note for note in manifest["notes"])
    assert manifest["tuned"][0]["relaid"] is True


def test_the_logits_are_those_of_the_tuned_model(tmp_path: Path) -> None:
    base, tuned = build("qwen3_moe"), moved(build("qwen3_moe"))
    merge(save(base, tmp_path / "b"), save(tuned, tmp_path / "t", **FUSED), tmp_path / "out", lam=1)
    with torch.no_grad():
        assert torch.equal(load(tmp_path / "out", base)(input_ids=IDS).logits, tuned(input_ids=IDS).logits)


def test_transposed_experts(tmp_path: Path) -> None:
    """Qwen3-VL's mixture was stored as (experts, inputs, outputs) first: here it is in one of the two."""
    base = save(build("qwen3_vl_moe"), tmp_path / "base")
    tuned = moved(build("qwen3_vl_moe"))
    folder = save(tuned, tmp_path / "tuned")
    file = folder / "model.safetensors"
    tensors = load_file(file)
    turned = {k: v.mT.contiguous() for k, v in tensors.items() if ".experts." in k}
    assert turned
    save_file(tensors | turned, file, {"format": "pt"})
    manifest = check(base, folder, build("qwen3_vl_moe"), tuned.state_dict(), tmp_path)
    assert any("Transpose" in note for note in manifest["notes"])


def split(folder: Path) -> Path:
    """Split the concatenated projections of Phi-3."""

    def parts(name: str, value: torch.Tensor) -> dict[str, torch.Tensor]:
        if ".qkv_proj." in name:
            pieces = zip("qkv", value.split([32, 16, 16]), strict=True)
            return {name.replace("qkv", part): piece.contiguous() for part, piece in pieces}
        if ".gate_up_proj." in name:
            gate, up = value.chunk(2)
            return {name.replace("gate_up", "gate"): gate.contiguous(), name.replace("gate_up", "up"): up.contiguous()}
        return {name: value}

    file = folder / "model.safetensors"
    tensors = {k: v for name, value in load_file(file).items() for k, v in parts(name, value).items()}
    save_file(tensors, file, {"format": "pt"})
    return folder


@pytest.mark.parametrize("kind", ["phi3", "llama"])
def test_projections_apart_and_concatenated(kind: str, tmp_path: Path) -> None:
    """A Phi-3 in one file for all three projections, tuned in three, by its own class or as a Llama."""
    base, tuned = build("phi3"), moved(build("phi3"))
    folder = split(save(tuned, tmp_path / "tuned"))
    if kind == "llama":
        config = json.loads((folder / "config.json").read_text())
        changes = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
        (folder / "config.json").write_text(json.dumps(config | changes))
    manifest = check(save(base, tmp_path / "base"), folder, base, tuned.state_dict(), tmp_path)
    assert any("Concatenate" in note for note in manifest["notes"])


def test_a_base_apart_and_a_tuned_model_concatenated(tmp_path: Path) -> None:
    model, tuned = build("llama"), moved(build("llama"))
    folder = save(tuned, tmp_path / "tuned")
    file = folder / "model.safetensors"
    tensors = load_file(file)
    for layer in range(2):
        path = f"model.layers.{layer}."
        qkv = [tensors.pop(f"{path}self_attn.{part}_proj.weight") for part in "qkv"]
        tensors[f"{path}self_attn.qkv_proj.weight"] = torch.cat(qkv)
        pair = [tensors.pop(f"{path}mlp.{part}_proj.weight") for part in ("gate", "up")]
        tensors[f"{path}mlp.gate_up_proj.weight"] = torch.cat(pair)
    save_file(tensors, file, {"format": "pt"})
    check(save(model, tmp_path / "base"), folder, model, tuned.state_dict(), tmp_path)


def per_expert(folder: Path, interleaved: bool) -> Path:
    """Take the experts of Llama 4 or gpt-oss apart: (outputs, inputs) for each expert, as other mixtures have them."""
    file = folder / "model.safetensors"
    made: dict[str, torch.Tensor] = {}
    for name, value in load_file(file).items():
        path, dot, last = name.rpartition(".")
        kind = "bias" if last.endswith("_bias") else "weight"
        if ".experts" not in name:
            made[name] = value
            continue
        for number, each in enumerate(value):
            turned = each if kind == "bias" else each.T
            if last.startswith("gate_up"):
                gate, up = (turned[::2], turned[1::2]) if interleaved else turned.chunk(2)
                made[f"{path}{dot}{number}.gate_proj.{kind}"] = gate.contiguous()
                made[f"{path}{dot}{number}.up_proj.{kind}"] = up.contiguous()
            else:
                made[f"{path}{dot}{number}.down_proj.{kind}"] = turned.contiguous()
    save_file(made, file, {"format": "pt"})
    return folder


@pytest.mark.parametrize("name", ["llama4", "gpt_oss"])
@pytest.mark.parametrize("apart", ["tuned", "base"])
def test_experts_apart_where_transformers_has_them_together(name: str, apart: str, tmp_path: Path) -> None:
    """gpt-oss interleaves gate and up, and both have (experts, inputs, outputs)."""
    base, tuned = build(name), moved(build(name))
    folders = {"base": save(base, tmp_path / "base"), "tuned": save(tuned, tmp_path / "tuned")}
    per_expert(folders[apart], interleaved=name == "gpt_oss")
    if apart == "tuned":
        check(folders["base"], folders["tuned"], base, tuned.state_dict(), tmp_path)
        return
    # transformers cannot load this base; the output has its layout
    merged = load_file(merge(folders["base"], folders["tuned"], tmp_path / "out", lam=1) / "model.safetensors")
    expected = load_file(per_expert(folders["tuned"], interleaved=name == "gpt_oss") / "model.safetensors")
    assert merged.keys() == expected.keys()
    assert all(torch.equal(merged[each], value) for each, value in expected.items())


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("", "_orig_mod."),
        ("", "module."),
        ("model.", "model._orig_mod."),
        ("", "module._orig_mod."),
        ("", "module.module."),
        ("", "base_model.model."),
        ("self_attn.q_proj.", "self_attn.q_proj.base_layer."),
    ],
)
def test_names_that_wrappers_change(old: str, new: str, tmp_path: Path) -> None:
    base, tuned = save(build("llama"), tmp_path / "base"), moved(build("llama"))
    folder = rename(save(tuned, tmp_path / "tuned"), lambda name: name.replace(old, new, 1) if old else new + name)
    manifest = check(base, folder, build("llama"), tuned.state_dict(), tmp_path)
    assert "names that a wrapper changed" in manifest["notes"][0]


OLD_NAMES = {
    "gemma3": {"model.language_model.": "language_model.model.", "model.vision_tower.": "vision_tower."},
    "mistral3": {"model.language_model.": "language_model.model.", "model.vision_tower.": "vision_tower."},
    "qwen2_5_vl": {"model.language_model.": "model.", "model.visual.": "visual."},
}
"""The names in transformers 4 by the parameters' of transformers 5, for what differs."""


@pytest.mark.parametrize("name", OLD_NAMES)
@pytest.mark.parametrize("new", ["base", "tuned"])
def test_names_of_other_versions(name: str, new: str, tmp_path: Path) -> None:
    def old(key: str) -> str:
        found = next((a for a in OLD_NAMES[name] if key.startswith(a)), None)
        return OLD_NAMES[name][found] + key.removeprefix(found) if found else key

    models = {"base": build(name), "tuned": moved(build(name))}
    folders = {each: save(model, tmp_path / each, **FUSED) for each, model in models.items()}
    rename(folders["tuned" if new == "base" else "base"], old)
    manifest = check(folders["base"], folders["tuned"], models["base"], models["tuned"].state_dict(), tmp_path)
    assert any("have another name" in note for note in manifest["notes"])


TEXT_CLASSES = {
    "gemma3": ("Gemma3ForCausalLM", "model.language_model.", "model."),
    "mistral3": ("MistralForCausalLM", "model.language_model.", "model."),
    "qwen3_5": ("Qwen3_5ForCausalLM", "model.language_model.", "model."),
    "llama4": ("Llama4ForCausalLM", "language_model.", ""),
}
"""The class of the language model alone, and the parameters' prefixes in the wrapper and there."""


def language_model(wrapper: Any, name: str) -> tuple[Any, dict[str, str]]:
    """The language model of a wrapper as a model of its own; and its parameters' names in the wrapper."""
    kind, ours, theirs = TEXT_CLASSES[name]
    model = getattr(transformers, kind)(wrapper.config.text_config)
    state = wrapper.state_dict()
    names = {theirs + key.removeprefix(ours): key for key in state if key.startswith(ours)}
    names |= {"lm_head.weight": "lm_head.weight"} if "lm_head.weight" in state else {}
    model.load_state_dict({key: state[other] for key, other in names.items()})
    return model.eval(), names


@pytest.mark.parametrize("name", TEXT_CLASSES)
def test_a_language_model_tuned_alone_and_its_wrapper(name: str, tmp_path: Path) -> None:
    base, tuned = build(name), moved(build(name))
    text, names = language_model(tuned, name)
    folder = save(text, tmp_path / "text")
    expected = {names[key]: value for key, value in text.state_dict().items()}
    manifest = check(save(base, tmp_path / "base"), folder, base, expected, tmp_path)
    assert any("are kept from the base" in note for note in manifest["notes"])
    # and the other way round: the wrapper was tuned, the base is its language model
    model, _ = language_model(base, name)
    whole = save(tuned, tmp_path / "whole")
    manifest = check(save(model, tmp_path / "model"), whole, model, text.state_dict(), tmp_path / "reverse")
    assert any("are left out" in note for note in manifest["notes"])


def test_layers_that_predict_further_tokens_stay(tmp_path: Path) -> None:
    more = {"mtp.fc.weight": torch.randn(4, 4), "model.layers.4.eh_proj.weight": torch.randn(4, 4)}
    base = add(save(build("qwen3_next"), tmp_path / "base"), more)
    tuned = moved(build("qwen3_next"))
    folder = save(tuned, tmp_path / "tuned")
    merged = load_file(merge(base, folder, tmp_path / "out", lam=0.5) / "model.safetensors")
    assert all(torch.equal(merged[name], value) for name, value in more.items())
    notes = read_json(tmp_path / "out/mooring.json")["notes"]
    assert sum("kept from the base" in note for note in notes) == 2
    # and the other way round: only the tuned model has them
    base, folder = save(build("qwen3_next"), tmp_path / "b"), add(folder, more)
    assert not more.keys() & load_file(merge(base, folder, tmp_path / "o", lam=0.5) / "model.safetensors").keys()
    assert sum("left out" in note for note in read_json(tmp_path / "o/mooring.json")["notes"]) == 2


@pytest.mark.parametrize("where", ["base", "tuned"])
def test_buffers_of_old_versions(where: str, tmp_path: Path) -> None:
    buffers = {f"model.layers.{k}.self_attn.rotary_emb.inv_freq": torch.ones(4) for k in range(2)}
    folders = {
        "base": save(build("llama"), tmp_path / "base"),
        "tuned": save(moved(build("llama")), tmp_path / "tuned"),
    }
    add(folders[where], buffers)
    merged = load_file(merge(folders["base"], folders["tuned"], tmp_path / "out", lam=0.5) / "model.safetensors")
    assert (buffers.keys() <= merged.keys()) is (where == "base")
    assert "computed from the configuration" in read_json(tmp_path / "out/mooring.json")["notes"][0]


def test_inspect_and_merges_in_memory_read_the_same(tmp_path: Path) -> None:
    base, tuned = save(build("qwen3_moe"), tmp_path / "b"), moved(build("qwen3_moe"))
    alike, fused = save(tuned, tmp_path / "alike"), save(tuned, tmp_path / "fused", **FUSED)
    one, other = inspect(base, alike), inspect(base, fused)
    assert other.changes == one.changes
    assert len(other.warnings) == len(one.warnings) + 2
    assert any("MergeModulelist and Concatenate" in warning for warning in other.warnings)
    with open_pair(base, alike) as a, open_pair(base, fused) as b:
        ours, theirs = OpenMerge(a).tensors(0.3), OpenMerge(b).tensors(0.3)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("method", ["slerp", "ties", "dare_linear"])
def test_methods_give_the_same_bytes(method: str, tmp_path: Path) -> None:
    base, tuned = save(build("qwen3_moe"), tmp_path / "b", **FUSED), moved(build("qwen3_moe"))
    alike, other = save(tuned, tmp_path / "alike", **FUSED), save(tuned, tmp_path / "other")
    options: dict[str, Any] = {"lam": 0.4, "method": method, "slice_bytes": 2**12}
    outs = [merge(base, each, tmp_path / f"{each.name}-out", **options) for each in (alike, other)]
    a, b = (load_file(out / "model.safetensors") for out in outs)
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_an_expert_is_missing(tmp_path: Path) -> None:
    base = save(build("qwen3_moe"), tmp_path / "b", **FUSED)
    folder = save(moved(build("qwen3_moe")), tmp_path / "t")
    file = folder / "model.safetensors"
    kept = {k: v for k, v in load_file(file).items() if ".experts.3." not in k}
    save_file(kept, file, {"format": "pt"})
    with pytest.raises(MismatchError, match=r"cannot be made of its tensors") as caught:
        merge(base, folder, tmp_path / "out", lam=0.5)
    assert caught.value.code == "model.layout_mismatch"


def test_other_architectures_are_refused(tmp_path: Path) -> None:
    base, other = save(build("llama"), tmp_path / "b"), save(build("qwen3_moe"), tmp_path / "o")
    with pytest.raises(MismatchError) as caught:
        merge(base, other, tmp_path / "out", lam=0.5)
    assert caught.value.code == "model.architecture_mismatch"
    wrapper = save(build("gemma3"), tmp_path / "w")
    with pytest.raises(MismatchError) as caught:
        merge(wrapper, base, tmp_path / "out", lam=0.5)
    assert caught.value.code == "model.architecture_mismatch"
