"""mergekit 0.1.5 on the same models: the same numbers, in float32. It runs in a process of its own, once for all."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from mooring.merging import mergekit_read
from mooring.merging.merge import merge_pair
from mooring.merging.pair import open_pair

pytestmark = pytest.mark.slow

pytest.importorskip("immutables", reason="mergekit is not installed: pip install -e '.[peers]'")

MODELS = ("base", "tuned", "other")
ONE = {"weight": 1.0, "density": 0.4}
SETTINGS: dict[str, dict[str, Any]] = {
    "linear": {"base": {"weight": 0.3}, "tuned": {"weight": 0.7}},
    "linear, three": {"base": {"weight": 0.5}, "tuned": {"weight": 0.2}, "other": {"weight": 0.9}},
    "slerp": {"tuned": {}, "common": {"t": [0.2, 0.9]}},
    "task_arithmetic": {"tuned": {"weight": 0.6}, "other": {"weight": 0.3}, "common": {"lambda": 0.8}},
    "ties": {"tuned": ONE, "common": {"lambda": 0.7}},
    "ties, two": {"tuned": ONE, "other": {"weight": 0.5, "density": 0.7}, "common": {"lambda": 0.7}},
    "breadcrumbs": {"tuned": ONE | {"gamma": 0.05}, "other": {"weight": 0.5, "density": 0.8}},
    "breadcrumbs_ties": {"tuned": ONE | {"gamma": 0.05}, "other": {"weight": 0.5, "density": 0.8}},
    "dare_linear": {"tuned": {"weight": 0.5, "density": 1.0}},
    "dare_ties": {"tuned": {"weight": 0.5, "density": 1.0}, "other": {"weight": 0.7, "density": 1.0}},
    "della": {"tuned": {"weight": 0.5, "density": 1.0}, "other": {"weight": 0.7, "density": 1.0}},
    "model_stock": {"tuned": {}, "other": {}},
    "karcher": {"base": {}, "tuned": {}, "other": {}},
    "nuslerp": {"base": {"weight": 0.4}, "tuned": {"weight": 0.6}},
    "nuslerp, two": {"tuned": {"weight": 0.4}, "other": {"weight": 0.8}},
    "multislerp": {"tuned": {"weight": 0.4}, "other": {"weight": 0.8}},
    "multislerp, sums": {"tuned": {"weight": 0.4}, "other": {"weight": 0.8}, "common": {"normalize_weights": False}},
    "nearswap": {"tuned": {}, "common": {"t": 0.01}},
    "sce": {"tuned": {}, "other": {}},
    "sce, selected": {"tuned": {}, "other": {}, "common": {"select_topk": 0.3}},
    "arcee_fusion": {"tuned": {}},
}
"""A method, with a remark where it stands twice, to its parameters: a model's own, and `common` ones."""

BOUNDS = {"karcher": 1e-4}
"""‖ours − theirs‖ / ‖theirs‖, a tensor at a time; 1e-6 elsewhere. mergekit's Karcher stops at ten steps."""

THEIRS = """
import json, sys, yaml
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.options import MergeOptions
for config, out in json.loads(sys.argv[1]):
    loaded = MergeConfiguration.model_validate(yaml.safe_load(open(config)))
    run_merge(loaded, out, MergeOptions(copy_tokenizer=False, write_model_card=False))
"""


def configuration(folder: Path, name: str, parts: dict[str, Any]) -> dict[str, Any]:
    method = name.partition(",")[0]
    models = [
        {"model": str(folder / model), "parameters": parts[model]} if parts[model] else {"model": str(folder / model)}
        for model in MODELS
        if model in parts
    ]
    common = {"parameters": parts["common"]} if "common" in parts else {}
    base = {} if method in ("linear", "karcher") or "base" in parts else {"base_model": str(folder / "base")}
    return {"merge_method": method, **base, "models": models, **common, "dtype": "float32"}


@pytest.fixture(scope="module")
def merged(tmp_path_factory: pytest.TempPathFactory, save_tiny_model: Any) -> Path:
    """Three models, of which two lie near the third, and every configuration with mergekit's result."""
    from safetensors.torch import load_file, save_file

    folder = tmp_path_factory.mktemp("parity")
    save_tiny_model(folder / "base", tie_word_embeddings=False)
    shared = torch.Generator().manual_seed(9)
    towards = {
        k: torch.randn(v.shape, generator=shared) for k, v in load_file(folder / "base/model.safetensors").items()
    }
    for seed, name in ((1, "tuned"), (2, "other")):
        save_tiny_model(folder / name, tie_word_embeddings=False)
        random = torch.Generator().manual_seed(seed)
        tensors = load_file(folder / name / "model.safetensors")
        for key, value in tensors.items():  # far enough that SLERP does not fall back, alike enough for Model Stock
            step = towards[key] + torch.randn(value.shape, generator=random)
            tensors[key] = value + step * 0.1 * float(value.square().mean().sqrt())
        save_file(tensors, folder / name / "model.safetensors", metadata={"format": "pt"})
    work = []
    for number, (name, parts) in enumerate(SETTINGS.items()):
        file = folder / f"{number}.yml"
        file.write_text(yaml.safe_dump(configuration(folder, name, parts)))
        work.append([str(file), str(folder / f"theirs-{number}")])
    done = subprocess.run([sys.executable, "-c", THEIRS, json.dumps(work)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return folder


@pytest.mark.parametrize("name", SETTINGS)
def test_agrees(merged: Path, tmp_path: Path, read: Callable[[Path], dict[str, torch.Tensor]], name: str) -> None:
    number = list(SETTINGS).index(name)
    job = mergekit_read.read(merged / f"{number}.yml")
    with open_pair(job.base, job.tuned) as pair:
        out = merge_pair(pair, tmp_path / "out", method=job.method, options=job.options)
    ours, theirs, base = read(out), read(merged / f"theirs-{number}"), read(merged / "base")
    assert ours.keys() == theirs.keys()
    assert not json.loads((out / "mooring.json").read_text())["decisions"]  # nothing was clamped
    for key, value in theirs.items():
        wanted = value.double()
        assert (wanted - base[key].double()).norm() > 1e-3 * wanted.norm()  # the merge did something
        error = float((ours[key].double() - wanted).norm() / wanted.norm())
        assert error <= BOUNDS.get(name, 1e-6), key
