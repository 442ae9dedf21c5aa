"""Groups of modules that may have a λ of their own: kinds of modules in a layer, in each third of the depth."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, TypeAlias

from mooring.merging.layers import depths, layer_labels, module
from mooring.models import Checkpoint
from mooring.reporting.results import Changes

Level: TypeAlias = Literal["modules", "layers", "tensors"]
"""What has a λ of its own: a kind of modules in a third of the depth, or in a layer; or a tensor."""
LEVELS: tuple[Level, ...] = ("modules", "layers", "tensors")
DEPTHS = ("early", "middle", "late")
KINDS = ("attention", "router", "shared experts", "experts", "mlp")
"""Attention; a mixture's router, shared experts and routed experts; all else of a layer, norms included."""
_ATTENTION = re.compile(
    r"(?:self_?|cross_?|linear_|encoder_|encdec)?att(?:n|ention)|w?qkv(?:_proj)?|[qkvo]_proj|query_key_value|att_proj|attn_out",
    re.IGNORECASE,
)

_PARTS = {
    "attention": _ATTENTION,
    "router": re.compile(r"gate|router"),
    "shared experts": re.compile(r"shared_(?:experts?|mlp)(?:_gate)?"),
    "experts": re.compile(r"experts"),
}
"""What a part of a module's name is in each kind but the last. `gate` is a router only in a mixture of experts."""

Place = tuple[str, int, str]
"""A stack of layers, a layer of it, and the name of a module within."""


def tensor_names(base: Checkpoint) -> list[str]:
    """The tensors of a base that a merge can change."""
    return [name for name, info in base.tensors.items() if info.dtype.is_floating_point]


def kind(name: str, *, mixture: bool = False) -> str:
    """The kind of a module within a layer, by its name; `mixture` if the model is a mixture of experts."""
    head = _head(name, mixture)
    return head[0] if head else KINDS[-1]


def group_of(names: Iterable[str]) -> dict[str, str | None]:
    """The group of every tensor, `early attention` … `late mlp`; None outside the layers.

    Early are the layers in the first third of the depth of their stack (`merge.settings.depths`), late those in the
    last; so of two layers the first is early and the second late. Only mixtures of experts have the groups `router`,
    `shared experts` and `experts`.
    """
    names = list(names)
    mixture = _is_mixture(names)
    found: dict[str, str | None] = {}
    for name, depth in depths(names).items():
        place = module(name)
        group = f"{DEPTHS[min(2, int(3 * depth))]} {kind(place[2], mixture=mixture)}" if place else None
        found[name] = group
    return found


def grouped(names: Iterable[str], level: Level) -> dict[str, str | None]:
    """The group of every tensor at a level: as `group_of`; `layer 3 attention`; or its own name. None outside the
    layers, except for `tensors`."""
    names = list(names)
    if level == "modules":
        return group_of(names)
    if level == "tensors":
        return {name: name for name in names}
    mixture, labels = _is_mixture(names), layer_labels(names)
    places = {name: module(name) for name in names}
    return {
        name: f"layer {labels[name]} {kind(place[2], mixture=mixture)}" if place else None
        for name, place in places.items()
    }


def changed(names: Sequence[str], changes: Changes) -> list[str]:
    """The groups in which tuning changed something, the one with the largest mean relative change first.

    A module that was all zero in the base has no relative change, and does not count.
    """
    relative = {
        (layer, name): value
        for layer, line in zip(changes.layers, changes.relative, strict=True)
        for name, value in zip(changes.modules, line, strict=True)
        if value is not None
    }
    labels = layer_labels(names)
    found: dict[str, dict[tuple[str, str], float]] = {}
    for name, group in group_of(names).items():
        place = module(name)
        if place is None or group is None:
            continue
        key = (labels[name], place[2])
        if key in relative:
            found.setdefault(group, {})[key] = relative[key]
    means = {group: math.fsum(values.values()) / len(values) for group, values in found.items()}
    return sorted((group for group in means if means[group] > 0), key=lambda group: (-means[group], group))


def patterns(names: Sequence[str], modules: Mapping[str, float], lam: float) -> dict[str, float]:
    """λ by group as `merge` takes it: patterns of tensor names, of which the first match applies.

    `modules` has groups of one level, as `grouped` names them. `lam` applies to all else: other groups, and tensors
    outside the layers.
    """
    if not {*modules} <= {*group_of(names).values()}:
        return _by_name(names, modules, lam)
    layers: dict[str, dict[str, set[int]]] = {}
    heads: dict[tuple[str, str], dict[str, str]] = {}  # what names begin with, and its kind
    mixture = _is_mixture(names)
    for name, group in group_of(names).items():
        place = module(name)
        if place is None or group is None:
            continue
        (stack, number, inner), depth = place, group.split()[0]
        layers.setdefault(stack, {}).setdefault(depth, set()).add(number)
        if head := _head(inner, mixture):
            heads.setdefault((stack, depth), {})[head[1]] = head[0]
    found = {}
    for stack in sorted(layers, key=lambda stack: (-len(stack), stack)):  # `encoder.layers` before `layers`
        for depth, numbers in layers[stack].items():
            where = f"{stack}.{{{min(numbers)}-{max(numbers)}}}"
            here = heads.get((stack, depth), {})
            for begins, what in sorted(here.items(), key=lambda item: KINDS.index(item[1])):
                found[f"{where}.{begins}.*"] = modules.get(f"{depth} {what}", lam)
            found[f"{where}.*"] = modules.get(f"{depth} {KINDS[-1]}", lam)
    return found | {"*": lam}


def _by_name(names: Sequence[str], modules: Mapping[str, float], lam: float) -> dict[str, float]:
    """λ by the name of each tensor in a group of `layers` or `tensors`; a name that ends with another one is first."""
    level = next(level for level in LEVELS if {*modules} <= {*grouped(names, level).values()})
    groups = {name: group for name, group in grouped(names, level).items() if group is not None}
    found = {name: modules[group] for name, group in groups.items() if group in modules}
    return {name: found[name] for name in sorted(found, key=lambda name: (-len(name), name))} | {"*": lam}


def _is_mixture(names: Iterable[str]) -> bool:
    return any("experts" in name.split(".") for name in names)


def _head(inner: str, mixture: bool) -> tuple[str, str] | None:
    """The kind of a module and its name up to the part that shows it; None for all else of a layer."""
    parts = inner.split(".")
    for what, pattern in _PARTS.items():
        if what == KINDS[0] or mixture:
            number = next((i for i, part in enumerate(parts) if pattern.fullmatch(part)), None)
            if number is not None:
                return what, ".".join(parts[: number + 1])
    return None
