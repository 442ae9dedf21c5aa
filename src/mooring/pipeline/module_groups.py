"""What sets base and tuned model apart, kept for a run: what is odd about them, how far tuning moved the weights."""

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from mooring.errors import DataError
from mooring.files import atomic_text
from mooring.jsonio import read_as
from mooring.merging.change import Change, Group, module
from mooring.merging.compatibility import belong_together
from mooring.merging.inspect import inspect
from mooring.merging.job import depths
from mooring.models import open_checkpoint
from mooring.reporting.results import Changes

# --- Groups of modules whose λ may differ: attention and all else of a layer, in each third of ---


DEPTHS = ("early", "middle", "late")
KINDS = ("attention", "mlp")
_ATTENTION = re.compile(
    r"(?:self_?|cross_?|linear_|encoder_|encdec)?att(?:n|ention)|w?qkv(?:_proj)?|[qkvo]_proj|query_key_value|att_proj|attn_out",
    re.IGNORECASE,
)

Place = tuple[str, int, str]
"""A stack of layers, a layer of it, and the name of a module within."""


def tensor_names(folder: Path) -> list[str]:
    """The tensors of a base that a merge can change."""
    with open_checkpoint(folder) as checkpoint:
        return [name for name, info in checkpoint.tensors.items() if info.dtype.is_floating_point]


def kind(name: str) -> str:
    """What a module within a layer is, by its name: `attention`, or `mlp`, which stands for all else, norms too."""
    return KINDS[0] if any(_ATTENTION.fullmatch(part) for part in name.split(".")) else KINDS[1]


def group_of(names: Iterable[str]) -> dict[str, str | None]:
    """The group of every tensor, `early attention` … `late mlp`; None outside the layers.

    Early are the layers in the first third of the depth of their stack (`merge.settings.depths`), late those in the
    last; so of two layers the first is early and the second late.
    """
    found: dict[str, str | None] = {}
    for name, depth in depths(names).items():
        place = module(name)
        found[name] = None if place is None else f"{DEPTHS[min(2, int(3 * depth))]} {kind(place[2])}"
    return found


def changed(names: Sequence[str], changes: Changes) -> list[str]:
    """The groups in which tuning changed something, the one with the largest mean relative change first.

    Args:
        names: The base's tensors.
        changes: As measured. What was all zero in the base has no relative change, and does not count.
    """
    relative = {
        (layer, name): value
        for layer, line in zip(changes.layers, changes.relative, strict=True)
        for name, value in zip(changes.modules, line, strict=True)
        if value is not None
    }
    several = len({place[0] for name in names if (place := module(name))}) > 1
    found: dict[str, dict[tuple[str, str], float]] = {}
    for name, group in group_of(names).items():
        place = module(name)
        if place is None or group is None:
            continue
        key = (f"{place[0]}.{place[1]}" if several else str(place[1]), place[2])
        if key in relative:
            found.setdefault(group, {})[key] = relative[key]
    means = {group: sum(values.values()) / len(values) for group, values in found.items()}
    return sorted((group for group in means if means[group] > 0), key=lambda group: (-means[group], group))


def patterns(names: Sequence[str], modules: Mapping[str, float], lam: float) -> dict[str, float]:
    """λ by module as `merge` takes it: patterns of tensors' names, the first that matches deciding.

    Args:
        names: The base's tensors.
        modules: λ by group.
        lam: λ of all else: other groups, and what lies outside the layers.
    """
    layers: dict[str, dict[str, set[int]]] = {}
    heads: dict[tuple[str, str], list[str]] = {}
    for name, group in group_of(names).items():
        place = module(name)
        if place is None or group is None:
            continue
        (stack, number, inner), depth = place, group.split()[0]
        layers.setdefault(stack, {}).setdefault(depth, set()).add(number)
        if kind(inner) == KINDS[0] and (head := _head(inner)) not in heads.setdefault((stack, depth), []):
            heads[stack, depth].append(head)
    found = {}
    for stack in sorted(layers, key=lambda stack: (-len(stack), stack)):  # `encoder.layers` before `layers`
        for depth, numbers in layers[stack].items():
            where = f"{stack}.{{{min(numbers)}-{max(numbers)}}}"
            for head in heads.get((stack, depth), []):
                found[f"{where}.{head}.*"] = modules.get(f"{depth} {KINDS[0]}", lam)
            found[f"{where}.*"] = modules.get(f"{depth} {KINDS[1]}", lam)
    return found | {"*": lam}


def _head(inner: str) -> str:
    """A module's name up to the part that says that it is attention."""
    parts = inner.split(".")
    return ".".join(parts[: 1 + next(i for i, part in enumerate(parts) if _ATTENTION.fullmatch(part))])


FILE = "changes.json"


def check_pair(base: Path, tuned: Path, out: Path) -> None:
    """Hold that two models belong together, and write what is odd about them to `out`.

    Raises:
        UserError: They do not.
    """
    found = belong_together(base, tuned)
    atomic_text(out, json.dumps({"warnings": found}, ensure_ascii=False, indent=1) + "\n")


def measure_changes(base: Path, tuned: Path, out: Path) -> None:
    """Measure how every weight changed and write it to `out`; reads both models once, a slice at a time.

    Args:
        base: Folder of the base.
        tuned: Folder of the tuned model or LoRA adapter.
        out: The file, written in one step.
    """
    atomic_text(out, json.dumps(as_plain(inspect(base, tuned, quick=True).changes), indent=1) + "\n")


def as_plain(changes: Sequence[Change]) -> dict[str, object]:
    """Changes as layers, modules, their relative changes (layers × modules), and the same of what lies outside."""
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
    return {
        "layers": [f"{stack}.{layer}" if several else str(layer) for stack, layer in sorted(cells)],
        "modules": modules,
        "relative": [
            [_finite(Group.of(row[name]).relative) if name in row else None for name in modules]
            for _, row in sorted(cells.items())
        ],
        "outside": outside,
    }


def _finite(value: float) -> float | None:
    """Five digits: the last bits are nobody's business, and JSON has no infinity."""
    return float(f"{value:.5g}") if math.isfinite(value) else None


def read_changes(folder: Path) -> Changes | None:
    """What `measure_changes` wrote to a run folder; `None` where it did not.

    Raises:
        DataError: The file holds something else.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        found: Changes = read_as(path, Changes, "the changes of a run")
    except DataError as error:
        raise DataError(error.message, "remove it, and run again") from None
    return found
