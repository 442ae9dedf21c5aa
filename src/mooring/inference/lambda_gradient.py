"""Losses of a merged model, and their derivatives with respect to the λ of each group of its weights."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from mooring.inference.spans import Spans, answer_logits, batches


def divergence(base: Tensor, other: Tensor) -> Tensor:
    """KL(base ‖ other) in nats of log-probabilities of shape (…, vocabulary), for each position."""
    return (base.exp() * (base - other)).sum(-1)


def mean_loss(model: Callable[..., Any], spans: Spans, pad: int, device: Any) -> Tensor:
    """The mean over a batch's answer tokens, in nats: KL(base ‖ model) if `spans` has the base's log-probabilities,
    else −log p of the answer's own tokens. A scalar of float64.

    `model` is called as a causal model of transformers; `device` is where it is.
    """
    total = torch.zeros((), dtype=torch.float64, device=device)
    for number, logits in enumerate(answer_logits(model, spans, pad, device)):
        found = logits.log_softmax(-1) if logits.dtype == torch.float64 else logits.float().log_softmax(-1)
        if spans.log_probs:
            total = total + divergence(spans.log_probs[number].to(device, found.dtype), found).sum().double()
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

        for part in batches(spans):
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
