"""A whole run over λ on a real llama.cpp server, which takes the scale of the adapter with each request."""

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llama_cpp import LlamaCpp
from lora_models import tune
from mooring.config import Recipe
from mooring.models.to_gguf import write_adapter, write_model
from mooring.pipeline.run import run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("xllamacpp") is None, reason="xllamacpp is not installed"),
]

LAMBDAS = (0.2, 0.5, 0.8)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Any) -> Path:
    """A tiny model and an adapter that changes its answers, as folders and as GGUF files."""
    import torch
    import transformers

    folder = tmp_path_factory.mktemp("gguf")
    torch.manual_seed(0)
    ids = {"eos_token_id": tiny_tokenizer.eos_token_id, "pad_token_id": tiny_tokenizer.pad_token_id}
    size = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "max_position_embeddings": 256}
    config = transformers.LlamaConfig(
        vocab_size=len(tiny_tokenizer), num_attention_heads=4, initializer_range=0.15, **size, **ids
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder / "base")
    tiny_tokenizer.save_pretrained(folder / "base")
    tune(folder / "base", folder / "tuned", target_modules="all-linear", lora_alpha=32)
    write_model(folder / "base", folder, "f16")
    write_adapter(folder / "tuned", folder / "base", folder, "f16")
    return folder


@pytest.fixture
def server(models: Path) -> Iterator[str]:
    """The address of llama.cpp with the base and its adapter."""
    base, adapter = (next(models.glob(f"{name}*.gguf")) for name in ("base", "tuned"))
    with LlamaCpp(base, adapter) as served:
        yield f"{served.address}/v1"


def recipe(models: Path, folder: Path, **generate: Any) -> Recipe:
    data = folder / "requests.jsonl"
    data.write_text("".join(json.dumps({"prompt": f"Tell me about {n} foxes."}) + "\n" for n in range(40)))
    return Recipe.parse(
        {
            "base": str(models / "base"),
            "tuned": str(models / "tuned"),
            "out": str(folder / "run"),
            "merge": {"lambdas": LAMBDAS},
            "generate": {"max_tokens": 4, **generate},
            "score": {"safety": str(data), "over_refusal": None, "ordinary": None},
            "select": {"confidence": None},
        }
    )


def answers(folder: Path) -> dict[tuple[str, str], str]:
    """By model and prompt."""
    return {
        (path.parent.name, row["prompt_id"]): row["text"]
        for path in (folder / "completions").glob("*/safety-validation.jsonl")
        for row in map(json.loads, path.read_text().splitlines())
    }


def test_every_lambda_answers_as_in_transformers(models: Path, server: str, tmp_path: Path) -> None:
    for name in ("served", "local"):
        (tmp_path / name).mkdir()
    served = run(recipe(models, tmp_path / "served", engine="openai", base_url=server))
    local = run(recipe(models, tmp_path / "local", dtype="float32", device="cpu"))
    found, expected = answers(served.folder), answers(local.folder)
    assert found.keys() == expected.keys()
    assert len({model for model, _ in found}) == len(LAMBDAS) + 2
    by_model = {model: tuple(text for (each, _), text in expected.items() if each == model) for model, _ in expected}
    assert len(set(by_model.values())) == len(by_model), "the adapter must change the answers at every λ"
    # llama.cpp computes in float16, so that a near tie between two tokens can fall the other way, and leaves out the
    # bytes of an unfinished character at the end.
    same = [found[key].rstrip("\ufffd") == expected[key].rstrip("\ufffd") for key in found]
    assert sum(same) >= 0.85 * len(same)
    first = [found[key][:1] == expected[key][:1] for key in found]
    assert sum(first) >= 0.95 * len(first)
