"""Files of a model folder that are far larger than any: each is refused in one line, in little memory."""

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

# `--import-mode=importlib` puts no test folder on the path.
sys.path.insert(0, str(Path(__file__).parents[1]))

from fuzzing import limited
from mooring.merging.inspect import inspect

CONFIG = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 8, "hidden_size": 4}
LARGE = {
    "lists": b"[" + b"[]," * (200 * 2**20 // 3) + b"[]]",
    "mappings": b"[" + b"{}," * (200 * 2**20 // 3) + b"{}]",
    "one text": b'{"a": "' + b"x" * (200 * 2**20) + b'"}',
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", LARGE)
@pytest.mark.parametrize(
    "name", ["config.json", "model.safetensors.index.json", "tokenizer.json", "tokenizer_config.json"]
)
def test_large_files_take_little_memory(tmp_path: Path, kind: str, name: str) -> None:
    for folder in ("base", "tuned"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "config.json").write_text(json.dumps(CONFIG))
        if name != "model.safetensors.index.json":
            weights = {"a": torch.full((4, 4), float(len(folder)))}
            save_file(weights, tmp_path / folder / "model.safetensors")
        (tmp_path / folder / name).write_bytes(LARGE[kind])
    with limited():
        found = inspect(tmp_path / "base", tmp_path / "tuned", quick=True)
    assert len(found.problems) == 1
    assert name in found.problems[0]
