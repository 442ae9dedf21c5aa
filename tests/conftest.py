"""Fixtures that every folder of tests may use: a real small tokenizer, and a tiny random model that bears it."""

import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

# `--import-mode=importlib` puts no test folder on the path; `lora_models` is shared.
sys.path.insert(0, str(Path(__file__).parent))

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB for vLLM's cache of keys and values

import hypothesis
import pytest

# A deadline per example fails on a loaded machine, where nothing is wrong with the code.
hypothesis.settings.register_profile("mooring", deadline=None)
hypothesis.settings.load_profile("mooring")

os.fsync = lambda file: None  # what survives a power failure is not tested, and thousands of waits for a disk add up

HAS_VLLM = importlib.util.find_spec("vllm") is not None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the tests that start a real vLLM engine where vLLM is not installed."""
    if not HAS_VLLM:
        for item in items:
            if item.get_closest_marker("vllm"):
                item.add_marker(pytest.mark.skip(reason="vLLM is not installed; `make test-vllm` runs it"))


TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""ChatML, as SmolLM2 and Qwen write it."""

TEXT = [
    "What is the capital of Norway? Oslo is the capital of Norway.",
    "I'm sorry, but I can't help with that. I cannot assist with hurting people.",
    "alarm.set(time='06:30', day='Monday', label='run')",
    "You are a helpful assistant.",
    "The quick brown fox jumps over the lazy dog, and then it sleeps for 12 hours.",
    "Write a short poem about the sea: the waves that rise, the waves that fall.",
    "user system assistant",
]


def build_tokenizer(template: str | None = TEMPLATE) -> Any:
    """A byte-level BPE tokenizer of about 400 tokens, with ChatML's two special tokens and no BOS of its own."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator(TEXT * 4, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token="<|im_start|>", eos_token="<|im_end|>", pad_token="<|im_end|>"
    )
    tokenizer.chat_template = template
    return tokenizer


def build_model(tokenizer: Any, seed: int = 0, **changes: Any) -> Any:
    """A random Llama with grouped-query attention: 2 layers, hidden 64, as many embeddings as tokens."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    settings: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "tie_word_embeddings": True,
        "initializer_range": 0.1,
    }
    generator = torch.random.get_rng_state()
    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(**settings | changes)).eval()
    torch.random.set_rng_state(generator)
    return model


def save_model(folder: Path, seed: int = 0, **changes: Any) -> Path:
    """Write a tiny random model with the tiny tokenizer as an ordinary folder."""
    tokenizer = build_tokenizer()
    build_model(tokenizer, seed, **changes).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_tokenizer() -> Any:
    """The tiny tokenizer. Shared: do not change it."""
    return build_tokenizer()


@pytest.fixture(scope="session")
def tiny_model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny random Llama in float32 and its tokenizer. Shared: do not change it."""
    return save_model(tmp_path_factory.mktemp("tiny") / "base")


@pytest.fixture(scope="session")
def save_tiny_model() -> Any:
    """`save_tiny_model(folder, seed=0, **config)` writes another tiny model with the same tokenizer."""
    return save_model


@pytest.fixture(scope="session")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Tiny models: a tied Llama, an untied one with biases, and a GPT-2, whose weights lie (inputs, outputs)."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    folder = tmp_path_factory.mktemp("bases")
    biased = {"tie_word_embeddings": False, "attention_bias": True, "mlp_bias": True}
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=50, n_positions=32, n_embd=32, n_layer=2, n_head=2, initializer_range=0.1)
    gpt2 = GPT2LMHeadModel(config)
    with torch.no_grad():
        for name, value in gpt2.named_parameters():
            if name.endswith("bias"):
                value.normal_(std=0.1)
    gpt2.save_pretrained(folder / "gpt2")
    return {
        "tied": save_model(folder / "tied"),
        "biased": save_model(folder / "biased", **biased),
        "gpt2": folder / "gpt2",
    }
