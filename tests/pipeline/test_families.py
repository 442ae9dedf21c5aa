"""Wrappers and mixtures: a change of λ in place, adapters of either class, and bases in the hub's cache."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from lora_models import tune
from mooring.config import Runner
from mooring.errors import ModelError
from mooring.inference.load import load_engine
from mooring.merging.merge import merge
from mooring.merging.pair import open_pair
from mooring.models.classes import attach_adapter, load_model
from mooring.pipeline.open_model import open_model
from mooring.pipeline.sweeps.sweep import SweepSpec
from mooring.pipeline.sweeps.transformers import MergedModel
from mooring.records import Message, Prompt
from mooring.sampling import SamplingParams
from wrapper_models import MIXTURES, WRAPPERS, build_any, in_cache, save_any

IDS = torch.arange(3, 23).view(1, -1)
PROMPTS = [Prompt(id=str(n), messages=(Message("user", "Hi" * n),), reference="Oslo.") for n in (1, 9)]
QUICK = {"gemma3", "qwen3-moe"}


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    result: torch.Tensor = model.eval()(input_ids=IDS).logits
    return result


@pytest.mark.parametrize(
    "family", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in (*WRAPPERS, *MIXTURES)]
)
def test_a_sweep_changes_the_weights_in_place(tmp_path: Path, tiny_tokenizer: Any, family: str) -> None:
    base = save_any(tmp_path / "base", family, tiny_tokenizer)
    tuned = save_any(tmp_path / "tuned", family, tiny_tokenizer, change=0.02)
    written = merge(base, tuned, tmp_path / "out", lam=0.5)
    if family in WRAPPERS:
        assert (written / "preprocessor_config.json").is_file()
    with MergedModel(SweepSpec(pair=open_pair(base, tuned))) as merged:
        merged.at(0.2)
        engine = merged.at(0.5)
        assert merged.in_place
        assert torch.equal(logits(engine.model), logits(load_model(written)))
        together = {each.prompt_id: each.nll for batch in engine.likelihood(PROMPTS) for each in batch}
        for prompt in PROMPTS:
            ((alone,),) = engine.likelihood([prompt])
            assert alone.nll == pytest.approx(together[prompt.id], abs=1e-4)
        answers = [each for batch in engine.complete(PROMPTS, SamplingParams(max_tokens=3)) for each in batch]
        assert len(answers) == 2


def test_an_adapter_of_the_language_model_alone_answers_on_its_wrapper(tmp_path: Path, tiny_tokenizer: Any) -> None:
    """Qwen 3.5 is tuned as `AutoModelForCausalLM` loads it: without its vision tower, and so under other names."""
    import peft
    import transformers

    base = save_any(tmp_path / "base", "qwen3.5", tiny_tokenizer)
    text = transformers.AutoModelForCausalLM.from_pretrained(base)
    assert type(text).__name__ == "Qwen3_5ForCausalLM"
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM")
    tuned = peft.get_peft_model(text, config)
    with torch.no_grad():
        for value in tuned.parameters():
            if value.requires_grad:
                value.add_(0.05)
    tuned.save_pretrained(tmp_path / "adapter")
    with pytest.raises(ModelError) as caught:
        load_engine(tmp_path / "adapter", Runner(), None)
    assert caught.value.code == "model.adapter_names"
    engine: Any = open_model(tmp_path / "adapter", Runner(), None)
    torch.testing.assert_close(logits(engine.model), logits(tuned), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(logits(tuned), logits(build_any("qwen3.5", tiny_tokenizer)), atol=1e-2)


def test_an_adapter_finds_its_base_in_the_cache_of_the_hub(
    tmp_path: Path, tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = tune(tiny_model_folder, tmp_path / "adapter", target_modules=["q_proj"])
    expected: Any = load_engine(adapter, Runner(), None)
    file = adapter / "adapter_config.json"
    config = json.loads(file.read_text()) | {"base_model_name_or_path": "tiny/base"}
    file.write_text(json.dumps(config))
    with pytest.raises(ModelError) as caught:
        open_model(adapter, Runner(), None)
    assert caught.value.code == "model.base_not_found"
    in_cache(tmp_path / "hub", "tiny/base", tiny_model_folder, monkeypatch)
    found: Any = open_model(adapter, Runner(), None)
    assert torch.equal(logits(found.model), logits(expected.model))


def test_an_adapter_of_another_model_is_not_ignored(tmp_path: Path, save_tiny_model: Any, bases: Any) -> None:
    """PEFT would load the base with empty adapters, and say nothing."""
    deep = save_tiny_model(tmp_path / "deep", num_hidden_layers=3)
    adapter = tune(deep, tmp_path / "adapter", target_modules=["q_proj"])
    with pytest.raises(ModelError) as caught:
        attach_adapter(load_model(bases["tied"]), adapter)
    assert caught.value.code == "model.adapter_names"
