"""A picture of how much the tuning changed each weight: modules by layers. The same numbers give the same bytes."""

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mooring.errors import UserError
from mooring.files import atomic_bytes
from mooring.merging.change import Change, grouped
from mooring.merging.layers import layer, module

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLE = "Change by tuning: ‖tuned − base‖ / ‖base‖ of each weight"
INK, GROUND = "#1b1f24", "#e9ebee"
"""Lines and type; the colour of what did not change."""

_ROW, _COLUMN = 0.26, 0.13
"""Inches of a cell; the whole is never narrower than `_NARROWEST` or wider than `_WIDEST` inches of cells."""
_NARROWEST, _WIDEST = 4.0, 14.0
_MOST_OUTSIDE = 12


def check_name(path: Path) -> Path:
    """Check that the name of a heat map is that of a PNG file.

    Raises:
        UserError: It does not end in .png.
    """
    if path.suffix.lower() != ".png":
        raise UserError(f"{path}: the heat map is a PNG", "name a file that ends in .png", code="usage.not_png")
    return path


def write(changes: Sequence[Change], path: Path) -> Path:
    """Write the heat map as a PNG, in one step.

    Raises:
        UserError: The name does not end in .png.
        OutputError: It cannot be written.
    """
    check_name(path)
    import matplotlib as mpl

    data = io.BytesIO()
    with mpl.rc_context({"font.family": "DejaVu Sans", "text.color": INK, "axes.labelcolor": INK}):
        draw(changes).savefig(data, format="png", dpi=150, metadata={"Software": None})
    atomic_bytes(path, data.getvalue())
    return path


def draw(changes: Sequence[Change]) -> "Figure":
    """The figure: a row a module, a column a layer, and below a strip for each tensor outside the layers."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator

    rows, layers, cells = table(changes)
    outside = _outside(changes)
    width = min(_WIDEST, max(_NARROWEST, _COLUMN * len(layers)))
    heights = [_ROW * n for n in (len(rows), len(outside)) if n]
    figure = Figure(figsize=(width + 3.6, sum(heights) + 1.7), layout="constrained")
    panels = list(figure.subplots(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0])
    shown = [value for row in cells for value in row] + [value for _, value in outside]
    norm = scale(shown)
    look = {"norm": norm, "cmap": _colours(), "aspect": "auto", "interpolation": "nearest"}
    axes = list(panels)
    if rows:
        grid = panels.pop(0)
        grid.imshow([[_drawn(value, norm) for value in row] for row in cells], **look)
        every = max(1, math.ceil(len(layers) * 0.3 / width))
        every = next(step for step in (1, 2, 5, 10, 20, 50, 100, 10**6) if step >= every)
        ticks = [place for place, number in enumerate(layers) if number % every == 0]
        grid.set_xticks(ticks, [str(layers[place]) for place in ticks])
        grid.set_xlabel("layer")
        _names(grid, rows)
    if outside:
        strip = panels.pop(0)
        strip.imshow([[_drawn(value, norm)] for _, value in outside], **look)
        strip.set_xticks([])
        _names(strip, [name for name, _ in outside])
        for place, (_, value) in enumerate(outside):
            strip.text(0, place, _percent(value), ha="center", va="center", size=8, color=_legible(value, norm))
        strip.set_xlabel("outside the layers")
    figure.suptitle(TITLE, size=11)
    bar = figure.colorbar(ScalarMappable(norm, _colours()), ax=axes, fraction=0.05, pad=0.02, aspect=18)
    if isinstance(norm, LogNorm):
        bar.ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=40))
    bar.ax.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.2g} %")
    bar.ax.tick_params(labelsize=8)
    bar.outline.set_visible(False)
    bar.set_label("grey: unchanged", size=8)
    return figure


def table(changes: Sequence[Change]) -> tuple[list[str], list[int], list[list[float]]]:
    """(modules, layers, relative change by module and layer); NaN where a layer has no such module."""
    several = len({place[0] for c in changes if (place := layer(c.name))}) > 1

    def key(name: str) -> str:
        place = module(name)
        if place is None:
            return ""
        stack, number, kind = place
        return f"{f'{stack}: ' if several else ''}{kind.removesuffix('.weight')}\n{number}"

    found = {tuple(name.split("\n")): group.relative for name, group in grouped(changes, key).items() if name}
    rows = list(dict.fromkeys(kind for kind, _ in found))
    layers = sorted({int(number) for _, number in found})
    return rows, layers, [[found.get((kind, str(number)), math.nan) for number in layers] for kind in rows]


def _outside(changes: Sequence[Change]) -> list[tuple[str, float]]:
    """Tensors outside the layers; where there are many, those that changed most."""
    found = [(c.name.removesuffix(".weight"), c.relative) for c in changes if module(c.name) is None]
    if len(found) <= _MOST_OUTSIDE:
        return found
    most = sorted(found, key=lambda item: -item[1])[:_MOST_OUTSIDE]
    return [item for item in found if item in most]


def scale(values: Sequence[float]) -> Any:
    """From the smallest change to the largest; logarithmic where they lie far apart."""
    from matplotlib.colors import LogNorm, Normalize

    real = [value for value in values if 0 < value < math.inf]
    low, high = min(real, default=1e-3), max(real, default=1.0)
    if high / low > 10:
        return LogNorm(max(low, high / 1e4), high)
    return Normalize(0, high)


def _colours() -> Any:
    import matplotlib as mpl

    return mpl.colormaps["viridis"].with_extremes(bad=GROUND)


def _drawn(value: float, norm: Any) -> float:
    """A value as it is coloured: no change is grey, what is off the scale takes its end."""
    if value == 0 or math.isnan(value):
        return math.nan
    return float(min(max(value, norm.vmin), norm.vmax))


def _legible(value: float, norm: Any) -> str:
    return INK if value == 0 or norm(_drawn(value, norm)) > 0.55 else "white"


def _percent(value: float) -> str:
    if value == 0:
        return "unchanged"
    return f"{100 * value:.2g} %" if math.isfinite(value) else "from zero"


def _names(axes: Any, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), [name if len(name) <= 44 else f"…{name[-43:]}" for name in names], size=8)
    axes.tick_params(length=0, labelsize=8)
    axes.spines[:].set_visible(False)
    for place in range(1, len(names)):
        axes.axhline(place - 0.5, color="white", linewidth=1)
