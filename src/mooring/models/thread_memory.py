"""Memory that a thread reuses, since fresh memory costs more than the arithmetic done in it."""

import threading

import torch
from torch import Tensor

_own = threading.local()
_NOTHING = torch.empty(0, dtype=torch.uint8)


def scratch(slot: str, count: int, dtype: torch.dtype) -> Tensor:
    """Memory that a thread reuses under a name, flat and not initialized; the next call with the name overwrites it."""
    kept: dict[str, tuple[Tensor, Tensor]] = _own.__dict__
    memory, view = kept.get(slot, (_NOTHING, _NOTHING))
    if view.numel() == count and view.dtype == dtype:
        return view  # making another view would release the interpreter's lock for a moment
    size = count * dtype.itemsize
    if memory.numel() < size:
        memory = torch.empty(size, dtype=torch.uint8)
    kept[slot] = memory, memory[:size].view(dtype)
    return kept[slot][1]
