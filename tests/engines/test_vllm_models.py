"""Real vLLM on a tiny model of each architecture: a merged model and a merged adapter answer as in transformers."""

from pathlib import Path
from typing import Any

import pytest

from lora_models import tune
from mooring.inference.transformers import TransformersEngine
from mooring.inference.vllm import VLLMEngine
from mooring.inference.vllm_shared import VLLMOptions
from mooring.merging.adapter import merge_adapters
from mooring.merging.job import Job, options_of
from mooring.merging.merge import merge
from mooring.records import Message, Prompt
from mooring.sampling import SamplingParams

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

MIXTURE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64, "norm_topk_prob": True}
KINDS: dict[str, dict[str, Any]] = {
    "Llama": {},
    "Mistral": {"sliding_window": None},
    "Qwen2": {},
    "Qwen3": {},
    "Gemma2": {"query_pre_attn_scalar": 64},
    "Gemma3Text": {"query_pre_attn_scalar": 64},
    "Phi3": {},
    "Olmo2": {},
    "Granite": {},
    "SmolLM3": {},
    "Qwen3Moe": MIXTURE | {"decoder_sparse_step": 1, "mlp_only_layers": []},
    "Mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
}
DENSE = [kind for kind in KINDS if kind not in ("Qwen3Moe", "Mixtral")]


def save(kind: str, words: Any, folder: Path) -> Path:
    """A tiny model of an architecture with a tokenizer, of a shape that vLLM's kernels on a CPU support."""
    import torch
    import transformers

    size = {"vocab_size": len(words), "hidden_size": 128, "intermediate_size": 128, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 64, "max_position_embeddings": 512}
    ids = {"bos_token_id": None, "eos_token_id": words.eos_token_id, "pad_token_id": words.pad_token_id}
    config = getattr(transformers, f"{kind}Config")(**{**size, **heads, **ids, **KINDS[kind]})
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for value in model.parameters():
            if value.dim() > 1:
                value.normal_(std=0.15)
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def check(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Greedy answers in vLLM are those in transformers."""
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    prompts = [Prompt(id=f"p{n}", messages=(Message("user", f"Tell me about {n} foxes."),)) for n in range(12)]
    params = SamplingParams(max_tokens=12)
    exact = TransformersEngine.load(folder, dtype="float32", device="cpu")
    theirs = {c.key: (c.text, c.tokens, c.finish) for batch in exact.complete(prompts, params) for c in batch}
    engine = VLLMEngine.load(folder, options=VLLMOptions(dtype="float32", enforce_eager=True, max_model_len=128))
    try:
        ours = {c.key: (c.text, c.tokens, c.finish) for batch in engine.complete(prompts, params) for c in batch}
    finally:
        engine.close()
    assert len({text for text, *_ in theirs.values()}) > 1
    assert sum(ours[key] == theirs[key] for key in theirs) >= len(theirs) - 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_merged_model_answers_as_in_transformers(
    kind: str, tiny_tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = save(kind, tiny_tokenizer, tmp_path / "base")
    tuned = tune(base, tmp_path / "tuned", target_modules=["q_proj", "o_proj"] if kind != "Phi3" else "all-linear")
    check(merge(base, tuned, tmp_path / "merged", lam=0.5), monkeypatch)


@pytest.mark.parametrize("kind", DENSE)
def test_a_merged_adapter_answers_as_in_transformers(
    kind: str, tiny_tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = save(kind, tiny_tokenizer, tmp_path / "base")
    tuned = tune(base, tmp_path / "tuned", target_modules="all-linear")
    job = Job(method="linear", base=str(base), tuned=(str(tuned),), options=options_of("linear", 0.5))
    check(merge_adapters(base, [tuned], tmp_path / "merged", job), monkeypatch)
