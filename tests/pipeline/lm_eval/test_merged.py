"""A merge in memory is the model that would be loaded from the disk: the same bits, settings and answers."""

from pathlib import Path
from typing import Any

import pytest
import torch

from lora_models import tune
from mooring.config import Runner
from mooring.errors import ModelError
from mooring.inference.transformers import TransformersEngine
from mooring.merging.in_memory import OpenMerge
from mooring.merging.merge import merge
from mooring.merging.pair import open_pair
from mooring.pipeline.sweeps.sweep import SweepSpec
from mooring.pipeline.sweeps.transformers import MergedModel
from mooring.records import Message, Prompt
from mooring.sampling import SamplingParams

PROMPT = Prompt(id="a", messages=(Message("user", "What is the capital of Norway?"),))


def in_memory(base: Path, tuned: Path, lam: float, dtype: Any = "auto", **spec: Any) -> TransformersEngine:
    spec["runner"] = Runner(device="cpu", dtype=dtype)
    with MergedModel(SweepSpec(pair=open_pair(base, tuned), **spec)) as merged:
        return merged.at(lam)


def answer(engine: TransformersEngine) -> str:
    (batch,) = engine.complete([PROMPT], SamplingParams(max_tokens=8))
    return batch[0].text


def state(engine: TransformersEngine) -> dict[str, torch.Tensor]:
    return dict(engine.model.named_parameters(remove_duplicate=False)) | dict(engine.model.named_buffers())


def same(ours: TransformersEngine, theirs: TransformersEngine) -> bool:
    """Whether all parameters and buffers are the same bits, in the same places."""
    left, right = state(ours), state(theirs)
    assert left.keys() == right.keys()
    return all(v.dtype == right[k].dtype and torch.equal(v, right[k]) for k, v in left.items())


@pytest.mark.parametrize(("method", "dtype"), [("linear", "auto"), ("slerp", "auto"), ("dare_ties", "bfloat16")])
def test_as_loaded_from_disk(
    tiny_model_folder: Path, save_tiny_model: Any, tmp_path: Path, method: str, dtype: Any
) -> None:
    tuned = save_tiny_model(tmp_path / "tuned", seed=1)
    settings = {"density": 0.5} if method == "dare_ties" else {}
    out = merge(tiny_model_folder, tuned, tmp_path / "out", lam=0.4, method=method, **settings)
    disk = TransformersEngine.load(out, dtype=dtype, device="cpu")
    memory = in_memory(tiny_model_folder, tuned, 0.4, dtype, method=method, options=settings)
    assert same(memory, disk)
    assert memory.model.generation_config.to_dict() == disk.model.generation_config.to_dict()
    assert memory.stops == disk.stops
    assert answer(memory) == answer(disk)


def test_lam_0_is_the_base(tiny_model_folder: Path, save_tiny_model: Any, tmp_path: Path) -> None:
    tuned = save_tiny_model(tmp_path / "tuned", seed=1)
    base = TransformersEngine.load(tiny_model_folder, device="cpu")
    assert same(in_memory(tiny_model_folder, tuned, 0), base)
    assert not same(in_memory(tiny_model_folder, tuned, 1), base)


@pytest.mark.parametrize("kind", ["tied", "biased"])
def test_an_adapter(bases: dict[str, Path], tmp_path: Path, kind: str) -> None:
    adapter = tune(bases[kind], tmp_path / "adapter", target_modules=["q_proj"])
    out = merge(bases[kind], adapter, tmp_path / "out", lam=0.7)
    memory = in_memory(bases[kind], adapter, 0.7)
    assert same(memory, TransformersEngine.load(out, device="cpu"))


def test_old_names_of_tensors(bases: dict[str, Path], tmp_path: Path, tiny_tokenizer: Any) -> None:
    """GPT-2's checkpoints may name tensors without the model's prefix; they are loaded as from the disk."""
    import shutil

    from safetensors.torch import load_file, save_file

    folders = []
    for number in range(2):
        folder = shutil.copytree(bases["gpt2"], tmp_path / f"gpt2-{number}")
        tiny_tokenizer.save_pretrained(folder)
        tensors = load_file(folder / "model.safetensors")
        changed = {k.removeprefix("transformer."): v + 0.01 * number for k, v in tensors.items()}
        save_file(changed, folder / "model.safetensors", metadata={"format": "pt"})
        folders.append(folder)
    out = merge(*folders, tmp_path / "out", lam=0.5)
    disk, memory = TransformersEngine.load(out, device="cpu"), in_memory(*folders, 0.5)
    assert same(memory, disk)


def test_experts_stored_separately_and_fused_on_loading(tmp_path: Path, tiny_tokenizer: Any) -> None:
    """transformers joins a mixture's experts as it loads them: the merge, too, has the names of the checkpoint."""
    from transformers import MixtralConfig, MixtralForCausalLM

    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1}
    config = MixtralConfig(vocab_size=len(tiny_tokenizer), num_hidden_layers=1, num_local_experts=2, **sizes)
    folders = []
    for seed in range(2):
        torch.manual_seed(seed)
        MixtralForCausalLM(config).save_pretrained(tmp_path / f"mixtral-{seed}")
        tiny_tokenizer.save_pretrained(tmp_path / f"mixtral-{seed}")
        folders.append(tmp_path / f"mixtral-{seed}")
    out = merge(*folders, tmp_path / "out", lam=0.5)
    disk, memory = TransformersEngine.load(out, device="cpu"), in_memory(*folders, 0.5)
    with OpenMerge(open_pair(*folders)) as merged:
        assert not disk.model.state_dict().keys() <= merged.tensors(0.5).keys()
    assert same(memory, disk)


def test_a_head_that_an_adapter_unties_from_the_embedding(bases: dict[str, Path], tmp_path: Path) -> None:
    adapter = tune(bases["tied"], tmp_path / "adapter", target_modules=["q_proj", "lm_head"])
    out = merge(bases["tied"], adapter, tmp_path / "out", lam=0.5)
    disk = TransformersEngine.load(out, device="cpu")
    assert not disk.model.config.tie_word_embeddings
    assert same(in_memory(bases["tied"], adapter, 0.5), disk)


def test_more_rows_of_the_vocabulary(bases: dict[str, Path], tmp_path: Path) -> None:
    adapter = tune(bases["tied"], tmp_path / "adapter", rows=3, target_modules=["q_proj", "embed_tokens"])
    out = merge(bases["tied"], adapter, tmp_path / "out", lam=0.5)
    disk = TransformersEngine.load(out, device="cpu")
    memory = in_memory(bases["tied"], adapter, 0.5)
    assert same(memory, disk)
    rows = TransformersEngine.load(bases["tied"], device="cpu").model.config.vocab_size
    assert memory.model.config.vocab_size == disk.model.config.vocab_size == rows + 3


def test_a_merge_that_transformers_cannot_load(save_tiny_model: Any, tmp_path: Path) -> None:
    tuned = save_tiny_model(tmp_path / "tuned", seed=1)
    for folder in (base := save_tiny_model(tmp_path / "base"), tuned):
        config = folder / "config.json"
        config.write_text(config.read_text().replace('"num_hidden_layers": 2', '"num_hidden_layers": 3'))
    with pytest.raises(ModelError) as caught:
        in_memory(base, tuned, 0.5)
    assert caught.value.code == "model.missing_tensor"
