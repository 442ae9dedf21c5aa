"""Losses of a merged model, and their derivatives with respect to the λ of each group of its weights."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from mooring.inference.decode import decode, pad_left
from mooring.inference.encode import encode_examples, encode_prompts
from mooring.inference.transformers import TransformersEngine
from mooring.records import Prompt
from mooring.sampling import SamplingParams

ROWS = 8
"""Rows per forward and backward pass: activations of all layers are kept for the derivative."""


@dataclasses.dataclass(frozen=True, slots=True)
class Spans:
    """Rows of tokens, of which the last ones are an answer.

    Attributes:
        rows: Tokens of prompt and answer, of different lengths.
        starts: How many tokens of each row belong to the prompt.
        log_probs: The base's log-probabilities at the answer's positions, float32 of shape (answer tokens, vocabulary)
            for each row. Without them the answer's own tokens are what the loss is of.
    """

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
    found.sort(key=lambda each: -len(each[0]))  # rows of one batch have similar lengths
    return Spans([row for row, _ in found], [start for _, start in found])


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
    asked.sort(key=lambda row: -len(row))  # rows of one batch have similar lengths
    params = SamplingParams(max_tokens=tokens, temperature=0.0)
    made: list[list[int]] = []
    for at in range(0, len(asked), engine.batch_size):
        part = slice(at, at + engine.batch_size)
        made += decode(engine.model, asked[part], [""] * len(asked[part]), params, engine.stops, engine.pad)
    spans = Spans([[*row, *answer] for row, answer in zip(asked, made, strict=True)], [len(row) for row in asked])
    with torch.no_grad():
        log_probs = [
            logits.float().log_softmax(-1)
            for part in _batches(spans)
            for logits in _answer_logits(engine.model, part, engine.pad)
        ]
    return dataclasses.replace(spans, log_probs=log_probs)


def mean_loss(model: Callable[..., Any], spans: Spans, pad: int, device: Any) -> Tensor:
    """The mean over a batch's answer tokens, in nats: KL(base ‖ model) if `spans` has the base's log-probabilities,
    else −log p of the answer's own tokens. A scalar of float64.

    `model` is called as a causal model of transformers; `device` is where it is.
    """
    total = torch.zeros((), dtype=torch.float64, device=device)
    for number, logits in enumerate(_answer_logits(model, spans, pad, device)):
        found = logits.log_softmax(-1) if logits.dtype == torch.float64 else logits.float().log_softmax(-1)
        if spans.log_probs:
            base = spans.log_probs[number].to(device, found.dtype)
            total = total + (base.exp() * (base - found)).sum().double()
        else:
            answer = torch.tensor(spans.rows[number][spans.starts[number] :], device=device)
            total = total - found.gather(-1, answer[:, None]).sum().double()
    return total / spans.tokens


class GroupedMerge:
    """A model at base + λ·change, with a λ of its own for each group of weights.

    Args:
        model: A causal model of transformers in evaluation mode. Its weights do not matter: they are replaced.
        base: The base's weights by the model's own names.
        changes: What tuning changed, by name, float32 or better: tuned − base. Weights without a change are left out.
        group_of: The group of each change, as an index into λ; None for one that has the λ `other`.
        other: λ of weights in no group.
        groups: The number of groups.
        pad: Any token; padding is masked.
    """

    def __init__(
        self,
        model: Any,
        base: Mapping[str, Tensor],
        changes: Mapping[str, Tensor],
        group_of: Mapping[str, int | None],
        *,
        other: float,
        groups: int,
        pad: int,
    ) -> None:
        self._model, self._base, self._changes, self._group_of = model, base, changes, group_of
        self._other, self._groups, self._pad = other, groups, pad

    def loss_and_gradient(self, lams: Sequence[float], spans: Spans) -> tuple[float, list[float]]:
        """`mean_loss` over all rows, and its derivative with respect to each λ.

        θ is linear in λ, so that ∂L/∂λ_g = Σ ⟨∂L/∂θ, change⟩ over the group's weights: one backward pass.

        Args:
            lams: λ of each group.
            spans: What the loss is of.
        """
        weights = {name: self._at(name, lams).requires_grad_() for name in self._changes}
        fixed = {name: weight for name, weight in self._base.items() if name not in weights}
        device = next(iter(self._base.values())).device
        loss, gradient = 0.0, [0.0] * self._groups
        sums = {name: torch.zeros_like(weight) for name, weight in weights.items()}

        def model(**inputs: Any) -> Any:
            return functional_call(self._model, {**fixed, **weights}, kwargs=inputs)

        for part in _batches(spans):
            found = mean_loss(model, part, self._pad, device) * (part.tokens / spans.tokens)
            for name, value in zip(weights, torch.autograd.grad(found, list(weights.values())), strict=True):
                sums[name] += value
            loss += found.item()
        for name, value in sums.items():
            group = self._group_of[name]
            if group is not None:
                gradient[group] += (value.double() * self._changes[name].double()).sum().item()
        return loss, gradient

    def _at(self, name: str, lams: Sequence[float]) -> Tensor:
        group, base, change = self._group_of[name], self._base[name], self._changes[name]
        lam = self._other if group is None else lams[group]
        return torch.add(base.to(change.dtype), change, alpha=lam).to(base.dtype)


def _batches(spans: Spans) -> Iterator[Spans]:
    for at in range(0, len(spans.rows), ROWS):
        part = slice(at, at + ROWS)
        yield Spans(spans.rows[part], spans.starts[part], spans.log_probs[part])


def _answer_logits(model: Callable[..., Any], spans: Spans, pad: int, device: Any = None) -> Iterator[Tensor]:
    """The logits of each answer's tokens, (answer tokens, vocabulary); logits are computed for the longest answer."""
    ids, mask, positions = pad_left(spans.rows, pad, getattr(model, "device", None) if device is None else device)
    sizes = [len(row) - start for row, start in zip(spans.rows, spans.starts, strict=True)]
    keep = max(sizes) + 1
    logits = model(
        input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False, logits_to_keep=keep
    ).logits[:, -keep:]
    for row, size in zip(logits, sizes, strict=True):
        yield row[keep - 1 - size : -1]
