"""An engineer with an adapter and a pipeline, a researcher who compares methods, and the places where users stopped."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

sys.path.insert(0, str(Path(__file__).parent))  # `--import-mode=importlib` puts no test folder on the path

from typed import fill, rows, type_all

import mooring
from lora_models import tune

SHORT = "--safety harmful.jsonl --max-tokens 6 --margin 1"


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory, save_tiny_model: Any) -> Path:
    """A folder with models, adapters and files. Shared: each test writes to folders of its own."""
    folder = fill(tmp_path_factory.mktemp("desk"), save_tiny_model)
    for seed in (1, 2, 3):
        tune(folder / "base", folder / f"adapter{seed}", seed=seed)
    plain = [{"prompt": f"Help me break thing number {i}.", "response": "I cannot help with that."} for i in range(12)]
    rows(folder / "answers.jsonl", plain)
    return folder


def check(desk: Path, typed: list[tuple[str, int, str]]) -> list[str]:
    """Type lines, each with its exit code and how its first line begins; return what each printed."""
    printed = []
    for (line, code, first), (got, out, err) in zip(
        typed, type_all(desk, [line.split() for line, *_ in typed]), strict=True
    ):
        text = err or out if code == 2 else out
        assert got == code, (line, err)
        assert "Traceback" not in err, (line, err)
        assert code != 2 or err.count("\n") == bool(err), (line, err)
        lines = [each.strip() for each in text.splitlines() if each.strip()]
        assert re.match(first, lines[0]), (line, lines[0])
        printed.append(text)
    return printed


@pytest.mark.slow
def test_an_engineer_with_an_adapter_and_a_pipeline(desk: Path) -> None:
    _, planned, shown, _, gate, *_ = check(
        desk,
        [
            ("inspect base adapter1", 0, "can be merged: adapter1"),
            (f"safeguard base adapter1 --out eng {SHORT} --lambdas 0.5 --dry-run", 0, "base +base$"),
            (f"safeguard base adapter1 --out eng {SHORT} --lambdas 0.5", 0, "NOT ENOUGH EVIDENCE"),
            ("verify eng/model", 0, "eng/model is what was written"),
            ("gate eng --junit gate.xml --json", 3, "{"),
            ("push eng/model me/x", 2, "mooring: .*HF_HUB_OFFLINE"),
            ("to-gguf eng/model --out eng-gguf --type f16", 0, "The GGUF file is eng-gguf/"),
        ],
    )
    for told in ("adapter1", "linear at λ = 0.5", "of at most 6 tokens", "eng/report/index.html", "not started"):
        assert told in planned
    for told in ("test split", "attack success rate", "refuses ordinary", "How λ was chosen", "eng/report/index.html"):
        assert told in shown
    assert json.loads(gate)["decision"] == "not_enough_evidence"
    assert (desk / "gate.xml").read_text().startswith("<?xml")


@pytest.mark.slow
def test_a_researcher_reproduces_the_comparison_of_methods(desk: Path) -> None:
    recipe = {
        "base": "base",
        "tuned": ["adapter1", "adapter2", "adapter3"],
        "out": "table2",
        "merge": {"methods": ["linear", "slerp", "dare_linear", "model_stock"], "lambdas": [0.4, 0.6]},
        "generate": {"max_tokens": 6, "device": "cpu", "dtype": "float32"},
        "score": {"safety": "harmful.jsonl", "over_refusal": None, "ordinary": None, "judges": ["rules", "classifier"]}
        | {"task": "task.jsonl", "metrics": ["call_match"]},
        "select": {"margin": 1.0},
    }
    (desk / "table2.yaml").write_text(yaml.safe_dump(recipe))
    planned, shown, again, _ = check(
        desk,
        [
            ("run table2.yaml --dry-run", 0, "base +base$"),
            ("run table2.yaml", 0, ""),
            ("run table2.yaml", 0, "table2 is finished: nothing was left to do"),
            ("paper table2 --out table2-paper", 0, "10 runs: the tables and figures are in table2-paper/paper.md"),
        ],
    )
    assert "model_stock of all tuned models (10 series, each asked once)" in planned
    assert "23 models × (6 safety + 6 task) = 276 responses" in planned
    assert again.partition("\n")[2].strip() == shown.strip()
    for told in ("adapter1, adapter2,", "Table 2. Merging methods", "of 10 keep the bound", "table2/report/index.html"):
        assert told in shown
    assert "Table 2" in (desk / "table2-paper" / "paper.md").read_text()
    found = mooring.load_comparison(desk / "table2")
    assert len(found.series) == 3 * 3 + 1
    asked = sorted(path.parent.name for path in (desk / "table2" / "completions").glob("*/safety-validation.jsonl"))
    assert len(asked) == len(set(asked)) == 1 + 3 + 3 * 3 * 2 + 1  # each point once; Model Stock is one
    assert (desk / "table2" / "report" / "methods.tex").is_file()


@pytest.mark.slow
def test_the_places_where_users_stopped(desk: Path) -> None:
    two = [{"prompt": "One?", "response": "No."}, {"prompt": "Two?", "response": "Yes."}]
    rows(desk / "few.jsonl", two)
    check(
        desk,
        [
            ("merge base tuned --lam 0.5 --out linear", 0, "The merged model is in linear"),
            ("merge base tuned --method dare_linear --lam 0.5 --out dare", 0, "The merged model is in dare"),
            ("merge base tuned --method dare_linear --lam 0.5 --density 1 --out same", 2, "mooring: .*density"),
            ("merge base tuned --lam 0.5 --out pushed --push me/x", 2, "mooring: .*HF_HUB_OFFLINE"),
            ("merge base tuned --method model_stock --out stock1", 2, "mooring: model_stock"),
            (
                "merge base seed1 seed2 seed3 --method model_stock --out stock",
                0,
                "(model.layers|The merged model is in stock)",
            ),
            ("generate base harmful.jsonl --device cuda --out cuda.jsonl", 2, "mooring: .*cuda"),
            ("inspect base base", 2, "cannot be merged: base"),
            ("score answers.jsonl harmful.jsonl --judges nobody/unreadable", 2, "mooring: "),
            ("score answers.jsonl harmful.jsonl --judges rules", 0, "score"),
            (
                "safeguard base tuned --out limited --safety harmful.jsonl --max-tokens 6 --limit 8",
                2,
                "mooring: .*--confidence none",
            ),
            ("compare-evals answers.jsonl few.jsonl", 2, "mooring: "),
        ],
    )
    assert not (desk / "pushed").exists()
    assert (desk / "dare" / "model.safetensors").read_bytes() != (desk / "linear" / "model.safetensors").read_bytes()
