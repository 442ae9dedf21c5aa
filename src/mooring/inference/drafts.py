"""Another model's answers as drafts: checked many tokens at a time, and gone on with from where they part.

Exact for greedy decoding: a draft's token is taken only where it is the one that the model itself would have said. What
a draft saves is time, since a model reads many tokens faster than it writes them one by one.

Source: Leviathan et al. 2023, Fast Inference from Transformers via Speculative Decoding, arXiv:2211.17192, for greedy
decoding; that a draft may be a finished text: Yang et al. 2023, Inference with Reference, arXiv:2304.04487.
"""

import dataclasses
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from mooring.inference.decode import Batch, finish, joined, make_cache, mark, may_have_gaps, pad_left, penalise, start
from mooring.sampling import SamplingParams

CHUNK = 16
"""Most tokens of a draft that are checked at a time: what follows where it parts is read in vain."""
LOGITS = 2**26
"""Most logits (rows × positions × vocabulary) that a check may take."""


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
    """New tokens of a row, the stop token included, and how many of the first of them its draft had right."""

    tokens: list[int]
    accepted: int


def supported(config: Any) -> bool:
    """Whether drafts can be checked on a model of this configuration: rejected tokens leave gaps in its cache."""
    return may_have_gaps(config, make_cache(config))


@torch.inference_mode()
def decode_drafted(
    model: Any,
    rows: Sequence[Sequence[int]],
    drafts: Sequence[Sequence[int]],
    params: SamplingParams,
    stops: Collection[int],
    pad: int,
    batch_size: int,
) -> list[Answer]:
    """What `decode` gives by greedy decoding, with the help of drafts.

    Rows that go on after their drafts come together from several batches, so that few steps are made for few rows.
    Memory: the cache of at most twice `batch_size` rows.

    Args:
        model: A causal model, in evaluation mode, of a configuration that is `supported`.
        rows: Prompt tokens, any number of rows.
        drafts: A draft for each, without its prompt; an empty one where there is none.
        params: How tokens are drawn; the temperature is 0.
        stops: Tokens that end a response.
        pad: Any token; it is masked.
        batch_size: Rows at a time.
    """
    made: list[list[int]] = [[] for _ in rows]
    accepted = [0] * len(rows)
    useful = [_cut(draft, stops, params.max_tokens - 1) for draft in drafts]
    waiting: list[Batch] = []

    def go_on() -> None:
        if waiting:
            finish(model, _join(model, waiting), made, rows, params, stops)
            waiting.clear()

    for first in range(0, len(rows), batch_size):
        some = range(first, min(first + batch_size, len(rows)))
        for parted in _check(model, some, rows, useful, made, accepted, params, stops, pad):
            if sum(len(batch.number) for batch in waiting) + len(parted.number) > batch_size:
                go_on()
            waiting.append(parted)
    go_on()
    return [Answer(tokens, count) for tokens, count in zip(made, accepted, strict=True)]


def _cut(draft: Sequence[int], stops: Collection[int], most: int) -> list[int]:
    """A draft up to its first stop token, and so long that one token can follow."""
    end = next((place for place, token in enumerate(draft) if token in stops), len(draft))
    return list(draft[: min(end, most)])


def _check(
    model: Any,
    some: Sequence[int],
    rows: Sequence[Sequence[int]],
    drafts: Sequence[Sequence[int]],
    made: list[list[int]],
    accepted: list[int],
    params: SamplingParams,
    stops: Collection[int],
    pad: int,
) -> Iterator[Batch]:
    """Check the drafts of a batch; yields the rows that go on beyond their drafts, as they part from them."""
    vocabulary = model.config.get_text_config().vocab_size
    size = _chunk(len(some), vocabulary)
    chunks = [list(drafts[i][:size]) for i in some]
    batch = start(model, [rows[i] for i in some], pad, chunks)
    batch.number = torch.tensor(list(some), device=model.device)
    while True:
        logits = batch.forward(model, 1 + max(map(len, chunks)))
        if params.repetition_penalty != 1 and batch.seen is None:
            batch.seen = mark([rows[i] for i in some], logits.shape[-1], logits.device)
        counts, fresh = follow(logits, chunks, batch.seen, params.repetition_penalty)
        del logits
        numbers, going, parted = batch.number.tolist(), [], []
        for place, (number, count, token) in enumerate(zip(numbers, counts, fresh, strict=True)):
            made[number] += [*chunks[place][:count], token]
            accepted[number] += count
            more = drafts[number][len(made[number]) - 1 :]
            if count == len(chunks[place]) and more and more[0] == token:
                accepted[number] += 1
                going.append(place)
            elif token not in stops and len(made[number]) < params.max_tokens:
                parted.append(place)
        if parted:
            yield _pick(model, batch, parted, [len(chunks[place]) - counts[place] for place in parted], made)
        if not going:
            return
        batch.keep(torch.tensor(going, device=model.device))
        size = _chunk(len(going), vocabulary)
        left = [numbers[place] for place in going]
        chunks = [list(drafts[i][len(made[i]) : len(made[i]) + size]) for i in left]
        ids, mask, _ = pad_left(
            [[made[i][-1], *chunk] for i, chunk in zip(left, chunks, strict=True)], pad, model.device
        )
        batch.feed(ids, mask)


def _chunk(rows: int, vocabulary: int) -> int:
    return max(1, min(CHUNK, LOGITS // (rows * vocabulary) - 1))


def follow(
    logits: Tensor, chunks: Sequence[Sequence[int]], seen: Tensor | None, penalty: float
) -> tuple[list[int], list[int]]:
    """How far the likeliest tokens are those of the drafts.

    Args:
        logits: (rows, longest chunk + 1, vocabulary), each row's at the end: after its last known token and after every
            token of its chunk.
        chunks: Tokens of the drafts, a row each.
        seen: As `penalise` takes it; the tokens that are accepted, and the ones after them, are added. None without
            a penalty.
        penalty: The repetition penalty.

    Returns:
        For each row how many tokens are accepted, and the likeliest token after these.
    """
    device, width = logits.device, logits.shape[1]
    sizes = torch.tensor([len(chunk) for chunk in chunks], device=device)
    padded = torch.tensor([[*chunk, *[-1] * (width - len(chunk))] for chunk in chunks], device=device)
    counts, fresh = torch.zeros_like(sizes), torch.zeros_like(sizes)
    active = torch.arange(len(chunks), device=device)
    for place in range(width):
        scores = logits[active, width - 1 - sizes[active] + place].float()
        if seen is not None:
            scores = penalise(scores, seen[active], penalty)
        best = scores.argmax(-1)
        fresh[active] = best
        if seen is not None:
            seen[active, best] = True
        active = active[best == padded[active, place]]
        counts[active] += 1
        if not len(active):
            break
    return counts.tolist(), fresh.tolist()


def _pick(model: Any, batch: Batch, places: list[int], rejected: list[int], made: list[list[int]]) -> Batch:
    """Some rows as a batch of their own, the tokens rejected at their ends masked, the last of `made` lined up."""
    rows = torch.tensor(places, device=model.device)
    back = torch.tensor(rejected, device=model.device)[:, None]
    mask = batch.mask[rows]
    width = mask.shape[1]
    mask[torch.arange(width, device=mask.device) >= width - back] = 0
    cache = joined(model.config, [batch.cache], [width], rows)
    number = batch.number[rows]
    seen = None if batch.seen is None else batch.seen[rows]
    picked = Batch(number, batch.tokens[rows], batch.positions[rows][:, -1:] - back, mask, cache, seen)
    picked.feed(torch.tensor([[made[row][-1]] for row in number.tolist()], device=model.device))
    return picked


def _join(model: Any, batches: Sequence[Batch]) -> Batch:
    """Several batches, each with one token a row lined up, as one."""
    widths = [batch.mask.shape[1] - 1 for batch in batches]
    widest = max(widths)
    masks = [torch.nn.functional.pad(b.mask, (widest - w, 0)) for b, w in zip(batches, widths, strict=True)]
    seen = [batch.seen for batch in batches if batch.seen is not None]
    return Batch(
        torch.cat([batch.number for batch in batches]),
        torch.cat([batch.tokens for batch in batches]),
        torch.cat([batch.positions for batch in batches]),
        torch.cat(masks),
        joined(model.config, [batch.cache for batch in batches], widths),
        torch.cat(seen) if seen else None,
    )
