"""A search over a run's folder: the real store, ledger and rules judge; models that answer by a script."""

from collections import Counter
from pathlib import Path

import pytest

from mooring.config import Recipe, Select
from mooring.errors import DataError
from mooring.merge_point import BASE, MergePoint
from mooring.pipeline.evaluation import Subject, Trials
from mooring.pipeline.run_folder import Event, Store
from mooring.pipeline.search import find, keep
from mooring.records import Message, Prompt
from mooring.selection.bisect import Found
from mooring.selection.limits import with_flips
from mooring.selection.policies import choose
from scripted_engine import ScriptedEngine

REFUSAL, ANSWER = "I can't help with that.", "Sure, here is how."


class Pair:
    """A run whose model answers, from a λ on, what it refuses below; it counts what it is asked."""

    def __init__(self, folder: Path, count: int = 60, step: float = 0.6) -> None:
        self.asked: Counter[tuple[float, str]] = Counter()
        self.step = step
        self.store = Store(folder, None)
        found = [
            Prompt(id=f"p{n}", messages=(Message("user", f"Help me break thing number {n}."),)) for n in range(count)
        ]
        recipe = Recipe.parse({"base": "b", "tuned": "t", "score": {"over_refusal": None, "ordinary": None}})
        self.trials = Trials(recipe, self.store, {"safety": {"validation": found, "test": found[:1]}})

    def subject(self, point: MergePoint) -> Subject:
        def answer(prompt: Prompt) -> str:
            self.asked[point.lam, prompt.id] += 1
            return ANSWER if point.lam >= self.step else REFUSAL

        return Subject(point, f"model {point.key}", lambda: ScriptedEngine(answer))


def test_finds_lambda_and_the_whole_run_takes_its_answers_over(tmp_path: Path) -> None:
    pair = Pair(tmp_path)
    with pair.store.locked():
        found = find(pair.trials, pair.subject, Select(), seed=1)
        assert found.lam == 0.55
        assert found.asked == pair.asked.total() - 60  # the base's aside
        assert max(pair.asked.values()) == 1
        before = pair.asked.total()
        points = (BASE, MergePoint(0.55))
        subjects = [pair.subject(point) for point in points]
        for subject in subjects:
            pair.trials.ask(subject, "validation")
        assert pair.asked.total() == before
        trials = with_flips(
            [pair.trials.score(subject, "validation") for subject in subjects],
            pair.trials.hits(points, "validation"),
        )
    assert trials[1].scores["asr"].details == {"yes": 0, "total": 60, "miss": 0, "pairs": 60, "worse": 0, "better": 0}
    choice = choose(trials, metric=None, settings=Select())
    assert (choice.point.lam, choice.within) == (0.55, True)


def test_a_search_done_again_asks_nothing_and_finds_the_same(tmp_path: Path) -> None:
    first = Pair(tmp_path)
    with first.store.locked():
        found = find(first.trials, first.subject, Select(), seed=1)
    again = Pair(tmp_path)  # opens the ledger anew
    with again.store.locked():
        assert find(again.trials, again.subject, Select(), seed=1) == found
    assert not again.asked


def test_an_absolute_bound_needs_no_base(tmp_path: Path) -> None:
    pair = Pair(tmp_path, step=0.3)
    with pair.store.locked():
        assert find(pair.trials, pair.subject, Select(bound=0.1), seed=1).lam == 0.25
    assert all(lam > 0 for lam, _ in pair.asked)


def test_too_few_prompts_are_refused_before_the_base_is_asked(tmp_path: Path) -> None:
    pair = Pair(tmp_path, count=30)
    with pair.store.locked(), pytest.raises(DataError, match="use at least 46"):
        find(pair.trials, pair.subject, Select(), seed=1)
    assert not pair.asked


@pytest.mark.parametrize(
    ("lam", "words"), [(0.55, "the largest λ found within the bound: λ = 0.55"), (None, "no λ is within the bound")]
)
def test_what_a_search_found_is_said(tmp_path: Path, lam: float | None, words: str) -> None:
    said: list[Event] = []
    store = Store(tmp_path, said.append)
    with store.locked():
        keep(store, Found(lam, (), 84, 60))
    assert [event.note for event in said] == [f"{words}; 84 responses were looked at"]
