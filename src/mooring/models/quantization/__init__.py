"""Quantized weights, read as the tensors that they stand for, a slice at a time. One file per format.

Each format says which stored tensors make one tensor, its shape, and how to compute some of its rows, bit for bit as
the format's own library does.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from mooring.models.quantization import awq, bitsandbytes, float4, float8, gptq, mxfp4, packed_int
from mooring.models.quantization.tensor import QuantizedTensor, Requantizable, Stored

__all__ = [
    "QuantizedTensor",
    "Requantizable",
    "Stored",
    "method_of",
    "quantized_tensors",
    "runtime_scales",
    "settings_of",
    "without_settings",
]

KEYS = ("quantization_config", "compression_config")
"""Where a `config.json` describes quantization."""


def settings_of(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """How a model is quantized, as its `config.json` says; None if it does not."""
    for place in (config, config.get("text_config")):
        for key in KEYS:
            if isinstance(place, dict) and (found := place.get(key)):
                return found if isinstance(found, dict) else {"quant_method": found}
    return None


def without_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """A `config.json` without what it says about quantization."""
    plain = {key: value for key, value in config.items() if key not in KEYS}
    if isinstance(text := plain.get("text_config"), dict):
        plain["text_config"] = {key: value for key, value in text.items() if key not in KEYS}
    return plain


def method_of(config: Mapping[str, Any]) -> str:
    """The name of a quantization method in a `config.json`, printable; empty if there is none."""
    method = (settings_of(config) or {}).get("quant_method")
    return method[:80] if isinstance(method, str) and method.isprintable() else ""


def quantized_tensors(stored: Stored, config: Mapping[str, Any]) -> dict[str, QuantizedTensor]:
    """The tensors that a model stores as codes and scales, by name.

    What is stored shows the format; only what it does not show (the bits of GPTQ) is taken from the configuration.

    Raises:
        ModelError: The parts of a tensor do not fit each other, or its format is not supported.
    """
    settings, method = settings_of(config) or {}, method_of(config)
    return {tensor.name: tensor for tensor in _find(stored, config, settings, method)}


def _find(
    stored: Stored, config: Mapping[str, Any], settings: Mapping[str, Any], method: str
) -> Iterator[QuantizedTensor]:
    yield from float8.find(stored, config, method)
    yield from float4.find(stored, config)
    yield from mxfp4.find(stored, config)
    yield from packed_int.find(stored, config)
    yield from bitsandbytes.find(stored, config)
    yield from awq.find(stored, settings) if method == "awq" else gptq.find(stored, settings)


def runtime_scales(stored: Stored) -> list[str]:
    """Stored scales of a quantized model's activations, which the model before quantization does not have."""
    return float8.beside_attention(stored.tensors)
