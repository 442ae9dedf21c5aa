"""The decoding loop: from a batch of prompts to tokens, on any causal model of transformers.

Used in place of `model.generate` so that a resumed run gives the same bytes: a row's sampling does not depend on its
batch, the repetition penalty does not count padding, finished rows leave the batch, and the checkpoint's generation
config has no effect. It also runs a common prefix once and can continue drafts. `benchmarks/sweep_cost.py` compares
both: by hand (`model.generate`), this loop, and this loop with drafts.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from mooring.inference.cache import can_drop_rows, join_caches, make_cache, supports_gaps
from mooring.sampling import SamplingParams

MIN_PREFIX_SAVING = 256
"""Minimum number of tokens that running a common prefix once must save."""
MAX_LOGITS = 2**26
"""Maximum number of logits (rows × positions × vocabulary) that one forward pass should compute."""


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
    """Continue each row until a stop token or `max_tokens`.

    Args:
        model: A causal model in evaluation mode.
        rows: Tokens of the prompts.
        keys: Keys of the responses, which seed the sampling.
        params: How tokens are sampled.
        stops: Tokens that end a response.
        pad: Any token; padding is masked.
        ended: Whether a row's new tokens are complete, for example because they contain a stop string.

    Returns:
        New tokens of each row, including the stop token.
    """
    made: list[list[int]] = [[] for _ in rows]
    uniform = torch.stack([uniforms(params, key) for key in keys]).to(model.device) if params.temperature else None
    continue_batch(model, prepare(model, rows, pad), made, rows, params, stops, uniform=uniform, ended=ended)
    return made


def pad_left(rows: Sequence[Sequence[int]], pad: int, device: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, attention mask and positions of rows, each of shape (rows, longest), int64."""
    width = max(map(len, rows))
    ids = torch.tensor([[pad] * (width - len(row)) + list(row) for row in rows], device=device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
    return ids, mask, (mask.cumsum(1) - 1).clamp(min=0)


def uniforms(params: SamplingParams, key: str) -> Tensor:
    """One uniform number in [0, 1) per token, shape (max_tokens,), float64; a function of the seed and the key."""
    digest = hashlib.sha256(f"{params.seed}\0{key}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
    return torch.rand(params.max_tokens, generator=generator, dtype=torch.float64)


def apply_penalty(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """The repetition penalty of CTRL (Keskar et al. 2019, eq. 4), with the sign handled as in transformers and vLLM.

    `logits` and `seen`, the tokens of prompt and response so far, have shape (rows, vocabulary); 1 has no effect.
    """
    if penalty == 1:
        return logits
    return torch.where(seen, torch.where(logits < 0, logits * penalty, logits / penalty), logits)


def next_tokens(logits: Tensor, uniform: Tensor | None, temperature: float, top_p: float, top_k: int = 0) -> Tensor:
    """The next token of each row: the most likely one, or one sampled by inverting the cumulative distribution.

    Args:
        logits: (rows, vocabulary), float32.
        uniform: (rows,), float64, in [0, 1); unused at temperature 0.
        temperature: See `SamplingParams`, as the others.
        top_p: Applied after `top_k`.
        top_k: 0 means all.
    """
    if temperature == 0 or uniform is None:
        return logits.argmax(-1)
    probabilities = torch.softmax(logits.double() / temperature, -1)
    order = None
    if top_p < 1 or 0 < top_k < logits.shape[-1]:
        probabilities, order = probabilities.sort(dim=-1, descending=True, stable=True)
        if 0 < top_k < logits.shape[-1]:
            probabilities, order = probabilities[:, :top_k], order[:, :top_k]
            probabilities = probabilities / probabilities.sum(-1, keepdim=True)
        probabilities = torch.where(probabilities.cumsum(-1) - probabilities < top_p, probabilities, 0.0)
    cumulative = probabilities.cumsum(-1)
    index = torch.searchsorted(cumulative, uniform[:, None] * cumulative[:, -1:], right=True)
    last = (probabilities > 0).cumsum(-1).argmax(-1, keepdim=True)  # rounding must not select an excluded token
    index = torch.minimum(index, last)
    return (index if order is None else order.gather(-1, index)).squeeze(-1)


@dataclasses.dataclass
class Batch:
    """Rows that share a cache.

    Attributes:
        number: Index of each row among all prompts; shape (rows,), int64.
        tokens: The next input, padded on the left; shape (rows, new).
        positions: Positions of the input; shape (rows, new).
        mask: The columns of the cache, followed by those of `tokens`, that are not padding; shape (rows, cached + new).
        cache: Keys and values.
        seen: The tokens of prompt and response so far; shape (rows, vocabulary), bool. None without a penalty.
    """

    number: Tensor
    tokens: Tensor
    positions: Tensor
    mask: Tensor
    cache: Any
    seen: Tensor | None = None

    def select(self, rows: Tensor) -> None:
        """Keep only these rows."""
        self.cache.batch_select_indices(rows)
        for field in ("number", "tokens", "positions", "mask", "seen"):
            value = getattr(self, field)
            setattr(self, field, value if value is None else value[rows])

    def set_input(self, tokens: Tensor, mask: Tensor | None = None) -> None:
        """Set the next input, padded on the left; the mask defaults to no padding."""
        mask = torch.ones_like(tokens) if mask is None else mask
        self.positions = self.positions[:, -1:] + mask.cumsum(1)
        self.tokens, self.mask = tokens, torch.cat([self.mask, mask], 1)

    def forward(self, model: Any, keep: int = 1) -> Tensor:
        """Run the model on the input; logits of the last `keep` positions, shape (rows, keep, vocabulary)."""
        logits: Tensor = model(
            input_ids=self.tokens,
            attention_mask=self.mask,
            position_ids=self.positions,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=keep,
        ).logits
        return logits[:, -keep:]


def prepare(model: Any, rows: Sequence[Sequence[int]], pad: int, further: Sequence[Sequence[int]] = ()) -> Batch:
    """A batch with prompts as its input; a prefix common to all (template, system prompt) is run once.

    `further` are tokens that follow each prompt in the input.
    """
    cache, prefix = make_cache(model.config), common_prefix(rows)
    if supports_gaps(model.config, cache) and len(prefix) * (len(rows) - 1) >= MIN_PREFIX_SAVING:
        ids, mask, positions = pad_left([prefix], pad, model.device)
        first = Batch(torch.zeros(1, device=model.device), ids, positions, mask, cache)
        first.forward(model)
        cache = join_caches(model.config, [first.cache], [len(prefix)], torch.zeros(len(rows), dtype=torch.int64))
    else:
        prefix = []
    ends = [[*row[len(prefix) :], *more] for row, more in zip(rows, further or [()] * len(rows), strict=True)]
    ids, mask, positions = pad_left(ends, pad, model.device)
    mask = torch.cat([mask.new_ones(len(rows), len(prefix)), mask], 1)
    return Batch(torch.arange(len(rows), device=model.device), ids, positions + len(prefix), mask, cache)


def common_prefix(rows: Sequence[Sequence[int]]) -> list[int]:
    """The longest common prefix that leaves at least one token of each row."""
    low, high = min(map(list, rows)), max(map(list, rows))  # the prefix of the first and the last is that of all
    most = min(map(len, rows)) - 1
    size = next((i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), most)
    return list(low[: min(size, most)])


def seen_tokens(rows: Sequence[Sequence[int]], vocabulary: int, device: Any) -> Tensor:
    """The tokens that occur in each row: (rows, vocabulary), bool."""
    seen = torch.zeros(len(rows), vocabulary, dtype=torch.bool)
    for number, row in enumerate(rows):
        seen[number, list(row)] = True
    return seen.to(device)


def continue_batch(
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
    """Continue a batch until all rows have ended; extends `made`, the new tokens of all prompts so far, in place.

    `uniform` are numbers in [0, 1) for sampling, of shape (prompts, tokens); None is greedy.
    """
    # A finished row leaves the batch; if the cache does not support that, it stays and its tokens are ignored.
    stop_ids = torch.tensor(sorted(stops), device=model.device)
    active = torch.ones(len(batch.number), dtype=torch.bool, device=model.device)
    while True:
        logits = batch.forward(model)[:, -1].float()
        if params.repetition_penalty != 1:
            if batch.seen is None:
                texts = [[*prompts[row], *made[row]] for row in batch.number.tolist()]
                batch.seen = seen_tokens(texts, logits.shape[-1], logits.device)
            logits = apply_penalty(logits, batch.seen, params.repetition_penalty)
        numbers = batch.number.tolist()
        draw = None if uniform is None else uniform[batch.number, max(len(made[row]) for row in numbers)]
        tokens = next_tokens(logits, draw, params.temperature, params.top_p, params.top_k)
        for row, token, is_active in zip(numbers, tokens.tolist(), active.tolist(), strict=True):
            if is_active:
                made[row].append(token)
        going = active & ~torch.isin(tokens, stop_ids)
        going &= torch.tensor(
            [len(made[row]) < params.max_tokens and not (ended is not None and ended(made[row])) for row in numbers],
            device=going.device,
        )
        if not going.any():
            return
        if batch.seen is not None:
            batch.seen.scatter_(1, tokens[:, None], True)
        batch.set_input(tokens[:, None])
        if not going.all() and can_drop_rows(batch.cache):
            batch.select(going.nonzero()[:, 0])
            going = going[going]
        active = going
