"""Tiny random models of the architectures whose files are named and laid out in several ways."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

TEXT = {
    **{"vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 8},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128, "pad_token_id": 0},
}
"""Sizes of a language model."""
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
"""Sizes of a mixture of experts."""
GROUPED = {
    **{"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24},
    **{"n_group": 1, "topk_group": 1, "first_k_dense_replace": 1, "n_shared_experts": 1},
}
LATENT = {
    **{"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8},
    "num_key_value_heads": 4,
}
LINEAR = {
    **{"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8},
    "num_hidden_layers": 4,
}
VISION = {
    "depth": 1,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_heads": 2,
    "out_hidden_size": 32,
    "patch_size": 14,
}
TOWER = {
    **{"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2},
    **{"image_size": 28, "patch_size": 14},
}
QWEN_TOKENS = {"image_token_id": 90, "video_token_id": 91, "vision_start_token_id": 92, "vision_end_token_id": 93}
MROPE = {"rope_scaling": {"mrope_section": [1, 1, 2], "rope_type": "default"}}
INTERLEAVED = {"rope_scaling": MROPE["rope_scaling"] | {"mrope_interleaved": True}}


def _wrapper(name: str, text: dict[str, Any], vision: dict[str, Any], **fields: Any) -> Any:
    config = getattr(transformers, f"{name}Config")(text_config=text, vision_config=vision, **fields)
    return getattr(transformers, f"{name}ForConditionalGeneration")(config)


def _text(name: str, **fields: Any) -> Any:
    return getattr(transformers, f"{name}ForCausalLM")(getattr(transformers, f"{name}Config")(**(TEXT | fields)))


LLAMA4_TEXT = TEXT | {"num_local_experts": 2, "intermediate_size_mlp": 48, "interleave_moe_layer_step": 2}
LLAMA4_VISION = {
    **TOWER,
    **{"intermediate_size": 64, "vision_output_dim": 32, "projector_input_dim": 32, "projector_output_dim": 32},
}

BUILDERS: dict[str, Callable[[], Any]] = {
    "llama": lambda: _text("Llama"),
    "phi3": lambda: _text("Phi3"),
    "qwen3_moe": lambda: _text("Qwen3Moe", **EXPERTS, decoder_sparse_step=1, mlp_only_layers=[]),
    "qwen3_next": lambda: _text("Qwen3Next", **EXPERTS, **LINEAR, shared_expert_intermediate_size=24),
    "mixtral": lambda: _text("Mixtral", num_local_experts=4, num_experts_per_tok=2),
    "gpt_oss": lambda: _text("GptOss", num_local_experts=4, num_experts_per_tok=2, layer_types=["full_attention"] * 2),
    "deepseek_v3": lambda: _text("DeepseekV3", **GROUPED, **LATENT),
    "glm4_moe": lambda: _text("Glm4Moe", **GROUPED),
    "gemma3": lambda: _wrapper(
        "Gemma3",
        TEXT | {"model_type": "gemma3_text", "sliding_window": 16},
        TOWER,
        **{"mm_tokens_per_image": 4, "image_token_index": 90, "boi_token_index": 91, "eoi_token_index": 92},
    ),
    "mistral3": lambda: _wrapper(
        "Mistral3",
        TEXT | {"model_type": "mistral"},
        TOWER | {"model_type": "pixtral", "head_dim": 16},
        image_token_index=90,
    ),
    "qwen2_5_vl": lambda: _wrapper("Qwen2_5_VL", TEXT | MROPE, VISION | {"fullatt_block_indexes": [0]}, **QWEN_TOKENS),
    "qwen3_vl": lambda: _wrapper(
        "Qwen3VL",
        TEXT | INTERLEAVED,
        VISION | {"deepstack_visual_indexes": [0], "num_position_embeddings": 16},
        **QWEN_TOKENS,
    ),
    "qwen3_vl_moe": lambda: _wrapper(
        "Qwen3VLMoe",
        TEXT | EXPERTS | INTERLEAVED,
        VISION | {"deepstack_visual_indexes": [0], "num_position_embeddings": 16},
        **QWEN_TOKENS,
    ),
    "qwen3_5": lambda: _wrapper("Qwen3_5", TEXT | LINEAR, VISION | {"num_position_embeddings": 16}, **QWEN_TOKENS),
    "llama4": lambda: _wrapper("Llama4", LLAMA4_TEXT, LLAMA4_VISION, image_token_index=90),
}
"""Builders by name; `build` gives their models values."""

IDS = torch.arange(3, 33).view(1, -1) % 89
"""Tokens of a text, none of which stands for an image."""


def build(name: str, seed: int = 0) -> Any:
    """A model with random weights of a realistic size, in float32."""
    torch.manual_seed(seed)
    return randomized(BUILDERS[name](), seed)


def randomized(model: Any, seed: int = 0) -> Any:
    """A model with new random weights, in place."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            mean = 1.0 if "norm" in name and weight.dim() == 1 else 0.0
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.08 + mean)
    return model.eval()


def moved(model: Any, seed: int = 1, size: float = 0.02) -> Any:
    """A model after a small random change, in place: a full tune."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn(weight.shape, generator=generator) * size)
    return model.eval()


def save(model: Any, folder: Path, **options: Any) -> Path:
    """Save a model without a tokenizer; options as in `save_pretrained`."""
    model.save_pretrained(folder, **options)
    return folder
