"""Go over tensors slice by slice, on a few threads, in bounded memory."""

import contextlib
import dataclasses
import itertools
import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from mooring.errors import ModelError
from mooring.models import TensorInfo

# --- Slices of tensors looked at by their bits: whether two are equal, whether one is finite ---


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
        hint = "the model is broken; fetch or train it again, or go on with --allow-nonfinite"
        raise ModelError(f"{where}: {name} holds NaN or Inf", hint)


SLICE = 2**20
"""Bytes of one input that a thread holds at a time: enough to read at the disk's speed, few enough for a cache."""

CELL = 2**17
"""Entries of the grid that sums, draws and digests hang on. It is part of what a seed means: never change it."""

R = TypeVar("R")

_own = threading.local()


def scratch(slot: str, count: int, dtype: torch.dtype) -> Tensor:
    """Memory that a thread keeps and uses again, since fresh memory costs more than the arithmetic done in it.

    Args:
        slot: Its use; what was got under the same name before is overwritten.
        count: Entries.
        dtype: Their type.
    """
    kept: dict[str, tuple[Tensor, Tensor]] = _own.__dict__
    memory, view = kept.get(slot, (_NOTHING, _NOTHING))
    if view.numel() == count and view.dtype == dtype:
        return view  # as it is: making even a view gives up the interpreter to the other threads for a moment
    size = count * dtype.itemsize
    if memory.numel() < size:
        memory = torch.empty(size, dtype=torch.uint8)
    kept[slot] = memory, memory[:size].view(dtype)
    return kept[slot][1]


_NOTHING = torch.empty(0, dtype=torch.uint8)


def cells(grid: int, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Tensors of one length, cut at a grid together."""
    return zip(*(tensor.split(grid) for tensor in tensors), strict=True)  # type: ignore[no-untyped-call]


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """torch's own arithmetic on one thread: for small tensors, or beside workers, more would wait for each other."""
    own = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(own)


def concatenate(a: Any, b: Any) -> Any:
    """Two neighbouring parts of what a pass found, end to end: numpy arrays."""
    return np.concatenate([a, b])


@dataclasses.dataclass(frozen=True, slots=True)
class Slice:
    """Elements [start, stop) of a flattened tensor."""

    name: str
    start: int
    stop: int


def cut(tensors: Iterable[TensorInfo], slice_bytes: int = SLICE, grid: int = 1) -> Iterator[Slice]:
    """Slices that cover the tensors, in their order. A tensor without elements gives none.

    Args:
        tensors: What to cover.
        slice_bytes: Bytes of a slice, at most, unless the grid is coarser.
        grid: Elements; every slice begins at a multiple of it, so that sums over its cells do not hang on the slices.
    """
    for info in tensors:
        step = max(1, slice_bytes // info.dtype.itemsize // grid) * grid
        for start in range(0, info.numel, step):
            yield Slice(info.name, start, min(start + step, info.numel))


def sweep(
    slices: Iterable[Slice], work: Callable[[Slice], R], threads: int | None = None, *, batch: int = 1
) -> Generator[tuple[Slice, R], None, None]:
    """Do some work on every slice.

    Args:
        slices: What to go over.
        work: Called on a worker thread; what it returns must be small.
        threads: How many workers; as many as cores, up to 4, where it is not given.
        batch: How many slices a worker takes at a time; more than one saves some waiting for each other.

    Yields:
        Every slice with its result, in the order of `slices`, whatever the threads.

    Raises:
        Exception: The first that `work` raises, in that order; slices not yet begun are dropped.
    """
    threads = threads or min(4, os.cpu_count() or 1)
    own = torch.get_num_threads()
    pool = ThreadPoolExecutor(max_workers=threads, initializer=torch.set_num_threads, initargs=(1,))
    waiting: deque[tuple[list[Slice], Future[list[R]]]] = deque()
    source = iter(slices)
    try:
        while items := list(itertools.islice(source, batch)):
            waiting.append((items, pool.submit(_work_on, work, items)))
            if len(waiting) >= 4 * threads:
                yield from _results(waiting)
        while waiting:
            yield from _results(waiting)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        torch.set_num_threads(own)  # the workers' setting would be the default of every later thread


def _work_on(work: Callable[[Slice], R], items: list[Slice]) -> list[R]:
    return [work(item) for item in items]


def _results(waiting: "deque[tuple[list[Slice], Future[list[R]]]]") -> Iterator[tuple[Slice, R]]:
    items, future = waiting.popleft()
    return zip(items, future.result(), strict=True)
