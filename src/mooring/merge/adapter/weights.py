"""The tensors of a merged LoRA adapter: what is written for each change."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from mooring.checkpoint import Adapter
from mooring.checkpoint.lora_parts import Change
from mooring.errors import MismatchError
from mooring.merge.adapter.shares import LEAVE_OUT, Inputs, Weights, holds_base
from mooring.merge.sweep import CELL


@dataclasses.dataclass(frozen=True, slots=True)
class Entry:
    """A tensor of the output.

    Attributes:
        key: Its name in the file.
        dtype: Its type.
        shape: Its shape.
        values: Gives its elements, from a position on, a part at a time.
    """

    key: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    values: Callable[[], Iterator[tuple[int, Tensor]]]


def entries(inputs: Inputs, weights: Weights, rank: int | None, dtype: torch.dtype | None) -> list[Entry]:
    """The tensors of the output.

    Args:
        inputs: The base and its adapters.
        weights: From `fractions`.
        rank: The rank to which the factors are stacked; None: the factors of the only adapter as they are.
        dtype: The type of all; without, A keeps its own, B is float32, and what was saved whole keeps its own.

    Raises:
        MismatchError: The adapters change a tensor in ways that one adapter cannot hold.
    """
    lora = {name.rpartition(".")[0] for name in inputs.names for _, _, c in inputs.changes(name) if c.a}
    found = []
    for name in inputs.names:
        known = inputs.changes(name)
        module, _, kind = name.rpartition(".")
        _check_saved(inputs, name, module in lora)
        if any(c.stored for _, _, c in known) and not holds_base(inputs, name):
            place = f"{module}.base_layer.{kind}" if module in lora else name
            found.append(_whole(inputs, name, f"base_model.model.{place}", weights[name], dtype))
        if rank is None:
            keys = [key for _, _, c in known for key in (c.a, c.b, c.shift) if key]
            found += [_copy(inputs.adapters[0], key, dtype) for key in keys]
        elif any(c.a for _, _, c in known):
            found += _stack(known, f"base_model.model.{module}", weights[name], rank, dtype)
        elif any(c.shift for _, _, c in known):
            found.append(_shift(known, f"base_model.model.{module}.lora_B.bias", weights[name], dtype))
    return found


def _check_saved(inputs: Inputs, name: str, lora: bool) -> None:
    """Refuse what was saved whole as a module's own by one adapter, and is changed otherwise by another.

    A base weight that another saved for the tensor that this one is tied to changes this one too.
    """
    known, source = inputs.changes(name), inputs.source(name)
    if not any(c.alone for _, _, c in known):
        return
    tied = {other for other in inputs.names if inputs.source(other) == source}
    shared = {i for other in tied for i, _, c in inputs.changes(other) if c.stored and not c.alone}
    if lora or any(c.stored and not c.alone for _, _, c in known) or shared - {i for i, _, c in known if c.alone}:
        raise MismatchError(f"{name} is saved whole by one adapter and changed otherwise by another", LEAVE_OUT)


def _copy(adapter: Adapter, key: str, dtype: torch.dtype | None) -> Entry:
    info = adapter.tensors[key]
    kind = dtype or info.dtype
    return Entry(key, kind, info.shape, lambda: iter([(0, adapter.read(key).to(kind))]))


def _stack(
    known: Sequence[tuple[int, Adapter, Change]],
    module: str,
    weights: Sequence[float],
    rank: int,
    dtype: torch.dtype | None,
) -> list[Entry]:
    """A: the adapters' A below each other; B: cᵢ·sᵢ·Bᵢ side by side; both padded with zeros to the rank."""
    pairs = [(i, adapter, change, change.a, change.b) for i, adapter, change in known if change.a and change.b]
    _, adapter, change, a, b = pairs[0]
    inputs, outputs = adapter.tensors[a].shape[1], adapter.tensors[b].shape[0]
    types = [m.tensors[key].dtype for _, m, _, *keys in pairs for key in keys[:1]]
    kind = dtype or functools.reduce(torch.promote_types, types)

    def left() -> Iterator[tuple[int, Tensor]]:
        out = torch.zeros(outputs, rank)
        at = 0
        for i, adapter, change, _, key in pairs:
            values = adapter.tensor(key).float() * (weights[i] * change.scale)
            out[:, at : at + values.shape[1]] = values
            at += values.shape[1]
        yield 0, out.to(dtype or torch.float32)

    def right() -> Iterator[tuple[int, Tensor]]:
        out = torch.zeros(rank, inputs, dtype=kind)
        at = 0
        for _, adapter, _, key, _ in pairs:
            values = adapter.tensor(key)
            out[at : at + values.shape[0]] = values
            at += values.shape[0]
        yield 0, out

    ends = ("lora_embedding_A", "lora_embedding_B") if change.embedding else ("lora_A.weight", "lora_B.weight")
    return [
        Entry(f"{module}.{ends[0]}", kind, (rank, inputs), right),
        Entry(f"{module}.{ends[1]}", dtype or torch.float32, (outputs, rank), left),
    ]


def _shift(
    known: Sequence[tuple[int, Adapter, Change]], key: str, weights: Sequence[float], dtype: torch.dtype | None
) -> Entry:
    """The bias of B: Σ cᵢ·sᵢ·biasᵢ."""
    parts = [(i, adapter, change, change.shift) for i, adapter, change in known if change.shift]
    _, first, _, shift = parts[0]

    def values() -> Iterator[tuple[int, Tensor]]:
        terms = [m.tensor(key).float() * (weights[i] * change.scale) for i, m, change, key in parts]
        yield 0, functools.reduce(torch.add, terms).to(dtype or torch.float32)

    return Entry(key, dtype or torch.float32, first.tensors[shift].shape, values)


def _whole(inputs: Inputs, name: str, key: str, weights: Sequence[float], dtype: torch.dtype | None) -> Entry:
    """A tensor that was saved whole: base + Σ cᵢ·(savedᵢ − base); rows that the base does not have, as they are."""
    saved = [(i, adapter, c.stored) for i, adapter, c in inputs.changes(name) if c.stored]
    _, first, stored = saved[0]
    info, source = first.tensors[stored], inputs.source(name)
    shared = min(info.numel, inputs.base.tensors[source].numel)
    kind = dtype or info.dtype
    if info.shape != inputs.base.tensors[source].shape and len(inputs.adapters) > 1:
        what = f"{name} has shape {list(info.shape)} in {first.folder}, where the base has another"
        raise MismatchError(f"{what}: rows of several adapters are not joined", LEAVE_OUT)
    used = tuple(weights[i] for i, _, _ in saved)

    def values() -> Iterator[tuple[int, Tensor]]:
        for start in range(0, shared, CELL):
            stop = min(start + CELL, shared)
            tuned = [adapter.read(at, start, stop) for _, adapter, at in saved]
            yield start, _mix(inputs.base.read(source, start, stop), tuned, used).to(kind)
        if shared < info.numel:
            yield shared, first.read(stored, shared).to(kind)

    return Entry(key, kind, info.shape, values)


def _mix(base: Tensor, tuned: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """base + Σ cᵢ·(tunedᵢ − base), in float32 or better; exact where one weight is 0 or 1."""
    kind = functools.reduce(torch.promote_types, (values.dtype for values in tuned), torch.float32)
    ground = base.to(torch.promote_types(kind, base.dtype))
    if len(tuned) == 1:
        return torch.lerp(ground, tuned[0].to(ground.dtype), weights[0])
    changes = ((values.to(ground.dtype) - ground) * weight for values, weight in zip(tuned, weights, strict=True))
    return functools.reduce(torch.add, changes) + ground
