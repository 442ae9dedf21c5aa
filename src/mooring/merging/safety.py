"""Methods that know more than a base and its tuned models: from what the base was aligned, or where safety lies in it.

The change by which the base was aligned, base − unaligned, is the safety vector of these papers.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mooring.merging import slices, spectrum
from mooring.merging.dense import Coefficients, combine
from mooring.merging.plan import Apply, Plan, TensorParams, Whole
from mooring.merging.slices import divisor_of, wide_type, widened
from mooring.merging.sparse import grid_of, sparsifiers


def chat_vector(params: TensorParams, models: int) -> Apply:
    """Chat vector: θ = base + λ·Σ wᵢ·(tunedᵢ − unaligned), for models that were tuned from the unaligned one.

    At λ = 1 a single tuned model gets the base's whole chat vector: θ = tuned + (base − unaligned). `--unaligned` names
    the pre-trained model; a tuned model that was tuned from the base itself is merged by `task_arithmetic`.

    Source: Huang et al. 2023, Chat Vector: A simple approach to equip LLMs with instruction following and model
    alignment in new languages, arXiv:2310.04799, eq. 2 and 3. In mergekit: `task_arithmetic` with the unaligned model
    as `base_model`, and base and tuned models as models with the weights 1 and λ·wᵢ.
    """
    weights = params.weights or (1.0,) * models
    total = divisor_of(weights) if params.normalize else 1.0
    sets = []
    for lam in params.lams:
        shares = tuple(lam * w / total for w in weights)
        sets.append(Coefficients(1.0, (*shares, -math.fsum(shares))))
    return functools.partial(combine, sets, params.dtype)


def resta(params: TensorParams, models: int) -> Plan:
    """RESTA: θ = base + DARE(δ) + (1−λ)·(base − unaligned), which is tuned + (1−λ)·(base − unaligned) at density 1.

    λ = 1 adds no safety vector, λ = 0 the whole one (the paper's γ is 1−λ), and a negative λ more than one. λ = 0 is
    not the base. With a `density` below 1, DARE drops entries of δ = tuned − base, as in `dare_linear`. The paper's
    safety vector is from a model that was tuned on harmful data; this one is from the pre-trained model, without data.

    Source: Bhardwaj, Do, Poria 2024, Language Models are Homer Simpson! Safety re-alignment of fine-tuned language
    models through task arithmetic, arXiv:2402.11746, section 3. The authors' code: github.com/declare-lab/resta.
    """
    if params.density[0] >= 1:
        sets = [Coefficients(1 - lam, (1.0, lam - 1)) for lam in params.lams]
        return functools.partial(combine, sets, params.dtype)
    (thin,) = yield from sparsifiers(params.kind, params, models)
    return functools.partial(_add_safety_vector, params, thin, grid_of(params.kind, params))


def _add_safety_vector(
    params: TensorParams,
    thin: Callable[[int, Tensor], Tensor],
    grid: int,
    start: int,
    base: Tensor,
    tuned: Sequence[Tensor],
    k: int,
) -> Tensor:
    """base + thinned change + (1−λ)·(base − unaligned), a cell of the grid at a time."""
    kind = wide_type([base, *tuned])
    out = slices.scratch("out", base.numel(), params.dtype)
    for number, (place, first, theirs, unaligned) in enumerate(slices.cells(grid, out, base, *tuned)):
        ground = widened("ground", first, kind)
        change = thin(start + number * grid, widened("change", theirs, kind).sub_(ground))
        further = widened("further", unaligned, kind).sub_(ground).mul_(1 - params.lams[k]).sub_(change)
        place.copy_(ground.sub_(further.add_(0)))  # −0 stays −0: a difference that is zero is +0
    return out


def lox(params: TensorParams, models: int) -> Plan:
    """LoX: θ = tuned + (1−λ)·[base − unaligned]ₖ, with the safety vector of every matrix at rank k (`rank`).

    The paper extrapolates the base before it is tuned, which gives base + (1−λ)·[base − unaligned]ₖ; this adds the same
    to a model that is tuned already. Its coefficient is 1−λ: a negative λ gives more than 1. λ = 1 is the tuned model,
    and λ = 0 is not the base. Vectors are the tuned model's, and `rank` 0 takes the whole safety vector, as in the
    authors' code.

    Source: Perin et al. 2025, LoX: Low-rank extrapolation robustifies LLM safety against fine-tuning, arXiv:2506.15606,
    eq. 4. The authors' code: github.com/VITA-Group/LoX, `safety/LoX.py`, λ as 1 − `coef`, `rank` as `k`.
    """
    return (yield from _corrected(params, functools.partial(_safety_vector, _at_given_rank)))


def lssf(params: TensorParams, models: int) -> Plan:
    """LSSF: θ = tuned + (1−λ)·U_r·U_rᵀ·(base − unaligned), with the rank r of every matrix from its own entropy.

    U_r are the first r left singular vectors of the safety vector, and r is the smallest number of singular values with
    at least `threshold` of their entropy −Σ pᵢ·ln pᵢ, pᵢ = σᵢ/Σσ (the paper's safety singular value entropy; this is
    our reading of it, as no code is published). The paper takes its safety vector from a model that was tuned on
    harmful data; this is the data-free form, from the pre-trained model. λ = 1 is the tuned model, and λ = 0 is not the
    base.

    Source: Zhou et al. 2025, LSSF: Safety alignment for large language models through low-rank safety subspace fusion,
    arXiv:2602.00038 (ACL 2025).
    """
    return (yield from _corrected(params, functools.partial(_safety_vector, _at_entropy)))


def safe_lora(params: TensorParams, models: int) -> Plan:
    """Safe LoRA: θ = base + λ·C·δ for a matrix whose change is unlike its own projection, base + λ·δ for the others.

    C = V·Vᵀ/‖V‖ with V = base − unaligned, ‖V‖ the Frobenius norm; a matrix is projected if the cosine of C·δ and δ is
    at most `threshold`. C is the paper's approximate projection, which also scales δ by the size of V. λ = 1 is the
    published method. Tensors that are no matrices are merged as base + λ·δ. The manifest names the projected ones.

    Source: Hsu et al. 2024, Safe LoRA: The silver lining of reducing safety risks when fine-tuning large language
    models, arXiv:2405.16833, eq. 2 to 4. The authors' code: github.com/IBM/SafeLoRA, `model.py`, where the cosine is
    rounded to five digits; `select_layers_type` `threshold`.
    """
    return (yield from _gated(params, alike=True))


def safe_merge(params: TensorParams, models: int) -> Plan:
    """SafeMERGE: θ = λ·tuned + (1−λ)·safe for a matrix whose change is unlike its projection, tuned for the others.

    The projection and its cosine are Safe LoRA's; a matrix is merged if the cosine is below `threshold`. The safe model
    is `--safety-adapter`, a LoRA adapter on the base or a whole model; without it, the base. Tensors that are no
    matrices are the tuned model's. λ = 1 is the tuned model, and λ = 0 is not the base. The manifest names the merged
    tensors.

    Source: Djuhera et al. 2025, SafeMERGE: Preserving safety alignment in fine-tuned large language models via
    selective layer-wise model merging, arXiv:2503.17239, eq. 1 to 3. The authors' code: github.com/aladinD/SafeMERGE,
    where PEFT's `linear` adds the factors of two adapters, and not their products as in the paper and here.
    """
    return (yield from _gated(params, alike=False))


def intruders(params: TensorParams, models: int) -> Plan:
    """Intruder dimensions, scaled down: θ = tuned − (1−λ)·Σ uᵢ·σᵢ·vᵢᵀ, for every matrix.

    The sum is over those of the tuned matrix's first `rank` singular vectors whose left vector uᵢ has no |cosine| of at
    least `threshold` with any left singular vector of the base's matrix. λ = 1 is the tuned model, and λ = 0 removes
    these dimensions; it is not the base. Other tensors are the tuned model's. Needs no further model, but both
    decompositions of every matrix.

    Source: Shuttleworth et al. 2024, LoRA vs full fine-tuning: An illusion of equivalence, arXiv:2410.21228, section
    3 (definition) and 5 (scaling by λ). The authors' code: github.com/reeceshuttle/intruder-dimensions,
    `find_intruder_dimensions.py` (`k` 10, threshold 0.5), which counts them.
    """
    return (yield from _corrected(params, _intruders))


# --- Corrections that are decomposed from whole matrices ---

Correct = Callable[[TensorParams, Sequence[Tensor]], "Tensor | None"]
"""(parameters, matrices of all inputs) to what is added to the tuned one, or None for nothing."""


def _corrected(params: TensorParams, correct: Correct) -> Plan:
    """tuned + (1−λ)·D, with D from `correct`, matrix by matrix; the tuned tensor where there is no matrix."""
    correction: Any = np.empty(0)
    if spectrum.is_matrix(params.shape):
        correction = yield Whole(functools.partial(_each_matrix, params, correct))
    return functools.partial(_add_correction, params, torch.from_numpy(correction))


def _each_matrix(params: TensorParams, correct: Correct, *inputs: Tensor) -> np.ndarray[Any, Any]:
    """The corrections of a tensor's matrices, flat; empty if there is none."""
    whole = [spectrum.matrices(values, params.shape) for values in inputs]
    out: Tensor | None = None
    for number, matrices in enumerate(zip(*whole, strict=True)):
        found = correct(params, matrices) if all(bool(m.isfinite().all()) for m in matrices) else None
        if found is not None:
            if out is None:
                out = torch.zeros_like(whole[0])
            out[number] = found
    return np.empty(0) if out is None else out.view(-1).numpy()


def _add_correction(
    params: TensorParams, correction: Tensor, start: int, base: Tensor, tuned: Sequence[Tensor], k: int
) -> Tensor:
    share = 1 - params.lams[k]
    if share == 0 or not len(correction):
        return tuned[0]
    kind = wide_type([base, *tuned])
    found = widened("ground", tuned[0], kind)
    found.add_(correction[start : start + base.numel()].to(kind), alpha=share)
    return slices.scratch("out", base.numel(), params.dtype).copy_(found)


def _safety_vector(
    at_rank: Callable[[TensorParams, Tensor], Tensor], params: TensorParams, inputs: Sequence[Tensor]
) -> Tensor | None:
    base, _, unaligned = inputs
    vector = base - unaligned
    return at_rank(params, vector) if bool(vector.any()) else None


def _at_given_rank(params: TensorParams, vector: Tensor) -> Tensor:
    if not 0 < params.rank < min(vector.shape):
        return vector
    _, vectors = spectrum.decompose(vector)
    return spectrum.at_rank(vector, vectors, params.rank)


def _at_entropy(params: TensorParams, vector: Tensor) -> Tensor:
    singular, vectors = spectrum.decompose(vector)
    rank = spectrum.entropy_rank(singular, params.threshold)
    params.note(f"lssf: rank {rank}")
    return spectrum.at_rank(vector, vectors, rank)


def _intruders(params: TensorParams, inputs: Sequence[Tensor]) -> Tensor | None:
    base, tuned = inputs
    if torch.equal(base, tuned):
        return None
    found = spectrum.intruders(base, tuned, params.rank, params.threshold)
    return -found if len(found) else None


# --- Gates: which matrices are merged ---


def _gated(params: TensorParams, *, alike: bool) -> Plan:
    """Safe LoRA if `alike`, SafeMERGE if not: both ask whether a change is like its projection on the safety vector."""
    if not spectrum.is_matrix(params.shape):
        ends = [(1 - lam, lam) if alike else (0.0, 1.0) for lam in params.lams]
        rest = (0.0,) * len(params.references)
        return functools.partial(combine, [Coefficients(own, (tuned, *rest)) for own, tuned in ends], params.dtype)
    if alike:
        replaced = yield Whole(functools.partial(_each_matrix, params, _projection))
        return functools.partial(_add_projected, params, torch.from_numpy(replaced))
    gates = yield Whole(functools.partial(_gates, params))
    return functools.partial(_merge_gated, params, gates)


def _projection(params: TensorParams, inputs: Sequence[Tensor]) -> Tensor | None:
    """C·δ − δ for a matrix that is projected."""
    base, tuned, unaligned = inputs[:3]
    change = tuned - base
    if not bool(change.any()):
        return None
    found = spectrum.projected(change, base - unaligned)
    cosine = spectrum.cosine(found, change)
    if cosine > params.threshold:
        return None
    params.note(f"safe_lora: projected (cosine {cosine:.3f})")
    return found.sub_(change)


def _add_projected(
    params: TensorParams, replaced: Tensor, start: int, base: Tensor, tuned: Sequence[Tensor], k: int
) -> Tensor:
    """base + λ·(δ + replaced)."""
    lam = params.lams[k]
    if not len(replaced) or lam == 0:
        rest = (0.0,) * (len(tuned) - 1)
        return combine([Coefficients(1 - lam, (lam, *rest))], params.dtype, start, base, tuned, 0)
    kind = wide_type([base, *tuned])
    found = widened("ground", base, kind)
    change = widened("change", tuned[0], kind).sub_(found)
    found.add_(change.add_(replaced[start : start + base.numel()].to(kind)), alpha=lam)
    return slices.scratch("out", base.numel(), params.dtype).copy_(found)


def _gates(params: TensorParams, base: Tensor, tuned: Tensor, unaligned: Tensor, *safe: Tensor) -> np.ndarray[Any, Any]:
    """Whether each matrix of a tensor is merged: shape (matrices,)."""
    found = []
    whole = [spectrum.matrices(values, params.shape) for values in (base, tuned, unaligned)]
    for ours, theirs, before in zip(*whole, strict=True):
        change = theirs - ours
        cosine = spectrum.cosine(spectrum.projected(change, ours - before), change) if bool(change.any()) else 1.0
        found.append(cosine < params.threshold)
        if found[-1]:
            params.note(f"safe_merge: merged (cosine {cosine:.3f})")
    return np.array(found)


def _merge_gated(
    params: TensorParams, gates: np.ndarray[Any, Any], start: int, base: Tensor, tuned: Sequence[Tensor], k: int
) -> Tensor:
    """λ·tuned + (1−λ)·safe in the matrices whose gate is open, the tuned model elsewhere."""
    lam = params.lams[k]
    if not gates.any() or lam == 1:
        return tuned[0]
    with_safe = "safety_adapter" in params.references
    own = Coefficients(0.0, (lam, 0.0, 1 - lam)) if with_safe else Coefficients(1 - lam, (lam, 0.0))
    if gates.all():
        return combine([own], params.dtype, start, base, tuned, 0)
    size = math.prod(params.shape[-2:])
    out = torch.empty(base.numel(), dtype=params.dtype)
    at = 0
    while at < len(out):
        matrix = (start + at) // size
        stop = min(len(out), (matrix + 1) * size - start)
        part = [values[at:stop] for values in (base, *tuned)]
        merged = combine([own], params.dtype, start + at, part[0], part[1:], 0) if gates[matrix] else part[1]
        out[at:stop].copy_(merged)
        at = stop
    return out
