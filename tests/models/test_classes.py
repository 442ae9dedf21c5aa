"""Which class of transformers loads a folder, and what sizes its configuration states."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from mooring.errors import ModelError
from mooring.models.classes import (
    context_length,
    empty_model,
    load_config,
    load_model,
    load_tokenizer,
    model_class,
    places_of,
    text_fields,
    vocab_size,
)
from wrapper_models import SPECIAL, TEXT, WRAPPERS, build_any, save_any

CLASSES = {
    "gemma3": "Gemma3ForConditionalGeneration",
    "qwen2.5-vl": "Qwen2_5_VLForConditionalGeneration",
    "qwen3-vl": "Qwen3VLForConditionalGeneration",
    "qwen3.5": "Qwen3_5ForConditionalGeneration",
    "mistral3": "Mistral3ForConditionalGeneration",
    "llama4": "Llama4ForConditionalGeneration",
}


@pytest.mark.parametrize("family", WRAPPERS)
def test_a_wrapper_is_loaded_whole(family: str, tmp_path: Path, tiny_tokenizer: Any) -> None:
    folder = save_any(tmp_path / "model", family, tiny_tokenizer)
    model = load_model(folder)
    assert type(model).__name__ == CLASSES[family]
    assert type(empty_model(folder)) is type(model)
    ids = torch.arange(3, 23).view(1, -1)
    with torch.no_grad():
        expected = build_any(family, tiny_tokenizer)(input_ids=ids).logits
        assert torch.equal(model(input_ids=ids).logits, expected)
    assert vocab_size(model.config) == len(tiny_tokenizer) + SPECIAL == expected.shape[-1]
    assert context_length(model.config) == TEXT["max_position_embeddings"]
    fields = text_fields(json.loads((folder / "config.json").read_text()))
    assert (fields["vocab_size"], fields["hidden_size"]) == (expected.shape[-1], 32)


def test_the_class_in_the_configuration_decides(tmp_path: Path, tiny_tokenizer: Any) -> None:
    config = load_config(save_any(tmp_path / "model", "qwen3.5", tiny_tokenizer))
    config.architectures = ["Qwen3_5ForCausalLM"]
    kind, part = model_class(config)
    assert kind.__name__ == "Qwen3_5ForCausalLM"
    assert part is config.text_config
    config.architectures = None
    assert model_class(config) == (type(empty_model(tmp_path / "model")), config)


def test_a_field_that_is_repeated_is_set_in_both_places() -> None:
    config = {"vocab_size": 8, "text_config": {"vocab_size": 8}}
    for place in places_of(config, "vocab_size"):
        place["vocab_size"] = 9
    assert config == {"vocab_size": 9, "text_config": {"vocab_size": 9}}
    nested: dict[str, Any] = {"thinker_config": {"text_config": {}}}
    assert places_of(nested, "vocab_size") == [nested["thinker_config"]["text_config"]]
    assert places_of(nested, "dtype") == [nested]


def _write(folder: Path, fields: dict[str, Any]) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(fields))
    return folder


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"model_type": "no_such_type"}, "model.unknown_type"),
        ({"hidden_size": 8}, "model.no_type"),
        ({"model_type": ["llama"]}, "model.bad_config"),
        ({"model_type": "llama", "architectures": True}, "model.bad_config"),
        ({"model_type": "llama", "hidden_size": "eight"}, "model.bad_config"),
        ({"model_type": "clip"}, "model.no_class"),
        ({"model_type": "t5"}, "model.no_class"),
    ],
)
def test_a_class_that_is_not_known_is_one_line(tmp_path: Path, fields: dict[str, Any], code: str) -> None:
    with pytest.raises(ModelError) as caught:
        empty_model(_write(tmp_path / "llama", fields))
    assert caught.value.code == code
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["no_such_type", "llama"])
def test_code_of_a_folder_is_not_run(tmp_path: Path, kind: str) -> None:
    code = "open({!r}, 'w')\nclass Config: pass\nclass Model: pass\n".format(str(tmp_path / "ran"))
    auto = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model", "AutoTokenizer": ["own.Model", None]}
    folder = _write(tmp_path / "model", {"model_type": kind, "auto_map": auto, "hidden_size": 32})
    (folder / "own.py").write_text(code)
    (folder / "tokenizer_config.json").write_text(json.dumps({"auto_map": auto}))
    with pytest.raises(ModelError) as caught:
        load_model(folder)
    assert caught.value.code == ("model.remote_code" if kind == "no_such_type" else "model.no_weights")
    with pytest.raises(ModelError):
        load_tokenizer(folder)
    assert not (tmp_path / "ran").exists()


def test_a_model_that_generates_nothing_is_named(tmp_path: Path, tiny_tokenizer: Any) -> None:
    from transformers import LlamaConfig, LlamaForSequenceClassification

    config = LlamaConfig(**TEXT, vocab_size=16, tie_word_embeddings=False)
    LlamaForSequenceClassification(config).save_pretrained(tmp_path / "classifier")
    with pytest.raises(ModelError, match="LlamaForSequenceClassification") as caught:
        load_model(tmp_path / "classifier")
    assert caught.value.code == "model.other_class"


@pytest.mark.parametrize("cap", [5.0, None])
def test_attention_logits_are_capped_as_the_configuration_says(
    cap: float | None, tmp_path: Path, tiny_tokenizer: Any
) -> None:
    import transformers

    sizes = {"vocab_size": len(tiny_tokenizer), "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16, "query_pre_attn_scalar": 1}
    config = transformers.Gemma2Config(**sizes, **heads, attn_logit_softcapping=cap, attn_implementation="eager")
    torch.manual_seed(0)
    exact = transformers.Gemma2ForCausalLM(config).eval()
    with torch.no_grad():
        for value in exact.parameters():
            value.normal_(std=0.5)
    exact.save_pretrained(tmp_path)
    tokens = torch.arange(40)[None]
    with torch.no_grad():
        assert torch.allclose(load_model(tmp_path)(tokens).logits, exact(tokens).logits, atol=1e-3)


def test_a_processor_brings_the_chat_template(tmp_path: Path, tiny_tokenizer: Any) -> None:
    tiny_tokenizer.save_pretrained(tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    assert not load_tokenizer(tmp_path).chat_template
    (tmp_path / "chat_template.json").write_text('{"chat_template": "{{ messages }}"}')
    assert load_tokenizer(tmp_path).chat_template == "{{ messages }}"
