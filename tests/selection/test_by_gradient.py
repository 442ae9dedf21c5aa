"""λ by gradient on losses whose minimum is known."""

from collections.abc import Sequence

import numpy as np
import pytest

from mooring.config import Select
from mooring.merge_point import BASE, MergePoint
from mooring.records import ByModule, GradientSearch, Score, SearchLosses, Trial
from mooring.selection.by_gradient import SLACK, Measured, measure_found, minimize
from mooring.selection.explain import percent
from mooring.selection.limits import as_tested

GAIN = np.array([3.0, 1.0, 1.0])
COST = np.array([1.0, 1.0, 4.0])


def quadratic(lams: Sequence[float]) -> Measured:
    """A task loss that falls in each λ, and a divergence Σ cost·λ², which is bounded."""
    at = np.array(lams)
    return Measured([float(5 - GAIN @ at), float(COST @ at**2)], [(-GAIN).tolist(), (2 * COST * at).tolist()])


def test_it_ends_where_lagrange_says() -> None:
    start = [0.3, 0.3, 0.3]
    found = minimize(start, quadratic)
    limit = quadratic(start).losses[1]
    # max gain·λ with cost·λ² = limit: λ ∝ gain / cost.
    ratio = GAIN / COST
    wanted = ratio * np.sqrt(limit / (COST @ ratio**2))
    assert np.max(np.abs(np.array(found.lams) - wanted)) < 0.02
    assert found.end[0] == pytest.approx(quadratic(wanted).losses[0], abs=0.01)
    assert found.end[1] <= limit * (1 + SLACK)
    assert found.start == quadratic(start).losses


def test_every_limit_is_kept_and_lambda_stays_between_base_and_tuned_model() -> None:
    def two(lams: Sequence[float]) -> Measured:
        (x, y), slope = lams, [-2.0, -1.0]
        return Measured([-2 * x - y, x + 0.01 * y, 0.01 * x + 0.1 * y], [slope, [1.0, 0.01], [0.01, 0.1]])

    found = minimize([0.5, 0.5], two)
    assert found.end[1] <= found.start[1] * (1 + SLACK)
    assert found.end[2] <= found.start[2] * (1 + SLACK)
    free = minimize([0.5, 0.5], lambda lams: Measured([-lams[0] + lams[1]], [[-1.0, 1.0]]))
    assert list(free.lams) == [1.0, 0.0]


def test_the_result_is_never_worse_than_the_start_and_no_lambda_is_evaluated_twice() -> None:
    asked: list[tuple[float, ...]] = []

    def jagged(lams: tuple[float, ...]) -> Measured:
        asked.append(lams)
        distance = sum(abs(lam - 0.4) for lam in lams)
        return Measured([1 + distance, 1], [[-1.0] * 3, [0.0] * 3])  # the loss rises where it is said to fall

    found = minimize([0.4] * 3, jagged, evaluations=5)
    assert list(found.lams) == [0.4] * 3
    assert len(asked) == len(set(asked)) == found.evaluations
    assert 1 < found.evaluations <= 5


def trial(point: MergePoint, task: float, harmful: int) -> Trial:
    pairs = {"pairs": 100, "worse": harmful, "better": 0}
    scores = {
        "call_match": Score(
            name="call_match", value=task, low=None, high=None, n=100, better="higher", method="call match"
        ),
        "asr": Score(
            name="asr", value=harmful / 100, low=None, high=None, n=100, better="lower", method="rules", details=pairs
        ),
    }
    return Trial(point=point, method="linear", split="validation", scores=scores)


FOUND = MergePoint(0.4, {"a": 0.6, "b": 0.2})


def search(point: MergePoint = FOUND) -> GradientSearch:
    losses = SearchLosses(task=1.0, harmful=0.1)
    lams = [point.overrides.get(name, point.lam) for name in ("a", "b")]
    return GradientSearch(
        point=point, groups=["a", "b"], lams=lams, single=losses, found=losses, evaluations=3, sentence="So."
    )


def measured(task: float, harmful: int, found: GradientSearch | None = None) -> tuple[ByModule, list[MergePoint]]:
    """The result of a search whose merge has these scores, and what was asked; the single λ has 0.6 and 2 of 100."""
    asked: list[MergePoint] = []

    def ask(points: Sequence[MergePoint]) -> list[Trial]:
        asked.extend(points)
        return [trial(point, task, harmful) for point in points]

    single = trial(MergePoint(0.4), 0.6, 2)
    settings = Select(search="gradient", margin=0.1)
    return measure_found(trial(BASE, 0.1, 0), single, found or search(), settings, "call_match", ask), asked


def test_it_is_taken_if_it_is_better_and_within_the_bound_at_the_whole_confidence() -> None:
    found, asked = measured(0.7, 4)
    assert asked == [FOUND]
    assert found.chosen == 0
    assert found.confidence == 0.95  # no share of the error is kept for the search, …
    assert as_tested(Select(search="gradient")).confidence == 0.95  # … so that the single λ has all of it
    assert found.sentence.startswith("λ by gradient (2 groups) was taken: call match 70.0 %")
    upper = found.tried[0].upper
    assert upper is not None
    assert f"at most {percent(upper)}, with 95 % confidence" in found.sentence


@pytest.mark.parametrize(
    ("task", "harmful", "why"),
    [(0.7, 9, "it is not within the bound"), (0.6, 1, "its task score is not better")],
)
def test_it_is_not_taken_otherwise(task: float, harmful: int, why: str) -> None:
    found, _ = measured(task, harmful)
    assert found.chosen is None
    assert f"was not taken, since {why}" in found.sentence


def test_no_model_answers_if_nothing_was_found() -> None:
    found, asked = measured(0.7, 4, search(MergePoint(0.4)))
    assert asked == []
    assert (found.tried, found.chosen) == ([], None)
    assert found.sentence == "λ by gradient was not taken. So."
