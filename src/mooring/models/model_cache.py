"""The cache of models that Mooring makes from other files: converted once, and found again by name."""

import os
from collections.abc import Callable
from pathlib import Path

from mooring.files import atomic_folder, expanded, explained


def cache_folder() -> Path:
    """The folder of converted models: `$MOORING_CACHE`, or `~/.cache/mooring`."""
    return expanded(os.environ.get("MOORING_CACHE") or "~/.cache/mooring")


def cached_model(name: str, write: Callable[[Path], object]) -> Path:
    """The folder of a model in the cache.

    Args:
        name: A name that no other model has; it should contain a digest of what the model is made from.
        write: Writes the model to a folder, which it creates. Called only if the model is not in the cache.

    Raises:
        OutputError: The cache cannot be written.
    """
    out = cache_folder() / "models" / name
    if out.is_dir():
        return out
    from filelock import FileLock

    with explained(out):
        out.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(out.parent / f".{name}.lock"):  # two runs may start at once
        if not out.is_dir():
            with atomic_folder(out) as scratch:
                scratch.rmdir()
                write(scratch)
    return out
