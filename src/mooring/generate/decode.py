"""The decoding loop: prompts in, tokens out. One batch at a time, on any causal model of transformers.

Ours rather than `model.generate`: a checkpoint's own generation config cannot leak in, the repetition penalty does not
count padding as seen, a row's sampling does not depend on its batch, and rows that have ended leave the batch.
"""

import hashlib
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from mooring.generate.cache import make_cache
from mooring.generate.engine import Settings


def pad_left(rows: Sequence[Sequence[int]], pad: int, device: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Token rows as tensors.

    Returns:
        Tokens, attention mask and positions, each of shape (rows, longest), int64.
    """
    width = max(map(len, rows))
    ids = torch.tensor([[pad] * (width - len(row)) + list(row) for row in rows], device=device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
    return ids, mask, (mask.cumsum(1) - 1).clamp(min=0)


def draws(settings: Settings, key: str) -> Tensor:
    """One uniform number in [0, 1) a token, float64, a function of the seed and the key of the answer."""
    digest = hashlib.sha256(f"{settings.seed}\0{key}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
    return torch.rand(settings.max_new_tokens, generator=generator, dtype=torch.float64)


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


@torch.inference_mode()
def decode(
    model: Any,
    rows: Sequence[Sequence[int]],
    keys: Sequence[str],
    settings: Settings,
    stops: Collection[int],
    pad: int,
    ended: Callable[[Sequence[int]], bool] | None = None,
) -> list[list[int]]:
    """Continue each row until a stop token or the limit.

    Args:
        model: A causal model, in evaluation mode.
        rows: Prompt tokens.
        keys: Keys of the answers, which seed the sampling.
        settings: How tokens are drawn.
        stops: Tokens that end a response.
        pad: Any token; what stands left of shorter rows is masked.
        ended: Whether the new tokens of a row are enough, such as where they spell a stop string.

    Returns:
        New tokens of each row, the stop token included.
    """
    tokens, mask, positions = pad_left(rows, pad, model.device)
    cache = make_cache(model.config)
    enders = torch.tensor(sorted(stops), device=model.device)
    uniform = torch.stack([draws(settings, key) for key in keys]).to(model.device) if settings.temperature else None
    alive = torch.arange(len(rows), device=model.device)  # the row of `made` that each row of the batch stands for
    made: list[list[int]] = [[] for _ in rows]
    seen: Tensor | None = None
    for step in range(settings.max_new_tokens):
        logits = (
            model(
                input_ids=tokens,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
            .logits[:, -1]
            .float()
        )
        if settings.repetition_penalty != 1:
            if seen is None:
                seen = torch.zeros_like(logits, dtype=torch.bool)
                where = mask.nonzero(as_tuple=True)
                seen[where[0], tokens[where]] = True
            logits = penalise(logits, seen, settings.repetition_penalty)
        fresh = choose(
            logits,
            None if uniform is None else uniform[alive, step],
            settings.temperature,
            settings.top_p,
            settings.top_k,
        )
        for row, token in zip(alive.tolist(), fresh.tolist(), strict=True):
            made[row].append(token)
        going = ~torch.isin(fresh, enders)
        if ended is not None:
            going &= torch.tensor([not ended(made[row]) for row in alive.tolist()], device=going.device)
        if not going.any():
            break
        if seen is not None:
            seen.scatter_(1, fresh[:, None], True)
        tokens, positions = fresh[:, None], positions[:, -1:] + 1
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
        if not going.all():
            keep = going.nonzero()[:, 0]
            cache.batch_select_indices(keep)
            alive, tokens, positions, mask = alive[keep], tokens[keep], positions[keep], mask[keep]
            seen = None if seen is None else seen[keep]
    return made
