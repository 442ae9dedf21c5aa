"""The data type that tuning computes in on this machine."""

from typing import Literal

from mooring.models.device import cpu_computes


def compute_dtype() -> Literal["bfloat16", "float32"]:
    """`bfloat16`, as in the paper, on a GPU or a CPU with instructions for it; otherwise `float32`."""
    import torch

    return "bfloat16" if torch.cuda.is_available() or cpu_computes("bfloat16") else "float32"
