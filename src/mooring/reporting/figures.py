"""The figures: task score and attack success rate over λ, and the training loss. Deterministic to the byte."""

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from mooring.merge_point import BASE, TUNED, MergePoint
from mooring.records import Score
from mooring.reporting.results import Results
from mooring.text import ARROWS, is_rate, name_of, one_line

INK = "#1b1f24"
"""All that is not data; in the page it becomes the text's colour."""
BLUE, VERMILION, GREEN = "#0072b2", "#d55e00", "#009e73"
"""Of the Okabe–Ito palette: told apart by the colour-blind, and in grey by their markers."""
WIDTH = 5.0
"""Inches: narrow, so that the type keeps its size in a column of a paper and on a phone."""

RING: dict[str, Any] = {
    "color": INK,
    "markersize": 14,
    "markerfacecolor": "none",
    "markeredgewidth": 1.6,
    "linestyle": "none",
}
"""Around what was chosen."""

HOLLOW: dict[str, Any] = {"markerfacecolor": "none", "markeredgewidth": 1.3, "linestyle": "none"}
STAR: dict[str, Any] = {"marker": "*", "markersize": 9, "markerfacecolor": INK, "linestyle": "none"}
"""λ by module that was taken."""
OVER = "not shown to keep the bound"

Point = tuple[MergePoint, Score]


def tradeoff(results: Results) -> Any:
    """The figure of the report, a `matplotlib.figure.Figure`.

    The upper panel shows the deciding task score, the lower one the attack success rate, over λ from the base (0) to
    the tuned model (1): in colour on the split that λ was chosen on, hollow where λ is not shown to keep the bound; as
    diamonds on the test split; 95 % intervals as bars, the bound dashed, the chosen λ ringed (or the nearest to the
    bound). λ by module that was taken is a star, on the test split. Without a task there is one panel.
    """
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    metric = results.choice.metric
    names = [name for name in (metric, "asr") if _points(results, name, "validation") or _points(results, name, "test")]
    with style():
        figure = Figure(figsize=(WIDTH, 0.9 + 2.25 * len(names)), layout="constrained")
        panels = figure.subplots(len(names), 1, sharex=True, squeeze=False)[:, 0]
        for axes, name in zip(panels, names, strict=True):
            _panel(axes, results, name)
        _name_ends(panels[-1])
        entries = list(zip(*panels[-1].get_legend_handles_labels(), strict=True))
        entries.sort(key=lambda entry: isinstance(entry[0], Line2D))  # first what has intervals: the scores
        figure.legend(*zip(*entries, strict=True), loc="outside lower center", ncols=2)
    return figure


def _panel(axes: Any, results: Results, name: str) -> None:
    colour, marker = (VERMILION, "o") if name == "asr" else (BLUE, "s")
    chosen_on = _points(results, name, "validation")
    reported = _points(results, name, "test")
    single = results.single
    if chosen_on:
        look: dict[str, Any] = {"color": colour, "marker": marker, "markersize": 5}
        filled = [place for place, (point, _) in enumerate(chosen_on) if results.keeps(point) is not False]
        _series(axes, chosen_on, is_rate(name), label="validation (λ chosen)", markevery=filled, **look)
        over = [(at.lam, _scaled(score.value, is_rate(name))) for at, score in chosen_on if results.keeps(at) is False]
        if over:
            axes.plot(*zip(*over, strict=True), label=OVER, **look | HOLLOW)
    # Beside the others, so that the bars do not hide each other.
    ends_and_chosen = [(point, score) for point, score in reported if point in (BASE, single, TUNED)]
    look = {"color": INK, "marker": "D", "markersize": 4.5, "markerfacecolor": "none", "linestyle": "none"}
    if ends_and_chosen:
        label = "test" if results.choice.point.by_module else "test (reported)"
        _series(axes, ends_and_chosen, is_rate(name), 0.035, label=label, **look)
    taken = results.score("merged", name) if results.choice.point.by_module else None
    if taken and taken.value is not None:
        _series(axes, [(single, taken)], is_rate(name), 0.075, label="test, λ by module", **look | STAR)
    for point, score in chosen_on or reported:
        if point == single:
            value = _scaled(score.value, is_rate(name))
            axes.plot([point.lam], [value], "o", label=f"{results.single_is} {point.label}", **RING)
    if name == "asr":
        bound = 100 * results.choice.bound
        axes.axhline(bound, color=INK, linestyle=(0, (5, 3)), linewidth=1, label=f"bound {bound:.1f} %")
    better = (chosen_on or reported)[0][1].better
    unit = " (%)" if is_rate(name) else ""
    axes.set_ylabel(f"{name_of(name).replace(' (', chr(10) + '(')}{unit}\n{ARROWS[better]} is better")
    axes.margins(y=0.12)
    if is_rate(name):
        low, high = axes.get_ylim()
        axes.set_ylim(max(low, -4), min(high, 104))


def _series(axes: Any, points: Sequence[Point], rate: bool, shift: float = 0.0, **look: Any) -> None:
    """Points with their intervals, moved to the right by `shift`; one whose interval is unknown has no bar."""
    values = [_scaled(score.value, rate) for _, score in points]
    bars = _bars([score for _, score in points], values, rate)
    lams = [point.lam + shift for point, _ in points]
    axes.errorbar(lams, values, yerr=bars, capsize=2.5, elinewidth=1, linewidth=1.6, **look)


def _bars(scores: Sequence[Score], values: Sequence[float], rate: bool) -> list[list[float]]:
    """How far each interval reaches below its value, and how far above."""
    below = [value - _scaled(score.low, rate, value) for value, score in zip(values, scores, strict=True)]
    above = [_scaled(score.high, rate, value) - value for value, score in zip(values, scores, strict=True)]
    return [[max(0.0, error) for error in side] for side in (below, above)]


def _scaled(value: float | None, rate: bool, otherwise: float = 0.0) -> float:
    if value is None:
        return otherwise
    return 100 * value if rate else value


def _points(results: Results, name: str, split: str) -> list[Point]:
    """The defined scores of a split, in the order of λ."""
    found = [(t.point, t.scores[name]) for t in results.trials if t.split == split and name in t.scores]
    return sorted((point for point in found if point[1].value is not None), key=lambda point: point[0])


def _name_ends(axes: Any) -> None:
    """The λ axis, with its two ends named."""
    ticks = [0, 0.2, 0.4, 0.6, 0.8, 1]
    axes.set_xlim(-0.06, 1.09)
    axes.set_xticks(ticks, ["0\nbase", *(f"{tick:g}" for tick in ticks[1:-1]), "1\ntuned"])
    axes.set_xlabel("λ, the weight of the tuned model")


def plane(results: Results) -> Any | None:
    """Task score against attack success rate on validation, λ written at its points; `None` without a task score."""
    from matplotlib.figure import Figure

    metric, chosen = results.choice.metric, results.single
    points = _plane_points(results)
    if not points:
        return None
    better, rate = points[0][2].better, is_rate(metric)
    with style():
        figure = Figure(figsize=(WIDTH, 4.4), layout="constrained")
        axes = figure.subplots()
        risk = [_scaled(safety.value, True) for _, safety, _ in points]
        task = [_scaled(score.value, rate) for _, _, score in points]
        across = _bars([safety for _, safety, _ in points], risk, True)
        along = _bars([score for _, _, score in points], task, rate)
        grey: dict[str, Any] = {"ecolor": INK, "elinewidth": 0.8, "capsize": 2}
        axes.errorbar(risk, task, xerr=across, yerr=along, fmt="none", alpha=0.35, **grey)
        over = [place for place, (point, _, _) in enumerate(points) if results.keeps(point) is False]
        filled = [place for place in range(len(points)) if place not in over]
        axes.plot(risk, task, "-o", color=GREEN, linewidth=1.6, markersize=6, markevery=filled)
        axes.plot([risk[p] for p in over], [task[p] for p in over], "o", color=GREEN, markersize=6, **HOLLOW)
        axes.axvline(100 * results.choice.bound, color=INK, linestyle=(0, (5, 3)), linewidth=1)
        for (point, _, _), x, y in zip(points, risk, task, strict=True):
            # Within the bound to the left, beyond it to the right and off the curve: no name lies on a line.
            within = x <= 100 * results.choice.bound
            # The tuned model's on the other side, off the bars of the point before.
            below = (better == "higher") is not point.is_tuned
            side, align = ((-13, 0), "right") if within else ((6, -10 if below else 10), "left")
            look: dict[str, Any] = {"fontweight": "bold" if point == chosen else "normal", "ha": align, "va": "center"}
            axes.annotate(point.label, (x, y), side, textcoords="offset points", **look)
            if point == chosen:
                axes.plot([x], [y], "o", **RING)
        _star(axes, results, rate)
        axes.margins(x=0.27, y=0.1)
        left, right = axes.get_xlim()
        axes.set_xticks([tick for tick in axes.get_xticks() if 0 <= tick <= min(right, 100)])
        axes.set_xlim(left, right)
        axes.set_xlabel(f"{name_of('asr')} (%), {ARROWS['lower']} is better")
        axes.set_ylabel(f"{name_of(metric)}{' (%)' if rate else ''}, {ARROWS[better]} is better")
    return figure


def _star(axes: Any, results: Results, rate: bool) -> None:
    """λ by module that was taken, on validation."""
    if not results.choice.point.by_module:
        return
    safety, task = (results.score("merged", name, "validation") for name in ("asr", results.choice.metric))
    if safety and task and safety.value is not None and task.value is not None:
        x, y = _scaled(safety.value, True), _scaled(task.value, rate)
        across, along = _bars([safety], [x], True), _bars([task], [y], rate)
        bars: dict[str, Any] = {"xerr": across, "yerr": along, "elinewidth": 0.8, "capsize": 2, "ecolor": INK}
        axes.errorbar([x], [y], fmt="none", alpha=0.35, **bars)
        axes.plot([x], [y], color=INK, **STAR)


def _plane_points(results: Results) -> list[tuple[MergePoint, Score, Score]]:
    """Each single λ with its attack success rate and its task score on validation, where both are defined."""
    asr = dict(_points(results, "asr", "validation"))
    return [(at, asr[at], s) for at, s in _points(results, results.choice.metric, "validation") if at in asr]


def loss_curve(curves: Mapping[str, Sequence[Mapping[str, float]]]) -> Any | None:
    """The training loss of each tuning stage, and its loss on held-out examples, over steps; `None` without a log."""
    from matplotlib.figure import Figure

    stages = {stage: points for stage, points in curves.items() if points}
    if not stages:
        return None
    with style():
        figure = Figure(figsize=(WIDTH, 2.4), layout="constrained")
        panels = figure.subplots(1, len(stages), sharey=True, squeeze=False)[0]
        for axes, (stage, points) in zip(panels, sorted(stages.items()), strict=True):
            for key, colour, look in (("loss", BLUE, "-"), ("eval_loss", VERMILION, "s--")):
                known = [(point["step"], point[key]) for point in points if key in point and "step" in point]
                if known:
                    label = "training" if key == "loss" else "held out"
                    axes.plot(*zip(*known, strict=True), look, color=colour, markersize=4, label=label)
            axes.set_xlabel(f"{one_line(stage)}: step")
            axes.set_ylim(bottom=0)
            axes.legend()
        panels[0].set_ylabel("loss (nats per token)")
    return figure


Places = dict[MergePoint, list[tuple[float, float]]]
"""Where the points of each single λ lie on a drawing: in points from the left and from the top, as in its SVG."""


def tradeoff_places(results: Results, drawing: Any) -> Places:
    """Where the scores of each λ lie on a `tradeoff` that was saved: of validation, or of test where there is none."""
    found: Places = {}
    names = [results.choice.metric, "asr"]
    series = [_points(results, name, "validation") or _points(results, name, "test") for name in names]
    drawn = [(name, points) for name, points in zip(names, series, strict=True) if points]
    for axes, (name, points) in zip(drawing.axes, drawn, strict=True):
        for point, score in points:
            found.setdefault(point, []).append(_place(drawing, axes, point.lam, _scaled(score.value, is_rate(name))))
    return found


def plane_places(results: Results, drawing: Any) -> Places:
    """Where each λ lies on a `plane` that was saved."""
    rate = is_rate(results.choice.metric)
    return {
        point: [_place(drawing, drawing.axes[0], _scaled(safety.value, True), _scaled(score.value, rate))]
        for point, safety, score in _plane_points(results)
    }


def _place(drawing: Any, axes: Any, x: float, y: float) -> tuple[float, float]:
    across, up = axes.transData.transform((x, y)) * 72 / drawing.dpi
    return round(float(across), 1), round(72 * float(drawing.get_figheight()) - float(up), 1)


@contextmanager
def style() -> Iterator[None]:
    import matplotlib

    grey = {"axes.edgecolor": INK, "axes.labelcolor": INK, "text.color": INK, "xtick.color": INK, "ytick.color": INK}
    lines = {"axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.13}
    kind = {"font.family": "sans-serif", "font.sans-serif": ["DejaVu Sans"], "font.size": 10, "legend.frameon": False}
    out = {"svg.fonttype": "none", "text.parse_math": False, "grid.color": INK, "axes.facecolor": "none"}
    with matplotlib.rc_context({**matplotlib.rcParamsDefault, **grey, **lines, **kind, **out}):
        yield


def png(figure: Any, dpi: int = 200) -> bytes:
    """A figure as PNG on white."""
    return _saved(figure, "png", {"Software": None}, dpi=dpi, facecolor="white")


def svg(figure: Any, salt: str = "mooring") -> bytes:
    """A figure as SVG without dates, its ids a function of `salt`."""
    return _saved(figure, "svg", {"Date": None, "Creator": None, "Format": None, "Type": None}, salt, facecolor="none")


def _saved(figure: Any, kind: str, metadata: dict[str, None], salt: str = "mooring", **options: Any) -> bytes:
    import matplotlib

    buffer = io.BytesIO()
    with style(), matplotlib.rc_context({"svg.hashsalt": salt}):
        figure.savefig(buffer, format=kind, metadata=metadata, **options)
    return buffer.getvalue()


def inline(figure: Any, name: str) -> str:
    """A figure as an SVG element for a page: it takes the text's colour, and its ids begin with `name`.

    Its style element is left out: the page has the same lines, and allows no other style.
    """
    text = svg(figure, name).decode("utf-8")
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r' xmlns(:\w+)?="[^"]*"', "", text)
    text = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", text)
    return text.replace(INK, "currentColor")
