"""The architectures that can be written as GGUF: llama.cpp's name for each, and what its weights and metadata need."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mooring.errors import ModelError
from mooring.models.checkpoint import read_config
from mooring.models.classes import load_config

GgufType = Literal["q8_0", "f16", "bf16"]
"""How matrices are stored: 8 bits in blocks of 32 with a scale each, or 16 bits. Vectors stay in float32."""

Floats = np.ndarray[Any, np.dtype[np.float32]]


@dataclasses.dataclass(frozen=True, slots=True)
class Architecture:
    """How llama.cpp implements an architecture.

    Attributes:
        name: Its name in `gguf.MODEL_ARCH_NAMES`.
        adjacent_pairs: Whether its rotary embedding turns adjacent entries; transformers turns entry i with i + half,
            so the rows of queries and keys are interleaved.
        norm_shift: What is added to the weights of norms that transformers stores as an offset from one.
        activation: The activation functions that it computes, by the names of transformers.
        rope: The kinds of rotary scaling that it computes, besides none.
        sliding: Whether the metadata has the size of the sliding window.
        refusal: Returns why a configuration is not one that llama.cpp computes; empty if it is.
        more: Returns further metadata, without the architecture's prefix.
    """

    name: str
    adjacent_pairs: bool = False
    norm_shift: float = 0.0
    activation: tuple[str, ...] = ("silu", "swish")
    rope: tuple[str, ...] = ("linear", "yarn")
    sliding: bool = False
    refusal: Callable[[Any], str] = lambda config: ""
    more: Callable[[Any], Mapping[str, float | bool]] = lambda config: {}


_GELU = ("gelu_pytorch_tanh", "gelu_new", "gelu")


def _mixture(normalized: bool) -> Callable[[Any], str]:
    """llama.cpp's mixtures have experts in every layer, and fix whether the chosen experts' weights are normalized."""

    def refusal(config: Any) -> str:
        if getattr(config, "mlp_only_layers", None) or getattr(config, "decoder_sparse_step", 1) != 1:
            return "some of its layers have no experts"
        if bool(getattr(config, "norm_topk_prob", normalized)) != normalized:
            return f"norm_topk_prob is {not normalized}"
        return ""

    return refusal


def _every(step: int, what: str) -> Callable[[Any], str]:
    """llama.cpp fixes which layers attend to everything: every `step`-th."""

    def refusal(config: Any) -> str:
        types = getattr(config, "layer_types", None) or []
        regular = ["full_attention" if number % step == 0 else what for number in range(1, len(types) + 1)]
        return "" if list(types) == regular else f"its layers do not alternate with a period of {step}"

    return refusal


def _gemma2(config: Any) -> Mapping[str, float | bool]:
    caps = {"attn_logit_softcapping": config.attn_logit_softcapping}
    caps["final_logit_softcapping"] = config.final_logit_softcapping
    return {key: value for key, value in caps.items() if value}


def _gemma3(config: Any) -> Mapping[str, float | bool]:
    local = rope_of(config, "sliding_attention").get("rope_theta", 10000.0)
    return {"rope.freq_base_swa": float(local)}


def _granite(config: Any) -> Mapping[str, float | bool]:
    return {
        "attention.scale": float(config.attention_multiplier),
        "embedding_scale": float(config.embedding_multiplier),
        "residual_scale": float(config.residual_multiplier),
        "logit_scale": float(config.logits_scaling),
    }


def _phi3(config: Any) -> Mapping[str, float | bool]:
    rope = rope_of(config)
    if rope.get("rope_type") != "longrope":
        return {}
    original = int(rope.get("original_max_position_embeddings") or config.original_max_position_embeddings)
    scale = config.max_position_embeddings / original
    factor = rope.get("attention_factor")
    if factor is None:
        factor = math.sqrt(1 + math.log(scale) / math.log(original)) if scale > 1 else 1.0
    return {"rope.scaling.original_context_length": original, "rope.scaling.attn_factor": float(factor)}


def _smollm3(config: Any) -> str:
    regular = [int((layer + 1) % 4 != 0) for layer in range(config.num_hidden_layers)]
    given = getattr(config, "no_rope_layers", None)
    return "" if given is None or list(given) == regular else "its layers without rotary embedding are not every fourth"


_LLAMA = Architecture("llama", adjacent_pairs=True, rope=("linear", "yarn", "llama3"))
_GEMMA3 = Architecture(
    "gemma3",
    norm_shift=1.0,
    activation=_GELU[:1],
    rope=("linear",),
    sliding=True,
    refusal=_every(6, "sliding_attention"),
    more=_gemma3,
)

ARCHITECTURES: Mapping[str, Architecture] = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "mixtral": _LLAMA,
    "qwen2": Architecture("qwen2"),
    "qwen2_moe": Architecture("qwen2moe", refusal=_mixture(normalized=False)),
    "qwen3": Architecture("qwen3"),
    "qwen3_moe": Architecture("qwen3moe", refusal=_mixture(normalized=True)),
    "gemma": Architecture("gemma", norm_shift=1.0, activation=_GELU[:1]),
    "gemma2": Architecture(
        "gemma2",
        norm_shift=1.0,
        activation=_GELU[:1],
        sliding=True,
        refusal=_every(2, "sliding_attention"),
        more=_gemma2,
    ),
    "gemma3": _GEMMA3,
    "gemma3_text": _GEMMA3,
    "phi3": Architecture("phi3", rope=("longrope",), sliding=True, more=_phi3),
    "smollm3": Architecture("smollm3", adjacent_pairs=True, rope=("yarn",), refusal=_smollm3),
    "granite": Architecture("granite", adjacent_pairs=True, more=_granite),
    "olmo2": Architecture("olmo2"),
    "starcoder2": Architecture("starcoder2", activation=_GELU[:1]),
}
"""By the `model_type` of transformers. Each is compared with llama.cpp in tests/models/test_llama_cpp.py."""


def find(folder: Path) -> tuple[Architecture, Any]:
    """The architecture of a model folder, and transformers' configuration of its language model.

    Raises:
        ModelError: llama.cpp has another, or a narrower, implementation of it, or Mooring cannot write it.
    """
    kind = read_config(folder).get("model_type")
    known = ", ".join(dict.fromkeys(ARCHITECTURES))
    if not isinstance(kind, str) or kind not in ARCHITECTURES:
        what = f"{folder}: its architecture ({str(kind)[:60]!a}) cannot be written as GGUF"
        raise ModelError(what, f"known are {known}; else use llama.cpp's converter", code="model.gguf_architecture")
    config = load_config(folder).get_text_config()
    found = ARCHITECTURES[kind]
    if reason := _refusal(found, config):
        what = f"{folder}: llama.cpp computes {found.name} in another way: {reason}"
        raise ModelError(what, "use another engine for it", code="model.gguf_architecture")
    return found, config


def _refusal(found: Architecture, config: Any) -> str:
    activation = getattr(config, "hidden_activation", None) or config.hidden_act
    if activation not in found.activation:
        return f"its activation is {activation}"
    kind = rope_of(config).get("rope_type", "default")
    if kind not in ("default", *found.rope):
        return f"its rotary scaling is {kind}"
    return found.refusal(config)


def rope_of(config: Any, layers: str = "full_attention") -> Mapping[str, Any]:
    """The parameters of the rotary embedding, for a type of layers if they differ by it."""
    parameters = getattr(config, "rope_parameters", None) or {}
    nested = parameters.get(layers)
    return nested if isinstance(nested, Mapping) else parameters


def head_size(config: Any) -> int:
    """Entries of a head."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def metadata(found: Architecture, config: Any) -> dict[str, Any]:
    """The architecture's metadata, without its prefix: integers, floats and strings, as GGUF expects each."""
    rope, size = rope_of(config), head_size(config)
    heads = int(config.num_attention_heads)
    values: dict[str, Any] = {
        "vocab_size": int(config.vocab_size),
        "context_length": int(config.max_position_embeddings),
        "embedding_length": int(config.hidden_size),
        "block_count": int(config.num_hidden_layers),
        "feed_forward_length": int(config.intermediate_size),
        "attention.head_count": heads,
        "attention.head_count_kv": int(getattr(config, "num_key_value_heads", None) or heads),
        "attention.key_length": size,
        "attention.value_length": size,
        "rope.dimension_count": int(size * float(rope.get("partial_rotary_factor") or 1.0)),
        "rope.freq_base": float(rope.get("rope_theta", 10000.0)),
    }
    if (epsilon := getattr(config, "rms_norm_eps", None)) is not None:
        values["attention.layer_norm_rms_epsilon"] = float(epsilon)
    elif (epsilon := getattr(config, "norm_epsilon", None)) is not None:
        values["attention.layer_norm_epsilon"] = float(epsilon)
    if found.sliding and (window := getattr(config, "sliding_window", None)):
        values["attention.sliding_window"] = int(window)
    experts = getattr(config, "num_experts", None) or getattr(config, "num_local_experts", None)
    if experts:
        values["expert_count"] = int(experts)
        values["expert_used_count"] = int(config.num_experts_per_tok)
        for key, field in (
            ("expert_feed_forward_length", "moe_intermediate_size"),
            ("expert_shared_feed_forward_length", "shared_expert_intermediate_size"),
        ):
            if length := getattr(config, field, None):
                values[key] = int(length)
    kind = rope.get("rope_type", "default")
    if kind in ("linear", "yarn"):
        values["rope.scaling.type"] = kind
        values["rope.scaling.factor"] = float(rope["factor"])
    if kind == "yarn":
        original = rope.get("original_max_position_embeddings") or config.max_position_embeddings
        values["rope.scaling.original_context_length"] = int(original)
    return values | dict(found.more(config))


def extra_tensors(config: Any) -> dict[str, Floats]:
    """Factors of the rotary frequencies, which transformers computes from the configuration and llama.cpp reads."""
    rope = rope_of(config)
    kind = rope.get("rope_type", "default")
    if kind == "llama3":
        return {"rope_freqs.weight": _llama3_factors(rope, head_size(config))}
    if kind == "longrope":
        names = {"rope_factors_long.weight": "long_factor", "rope_factors_short.weight": "short_factor"}
        return {name: np.asarray(rope[key], dtype=np.float32) for name, key in names.items()}
    return {}


def _llama3_factors(rope: Mapping[str, Any], size: int) -> Floats:
    """What each frequency is divided by in Llama 3.1 (`_compute_llama3_parameters` of transformers)."""
    frequencies = float(rope["rope_theta"]) ** -(np.arange(0, size, 2, dtype=np.float64) / size)
    lengths = 2 * np.pi / frequencies
    low, high = float(rope["low_freq_factor"]), float(rope["high_freq_factor"])
    original, factor = float(rope["original_max_position_embeddings"]), float(rope["factor"])
    smooth = (original / lengths - low) / (high - low)
    between = 1 / ((1 - smooth) / factor + smooth)
    factors = np.where(lengths > original / low, factor, np.where(lengths < original / high, 1.0, between))
    return factors.astype(np.float32)
