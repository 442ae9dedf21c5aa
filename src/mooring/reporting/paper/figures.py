"""Figures 2 and 3: task score, and attack success rate, over λ, a line per method. Deterministic to the byte."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from mooring.merge_point import MergePoint
from mooring.printable import one_line
from mooring.records import Score
from mooring.reporting.figures import BLUE, GREEN, INK, VERMILION, WIDTH, Dot, bars, style
from mooring.reporting.paper.runs import Group
from mooring.reporting.paper.tables import deviation, mean, unit
from mooring.reporting.tables import Cell, Column, Table
from mooring.text import ARROWS, is_rate, name_of

LOOKS = (
    (BLUE, "o", "-"),
    (VERMILION, "s", "--"),
    (GREEN, "^", "-."),
    ("#cc79a7", "D", ":"),
    ("#e69f00", "v", "-"),
    ("#56b4e9", "P", "--"),
)
"""Colours of the Okabe–Ito palette, each with its own marker and line, which differ in grey too."""
SIDE_BY_SIDE = 2
"""Panels in a row."""


@dataclasses.dataclass(frozen=True, slots=True)
class Curve:
    """One method on one task over λ, and the λ that its seeds chose.

    A dot is the mean over seeds; its bar is one standard deviation to each side, or the 95 % interval of one seed. A
    method without λ has one dot.
    """

    task: str
    method: str
    measure: str
    better: str
    dots: Sequence[Dot]
    chosen: Sequence[float]
    has_lam: bool = True


@dataclasses.dataclass(frozen=True, slots=True)
class PaperFigure:
    """A figure of the paper: its number, caption and curves."""

    number: int
    caption: str
    curves: Sequence[Curve]

    def to_numbers(self) -> Table:
        """Its points, one per row, in percent or nats."""
        heads = ("figure", "task", "method", "measure", "lambda", "value", "low", "high", "chosen")
        rows: list[list[Cell]] = []
        for curve in self.curves:
            names = (self.number, curve.task, curve.method, curve.measure)
            for dot in curve.dots:
                chosen = "yes" if dot.point.lam in curve.chosen else "no"
                rows.append([*names, dot.point.lam if curve.has_lam else None, dot.value, dot.low, dot.high, chosen])
        return Table("", list(map(Column, heads)), rows)


def all_figures(groups: Sequence[Group], main: str) -> list[PaperFigure]:
    """Figures 2 (task score) and 3 (ASR) of one base, as far as there are numbers for them."""
    own = [group for group in groups if group.first.base == main]
    by_module = any(run.results.choice.point.by_module for group in own for run in group.runs)
    around = ", or the single λ around which λ by module was chosen" if by_module else ""
    flat = " A method without λ is a level line." if any(not group.first.has_lam for group in own) else ""
    how = (
        f"over λ, the weight of the tuned model (0 is the base, 1 the tuned model), by merging method, on the "
        f"validation split ({main}). Bars: 95 % intervals over prompts, or one standard deviation where there are "
        f"several seeds. Ringed: the chosen λ{around}.{flat}"
    )
    task = [curve for group in own if group.first.results.choice.metric != "lam" for curve in _curve(group, None)]
    asr = [curve for group in own for curve in _curve(group, "asr")]
    judges = ", ".join(dict.fromkeys(group.first.results.judges[0] for group in own if group.first.results.judges))
    found = [
        PaperFigure(2, f"Figure 2. Task score {how}", task),
        PaperFigure(3, f"Figure 3. Attack success rate {how} Judge: {one_line(judges)}.", asr),
    ]
    return [figure for figure in found if figure.curves]


def _curve(group: Group, measure: str | None) -> list[Curve]:
    """A group's curve on validation, or none; of the score that chose λ where none is named."""
    name = measure or group.first.results.choice.metric
    by_point: dict[MergePoint, list[Score]] = {}
    for run in group.runs:
        for trial in run.results.trials:
            shown = group.first.has_lam or trial.point.is_tuned
            if shown and trial.split == "validation" and name in trial.scores:
                by_point.setdefault(trial.point, []).append(trial.scores[name])
    dots = [dot for point, scores in sorted(by_point.items()) if (dot := _dot(point, scores))]
    if not dots:
        return []
    better = next(iter(by_point.values()))[0].better
    has_lam = group.first.has_lam
    chosen = sorted({run.results.single.lam for run in group.runs}) if has_lam else []
    return [Curve(group.first.task, group.first.method, name, better, dots, chosen, has_lam)]


def _dot(point: MergePoint, scores: Sequence[Score]) -> Dot | None:
    center, spread = mean(scores), deviation(scores)
    if center is None:
        return None
    scale = unit(scores)
    value = scale * center
    ends: Sequence[float | None] = (None, None)
    if len(scores) == 1:
        ends = [None if end is None else scale * end for end in (scores[0].low, scores[0].high)]
    elif spread is not None:
        ends = (value - scale * spread, value + scale * spread)
    return Dot(point, value, *ends)


def draw(figure: PaperFigure) -> Any:
    """A `matplotlib.figure.Figure`: a panel per task, a line per method."""
    from matplotlib.figure import Figure

    tasks = list(dict.fromkeys(curve.task for curve in figure.curves))
    methods = sorted({curve.method for curve in figure.curves}, key=lambda method: (method != "linear", method))
    across = min(SIDE_BY_SIDE, len(tasks))
    down = -(-len(tasks) // across)
    with style():
        drawing = Figure(figsize=(WIDTH * (1 if across == 1 else 1.5), 0.7 + 2.6 * down), layout="constrained")
        panels = drawing.subplots(down, across, squeeze=False).ravel()
        for axes, task in zip(panels, tasks, strict=False):
            curves = [curve for curve in figure.curves if curve.task == task]
            _panel(axes, task, curves, methods)
        for axes in panels[len(tasks) :]:
            axes.set_axis_off()
        found = {
            label: handle for axes in panels for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
        }
        labels = [method for method in map(one_line, methods) if method in found]
        drawing.legend(
            [found[label] for label in labels], labels, loc="outside lower center", ncols=min(3, len(labels))
        )
    return drawing


def _panel(axes: Any, task: str, curves: Sequence[Curve], methods: Sequence[str]) -> None:
    for curve in curves:
        # Beside each other, so that the bars of the methods, which share their ends, do not hide each other.
        place = methods.index(curve.method)
        shift = 0.012 * (place - (len(methods) - 1) / 2)
        colour, marker, line = LOOKS[place % len(LOOKS)]
        if not curve.has_lam:  # one level, whatever λ is
            axes.axhline(curve.dots[0].value, color=colour, linestyle=line, label=one_line(curve.method))
            continue
        xs, ys = [dot.point.lam + shift for dot in curve.dots], [dot.value for dot in curve.dots]
        look = {"color": colour, "marker": marker, "linestyle": line, "markersize": 4.5, "linewidth": 1.5}
        axes.errorbar(xs, ys, yerr=bars(curve.dots), capsize=2, elinewidth=0.8, label=one_line(curve.method), **look)
        ring = [(x, dot.value) for x, dot in zip(xs, curve.dots, strict=True) if dot.point.lam in curve.chosen]
        if ring:
            axes.plot(*zip(*ring, strict=True), "o", color=INK, markersize=11, markerfacecolor="none", linestyle="none")
    measures = list(dict.fromkeys(curve.measure for curve in curves))
    percent = " (%)" if all(map(is_rate, measures)) else ""
    axes.set_ylabel(
        f"{' / '.join(map(name_of, measures)).partition(' (')[0]}{percent}, {ARROWS[curves[0].better]} is better"
    )
    axes.set_title(one_line(task), fontsize=10)
    axes.set_xticks([0, 0.2, 0.4, 0.6, 0.8, 1], ["0\nbase", "0.2", "0.4", "0.6", "0.8", "1\ntuned"])
    axes.set_xlabel("λ")
