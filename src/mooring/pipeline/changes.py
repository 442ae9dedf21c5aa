"""How base and tuned model differ: warnings about the pair, and how far tuning moved each layer and module."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from mooring import jsonio
from mooring.errors import DataError
from mooring.files import atomic_text
from mooring.jsonio import read_as
from mooring.merging.change import Change, Group
from mooring.merging.compatibility import check_pair
from mooring.merging.inspect import inspect_pair
from mooring.merging.layers import module
from mooring.merging.pair import ModelPair
from mooring.reporting.results import Changes


def write_warnings(pairs: Sequence[ModelPair], out: Path) -> None:
    """Check that each base and tuned model belong together, and write warnings about them, each once."""
    warnings = list(dict.fromkeys(warning for pair in pairs for warning in check_pair(pair)))
    atomic_text(out, jsonio.dumps({"warnings": warnings}, indent=1) + "\n")


def read_warnings(path: Path) -> list[str]:
    """Read the warnings that `write_warnings` wrote."""
    found: Mapping[str, Sequence[str]] = read_as(path, Mapping[str, Sequence[str]], "warnings")
    return list(found.get("warnings", []))


def write_changes(pair: ModelPair, out: Path) -> None:
    """Measure how far each weight moved, and write it; reads both models once, a slice at a time."""
    changes = inspect_pair(pair, quick=True).changes
    atomic_text(out, json.dumps(layer_changes(changes).to_dict(), indent=1) + "\n")


def layer_changes(changes: Sequence[Change]) -> Changes:
    """The relative changes by layer and module, and of the tensors outside the layers."""
    cells: dict[tuple[str, int], dict[str, list[Change]]] = {}
    outside: dict[str, float | None] = {}
    for change in changes:
        place = module(change.name)
        if place is None:
            outside[change.name] = _finite(change.relative)
        else:
            stack, layer, name = place
            cells.setdefault((stack, layer), {}).setdefault(name, []).append(change)
    several = len({stack for stack, _ in cells}) > 1
    modules = list(dict.fromkeys(name for row in cells.values() for name in row))
    return Changes(
        layers=[f"{stack}.{layer}" if several else str(layer) for stack, layer in sorted(cells)],
        modules=modules,
        relative=[
            [_finite(Group.of(row[name]).relative) if name in row else None for name in modules]
            for _, row in sorted(cells.items())
        ],
        outside=outside,
    )


def _finite(value: float) -> float | None:
    """Five digits, since the last bits are noise; None for infinity, which JSON does not have."""
    return float(f"{value:.5g}") if math.isfinite(value) else None


def read_changes(path: Path) -> Changes | None:
    """Read what `write_changes` wrote; None if there is no such file."""
    if not path.is_file():
        return None
    try:
        found: Changes = read_as(path, Changes, "the changes of a run")
    except DataError as error:
        raise DataError(error.message, "remove it, and run again", code="data.bad_record") from None
    return found
