"""Methods that decide entry by entry how much of a change is kept: NearSwap, SCE and Arcee Fusion."""

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mooring.merging import slices
from mooring.merging.plan import Apply, Plan, TensorParams, Whole
from mooring.merging.slices import wide_type, widened

_TINY = 1e-6
"""Below it, mergekit takes a sum of weights for zero."""
_ROWS = 4096
"""Rows whose softmax is computed at a time."""
_EPSILON = 1e-8
"""Added to the probabilities of Arcee Fusion."""


def nearswap(params: TensorParams, models: int) -> Apply:
    """NearSwap: θ = base + λ·sign(δ)·min(|δ|, t): entries near the base's are the tuned model's, others move by t.

    t is `threshold`, in the unit of the weights. λ = 1 is the published method.

    Source: alchemonaut 2024, QuartetAnemoi-70B-t0.0001 (model card). In mergekit: `nearswap`, `threshold` as `t`, for λ
    = 1; it divides by at least 1e-6, which matters for a smaller t alone.
    """
    return functools.partial(_clip, params)


def _clip(params: TensorParams, start: int, base: Tensor, tuned: Sequence[Tensor], k: int) -> Tensor:
    if params.lams[k] == 0:
        return base
    kind = wide_type([base, *tuned])
    found = widened("ground", base, kind)
    change = widened("change", tuned[0], kind).sub_(found).clamp_(-params.threshold, params.threshold)
    return slices.scratch("out", base.numel(), params.dtype).copy_(_moved(found, change, params.lams[k]))


def _moved(ground: Tensor, change: Tensor, lam: float) -> Tensor:
    """ground + λ·change, in place, so that −0 stays −0 where there is no change."""
    return ground.sub_(torch.sub(0.0, change, out=change) if lam > 0 else change, alpha=abs(lam))


def sce(params: TensorParams, models: int) -> Plan:
    """SCE: select the entries whose changes vary most over the models, weight the models, erase minority signs.

    Of the entries with a variance over the changes δᵢ, the share `density` with the largest is kept (⌊density·n⌋; of
    equal ones, the first). The weight of a model is its mean squared kept change, divided by the sum of all models'.
    In every entry, the changes with the sign of their sum are averaged by these weights, and λ times that is added to
    the base. λ = 1 is the published method. With one tuned model and a density below 1 nothing is left, as its changes
    do not vary.

    Source: Wan et al. 2024, FuseChat: Knowledge fusion of chat models, arXiv:2408.07990, section 3.3. In mergekit:
    `sce`, `density` as `select_topk`, for λ = 1.
    """
    found = yield Whole(functools.partial(_select_calculate_erase, params.density[0]))
    return functools.partial(_add_change, params, torch.from_numpy(found))


def _select_calculate_erase(density: float, base: Tensor, *tuned: Tensor) -> np.ndarray[Any, Any]:
    """The merged change of a tensor, flat."""
    changes = [t.sub_(base) for t in tuned]
    if density < 1:
        mean = sum(changes[1:], changes[0].clone()).div_(len(changes))
        variance = torch.zeros_like(mean)
        for change in changes:
            variance.add_((change - mean).square_())
        kept = _largest(variance, int(density * int(variance.count_nonzero())))
        for change in changes:
            change.mul_(kept)
    squares = [float(change.double().square().mean()) if change.numel() else 0.0 for change in changes]
    total = math.fsum(squares)
    weights = [square / total for square in squares] if total >= _TINY else [1 / len(changes)] * len(changes)
    sign = torch.zeros_like(base)
    for change in changes:
        sign.add_(change)
    sign.ge_(0).mul_(2).sub_(1)
    merged, divisor = torch.zeros_like(base), torch.zeros_like(base)
    for change, weight in zip(changes, weights, strict=True):
        agrees = change.sign().eq_(sign)
        merged.addcmul_(change, agrees, value=weight)
        divisor.add_(agrees, alpha=weight)
    return merged.div_(divisor.clamp_(min=_TINY)).numpy()


def _largest(values: Tensor, count: int) -> Tensor:
    """1 for so many of the largest entries, of equal ones the first; else 0."""
    if count == 0:
        return torch.zeros_like(values)
    edge = values.kthvalue(values.numel() - count + 1).values
    kept = values > edge
    equal = (values == edge).nonzero().flatten()
    kept[equal[: count - int(kept.sum())]] = True
    return kept.to(values.dtype)


def arcee_fusion(params: TensorParams, models: int) -> Plan:
    """Arcee Fusion: θ = base + λ·δ where an entry is important, the base elsewhere.

    The importance of an entry is |δ| times KL(softmax of the tuned row ‖ softmax of the base's row), rows along the
    last axis. Important is what reaches median + 1.5·(third − first quartile) of a tensor's importances. λ = 1 is the
    published method.

    Source: Arcee AI 2025, Meet Mergekit v0.1. In mergekit: `arcee_fusion`, for λ = 1; it estimates the quartiles of a
    tensor of more than a million entries from a random sample, and here they are exact.
    """
    found = yield Whole(functools.partial(_important, params))
    return functools.partial(_add_change, params, torch.from_numpy(found))


def _important(params: TensorParams, base: Tensor, tuned: Tensor) -> np.ndarray[Any, Any]:
    """The changes of the important entries, flat; 0 elsewhere."""
    if not base.numel():
        return base.numpy()
    row = params.shape[-1] if params.shape else 1
    change = tuned - base
    importance = change.abs()
    rows = (each.view(-1, row) for each in (base, tuned, importance))
    for ours, theirs, place in slices.cells(_ROWS, *rows):
        p, q = theirs.softmax(-1).add_(_EPSILON), ours.softmax(-1).add_(_EPSILON)
        place.mul_((p * (p / q).log()).sum(-1, keepdim=True))
    numbers = importance.numpy()
    ranks = [int(share * (len(numbers) - 1)) for share in (0.25, 0.5, 0.75)]
    first, median, third = (float(np.partition(numbers, rank)[rank]) for rank in ranks)
    return change.mul_(importance >= median + 1.5 * (third - first)).numpy()


def _add_change(
    params: TensorParams, change: Tensor, start: int, base: Tensor, tuned: Sequence[Tensor], k: int
) -> Tensor:
    """base + λ·change, from a change of the whole tensor."""
    if params.lams[k] == 0:
        return base
    kind = wide_type([base, *tuned])
    part = widened("change", change[start : start + base.numel()], kind)
    moved = _moved(widened("ground", base, kind), part, params.lams[k])
    return slices.scratch("out", base.numel(), params.dtype).copy_(moved)
