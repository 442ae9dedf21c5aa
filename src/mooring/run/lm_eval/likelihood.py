"""How likely continuations are after their contexts, as lm-eval asks for it: tokens in, log-likelihoods out."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from mooring.errors import DataError
from mooring.generate.decode import pad_left
from mooring.generate.engine import plan
from mooring.generate.transformers_engine import LOGITS

Row = tuple[int, ...]
Pair = tuple[Sequence[int], Sequence[int]]
"""Tokens of a context (at least one) and of its continuation."""
Likely = tuple[float, bool]
"""Sum of log p of a continuation's tokens, in nats, and whether each of them is the likeliest."""


def log_likelihoods(
    model: Any,
    pairs: Sequence[Pair],
    *,
    pad: int,
    batch_size: int,
    context: int,
    on_progress: Callable[[int, int], None] | None = None,
    known: Mapping[int, Likely] | None = None,
    on_batch: Callable[[Mapping[int, Likely]], None] | None = None,
) -> list[Likely]:
    """Score continuations, in batches of similar length; what several share (all but a last token) is computed once.

    Args:
        model: A causal model of transformers, in evaluation mode.
        pairs: Contexts with continuations. One that is too long loses tokens on its left.
        pad: Any token.
        batch_size: Most rows a batch.
        context: Most tokens that the model takes.
        on_progress: Called with (rows done, rows in all) after every batch.
        known: Answers from before by their pairs' numbers. A batch of which all are known is not computed again; any
            other is as a whole, so that the numbers are those of a run that was never stopped.
        on_batch: Given the answers of every batch that was computed.

    Returns:
        One for each pair, in their order. An empty continuation has 0.0 and True.

    Raises:
        DataError: A continuation alone is longer than the context.
    """
    wanted: dict[Row, list[int]] = {}  # what the model reads to the pairs that it tells of
    for number, (start, end) in enumerate(pairs):
        if len(end) > context:
            raise DataError(
                f"lm-eval: a continuation of {len(end)} tokens does not fit the model's context of {context}",
                "choose a model with a longer one",
            )
        if end:
            wanted.setdefault(_read(start, end, context), []).append(number)
    answers: list[Likely] = [(0.0, True)] * len(pairs)
    inputs = list(wanted)
    # Logits are what takes the memory: they are made for the longest continuation of a batch, in every row.
    longest = max((len(end) for _, end in pairs), default=1)
    most = LOGITS // (model.config.get_text_config().vocab_size * max(1, longest))
    done, known = 0, known or {}
    for batch in plan([len(row) for row in inputs], max(1, min(batch_size, most))):
        rows = [inputs[i] for i in batch]
        asked = [number for row in rows for number in wanted[row]]
        found = {number: known[number] for number in asked if number in known}
        if len(found) < len(asked):
            span = max(len(pairs[number][1]) for number in asked)
            for row, chances in zip(rows, _last_chances(model, rows, span, pad), strict=True):
                found |= {number: _likely(chances, pairs[number][1]) for number in wanted[row]}
            if on_batch:
                on_batch(found)
        for number in asked:
            answers[number] = found[number]
        done += len(batch)
        if on_progress:
            on_progress(done, len(inputs))
    return answers


def _read(start: Sequence[int], end: Sequence[int], context: int) -> Row:
    """What the model reads: all but the last token, which it only has to guess."""
    return (*start, *end)[-(context + 1) :][:-1]


@torch.inference_mode()
def _last_chances(model: Any, rows: Sequence[Row], span: int, pad: int) -> torch.Tensor:
    """log p of every token at the last positions: (rows, span, vocabulary), float32."""
    ids, mask, positions = pad_left(rows, pad, model.device)
    span = min(span, ids.shape[1])
    logits = model(
        input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False, logits_to_keep=span
    ).logits
    return torch.log_softmax(logits[:, -span:].float(), -1)


def _likely(chances: torch.Tensor, end: Sequence[int]) -> Likely:
    """The score of a continuation, from log p at (span, vocabulary) positions that end with it."""
    tail = chances[-len(end) :]
    tokens = torch.tensor(list(end), device=tail.device)
    picked = tail.gather(-1, tokens[:, None]).double().sum().item()
    return picked, bool((tail.argmax(-1) == tokens).all())
