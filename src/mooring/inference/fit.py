"""Whether a model's weights fit into memory, found before they are loaded."""

from pathlib import Path

import torch

from mooring.errors import ModelError
from mooring.files import gibibytes
from mooring.inference.devices import memory_dtype
from mooring.inference.folder import Dtype, stored_dtype
from mooring.memory import total_memory
from mooring.models import Checkpoint, open_checkpoint

_FLOATS = {"float32": 4, "bfloat16": 2, "float16": 2}
"""Bytes of a weight by its type."""
_GPUS = (2, 4, 8)
"""Numbers of GPUs that are proposed."""


def weight_bytes(checkpoint: Checkpoint, dtype: Dtype = "auto") -> int:
    """Size of a model's weights in memory, in bytes.

    Args:
        checkpoint: The model.
        dtype: Type of the weights in memory; `auto` is the checkpoint's own.
    """
    if dtype == "auto":
        return checkpoint.nbytes
    return sum(
        info.nbytes // info.dtype.itemsize * (_FLOATS[dtype] if info.dtype.is_floating_point else info.dtype.itemsize)
        for info in checkpoint.tensors.values()
    )


def check_fits(folder: Path, dtype: Dtype, memory: int, *, gpus: int | None = None, share: float = 1.0) -> None:
    """Check that a model's weights fit; a folder that holds no whole model with ordinary weights is not checked.

    Args:
        folder: The model.
        dtype: Type of the weights in memory.
        memory: Bytes of this machine's memory, or of one GPU; 0 if that is not known.
        gpus: The number of GPUs that share the weights; None for the machine's memory.
        share: The share of the memory that may be used.

    Raises:
        ModelError: They do not (`model.too_large`); the hint says what would fit.
    """
    try:
        with open_checkpoint(folder) as checkpoint:
            if checkpoint.quantized:
                return
            size, halved = weight_bytes(checkpoint, dtype), weight_bytes(checkpoint, "bfloat16")
    except ModelError:  # broken, which its loader explains
        return
    room = memory * share
    if not memory or size <= room * (gpus or 1):
        return
    ways = []
    if halved <= room * (gpus or 1):
        ways.append("--dtype bfloat16")
    if gpus is not None and (count := next((n for n in _GPUS if n > gpus and size <= room * n), None)):
        ways.append(f"--tensor-parallel {count}")
    ways.append("a smaller model, or a server that runs it quantized (--engine openai)")
    what = "this machine" if gpus is None else "the GPU" if gpus == 1 else f"each of the {gpus} GPUs"
    has = f"{what} has {gibibytes(memory)}" + (f", of which {share:.0%} may be used" if share < 1 else "")
    problem = f"{folder}: its weights are {gibibytes(size)}, and {has}"
    raise ModelError(problem, f"use {', or '.join(ways)}", code="model.too_large")


def check_fits_cpu(folder: Path, dtype: Dtype, device: str) -> None:
    """Check that weights fit into this machine's memory, if they go there; see `check_fits`."""
    if device == "cpu" or (device == "auto" and not torch.cuda.is_available()):
        try:
            dtype = memory_dtype(dtype, stored_dtype(folder), "cpu")
        except ModelError:  # broken, which its loader explains
            return
        check_fits(folder, dtype, total_memory())
