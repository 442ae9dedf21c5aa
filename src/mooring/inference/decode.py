"""The decoding loop: prompts in, tokens out. One batch at a time, on any causal model of transformers.

Ours rather than `model.generate`: a checkpoint's own generation config cannot leak in, the repetition penalty does not
count padding as seen, a row's sampling does not depend on its batch, and rows that have ended leave the batch.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

from mooring.sampling import SamplingParams

# --- Room for keys and values that grows by half at a time, where transformers copies the ---


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


SHARED = 256
"""Least tokens that running a common beginning once must save."""


def pad_left(rows: Sequence[Sequence[int]], pad: int, device: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Token rows as tensors.

    Returns:
        Tokens, attention mask and positions, each of shape (rows, longest), int64.
    """
    width = max(map(len, rows))
    ids = torch.tensor([[pad] * (width - len(row)) + list(row) for row in rows], device=device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
    return ids, mask, (mask.cumsum(1) - 1).clamp(min=0)


def draws(params: SamplingParams, key: str) -> Tensor:
    """One uniform number in [0, 1) a token, float64, a function of the seed and the key of the answer."""
    digest = hashlib.sha256(f"{params.seed}\0{key}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
    return torch.rand(params.max_tokens, generator=generator, dtype=torch.float64)


def penalise(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """The repetition penalty of CTRL (Keskar et al. 2019, eq. 4), with the sign handled as transformers and vLLM do.

    Args:
        logits: (rows, vocabulary), float32.
        seen: (rows, vocabulary), bool: the tokens of prompt and response so far.
        penalty: 1 changes nothing.
    """
    if penalty == 1:
        return logits
    return torch.where(seen, torch.where(logits < 0, logits * penalty, logits / penalty), logits)


def choose(logits: Tensor, uniform: Tensor | None, temperature: float, top_p: float, top_k: int = 0) -> Tensor:
    """The next token of each row: the likeliest, or one drawn by inverting the cumulative distribution.

    Args:
        logits: (rows, vocabulary), float32.
        uniform: (rows,) float64 in [0, 1); not used where the temperature is 0.
        temperature: 0 is greedy.
        top_p: Draw from the fewest tokens that hold this much probability, of those that `top_k` leaves.
        top_k: Draw from so many of the likeliest tokens; 0 is all.

    Returns:
        (rows,) int64.
    """
    if temperature == 0 or uniform is None:
        return logits.argmax(-1)
    chances = torch.softmax(logits.double() / temperature, -1)
    order = None
    if top_p < 1 or 0 < top_k < logits.shape[-1]:
        chances, order = chances.sort(dim=-1, descending=True, stable=True)
        if 0 < top_k < logits.shape[-1]:
            chances, order = chances[:, :top_k], order[:, :top_k]
            chances = chances / chances.sum(-1, keepdim=True)
        chances = torch.where(chances.cumsum(-1) - chances < top_p, chances, 0.0)
    heap = chances.cumsum(-1)
    index = torch.searchsorted(heap, uniform[:, None] * heap[:, -1:], right=True)
    last = (chances > 0).cumsum(-1).argmax(-1, keepdim=True)  # rounding must not step past what may be drawn
    index = torch.minimum(index, last)
    return (index if order is None else order.gather(-1, index)).squeeze(-1)


@dataclasses.dataclass
class Batch:
    """Rows that share a cache.

    Attributes:
        number: Which of the rows asked each is; shape (rows,), int64.
        tokens: What is to be fed next, padded on the left; shape (rows, new).
        positions: Where these stand in their texts; likewise.
        mask: Which columns of the cache, and of `tokens` after them, are a row's own; shape (rows, cached + new).
        cache: Keys and values.
        seen: The tokens of prompt and response so far; shape (rows, vocabulary), bool. None where nobody asks.
    """

    number: Tensor
    tokens: Tensor
    positions: Tensor
    mask: Tensor
    cache: Any
    seen: Tensor | None = None

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows alone."""
        self.cache.batch_select_indices(rows)
        for field in ("number", "tokens", "positions", "mask", "seen"):
            value = getattr(self, field)
            setattr(self, field, value if value is None else value[rows])

    def feed(self, tokens: Tensor, mask: Tensor | None = None) -> None:
        """Line up the next tokens, padded on the left; `mask` says which are not padding, all where it is not given."""
        mask = torch.ones_like(tokens) if mask is None else mask
        self.positions = self.positions[:, -1:] + mask.cumsum(1)
        self.tokens, self.mask = tokens, torch.cat([self.mask, mask], 1)

    def forward(self, model: Any, keep: int = 1) -> Tensor:
        """Run the model on what is lined up; the logits of the last `keep` positions: (rows, keep, vocabulary)."""
        logits: Tensor = model(
            input_ids=self.tokens,
            attention_mask=self.mask,
            position_ids=self.positions,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=keep,
        ).logits
        return logits[:, -keep:]


def start(model: Any, rows: Sequence[Sequence[int]], pad: int, further: Sequence[Sequence[int]] = ()) -> Batch:
    """A batch of prompts, lined up.

    What all of them begin with (the template's head, the system prompt) is run once for all.

    Args:
        model: A causal model.
        rows: Prompt tokens.
        pad: Any token; what stands left of shorter rows is masked.
        further: Tokens to line up after each prompt.
    """
    cache, head = make_cache(model.config), shared(rows)
    if may_have_gaps(model.config, cache) and len(head) * (len(rows) - 1) >= SHARED:
        ids, mask, positions = pad_left([head], pad, model.device)
        first = Batch(torch.zeros(1, device=model.device), ids, positions, mask, cache)
        first.forward(model)
        cache = joined(model.config, [first.cache], [len(head)], torch.zeros(len(rows), dtype=torch.int64))
    else:
        head = []
    ends = [[*row[len(head) :], *more] for row, more in zip(rows, further or [()] * len(rows), strict=True)]
    ids, mask, positions = pad_left(ends, pad, model.device)
    mask = torch.cat([mask.new_ones(len(rows), len(head)), mask], 1)
    return Batch(torch.arange(len(rows), device=model.device), ids, positions + len(head), mask, cache)


def shared(rows: Sequence[Sequence[int]]) -> list[int]:
    """What all rows begin with; at least one token of each is not among it."""
    low, high = min(map(list, rows)), max(map(list, rows))  # whatever the first and the last in order share, all share
    most = min(map(len, rows)) - 1
    size = next((i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), most)
    return list(low[: min(size, most)])


def mark(rows: Sequence[Sequence[int]], vocabulary: int, device: Any) -> Tensor:
    """Which tokens occur in each row: (rows, vocabulary), bool."""
    seen = torch.zeros(len(rows), vocabulary, dtype=torch.bool)
    for number, row in enumerate(rows):
        seen[number, list(row)] = True
    return seen.to(device)


def finish(
    model: Any,
    batch: Batch,
    made: list[list[int]],
    prompts: Sequence[Sequence[int]],
    params: SamplingParams,
    stops: Collection[int],
    *,
    uniform: Tensor | None = None,
    ended: Callable[[Sequence[int]], bool] | None = None,
) -> None:
    """Go on with a batch until every row has ended; new tokens are added to `made`, the row's by its number.

    Args:
        model: A causal model.
        batch: Rows that have not ended, with something lined up.
        made: New tokens of every row so far.
        prompts: The prompts, by the same numbers.
        params: How tokens are drawn.
        stops: Tokens that end a response.
        uniform: As `choose` takes it, (rows asked, tokens); None for greedy.
        ended: As `decode` takes it.
    """
    # A row that has ended leaves the batch, or, where the cache cannot lose it, stays and is no longer listened to.
    enders = torch.tensor(sorted(stops), device=model.device)
    alive = torch.ones(len(batch.number), dtype=torch.bool, device=model.device)
    while True:
        logits = batch.forward(model)[:, -1].float()
        if params.repetition_penalty != 1:
            if batch.seen is None:
                texts = [[*prompts[row], *made[row]] for row in batch.number.tolist()]
                batch.seen = mark(texts, logits.shape[-1], logits.device)
            logits = penalise(logits, batch.seen, params.repetition_penalty)
        numbers = batch.number.tolist()
        drawn = None if uniform is None else uniform[batch.number, max(len(made[row]) for row in numbers)]
        fresh = choose(logits, drawn, params.temperature, params.top_p, params.top_k)
        for row, token, one in zip(numbers, fresh.tolist(), alive.tolist(), strict=True):
            if one:
                made[row].append(token)
        going = alive & ~torch.isin(fresh, enders)
        going &= torch.tensor(
            [len(made[row]) < params.max_tokens and not (ended is not None and ended(made[row])) for row in numbers],
            device=going.device,
        )
        if not going.any():
            return
        if batch.seen is not None:
            batch.seen.scatter_(1, fresh[:, None], True)
        batch.feed(fresh[:, None])
        if not going.all() and may_lose_rows(batch.cache):
            batch.keep(going.nonzero()[:, 0])
            going = going[going]
        alive = going


@torch.inference_mode()
def decode(
    model: Any,
    rows: Sequence[Sequence[int]],
    keys: Sequence[str],
    params: SamplingParams,
    stops: Collection[int],
    pad: int,
    ended: Callable[[Sequence[int]], bool] | None = None,
) -> list[list[int]]:
    """Continue each row until a stop token or the limit.

    Args:
        model: A causal model, in evaluation mode.
        rows: Prompt tokens.
        keys: Keys of the answers, which seed the sampling.
        params: How tokens are drawn.
        stops: Tokens that end a response.
        pad: Any token; what stands left of shorter rows is masked.
        ended: Whether the new tokens of a row are enough, such as where they spell a stop string.

    Returns:
        New tokens of each row, the stop token included.
    """
    made: list[list[int]] = [[] for _ in rows]
    uniform = torch.stack([draws(params, key) for key in keys]).to(model.device) if params.temperature else None
    finish(model, start(model, rows, pad), made, rows, params, stops, uniform=uniform, ended=ended)
    return made
