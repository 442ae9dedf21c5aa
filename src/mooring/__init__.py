"""Keep a fine-tuned language model as safe as the aligned model it came from.

>>> import mooring
>>> mooring.safeguard("base/", "tuned/", task="task.jsonl", out="runs/mine")  # doctest: +SKIP
>>> mooring.merge("base/", "tuned/", lam=0.6, out="merged/")  # doctest: +SKIP
"""

from typing import TYPE_CHECKING, Any

from mooring.api import generate, inspect, merge, report, run, safeguard, score, select, tune
from mooring.errors import MooringError, UserError

if TYPE_CHECKING:
    from mooring.config import Recipe

__version__ = "0.1.0"

__all__ = [
    "MooringError",
    "Recipe",
    "UserError",
    "__version__",
    "generate",
    "inspect",
    "merge",
    "report",
    "run",
    "safeguard",
    "score",
    "select",
    "tune",
]


def __getattr__(name: str) -> Any:
    if name == "Recipe":  # pydantic takes longer to load than `mooring --help` may take
        from mooring.config import Recipe

        return Recipe
    raise AttributeError(f"module 'mooring' has no attribute {name!r}")
