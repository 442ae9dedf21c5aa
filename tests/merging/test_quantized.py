"""Merges of quantized models: read as what their library dequantizes, written in 16 bits."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_models import tune
from mooring import merge, verify
from mooring.errors import MismatchError, UserError
from mooring.merging.compatibility import pair_warnings
from mooring.merging.pair import QUANTIZED_NAME, open_pair
from mooring.models import open_checkpoint
from quantized_tensors import CASES, NAME, Case, fp8_blocks, fp8_per_tensor, normal, write


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


KEPT = [
    *("fp8, blocks", "fp8, blocks that do not divide the shape", "fp8, fused experts", "fp8, exponents"),
    *("fp8, one scale", "compressed-tensors fp8, one scale", "compressed-tensors fp8, per channel"),
    *("compressed-tensors fp8, blocks", "compressed-tensors int8", "mxfp4", "int8"),
    *("nf4", "nf4, nested", "fp4, nested", "nf4, float32, a last block that is short"),
]
"""Formats that are written again."""


def pair_of(folder: Path, name: str) -> tuple[Case, torch.Tensor]:
    """A base in a format, and a tuned model of 16 bits that differs from it in the first half of the entries."""
    case = CASES[name]()
    change = 0.3 * case.values.float().abs().mean() * torch.sign(normal(*case.values.shape, seed=9))
    tuned = case.values.clone().view(-1)
    half = tuned.numel() // 2
    tuned[:half] = (tuned.float() + change.view(-1)).to(tuned.dtype)[:half]
    write(folder / "b", case)
    write(folder / "t", Case({case.name: tuned.view(case.values.shape)}, {}, torch.empty(0)))
    return case, tuned.view(case.values.shape)


@pytest.mark.parametrize("name", KEPT)
def test_the_format_is_kept(tmp_path: Path, name: str) -> None:
    case, tuned = pair_of(tmp_path, name)
    out = merge(tmp_path / "b", tmp_path / "t", out=tmp_path / "o", lam=0.8, keep_quantization=True)
    tensors, config, manifest = read(out)
    assert config["quantization_config"] == case.settings
    stored = load_file(tmp_path / "b" / "model.safetensors")
    assert {k: (v.dtype, v.shape) for k, v in tensors.items()} == {k: (v.dtype, v.shape) for k, v in stored.items()}
    with open_checkpoint(out) as model:
        merged = model.tensor(case.name).float().view(-1)
    before, wanted = case.values.float().view(-1), torch.lerp(case.values.float(), tuned.float(), 0.8).view(-1)
    half = before.numel() // 2
    moves = "one scale" in name or "nested" in name or "float32" in name  # all entries may share a scale
    assert torch.equal(merged[half + half // 2 :], before[half + half // 2 :]) or moves
    error = float((merged - wanted).norm() / wanted.norm())
    assert error < (0.15 if "4" in name and "fp8" not in name else 0.05)
    left = manifest["requantized"][case.name]
    change = wanted - before
    assert left["change"] == pytest.approx(float((merged - before).dot(change) / change.square().sum()), abs=1e-3)
    assert 0.3 < left["change"] < 1.5
    assert verify(out)["digest"] == manifest["digest"]


@pytest.mark.parametrize("name", KEPT)
def test_lambda_0_has_the_bases_bytes(tmp_path: Path, name: str) -> None:
    pair_of(tmp_path, name)
    out = merge(tmp_path / "b", tmp_path / "t", out=tmp_path / "o", lam=0, keep_quantization=True)
    stored = load_file(tmp_path / "b" / "model.safetensors")
    for part, tensor in load_file(out / "model.safetensors").items():
        assert torch.equal(tensor.view(-1).view(torch.uint8), stored[part].view(-1).view(torch.uint8)), part


def test_the_output_does_not_depend_on_threads(tmp_path: Path) -> None:
    folder = tmp_path / "b"
    codes = (normal(1300, 640) * 9000).to(torch.float8_e4m3fn)
    case = fp8_blocks()._replace(stored={NAME: codes, f"{NAME}_scale_inv": normal(11, 5).abs()})
    write(folder, case)
    write(tmp_path / "t", Case({NAME: normal(1300, 640, seed=3).to(torch.bfloat16)}, {}, torch.empty(0)))
    outputs = [
        merge(folder, tmp_path / "t", out=tmp_path / f"o{n}", lam=0.5, keep_quantization=True, threads=n)
        for n in (1, 3)
    ]
    assert len({(out / "mooring.json").read_text() for out in outputs}) == 1


def test_a_change_that_rounding_takes_away_is_refused(tmp_path: Path) -> None:
    case = fp8_per_tensor()
    write(tmp_path / "b", case)
    tuned = case.values.clone()
    tuned[3, 5] += tuned[3, 5].abs() * 0.01
    write(tmp_path / "t", Case({NAME: tuned}, {}, torch.empty(0)))
    with pytest.raises(MismatchError) as error:
        merge(tmp_path / "b", tmp_path / "t", out=tmp_path / "o", lam=0.5, keep_quantization=True)
    assert error.value.code == "model.rounds_to_base"
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("name", ["gptq", "awq", "nvfp4, modelopt", "compressed-tensors int4, groups", "none"])
def test_what_cannot_be_written_again_is_refused(tmp_path: Path, name: str) -> None:
    case = CASES["gptq" if name == "none" else name]()
    plain = Case({case.name: case.values}, {}, torch.empty(0))
    write(tmp_path / "b", plain if name == "none" else case)
    write(tmp_path / "t", Case({case.name: case.values + 1}, {}, torch.empty(0)))
    with pytest.raises(UserError) as error:
        merge(tmp_path / "b", tmp_path / "t", out=tmp_path / "o", lam=0.5, keep_quantization=True)
    assert error.value.code == "usage.keep_quantization"


@pytest.fixture(scope="session")
def qlora(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """A tiny model in 16 bits, the same in NF4, and an adapter that was trained on the latter, as its config says."""
    pytest.importorskip("bitsandbytes")
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("qlora")
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=40, num_key_value_heads=1, tie_word_embeddings=False))
    model.to(torch.bfloat16).save_pretrained(folder / "base")
    settings = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    rounded = AutoModelForCausalLM.from_pretrained(folder / "base", quantization_config=settings, dtype=torch.bfloat16)
    rounded.save_pretrained(folder / "base-bnb-4bit")
    tune(folder / "base", folder / "adapter", target_modules=["q_proj", "down_proj"])
    file = folder / "adapter" / "adapter_config.json"
    named = json.loads(file.read_text()) | {"base_model_name_or_path": str(folder / "base-bnb-4bit")}
    file.write_text(json.dumps(named))
    return folder / "base", folder / "base-bnb-4bit", folder / "adapter"


def test_a_qlora_adapter_is_merged_into_the_16_bit_base(tmp_path: Path, qlora: tuple[Path, Path, Path]) -> None:
    base, _, adapter = qlora
    tensors, config, manifest = read(merge(base, adapter, out=tmp_path / "o", lam=1))
    name = "model.layers.0.mlp.up_proj.weight"  # which the adapter does not change
    with open_checkpoint(base) as model:
        assert torch.equal(tensors[name], model.tensor(name))
    assert any("base-bnb-4bit" in note and "--qlora-base" in note for note in manifest["notes"])
    assert "quantization_config" not in config


@pytest.mark.parametrize("give", ["base", "rounded"])
def test_what_a_qlora_adapter_was_trained_on(tmp_path: Path, qlora: tuple[Path, Path, Path], give: str) -> None:
    """The merge at λ = 1 has the logits of PEFT's adapter on bitsandbytes' dequantized weights."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base, rounded, adapter = qlora
    given = base if give == "base" else rounded
    out = merge(given, adapter, out=tmp_path / "o", lam=1, qlora_base="dequantized", dtype="float32")
    reference = AutoModelForCausalLM.from_pretrained(rounded, dtype=torch.bfloat16).dequantize().float()
    assert all("bnb" not in type(module).__module__ for module in reference.modules())
    expected = PeftModel.from_pretrained(reference, adapter).eval()
    ids = torch.arange(12)[None]
    with torch.no_grad():
        wanted, found = expected(ids).logits, AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)(ids).logits
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)


def test_another_quantized_base_is_refused(tmp_path: Path, qlora: tuple[Path, Path, Path]) -> None:
    base, _, adapter = qlora
    other = tmp_path / "other"
    shutil.copytree(base, other)
    tensors = load_file(base / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"] + 1
    save_file(tensors, other / "model.safetensors", {"format": "pt"})
    with pytest.raises(MismatchError) as error:
        merge(other, adapter, out=tmp_path / "o", lam=1)
    assert error.value.code == "model.base_mismatch"


def test_a_qlora_base_that_is_not_here_is_refused(tmp_path: Path, qlora: tuple[Path, Path, Path]) -> None:
    base, _, adapter = qlora
    for named in ("unsloth/no-such-model-bnb-4bit", str(base)):
        other = tmp_path / named.rsplit("/", 1)[-1]
        shutil.copytree(adapter, other)
        file = other / "adapter_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": named}))
        with pytest.raises(UserError) as error:
            merge(base, other, out=tmp_path / "o", lam=1, qlora_base="dequantized")
        assert error.value.code == "usage.qlora_base"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["fp8", "nf4", "int8", "compressed-tensors"])
def test_what_is_written_again_loads_in_its_library(tmp_path: Path, qlora: tuple[Path, Path, Path], kind: str) -> None:
    """transformers loads the merge, and its logits are those of the same merge in 16 bits."""
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    base, rounded, adapter = qlora
    source = rounded
    if kind == "int8":
        source = tmp_path / "int8"
        settings = BitsAndBytesConfig(load_in_8bit=True)
        AutoModelForCausalLM.from_pretrained(base, quantization_config=settings).save_pretrained(source)
    elif kind != "nf4":
        source = requantized(base, tmp_path / "source", kind)
    kept = merge(source, adapter, out=tmp_path / "kept", lam=1, keep_quantization=True)
    with open_checkpoint(kept) as model:
        values = {name: model.tensor(name) for name in model.tensors}
        assert model.quantized
    loaded = AutoModelForCausalLM.from_pretrained(kept, dtype=torch.bfloat16)
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    plain.load_state_dict({name: tensor.float() for name, tensor in values.items()})
    ids = torch.arange(12)[None]
    with torch.no_grad():
        found, wanted = loaded(ids).logits.float(), plain(ids).logits
    assert float((found - wanted).norm() / wanted.norm()) < 0.03


def requantized(base: Path, out: Path, kind: str) -> Path:
    """The model with its projections in FP8, as the tensors and configuration of a format."""
    shutil.copytree(base, out)
    tensors = load_file(base / "model.safetensors")
    ignored = ["lm_head"]
    weights = {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True, "dynamic": False}
    group = {"targets": ["Linear"], "weights": weights, "input_activations": None, "output_activations": None}
    compressed = {
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": ignored,
    }
    blocks = {"quant_method": "fp8", "weight_block_size": [32, 32], "modules_to_not_convert": ignored}
    stored: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        stored[name] = tensor
        if not name.endswith("_proj.weight"):
            continue
        if kind == "fp8":
            rows, columns = tensor.shape
            scale = tensor.float().view(rows // 32, 32, columns // 32, 32).abs().amax((1, 3)) / 448
            spread = scale.repeat_interleave(32, 0).repeat_interleave(32, 1)
            stored[f"{name}_scale_inv"] = scale
        else:
            scale = (tensor.float().abs().amax(1, keepdim=True) / 448).to(torch.bfloat16)
            spread = scale.float()
            stored[f"{name}_scale"] = scale
        stored[name] = (tensor.float() / spread).clamp(-448, 448).to(torch.float8_e4m3fn)
    save_file(stored, out / "model.safetensors", {"format": "pt"})
    config = json.loads((out / "config.json").read_text())
    config["quantization_config"] = blocks if kind == "fp8" else compressed
    (out / "config.json").write_text(json.dumps(config))
    return out


@pytest.mark.slow
def test_gpt_oss_in_mxfp4(tmp_path: Path) -> None:
    """At λ = 0 the base as transformers dequantizes it, at λ = 1 a tuned model of 16 bits; written as MXFP4 again."""
    from transformers import AutoModelForCausalLM, GptOssConfig, GptOssForCausalLM

    sizes = {
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "head_dim": 32,
    }
    experts = {"num_local_experts": 4, "num_experts_per_tok": 2, "layer_types": ["full_attention"]}
    torch.manual_seed(0)
    config = GptOssConfig(**sizes, **experts, num_key_value_heads=1, vocab_size=40, pad_token_id=0, eos_token_id=1)
    tuned = GptOssForCausalLM(config).to(torch.bfloat16)
    tuned.save_pretrained(tmp_path / "tuned")
    stored = {}
    random = torch.Generator().manual_seed(0)
    for name, tensor in load_file(tmp_path / "tuned" / "model.safetensors").items():
        if name.endswith("_proj") and "experts" in name:
            count, inputs, outputs = tensor.shape
            groups = (count, outputs, inputs // 32)
            stored[f"{name}_blocks"] = torch.randint(0, 256, (*groups, 16), dtype=torch.uint8, generator=random)
            stored[f"{name}_scales"] = torch.randint(118, 122, groups, dtype=torch.uint8, generator=random)
        else:
            stored[name] = tensor
    shutil.copytree(tmp_path / "tuned", tmp_path / "base")
    save_file(stored, tmp_path / "base" / "model.safetensors", {"format": "pt"})
    fields = json.loads((tmp_path / "base" / "config.json").read_text())
    fields["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}
    (tmp_path / "base" / "config.json").write_text(json.dumps(fields))
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.bfloat16)
    for lam, expected in ((0.0, base), (1.0, tuned)):
        out = merge(tmp_path / "base", tmp_path / "tuned", out=tmp_path / f"o{lam}", lam=lam)
        found = AutoModelForCausalLM.from_pretrained(out, dtype=torch.bfloat16).state_dict()
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.state_dict().items())
    kept = merge(tmp_path / "base", tmp_path / "tuned", out=tmp_path / "kept", lam=0.5, keep_quantization=True)
    with open_checkpoint(kept) as model:
        values = {name: model.tensor(name) for name in model.quantized}
    found = AutoModelForCausalLM.from_pretrained(kept, dtype=torch.bfloat16).state_dict()
    assert len(values) == 2
    assert all(torch.equal(found[name], tensor) for name, tensor in values.items())
