"""The data type that tuning computes in on this machine."""

from typing import Literal


def compute_dtype() -> Literal["bfloat16", "float32"]:
    """`bfloat16`, as in the paper, if the hardware has it: a GPU, or a CPU with native bfloat16. Otherwise `float32`.

    A CPU that emulates bfloat16 takes about a hundred times as long for a product as in float32.
    """
    import torch

    native = torch.cuda.is_available() or torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return "bfloat16" if native else "float32"
