"""The patterns of an adapter, which PEFT matches with Python's `re` as it loads it: they may take forever."""

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mooring.models.adapter_config import ADAPTER_CONFIG, malformed

_SECONDS = 10.0
"""For all patterns of an adapter and all modules of its model; ordinary ones take milliseconds."""
_MATCH = "import json, re, sys; p, n = json.load(sys.stdin); [re.match(x, y) for x in p for y in n]"
_REPEATS = "*+{?"


def refuse_endless_patterns(folder: Path, config: Mapping[str, Any], modules: Sequence[str]) -> None:
    """Raise if an adapter's patterns take too long to match with the names of a model's modules.

    They are matched in a process of its own, as PEFT does, since Python's `re` has no time limit.

    Args:
        folder: The adapter.
        config: Its `adapter_config.json`.
        modules: Names of the modules.

    Raises:
        ModelError: They do (`model.bad_adapter`).
    """
    patterns = [pattern for own, pattern in _patterns(config) if any(mark in own for mark in _REPEATS)]
    if not patterns:
        return
    task = json.dumps([patterns, list(modules)]).encode()
    try:
        subprocess.run([sys.executable, "-I", "-S", "-c", _MATCH], input=task, capture_output=True, timeout=_SECONDS)
    except subprocess.TimeoutExpired:
        raise malformed(f"{folder / ADAPTER_CONFIG}: its patterns of modules take too long to match") from None


def _patterns(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What the file says, and what PEFT makes of it (0.21: `tuners_utils.py` and `get_pattern_key`)."""
    for own in _texts(config, "target_modules", lists=False), _texts(config, "exclude_modules", lists=False):
        yield from ((text, rf"(?:{text})\Z") for text in own)
    for text in _texts(config, "modules_to_save"):
        yield text, rf"(^|.*\.){text}($|\..*)"
    for text in _texts(config, "layers_pattern"):
        yield text, rf"(?:^|.*?\.){text}\.(?P<idx>\d+)\."
    for key in "rank_pattern", "alpha_pattern":
        found = config.get(key)
        for text in found if isinstance(found, dict) else ():
            yield text, rf"(.*\.)?({text})$"


def _texts(config: Mapping[str, Any], key: str, *, lists: bool = True) -> list[str]:
    """A field that is a text, or texts if it may be a list."""
    found = config.get(key)
    if isinstance(found, str):
        return [found]
    return [each for each in found if isinstance(each, str)] if lists and isinstance(found, list) else []
