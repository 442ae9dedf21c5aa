"""`mooring safeguard BASE TUNED`: for someone who has both models."""

import json
from pathlib import Path
from typing import Any

import pytest

import mooring

from .conftest import write_data  # type: ignore[import-not-found]

QUICK = ("--max-tokens", 6, "--lambdas", "0.3,0.7", "--margin", 1, "--limit", 6)


@pytest.fixture
def tuned(tmp_path: Path, save_tiny_model: Any) -> Path:
    """A checkpoint like the base, with other weights."""
    return save_tiny_model(tmp_path / "tuned-model", seed=1)  # type: ignore[no-any-return]


@pytest.mark.slow
def test_a_pair_of_checkpoints(command: Any, tmp_path: Path, tiny_model_folder: Path, tuned: Path) -> None:
    from transformers import AutoModelForCausalLM

    write_data(tmp_path)
    template = tuned / "chat_template.jinja"
    template.write_text(template.read_text() + "{# another #}")
    sets = ("--task", "task.jsonl", "--safety", "refuse.jsonl")
    planned = command("safeguard", tiny_model_folder, tuned, *sets, *QUICK, "--out", "run", "--dry-run")
    assert planned.returncode == 0, planned.stderr
    assert "4 models × (6 safety + 6 task) = 48 responses" in planned.stdout
    assert not (tmp_path / "run").exists()

    done = command("safeguard", tiny_model_folder, tuned, *sets, *QUICK, "--out", "run")
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "run" / "report" / "results.json").read_text())
    differs = "the chat template differs; the merged model gets the base's"
    assert differs in done.stdout.replace("\n", " ")
    assert any(note.startswith(differs) for note in results["notes"])
    asked = {(t["point"]["lam"], t["split"]) for t in results["trials"]}
    chosen = results["choice"]["point"]["lam"]
    expected = {"validation": (0, 0.3, 0.7, 1), "test": (0, chosen, 1)}
    assert asked == {(lam, split) for split, lams in expected.items() for lam in lams}
    assert results["choice"]["metric"] == "call_match"
    assert json.loads((tmp_path / "run" / "model" / "mooring.json").read_text())["lambda"] == chosen
    AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model")
    check = json.loads((tmp_path / "run" / "check.json").read_text())
    assert check["passed"]
    assert [each["reference"] for each in check["logits"][1:]] == ["the tuned model", "the base"]
    assert any(note.startswith("The merged model was checked: 21 tensors equal") for note in results["notes"])
    # The prompts that λ was chosen on and those that are reported on are not the same.
    answers = tmp_path / "run" / "completions" / "lam-0"
    halves = [
        {json.loads(line)["prompt_id"] for line in (answers / f"safety-{split}.jsonl").read_text().splitlines()}
        for split in ("validation", "test")
    ]
    assert halves[0]
    assert halves[1]
    assert not halves[0] & halves[1]


@pytest.mark.slow
def test_an_adapter_without_a_task(command: Any, tmp_path: Path, tiny_model_folder: Path) -> None:
    write_data(tmp_path)
    made = command("tune", tiny_model_folder, "task.jsonl", "--max-steps", 4, "--learning-rate", 0.02, "--out", "lora")
    assert made.returncode == 0, made.stderr
    done = command("safeguard", tiny_model_folder, "lora", "--safety", "refuse.jsonl", *QUICK, "--out", "run")
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "run" / "report" / "results.json").read_text())
    assert results["choice"]["metric"] == "lam"
    assert results["choice"]["point"]["lam"] == 0.7
    assert any("No task was given" in note for note in results["notes"])


@pytest.mark.slow
def test_from_python_and_the_same_twice(tmp_path: Path, tiny_model_folder: Path, tuned: Path) -> None:
    write_data(tmp_path)
    texts = []
    for out in ("first", "second"):
        outcome = mooring.safeguard(
            tiny_model_folder,
            tuned,
            task=tmp_path / "task.jsonl",
            safety=tmp_path / "refuse.jsonl",
            lambdas=[0.5],
            margin=1,
            limit=4,
            max_tokens=4,
            out=tmp_path / out,
        )
        assert outcome.choice.point.lam == 0.5
        assert outcome.worked
        texts.append((outcome.report / "results.json").read_bytes())
    assert texts[0] == texts[1]
    again = mooring.run(mooring.Recipe.load(tmp_path / "first" / "recipe.yaml"))
    assert not again.worked
    with pytest.raises(mooring.RecipeError) as caught:
        mooring.safeguard(tiny_model_folder, tuned, out=tmp_path / "third", lamdas=[0.5])
    assert caught.value.code == "recipe.unknown_option"
    assert "lambdas" in caught.value.hint
