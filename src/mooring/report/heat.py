"""How far tuning moved each weight, as cells of a heat map: modules down, layers across."""

import dataclasses
import math
from collections.abc import Sequence

from mooring.report.results import Changes
from mooring.report.table import Table
from mooring.report.text import MISSING

STEPS = 9
"""Shades between the least and the most change; step 0 is none."""
MOST = 12
"""Rows of a table in words."""
MOST_OUTSIDE = 12
"""Tensors outside the layers that are named, those that changed most."""


@dataclasses.dataclass(frozen=True, slots=True)
class Heat:
    """A heat map as text and shades.

    Attributes:
        layers: Names of the columns.
        rows: A module, and for each layer the text and the step, 0 to `STEPS`.
        low: The least change but none, as text.
        high: The most.
        most: Where it is.
        outside: Tensors outside the layers.
    """

    layers: Sequence[str]
    rows: Sequence[tuple[str, Sequence[tuple[str, int]]]]
    low: str
    high: str
    most: str
    outside: str


def heat(changes: Changes | None) -> Heat | None:
    """The heat map; `None` where nothing was measured, or nothing changed within the layers."""
    if changes is None:
        return None
    cells = _cells(changes)
    if not cells:
        return None
    (low, *_), (high, layer, module) = min(cells), max(cells)
    rows = [
        (
            short(name),
            [
                (f"{short(name)}, layer {layer}: {percent(line[column])}", _step(line[column], low, high))
                for layer, line in zip(changes.layers, changes.relative, strict=True)
            ],
        )
        for column, name in enumerate(changes.modules)
    ]
    outside = sorted(changes.outside.items(), key=lambda item: (-(item[1] or 0), item[0]))[:MOST_OUTSIDE]
    return Heat(
        layers=changes.layers,
        rows=rows,
        low=percent(low),
        high=percent(high),
        most=f"{short(module)} of layer {layer}, {percent(high)}",
        outside=", ".join(f"{short(name)} {percent(value)}" for name, value in outside),
    )


def change_tables(changes: Changes | None) -> list[Table]:
    """The heat map in words: the modules and the layers that changed most; nothing where there is no heat map."""
    if changes is None:
        return []
    cells = _cells(changes)
    modules, layers = _most(cells, 2), _most(cells, 1)
    found = [
        Table(
            _said("kinds of module", len(modules)),
            ("module", "most", "in layer", "least"),
            [[short(name), percent(high[0]), high[1], percent(low)] for name, high, low in modules[:MOST]],
        ),
        Table(
            _said("layers", len(layers)),
            ("layer", "most", "in", "least"),
            [[name, percent(high[0]), short(high[2]), percent(low)] for name, high, low in layers[:MOST]],
        ),
    ]
    return found if cells else []


Cell = tuple[float, str, str]
"""A change, its layer, its module."""


def _cells(changes: Changes) -> list[Cell]:
    """All that changed within the layers."""
    return [
        (value, layer, module)
        for layer, line in zip(changes.layers, changes.relative, strict=True)
        for module, value in zip(changes.modules, line, strict=True)
        if value
    ]


def _most(cells: Sequence[Cell], by: int) -> list[tuple[str, Cell, float]]:
    """By layer (1) or module (2): its name, its largest change and its least; the largest first."""
    groups: dict[str, list[Cell]] = {}
    for cell in cells:
        groups.setdefault(str(cell[by]), []).append(cell)
    found = [(name, max(group), min(group)[0]) for name, group in groups.items()]
    return sorted(found, key=lambda entry: -entry[1][0])


def _said(what: str, count: int) -> str:
    some = f"the {MOST} of {count} {what}" if count > MOST else f"the {what}"
    return f"‖tuned − base‖ / ‖base‖, {some} that changed, most first."


def short(name: str) -> str:
    """A tensor's name without what all have: `self_attn.q_proj`."""
    return name.removeprefix("model.").removesuffix(".weight")


def percent(value: float | None) -> str:
    """A relative change in percent, two digits."""
    return MISSING if value is None else "0 %" if value == 0 else f"{100 * value:.2g} %"


def _step(value: float | None, low: float, high: float) -> int:
    """The shade of a change: evenly spaced on a logarithmic scale."""
    if not value:
        return 0
    if high <= low:
        return STEPS
    return 1 + min(STEPS - 1, int(STEPS * math.log(value / low) / math.log(high / low)))
