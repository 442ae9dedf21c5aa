"""Tiny models and LoRA adapters on them, for tests of adapters; PEFT's own reading of them."""

import warnings
from pathlib import Path
from typing import Any

import torch


def load(folder: Path, rows: int = 0) -> Any:
    """A model; with more vocabulary rows where asked."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder)
    if rows:
        model.resize_token_embeddings(model.config.vocab_size + rows, mean_resizing=False)
    return model


def tune(base: Path, out: Path, *, seed: int = 1, rows: int = 0, **config: Any) -> Path:
    """Save an adapter; two of one kind share half of their change, so that they have an angle."""
    from peft import LoraConfig, get_peft_model

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        settings: dict[str, Any] = {"r": 4, "lora_alpha": 6, "task_type": "CAUSAL_LM"}
        torch.manual_seed(0)
        model = get_peft_model(load(base, rows), LoraConfig(**settings | config))
        common, own = torch.Generator().manual_seed(0), torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for value in model.parameters():
                if value.requires_grad:
                    value.add_(0.1 * torch.randn(value.shape, generator=common))
                    value.add_(0.05 * torch.randn(value.shape, generator=own))
        model.save_pretrained(out)
    return out


def peft(base: Path, adapter: Path, rows: int = 0) -> Any:
    """The tuned model, as PEFT loads it."""
    from peft import PeftModel

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return PeftModel.from_pretrained(load(base, rows), adapter).eval()
