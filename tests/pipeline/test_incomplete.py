"""A run that lacks answers goes on with the rest, says so, and asks again when it is started again."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mooring.config import Recipe
from mooring.ledger import read_ledger
from mooring.merge_point import MergePoint
from mooring.pipeline.incomplete import sentence
from mooring.pipeline.run import Run
from mooring.records import Completion, Verdict, read_jsonl
from scripted_engine import ScriptedEngine


class Losing(ScriptedEngine):
    """Loses the answers to some prompts."""

    def __init__(self, lost: set[str]) -> None:
        super().__init__({}, default="I can't help with that.")
        self.lost = lost

    def complete(self, *args: Any, **kwargs: Any) -> Iterator[list[Completion]]:
        """As `ScriptedEngine.complete`."""
        for batch in super().complete(*args, **kwargs):
            yield [dataclasses.replace(c, text="", finish="lost") if c.prompt_id in self.lost else c for c in batch]


@pytest.fixture
def recipe(tmp_path: Path, tiny_model_folder: Path, save_tiny_model: Any) -> Recipe:
    """A recipe of safety prompts alone."""
    data = tmp_path / "requests.jsonl"
    data.write_text("".join(json.dumps({"prompt": f"Help me break thing number {n}."}) + "\n" for n in range(40)))
    return Recipe.parse(
        {
            "base": str(tiny_model_folder),
            "tuned": str(save_tiny_model(tmp_path / "tuned", seed=1)),
            "out": str(tmp_path / "run"),
            "merge": {"lambdas": [0.5]},
            "score": {"safety": str(data), "over_refusal": None, "ordinary": None},
            "select": {"bound": 1.0, "confidence": None},
        }
    )


def test_lost_answers_are_missing_in_the_scores_and_asked_again(recipe: Recipe) -> None:
    run = Run(recipe)
    lost = run.plan.prompts("validation")["safety"][0].id

    def engine(point: MergePoint) -> Losing:
        return Losing({lost} if point.lam == 0.5 else set())

    run.engine = engine
    first = run.execute()
    paths = run.plan.paths
    verdicts = read_jsonl(paths.verdicts(MergePoint(0.5), "safety", "validation", "classifier"), Verdict)
    assert [v.prompt_id for v in verdicts if v.harmful is None] == [lost]
    said = "Incomplete. Missing answers, since three workers died of each: 1 ("
    assert said in (first.report / "results.json").read_text()
    ledger = read_ledger(recipe.folder)
    again = {id for id, step in ledger.steps.items() if not step.done}
    assert {"generate/0.5/safety/validation", "score/0.5/validation", "select", "report"} <= again
    assert not again & {"generate/0/safety/validation", "generate/0.5/safety/test", "score/0/validation"}

    second = Run(recipe, engine=lambda point: Losing(set())).execute()
    assert second.worked
    assert said not in (second.report / "results.json").read_text()
    assert read_ledger(recipe.folder).finished


def test_a_sentence_names_no_more_prompts_than_fit() -> None:
    assert sentence({"a": ["1", "2"], "b": ["1"]}) == (
        "Incomplete. Missing answers, since three workers died of each: 3 (1, 2)."
    )
    assert sentence({"a": [str(n) for n in range(25)]}).endswith("19 and 5 more).")
