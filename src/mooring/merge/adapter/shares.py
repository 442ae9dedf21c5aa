"""How far each change of some LoRA adapters goes in their merge."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from mooring.checkpoint import Adapter, Checkpoint
from mooring.checkpoint.lora_parts import Change
from mooring.errors import UserError
from mooring.merge import sphere
from mooring.merge.plans import Site
from mooring.merge.sweep import CELL
from mooring.merge.values import same

LEAVE_OUT = "leave out --as-adapter"

Weights = Mapping[str, tuple[float, ...]]
"""Name of a tensor to what each adapter's change of it counts for: θ = base + Σ cᵢ·changeᵢ."""


@dataclasses.dataclass(frozen=True, slots=True)
class Inputs:
    """A base and adapters on it.

    Attributes:
        base: The base.
        adapters: Bound to it.
    """

    base: Checkpoint
    adapters: Sequence[Adapter]

    @property
    def names(self) -> list[str]:
        """What the adapters change, in their order and by their names."""
        return list(dict.fromkeys(name for adapter in self.adapters for name in adapter.changes))

    def changes(self, name: str) -> list[tuple[int, Adapter, Change]]:
        """Who changes a tensor, and how."""
        known = ((i, adapter, adapter.changes.get(name)) for i, adapter in enumerate(self.adapters))
        return [(i, adapter, change) for i, adapter, change in known if change is not None]

    def source(self, name: str) -> str:
        """The base's tensor that has the values of a tensor before tuning."""
        return next(a.sources[name] for a in self.adapters if name in a.changes)


def fractions(inputs: Inputs, method: str, sites: Mapping[str, Site]) -> Weights:
    """What each adapter's change of a tensor counts for, for every tensor that one of them changes.

    Linear: λ·wᵢ/Σw (with a base weight b: wᵢ/(b + Σw)); task arithmetic: λ·wᵢ; Model Stock: λ·t/N. As in `rules`.

    Raises:
        UserError: λ lies outside [0, 1], or the weights scale the base too, which no adapter can.
    """
    found = {}
    for name in inputs.names:
        site = sites.get(name) or sites[inputs.source(name)]
        if not 0 <= site.lams[0] <= 1:
            raise UserError(f"λ is {site.lams[0]:g} for {name}, outside [0, 1]", LEAVE_OUT)
        found[name] = _fractions(inputs, method, site, name)
    return found


def _fractions(inputs: Inputs, method: str, site: Site, name: str) -> tuple[float, ...]:
    models, lam = len(inputs.adapters), site.lams[0]
    if method == "model_stock":
        ratio, reason = sphere.model_stock_ratio(gram(inputs, name))
        if reason:
            site.note(f"model_stock: {reason}")
        return (lam * ratio / models,) * models
    weights = site.weights or (1.0,) * models
    total = math.fsum(weights)
    if method == "task_arithmetic":
        return tuple(lam * w / (total if site.normalize else 1.0) for w in weights)
    if site.base_weight is None:
        return tuple(lam * w / total for w in weights)
    total += site.base_weight
    if not site.normalize and not math.isclose(total, 1):
        raise UserError(f"the weights sum to {total:g} for {name}, which scales the base too", LEAVE_OUT)
    return tuple(w / total for w in weights)


def gram(inputs: Inputs, name: str) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """Inner products of the adapters' changes of a tensor, in float64: (adapters, adapters).

    Of low rank: ⟨sᵢBᵢAᵢ, sⱼBⱼAⱼ⟩ = sᵢsⱼ·Σ (BᵢᵀBⱼ) ∘ (AᵢAⱼᵀ), so that the product is never multiplied out.
    """
    found = np.zeros((len(inputs.adapters),) * 2)
    known = inputs.changes(name)
    if all(change.a and (change.stored is None or holds_base(inputs, name)) for _, _, change in known):
        pairs = [(i, adapter.tensor(c.a), adapter.tensor(c.b), c.scale) for i, adapter, c in known if c.a and c.b]
        above = torch.cat([a.double() for _, a, _, _ in pairs])
        beside = torch.cat([b.double() * scale for _, _, b, scale in pairs], dim=1)
        product = ((beside.T @ beside) * (above @ above.T)).split([len(a) for _, a, _, _ in pairs])  # type: ignore[no-untyped-call]
        for (i, *_), row in zip(pairs, product, strict=True):
            for (j, *_), block in zip(pairs, row.split([len(a) for _, a, _, _ in pairs], dim=1), strict=True):
                found[i, j] = float(block.sum())
        return found
    source = inputs.source(name)
    count = inputs.base.tensors[source].numel
    for start in range(0, count, CELL):
        stop = min(start + CELL, count)
        base = inputs.base.read(source, start, stop)
        moved = {}
        for i, adapter, _ in known:
            bound = name if name in adapter.changed else source
            moved[i] = adapter.read_tuned(bound, start, stop, base).double() - base.double()
        for i, first in moved.items():
            for j, second in moved.items():
                found[i, j] += float(first.dot(second))
    return found


def holds_base(inputs: Inputs, name: str) -> bool:
    """Whether the base weights that PEFT saved along with an adapter are the base's own, so can be left out."""
    source = inputs.source(name)
    info = inputs.base.tensors[source]
    for _, adapter, change in inputs.changes(name):
        if change.stored is None:
            continue
        if change.alone or adapter.tensors[change.stored].shape != info.shape:
            return False
        for start in range(0, info.numel, CELL):
            stop = min(start + CELL, info.numel)
            if not same(inputs.base.read(source, start, stop), adapter.read(change.stored, start, stop)):
                return False
    return True
