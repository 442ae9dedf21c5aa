"""What a merge method is: a plan for one tensor, which requests passes over it, and its entry in the registry."""

import dataclasses
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, Literal, Protocol, TypeAlias, TypeVar

import torch
from torch import Tensor

Rescale = Literal["inverse", "l1", "none"]
"""How dropped entries are compensated: by 1/density, by restoring the sum of magnitudes, or not at all."""


@dataclasses.dataclass(frozen=True, slots=True)
class TensorParams:
    """A tensor to be merged, with the method's parameters for it.

    Attributes:
        name: Its name.
        shape: The sizes of its axes.
        dtype: The type of the merged tensor.
        numel: How many entries are merged (fewer than the shape's if one side has more vocabulary rows).
        lams: λ, one per output.
        base_weight: The base's own coefficient, or None for 1−λ.
        weights: One per tuned model; empty for the method's default.
        density: The share of entries kept, one per tuned model.
        gamma: The share of largest entries dropped (Breadcrumbs), one per tuned model.
        epsilon: Half the width of the keep probability (DELLA), one per tuned model.
        normalize: Whether to divide by the sum of weights.
        rescale: How dropped entries are compensated.
        seed: Random seed.
        note: Called with a sentence about a decision made for this tensor.
        kind: How the method sparsifies changes, if it does.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    numel: int
    lams: tuple[float, ...]
    base_weight: float | None
    weights: tuple[float, ...]
    density: tuple[float, ...]
    gamma: tuple[float, ...]
    epsilon: tuple[float, ...]
    normalize: bool
    rescale: Rescale
    seed: int
    note: Callable[[str], None]
    kind: str = ""


Work: TypeAlias = Callable[[int, Tensor, Sequence[Tensor]], Any]
"""(start, base, tuned) to the result for a slice; the slice begins at entry `start`, a multiple of the grid's cell."""


@dataclasses.dataclass(frozen=True, slots=True)
class Pass:
    """A reduction over a whole tensor.

    Attributes:
        work: Called on every slice, on any thread.
        join: Combines the results of two neighbouring parts.
        broken: Whether a slice's result shows that an input is NaN or Inf there; None if it cannot tell, in which case
            the slice itself is checked.
    """

    work: Work
    join: Callable[[Any, Any], Any]
    broken: Callable[[Any], bool] | None = None


class Apply(Protocol):
    """Merges a slice."""

    def __call__(self, start: int, base: Tensor, tuned: Sequence[Tensor], output: int) -> Tensor:
        """The merged slice for λ number `output`, in the output's type, rounded once; or an input itself.

        It may share memory that the next call on the same thread overwrites.
        """
        ...


Plan: TypeAlias = Generator[Pass, Any, Apply]
"""Yields the passes that a method needs over a tensor, is sent their results, and returns the formula."""

Formula = Callable[[TensorParams, int], Plan | Apply]
"""(parameters, number of tuned models) to the plan; a method that needs no pass returns the formula at once."""

F = TypeVar("F", bound=Formula)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """A merge method.

    Attributes:
        name: Its name in recipes and on the command line.
        plan: The implementation.
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
    plan: Formula
    formula: str
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    least: int = 1
    most: int | None = None
    keeps: bool = True
    sums: bool = False
    bounded: bool = False
    kind: str = ""
    passes: int = 1


REGISTRY: dict[str, Method] = {}
"""Every method by its name; import it from `methods`, which registers Mooring's own."""


def merge_method(
    name: str,
    *,
    formula: str,
    options: Mapping[str, Any] | None = None,
    least: int = 1,
    most: int | None = None,
    keeps: bool = True,
    sums: bool = False,
    bounded: bool = False,
    kind: str = "",
    passes: int = 1,
) -> Callable[[F], F]:
    """Register a function as a merge method, under a name; the arguments are the fields of `Method`."""

    def register(plan: F) -> F:
        REGISTRY[name] = Method(
            name=name,
            plan=plan,
            formula=formula,
            options=dict(options or {}),
            least=least,
            most=most,
            keeps=keeps,
            sums=sums,
            bounded=bounded,
            kind=kind,
            passes=passes,
        )
        return plan

    return register
