"""The methods of merging by name: pure functions from slices of tensors and a few numbers to the merged slice.

λ is the weight of the tuned models, everywhere: 0 is the base, 1 the tuned model.

All arithmetic is in float32, or float64 where an input has it; sums over a tensor are in float64, a number a cell of a
fixed grid, added exactly: the result does not hang on how the tensor was cut or on threads. Nothing here, or in the
files of the formulas, reads or writes a file.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Literal

from mooring.merging.dense import Plan, Site, karcher, linear, lines, model_stock, slerp, task_arithmetic
from mooring.merging.sparse import breadcrumbs, breadcrumbs_ties, dare_linear, dare_ties, della, della_linear, ties


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """What there is to know about a method besides its formula.

    Attributes:
        plan: The formula.
        formula: In a line, for tables.
        options: Which of `Options` mean something to it, besides λ.
        least: The fewest tuned models.
        most: The most.
        normalize: The default.
        rescale: The default.
        keeps: Whether an entry that no tuned model changed keeps the base's value.
        sums: Whether every entry of the result is a sum of all inputs' entries there, so that NaN and Inf pass on.
        kind: How it thins changes out (`sparsify`), if it does.
        passes: How often it reads its inputs, the writing pass included, at most.
    """

    plan: Callable[[Site, int], Plan]
    formula: str
    options: frozenset[str]
    least: int = 1
    most: int | None = None
    normalize: bool = False
    rescale: Literal["inverse", "l1", "none"] = "none"
    keeps: bool = True
    sums: bool = False
    kind: str = ""
    passes: int = 1


_WEIGHED = frozenset({"weights", "normalize"})
_THIN = _WEIGHED | {"density", "rescale"}
_MIX = _WEIGHED | {"base_weight"}

METHODS: Mapping[str, Method] = {
    "linear": Method(plan=linear, formula="(1−λ)·base + λ·Σ wᵢ·tunedᵢ", options=_MIX, normalize=True, sums=True),
    "slerp": Method(
        plan=slerp,
        formula="sin((1−λ)ω)/sin ω · base + sin(λω)/sin ω · tuned",
        options=frozenset(),
        most=1,
        keeps=False,
        passes=2,
    ),
    "task_arithmetic": Method(plan=task_arithmetic, formula="base + λ·Σ wᵢ·δᵢ", options=_WEIGHED, sums=True),
    "lines": Method(plan=lines, formula="base + λ(depth)·Σ wᵢ·δᵢ", options=_WEIGHED, sums=True),
    "ties": Method(
        plan=ties,
        kind="magnitude",
        formula="base + λ·mean of the agreeing largest δᵢ",
        options=_THIN,
        normalize=True,
        passes=4,
    ),
    "dare_linear": Method(
        plan=dare_linear,
        kind="random",
        formula="base + λ·Σ wᵢ·δᵢ·mask/density",
        options=_THIN | {"seed"},
        rescale="inverse",
    ),
    "dare_ties": Method(
        plan=dare_ties,
        kind="random",
        formula="base + λ·sum of the agreeing δᵢ·mask/density",
        options=_THIN | {"seed"},
        rescale="inverse",
    ),
    "della": Method(
        plan=della,
        kind="magprune",
        formula="base + λ·mean of the agreeing δᵢ·mask/p(rank)",
        options=_THIN | {"seed", "epsilon"},
        normalize=True,
        rescale="inverse",
    ),
    "della_linear": Method(
        plan=della_linear,
        kind="magprune",
        formula="base + λ·Σ wᵢ·δᵢ·mask/p(rank)",
        options=_THIN | {"seed", "epsilon"},
        rescale="inverse",
    ),
    "breadcrumbs": Method(
        plan=breadcrumbs,
        kind="outliers",
        formula="base + λ·Σ wᵢ·δᵢ, largest and smallest dropped",
        options=_THIN | {"gamma"},
        passes=4,
    ),
    "breadcrumbs_ties": Method(
        plan=breadcrumbs_ties,
        kind="outliers",
        formula="base + λ·sum of the agreeing δᵢ, largest and smallest dropped",
        options=_THIN | {"gamma"},
        passes=4,
    ),
    "model_stock": Method(
        plan=model_stock, formula="base + λ·t·(mean of tuned − base)", options=frozenset(), least=2, passes=2
    ),
    "karcher": Method(
        plan=karcher,
        formula="Riemannian mean on the sphere, weights 1−λ and λ·wᵢ",
        options=_MIX - {"normalize"},
        keeps=False,
        passes=2,
    ),
}
"""Every method by its name in recipes and on the command line."""
