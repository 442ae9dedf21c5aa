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

pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.usefixtures("in_this_process")]

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
            elif kind.startswith("Gemma"):  # whose norms multiply by 1 + weight
                value.normal_(std=0.5)
        if kind.startswith("Gemma"):  # which multiplies embeddings by √128: alone, they would repeat the last token
            model.get_input_embeddings().weight.mul_(0.1)
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


PROMPTS = [Prompt(id=f"p{n}", messages=(Message("user", f"Tell me about {n} foxes."),)) for n in range(12)]
Answers = dict[str, tuple[str, int, str]]


def answers(engine: Any) -> Answers:
    """Greedy answers, their lengths and endings included."""
    batches = engine.complete(PROMPTS, SamplingParams(max_tokens=12))
    return {c.key: (c.text, c.tokens, c.finish) for batch in batches for c in batch}


def in_vllm(folder: Path) -> Answers:
    engine = VLLMEngine.load(folder, options=VLLMOptions(dtype="float32", enforce_eager=True, max_model_len=128))
    try:
        return answers(engine)
    finally:
        engine.close()


@pytest.mark.parametrize("kind", KINDS)
def test_a_merged_model_and_a_merged_adapter_answer_as_in_transformers(
    kind: str, tiny_tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    base = save(kind, tiny_tokenizer, tmp_path / "base")
    tuned = tune(base, tmp_path / "tuned", target_modules="all-linear" if kind in DENSE else ["q_proj", "o_proj"])
    folders = [merge(base, tuned, tmp_path / "model", lam=0.5)]
    if kind in DENSE:
        job = Job(method="linear", base=str(base), tuned=(str(tuned),), options=options_of("linear", 0.5))
        folders.append(merge_adapters(base, [tuned], tmp_path / "adapter", job))
    # First: in this process vLLM changes the classes of transformers that it has no implementation of its own for.
    expected = [answers(TransformersEngine.load(folder, dtype="float32", device="cpu")) for folder in folders]
    for folder, theirs in zip(folders, expected, strict=True):
        ours = in_vllm(folder)
        assert len({text for text, *_ in theirs.values()}) > 1, folder.name
        assert sum(ours[key] == theirs[key] for key in theirs) >= len(theirs) - 1, folder.name
