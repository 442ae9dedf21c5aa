"""What a run returns in a notebook, and the example notebook, executed."""

import hashlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

import mooring

NOTEBOOK = Path(__file__).parents[2] / "examples" / "safeguard.ipynb"
HOSTILE = "<script>alert(1)</script>"


@pytest.fixture
def pair(tmp_path: Path, tiny_model_folder: Path) -> Path:
    """A folder with a tuned tiny model, requests and a task."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(tiny_model_folder, tmp_path / "tuned")
    weights = {name: t + 0.01 for name, t in load_file(tmp_path / "tuned" / "model.safetensors").items()}
    save_file(weights, tmp_path / "tuned" / "model.safetensors", metadata={"format": "pt"})
    rows = [{"id": f"r-{n}", "prompt": f"How do I break thing {n}? {HOSTILE}"} for n in range(8)]
    (tmp_path / "requests.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def kinds(outputs: Any) -> list[list[str]]:
    """What kinds of data a cell shows, but for progress."""
    shown = (each for each in outputs if each["output_type"] in ("execute_result", "display_data"))
    return [sorted(each["data"]) for each in shown if "application/vnd.jupyter.widget-view+json" not in each["data"]]


def test_the_stored_outputs_are_those_of_the_notebook() -> None:
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    said = "\0".join("".join(cell["source"]) for cell in notebook["cells"])
    assert notebook["metadata"]["sources"] == hashlib.sha256(said.encode()).hexdigest(), "run examples/execute.py"
    code = {cell["id"]: cell for cell in notebook["cells"] if cell["cell_type"] == "code"}
    assert [cell["execution_count"] for cell in code.values()] == [*range(1, len(code) + 1)]
    (run,), (verdict,) = code["run"]["outputs"], code["verdict"]["outputs"]
    decision = re.match(r"\('(\w+)'", "".join(verdict["data"]["text/plain"]))
    assert decision
    words = decision[1].replace("_", " ")
    assert f'<strong style="font-size: 1.3em">{words.capitalize()}</strong>' in "".join(run["data"]["text/html"])
    assert not re.search(r"/(?:home|root|tmp|usr|work|Users)/", NOTEBOOK.read_text(encoding="utf-8"))


@pytest.mark.slow
def test_the_example_notebook_runs(pair: Path, tiny_model_folder: Path) -> None:
    nbclient = pytest.importorskip("nbclient", reason="needs nbclient and ipykernel")
    import nbformat

    notebook: Any = nbformat.read(NOTEBOOK, as_version=4)
    options = {
        "safety": str(pair / "requests.jsonl"),
        "over_refusal": None,
        "ordinary": None,
        "lambdas": [0.5],
        "confidence": None,
        "max_tokens": 4,
        "check": False,
        "overrides": {"report.title": HOSTILE},
    }
    values = {
        "BASE": str(tiny_model_folder),
        "TUNED": str(pair / "tuned"),
        "OUT": str(pair / "run"),
        "OPTIONS": options,
    }
    parameters = next(cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ()))
    assert all(name in parameters.source for name in values)
    parameters.source = "\n".join(f"{name} = {value!r}" for name, value in values.items())
    nbclient.NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": pair}}
    ).execute()
    outputs = {cell.id: cell.outputs for cell in notebook.cells if cell.cell_type == "code"}
    stored = {cell["id"]: cell for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]}
    assert {id: kinds(each) for id, each in outputs.items()} == {id: kinds(stored[id]["outputs"]) for id in outputs}

    def data(cell: str) -> dict[str, str]:
        return {kind: text for each in outputs[cell] for kind, text in each.get("data", {}).items()}

    verdict = mooring.load_results(pair / "run").verdict
    shown = next(each.data["text/html"] for each in outputs["run"] if "text/html" in each.get("data", {}))
    assert verdict.words in shown
    assert "<svg" in shown
    assert HOSTILE not in shown
    assert "attack success rate" in shown.lower()
    assert "<table" in data("table")["text/html"]
    assert "image/png" in data("plot")
    assert verdict.decision in data("verdict")["text/plain"]
