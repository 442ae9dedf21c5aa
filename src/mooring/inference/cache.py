"""A key-value cache that grows in steps and can lose rows; `DynamicCache` of transformers copies it for each token."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

from mooring.models.classes import text_config

MIN_GROWTH = 64
"""Minimum number of positions that are allocated at a time."""
COLUMN_POSITIONS = ("mpt", "gpt_neo")
"""Model types that derive a token's distance from its column in the cache, including masked columns."""


class GrowingLayer(DynamicLayer):  # type: ignore[misc]
    """A layer of full attention; `keys` and `values` are views of the filled part of larger buffers."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append keys and values, each of shape (rows, heads, new positions, head size); return all of them."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.buffers: tuple[Tensor, Tensor] | None = None
        filled = self.get_seq_length()
        size = filled + key_states.shape[-2]
        if self.buffers is None or self.buffers[0].shape[-2] < size:
            capacity = size + max(MIN_GROWTH, size // 2)
            grown = tuple(s.new_empty((*s.shape[:-2], capacity, s.shape[-1])) for s in (key_states, value_states))
            if filled:
                grown[0][..., :filled, :] = self.keys
                grown[1][..., :filled, :] = self.values
            self.buffers = (grown[0], grown[1])
        self.buffers[0][..., filled:size, :] = key_states
        self.buffers[1][..., filled:size, :] = value_states
        self._set_views(size)
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep only these rows."""
        if self.is_initialized and self.buffers is not None:
            filled = self.get_seq_length()
            self.buffers = (self.buffers[0][indices], self.buffers[1][indices])
            self._set_views(filled)

    def _set_views(self, filled: int) -> None:
        assert self.buffers is not None
        self.keys, self.values = self.buffers[0][..., :filled, :], self.buffers[1][..., :filled, :]


def make_cache(config: Any) -> Any:
    """An empty cache for a model: that of transformers, with its layers of full attention replaced."""
    cache = DynamicCache(config=config)
    cache.layers = [GrowingLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def supports_gaps(config: Any, cache: Any) -> bool:
    """Whether columns of a cache can be masked between others or moved: all layers keep all positions."""
    full = all(type(layer) is GrowingLayer for layer in cache.layers)
    return full and text_config(config).model_type not in COLUMN_POSITIONS


def can_drop_rows(cache: Any) -> bool:
    """Whether rows can be removed from a cache, which the states of recurrent layers do not support."""
    states = ("conv_states", "recurrent_states")
    return not any(hasattr(layer, name) for layer in cache.layers for name in states)


def join_caches(config: Any, caches: Sequence[Any], widths: Sequence[int], rows: Tensor | None = None) -> Any:
    """Concatenate the rows of caches of these widths, padded on the left; or take some rows of a single one."""
    joined, widest = make_cache(config), max(widths)
    for number, layer in enumerate(joined.layers):
        states = []
        for kind in ("keys", "values"):
            parts = [getattr(cache.layers[number], kind) for cache in caches]
            if rows is not None:
                states.append(parts[0][rows.to(parts[0].device)])
                continue
            parts = [torch.nn.functional.pad(p, (0, 0, widest - w, 0)) for p, w in zip(parts, widths, strict=True)]
            states.append(torch.cat(parts))
        layer.update(*states)
    return joined
