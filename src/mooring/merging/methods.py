"""The merge methods by name: pure functions from slices of tensors and a few numbers to the merged slice.

λ is the weight of the tuned models, everywhere: 0 is the base, 1 the tuned model.

All arithmetic is in float32, or in float64 if an input is. Sums over a tensor are accumulated in float64, one partial
sum per cell of a fixed grid, and added exactly, so results do not depend on slicing or threading. No method reads or
writes a file. To add one, decorate a function in `dense` or `sparse` with `plan.merge_method`.
"""

from collections.abc import Mapping

from mooring.errors import UserError
from mooring.merging import dense, sparse
from mooring.merging.plan import REGISTRY, Method

METHODS: Mapping[str, Method] = REGISTRY
"""Every method by its name in recipes and on the command line."""

BUILT_IN = (dense.__name__, sparse.__name__)
"""The modules that register Mooring's own methods."""


def method_named(name: str) -> Method:
    """Look a method up.

    Raises:
        UserError: It is unknown.
    """
    if name not in METHODS:
        raise UserError(f"method {name!r} is unknown", f"known: {', '.join(METHODS)}", code="usage.unknown_method")
    return METHODS[name]
