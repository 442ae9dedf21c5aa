"""Tiny models and LoRA adapters on them, for tests of adapters; PEFT's own reading of them."""

import math
import warnings
from collections.abc import Mapping
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


def tuned_tensors(adapter: Any, base: Any) -> dict[str, torch.Tensor]:
    """All tensors of a tuned model, read whole; the adapter is bound to the base."""
    found = {}
    for name in [*base.tensors, *adapter.unties]:
        shape = adapter.shape(name)
        values = base.read(adapter.unties.get(name, name))
        found[name] = adapter.read_tuned(name, 0, math.prod(shape), values).view(shape)
    return found


def logits_of(base: Path, weights: Mapping[str, torch.Tensor], rows: int, untied: bool) -> torch.Tensor:
    """What a model with these weights says; `untied` if its head is not the embedding."""
    model = load(base, rows)
    if untied:
        model.config.tie_word_embeddings = False
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.clone())
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if name in weights:
                value.copy_(weights[name])
    return say(model.eval())


def say(model: Any) -> torch.Tensor:
    """The logits of a fixed sequence."""
    with torch.no_grad():
        values: torch.Tensor = model(torch.arange(1, 12)[None]).logits
    return values
