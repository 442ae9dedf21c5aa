"""Every merge method: its formula, options and limits, once. `mooring.merging.methods` has the implementations."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, get_args

from mooring.errors import UserError
from mooring.plugins import Registry

Sparsify = Literal["magnitude", "outliers", "random", "magprune"]
"""How a method drops entries of a change: the smallest (TIES), the largest and smallest (Breadcrumbs), at random
(DARE), or at random by rank (DELLA)."""

Role = Literal["unaligned", "safety_adapter"]
"""What a further model is to a merge: the pre-trained model that the base was aligned from, or a model with more of the
base's safety, such as a LoRA adapter on the base that was tuned on refusals."""
ROLES: tuple[Role, ...] = get_args(Role)


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
        anchored: Whether λ = 0 is the base.
        requires: The further models that it cannot do without.
        accepts: All further models that it takes.
        matrices: Whether one tensor at a time is whole in memory, for a decomposition or a ranking.
        kind: How it sparsifies changes, if it does.
        passes: How often it reads its inputs, the writing pass included, at most.
        has_lam: Whether λ is chosen for it. Model Stock determines its ratio from the angles between tuned models.
        implementation: Of a plug-in: from (`merging.plan.TensorParams`, number of tuned models) to the plan that merges
            a tensor, as the functions in `merging/dense.py`. None for those in `merging.methods.FORMULAS`.
    """

    name: str
    formula: str
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    least: int = 1
    most: int | None = None
    keeps: bool = True
    sums: bool = False
    bounded: bool = False
    anchored: bool = True
    requires: tuple[Role, ...] = ()
    accepts: tuple[Role, ...] = ()
    matrices: bool = False
    kind: Sparsify | None = None
    passes: int = 1
    has_lam: bool = True
    implementation: Callable[..., Any] | None = None

    @property
    def random(self) -> bool:
        """Whether it draws a mask, so that another seed gives another merged model."""
        return "seed" in self.options

    def refuse_dropping_nothing(self, densities: Sequence[object], models: int) -> None:
        """Raise if the densities of a method that drops entries keep all of them, so that it is task arithmetic.

        With several tuned models, one that elects signs differs from task arithmetic even so.

        Args:
            densities: The given densities, numbers or else; empty for the default.
            models: How many tuned models there are.

        Raises:
            UserError: Nothing would be dropped (`usage.drops_nothing`).
        """
        drops = self.kind is not None and self.options["density"] < 1  # RESTA keeps all by default
        same = models == 1 or not self.consensus
        if drops and same and densities and all(density == 1 for density in densities):
            what = f"{self.name}: at density 1 it drops nothing and computes what task_arithmetic does"
            hint = f"give a density below 1, such as {self.options['density']:g}, or use task_arithmetic"
            raise UserError(what, hint, code="usage.drops_nothing")

    @property
    def consensus(self) -> bool:
        """Whether it elects a sign for each entry, and merges only the changes that agree with it."""
        several = self.kind is not None and self.most is None
        return several and not self.name.endswith("_linear") and self.name != "breadcrumbs"


_SUM: Mapping[str, Any] = {"weights": None, "normalize": False}
_SPARSE = {**_SUM, "density": 0.5, "rescale": "none"}
"""Half of a change's entries: Yu et al. 2023 (arXiv:2311.03099) find that fine-tuned models hardly change at drop rates
up to 0.9. The rate of Farn et al. is not published."""
_RANDOM = {**_SPARSE, "rescale": "inverse", "seed": 42}
_OUTLIERS = {**_SPARSE, "density": 0.9, "gamma": 0.01}
"""Shares as in mergekit's example of Breadcrumbs (docs/merge_methods.md)."""
_ON_SPHERE: Any = {"keeps": False, "bounded": True, "passes": 2}
_UNALIGNED: Any = {"requires": ("unaligned",), "accepts": ("unaligned",)}
_MATRICES: Any = {"most": 1, "keeps": False, "matrices": True, "passes": 2}

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
    Method("model_stock", "base + λ·t·(mean of tuned − base)", least=2, bounded=True, passes=2, has_lam=False),
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
    Method(
        "nuslerp",
        "SLERP of base and tuned, or base + λ·SLERP of two δᵢ",
        {"weights": None},
        most=2,
        keeps=False,
        bounded=True,
        passes=2,
    ),
    Method("multislerp", "base + λ·spherical mean of δᵢ", {**_SUM, "normalize": True}, passes=2),
    Method("nearswap", "base + λ·sign(δ)·min(|δ|, t)", {"threshold": 0.001}, most=1),
    Method("sce", "base + λ·mean of the agreeing δᵢ that vary most", {"density": 1.0}, matrices=True, passes=2),
    Method("arcee_fusion", "base + λ·δ where δ is important", most=1, matrices=True, passes=2),
    Method("chat_vector", "base + λ·Σ wᵢ·(tunedᵢ − unaligned)", _SUM, sums=True, **_UNALIGNED),
    Method(
        "resta",
        "base + δ·mask/density + (1−λ)·(base − unaligned)",
        {"density": 1.0, "rescale": "inverse", "seed": 42},
        most=1,
        anchored=False,
        kind="random",
        **_UNALIGNED,
    ),
    Method(
        "lox",
        "tuned + (1−λ)·(base − unaligned) at rank k",
        {"rank": 6},
        anchored=False,
        **_UNALIGNED,
        **_MATRICES,
    ),
    Method(
        "lssf",
        "tuned + (1−λ)·(base − unaligned) at the rank that holds most of its entropy",
        {"threshold": 0.5},
        anchored=False,
        **_UNALIGNED,
        **_MATRICES,
    ),
    Method(
        "safe_lora",
        "base + λ·δ, projected on base − unaligned where the two are not alike",
        {"threshold": 0.5},
        **_UNALIGNED,
        **_MATRICES,
    ),
    Method(
        "safe_merge",
        "λ·tuned + (1−λ)·safe where δ is unlike base − unaligned, tuned elsewhere",
        {"threshold": 0.35},
        bounded=True,
        anchored=False,
        requires=("unaligned",),
        accepts=("unaligned", "safety_adapter"),
        **_MATRICES,
    ),
    Method(
        "intruders",
        "tuned − (1−λ)·Σ u·σ·vᵀ of singular vectors unlike the base's",
        {"rank": 10, "threshold": 0.5},
        anchored=False,
        **_MATRICES,
    ),
)
METHODS: Registry[Method] = Registry("merge_methods", _ALL)
"""Every method by name."""


def method_named(name: str) -> Method:
    """Look a method up.

    Raises:
        UserError: It is unknown (`usage.unknown_method`).
    """
    if name not in METHODS:
        raise UserError(f"method {name!r} is unknown", f"known: {', '.join(METHODS)}", code="usage.unknown_method")
    return METHODS[name]


def as_references(unaligned: object = None, safety_adapter: object = None) -> dict[Role, str]:
    """Further models by role, without those that are None."""
    given: dict[Role, object] = {"unaligned": unaligned, "safety_adapter": safety_adapter}
    return {role: str(ref) for role, ref in given.items() if ref is not None}


def check_references(method: str, given: Iterable[str]) -> None:
    """Check that a method gets the further models that it requires, and no others.

    Args:
        method: Its name.
        given: The roles of the further models.

    Raises:
        UserError: One is missing (`usage.missing_model`), or the method does not take it (`usage.unused_model`).
    """
    known, roles = method_named(method), tuple(given)
    for role in known.requires:
        if role not in roles:
            hint = f"name {_SAID[role]} by --{role.replace('_', '-')}"
            raise UserError(f"method {method} requires {_SAID[role]}", hint, code="usage.missing_model")
    for other in roles:
        if other not in known.accepts:
            takes = ", ".join(name for name, each in METHODS.items() if other in each.accepts)
            what = f"method {method} does not use {other}"
            raise UserError(what, f"leave it out, or use {takes}", code="usage.unused_model")


_SAID: Mapping[str, str] = {
    "unaligned": "the pre-trained model that the base was aligned from",
    "safety_adapter": "a model that is safer than the base",
}
