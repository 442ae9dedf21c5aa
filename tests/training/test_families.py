"""Wrappers and mixtures: what is tuned, and that the adapter can be merged as PEFT applies it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mooring.config import Tune
from mooring.merging.merge import merge
from mooring.models.classes import attach_adapter, empty_model, load_model
from mooring.records import Message, Prompt
from mooring.training.adapter import check_tunable, lora_config
from mooring.training.lora import tune
from wrapper_models import MIXTURES, WRAPPERS, save_any

EXAMPLES = [Prompt(id=str(n), messages=(Message("user", "Hi" * n),), reference="Oslo.") for n in range(1, 5)]
SHORT = Tune(data=("x",), max_steps=1, per_device_train_batch_size=2, val_set_size=0, learning_rate=1e-2)


@pytest.mark.parametrize("family", ["gemma3", "llama4", "mixtral"])
def test_an_adapter_that_can_be_merged_changes_the_language_model_alone(
    tmp_path: Path, tiny_tokenizer: Any, family: str
) -> None:
    base = save_any(tmp_path / "base", family, tiny_tokenizer)
    check_tunable(SHORT, base)
    model = empty_model(base)
    import peft

    tuned = peft.get_peft_model(model, lora_config(SHORT, model), low_cpu_mem_usage=True)
    names = {name for name, value in tuned.named_parameters() if value.requires_grad}
    assert names
    assert not [name for name in names if "vision" in name or "projector" in name]
    assert not [name for name in names if family == "llama4" and "router" in name]


@pytest.mark.slow
@pytest.mark.parametrize("family", [*WRAPPERS, *MIXTURES])
def test_an_adapter_is_merged_as_peft_applies_it(tmp_path: Path, tiny_tokenizer: Any, family: str) -> None:
    base = save_any(tmp_path / "base", family, tiny_tokenizer)
    adapter = tune(SHORT, base, EXAMPLES, tmp_path / "adapter", system=None, seed=0)
    changes = load_file(adapter / "adapter_model.safetensors")
    assert all(value.any() for name, value in changes.items() if "lora_B" in name)
    ids = torch.arange(3, 23).view(1, -1)
    with torch.no_grad():
        expected = attach_adapter(load_model(base), adapter).eval()(input_ids=ids).logits
        merged = load_model(merge(base, adapter, tmp_path / "out", lam=1.0)).eval()(input_ids=ids).logits
        assert not torch.allclose(expected, load_model(base).eval()(input_ids=ids).logits, atol=1e-3)
    torch.testing.assert_close(merged, expected, atol=5e-5, rtol=0)
