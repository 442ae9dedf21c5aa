"""Adapters on the tiny models of several architectures, and what PEFT's forward pass says with them."""

import json
import warnings
from pathlib import Path
from typing import Any

import peft
import torch
from torch import Tensor

from tiny_models import IDS  # type: ignore[import-not-found]


def loaded(folder: Path) -> Any:
    import transformers

    name = json.loads((folder / "config.json").read_text())["architectures"][0]
    options = {"experts_implementation": "eager"}  # the default has no float64
    return getattr(transformers, name).from_pretrained(folder, dtype=torch.float32, **options).eval()


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(input_ids=IDS).logits
    return found.double()


def tune(base: Path, out: Path, seed: int = 0, **config: Any) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(loaded(base), peft.LoraConfig(**{"r": 4, "lora_alpha": 8} | config))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in model.parameters():
            if value.requires_grad:
                value.add_(torch.randn(value.shape, generator=generator) * 0.05)
    model.save_pretrained(out)
    return out


def with_peft(base: Path, adapter: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return peft.PeftModel.from_pretrained(loaded(base), adapter).eval()
