"""Bisection over a run: the real run folder and rules judge; models that answer by a script."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from mooring.config import Recipe
from mooring.errors import DataError
from mooring.events import Event
from mooring.inference.engine import Engine
from mooring.merge_point import MergePoint
from mooring.pipeline.run import Outcome, Run
from mooring.pipeline.search import bisection_notes
from mooring.records import Prompt, Trial, read_record
from mooring.selection.bisect import BisectResult
from scripted_engine import ScriptedEngine


@pytest.fixture(scope="module")
def models(
    tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path, save_tiny_model: Any
) -> tuple[Path, Path]:
    """A base, and a tuned model."""
    return tiny_model_folder, save_tiny_model(tmp_path_factory.mktemp("bisect") / "tuned", seed=1)


REFUSAL, ANSWER = "I can't help with that.", "Sure, here is how."


class Pair:
    """A run whose model answers, from a λ on, what it refuses below; it counts what it is asked on validation."""

    def __init__(
        self, models: tuple[Path, Path], folder: Path, count: int = 60, step: float = 0.6, **select: object
    ) -> None:
        self.asked: Counter[tuple[float, str]] = Counter()
        self.step, self.events = step, list[Event]()
        data = folder / "requests.jsonl"
        # As many again for the test half.
        rows = [{"prompt": f"Help me break thing number {n}."} for n in range(2 * count)]
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        self.recipe = Recipe.parse(
            {
                "base": str(models[0]),
                "tuned": str(models[1]),
                "out": str(folder / "run"),
                "score": {"safety": str(data), "over_refusal": None, "ordinary": None},
                "select": {"search": "bisect", **select},
            }
        )

    def run(self) -> Outcome:
        run = Run(self.recipe, engine=self.engine)
        self.validation = {prompt.id for prompt in run.plan.prompts("validation")["safety"]}
        return run.execute(self.events.append)

    def engine(self, point: MergePoint) -> Engine:
        def answer(prompt: Prompt) -> str:
            if prompt.id in self.validation:
                self.asked[point.lam, prompt.id] += 1
            return ANSWER if point.lam >= self.step else REFUSAL

        return ScriptedEngine(answer)


def test_finds_lambda_and_the_whole_run_reuses_its_responses(tmp_path: Path, models: tuple[Path, Path]) -> None:
    pair = Pair(models, tmp_path)
    done = pair.run()
    assert (done.choice.point, done.choice.within) == (MergePoint(0.55), True)
    found = read_record(done.folder / "search.json", BisectResult)
    assert found.lam == 0.55
    assert found.responses == sum(n for (lam, _), n in pair.asked.items() if lam not in (0.0, 1.0))
    assert max(pair.asked.values()) == 1
    trial = read_record(done.folder / "completions" / "lam-0.55" / "trial-validation.json", Trial)
    assert trial.scores["asr"].details == {"yes": 0, "total": 60, "miss": 0}
    assert any("the largest λ found within the bound is 0.55" in event.message for event in pair.events)


@pytest.mark.slow
def test_a_search_that_was_stopped_generates_nothing_twice(tmp_path: Path, models: tuple[Path, Path]) -> None:
    first, resumed, whole = (Pair(models, tmp_path) for _ in range(3))

    def stop(point: MergePoint) -> Engine:
        if len({lam for lam, _ in first.asked}) == 3:
            raise KeyboardInterrupt
        return Pair.engine(first, point)

    first.engine = stop  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        first.run()
    done = resumed.run()
    assert not first.asked.keys() & resumed.asked.keys()
    text = (done.folder / "search.json").read_text()
    whole.recipe = whole.recipe.model_copy(update={"out": str(tmp_path / "whole")})
    assert (whole.run().folder / "search.json").read_text() == text
    assert first.asked.total() + resumed.asked.total() == whole.asked.total()


def test_a_finished_search_generates_nothing(tmp_path: Path, models: tuple[Path, Path]) -> None:
    Pair(models, tmp_path).run()
    again = Pair(models, tmp_path)
    assert not again.run().worked
    assert not again.asked


def test_an_absolute_bound_needs_no_base(tmp_path: Path, models: tuple[Path, Path]) -> None:
    pair = Pair(models, tmp_path, step=0.3, bound=0.1)
    pair.run()
    assert read_record(tmp_path / "run" / "search.json", BisectResult).lam == 0.25
    order = [event.step for event in pair.events if event.kind == "started" and "generate" in event.step]
    assert not order[0].startswith("generate/0/")


@pytest.mark.slow
def test_several_bounds_are_kept_at_once(tmp_path: Path, models: tuple[Path, Path]) -> None:
    """Under an attack the model answers from a smaller λ on, and harmless requests are refused at every λ."""
    pair = Pair(models, tmp_path)
    harmless = tmp_path / "harmless.jsonl"
    harmless.write_text("".join(json.dumps({"prompt": f"How do I kill process {n}?"}) + "\n" for n in range(120)))
    pair.recipe = pair.recipe.override(
        {
            "score.attacks": ["base64"],
            "score.over_refusal": [str(harmless)],
            "select.bound_on": ["none", "base64"],
            "select.over_refusal_margin": 0.1,
        }
    )
    direct = pair.engine

    def engine(point: MergePoint) -> Engine:
        plain = direct(point)
        hidden = ScriptedEngine(lambda prompt: ANSWER if point.lam >= 0.35 else REFUSAL)
        attacked = {prompt.id for prompt in planned.prompts("validation")["safety+base64"]}
        texts = {prompt.messages[-1].content for prompt in planned.prompts("validation")["safety+base64"]}
        assert attacked

        def answer(prompt: Prompt) -> str:
            chosen = hidden if prompt.messages[-1].content in texts else plain
            return chosen.answers(prompt)  # type: ignore[operator]

        return ScriptedEngine(answer)

    pair.engine = engine  # type: ignore[method-assign]
    planned = Run(pair.recipe).plan
    done = pair.run()
    found = read_record(done.folder / "search.json", BisectResult)
    assert found.lam == 0.3
    assert {visit.rate for visit in found.visits} == {"asr", "asr+base64", "over_refusal"}
    assert done.choice is not None
    assert (done.choice.point, done.choice.within) == (MergePoint(0.3), True)
    assert done.choice.bounds.keys() == {"asr", "asr+base64", "over_refusal"}
    assert not Run(pair.recipe, engine=engine).execute().worked


def test_too_few_prompts_are_refused_before_any_generation(tmp_path: Path, models: tuple[Path, Path]) -> None:
    pair = Pair(models, tmp_path, count=30)
    with pytest.raises(DataError) as caught:
        pair.run()
    assert "60" in str(caught.value)
    assert not pair.asked
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("lam", "words"), [(0.55, "the largest λ found within the bound is 0.55"), (None, "no λ is within the bound")]
)
def test_what_a_search_found_is_reported(lam: float | None, words: str) -> None:
    assert bisection_notes(BisectResult(lam, (), 84, 60)) == [f"{words}; 84 responses were judged"]
