"""How much tuning changed each weight, modules down and layers across: for the page, for Markdown, and as a picture.

All three share the labels, the numbers and the choice of what is shown. The same numbers give the same bytes.
"""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mooring.errors import UserError
from mooring.files import atomic_bytes
from mooring.reporting.results import Changes
from mooring.reporting.tables import Column, Table
from mooring.text import MISSING

TITLE = "Change by tuning: ‖tuned − base‖ / ‖base‖ of each weight"
STEPS = 9
"""Shades between the least and the most change; step 0 is no change."""
MOST = 12
"""Rows of a table, and tensors outside the layers: those that changed most."""
GROUND = "#e9ebee"
"""The colour of what did not change."""
_ROW, _COLUMN = 0.26, 0.13
_NARROWEST, _WIDEST = 4.0, 14.0
"""Inches of a cell, and of all columns together."""


@dataclasses.dataclass(frozen=True, slots=True)
class Cell:
    """A relative change with its place."""

    value: float
    layer: str
    module: str


@dataclasses.dataclass(frozen=True, slots=True)
class Heatmap:
    """What is shown of the changes: `rows` are modules × layers, `outside` the tensors that changed most first.

    `None` is a module that a layer lacks, or a base that is all zero. `changed` is everything within the layers that
    changed, the least first.
    """

    layers: Sequence[str]
    modules: Sequence[str]
    rows: Sequence[Sequence[float | None]]
    outside: Sequence[tuple[str, float | None]]
    changed: Sequence[Cell]

    @classmethod
    def of(cls, changes: Changes) -> "Heatmap":
        """The heat map of changes."""
        modules = [short(name) for name in changes.modules]
        rows = [[line[column] for line in changes.relative] for column in range(len(modules))]
        changed = [
            Cell(value, layer, module)
            for layer, line in zip(changes.layers, changes.relative, strict=True)
            for module, value in zip(modules, line, strict=True)
            if value
        ]
        outside = [(short(name), value) for name, value in changes.outside.items()]
        outside.sort(key=lambda item: (-math.inf if item[1] is None else -item[1], item[0]))
        changed.sort(key=_order)
        return cls(changes.layers, modules, rows, outside[:MOST], changed)

    def step(self, value: float | None) -> int:
        """The shade of a change, on a logarithmic scale."""
        if not value:
            return 0
        low, high = self.changed[0].value, self.changed[-1].value
        if high <= low:
            return STEPS
        return 1 + min(STEPS - 1, int(STEPS * math.log(value / low) / math.log(high / low)))


def _order(cell: Cell) -> tuple[float, str, str]:
    return cell.value, cell.layer, cell.module


def short(name: str) -> str:
    """A tensor's name without what all have: `self_attn.q_proj`."""
    return name.removeprefix("model.").removesuffix(".weight")


def percent(value: float | None, unknown: str = MISSING) -> str:
    """A relative change in percent, two digits."""
    return unknown if value is None else "0 %" if value == 0 else f"{100 * value:.2g} %"


def change_tables(heatmap: Heatmap) -> list[Table]:
    """The heat map in words: the modules and the layers that changed most; nothing if nothing changed."""
    if not heatmap.changed:
        return []
    modules = [
        [name, percent(most.value), most.layer, percent(least)]
        for name, most, least in _extremes(heatmap.changed, "module")
    ]
    layers = [
        [name, percent(most.value), most.module, percent(least)]
        for name, most, least in _extremes(heatmap.changed, "layer")
    ]
    numeric = {"most", "in layer", "least"}
    return [
        Table(_caption(what, len(rows)), [Column(head, numeric=head in numeric) for head in heads], rows[:MOST])
        for what, heads, rows in (
            ("kinds of module", ("module", "most", "in layer", "least"), modules),
            ("layers", ("layer", "most", "in", "least"), layers),
        )
    ]


def _extremes(cells: Sequence[Cell], by: str) -> list[tuple[str, Cell, float]]:
    """By layer or module: its name, its largest change and its least value; the largest first."""
    groups: dict[str, list[Cell]] = {}
    for cell in cells:
        groups.setdefault(getattr(cell, by), []).append(cell)
    found = [(name, max(group, key=_order), min(cell.value for cell in group)) for name, group in groups.items()]
    return sorted(found, key=lambda entry: -entry[1].value)


def _caption(what: str, count: int) -> str:
    some = f"the {MOST} of {count} {what}" if count > MOST else f"the {what}"
    return f"‖tuned − base‖ / ‖base‖, {some} that changed, most first."


# --- As a picture ---


def check_name(path: Path) -> Path:
    """Check that the name of a heat map is that of a PNG file.

    Raises:
        UserError: It does not end in .png.
    """
    if path.suffix.lower() != ".png":
        raise UserError(f"{path}: the heat map is a PNG", "name a file that ends in .png", code="usage.not_png")
    return path


def write(changes: Changes, path: Path) -> Path:
    """Write the heat map as a PNG, in one step.

    Raises:
        UserError: The name does not end in .png.
        OutputError: It cannot be written.
    """
    from mooring.reporting.figures import png, style

    check_name(path)
    with style():
        atomic_bytes(path, png(draw(Heatmap.of(changes)), dpi=150))
    return path


def draw(heatmap: Heatmap) -> Any:
    """A `matplotlib.figure.Figure`: a row per module, a column per layer, and below a row per tensor outside them."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator

    layers, outside = heatmap.layers, heatmap.outside
    width = min(_WIDEST, max(_NARROWEST, _COLUMN * len(layers)))
    heights = [_ROW * n for n in (len(heatmap.rows), len(outside)) if n]
    figure = Figure(figsize=(width + 3.6, sum(heights) + 1.7), layout="constrained")
    axes = list(figure.subplots(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0])
    panels = iter(axes)
    norm = scale([value for row in heatmap.rows for value in row] + [value for _, value in outside])
    look = {"norm": norm, "cmap": _colours(), "aspect": "auto", "interpolation": "nearest"}
    if heatmap.rows:
        grid = next(panels)
        grid.imshow([[_drawn(value, norm) for value in row] for row in heatmap.rows], **look)
        least = math.ceil(len(layers) * 0.3 / width)
        every = next(step for step in (1, 2, 5, 10, 20, 50, 100, 10**6) if step >= least)
        several = any(not layer.isdigit() for layer in layers)  # stacks of layers, such as encoder and decoder
        ticks = [place for place, layer in enumerate(layers) if int(layer.rpartition(".")[2]) % every == 0]
        grid.set_xticks(ticks, [layers[place] for place in ticks], rotation=90 if several else 0)
        grid.set_xlabel("layer")
        _label_rows(grid, heatmap.modules)
    if outside:
        strip = next(panels)
        strip.imshow([[_drawn(value, norm)] for _, value in outside], **look)
        strip.set_xticks([])
        _label_rows(strip, [name for name, _ in outside])
        for place, (_, value) in enumerate(outside):
            colour = _legible(value, norm)
            strip.text(0, place, percent(value, "from zero"), ha="center", va="center", size=8, color=colour)
        strip.set_xlabel("outside the layers")
    figure.suptitle(TITLE, size=11)
    bar = figure.colorbar(ScalarMappable(norm, _colours()), ax=axes, fraction=0.05, pad=0.02, aspect=18)
    if isinstance(norm, LogNorm):
        bar.ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=40))
    bar.ax.yaxis.set_major_formatter(lambda value, _: percent(value))
    bar.ax.tick_params(labelsize=8)
    bar.outline.set_visible(False)
    bar.set_label("grey: unchanged", size=8)
    return figure


def scale(values: Sequence[float | None]) -> Any:
    """From the smallest change to the largest; logarithmic if they are far apart."""
    from matplotlib.colors import LogNorm, Normalize

    real = [value for value in values if value]
    low, high = min(real, default=1e-3), max(real, default=1.0)
    return LogNorm(max(low, high / 1e4), high) if high / low > 10 else Normalize(0, high)


def _colours() -> Any:
    import matplotlib as mpl

    return mpl.colormaps["viridis"].with_extremes(bad=GROUND)


def _drawn(value: float | None, norm: Any) -> float:
    """A value as it is coloured: no change is grey, what is off the scale has the colour of its end."""
    return float(min(max(value, norm.vmin), norm.vmax)) if value else math.nan


def _legible(value: float | None, norm: Any) -> str:
    from mooring.reporting.figures import INK

    return INK if not value or norm(_drawn(value, norm)) > 0.55 else "white"


def _label_rows(axes: Any, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), [name if len(name) <= 44 else f"…{name[-43:]}" for name in names], size=8)
    axes.tick_params(length=0, labelsize=8)
    axes.grid(False)
    axes.spines[:].set_visible(False)
    for place in range(1, len(names)):
        axes.axhline(place - 0.5, color="white", linewidth=1)
