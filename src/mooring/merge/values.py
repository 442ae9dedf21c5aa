"""Slices of tensors looked at by their bits: whether two are equal, whether one is finite."""

from pathlib import Path

import torch
from torch import Tensor

from mooring.errors import ModelError


def same(base: Tensor, tuned: Tensor) -> bool:
    """Whether two flat slices are equal: byte by byte, or by value where their types differ."""
    if base is tuned:
        return True
    if base.dtype != tuned.dtype:
        wider = (
            torch.promote_types(base.dtype, tuned.dtype)
            if base.dtype.itemsize > 1 < tuned.dtype.itemsize
            else torch.float64
        )
        return torch.equal(base.to(wider), tuned.to(wider))
    ours, theirs = base.view(torch.uint8).numpy(), tuned.view(torch.uint8).numpy()
    if ours[:256].tobytes() != theirs[:256].tobytes():  # what tuning changed mostly differs at once
        return False
    whole = len(ours) // 8 * 8
    return (
        bool((ours[:whole].view("u8") == theirs[:whole].view("u8")).all())
        and ours[whole:].tobytes() == theirs[whole:].tobytes()
    )


_NONFINITE = {torch.float16: (0x7C00, 0xFC00), torch.bfloat16: (0x7F80, 0xFF80)}
_NONFINITE |= {torch.float32: (0x7F800000, 0xFF800000), torch.float64: (0x7FF << 52, 0xFFF << 52)}


def finite(values: Tensor) -> bool:
    """Whether there is no NaN and no Inf.

    Read off the bit pattern: Inf and NaN are the largest of either sign, so two maxima of whole numbers tell, several
    times faster than floating-point comparisons.
    """
    if values.numel() == 0 or not values.dtype.is_floating_point:
        return True
    if values.dtype not in _NONFINITE:
        return bool(torch.isfinite(values.float()).all())
    positive, negative = _NONFINITE[values.dtype]
    raw = values.detach().reshape(-1).view(torch.uint8).numpy()
    size = values.dtype.itemsize
    return int(raw.view(f"i{size}").max()) < positive and int(raw.view(f"u{size}").max()) < negative


def check_finite(values: Tensor, where: Path, name: str) -> None:
    """Refuse NaN and Inf.

    Raises:
        ModelError: There is one.
    """
    if not finite(values):
        mend = "the model is broken; fetch or train it again, or go on with --allow-nonfinite"
        raise ModelError(f"{where}: {name} holds NaN or Inf", mend)
