"""What else was lost: divergence over λ as a figure, and benchmarks in pairs against the base."""

import dataclasses
from pathlib import Path

import pytest
from report_sample import results

from mooring.merge_point import TUNED, MergePoint
from mooring.records import Divergence, Forgetting, Score
from mooring.reporting import page
from mooring.reporting.figures import forgetting
from mooring.reporting.results import Results
from mooring.reporting.tables import benchmark_table
from mooring.reporting.write import write
from mooring.stats import compare_scores

RIGHT = {"base": 40, "0.4": 36, "tuned": 24}
"""Of 60 questions."""


def divergence(point: MergePoint, nats: float) -> Divergence:
    def score(name: str, value: float) -> Score:
        return Score(name=name, value=value, low=value / 2, high=value * 2, n=32, better="lower", method="m")

    return Divergence(point=point, first=score("kl_first", 3 * nats), whole=score("kl_whole", nats))


FORGOTTEN = Forgetting(
    points=[divergence(TUNED, 0.5), divergence(MergePoint(0.4), 0.125), divergence(MergePoint(0.4, {"mlp": 0.9}), 0.2)],
    first_tokens=8,
    tokens=900,
    sentence="It forgot.",
)


def answered(right: int) -> Score:
    each = {f"q{i}": float(i < right) for i in range(60)}
    return Score(
        name="lm_eval:quiz", value=right / 60, low=None, high=None, n=60, better="higher", method="lm-eval", each=each
    )


def with_benchmark() -> Results:
    made = results()
    trials = [
        dataclasses.replace(trial, scores={**trial.scores, "lm_eval:quiz": answered(RIGHT[label])})
        if trial.split == "test" and (label := trial.point.label.removeprefix("λ = ")) in RIGHT
        else trial
        for trial in made.trials
    ]
    return dataclasses.replace(made, trials=trials)


def test_benchmarks_are_compared_with_the_base_question_by_question() -> None:
    table = benchmark_table(with_benchmark())
    assert table is not None
    (row,) = table.to_rows()
    assert row["benchmark"].startswith("quiz")
    assert row["tuned − base"] == pytest.approx(-16 / 60)
    assert row["merged − base"] == pytest.approx(-4 / 60)
    expected = compare_scores(answered(40).each, answered(36).each)
    assert (row["merged − base low"], row["merged − base high"]) == (expected.low, expected.high)
    assert benchmark_table(results()) is None


def test_the_figure_has_the_nats_over_lambda_from_the_base_which_is_at_zero() -> None:
    assert forgetting(results()) is None
    (axes,) = forgetting(results(forgetting=FORGOTTEN)).axes
    handles, labels = axes.get_legend_handles_labels()
    assert labels == ["whole answers", "first 8 tokens"]
    for handle, factor, shift in zip(handles, (1, 3), (0, 0.02), strict=True):
        assert [float(x) - shift for x in handle[0].get_xdata()] == pytest.approx([0, 0.4, 1])
        assert [float(y) for y in handle[0].get_ydata()] == pytest.approx([0, factor * 0.125, factor * 0.5])
    stars = [line for line in axes.lines if line.get_marker() == "*"]
    assert [float(star.get_ydata()[0]) for star in stars] == pytest.approx([0.2, 0.6])


def test_the_report_has_both(tmp_path: Path) -> None:
    made = dataclasses.replace(with_benchmark(), forgetting=FORGOTTEN)
    write(made, tmp_path)
    assert (tmp_path / "forgetting.png").stat().st_size > 0
    text, html = (tmp_path / "report.md").read_text(), (tmp_path / "index.html").read_text()
    assert text.index("It forgot") < text.index("](forgetting.png)") < text.index("merged − base")
    assert html.index("It forgot.") < html.index("forgetting-figure-") < html.index("merged − base")
    assert "forgetting" not in page.as_markdown(results())
    alone = page.as_markdown(with_benchmark())
    assert "## What tuning forgot\n\nBenchmarks, 95 % intervals" in alone
