"""Runs that look for λ by halves and by module: a tiny pair, real commands."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from .conftest import lines, write_data  # type: ignore[import-not-found]


@pytest.mark.slow
def test_bisection_finds_one_lambda_and_reuses_its_responses(
    command: Any, tmp_path: Path, tiny_model_folder: Path, save_tiny_model: Any
) -> None:
    write_data(tmp_path)
    lines(tmp_path / "many.jsonl", [{"prompt": f"Break thing number {i}."} for i in range(60)])
    tuned = save_tiny_model(tmp_path / "tuned-model", seed=1)
    arguments = (
        "safeguard", tiny_model_folder, tuned, "--safety", "many.jsonl", "--search", "bisect", "--margin", 1,
        "--max-tokens", 3, "--out", "run",
    )  # fmt: skip
    done = command(*arguments)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "run" / "search.json").read_text())
    results = json.loads((tmp_path / "run" / "report" / "results.json").read_text())
    merged = {t["point"]["lam"] for t in results["trials"]} - {0, 1}
    assert merged == {results["choice"]["point"]["lam"]}
    assert found["lam"] == results["choice"]["point"]["lam"]
    assert results["choice"]["confidence"] == 0.95  # the λ found is tested as one of a grid
    # Base and tuned model aside, far fewer answers than a grid of five on all prompts would take.
    assert 0 < found["responses"] < 5 * 30
    again = command(*arguments)
    assert again.returncode == 0, again.stderr
    assert "nothing was left to do" in again.stdout


@pytest.mark.slow
def test_a_search_by_module_tries_merges_after_the_grid_and_reports_whether_one_is_better(
    command: Any, tmp_path: Path, tiny_model_folder: Path, save_tiny_model: Any
) -> None:
    write_data(tmp_path)
    tuned = save_tiny_model(tmp_path / "tuned-model", seed=1)
    recipe = {
        "out": "run",
        "base": str(tiny_model_folder),
        "tuned": str(tuned),
        "merge": {"lambdas": [0.5]},
        "generate": {"max_tokens": 3},
        "score": {"safety": "refuse.jsonl", "over_refusal": None, "ordinary": None, "task": "task.jsonl"},
        "select": {"search": "modules", "budget": 4, "margin": 1.0, "confidence": None},
    }
    (tmp_path / "modules.yaml").write_text(yaml.safe_dump(recipe))
    done = command("run", "modules.yaml")
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "run" / "report" / "results.json").read_text())
    found = results["by_module"]
    assert 2 <= len(found["tried"]) <= found["budget"] == 4
    assert len({json.dumps(each["trial"]["point"]) for each in found["tried"]}) == len(found["tried"])
    assert found["sentence"] in results["choice"]["reason"]
    assert (found["chosen"] is None) is (results["choice"]["point"]["overrides"] == {}) is (found["test"] is None)
    said = " ".join(done.stdout.split())
    assert "λ by module" in said
    assert "on both axes on validation" in said
    again = command("run", "modules.yaml")
    assert again.returncode == 0, again.stderr
    assert "nothing was left to do" in again.stdout
