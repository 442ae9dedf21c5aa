"""Tell by names and types that weights are quantized, where no configuration says so."""

from collections.abc import Mapping

import torch

from mooring.checkpoint.header import TensorInfo

_SCALES = ("qzeros", "scales", "SCB", "weight_scale", "weight_scale_inv", "weight_zero_point")
"""What GPTQ, AWQ, bitsandbytes, compressed-tensors and block-wise fp8 store beside a module's codes."""

_CODES = ("qweight", "weight_packed", "weight")

_NARROW = {torch.float8_e4m3fn, torch.float8_e5m2}


def betrayed(tensors: Mapping[str, TensorInfo]) -> TensorInfo | None:
    """The first tensor that shows that a model is quantized, if any: codes, or scales that lie beside codes.

    A name alone does not do: `weight_scale` may be a parameter, and whole numbers may be a buffer.
    """
    return next((info for info in tensors.values() if _shows(info, tensors)), None)


def _shows(info: TensorInfo, tensors: Mapping[str, TensorInfo]) -> bool:
    stem, dot, part = info.name.rpartition(".")
    if part in ("qweight", "weight_packed"):
        return _is_code(info)
    beside: list[str] = []
    if part in _SCALES:
        beside = [f"{stem}{dot}{code}" for code in _CODES]
    elif part == "absmax":  # bitsandbytes: `fc.weight.absmax` beside `fc.weight`
        beside = [stem]
    elif part.endswith("_scales"):  # MXFP4: `experts.up_proj_scales` beside `experts.up_proj_blocks`
        beside = [info.name.removesuffix("scales") + "blocks"]
    return any(name in tensors and _is_code(tensors[name]) for name in beside)


def _is_code(info: TensorInfo) -> bool:
    whole = not info.dtype.is_floating_point and not info.dtype.is_complex and info.dtype != torch.bool
    return whole or info.dtype in _NARROW
