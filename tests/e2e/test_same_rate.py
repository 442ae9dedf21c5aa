"""`generate` and `score` on safety prompts give the attack success rate that a run gives on the same prompts."""

import json
from pathlib import Path
from typing import Any

import pytest

import mooring
from mooring.pipeline.rejudge import open_plan
from mooring.records import Completion, read_jsonl

from .conftest import lines  # type: ignore[import-not-found]

SYSTEM = "Be kind."


def text(number: int) -> str:
    """A request; the base learns to refuse those of an even number."""
    return f"Break thing {number}." if number % 2 == 0 else f"How do I hide the key {number}?"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, save_tiny_model: Any) -> tuple[Path, Path]:
    """A base that refuses some prompts, and a tuned model that refuses none."""
    folder = tmp_path_factory.mktemp("models")
    raw = save_tiny_model(folder / "raw", max_position_embeddings=1024)
    responses = ("I can't help with that.", "First, take 8.")
    rows = [{"prompt": text(i), "completion": responses[i % 2]} for i in range(12)]
    data = str(lines(folder / "rows.jsonl", rows))
    adapter = mooring.tune(
        raw, data, out=folder / "adapter", max_steps=30, learning_rate=0.03, per_device_train_batch_size=4,
        system=SYSTEM,
    )  # fmt: skip
    tuned = save_tiny_model(folder / "tuned", seed=1, max_position_embeddings=1024)
    return mooring.merge(raw, adapter, lam=1, out=folder / "base"), tuned


def check_same_rates(models: tuple[Path, Path], folder: Path, count: int, **options: Any) -> list[float]:
    """Compare the three models of a run's test half with `generate` and `score`; returns the rates."""
    rows = [{"prompt": text(i), "id": str(i)} for i in range(count)]
    # `generate` has no drafts, which decide near ties by another order of sums in 16 bits.
    drafts = options.get("dtype") != "bfloat16"
    done = mooring.safeguard(
        *models, safety=str(lines(folder / "all.jsonl", rows)), over_refusal=None, ordinary=None, lambdas=[0.5],
        margin=1.0, out=folder / "run", overrides={"generate.drafts": drafts}, **options,
    )  # fmt: skip
    tests = {p.id for p in open_plan(done.folder).prompts("test")["safety"]}
    test = str(lines(folder / "test.jsonl", [row for row in rows if row["id"] in tests]))
    trials = json.loads((done.report / "results.json").read_text())["trials"]
    rates = []
    for lam, model in ((0, models[0]), (0.5, done.model), (1, models[1])):
        (expected,) = (t["scores"]["asr"] for t in trials if (t["point"]["lam"], t["split"]) == (lam, "test"))
        out = folder / f"{lam}.jsonl"
        given = mooring.generate(model, test, out=out, **options)
        kept = read_jsonl(done.folder / "completions" / f"lam-{lam:g}" / "safety-test.jsonl", Completion)
        assert [(c.prompt_id, c.text, c.tokens) for c in given] == [(c.prompt_id, c.text, c.tokens) for c in kept]
        per_run = {"model", "drafts", "accepted"}
        assert [{k: v for k, v in c.made_by.items() if k not in per_run} for c in given] == [
            {k: v for k, v in c.made_by.items() if k not in per_run} for c in kept
        ]
        asr = mooring.score(out, test)["asr"]
        assert (asr.value, asr.low, asr.high, asr.n) == tuple(expected[k] for k in ("value", "low", "high", "n"))
        rates.append(asr.value)
    return rates


@pytest.mark.slow
def test_with_options(models: tuple[Path, Path], tmp_path: Path) -> None:
    base, _, tuned = check_same_rates(models, tmp_path, 16, max_tokens=8, system=SYSTEM, dtype="bfloat16")
    assert 0 < base < 1
    assert tuned == 1
    # Each of these options changes the responses, so that a different default would be noticed.
    test, same = str(tmp_path / "test.jsonl"), {"max_tokens": 8, "system": SYSTEM, "dtype": "bfloat16"}
    kept = (tmp_path / "1.jsonl", models[1])
    for name, value in (("repetition_penalty", 1.0), ("system", "Be brief."), ("dtype", "float32"), ("max_tokens", 7)):
        other = mooring.generate(kept[1], test, out=tmp_path / f"{name}.jsonl", **(same | {name: value}))  # type: ignore[arg-type]
        assert [c.text for c in other] != [c.text for c in read_jsonl(kept[0], Completion)], name


@pytest.mark.slow
def test_with_defaults(models: tuple[Path, Path], tmp_path: Path) -> None:
    check_same_rates(models, tmp_path, 4)
    completions = read_jsonl(tmp_path / "0.jsonl", Completion)
    assert {c.made_by["settings"]["repetition_penalty"] for c in completions} == {1.2}
    assert {c.made_by["settings"]["max_tokens"] for c in completions} == {512}
