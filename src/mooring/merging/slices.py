"""Process tensors slice by slice, on a few threads, in bounded memory."""

import contextlib
import dataclasses
import itertools
import math
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from mooring.errors import ModelError
from mooring.models import Part, hash_part
from mooring.models import scratch as scratch


def same(base: Tensor, tuned: Tensor) -> bool:
    """Whether two flat slices are equal: byte by byte, or by value if their types differ."""
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
    if ours[:256].tobytes() != theirs[:256].tobytes():  # most changed slices differ at once
        return False
    whole = len(ours) // 8 * 8
    return (
        bool((ours[:whole].view("u8") == theirs[:whole].view("u8")).all())
        and ours[whole:].tobytes() == theirs[whole:].tobytes()
    )


_NONFINITE = {torch.float16: (0x7C00, 0xFC00), torch.bfloat16: (0x7F80, 0xFF80)}
_NONFINITE |= {torch.float32: (0x7F800000, 0xFF800000), torch.float64: (0x7FF << 52, 0xFFF << 52)}
_NONFINITE |= {torch.float8_e4m3fn: (0x7F, 0xFF), torch.float8_e5m2: (0x7C, 0xFC)}


def finite(values: Tensor) -> bool:
    """Whether there is no NaN and no Inf.

    In the bit pattern, Inf and NaN are the largest numbers of either sign, so two integer maxima suffice: several times
    faster than floating-point comparisons.
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
    """Raise for NaN and Inf.

    Raises:
        ModelError: There is one.
    """
    if not finite(values):
        hint = "the model is broken; fetch or train it again, or continue with --allow-nonfinite"
        raise ModelError(f"{where}: {name} holds NaN or Inf", hint, code="model.nonfinite")


SLICE = 2**20
"""Bytes of one input that a thread holds at a time: enough to read at the disk's speed, few enough for a cache."""

CELL = 2**17
"""Entries per cell of the grid for sums and random streams. It is part of what a seed means: never change it."""

R = TypeVar("R")


def cells(grid: int, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Parts of tensors of the same length, all split at the same grid."""
    return zip(*(tensor.split(grid) for tensor in tensors), strict=True)  # type: ignore[no-untyped-call]


def wide_type(tensors: Sequence[Tensor]) -> torch.dtype:
    """float32, or float64 if one tensor is that."""
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


def widened(slot: str, values: Tensor, kind: torch.dtype) -> Tensor:
    """A copy in a wider type, in the thread's scratch memory."""
    return scratch(slot, values.numel(), kind).copy_(values)


def divisor_of(weights: Sequence[float]) -> float:
    """The sum of weights, or 1 if it is close to zero, so that weights which cancel do not divide by zero."""
    total = math.fsum(weights)
    return total if abs(total) >= 1e-8 else 1.0


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Run torch's arithmetic on one thread: for small tensors or several workers, more threads would only wait."""
    own = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(own)


def concatenate(a: Any, b: Any) -> Any:
    """Join the arrays of two neighbouring parts."""
    return np.concatenate([a, b])


@dataclasses.dataclass(frozen=True, slots=True)
class Slice:
    """Elements [start, stop) of a flattened tensor."""

    name: str
    start: int
    stop: int


def cut(name: str, start: int, stop: int, size: int, cell: int = 1) -> Iterator[Slice]:
    """Slices of a tensor's entries [start, stop), each of at most `size` entries, or of one cell if that is larger.

    From `start`, every slice begins at a multiple of `cell`, so that sums over cells do not depend on slicing.
    """
    step = max(1, size // cell) * cell
    for first in range(start, stop, step):
        yield Slice(name, first, min(first + step, stop))


def hash_values(start: int, values: Tensor) -> Part:
    """The digest of a tensor's values from entry `start` on."""
    return hash_part(start * values.dtype.itemsize, values.reshape(-1).view(torch.uint8).numpy().data)


def default_threads() -> int:
    """The number of cores, up to 4."""
    return min(4, os.cpu_count() or 1)


def sweep(
    slices: Iterable[Slice], work: Callable[[Slice], R], threads: int | None = None, *, batch: int = 1
) -> Generator[tuple[Slice, R], None, None]:
    """Call a function on every slice, on worker threads, and yield every slice with its (small) result, in order.

    A worker takes `batch` slices at a time. The first exception of `work`, in that order, is raised here, and slices
    that were not started are dropped.
    """
    threads = threads or default_threads()
    own = torch.get_num_threads()
    pool = ThreadPoolExecutor(max_workers=threads, initializer=torch.set_num_threads, initargs=(1,))
    waiting: deque[tuple[list[Slice], Future[list[R]]]] = deque()
    source = iter(slices)
    try:
        while items := list(itertools.islice(source, batch)):
            waiting.append((items, pool.submit(lambda batch: list(map(work, batch)), items)))
            if len(waiting) >= 4 * threads:
                yield from _results(waiting)
        while waiting:
            yield from _results(waiting)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        torch.set_num_threads(own)  # the workers' setting would be the default of every later thread


def _results(waiting: "deque[tuple[list[Slice], Future[list[R]]]]") -> Iterator[tuple[Slice, R]]:
    items, future = waiting.popleft()
    return zip(items, future.result(), strict=True)
