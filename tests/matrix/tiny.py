"""A tiny random model of any architecture of transformers: every size that its configuration has, made small."""

import copy
import importlib.util
import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from mooring.errors import UserError
from mooring.models.classes import load_model, model_class
from mooring.quiet import quiet

VOCABULARY = 512
"""Tokens; more than the tests' tokenizer has."""
_LARGEST = 4_000_000
"""Parameters: a size that was not made small shows in a model larger than this."""

SIZES: tuple[tuple[str, int], ...] = (
    (r"vocab_size|n_vocab|vocab_size_per_layer_input|ngram_vocab_size.*", VOCABULARY),
    (r"(moe|expert|shared_expert|routed_expert)s?_?\w*(intermediate|ffn)\w*", 24),
    (r"\w*(intermediate_size|intermediate_dim|ffn_dim|n_inner|ffn_hidden_size|d_ff|mlp_hidden_size)\w*", 48),
    (r"linear_num_key_heads", 2),
    (r"linear_num_value_heads", 4),
    (r"(linear_|kda_|lightning_)?(key|value)?_?head_dim|kv_channels|attention_head_dim|d_head|d_kv|mamba_head_dim", 8),
    (r"linear_(key|value)_head_dim|index_head_dim|swa_head_dim|swa_v_head_dim|global_head_dim|head_size", 8),
    (r"mamba_d_head|mamba_headdim", 16),
    (r"rotary_dim|rope_dim", 8),
    (r"qk_rope_head_dim|qk_nope_head_dim|v_head_dim|qk_head_dim", 8),
    (r"q_lora_rank|kv_lora_rank|o_lora_rank|lora_rank", 16),
    (r"n_group|topk_group|n_groups|mamba_n_groups|mamba_ngroups|num_expert_group\w*", 1),
    (r"(num_|n_|moe_num_)?(local_|routed_)?experts|moe_num_experts|num_moe_experts|n_routed_experts", 4),
    (r"num_experts_per_tok\w*|moe_k|top_k_experts|experts_per_token|moe_topk|num_selects", 2),
    (r"(n_|num_|moe_num_)shared_experts?", 1),
    (r"first_k_dense_replace|moe_layer_start_index", 1),
    (r"state_size|mamba_d_state|ssm_state_size|d_state", 8),
    (r"time_step_rank|mamba_dt_rank", 4),
    (r"mamba_n_heads|mamba_num_heads|n_mamba_heads", 4),
    (r"(num_|n_)?(\w+_)?(key_value_heads|kv_heads|num_kv_heads|query_groups)|multi_query_group_num", 2),
    (r"(num_|n_)?(\w+_)?(attention_heads|heads|head)|num_heads", 4),
    (r"(num_|n_)?(\w+_)?(hidden_layers|layers|layer|blocks|depth)|depths?", 2),
    (r"max_position_embeddings|n_positions|n_ctx|max_seq_len|max_sequence_length|max_target_positions", 512),
    (r"max_source_positions|max_patch_position_embeddings", 64),
    (r"image_size|input_size|crop_size", 28),
    (r"patch_size", 14),
    (r"sliding_window\w*|attention_chunk_size|attention_window_size|local_window_size|chunk_size", 16),
    (r"mm_tokens_per_image|image_seq_length", 4),
    (r"(\w+_)?(hidden_size|d_model|n_embd|embed_dim|hidden_dim|embedding_size|embedding_dim|lru_width|width)", 32),
    (r"(\w+_)?(projection_dim|output_dim|out_hidden_size|projector_\w+_dim|proj_dim|vision_dim|dim)", 32),
)
"""Patterns of names of fields, the first of which counts, and their sizes."""
_KEPT = re.compile(r"(max_window|num_nextn|mtp)_\w+|\w*(kernel|temporal|merge|norm)\w*|num_channels|in_channels")
_TOKEN = re.compile(r"\w*(token_id|token_index|_id|_index)$")

VARIANTS: tuple[dict[str, Any], ...] = (
    {},
    {"num_key_value_heads": 4},
    {"num_hidden_layers": 4},
    {"head_dim": 16},
    {"num_hidden_layers": 6},
    {"num_key_value_heads": 4, "head_dim": 16},
    {"rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [1, 1, 2]}},
    {"attn_layer_indices": [1], "layers_block_type": ["mamba", "attention"], "layer_types": ["mamba", "attention"]},
    {"attention_types": [[["global", "local"], 1]]},
    {"num_key_value_heads": 4, "num_experts_per_tok": 2, "n_routed_experts": 4, "n_group": 1, "topk_group": 1},
    {"num_experts_per_tok": 1},
    {"num_kv_shared_layers": 0},
    {"sliding_window": 16},
    {"mamba_d_ssm": 64, "mamba_n_heads": 4, "mamba_d_head": 16},
    {"num_key_value_heads": 4, "qk_head_dim": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8},
    {"layer_types": ["conv", "full_attention"], "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0}},
)
"""What is changed further, in turn, until a model can be built."""


def tiny_model(kind: str) -> Any:
    """A model with random weights, in float32, that answers a text.

    Raises:
        Exception: No such model could be built; the exception is that of the first attempt.
    """
    first: Exception | None = None
    for variant in VARIANTS:
        try:
            return _checked(_build(kind, variant))
        except Exception as error:  # an architecture may fail in any way
            first = first or error
    assert first is not None
    raise first


def _build(kind: str, variant: Mapping[str, Any]) -> Any:
    from transformers import CONFIG_MAPPING

    with quiet("transformers"):
        config = CONFIG_MAPPING[kind](**_small(CONFIG_MAPPING[kind], variant))
        model_type, part = model_class(config)
        torch.manual_seed(0)
        with torch.device("meta"):
            size = sum(weight.numel() for weight in model_type(part).parameters())
        if size > _LARGEST:
            raise ValueError(f"its smallest configuration has {size:,} parameters")
        return model_type(part).float().eval()


def _checked(model: Any) -> Any:
    with torch.no_grad(), quiet("transformers"):
        logits = model(input_ids=IDS).logits
    if not torch.isfinite(logits).all() or logits.shape[-1] < VOCABULARY:
        raise ValueError(f"its logits are not finite, or too few: {list(logits.shape)}")
    with tempfile.TemporaryDirectory() as folder, quiet("transformers"):
        model.save_pretrained(folder)
        try:
            load_model(Path(folder))
        except UserError as error:
            raise ValueError(f"transformers does not read what it wrote: {error.code}") from None
    return model


IDS = torch.arange(40, 64).view(1, -1)
"""A text."""


def _small(kind: Any, variant: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a configuration with small sizes; only those that its class has by default."""
    default = kind()
    fields = default.to_dict()
    small: dict[str, Any] = {}
    token = 300
    for name, value in fields.items():
        sub = getattr(default, name, None) if name in kind.sub_configs else None
        if hasattr(sub, "to_dict"):
            small[name] = _small(type(sub), variant) | {"model_type": sub.model_type}
        elif name in variant:
            if name != "rope_parameters" or "vocab_size" in fields:  # not those of a vision tower
                small[name] = copy.deepcopy(variant[name])
        elif _TOKEN.fullmatch(name) and isinstance(value, int):
            token += 1
            small[name] = token if value > 3 else value
        elif isinstance(value, int) and not isinstance(value, bool) and not _KEPT.fullmatch(name):
            size = next((size for pattern, size in SIZES if re.fullmatch(pattern, name)), None)
            if size is not None:
                small[name] = size if value > 0 else value
    layers = next((small[key] for key in ("num_hidden_layers", "n_layer", "num_layers") if key in small), None)
    if layers and "layer_types" not in variant and isinstance(types := fields.get("layer_types"), list) and types:
        small["layer_types"] = _some(types, layers)
    for name in ("rope_scaling", "rope_parameters"):
        scaling = fields.get(name)
        if isinstance(scaling, dict) and "mrope_section" in scaling:
            small[name] = scaling | {"mrope_section": [1, 1, 2]}
    return small


def _some(types: list[Any], count: int) -> list[Any]:
    """Types of as many layers, all of the kinds that there are if they fit."""
    kinds = list(dict.fromkeys(types))
    return (kinds * count)[:count]


def build_tokenizer() -> Any:
    """The tests' tokenizer; several folders of tests have a `conftest`, so that it is named by its file."""
    file = Path(__file__).parents[1] / "conftest.py"
    spec = importlib.util.spec_from_file_location("conftest_of_all_tests", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.build_tokenizer()


def architectures() -> Iterator[str]:
    """The types of configuration for which transformers has a class that generates text."""
    from transformers import CONFIG_MAPPING
    from transformers.models.auto import modeling_auto

    names = modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES | modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    yield from sorted(name for name in names if name in CONFIG_MAPPING)
