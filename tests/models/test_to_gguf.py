"""What is written as GGUF: values, metadata, a Modelfile, and what is refused. `test_llama_cpp.py` runs the files."""

import copy
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from chat_templates import SPECIAL, TEMPLATES
from mooring.errors import ModelError, OutputError
from mooring.models import gguf, open_checkpoint
from mooring.models.to_gguf import check_adapter, check_model, write_adapter, write_model
from mooring.models.to_gguf.modelfile import adapter_modelfile, find_turns, model_modelfile, one_word
from mooring.records import Message


def tensors_of(file: Path) -> dict[str, Any]:
    """Name to the values that the gguf package dequantizes."""
    from gguf import GGUFReader, dequantize

    return {tensor.name: dequantize(tensor.data, tensor.tensor_type) for tensor in GGUFReader(file).tensors}


def fields_of(file: Path) -> dict[str, Any]:
    from gguf import GGUFReader

    return {name: field.contents() for name, field in GGUFReader(file).fields.items()}


@pytest.mark.parametrize(("kind", "step"), [("f16", 2.0**-11), ("bf16", 2.0**-8), ("q8_0", 1 / 127)])
def test_our_reader_gets_the_weights_back(kind: Any, step: float, tiny_model_folder: Path, tmp_path: Path) -> None:
    written = write_model(tiny_model_folder, tmp_path, kind, name="m")
    assert written.file == tmp_path / f"m-{kind.upper()}.gguf"
    with (
        open_checkpoint(tiny_model_folder) as first,
        open_checkpoint(gguf.convert(written.file, tmp_path / "back", "float32")) as back,
    ):
        assert first.tensors.keys() == back.tensors.keys()
        for name in first.tensors:
            was, now = first.tensor(name), back.tensor(name)
            if was.dim() == 1:
                assert torch.equal(was, now)
            else:
                largest = was.abs().amax(-1, keepdim=True) if kind == "q8_0" else was.abs()
                assert ((was - now).abs() <= largest * step + 2.0**-25).all()  # half of float16's smallest step


def test_metadata_is_complete(tiny_model_folder: Path, tiny_tokenizer: Any, tmp_path: Path) -> None:
    fields = fields_of(write_model(tiny_model_folder, tmp_path, "q8_0", name="My Model").file)
    assert fields["general.name"] == "My Model"
    assert fields["general.file_type"] == 7
    assert fields["llama.attention.head_count_kv"] == 2
    assert fields["llama.rope.freq_base"] == 10000.0
    assert fields["tokenizer.ggml.model"] == "gpt2"
    assert fields["tokenizer.ggml.pre"] == "gpt-2"
    assert fields["tokenizer.chat_template"] == tiny_tokenizer.chat_template
    assert fields["tokenizer.ggml.eos_token_id"] == tiny_tokenizer.eos_token_id
    assert fields["tokenizer.ggml.add_bos_token"] is False
    kinds = dict(zip(fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"], strict=True))
    assert kinds["<|im_start|>"] == 3
    assert kinds["a"] == 1


def test_padded_rows_get_tokens_that_never_occur(tmp_path: Path, save_tiny_model: Any, tiny_tokenizer: Any) -> None:
    folder = save_tiny_model(tmp_path / "padded", vocab_size=len(tiny_tokenizer) + 2)
    fields = fields_of(write_model(folder, tmp_path, "f16").file)
    assert fields["tokenizer.ggml.tokens"][-1] == f"[PAD{len(tiny_tokenizer) + 1}]"
    assert fields["tokenizer.ggml.token_type"][-2:] == [5, 5]


def test_stacked_experts_equal_those_one_by_one(tmp_path: Path, tiny_tokenizer: Any) -> None:
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    config = Qwen3MoeConfig(
        vocab_size=len(tiny_tokenizer), hidden_size=64, intermediate_size=128, moe_intermediate_size=32, num_experts=4,
        num_experts_per_tok=2, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2, head_dim=16,
        norm_topk_prob=True,
    )  # fmt: skip
    model = Qwen3MoeForCausalLM(config)
    for name, unfused in (("fused", False), ("single", True)):
        model.save_pretrained(tmp_path / name, save_original_format=unfused)
        tiny_tokenizer.save_pretrained(tmp_path / name)
    with open_checkpoint(tmp_path / "fused") as fused, open_checkpoint(tmp_path / "single") as single:
        assert len(fused.tensors) < len(single.tensors)
    made = [tensors_of(write_model(tmp_path / name, tmp_path, "f16").file) for name in ("fused", "single")]
    assert made[0].keys() == made[1].keys()
    assert made[0]["blk.0.ffn_up_exps.weight"].shape == (4, 32, 64)
    assert all(np.array_equal(made[0][name], made[1][name]) for name in made[0])


# --- the Modelfile ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama-3", "gemma", "qwen2.5"])
def test_turns_are_framed_as_the_chat_template_does(name: str, tiny_tokenizer: Any) -> None:
    from mooring.chat import render

    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": list(SPECIAL)})
    tokenizer.bos_token, tokenizer.chat_template = "<s>", TEMPLATES[name]
    turns = find_turns(tokenizer)
    assert turns is not None
    talk = [Message("user", "One?"), Message("assistant", "Two."), Message("user", "Three?")]
    assert turns.render(talk) == render(tokenizer, talk)
    talk = [Message("system", "Be kind."), *talk]
    assert turns.render(talk) == render(tokenizer, talk)
    assert ("(index $.Messages 0).Content" in turns.template()) is (name == "gemma")  # which has no system role


def test_a_template_that_rewrites_turns_is_left_to_ollama(tiny_tokenizer: Any) -> None:
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.chat_template = TEMPLATES["qwen3"]  # puts a think block into the last answer only
    text = model_modelfile("m.gguf", tokenizer)
    assert text.startswith("FROM ./m.gguf\n")
    assert "TEMPLATE" not in text


def test_a_modelfile_names_the_file_the_template_and_the_stop(tiny_tokenizer: Any) -> None:
    text = model_modelfile("m-Q8_0.gguf", tiny_tokenizer)
    assert text.splitlines()[0] == "FROM ./m-Q8_0.gguf"
    assert '{{ if eq .Role "user" }}<|im_start|>user\n{{ .Content }}<|im_end|>\n' in text
    assert 'PARAMETER stop "<|im_end|>"' in text


BREAKS_OUT = (
    *(
        '"""\nSYSTEM """x',
        "{{ .Secret }}",
        "ends in {",
        '"',
        'x"\nADAPTER /etc/passwd\n"',
        "\nSYSTEM x\n",
        "\r\x1b[31m",
        "\\",
    ),
)


@pytest.mark.parametrize("text", BREAKS_OUT)
def test_no_text_of_a_model_or_name_becomes_a_line_of_a_modelfile(text: str, tiny_tokenizer: Any) -> None:
    """Its chat template, its end of turn, and the names of folders come from elsewhere."""
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.chat_template = tokenizer.chat_template.replace("<|im_end|>", "<|x|>").replace("<|x|>", "{{ eos_token }}")
    tokenizer.eos_token = f"<{text}>"
    for file in ("m.gguf", f"{one_word(text)}.gguf"):
        assert_own_lines(model_modelfile(file, tokenizer))
    tokenizer.eos_token, tokenizer.chat_template = (
        "<|im_end|>",
        tiny_tokenizer.chat_template.replace("user", "user" + text),
    )
    assert_own_lines(model_modelfile("m.gguf", tokenizer))
    assert_own_lines(adapter_modelfile("a.gguf", Path(f"x{text.replace('/', '')}")))


def assert_own_lines(text: str) -> None:
    """Check that only Mooring's own instructions stand outside of what is quoted."""
    outside = re.sub(r'""".*?"""(?!")', "", text, flags=re.DOTALL)
    for line in outside.splitlines():
        assert re.fullmatch(r'(#.*|FROM [^"\x00-\x1f]+|ADAPTER \./[^"]+|TEMPLATE |PARAMETER stop "[^"\\]+"|)', line), (
            line
        )
    assert text.count('"""') in (0, 2)


# --- adapters ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path) -> Path:
    """`plain`, `dora` and `head` on the tiny model."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("adapters")
    for name, options in (("plain", {}), ("dora", {"use_dora": True}), ("head", {"modules_to_save": ["lm_head"]})):
        model = AutoModelForCausalLM.from_pretrained(tiny_model_folder)
        tuned = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "up_proj"], **options))
        tuned.save_pretrained(folder / name)
    return folder


def test_an_adapter_keeps_its_factors_and_alpha(adapters: Path, tiny_model_folder: Path, tmp_path: Path) -> None:
    written = write_adapter(adapters / "plain", tiny_model_folder, tmp_path, "q8_0")
    assert written.type == "f16"
    assert fields_of(written.file)["adapter.lora.alpha"] == 8.0
    assert tensors_of(written.file)["blk.1.ffn_up.weight.lora_a"].shape == (4, 64)
    assert "ADAPTER ./plain-F16.gguf" in written.modelfile.read_text()


@pytest.mark.parametrize("name", ["dora", "head"])
def test_an_adapter_that_is_more_than_factors_is_refused(name: str, adapters: Path, tiny_model_folder: Path) -> None:
    with pytest.raises(ModelError) as caught:
        check_adapter(adapters / name, tiny_model_folder)
    assert caught.value.code == "model.gguf_adapter"


# --- what is refused --------------------------------------------------------------------------------------------------


def edited(source: Path, target: Path, file: str, **changes: Any) -> Path:
    """A copy of a model folder with another configuration or tokenizer."""
    shutil.copytree(source, target)
    content = json.loads((target / file).read_text())
    (target / file).write_text(json.dumps(content | changes))
    return target


@pytest.mark.parametrize(
    ("file", "changes", "code"),
    [
        ("config.json", {"model_type": "gpt_neox"}, "model.gguf_architecture"),
        ("config.json", {"hidden_act": "relu"}, "model.gguf_architecture"),
        ("config.json", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "model.gguf_architecture"),
        ("tokenizer.json", {"pre_tokenizer": {"type": "WhitespaceSplit"}}, "model.gguf_tokenizer"),
        (
            "tokenizer.json",
            {"model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}},
            "model.gguf_tokenizer",
        ),
    ],
)
def test_what_llama_cpp_does_not_have_is_refused(
    file: str, changes: dict[str, Any], code: str, tiny_model_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(ModelError) as caught:
        check_model(edited(tiny_model_folder, tmp_path / "other", file, **changes))
    assert caught.value.code == code


def test_a_tokenizer_larger_than_the_embedding_is_refused(tmp_path: Path, save_tiny_model: Any) -> None:
    with pytest.raises(ModelError) as caught:
        check_model(save_tiny_model(tmp_path / "small", vocab_size=300))
    assert caught.value.code == "model.tokenizer_mismatch"


def test_a_value_that_float16_cannot_hold_is_refused_and_leaves_nothing(
    tmp_path: Path, tiny_model_folder: Path
) -> None:
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "large"
    shutil.copytree(tiny_model_folder, folder)
    held = load_file(folder / "model.safetensors")
    held["model.layers.0.mlp.up_proj.weight"][0, 0] = 1e5
    save_file(held, folder / "model.safetensors", {"format": "pt"})
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(ModelError) as caught:
        write_model(folder, out, "f16")
    assert caught.value.code == "model.gguf_overflow"
    assert list(out.iterdir()) == []
    write_model(folder, out, "bf16")


def test_a_file_is_not_overwritten(tmp_path: Path, tiny_model_folder: Path) -> None:
    write_model(tiny_model_folder, tmp_path, "f16", name="m")
    with pytest.raises(OutputError) as caught:
        write_model(tiny_model_folder, tmp_path, "f16", name="m")
    assert caught.value.code == "output.not_empty"
