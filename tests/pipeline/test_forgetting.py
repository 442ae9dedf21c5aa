"""How far models have moved from the base on ordinary requests: the tiny pair."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from mooring.config import Recipe
from mooring.errors import RecipeError
from mooring.inference.divergence import divergences
from mooring.inference.spans import ROWS, base_spans
from mooring.inference.transformers import TransformersEngine
from mooring.merge_point import BASE, TUNED, MergePoint
from mooring.merging.pair import open_pair
from mooring.pipeline.forgetting import FIRST_TOKENS, brought_back, measure_forgetting
from mooring.pipeline.run import Run
from mooring.pipeline.sweeps.sweep import SweepSpec
from mooring.pipeline.sweeps.transformers import MergedModel
from mooring.records import Forgetting, Message, Prompt, Score
from mooring.reporting import page
from mooring.reporting.results import dumps, load
from mooring.stats import bootstrap_ratio

PROMPTS = [Prompt(id=f"p{i}", messages=(Message("user", "Name a thing. " * (1 + i % 3)),)) for i in range(ROWS + 2)]


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory, save_tiny_model: Any) -> Path:
    folder: Path = save_tiny_model(tmp_path_factory.mktemp("forgetting") / "tuned", seed=1)
    return folder


def test_the_divergence_is_zero_for_the_base_and_that_of_the_definition_for_others(
    tiny_model_folder: Path, tuned: Path
) -> None:
    base, other = (TransformersEngine.load(folder, device="cpu") for folder in (tiny_model_folder, tuned))
    spans = base_spans(base, PROMPTS, 5)
    assert all(value == pytest.approx(0, abs=1e-6) for row in divergences(base, spans).values() for value in row)
    found = divergences(other, spans)
    assert found.keys() == {prompt.id for prompt in PROMPTS}
    for key, row, start in list(zip(spans.keys, spans.rows, spans.starts, strict=True))[::4]:
        with torch.no_grad():
            p, q = (
                e.model(torch.tensor([row])).logits[0, start - 1 : -1].double().log_softmax(-1) for e in (base, other)
            )
        assert found[key] == pytest.approx((p.exp() * (p - q)).sum(-1).tolist(), rel=1e-4)


def test_it_grows_with_lambda_and_the_sentence_says_how_much_came_back(tiny_model_folder: Path, tuned: Path) -> None:
    merged = MergedModel(SweepSpec(pair=open_pair(tiny_model_folder, tuned)))
    chosen, points = MergePoint(0.3), [MergePoint(0.3), MergePoint(0.6), TUNED]
    found = measure_forgetting(points, chosen, PROMPTS, lambda point: merged.at(point.lam), seed=1)
    assert [each.point for each in found.points] == points
    whole = [each.whole.value or 0 for each in found.points]
    assert 0 < whole[0] < whole[1] < whole[2]
    for each in found.points:
        for score in (each.first, each.whole):
            assert score.low is not None
            assert score.high is not None
            assert score.low <= (score.value or 0) <= score.high
            assert score.n == len(PROMPTS)
        assert max(each.first.weights.values()) <= FIRST_TOKENS
    share = 1 - whole[0] / whole[2]
    assert f"at λ = 0.3 {whole[0]:.3g}" in found.sentence
    assert f"brought back {100 * share:.0f} [" in found.sentence


def score(**each: float) -> Score:
    values = {"name": "kl_whole", "low": None, "high": None, "n": len(each), "better": "lower", "method": "m"}
    return Score(value=sum(each.values()) / len(each), each=each, weights=dict.fromkeys(each, 1.0), **values)  # type: ignore[arg-type]


def test_what_came_back_is_one_minus_the_ratio_of_the_sums() -> None:
    value, interval = brought_back(score(a=1.0, b=3.0, c=2.0), score(a=0.5, b=0.5, c=0.8), seed=3)
    assert value == pytest.approx(0.7)
    low, high = bootstrap_ratio([0.5, 0.5, 0.8], [1.0, 3.0, 2.0], seed=3) or (0, 0)
    assert interval == pytest.approx((1 - high, 1 - low))


def recipe(base: Path, tuned: Path, out: Path, **changes: Any) -> Recipe:
    out.mkdir()
    for name, rows in (
        ("refuse", [{"prompt": f"Break thing number {i}."} for i in range(4)]),
        ("ordinary", [{"prompt": f"Name thing number {i}."} for i in range(6)]),
    ):
        (out / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sections: dict[str, Any] = {
        "merge": {"lambdas": [0.5], "check": False},
        "generate": {"max_tokens": 3, "device": "cpu"},
        "score": {
            "safety": str(out / "refuse.jsonl"),
            "over_refusal": None,
            "ordinary": None,
            "forgetting": str(out / "ordinary.jsonl"),
        },
        "select": {"margin": 1.0, "confidence": None},
    }
    for name, change in changes.items():
        sections[name] = sections.get(name, {}) | change
    return Recipe.parse({"base": str(base), "tuned": str(tuned), "out": str(out / "run"), **sections})


@pytest.mark.slow
def test_a_run_reports_it_over_lambda(tiny_model_folder: Path, tuned: Path, tmp_path: Path) -> None:
    wanted = recipe(tiny_model_folder, tuned, tmp_path / "r")
    done = Run(wanted).execute()
    results = load(done.report)
    found = results.forgetting
    assert isinstance(found, Forgetting)
    assert [each.point for each in found.points] == [MergePoint(0.5), TUNED]
    assert BASE not in [each.point for each in found.points]
    assert dumps(results) == (done.report / "results.json").read_text()
    text = page.as_markdown(results)
    assert f"## What tuning forgot\n\n{found.sentence}" in text.replace("\\", "")
    assert '<h2 id="forgetting">What tuning forgot</h2>' in page.as_html(results)
    assert not Run(wanted).execute().worked


def test_it_is_refused_where_it_cannot_be_measured(tiny_model_folder: Path, tuned: Path, tmp_path: Path) -> None:
    for name, changes, why in (
        ("a", {"generate": {"engine": "vllm"}}, "whole distributions, which vllm does not give"),
        ("b", {"merge": {"methods": ["linear", "slerp"]}}, "not of a comparison"),
    ):
        with pytest.raises(RecipeError, match=why):
            recipe(tiny_model_folder, tuned, tmp_path / name, **changes)
