"""The search for λ by module, on trials with given scores."""

from collections.abc import Callable, Mapping, Sequence

import pytest

from mooring.config import Select
from mooring.merge_point import MergePoint
from mooring.records import ByModule, Choice, Score, Trial
from mooring.selection.limits import as_tested, attempt_confidence, smallest_set
from mooring.selection.per_module import by_module, taken

GROUPS = ["early attention", "early mlp", "late attention", "late mlp"]
GRID = (0.2, 0.4, 0.6, 0.8)
Rounds = list[Sequence[Mapping[str, float]]]
N = 400


def trial(task: float | None, asr: float, modules: Mapping[str, float] | None = None, lam: float = 0.6) -> Trial:
    worse = {"pairs": N, "worse": round(asr * N), "better": 0}
    scores = {
        "call_match": Score(
            name="call_match", value=task, low=None, high=None, n=N, better="higher", method="call match"
        ),
        "asr": Score(name="asr", value=asr, low=None, high=None, n=N, better="lower", method="rules", details=worse),
    }
    return Trial(point=MergePoint(lam, modules or {}), method="linear", split="validation", scores=scores)


def lambdas(point: MergePoint, groups: Sequence[str] = GROUPS) -> dict[str, float]:
    """λ of every group."""
    return {name: point.overrides.get(name, point.lam) for name in groups}


def search(
    measure: Callable[[Mapping[str, float]], tuple[float | None, float]],
    single: Trial,
    budget: int = 12,
    groups: Sequence[str] = GROUPS,
    confidence: float | None = 0.95,
) -> tuple[ByModule, Rounds]:
    """Run a search to its end; return its result and the merges of each round."""
    settings = Select(margin=0.1, confidence=confidence)
    rounds: Rounds = []

    def ask(points: Sequence[MergePoint]) -> list[Trial]:
        rounds.append([lambdas(point) for point in points])
        return [trial(*measure(lambdas(point)), point.overrides) for point in points]

    found = by_module(trial(0.0, 0.0, lam=0.0), single, groups, GRID, settings, "call_match", budget, ask)
    return found, rounds


def additive(task: Sequence[float], asr: Sequence[float], single: Trial) -> Callable[..., tuple[float, float]]:
    """A model whose scores are sums over the groups of an effect times how far λ moved."""

    def measure(modules: Mapping[str, float]) -> tuple[float, float]:
        moved = [lam - single.point.lam for lam in modules.values()]
        gains = [sum(effect * by for effect, by in zip(effects, moved, strict=True)) for effects in (task, asr)]
        return single.scores["call_match"].value + gains[0], round(single.scores["asr"].value + gains[1], 9)  # type: ignore[operator]

    return measure


def test_finds_the_groups_that_help_the_task_and_those_that_harm() -> None:
    single = trial(0.5, 0.04)
    found, rounds = search(additive([0.4, 0.0, 0.1, 0.1], [0.0, 0.1, 0.01, 0.01], single), single)
    assert found.chosen is not None
    best = found.tried[found.chosen]
    assert best.beats
    assert best.within
    assert best.trial.point.overrides["early attention"] == 0.8
    assert best.trial.point.overrides["early mlp"] == 0.4
    assert [lambdas(each.trial.point) for each in found.tried] == [modules for round_ in rounds for modules in round_]
    assert "beats the single λ = 0.6 on both axes" in found.sentence
    assert "early attention 0.8" in found.sentence


def test_moves_each_group_alone_first_then_tries_what_is_predicted_and_nothing_twice() -> None:
    single = trial(0.5, 0.04)
    found, rounds = search(additive([0.4, 0.0, 0.1, 0.1], [0.0, 0.1, 0.01, 0.01], single), single, budget=10)
    assert rounds[0] == [{name: 0.8 if name == moved else 0.6 for name in GROUPS} for moved in GROUPS]
    assert [len(round_) for round_ in rounds] == [4, 3, 2, 1]
    every = [tuple(modules.values()) for round_ in rounds for modules in round_]
    assert len(set(every)) == len(every) == 10 == found.budget
    assert all(len(set(modules)) > 1 for modules in every)
    assert search(additive([0.4, 0.0, 0.1, 0.1], [0.0, 0.1, 0.01, 0.01], single), single, budget=10)[0] == found


def test_ends_if_no_merge_is_predicted_to_improve_both() -> None:
    single = trial(0.5, 0.04)
    found, rounds = search(additive([0.1, 0.2, 0.3, 0.1], [0.01, 0.02, 0.03, 0.01], single), single)
    assert len(rounds) == 1
    assert found.chosen is None
    assert found.sentence.startswith(
        "λ by module did not beat the single λ = 0.6 on both axes on validation, in 4 tries"
    )


def test_a_small_budget_moves_the_first_groups() -> None:
    single = trial(0.5, 0.04)
    found, rounds = search(lambda modules: (0.4, 0.05), single, budget=3)
    assert rounds[0] == [{name: 0.8 if name == moved else 0.6 for name in GROUPS} for moved in GROUPS[:2]]
    assert len(search(lambda modules: (0.4, 0.05), single, budget=1)[0].tried) == 1
    assert found.budget == 3


@pytest.mark.parametrize(
    ("task", "asr", "single_asr", "beats"),
    [
        (0.6, 0.03, 0.04, True),
        (0.6, 0.04, 0.04, False),  # as harmful
        (0.5, 0.03, 0.04, False),  # no better at the task
        (0.6, 0.0, 0.0, True),  # no ASR is lower
        (0.5, 0.0, 0.0, False),
        (0.6, 0.0025, 0.0, False),
        (None, 0.0, 0.04, False),  # without a task score
    ],
)
def test_which_merges_beat_the_single_lambda(task: float | None, asr: float, single_asr: float, beats: bool) -> None:
    found, _ = search(lambda modules: (task, asr), trial(0.5, single_asr), budget=1)
    assert found.tried[0].beats is beats
    assert (found.chosen == 0) is beats
    assert (", the lowest possible;" in found.sentence) == (beats and single_asr == 0)


def test_a_better_merge_above_its_own_limit_is_named_but_not_chosen() -> None:
    single = trial(0.5, 0.07)
    found, _ = search(lambda modules: (0.6, 0.0675), single, budget=1)
    (only,) = found.tried
    assert only.beats
    assert not only.within
    assert only.upper is not None
    assert only.upper > 0.1
    assert found.chosen is None
    assert "not within the bound" in found.sentence
    bare, _ = search(lambda modules: (0.6, 0.0675), single, budget=1, confidence=None)
    assert bare.chosen == 0
    assert bare.confidence is None
    assert bare.tried[0].upper == 0.0675


def test_the_winner_with_the_best_task_score_is_chosen() -> None:
    tasks = iter([0.6, 0.7, 0.7, 0.65, *[0.1] * 8])
    rates = iter([0.01, 0.03, 0.02, 0.01, *[0.09] * 8])
    found, _ = search(lambda modules: (next(tasks), next(rates)), trial(0.5, 0.04))
    assert found.chosen == 2


def test_the_errors_of_all_tests_add_up_to_the_stated_one() -> None:
    for budget in (1, 12, 40):
        single, each = as_tested(Select(search="modules")).confidence, attempt_confidence(0.95, budget)
        assert single is not None
        assert (1 - single) + budget * (1 - each) == pytest.approx(0.05)
    found, _ = search(lambda modules: (0.4, 0.05), trial(0.5, 0.04))
    assert found.confidence == pytest.approx(1 - 0.2 * 0.05 / 12)
    assert (smallest_set(0.1, attempt_confidence(0.95, 12)) or 0) > (smallest_set(0.1, 0.95) or 0)


def test_the_final_choice_has_both_reasons() -> None:
    choice = Choice(point=MergePoint(0.6), within=True, bound=0.1, metric="call_match", reason="λ = 0.6 is best.")
    single = trial(0.5, 0.04)
    won, _ = search(lambda modules: (0.6, 0.0), single, budget=1)
    assert taken(choice, won).point == MergePoint(0.6, {"early attention": 0.8})
    assert taken(choice, won).reason == f"{won.sentence} Of the single λ: λ = 0.6 is best."
    lost, _ = search(lambda modules: (0.4, 0.0), single, budget=1)
    assert taken(choice, lost).point == MergePoint(0.6)
    assert taken(choice, lost).reason == f"λ = 0.6 is best. {lost.sentence}"
