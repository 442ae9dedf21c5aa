"""Speculative decoding with the response of another model as the draft, checked many tokens at a time.

Exact for greedy decoding: a draft token is accepted only if the model itself would generate it. It is faster since a
model reads many tokens in the time in which it generates one.

Source: Leviathan et al. 2023, Fast Inference from Transformers via Speculative Decoding, arXiv:2211.17192, for greedy
decoding; a finished text as the draft: Yang et al. 2023, Inference with Reference, arXiv:2304.04487.
"""

import dataclasses
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from mooring.inference.cache import join_caches, make_cache, supports_gaps
from mooring.inference.decode import MAX_LOGITS, Batch, apply_penalty, continue_batch, pad_left, prepare, seen_tokens
from mooring.models.classes import vocab_size
from mooring.sampling import SamplingParams

CHUNK = 16
"""Maximum number of draft tokens that are checked at a time; those after a rejected one are wasted."""


@dataclasses.dataclass(slots=True)
class Drafted:
    """New tokens of a row, including the stop token, and how many of the first ones its draft predicted."""

    tokens: list[int]
    accepted: int


def supported(config: Any) -> bool:
    """Whether a model's cache supports drafts: rejected tokens leave gaps in it."""
    return supports_gaps(config, make_cache(config))


@torch.inference_mode()
def decode_drafted(
    model: Any,
    rows: Sequence[Sequence[int]],
    drafts: Sequence[Sequence[int]],
    params: SamplingParams,
    stops: Collection[int],
    pad: int,
    batch_size: int,
) -> list[Drafted]:
    """The tokens of greedy `decode`, computed with drafts.

    Rows that continue after their drafts are collected from several batches, so that no step runs for few rows.
    Memory: the cache of at most twice `batch_size` rows.

    Args:
        model: A causal model in evaluation mode whose configuration is `supported`.
        rows: Tokens of any number of prompts.
        drafts: A draft for each prompt, without the prompt; empty for none.
        params: How tokens are sampled; the temperature is 0.
        stops: Tokens that end a response.
        pad: Any token; padding is masked.
        batch_size: Number of rows at a time.
    """
    made = [Drafted([], 0) for _ in rows]
    trimmed = [_trim(draft, stops, params.max_tokens - 1) for draft in drafts]
    waiting: list[Batch] = []

    def flush() -> None:
        if waiting:
            continue_batch(model, _join(model, waiting), [row.tokens for row in made], rows, params, stops)
            waiting.clear()

    for first in range(0, len(rows), batch_size):
        numbers = range(first, min(first + batch_size, len(rows)))
        for rejected in _check(model, numbers, rows, trimmed, made, params, stops, pad):
            if sum(len(batch.number) for batch in waiting) + len(rejected.number) > batch_size:
                flush()
            waiting.append(rejected)
    flush()
    return made


def _trim(draft: Sequence[int], stops: Collection[int], most: int) -> list[int]:
    """A draft up to its first stop token, and at most `most` tokens of it."""
    end = next((place for place, token in enumerate(draft) if token in stops), len(draft))
    return list(draft[: min(end, most)])


def _check(
    model: Any,
    indices: Sequence[int],
    rows: Sequence[Sequence[int]],
    drafts: Sequence[Sequence[int]],
    made: Sequence[Drafted],
    params: SamplingParams,
    stops: Collection[int],
    pad: int,
) -> Iterator[Batch]:
    """Check the drafts of a batch, extending `made`; yield the rows that continue without their drafts, as batches."""
    vocabulary = vocab_size(model.config)
    size = _chunk(len(indices), vocabulary)
    chunks = [list(drafts[i][:size]) for i in indices]
    batch = prepare(model, [rows[i] for i in indices], pad, chunks)
    batch.number = torch.tensor(list(indices), device=model.device)
    while True:
        logits = batch.forward(model, 1 + max(map(len, chunks)))
        if params.repetition_penalty != 1 and batch.seen is None:
            batch.seen = seen_tokens([rows[i] for i in indices], logits.shape[-1], logits.device)
        counts, following = follow(logits, chunks, batch.seen, params.repetition_penalty)
        del logits
        numbers, going, leaving = batch.number.tolist(), [], []
        for place, (number, count, token) in enumerate(zip(numbers, counts, following, strict=True)):
            row = made[number]
            row.tokens += [*chunks[place][:count], token]
            row.accepted += count
            more = drafts[number][len(row.tokens) - 1 :]
            if count == len(chunks[place]) and more and more[0] == token:
                row.accepted += 1
                going.append(place)
            elif token not in stops and len(row.tokens) < params.max_tokens:
                leaving.append(place)
        if leaving:
            yield _pick(model, batch, leaving, [len(chunks[place]) - counts[place] for place in leaving], made)
        if not going:
            return
        batch.select(torch.tensor(going, device=model.device))
        size = _chunk(len(going), vocabulary)
        left = [(drafts[numbers[place]], made[numbers[place]].tokens) for place in going]
        chunks = [list(draft[len(tokens) : len(tokens) + size]) for draft, tokens in left]
        inputs = [[tokens[-1], *chunk] for (_, tokens), chunk in zip(left, chunks, strict=True)]
        ids, mask, _ = pad_left(inputs, pad, model.device)
        batch.set_input(ids, mask)


def _chunk(rows: int, vocabulary: int) -> int:
    return max(1, min(CHUNK, MAX_LOGITS // (rows * vocabulary) - 1))


def follow(
    logits: Tensor, chunks: Sequence[Sequence[int]], seen: Tensor | None, penalty: float
) -> tuple[list[int], list[int]]:
    """The number of draft tokens of each row that are accepted, and the most likely token after them.

    `logits`, of shape (rows, longest chunk + 1, vocabulary), are aligned at the end: after each row's last known token
    and after each token of its chunk. Accepted tokens and the ones after them are added to `seen` (`apply_penalty`).
    """
    device, width = logits.device, logits.shape[1]
    sizes = torch.tensor([len(chunk) for chunk in chunks], device=device)
    padded = torch.tensor([[*chunk, *[-1] * (width - len(chunk))] for chunk in chunks], device=device)
    counts, following = torch.zeros_like(sizes), torch.zeros_like(sizes)
    active = torch.arange(len(chunks), device=device)
    for place in range(width):
        scores = logits[active, width - 1 - sizes[active] + place].float()
        if seen is not None:
            scores = apply_penalty(scores, seen[active], penalty)
        best = scores.argmax(-1)
        following[active] = best
        if seen is not None:
            seen[active, best] = True
        active = active[best == padded[active, place]]
        counts[active] += 1
        if not len(active):
            break
    return counts.tolist(), following.tolist()


def _pick(model: Any, batch: Batch, places: list[int], rejected: list[int], made: Sequence[Drafted]) -> Batch:
    """Some rows as a batch of their own: rejected tokens at their ends are masked, the last of `made` is the input."""
    rows = torch.tensor(places, device=model.device)
    back = torch.tensor(rejected, device=model.device)[:, None]
    mask = batch.mask[rows]
    width = mask.shape[1]
    mask[torch.arange(width, device=mask.device) >= width - back] = 0
    cache = join_caches(model.config, [batch.cache], [width], rows)
    number = batch.number[rows]
    seen = None if batch.seen is None else batch.seen[rows]
    picked = Batch(number, batch.tokens[rows], batch.positions[rows][:, -1:] - back, mask, cache, seen)
    picked.set_input(torch.tensor([[made[row].tokens[-1]] for row in number.tolist()], device=model.device))
    return picked


def _join(model: Any, batches: Sequence[Batch]) -> Batch:
    """Several batches, each with an input of one token per row, as one."""
    widths = [batch.mask.shape[1] - 1 for batch in batches]
    widest = max(widths)
    masks = [torch.nn.functional.pad(b.mask, (widest - w, 0)) for b, w in zip(batches, widths, strict=True)]
    seen = [batch.seen for batch in batches if batch.seen is not None]
    return Batch(
        torch.cat([batch.number for batch in batches]),
        torch.cat([batch.tokens for batch in batches]),
        torch.cat([batch.positions for batch in batches]),
        torch.cat(masks),
        join_caches(model.config, [batch.cache for batch in batches], widths),
        torch.cat(seen) if seen else None,
    )
