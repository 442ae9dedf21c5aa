"""How a function of plain values is called: in this process, or on a cluster."""

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

R = TypeVar("R")


class Call(Protocol):
    """Calls a function of plain values, here or on a cluster."""

    def __call__(self, function: Callable[..., R], *args: Any, whole_node: bool = False) -> R:
        """Its result; errors are its own. `whole_node` is whether it uses all cores of the machine that it is on."""
        ...


def here(function: Callable[..., R], *args: Any, whole_node: bool = False) -> R:
    """Call a function in this process."""
    return function(*args)
