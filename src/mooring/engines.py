"""The engines by name. `mooring.inference.load` has the loaders of those that are built in."""

import dataclasses
from collections.abc import Callable
from typing import Any

from mooring.plugins import Registry


@dataclasses.dataclass(frozen=True, slots=True)
class EngineKind:
    """An engine, as recipes name it.

    Attributes:
        name: Its name.
        load: Opens a model, as `inference.load.load_engine` does: from (folder or name of the model, the section of the
            recipe, system prompt, file for logs) to an `inference.engine.Engine`. None for those that are built in.
        packages: Packages whose versions its numbers depend on.
    """

    name: str
    load: Callable[..., Any] | None = None
    packages: tuple[str, ...] = ()


ENGINES: Registry[EngineKind] = Registry(
    "engines",
    (
        EngineKind("transformers", packages=("torch", "transformers")),
        EngineKind("vllm", packages=("torch", "transformers", "vllm")),
        EngineKind("openai"),  # the versions of a server are not known
    ),
)
"""The engines by name."""
