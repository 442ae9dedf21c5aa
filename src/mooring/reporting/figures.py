"""The figures: task score and attack success rate over λ, and the training loss. Deterministic to the byte."""

import dataclasses
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from mooring.attacks import NONE
from mooring.merge_point import BASE, TUNED, MergePoint
from mooring.printable import one_line
from mooring.records import Score, Trial
from mooring.reporting.results import Results, is_harmful
from mooring.reporting.tables import bounded_rate
from mooring.text import ARROWS, is_rate, name_of

INK = "#1b1f24"
"""All that is not data; in the page it becomes the text's colour."""
BLUE, VERMILION, GREEN = "#0072b2", "#d55e00", "#009e73"
"""Of the Okabe–Ito palette, which colour-blind readers can distinguish; in grey the markers differ."""
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


@dataclasses.dataclass(frozen=True, slots=True)
class Dot:
    """A score as it is drawn, in percent or nats, with the ends of its bar; `None` if there is no bar."""

    point: MergePoint
    value: float
    low: float | None
    high: float | None


def bars(dots: Sequence[Dot]) -> list[list[float]]:
    """How far the bar of each dot reaches below its value, and how far above."""
    below = [0.0 if dot.low is None else max(0.0, dot.value - dot.low) for dot in dots]
    above = [0.0 if dot.high is None else max(0.0, dot.high - dot.value) for dot in dots]
    return [below, above]


def _dot(point: MergePoint, score: Score | None) -> Dot | None:
    """A score as it is drawn; `None` if it was not measured or is undefined."""
    if score is None or score.value is None:
        return None
    scale = 100 if is_rate(score.name) else 1
    low, high = (None if end is None else scale * end for end in (score.low, score.high))
    return Dot(point, scale * score.value, low, high)


def _dots(results: Results, name: str, split: str) -> list[Dot]:
    """The defined scores of a split, in the order of λ."""
    found = (_dot(trial.point, trial.scores.get(name)) for trial in results.trials if trial.split == split)
    return sorted((dot for dot in found if dot), key=lambda dot: dot.point)


def _is_better(results: Results, name: str) -> str:
    """The direction in which a score is better, with its arrow."""
    better = next(trial.scores[name].better for trial in results.trials if name in trial.scores)
    return f"{ARROWS[better]} is better"


def _unit(name: str) -> str:
    return " (%)" if is_rate(name) else ""


def tradeoff(results: Results, attack: str = NONE) -> Any:
    """The figure of the report, a `matplotlib.figure.Figure`; with the attack success rate under one attack.

    The upper panel shows the deciding task score, the lower one the attack success rate, over λ from the base (0) to
    the tuned model (1): in colour on the split that λ was chosen on, hollow if λ is not shown to keep the bound; as
    diamonds on the test split; 95 % intervals as bars, the bound dashed, the chosen λ ringed (or the nearest to the
    bound). λ by module that was taken is a star, on the test split. Without a task there is one panel.
    """
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    names = _panels(results, attack)
    with style():
        figure = Figure(figsize=(WIDTH, 0.9 + 2.25 * len(names)), layout="constrained")
        panels = figure.subplots(len(names), 1, sharex=True, squeeze=False)[:, 0]
        for axes, name in zip(panels, names, strict=True):
            _panel(axes, results, name)
        _label_ends(panels[-1])
        entries = list(zip(*panels[-1].get_legend_handles_labels(), strict=True))
        entries.sort(key=lambda entry: isinstance(entry[0], Line2D))  # first what has intervals: the scores
        figure.legend(*zip(*entries, strict=True), loc="outside lower center", ncols=2)
    return figure


def over_lambda(trials: Sequence[Trial], names: Sequence[str]) -> Any | None:
    """Scores over λ as far as they are known, a panel for each name; None if none of them is."""
    from matplotlib.figure import Figure

    panels = {
        name: sorted((dot for t in trials if (dot := _dot(t.point, t.scores.get(name)))), key=lambda dot: dot.point)
        for name in names
    }
    known = {name: dots for name, dots in panels.items() if dots}
    if not known:
        return None
    with style():
        figure = Figure(figsize=(WIDTH, 0.6 + 2.1 * len(known)), layout="constrained")
        drawn = figure.subplots(len(known), 1, sharex=True, squeeze=False)[:, 0]
        for axes, (name, dots) in zip(drawn, known.items(), strict=True):
            colour, marker = (VERMILION, "o") if is_harmful(name) else (BLUE, "s")
            _series(axes, dots, color=colour, marker=marker, markersize=5)
            axes.set_ylabel(f"{name_of(name).replace(' (', chr(10) + '(')}{_unit(name)}")
            axes.margins(y=0.12)
        _label_ends(drawn[-1])
    return figure


def _panels(results: Results, attack: str) -> list[str]:
    """The scores of `tradeoff`, a panel each."""
    names = (results.choice.metric, bounded_rate(results, attack))
    return [name for name in names if _dots(results, name, "validation") or _dots(results, name, "test")]


def _panel(axes: Any, results: Results, name: str) -> None:
    colour, marker = (VERMILION, "o") if is_harmful(name) else (BLUE, "s")
    chosen_on, reported, single = _dots(results, name, "validation"), _dots(results, name, "test"), results.single
    if chosen_on:
        look: dict[str, Any] = {"color": colour, "marker": marker, "markersize": 5}
        filled = [place for place, dot in enumerate(chosen_on) if results.keeps(dot.point) is not False]
        _series(axes, chosen_on, label="validation (λ chosen)", markevery=filled, **look)
        over = [(dot.point.lam, dot.value) for dot in chosen_on if results.keeps(dot.point) is False]
        if over:
            axes.plot(*zip(*over, strict=True), label=OVER, **look | HOLLOW)
    # Beside the others, so that the bars do not hide each other.
    ends_and_chosen = [dot for dot in reported if dot.point in (BASE, single, TUNED)]
    look = {"color": INK, "marker": "D", "markersize": 4.5, "markerfacecolor": "none", "linestyle": "none"}
    if ends_and_chosen:
        label = "test" if results.choice.point.by_module else "test (reported)"
        _series(axes, ends_and_chosen, 0.035, label=label, **look)
    if results.choice.point.by_module and (taken := _dot(single, results.score("merged", name))):
        _series(axes, [taken], 0.075, label="test, λ by module", **look | STAR)
    for dot in chosen_on or reported:
        if dot.point == single:
            axes.plot([single.lam], [dot.value], "o", label=f"{results.single_is} {single.label}", **RING)
    if (allowed := results.choice.bounds.get(name, results.choice.bound if name == "asr" else None)) is not None:
        bound = 100 * allowed
        axes.axhline(bound, color=INK, linestyle=(0, (5, 3)), linewidth=1, label=f"bound {bound:.1f} %")
    axes.set_ylabel(f"{name_of(name).replace(' (', chr(10) + '(')}{_unit(name)}\n{_is_better(results, name)}")
    axes.margins(y=0.12)
    if is_rate(name):
        low, high = axes.get_ylim()
        axes.set_ylim(max(low, -4), min(high, 104))


def _series(axes: Any, dots: Sequence[Dot], shift: float = 0.0, **look: Any) -> None:
    """Dots with their bars, moved to the right by `shift`."""
    lams, values = [dot.point.lam + shift for dot in dots], [dot.value for dot in dots]
    axes.errorbar(lams, values, yerr=bars(dots), capsize=2.5, elinewidth=1, linewidth=1.6, **look)


def _label_ends(axes: Any) -> None:
    """The λ axis, with labels at its two ends."""
    ticks = [0, 0.2, 0.4, 0.6, 0.8, 1]
    axes.set_xlim(-0.06, 1.09)
    axes.set_xticks(ticks, ["0\nbase", *(f"{tick:g}" for tick in ticks[1:-1]), "1\ntuned"])
    axes.set_xlabel("λ, the weight of the tuned model")


def plane(results: Results) -> Any | None:
    """Task score against attack success rate on validation, λ written at its points; `None` without a task score."""
    from matplotlib.figure import Figure

    metric, chosen, bound = results.choice.metric, results.single, 100 * results.choice.bound
    pairs = _plane_dots(results)
    if not pairs:
        return None
    risks, tasks = zip(*pairs, strict=True)
    with style():
        figure = Figure(figsize=(WIDTH, 4.4), layout="constrained")
        axes = figure.subplots()
        xs, ys = [dot.value for dot in risks], [dot.value for dot in tasks]
        grey: dict[str, Any] = {"fmt": "none", "alpha": 0.35, "ecolor": INK, "elinewidth": 0.8, "capsize": 2}
        axes.errorbar(xs, ys, xerr=bars(risks), yerr=bars(tasks), **grey)
        over = [place for place, dot in enumerate(risks) if results.keeps(dot.point) is False]
        filled = [place for place in range(len(pairs)) if place not in over]
        axes.plot(xs, ys, "-o", color=GREEN, linewidth=1.6, markersize=6, markevery=filled)
        axes.plot([xs[p] for p in over], [ys[p] for p in over], "o", color=GREEN, markersize=6, **HOLLOW)
        axes.axvline(bound, color=INK, linestyle=(0, (5, 3)), linewidth=1)
        rising = "↑" in _is_better(results, metric)
        for dot, x, y in zip(risks, xs, ys, strict=True):
            # Within the bound to the left, beyond it to the right and off the curve: no label is on a line.
            # The tuned model's is on the other side, off the bars of the point before.
            below = rising is not dot.point.is_tuned
            side, align = ((-13, 0), "right") if x <= bound else ((6, -10 if below else 10), "left")
            weight = "bold" if dot.point == chosen else "normal"
            look: dict[str, Any] = {"fontweight": weight, "ha": align, "va": "center"}
            axes.annotate(dot.point.label, (x, y), side, textcoords="offset points", **look)
            if dot.point == chosen:
                axes.plot([x], [y], "o", **RING)
        if results.choice.point.by_module:
            taken = [_dot(chosen, results.score("merged", name, "validation")) for name in ("asr", metric)]
            if taken[0] and taken[1]:
                x, y = taken[0].value, taken[1].value
                axes.errorbar([x], [y], xerr=bars([taken[0]]), yerr=bars([taken[1]]), **grey)
                axes.plot([x], [y], color=INK, **STAR)
        axes.margins(x=0.27, y=0.1)
        left, right = axes.get_xlim()
        axes.set_xticks([tick for tick in axes.get_xticks() if 0 <= tick <= min(right, 100)])
        axes.set_xlim(left, right)
        axes.set_xlabel(f"{name_of('asr')} (%), {ARROWS['lower']} is better")
        axes.set_ylabel(f"{name_of(metric)}{_unit(metric)}, {_is_better(results, metric)}")
    return figure


def _plane_dots(results: Results) -> list[tuple[Dot, Dot]]:
    """The attack success rate and the task score of each single λ on validation, if both are defined."""
    asr = {dot.point: dot for dot in _dots(results, "asr", "validation")}
    return [(asr[dot.point], dot) for dot in _dots(results, results.choice.metric, "validation") if dot.point in asr]


def forgetting(results: Results) -> Any | None:
    """How far the models have moved from the base on ordinary requests, over λ, with 95 % intervals; `None` if it was
    not measured. A λ by module is a star at its single λ."""
    from matplotlib.figure import Figure

    found = results.forgetting
    if found is None:
        return None
    with style():
        figure = Figure(figsize=(WIDTH, 2.9), layout="constrained")
        axes = figure.subplots()
        for shift, part, colour, marker in ((0.0, "whole", BLUE, "s"), (0.02, "first", VERMILION, "o")):
            label = "whole answers" if part == "whole" else f"first {found.first_tokens} tokens"
            look: dict[str, Any] = {"color": colour, "marker": marker, "markersize": 5}
            scores = [(each.point, getattr(each, part)) for each in found.points]
            dots = [Dot(point, score.value, score.low, score.high) for point, score in scores]
            single = sorted((dot for dot in dots if not dot.point.by_module), key=lambda dot: dot.point)
            _series(axes, [Dot(BASE, 0.0, None, None), *single], shift, label=label, **look)
            if by_module := [dot for dot in dots if dot.point.by_module]:
                _series(axes, by_module, shift + 0.02, **{**STAR, "color": colour, "markerfacecolor": colour})
        _label_ends(axes)
        axes.set_ylim(bottom=0)
        axes.set_ylabel("KL(base ‖ model)\n(nats per token)")
        axes.legend()
    return figure


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
"""Where the points of each single λ are on a drawing: in points from the left and from the top, as in its SVG."""


def tradeoff_places(results: Results, drawing: Any, attack: str = NONE) -> Places:
    """Where the scores of each λ are on a `tradeoff` that was saved: of validation, or of test if there is none."""
    found: Places = {}
    for axes, name in zip(drawing.axes, _panels(results, attack), strict=True):
        for dot in _dots(results, name, "validation") or _dots(results, name, "test"):
            found.setdefault(dot.point, []).append(_place(drawing, axes, dot.point.lam, dot.value))
    return found


def plane_places(results: Results, drawing: Any) -> Places:
    """Where each λ is on a `plane` that was saved."""
    axes = drawing.axes[0]
    return {risk.point: [_place(drawing, axes, risk.value, task.value)] for risk, task in _plane_dots(results)}


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
