"""Model folders made of any tensors, for tests of merging."""

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

# `--import-mode=importlib` puts no test folder on the path; `reference` is shared.
sys.path.insert(0, str(Path(__file__).parent))

Tensors = Mapping[str, torch.Tensor]


def write_model(folder: Path, tensors: Tensors, shards: int = 1, **config: Any) -> Path:
    """Write a folder with a config and these tensors, dealt to so many files."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"} | config))
    if shards == 1:
        save_file(dict(tensors), folder / "model.safetensors")
        return folder
    places = {}
    for number in range(shards):
        file = f"model-{number + 1:05}-of-{shards:05}.safetensors"
        part = dict(list(tensors.items())[number::shards])
        save_file(part, folder / file)
        places |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return folder


def read_model(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a folder, by the safetensors library."""
    return {k: v for file in sorted(folder.glob("*.safetensors")) for k, v in load_file(file).items()}


@pytest.fixture(scope="session")
def write() -> Callable[..., Path]:
    """`write(folder, tensors, shards=1, **config)` writes a model folder."""
    return write_model


@pytest.fixture(scope="session")
def read() -> Callable[[Path], dict[str, torch.Tensor]]:
    """`read(folder)` gives all its tensors."""
    return read_model
