"""Methods that thin the changes out before they add them up."""

import functools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mooring.merge import sweep
from mooring.merge.plans import Plan, Site, divisor_of, wide_type, widened
from mooring.merge.sparsify import Sparsifier, grid_of, sparsifiers

_ZERO = torch.zeros(())


def _thinned(site: Site, models: int, consensus: bool) -> Plan:
    """θ = base + λ · combination of wᵢ·thinned(tunedᵢ − base); what `site.kind` means is in `sparsify`."""
    thin = yield from sparsifiers(site.kind, site, models)
    weights = site.weights or (1.0,) * models
    add = elect if consensus else add_up
    return functools.partial(
        _add_thinned,
        site,
        grid_of(site.kind, site),
        thin,
        functools.partial(add, weights=weights, normalize=site.normalize),
    )


def _add_thinned(
    site: Site,
    grid: int,
    thin: Sequence[Sparsifier],
    mix: Callable[[Sequence[Tensor]], Tensor],
    start: int,
    base: Tensor,
    tuned: Sequence[Tensor],
    k: int,
) -> Tensor:
    if site.lams[k] == 0:
        return base
    kind = wide_type([base, *tuned])
    out = sweep.scratch("out", base.numel(), site.dtype)
    for number, (place, first, *others) in enumerate(sweep.cells(grid, out, base, *tuned)):  # a cell stays in the cache
        ground = widened("ground", first, kind)
        changes = [
            keep(start + number * grid, widened(f"change {m}", t, kind).sub_(ground))
            for m, (keep, t) in enumerate(zip(thin, others, strict=True))
        ]
        mixed = mix(changes)
        # λ·mixed with its zeros made +0 or −0, so that a base of −0 stays that, as in a slice that no model changed
        mixed = torch.sub(_ZERO, mixed, out=mixed) if site.lams[k] > 0 else mixed.add_(0)
        place.copy_(ground.sub_(mixed, alpha=abs(site.lams[k])))
    return out


def add_up(changes: Sequence[Tensor], weights: Sequence[float], normalize: bool) -> Tensor:
    """Σ wᵢ·δᵢ, divided by Σ wᵢ where asked. May change its inputs."""
    divisor = divisor_of(weights) if normalize else 1.0
    total = changes[0].mul_(weights[0] / divisor) if weights[0] != divisor else changes[0]
    for change, weight in zip(changes[1:], weights[1:], strict=True):
        total.add_(change, alpha=weight / divisor)
    return total


def elect(changes: Sequence[Tensor], weights: Sequence[float], normalize: bool) -> Tensor:
    """TIES's election and disjoint merge: for each entry, the sum of those wᵢ·δᵢ that have the sign of Σ wᵢ·δᵢ.

    Where asked it is divided by the sum of the weights that took part. A sum of 0 counts as positive. May change its
    inputs.

    Source: Yadav et al. 2023, arXiv:2306.01708, section 3.
    """
    if len(changes) == 1:  # one voice elects itself
        factor = weights[0] if not normalize or weights[0] == 0 else 1.0
        return changes[0].mul_(factor) if factor != 1 else changes[0]
    votes = [change.mul_(weight) for change, weight in zip(changes, weights, strict=True)]
    sign = torch.zeros_like(votes[0])
    for vote in votes:
        sign.add_(vote)
    sign.ge_(0).mul_(2).sub_(1)
    total, divisor = torch.zeros_like(sign), torch.zeros_like(sign)
    for vote, weight in zip(votes, weights, strict=True):
        agrees = torch.sign(vote).eq_(sign)
        total.addcmul_(vote, agrees)
        divisor.add_(agrees, alpha=weight)
    if not normalize:
        return total
    # weights of both signs may cancel to a rounding error
    near = 1e-6 * math.fsum(map(abs, weights)) if min(weights) < 0 else 0.0
    return total.div_(divisor.masked_fill_(divisor.abs().le_(near).bool(), 1))


def ties(site: Site, models: int) -> Plan:
    """TIES: keep the `density` largest entries of each change, elect a sign for each entry, and take the disjoint mean.

    Of the n entries of a tensor exactly max(1, ⌊density·n⌋) are kept; of equal ones the first. The threshold is exact,
    from two histograms over the bit pattern of |δ| in float32.

    Source: Yadav et al. 2023, TIES-Merging, arXiv:2306.01708. In mergekit: `ties`, λ as `lambda`.
    """
    return (yield from _thinned(site, models, consensus=True))


def dare_linear(site: Site, models: int) -> Plan:
    """DARE: drop each entry of a change with probability p = 1 − density, rescale the others by 1/(1−p), add up.

    Which entries go is a function of (seed, tensor, position). `rescale: l1` restores the sum of magnitudes instead.

    Source: Yu et al. 2023, Language models are Super Mario, arXiv:2311.03099, eq. 2. In mergekit: `dare_linear`, whose
    `rescale` is the l1 one.
    """
    return (yield from _thinned(site, models, consensus=False))


def dare_ties(site: Site, models: int) -> Plan:
    """DARE's drop and rescale, then TIES's election and disjoint merge.

    Source: Yu et al. 2023, arXiv:2311.03099; Yadav et al. 2023, arXiv:2306.01708. In mergekit: `dare_ties`.
    """
    return (yield from _thinned(site, models, consensus=True))


def della(site: Site, models: int) -> Plan:
    """DELLA: drop entries at random, small ones more often (MagPrune), rescale, elect a sign, take the disjoint mean.

    In each row the keep probability rises with the rank of |δ| from density − ε to density + ε; a kept entry is divided
    by its probability (`rescale: l1` restores the sum of magnitudes instead, as mergekit does).

    Source: Deep et al. 2024, DELLA-Merging, arXiv:2406.11617, section 3. In mergekit: `della`, with the same ε.
    """
    return (yield from _thinned(site, models, consensus=True))


def della_linear(site: Site, models: int) -> Plan:
    """DELLA's dropping, then the plain sum of changes.

    Source: Deep et al. 2024, arXiv:2406.11617. In mergekit: `della_linear`.
    """
    return (yield from _thinned(site, models, consensus=False))


def breadcrumbs(site: Site, models: int) -> Plan:
    """Model Breadcrumbs: drop the `gamma` largest entries of each change and the smallest, so that `density` stay.

    Of n entries ⌊density·n⌋ stay: those below the ⌊gamma·n⌋ largest; of equal ones the first count as smaller.

    Source: Davari and Belilovsky 2023, Model Breadcrumbs, arXiv:2312.06795. In mergekit: `breadcrumbs`.
    """
    return (yield from _thinned(site, models, consensus=False))


def breadcrumbs_ties(site: Site, models: int) -> Plan:
    """Model Breadcrumbs's thinning, then TIES's election and disjoint merge.

    Source: Davari and Belilovsky 2023, arXiv:2312.06795; Yadav et al. 2023, arXiv:2306.01708. In mergekit:
    `breadcrumbs_ties`.
    """
    return (yield from _thinned(site, models, consensus=True))
