"""Room for keys and values that grows by half at a time, where transformers copies the whole cache for every token."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

ROOM = 64
"""Least positions to make room for."""


class RoomyLayer(DynamicLayer):  # type: ignore[misc]
    """A layer of full attention; `keys` and `values` are views of the part of the buffers that is filled."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **named: Any) -> tuple[Tensor, Tensor]:
        """Add keys and values, each of shape (rows, heads, new positions, size); return all so far."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.room: tuple[Tensor, Tensor] | None = None
        filled = self.get_seq_length()
        need = filled + key_states.shape[-2]
        if self.room is None or self.room[0].shape[-2] < need:
            more = need + max(ROOM, need // 2)
            fresh = tuple(s.new_empty((*s.shape[:-2], more, s.shape[-1])) for s in (key_states, value_states))
            if filled:
                fresh[0][..., :filled, :] = self.keys
                fresh[1][..., :filled, :] = self.values
            self.room = (fresh[0], fresh[1])
        self.room[0][..., filled:need, :] = key_states
        self.room[1][..., filled:need, :] = value_states
        self._show(need)
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep only these rows."""
        if self.is_initialized and self.room is not None:
            filled = self.get_seq_length()
            self.room = (self.room[0][indices], self.room[1][indices])
            self._show(filled)

    def _show(self, filled: int) -> None:
        assert self.room is not None
        self.keys, self.values = self.room[0][..., :filled, :], self.room[1][..., :filled, :]


def make_cache(config: Any) -> Any:
    """An empty cache for a model: transformers' own, its layers of full attention replaced."""
    cache = DynamicCache(config=config)
    cache.layers = [RoomyLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


COUNTS_COLUMNS = ("mpt", "gpt_neo")
"""Kinds of model that tell how far a token lies back by its column in the cache, masked ones counted."""


def holds_all(cache: Any) -> bool:
    """Whether every layer keeps all positions."""
    return all(type(layer) is RoomyLayer for layer in cache.layers)


def may_have_gaps(config: Any, cache: Any) -> bool:
    """Whether columns of a cache may be masked between others, or lie elsewhere than they were made."""
    return holds_all(cache) and config.get_text_config().model_type not in COUNTS_COLUMNS


def may_lose_rows(cache: Any) -> bool:
    """Whether rows can be taken out of a cache; not out of the states of recurrent layers."""
    states = ("conv_states", "recurrent_states")
    return not any(hasattr(layer, name) for layer in cache.layers for name in states)


def joined(config: Any, caches: Sequence[Any], widths: Sequence[int], rows: Tensor | None = None) -> Any:
    """Several caches as one, the rows of one below those of the other; the narrower ones are filled up on the left.

    Args:
        config: The model's.
        caches: Caches that hold all positions (`holds_all`).
        widths: The columns of each.
        rows: Of a single cache, the rows to take, as often as each is named.
    """
    made, widest = make_cache(config), max(widths)
    for number, layer in enumerate(made.layers):
        both = []
        for kind in ("keys", "values"):
            parts = [getattr(cache.layers[number], kind) for cache in caches]
            if rows is not None:
                both.append(parts[0][rows.to(parts[0].device)])
                continue
            parts = [torch.nn.functional.pad(p, (0, 0, widest - w, 0)) for p, w in zip(parts, widths, strict=True)]
            both.append(torch.cat(parts))
        layer.update(*both)
    return made
