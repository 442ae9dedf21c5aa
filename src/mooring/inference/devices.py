"""Where a model of transformers goes: the CPU, a GPU, or several that share it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from mooring.errors import ModelError
from mooring.files import gibibytes
from mooring.inference.folder import Dtype
from mooring.models.device import AUTO, check_device, cpu_computes

SHARE = 0.8
"""Share of a GPU's free memory up to which weights stay on it alone; the cache and logits need the rest."""

SEVERAL = "auto"
"""The device map of transformers that spreads a model over all GPUs."""


def choose_device(device: str, size: int, free: Sequence[int] | None = None) -> str:
    """The device for a model.

    Args:
        device: What the recipe says; anything but `auto` is taken as it is.
        size: Bytes of the weights in memory.
        free: Bytes that are free on each GPU; asked from torch if None.

    Returns:
        A torch device, or `SEVERAL` if the model leaves no room on the first GPU but fits on all of them together.

    Raises:
        ModelError: There are GPUs, but together they are too small (`model.too_large`).
        RecipeError: There is no such device on this machine (`recipe.no_device`).
    """
    if free is None:
        check_device(device)
    if device != AUTO:
        return device
    free = _free() if free is None else free
    if not free:
        return "cpu"
    if size <= (SHARE if len(free) > 1 else 1) * free[0]:
        return "cuda"
    if len(free) > 1 and size <= sum(free):
        return SEVERAL
    what = f"the weights take {gibibytes(size)}, and {len(free)} GPU(s) have {gibibytes(sum(free))} free"
    hint = "set `dtype: bfloat16` if it is wider, use more GPUs, or set `device: cpu`"
    raise ModelError(what, hint, code="model.too_large")


def memory_dtype(dtype: Dtype, stored: str | None, device: str) -> Dtype:
    """The type of a model's weights in memory.

    Args:
        dtype: What the recipe says; anything but `auto` is taken as it is.
        stored: Type of the stored weights, as torch names it; None if it is not known.
        device: Where the model goes, as from `choose_device`.

    Returns:
        `float32` for `auto`, if the weights are in 16 bits and the CPU would have to emulate their type.
    """
    if dtype == "auto" and device == "cpu" and stored in ("bfloat16", "float16") and not cpu_computes(stored):
        return "float32"
    return dtype


def put(model: Any, device: str) -> Any:
    """Move a model to a device; one that was loaded over several stays there."""
    return model if device == SEVERAL else model.to(device)


def load_options(device: str) -> dict[str, Any]:
    """What `from_pretrained` needs for a device: a model for several GPUs is never whole in one place."""
    return {"device_map": SEVERAL} if device == SEVERAL else {}


def weights_size(folder: Path, stored: str | None, dtype: str) -> int:
    """Bytes of a checkpoint's weights in memory.

    Args:
        folder: Where its files are.
        stored: Type of the stored weights by its configuration, as torch names it.
        dtype: Type in memory; `auto` is the stored one.
    """
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors")) or sum(
        file.stat().st_size for file in folder.glob("*.bin")
    )
    if dtype == "auto" or not stored:
        return size
    wanted, own = (int(getattr(torch, name, torch.float32).itemsize) for name in (dtype, stored))
    return size * wanted // own


def _free() -> list[int]:
    return [torch.cuda.mem_get_info(number)[0] for number in range(torch.cuda.device_count())]
