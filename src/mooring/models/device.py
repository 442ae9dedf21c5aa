"""Whether torch can use a device on this machine, and compute there in a type."""

from typing import Any

from mooring.errors import RecipeError

AUTO = "auto"
"""The device that is chosen by what this machine has."""


def check_device(device: str) -> None:
    """Check that a device exists here, before anything is loaded.

    Args:
        device: As torch names it, such as `cpu`, `cuda` or `cuda:1`; `auto` always exists.

    Raises:
        RecipeError: torch knows no such device, or cannot use it on this machine (`recipe.no_device`).
    """
    if device == AUTO:
        return
    import torch

    try:
        kind = torch.device(device).type
        if kind == "meta":
            raise RuntimeError("it holds no values")
        torch.empty(1, device=device)
    except Exception as error:  # each backend raises its own
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        what = f"device: torch cannot use {device!a} on this machine ({reason.rstrip('.')})"
        raise RecipeError(what, "leave `device` out, or set it to `cpu`", code="recipe.no_device") from None


def cpu_computes(dtype: str) -> bool:
    """Whether the CPU has instructions for `bfloat16` or `float16`.

    A CPU that emulates them takes about a hundred times as long for a product as in float32.
    """
    import torch

    operators: Any = torch.ops.mkldnn
    name = {"bfloat16": "_is_mkldnn_bf16_supported", "float16": "_is_mkldnn_fp16_supported"}[dtype]
    supported = getattr(operators, name, None)
    return bool(supported and supported())
