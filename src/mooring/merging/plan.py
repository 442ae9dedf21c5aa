"""The types of a merge method's implementation: a plan for one tensor, which may request passes over it."""

import dataclasses
from collections.abc import Callable, Generator, Sequence
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np
import torch
from torch import Tensor

from mooring.merge_methods import Role, Sparsify

Rescale = Literal["inverse", "l1", "none"]
"""How dropped entries are compensated: by 1/density, by restoring the sum of magnitudes, or not at all."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
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
        rank: How many singular vectors count; 0 for all.
        threshold: The method's threshold, such as a cosine.
        references: The roles of the further models, in the order in which they follow the tuned ones.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    numel: int
    lams: tuple[float, ...]
    note: Callable[[str], None]
    base_weight: float | None = None
    weights: tuple[float, ...] = ()
    density: tuple[float, ...] = ()
    gamma: tuple[float, ...] = ()
    epsilon: tuple[float, ...] = ()
    normalize: bool = False
    rescale: Rescale = "none"
    seed: int = 0
    kind: Sparsify | None = None
    rank: int = 0
    threshold: float = 0.0
    references: tuple[Role, ...] = ()


Work: TypeAlias = Callable[[int, Tensor, Sequence[Tensor]], Any]
"""(start, base, tuned and further models) to the result for a slice, which begins at entry `start`, a multiple of the
grid's cell."""


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


@dataclasses.dataclass(frozen=True, slots=True)
class Whole:
    """A computation that needs all entries of a tensor at once, such as a decomposition.

    Attributes:
        work: Called once with every input, flat, in float32 or float64, base first. Returns an array of any shape.
    """

    work: Callable[..., np.ndarray[Any, Any]]


class Apply(Protocol):
    """Merges a slice."""

    def __call__(self, start: int, base: Tensor, tuned: Sequence[Tensor], output: int) -> Tensor:
        """The merged slice for λ number `output`, in the output's type, rounded once; or an input itself.

        It may share memory that the next call on the same thread overwrites.
        """
        ...


Plan: TypeAlias = Generator[Pass | Whole, Any, Apply]
"""Yields the passes that a method needs over a tensor, is sent their results, and returns the formula."""

Formula = Callable[[TensorParams, int], Plan | Apply]
"""(parameters, number of tuned models) to the plan; a method that needs no pass returns the formula at once."""
