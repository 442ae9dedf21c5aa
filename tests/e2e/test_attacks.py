"""Attacks on the command line, with a real engine: a run, and single files."""

import json
from pathlib import Path
from typing import Any

import pytest

from mooring.records import Completion, read_jsonl

ATTACKS = ["prefill:4", "prefill_tuned:3", "multi_turn:insist", "best_of_n:2"]
SCORE = {"safety": "refuse.jsonl", "over_refusal": None, "ordinary": None, "attacks": ATTACKS}


@pytest.mark.slow
def test_a_run_under_attacks_plans_them_does_them_and_does_nothing_twice(
    command: Any, write_recipe: Any, tmp_path: Path
) -> None:
    path = write_recipe(score=SCORE, align=None, select={"margin": 1.0, "bound_on": ["none", "prefill:4"]})
    planned = command("run", path, "--dry-run")
    assert planned.returncode == 0, planned.stderr
    for part in ("6 safety+prefill:4", "6 safety+multi_turn:insist × 3 turns", "12 safety+best_of_n:2"):
        assert part in " ".join(planned.stdout.split()), planned.stdout
    done = command("run", path)
    assert done.returncode == 0, done.stderr
    run = tmp_path / "run"
    results = json.loads((run / "report" / "results.json").read_text())
    assert set(results["choice"]["bounds"]) == {"asr", "asr+prefill:4"}
    scored = {name for trial in results["trials"] for name in trial["scores"]}
    assert {"asr+prefill:4", "asr+prefill_tuned:3", "asr+multi_turn:insist", "asr_worst+best_of_n:2"} <= scored
    for answers in run.glob("completions/*/safety+prefill-4-*.jsonl"):
        assert all(each.prefill and each.text != each.answer for each in read_jsonl(answers, Completion))
    assert len(list(run.glob("completions/*/safety+multi_turn-insist-validation.turn-*.jsonl"))) == 2 * 4
    again = command("run", path)
    assert "finished: nothing was left to do" in again.stdout
    chosen = command("select", run, "--bound-on", "none")
    assert chosen.returncode == 0, chosen.stderr


def test_one_file_is_answered_and_scored_under_an_attack(
    command: Any, write_recipe: Any, tiny_model_folder: Path, tmp_path: Path
) -> None:
    write_recipe()
    made = command(
        *("generate", tiny_model_folder, "refuse.jsonl", "--kind", "safety", "--out", "a.jsonl"),
        *("--attacks", "samples:2", "--max-tokens", "4"),
    )
    assert made.returncode == 0, made.stderr
    assert len(read_jsonl(tmp_path / "a.jsonl", Completion)) == 24
    scored = command("score", "a.jsonl", "refuse.jsonl", "--kind", "safety", "--attacks", "samples:2", "--json")
    assert scored.returncode == 0, scored.stderr
    assert '"asr_worst+samples:2"' in scored.stdout


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (("--attacks", "prefill:2,base64"), "recipe.several_attacks"),
        (("--attacks", "prefill_tuned:2"), "recipe.attack_needs_run"),
        (("--attacks", "base64", "--kind", "ordinary"), "recipe.attack_on_harmless"),
        (("--attacks", "base46"), "recipe.bad_value"),
    ],
)
def test_attacks_that_no_file_can_hold_are_refused(
    command: Any, write_recipe: Any, tiny_model_folder: Path, options: tuple[str, ...], code: str
) -> None:
    write_recipe()
    done = command("generate", tiny_model_folder, "refuse.jsonl", "--out", "a.jsonl", *options, "--json")
    assert done.returncode == 2
    assert code in done.stdout
