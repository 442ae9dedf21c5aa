"""Answers as tokens, to be looked at under another model: references of the task, and what the base itself answers."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from mooring.inference.decode import decode, pad_left
from mooring.inference.encode import encode_examples, encode_prompts
from mooring.inference.transformers import TransformersEngine
from mooring.records import Prompt
from mooring.sampling import SamplingParams

ROWS = 8
"""Rows per pass. A derivative keeps the activations of all layers for them."""


@dataclasses.dataclass(frozen=True, slots=True)
class Spans:
    """Rows of tokens, of which the last ones are an answer.

    Attributes:
        keys: The ids of the prompts.
        rows: Tokens of prompt and answer, of different lengths, the longest first.
        starts: How many tokens of each row belong to the prompt.
        log_probs: The base's log-probabilities at the answer's positions, float32 of shape (answer tokens, vocabulary)
            for each row. Without them the answer's own tokens are what the loss is of.
    """

    keys: Sequence[str]
    rows: Sequence[Sequence[int]]
    starts: Sequence[int]
    log_probs: Sequence[Tensor] = ()

    @property
    def tokens(self) -> int:
        """The number of tokens in the answers."""
        return sum(len(row) - start for row, start in zip(self.rows, self.starts, strict=True))


def reference_spans(engine: TransformersEngine, examples: Sequence[Prompt]) -> Spans:
    """Examples with their references, whose loss is the negative log-likelihood.

    Raises:
        DataError: An example has no reference, or does not fit the context.
    """
    found = encode_examples(engine.tokenizer, examples, engine.system, engine.context, thinking=engine.thinking)
    order = _longest_first([row for row, _ in found])
    return Spans([examples[i].id for i in order], [found[i][0] for i in order], [found[i][1] for i in order])


def base_spans(engine: TransformersEngine, prompts: Sequence[Prompt], tokens: int) -> Spans:
    """Prompts with the first tokens of the base's greedy answers, and the base's distribution at each of them.

    Args:
        engine: The base.
        prompts: The prompts.
        tokens: How many tokens of each answer, at most.

    Raises:
        DataError: A prompt does not fit the context.
    """
    asked = encode_prompts(engine.tokenizer, prompts, engine.system, tokens, engine.context, engine.thinking)
    order = _longest_first(asked)
    asked = [asked[i] for i in order]
    params = SamplingParams(max_tokens=tokens, temperature=0.0)
    made: list[list[int]] = []
    for at in range(0, len(asked), engine.batch_size):
        part = slice(at, at + engine.batch_size)
        made += decode(engine.model, asked[part], [""] * len(asked[part]), params, engine.stops, engine.pad)
    rows = [[*row, *answer] for row, answer in zip(asked, made, strict=True)]
    spans = Spans([prompts[i].id for i in order], rows, [len(row) for row in asked])
    with torch.no_grad():
        log_probs = [
            logits.float().log_softmax(-1)
            for part in batches(spans)
            for logits in answer_logits(engine.model, part, engine.pad)
        ]
    return dataclasses.replace(spans, log_probs=log_probs)


def batches(spans: Spans) -> Iterator[Spans]:
    """The rows in parts of `ROWS`, in order."""
    for at in range(0, len(spans.rows), ROWS):
        part = slice(at, at + ROWS)
        yield Spans(spans.keys[part], spans.rows[part], spans.starts[part], spans.log_probs[part])


def answer_logits(model: Callable[..., Any], spans: Spans, pad: int, device: Any = None) -> Iterator[Tensor]:
    """The logits at each answer's tokens, (answer tokens, vocabulary), row by row, in one pass.

    `model` is called as a causal model of transformers; `device` defaults to its own.
    """
    ids, mask, positions = pad_left(spans.rows, pad, getattr(model, "device", None) if device is None else device)
    sizes = [len(row) - start for row, start in zip(spans.rows, spans.starts, strict=True)]
    keep = max(sizes) + 1
    logits = model(
        input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False, logits_to_keep=keep
    ).logits[:, -keep:]
    for row, size in zip(logits, sizes, strict=True):
        yield row[keep - 1 - size : -1]


def _longest_first(rows: Sequence[Sequence[int]]) -> list[int]:
    """The places of rows by length, so that the rows of a batch have similar lengths."""
    return sorted(range(len(rows)), key=lambda i: (-len(rows[i]), i))
