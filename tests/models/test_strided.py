"""What operations do to the entries of a tensor is followed exactly, for any chain of them."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mooring.models.strided import NotStridedError, Place, Traced, common, whole

OPERATIONS = ("transpose", "reshape", "interleave", "chunk", "stack", "cat", "split")


def apply(operation: str, values: list[Tensor]) -> list[Tensor]:
    """Apply an operation to a list of tensors of the same shape."""
    first = values[0]
    if operation == "transpose":
        return [each.transpose(0, -1).contiguous() for each in values]
    if operation == "reshape":
        return [each.reshape(-1, 2) if each.numel() % 2 == 0 else each for each in values]
    if operation == "interleave" and first.shape[0] % 2 == 0:
        half = (first.shape[0] // 2, 2, *first.shape[1:])
        return [each.reshape(half).transpose(0, 1).reshape(each.shape).contiguous() for each in values]
    if operation == "chunk" and first.shape[0] % 2 == 0:
        return [part.contiguous() for each in values for part in torch.chunk(each, 2, dim=0)]
    if operation == "split" and first.shape[-1] == 6:
        return [torch.cat(torch.split(each, [4, 2], dim=-1)[::-1], dim=-1) for each in values]
    if operation == "stack":
        return [torch.stack(values, dim=0)]
    if operation == "cat":
        return [torch.cat(values, dim=-1)]
    return values


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from([(4, 6), (2, 3, 4), (6,), (8, 2)]),
    st.lists(st.sampled_from(OPERATIONS), min_size=1, max_size=6),
    st.integers(1, 3),
)
def test_places_say_where_every_entry_went(shape: tuple[int, ...], chain: list[str], count: int) -> None:
    size = torch.Size(shape).numel()
    stored = {f"s{k}": torch.arange(size).view(shape) + k * size for k in range(count)}
    real = list(stored.values())
    traced: list[Any] = [Traced.stored(name, shape, torch.float32) for name in stored]
    for operation in chain:
        real = apply(operation, real)
        try:
            traced = apply(operation, traced)
        except NotStridedError:
            return  # a chain that strides do not describe; none of transformers' is one
    for values, trace in zip(real, traced, strict=True):
        assert tuple(trace.shape) == tuple(values.shape)
        covered = torch.full(values.shape, -1)
        try:
            found = trace.places("p")
        except NotStridedError:
            return
        for source, places in found.items():
            for place in places:
                place.of_parameter(covered).copy_(place.of_stored(stored[source]))
        assert torch.equal(covered, values)


def test_the_operations_of_transformers_are_followed() -> None:
    """The chains in its conversion mapping: experts, interleaved gates, rotary embeddings."""
    for chain in (["stack", "cat"], ["transpose", "stack", "cat"], ["interleave", "chunk"], ["interleave"], ["split"]):
        traced: list[Any] = [Traced.stored(name, (4, 6), torch.float32) for name in "ab"]
        for operation in chain:
            traced = apply(operation, traced)
        assert all(isinstance(each, Traced) and each.places("p") for each in traced)


def test_an_operation_that_changes_values_is_not_followed() -> None:
    traced = Traced.stored("a", (4, 6), torch.float32)
    assert not isinstance(traced * 2, Traced)
    with pytest.raises(NotStridedError):
        torch.cat([traced, traced * 2])


places = st.tuples(st.integers(0, 3), st.integers(1, 3), st.integers(1, 4))


@settings(max_examples=200, deadline=None)
@given(places, places, places, places)
def test_common_entries_of_two_places(a: Any, b: Any, c: Any, d: Any) -> None:
    parameter = torch.arange(400).view(20, 20)

    def place(rows: Any, columns: Any) -> tuple[Place, Tensor]:
        counts = (rows[2], columns[2])
        starts, steps = (rows[0], columns[0]), (rows[1], columns[1])
        made = Place("p", starts, steps, counts, 0, (counts[1], 1))
        return made, made.of_parameter(parameter).reshape(-1)

    (one, ours), (other, theirs) = place(a, b), place(c, d)
    segment = common(one, other, "other")
    both = {*ours.tolist()} & {*theirs.tolist()}
    if segment is None:
        assert not both
        return
    index = [(segment.start, segment.offset)]
    for count, x, y in segment.loops:
        index = [(i + n * x, j + n * y) for i, j in index for n in range(count)]
    assert {ours[i].item() for i, _ in index} == both
    assert all(ours[i] == theirs[j] for i, j in index)
    assert segment.numel == len(both)


def test_a_whole_parameter() -> None:
    values = torch.arange(6).view(2, 3)
    place = whole("p", (2, 3))
    assert torch.equal(place.of_parameter(values), values)
    assert torch.equal(place.of_stored(values), values)
