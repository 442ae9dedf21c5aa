"""The verbs: their help, and what each prints and writes."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mooring.config import Recipe

from .conftest import Run, write_task  # type: ignore[import-not-found]

VERBS = (
    "safeguard",
    "run",
    "quickstart",
    "tune",
    "merge",
    "generate",
    "score",
    "select",
    "report",
    "inspect",
    "compare",
    "rejudge",
    "verify-served",
    "prefer",
    "lm-eval",
    "verify",
    "push",
    "paper",
    "mergekit run",
    "mergekit export",
)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_an_example(run: Run, verb: str) -> None:
    code, out, _ = run(*verb.split(), "--help")
    assert code == 0
    assert f"mooring {verb}" in out.partition("Examples:")[2]


def test_the_help_names_every_verb(run: Run) -> None:
    code, out, _ = run("--help")
    assert code == 0
    for verb in VERBS:
        assert f"  {verb.split()[0]} " in out


def test_python_dash_m_and_the_version() -> None:
    import mooring

    result = subprocess.run([sys.executable, "-m", "mooring", "--version"], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == f"mooring {mooring.__version__}"


def test_an_unknown_option_exits_with_2(run: Run) -> None:
    code, _, err = run("merge", "--nonsense")
    assert code == 2
    assert "--nonsense" in err


ENGINE = ("--engine", "vllm", "--tensor-parallel", 2, "--max-model-len", 2048, "--gpu-memory", 0.5, "--enforce-eager")
JUDGE = ("--judges", "rules,wildguard", *(f"--judge-{each[2:]}" if str(each)[:2] == "--" else each for each in ENGINE))


@pytest.mark.parametrize("verb", ["safeguard", "run"])
def test_a_run_takes_the_options_of_its_engine_and_of_its_judges(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    recipes: list[Recipe] = []
    monkeypatch.setattr("mooring.cli.app._start", lambda recipe, *_: recipes.append(recipe))
    (tmp_path / "mine.yaml").write_text("base: b\ntuned: t\n")
    models = ("b", "t", "--out", "out") if verb == "safeguard" else ("mine.yaml", "--set", "score.judges=wildguard")
    code, _, err = run(verb, *models, *ENGINE, "--dtype", "bfloat16", *(JUDGE if verb == "safeguard" else JUDGE[2:]))
    assert code == 0, err
    generate, judge = recipes[0].generate, recipes[0].score.judges[-1]
    assert (generate.dtype, judge.name, judge.dtype) == ("bfloat16", "wildguard", "auto")
    for each in (generate, judge):
        assert (each.engine, each.tensor_parallel, each.max_model_len, each.gpu_memory) == ("vllm", 2, 2048, 0.5)
        assert each.enforce_eager


def test_where_only_judges_have_an_engine_both_names_of_an_option_are_the_same(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Any] = []
    monkeypatch.setattr("mooring.rejudge", lambda folder, **options: given.append(options["judges"]) or [])
    for engine in ("--engine", "--judge-engine"):
        assert run("rejudge", "folder", "--judges", "wildguard", engine, "vllm")[0] == 0
    assert given == [[{"name": "wildguard", "engine": "vllm"}]] * 2
    code, _, err = run("safeguard", "b", "t", "--out", "out", "--price-in", 2)
    assert (code, "--price-in" in err) == (2, True)


def test_merge_generate_score_one_after_the_other(
    run: Run,
    tmp_path: Path,
    tiny_model_folder: Path,
    tuned: Path,
) -> None:
    task = write_task(tmp_path)
    code, out, err = run("merge", tiny_model_folder, tuned, "--lam", 0.6, "--out", "merged")
    assert (code, err) == (0, "")
    assert "merged" in out
    assert json.loads((tmp_path / "merged" / "mooring.json").read_text())["lambda"] == 0.6
    answers = ("--likelihood", "loss.jsonl", "--max-tokens", 4, "--out", "answers.jsonl")
    code, out, err = run("generate", "merged", task, *answers)
    assert code == 0, err
    assert "6 completions are in answers.jsonl" in out
    scored = ("score", "answers.jsonl", task, "--kind", "task", "--likelihood", "loss.jsonl")
    code, out, err = run(*scored, "--json")
    assert code == 0, err
    scores = json.loads(out)
    assert scores.keys() == {"call_match", "response_loss"}
    assert scores["call_match"]["n"] == 6
    losses = [json.loads(line) for line in (tmp_path / "loss.jsonl").read_text().splitlines()]
    expected = sum(row["nll"] for row in losses) / sum(row["tokens"] for row in losses)
    assert scores["response_loss"]["value"] == pytest.approx(expected)
    code, out, _ = run(*scored)
    assert f"{expected:.3f}" in out
    code, out, _ = run("score", "answers.jsonl", task, "--kind", "safety", "--json")
    assert json.loads(out)["asr"]["method"].startswith("refusal-classifier")


def test_inspect_says_what_changed(run: Run, tiny_model_folder: Path, tuned: Path) -> None:
    code, out, err = run("inspect", tiny_model_folder, tuned)
    assert (code, err) == (0, "")
    for words in ("can be merged", "self_attn.q_proj", "layer 1", "tensors changed"):
        assert words in out


def test_inspect_of_a_mismatch_says_so(run: Run, tmp_path: Path, tiny_model_folder: Path, save_tiny_model: Any) -> None:
    other = save_tiny_model(tmp_path / "other", num_hidden_layers=3)
    code, out, _ = run("inspect", tiny_model_folder, other)
    assert code == 2
    assert "cannot be merged" in out
    assert "has 3 layers" in " ".join(out.split())


def test_tune_writes_an_adapter(run: Run, tmp_path: Path, tiny_model_folder: Path) -> None:
    task = write_task(tmp_path)
    names = ("--target-modules", "q_proj,v_proj", "--lora-dropout", 0.1, "--lora-alpha", 12)
    code, out, err = run("tune", tiny_model_folder, task, *names, "--max-steps", 2, "--out", "adapter")
    assert code == 0, err
    assert "adapter" in out
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["lora_dropout"]) == (8, 12, 0.1)
    assert sorted(config["target_modules"]) == ["q_proj", "v_proj"]
