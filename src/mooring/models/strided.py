"""Where the entries of stored tensors are in a model's parameters, if they were only rearranged.

Loading may stack tensors (a mixture's experts), concatenate them (queries, keys and values), transpose or interleave
them. Each of these moves entries without changing them, so that it is described by strides alone.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

_MOST_PIECES = 2**17
"""More than the experts of a layer times the heads of a vision tower; a rearrangement that needs more is not one."""


class NotStridedError(Exception):
    """A rearrangement that strides cannot describe, or an operation that changes values."""


@dataclasses.dataclass(frozen=True, slots=True)
class Place:
    """A part of a stored tensor, and the strided part of a parameter that holds the same entries.

    With an index i that runs over `counts`, `parameter[starts + i·steps]` equals the flattened stored tensor at
    `offset + Σ i·strides`; every attribute but the first has one number per axis of the parameter, or is one number.

    Attributes:
        parameter: The parameter's name in the model.
        starts: First index on each axis of the parameter.
        steps: Step on each axis.
        counts: How many indices on each axis.
        offset: First entry of the flattened stored tensor.
        strides: Distance of neighbours on each axis in the flattened stored tensor.
    """

    parameter: str
    starts: tuple[int, ...]
    steps: tuple[int, ...]
    counts: tuple[int, ...]
    offset: int
    strides: tuple[int, ...]

    @property
    def numel(self) -> int:
        """How many entries it holds."""
        return math.prod(self.counts)

    @property
    def rows(self) -> range:
        """The indices on the parameter's first axis; none if it is a scalar."""
        if not self.starts:
            return range(0)
        return range(self.starts[0], self.starts[0] + self.steps[0] * self.counts[0], self.steps[0])

    def of_parameter(self, parameter: Tensor) -> Tensor:
        """The part of the parameter, as a view of shape `counts`."""
        index = tuple(
            slice(start, start + step * (count - 1) + 1, step)
            for start, step, count in zip(self.starts, self.steps, self.counts, strict=True)
        )
        return parameter[index]

    def of_stored(self, stored: Tensor) -> Tensor:
        """The same part of the stored tensor, as a view of shape `counts`. The tensor has to be contiguous."""
        return stored.as_strided(self.counts, self.strides, stored.storage_offset() + self.offset)


@dataclasses.dataclass(frozen=True, slots=True)
class Segment:
    """Entries that two stored tensors have in common: for an index i, `ours[start + Σ i·a] = theirs[offset + Σ i·b]`.

    Attributes:
        source: The other tensor's name.
        start: First entry of our flattened tensor.
        offset: First entry of the other one.
        loops: (count, a, b) for each axis of i, by descending a.
    """

    source: str
    start: int
    offset: int
    loops: tuple[tuple[int, int, int], ...]

    @property
    def numel(self) -> int:
        """How many entries it has."""
        return math.prod(count for count, _, _ in self.loops)


def whole(parameter: str, shape: Sequence[int]) -> Place:
    """The place of a tensor that is a parameter as it is."""
    zeros, ones = (0,) * len(shape), (1,) * len(shape)
    strides = (0 if size == 1 else stride for size, stride in zip(shape, _strides(shape), strict=True))
    return Place(parameter, zeros, ones, tuple(shape), 0, tuple(strides))


def is_whole(place: Place, shape: Sequence[int]) -> bool:
    """Whether a place is that of a tensor of this shape which is a parameter as it is."""
    return place == whole(place.parameter, shape)


def common(ours: Place, theirs: Place, source: str) -> Segment | None:
    """The entries that two places have in common, if any; `source` names the tensor of the second one."""
    if ours.parameter != theirs.parameter or len(ours.counts) != len(theirs.counts):
        return None
    start, offset = ours.offset, theirs.offset
    loops = []
    for axis in range(len(ours.counts)):
        found = _progression(
            (ours.starts[axis], ours.steps[axis], ours.counts[axis]),
            (theirs.starts[axis], theirs.steps[axis], theirs.counts[axis]),
        )
        if found is None:
            return None
        first, step, count = found
        start += (first - ours.starts[axis]) // ours.steps[axis] * ours.strides[axis]
        offset += (first - theirs.starts[axis]) // theirs.steps[axis] * theirs.strides[axis]
        a, b = step // ours.steps[axis] * ours.strides[axis], step // theirs.steps[axis] * theirs.strides[axis]
        loops.append((count, a, b))
    return Segment(source, start, offset, joined(loops))


def _progression(a: tuple[int, int, int], b: tuple[int, int, int]) -> tuple[int, int, int] | None:
    """What two arithmetic progressions (first, step, count) have in common."""
    step = math.lcm(a[1], b[1])
    shared = math.gcd(a[1], b[1])
    if (b[0] - a[0]) % shared:
        return None
    # the smallest number that is in both, by the Chinese remainder theorem
    times = ((b[0] - a[0]) // shared * pow(a[1] // shared, -1, b[1] // shared)) % (b[1] // shared)
    first = a[0] + a[1] * times
    low = max(a[0], b[0])
    first += -(-(low - first) // step) * step
    last = min(a[0] + a[1] * (a[2] - 1), b[0] + b[1] * (b[2] - 1))
    return None if first > last else (first, step, (last - first) // step + 1)


def joined(loops: Iterable[tuple[int, int, int]]) -> tuple[tuple[int, int, int], ...]:
    """Loops by descending first stride, with those joined that run through both tensors without a gap."""
    result: list[tuple[int, int, int]] = []
    for count, a, b in sorted((loop for loop in loops if loop[0] != 1), key=lambda loop: (-loop[1], -loop[2])):
        if result and result[-1][1] == count * a and result[-1][2] == count * b:
            result[-1] = (result[-1][0] * count, a, b)
        else:
            result.append((count, a, b))
    return tuple(result)


# --- Following operations ---


@dataclasses.dataclass(frozen=True, slots=True)
class _Piece:
    """A part of a tensor that is being rearranged, and where it comes from, both flattened.

    Attributes:
        source: The stored tensor.
        start: First entry in the tensor that is being rearranged.
        offset: First entry in the stored one.
        loops: (count, step in the former, step in the latter).
    """

    source: str
    start: int
    offset: int
    loops: tuple[tuple[int, int, int], ...]


class Traced(torch.Tensor):
    """A tensor without values that remembers where its entries come from, through everything that only moves them."""

    pieces: tuple[_Piece, ...]

    @classmethod
    def stored(cls, source: str, shape: Sequence[int], dtype: torch.dtype) -> "Traced":
        """A stored tensor."""
        count = math.prod(shape)
        return _traced(torch.empty(shape, dtype=dtype, device="meta"), [_Piece(source, 0, 0, ((count, 1, 1),))])

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        """Do what an operation does to the shape, and follow the entries if it is one that moves them only."""
        with torch._C.DisableTorchFunctionSubclass():
            result = func(*args, **(kwargs or {}))
        follow = _FOLLOWED.get(getattr(func, "__name__", ""))
        return follow(result, *args, **(kwargs or {})) if follow else result

    def places(self, parameter: str) -> dict[str, list[Place]]:
        """The places of the stored tensors in the parameter that this tensor has become."""
        found: dict[str, list[Place]] = {}
        for piece in self.pieces:
            for source, place in _as_places(piece, parameter, tuple(self.shape)):
                found.setdefault(source, []).append(place)
        return found

    def origins(self, name: str, shapes: Mapping[str, tuple[int, ...]]) -> list[Place]:
        """The same the other way round: the places of this tensor in the parameters that it was made of.

        `name` is its own name, and `shapes` has those of the parameters.
        """
        inverted = (
            (piece.source, _Piece(name, piece.offset, piece.start, tuple((n, b, a) for n, a, b in piece.loops)))
            for piece in self.pieces
        )
        return [place for source, piece in inverted for _, place in _as_places(piece, source, shapes[source])]


def _traced(values: Tensor, pieces: Iterable[_Piece]) -> Traced:
    result = torch.Tensor._make_subclass(Traced, torch.empty(values.shape, dtype=values.dtype, device="meta"))
    result.pieces = tuple(pieces)
    if len(result.pieces) > _MOST_PIECES:
        raise NotStridedError("it has too many parts")
    return result


def _pieces(values: Tensor) -> tuple[_Piece, ...]:
    if not isinstance(values, Traced):
        raise NotStridedError("it mixes stored tensors with other values")
    return values.pieces


def _strides(shape: Sequence[int]) -> tuple[int, ...]:
    """Of a contiguous tensor."""
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


@dataclasses.dataclass(frozen=True, slots=True)
class _Box:
    """A piece by axes: its first index on each, and (count, axis, step, step in the stored tensor) of its loops."""

    source: str
    first: tuple[int, ...]
    offset: int
    loops: tuple[tuple[int, int, int, int], ...]

    def extent(self, axis: int) -> int:
        """The largest index on an axis."""
        return self.first[axis] + sum((count - 1) * step for count, on, step, _ in self.loops if on == axis)

    def flat(self, shape: Sequence[int]) -> _Piece:
        """The piece in a tensor of this shape."""
        strides = _strides(shape)
        start = sum(index * stride for index, stride in zip(self.first, strides, strict=True))
        loops = tuple((count, step * strides[axis], stored) for count, axis, step, stored in self.loops)
        return _Piece(self.source, start, self.offset, loops)


def _box(piece: _Piece, shape: Sequence[int]) -> _Box:
    """A piece of a tensor of this shape by axes; loops that run over several axes are split."""
    strides = _strides(shape)
    first = tuple(piece.start // stride % size for stride, size in zip(strides, shape, strict=True))
    loops: list[tuple[int, int, int, int]] = []
    todo = [loop for loop in piece.loops if loop[0] != 1]
    while todo:
        count, step, stored = todo.pop()
        axis = next((k for k, stride in enumerate(strides) if stride <= step < stride * shape[k]), None)
        if axis is None or step % strides[axis]:
            raise NotStridedError("its parts do not follow the axes")
        inside = step // strides[axis]
        per = shape[axis] // inside if shape[axis] % inside == 0 else shape[axis]
        if (count - 1) * inside < shape[axis]:
            loops.append((count, axis, inside, stored))
        elif count % per == 0:
            loops.append((per, axis, inside, stored))
            todo.append((count // per, step * per, stored * per))
        else:
            raise NotStridedError("its parts do not follow the axes")
    box = _Box(piece.source, first, piece.offset, tuple(loops))
    if any(box.extent(axis) >= size for axis, size in enumerate(shape)):
        raise NotStridedError("its parts do not follow the axes")
    return box


def _cut(box: _Box, axis: int, low: int, high: int) -> Iterator[_Box]:
    """The parts of a box with an index from `low` to `high` (excluded) on an axis."""
    if box.first[axis] >= high or box.extent(axis) < low:
        return
    if box.first[axis] >= low and box.extent(axis) < high:
        yield box
        return
    outer = max((loop for loop in box.loops if loop[1] == axis), key=lambda loop: loop[2])
    others = tuple(loop for loop in box.loops if loop is not outer)
    count, _, step, stored = outer
    inner = dataclasses.replace(box, loops=others)
    width = inner.extent(axis) - box.first[axis]
    # those that are inside as a whole stay together
    lowest = max(0, -(-(low - box.first[axis]) // step))
    highest = min(count - 1, (high - 1 - width - box.first[axis]) // step)
    for number in range(count):
        if lowest < number <= highest:
            continue
        moved = (*box.first[:axis], box.first[axis] + number * step, *box.first[axis + 1 :])
        part = dataclasses.replace(inner, first=moved, offset=box.offset + number * stored)
        if number == lowest and lowest <= highest:
            together = (*others, (highest - lowest + 1, axis, step, stored))
            yield dataclasses.replace(part, loops=together)
        elif part.extent(axis) >= low and moved[axis] < high:
            yield from _cut(part, axis, low, high)


def _as_places(piece: _Piece, parameter: str, shape: Sequence[int]) -> Iterator[tuple[str, Place]]:
    """A piece of a parameter as places: boxes with one loop per axis."""
    todo = [_box(piece, shape)]
    made = 0
    while todo:
        box = todo.pop()
        by_axis: dict[int, list[tuple[int, int, int, int]]] = {}
        for loop in box.loops:
            by_axis.setdefault(loop[1], []).append(loop)
        crowded = next((loops for loops in by_axis.values() if len(loops) > 1), None)
        if crowded:
            made += 1
            if made > _MOST_PIECES:
                raise NotStridedError("it has too many parts")
            unrolled = min(crowded)
            count, axis, step, stored = unrolled
            others = tuple(loop for loop in box.loops if loop is not unrolled)
            for number in range(count):
                moved = (*box.first[:axis], box.first[axis] + number * step, *box.first[axis + 1 :])
                todo.append(_Box(box.source, moved, box.offset + number * stored, others))
            continue
        found = {axis: loops[0] for axis, loops in by_axis.items()}
        axes = range(len(shape))
        yield (
            box.source,
            Place(
                parameter,
                box.first,
                tuple(found[axis][2] if axis in found else 1 for axis in axes),
                tuple(found[axis][0] if axis in found else 1 for axis in axes),
                box.offset,
                tuple(found[axis][3] if axis in found else 0 for axis in axes),
            ),
        )


def _same_order(result: Tensor, values: Tensor, *_: object, **__: object) -> Tensor:
    """Operations that leave the order of the entries as it is, such as `reshape`."""
    return _traced(result, _pieces(values)) if isinstance(result, Tensor) else result


def _transposed(result: Tensor, values: Tensor, dim0: int, dim1: int) -> Tensor:
    axes = list(range(values.ndim))
    axes[dim0], axes[dim1] = axes[dim1], axes[dim0]
    return _permuted(result, values, axes)


def _permuted(result: Tensor, values: Tensor, *dims: Any) -> Tensor:
    axes = [axis % values.ndim for axis in (dims[0] if isinstance(dims[0], Sequence) else dims)]
    new = {old: k for k, old in enumerate(axes)}
    boxes = (_box(piece, tuple(values.shape)) for piece in _pieces(values))
    moved = (
        _Box(
            box.source,
            tuple(box.first[old] for old in axes),
            box.offset,
            tuple((count, new[axis], step, stored) for count, axis, step, stored in box.loops),
        )
        for box in boxes
    )
    return _traced(result, [box.flat(tuple(result.shape)) for box in moved])


def _catenated(result: Tensor, tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    dim %= result.ndim
    pieces, at = [], 0
    for values in tensors:
        shape = tuple(values.shape)
        for piece in _pieces(values):
            box = _box(piece, shape)
            moved = (*box.first[:dim], box.first[dim] + at, *box.first[dim + 1 :])
            pieces.append(dataclasses.replace(box, first=moved).flat(tuple(result.shape)))
        at += shape[dim]
    return _traced(result, pieces)


def _stacked(result: Tensor, tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    return _catenated(result, [values.unsqueeze(dim) for values in tensors], dim)


def _split(result: Sequence[Tensor], values: Tensor, _: object, dim: int = 0) -> tuple[Tensor, ...]:
    """`chunk` and `split`."""
    dim %= values.ndim
    parts, at = [], 0
    for part in result:
        parts.append(_narrowed(part, values, dim, at, part.shape[dim]))
        at += part.shape[dim]
    return tuple(parts)


def _narrowed(result: Tensor, values: Tensor, dim: int, start: int, length: int) -> Tensor:
    shape = (*values.shape[:dim], length, *values.shape[dim + 1 :])
    pieces = []
    for piece in _pieces(values):
        for box in _cut(_box(piece, tuple(values.shape)), dim, start, start + length):
            moved = (*box.first[:dim], box.first[dim] - start, *box.first[dim + 1 :])
            pieces.append(dataclasses.replace(box, first=moved).flat(shape))
    return _traced(result, pieces)


def _unbound(result: Sequence[Tensor], values: Tensor, dim: int = 0) -> tuple[Tensor, ...]:
    dim %= values.ndim
    return tuple(_narrowed(part, values, dim, number, 1) for number, part in enumerate(result))


def _indexed(result: Tensor, values: Tensor, index: object) -> Tensor:
    """Indexing by integers and slices of step 1."""
    dims = index if isinstance(index, tuple) else (index,)
    if not all(isinstance(part, int) or (isinstance(part, slice) and part.step in (None, 1)) for part in dims):
        return result if index is not Ellipsis else _same_order(result, values)
    for axis, part in enumerate(dims):
        size = values.shape[axis]
        low, high, _ = part.indices(size) if isinstance(part, slice) else (part % size, part % size + 1, 1)
        shape = (*values.shape[:axis], high - low, *values.shape[axis + 1 :])
        values = _narrowed(torch.empty(shape, device="meta"), values, axis, low, high - low)
    return _same_order(result, values)


_FOLLOWED: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(("reshape", "view", "flatten", "unflatten", "squeeze", "unsqueeze"), _same_order),
    **dict.fromkeys(("contiguous", "clone", "detach", "to"), _same_order),
    **dict.fromkeys(("transpose", "swapaxes"), _transposed),
    "permute": _permuted,
    **dict.fromkeys(("cat", "concat", "concatenate"), _catenated),
    "stack": _stacked,
    **dict.fromkeys(("chunk", "split"), _split),
    "narrow": _narrowed,
    "unbind": _unbound,
    "__getitem__": _indexed,
}
"""How the entries move in each operation that only moves them."""
