"""Every merge method: its formula, options and limits, once. `mooring.merging.methods` has the implementations."""

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal

from mooring.errors import UserError

Sparsify = Literal["magnitude", "outliers", "random", "magprune"]
"""How a method drops entries of a change: the smallest (TIES), the largest and smallest (Breadcrumbs), at random
(DARE), or at random by rank (DELLA)."""


@dataclasses.dataclass(frozen=True, slots=True)
class Method:
    """A merge method.

    Attributes:
        name: Its name in recipes and on the command line.
        formula: In one line, for tables.
        options: The options that it takes apart from λ, with their defaults; None if the default depends on the models.
        least: The fewest tuned models.
        most: The most; None for any number.
        keeps: Whether an entry that no tuned model changed keeps the base's value.
        sums: Whether every entry of the result is a sum of all inputs' entries there, so that NaN and Inf propagate.
        bounded: Whether it interpolates, so that λ must be in [0, 1]; the others add λ times a change.
        kind: How it sparsifies changes, if it does.
        passes: How often it reads its inputs, the writing pass included, at most.
    """

    name: str
    formula: str
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    least: int = 1
    most: int | None = None
    keeps: bool = True
    sums: bool = False
    bounded: bool = False
    kind: Sparsify | None = None
    passes: int = 1


_SUM: Mapping[str, Any] = {"weights": None, "normalize": False}
_SPARSE = {**_SUM, "density": 1.0, "rescale": "none"}
_RANDOM = {**_SPARSE, "rescale": "inverse", "seed": 42}
_OUTLIERS = {**_SPARSE, "gamma": 0.01}
_ON_SPHERE: Any = {"keeps": False, "bounded": True, "passes": 2}

_ALL = (
    Method(
        "linear",
        "(1−λ)·base + λ·Σ wᵢ·tunedᵢ",
        {"weights": None, "normalize": True, "base_weight": None},
        sums=True,
        bounded=True,
    ),
    Method("task_arithmetic", "base + λ·Σ wᵢ·δᵢ", _SUM, sums=True),
    Method("lines", "base + λ(depth)·Σ wᵢ·δᵢ", _SUM, sums=True),
    Method("slerp", "sin((1−λ)ω)/sin ω · base + sin(λω)/sin ω · tuned", most=1, **_ON_SPHERE),
    Method("model_stock", "base + λ·t·(mean of tuned − base)", least=2, bounded=True, passes=2),
    Method(
        "karcher",
        "Riemannian mean on the sphere, weights 1−λ and λ·wᵢ",
        {"weights": None, "base_weight": None},
        **_ON_SPHERE,
    ),
    Method(
        "ties", "base + λ·mean of the agreeing largest δᵢ", {**_SPARSE, "normalize": True}, kind="magnitude", passes=4
    ),
    Method("dare_linear", "base + λ·Σ wᵢ·δᵢ·mask/density", _RANDOM, kind="random"),
    Method("dare_ties", "base + λ·sum of the agreeing δᵢ·mask/density", _RANDOM, kind="random"),
    Method(
        "della",
        "base + λ·mean of the agreeing δᵢ·mask/p(rank)",
        {**_RANDOM, "normalize": True, "epsilon": 0.15},
        kind="magprune",
    ),
    Method("della_linear", "base + λ·Σ wᵢ·δᵢ·mask/p(rank)", {**_RANDOM, "epsilon": 0.15}, kind="magprune"),
    Method("breadcrumbs", "base + λ·Σ wᵢ·δᵢ, largest and smallest dropped", _OUTLIERS, kind="outliers", passes=4),
    Method(
        "breadcrumbs_ties",
        "base + λ·sum of the agreeing δᵢ, largest and smallest dropped",
        _OUTLIERS,
        kind="outliers",
        passes=4,
    ),
)
METHODS: Mapping[str, Method] = MappingProxyType({method.name: method for method in _ALL})
"""Every method by name."""
SINGLE = tuple(name for name, method in METHODS.items() if method.least == 1)
"""Names of the methods that work on one tuned model, which are those of a recipe."""


def method_named(name: str) -> Method:
    """Look a method up.

    Raises:
        UserError: It is unknown (`usage.unknown_method`).
    """
    if name not in METHODS:
        raise UserError(f"method {name!r} is unknown", f"known: {', '.join(METHODS)}", code="usage.unknown_method")
    return METHODS[name]
