"""Which tensor goes into which file, and which tensors are worked on together."""

from collections.abc import Callable, Iterable, Iterator

import torch

from mooring.merge.inputs import Target

Shards = dict[str, list[tuple[str, torch.dtype, tuple[int, ...]]]]
"""File name to (name, dtype, shape) of its tensors, in the order of their bytes."""

WINDOW = 256 * 2**20
"""Bytes of the base whose passes are done together: little enough that the next pass finds them in the page cache."""

_TENSORS_IN_A_WINDOW = 64


def lay_out(targets: Iterable[Target], dtype: Callable[[Target], torch.dtype], most: int | None) -> Shards:
    """The files of an output: the base's own, or filled up in order to a size.

    Args:
        targets: The tensors, in the base's order.
        dtype: The type of each in the output.
        most: Bytes of a file at most, a tensor larger than that aside; the base's files where it is None.
    """
    targets = list(targets)
    if most is None:
        shards: Shards = {}
        for target in targets:
            shards.setdefault(target.file, []).append((target.name, dtype(target), target.shape))
        return shards
    groups: list[list[tuple[str, torch.dtype, tuple[int, ...]]]] = [[]]
    size = 0
    for target in targets:
        kind = dtype(target)
        nbytes = target.numel * kind.itemsize
        if groups[-1] and size + nbytes > most:
            groups.append([])
            size = 0
        groups[-1].append((target.name, kind, target.shape))
        size += nbytes
    if len(groups) == 1:
        return {"model.safetensors": groups[0]}
    return {f"model-{n:05}-of-{len(groups):05}.safetensors": group for n, group in enumerate(groups, 1)}


def windows(targets: Iterable[Target], *, whole: bool) -> Iterator[list[Target]]:
    """Groups of tensors, in order; all in one where no second pass will come."""
    group: list[Target] = []
    size = 0
    for target in targets:
        group.append(target)
        size += target.numel * target.dtype.itemsize
        if not whole and (size >= WINDOW or len(group) >= _TENSORS_IN_A_WINDOW):
            yield group
            group, size = [], 0
    if group:
        yield group
