"""Tiny models for several modalities, each with a language model in it, and tiny mixtures of experts."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tiny_models import TOWER as VISION  # type: ignore[import-not-found]
from tiny_models import VISION as QWEN_VISION

TEXT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
}
SPECIAL = 4
"""Tokens of images and videos that a wrapper has after those of its tokenizer."""


def _gemma3(text: dict[str, Any], size: int) -> Any:
    from transformers import Gemma3Config

    ids = {"image_token_index": size - 3, "boi_token_index": size - 2, "eoi_token_index": size - 1}
    text = text | {"sliding_window": 16, "model_type": "gemma3_text"}
    return Gemma3Config(text_config=text, vision_config=VISION, mm_tokens_per_image=4, **ids)


def _qwen_ids(size: int) -> dict[str, int]:
    names = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    return {name: size - 4 + i for i, name in enumerate(names)}


def _qwen25vl(text: dict[str, Any], size: int) -> Any:
    from transformers import Qwen2_5_VLConfig

    rope = {"type": "mrope", "mrope_section": [1, 1, 2], "rope_type": "default"}
    vision = QWEN_VISION | {"fullatt_block_indexes": [0]}
    return Qwen2_5_VLConfig(
        text_config=text | {"rope_scaling": rope}, vision_config=vision, **_qwen_ids(size), vocab_size=size
    )


def _qwen3vl(text: dict[str, Any], size: int) -> Any:
    from transformers import Qwen3VLConfig

    rope = {"mrope_section": [1, 1, 2], "rope_type": "default", "mrope_interleaved": True}
    vision = QWEN_VISION | {"deepstack_visual_indexes": [0], "num_position_embeddings": 16}
    return Qwen3VLConfig(text_config=text | {"rope_scaling": rope}, vision_config=vision, **_qwen_ids(size))


def _qwen35(text: dict[str, Any], size: int) -> Any:
    from transformers import Qwen3_5Config

    linear = {
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "num_hidden_layers": 4,
    }
    vision = QWEN_VISION | {"num_position_embeddings": 16}
    return Qwen3_5Config(text_config=text | linear, vision_config=vision, **_qwen_ids(size))


def _mistral3(text: dict[str, Any], size: int) -> Any:
    from transformers import Mistral3Config

    vision = VISION | {"model_type": "pixtral", "head_dim": 16}
    return Mistral3Config(
        text_config=text | {"model_type": "mistral"}, vision_config=vision, image_token_index=size - 1
    )


def _llama4(text: dict[str, Any], size: int) -> Any:
    from transformers import Llama4Config

    experts = {
        "num_local_experts": 2,
        "num_experts_per_tok": 1,
        "intermediate_size_mlp": 48,
        "interleave_moe_layer_step": 1,
        "attention_chunk_size": 64,
        "no_rope_layers": [1, 0],
    }
    vision = VISION | {
        "vision_output_dim": 32,
        "projector_input_dim": 32,
        "projector_output_dim": 32,
        "intermediate_size": 128,
        "pixel_shuffle_ratio": 0.5,
    }
    return Llama4Config(text_config=text | experts, vision_config=vision, image_token_index=size - 1)


WRAPPERS: Mapping[str, Callable[[dict[str, Any], int], Any]] = {
    "gemma3": _gemma3,
    "qwen2.5-vl": _qwen25vl,
    "qwen3-vl": _qwen3vl,
    "qwen3.5": _qwen35,
    "mistral3": _mistral3,
    "llama4": _llama4,
}
"""Configurations by family, from the fields of the language model and the number of tokens."""

_EXPERTS = {"num_experts_per_tok": 2}
MIXTURES: Mapping[str, tuple[str, dict[str, Any]]] = {
    "qwen3-moe": (
        "Qwen3MoeConfig",
        _EXPERTS
        | {
            "num_experts": 4,
            "moe_intermediate_size": 24,
            "norm_topk_prob": True,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
        },
    ),
    "mixtral": ("MixtralConfig", _EXPERTS | {"num_local_experts": 4}),
    "gpt-oss": ("GptOssConfig", _EXPERTS | {"num_local_experts": 4, "sliding_window": 16}),
    "deepseek-v3": (
        "DeepseekV3Config",
        {
            "num_experts_per_tok": 2,
            "n_routed_experts": 4,
            "n_group": 2,
            "topk_group": 1,
            "n_shared_experts": 1,
            "moe_intermediate_size": 24,
            "first_k_dense_replace": 1,
            "q_lora_rank": 16,
            "kv_lora_rank": 16,
            "qk_rope_head_dim": 8,
            "qk_nope_head_dim": 8,
            "v_head_dim": 8,
            "num_key_value_heads": 4,
        },
    ),
}
"""Configuration class and own fields by family."""


def build_any(family: str, tokenizer: Any, seed: int = 0, change: float = 0.0) -> Any:
    """A random model of a family; with `change`, one tuned from it: the standard deviation of what is added."""
    import torch
    import transformers

    from mooring.models.classes import model_class

    common = TEXT | {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    if family in WRAPPERS:
        size = len(tokenizer) + SPECIAL
        config = WRAPPERS[family](common | {"vocab_size": size}, size)
    else:
        kind, fields = MIXTURES[family]
        config = getattr(transformers, kind)(**(common | {"vocab_size": len(tokenizer)} | fields))
    chosen, part = model_class(config)
    model = chosen(part)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.named_parameters():
            noise = torch.randn(value.shape, generator=generator)
            value.copy_(noise * 0.08 + (1.0 if "norm" in name and value.dim() == 1 else 0.0))
            if change:
                value.add_(torch.randn(value.shape, generator=generator) * change)
    return model.eval()


def save_any(folder: Path, family: str, tokenizer: Any, seed: int = 0, change: float = 0.0) -> Path:
    """Write such a model with its tokenizer, and a processor's configuration if it is a wrapper."""
    build_any(family, tokenizer, seed, change).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if family in WRAPPERS:
        (folder / "preprocessor_config.json").write_text('{"image_processor_type": "SiglipImageProcessor"}\n')
    return folder


def in_cache(cache: Path, name: str, model: Path, monkeypatch: Any) -> Path:
    """Put a model into a cache as the hub's library lays it out."""
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    folder = cache / f"models--{name.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs/main").write_text("a" * 40)
    return Path(shutil.copytree(model, folder / "snapshots" / ("a" * 40)))
