"""What a method of merging is: a plan for one tensor, which asks for passes over it and says how a slice is merged.

It yields passes that it needs over the tensor (an angle for SLERP, ranks for TIES), gets back what they found, and
returns how a slice is merged. So no tensor is ever whole in memory, and a method reads as its formula does. `engine`
drives the plans.
"""

import dataclasses
import math
from collections.abc import Callable, Generator, Sequence
from typing import Any, Literal, Protocol, TypeAlias

import torch
from torch import Tensor

from mooring.merge import sweep


@dataclasses.dataclass(frozen=True, slots=True)
class Site:
    """A tensor that is to be merged, with its own numbers.

    Attributes:
        name: Its name.
        shape: The sizes of its axes.
        dtype: The type of the merged tensor.
        numel: How many entries are merged (fewer than the shape's where one side has more vocabulary rows).
        lams: λ, one an output.
        base_weight: The base's own coefficient, or None for 1−λ.
        weights: One a tuned model; empty for the method's default.
        density: The share of entries kept, one a tuned model.
        gamma: The share of largest entries dropped (Breadcrumbs), one a tuned model.
        epsilon: Half the width of the keep probability (DELLA), one a tuned model.
        normalize: Whether to divide by the sum of weights.
        rescale: What makes up for dropped entries.
        seed: Seed of what is drawn.
        note: Told, in a sentence, what was decided for this tensor alone.
        kind: How the method thins changes out (`sparsify`), if it does.
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
    rescale: Literal["inverse", "l1", "none"]
    seed: int
    note: Callable[[str], None]
    kind: str = ""


Work: TypeAlias = Callable[[int, Tensor, Sequence[Tensor]], Any]
"""(start, base, tuned) to what a slice says; the slice begins at entry `start`, a multiple of the grid's cell."""


@dataclasses.dataclass(frozen=True, slots=True)
class Pass:
    """Something to be found out over a whole tensor.

    Attributes:
        work: Called on every slice, on any thread.
        join: Puts what two neighbouring parts found together.
        broken: Whether what was found in a slice shows that an input is NaN or Inf there; where it cannot tell, it is
            None, and the slice itself is looked at.
    """

    work: Work
    join: Callable[[Any, Any], Any]
    broken: Callable[[Any], bool] | None = None


class Apply(Protocol):
    """Merges a slice."""

    def __call__(self, start: int, base: Tensor, tuned: Sequence[Tensor], output: int) -> Tensor:
        """The merged slice for λ number `output`, in the site's type, rounded once; or an input as it is.

        It may lie in memory that the next call on the same thread uses again.
        """
        ...


Plan: TypeAlias = Generator[Pass, Any, Apply]


def wide_type(tensors: Sequence[Tensor]) -> torch.dtype:
    """float32, or float64 where one is that."""
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


def widened(slot: str, values: Tensor, kind: torch.dtype) -> Tensor:
    """A copy in a wider type, in a thread's own memory."""
    return sweep.scratch(slot, values.numel(), kind).copy_(values)


def divisor_of(weights: Sequence[float]) -> float:
    """The sum of weights, or 1 where it is next to nothing, so that weights which cancel divide by no zero."""
    total = math.fsum(weights)
    return total if abs(total) >= 1e-8 else 1.0
