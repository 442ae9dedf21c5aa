"""The figure shows the trials' numbers."""

import dataclasses
from typing import Any

import pytest
from report_sample import CURVES, results, trials

from mooring.merge_point import MergePoint
from mooring.records import Choice
from mooring.reporting.figures import GREEN, OVER, RING, inline, loss_curve, plane, svg, tradeoff
from mooring.reporting.page import caption
from mooring.reporting.page.data import explorer
from mooring.selection.limits import Limit
from mooring.selection.policies import keeps_bound


def line(axes, label: str):  # type: ignore[no-untyped-def]
    """The points of the series with this legend."""
    handles, labels = axes.get_legend_handles_labels()
    handle = handles[labels.index(label)]
    found = handle[0] if isinstance(handle, tuple) else handle
    return [float(x) for x in found.get_xdata()], [float(y) for y in found.get_ydata()]


def test_the_panels_hold_the_validation_scores_the_bound_and_the_ring() -> None:
    task, safety = tradeoff(results()).axes
    for axes, name in ((task, "call_match"), (safety, "asr")):
        x, y = line(axes, "validation (λ chosen)")
        assert x == list(CURVES[name])
        assert y == pytest.approx([100 * value for value in CURVES[name].values()])
        assert line(axes, "chosen λ = 0.4") == ([0.4], [pytest.approx(100 * CURVES[name][0.4])])
    assert line(safety, "bound 6.4 %")[1] == pytest.approx([6.4, 6.4])
    x, y = line(safety, "test (reported)")
    assert y == pytest.approx([2.4, 53.9, 3.9] if x[1] > 0.9 else [2.4, 3.9, 53.9])


def marked(axes) -> list[float]:  # type: ignore[no-untyped-def]
    """The λ of the validation points that are hollow; the others are filled."""
    handles, labels = axes.get_legend_handles_labels()
    if OVER not in labels:
        return []
    hollow = [float(x) for x in handles[labels.index(OVER)].get_xdata()]
    points = handles[labels.index("validation (λ chosen)")][0]
    filled = [float(points.get_xdata()[place]) for place in points.get_markevery()]
    assert sorted(hollow + filled) == sorted(map(float, points.get_xdata()))
    return hollow


UPPER = {"0.2": 0.05, "0.4": 0.06, "0.6": 0.3, "0.8": 0.5}


@pytest.mark.parametrize(
    ("changes", "hollow"),
    [
        ({}, [0.6, 0.8, 1.0]),  # estimates: over the bound of 6.4 %
        ({"bound": 0.6}, []),
        ({"policy": "knee", "keeps": {}}, []),
        ({"confidence": 0.95, "upper": UPPER}, [0.6, 0.8, 1.0]),
        # A λ after one that fails is not tested, whatever its own limit.
        (
            {"confidence": 0.95, "bound": 0.55, "upper": UPPER | {"0.4": 0.6}},
            [0.4, 0.6, 0.8, 1.0],
        ),
        ({"confidence": 0.95, "bound": 0.55, "upper": UPPER}, []),
    ],
)
def test_a_lambda_that_is_not_shown_to_keep_the_bound_is_hollow(changes: dict[str, Any], hollow: list[float]) -> None:
    choice = dataclasses.replace(results().choice, **changes)
    if choice.policy == "bound":
        held = {MergePoint(float(key)): limit for key, limit in choice.upper.items()}
        measured = [t for t in results().trials if t.split == "validation" and not t.point.is_base]
        asr = Limit("asr", choice.bound, "", held, {})
        choice = dataclasses.replace(choice, keeps=keeps_bound(asr, measured, confident=choice.confidence is not None))
    found = results(choice=choice)
    assert [marked(axes) for axes in tradeoff(found).axes] == [hollow, hollow]
    assert (", hollow where a λ is not shown to keep the bound" in caption(found)) == bool(hollow)
    assert (" with 95 % confidence." in caption(found)) == bool(hollow and "confidence" in changes)
    drawn = [x for x in plane(found).axes[0].lines if x.get_markerfacecolor() == "none" and x.get_color() == GREEN]
    assert [len(x.get_xdata()) for x in drawn] == [len(hollow)]


def test_where_no_lambda_is_within_the_bound_none_is_called_chosen() -> None:
    none = results(choice=dataclasses.replace(results().choice, within=False))
    assert line(tradeoff(none).axes[0], "nearest λ = 0.4")[0] == [0.4]
    assert caption(none).endswith("Ringed: the nearest λ = 0.4, since none is within the bound.")
    assert [name for name in explorer(none)["lams"] if "0.4" in name] == ["λ = 0.4, nearest"]


def test_a_loss_is_not_a_percentage() -> None:
    task = tradeoff(results(choice=dataclasses.replace(results().choice, metric="response_loss"))).axes[0]
    assert line(task, "validation (λ chosen)")[1] == pytest.approx(list(CURVES["response_loss"].values()))
    assert "%" not in task.get_ylabel()
    assert "↓" in task.get_ylabel()


def test_without_a_task_there_is_one_panel() -> None:
    alone = results(choice=Choice(point=MergePoint(0.4), within=True, bound=0.1, metric="lam", reason=""))
    assert len(tradeoff(alone).axes) == 1
    assert plane(alone) is None


def test_with_one_split_only_it_still_draws() -> None:
    only = [t for t in trials() if t.split == "test"]
    axes = tradeoff(results(trials=only)).axes[1]
    assert line(axes, "chosen λ = 0.4")[1] == pytest.approx([3.9])


def test_the_plane_names_every_model_and_rings_the_chosen() -> None:
    axes = plane(results()).axes[0]
    assert [text.get_text() for text in axes.texts] == ["base", "λ = 0.2", "λ = 0.4", "λ = 0.6", "λ = 0.8", "tuned"]
    ring = next(found for found in axes.lines if found.get_markersize() == RING["markersize"])
    assert (ring.get_xdata()[0], ring.get_ydata()[0]) == pytest.approx((2.9, 61.0))


def test_the_loss_curve_has_a_panel_a_stage_and_is_left_out_without_a_log() -> None:
    figure = loss_curve(results().curves)
    assert [axes.get_xlabel() for axes in figure.axes] == ["align: step", "tune: step"]
    assert line(figure.axes[1], "held out")[0] == [20, 40, 60, 80]
    assert loss_curve({}) is None
    assert loss_curve({"tune": []}) is None


def test_svg_is_the_same_twice_and_inline_takes_the_pages_colour() -> None:
    assert svg(tradeoff(results())) == svg(tradeoff(results()))
    element = inline(tradeoff(results()), "fig")
    assert element.startswith("<svg")
    assert "currentColor" in element
    assert "#1b1f24" not in element
    assert "xmlns" not in element
