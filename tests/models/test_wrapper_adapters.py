"""Adapters on vision-language models: with the names of the wrapper in memory, or those of its text model."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mooring.merging.merge import merge
from tiny_adapters import loaded, logits, tune, with_peft  # type: ignore[import-not-found]
from tiny_models import build, save  # type: ignore[import-not-found]

WRAPPERS = ["gemma3", "mistral3", "qwen2_5_vl", "qwen3_vl", "qwen3_5", "llama4"]
TEXT = r".*language_model.*\.(q_proj|down_proj|up_proj)"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    here = tmp_path_factory.mktemp("wrappers")
    for name in WRAPPERS:
        save(build(name), here / name)
    return here


def renamed(adapter: Path, change: Any) -> Path:
    """The adapter with other names."""
    file = adapter / "adapter_model.safetensors"
    save_file({change(key): value for key, value in load_file(file).items()}, file)
    return adapter


def assert_same(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    """Logits are equal to a relative 1e-5: parts of some models compute in float32 whatever their type is."""
    assert (ours - theirs).norm() < 1e-5 * theirs.norm()


@pytest.mark.parametrize("name", WRAPPERS)
def test_names_of_the_wrapper_in_memory(folders: Path, tmp_path: Path, name: str) -> None:
    """The vision tower too, where all linear modules were tuned."""
    adapter = tune(folders / name, tmp_path / "a", target_modules=TEXT)
    expected = logits(with_peft(folders / name, adapter))
    renamed(adapter, lambda key: key.replace("base_model.model.", "base_model.model._orig_mod.base_model.model."))
    merge(folders / name, adapter, tmp_path / "out", lam=1)
    assert_same(logits(loaded(tmp_path / "out")), expected)
    assert (logits(loaded(folders / name)) - expected).abs().max() > 1e-3
    base, out = (load_file(folder / "model.safetensors") for folder in (folders / name, tmp_path / "out"))
    assert all(torch.equal(base[key], out[key]) for key in base if "vis" in key)


@pytest.mark.parametrize("name", [name for name in WRAPPERS if name != "mistral3"])
def test_names_of_the_text_model(folders: Path, tmp_path: Path, name: str) -> None:
    """As it is trained alone, with `AutoModelForCausalLM` or by a tool that keeps the language model only."""
    adapter = tune(folders / name, tmp_path / "a", target_modules=TEXT)
    expected = logits(with_peft(folders / name, adapter))
    renamed(adapter, lambda key: key.replace(".language_model.", "."))
    assert any(".model.model.layers." in key for key in load_file(adapter / "adapter_model.safetensors"))
    merge(folders / name, adapter, tmp_path / "out", lam=1)
    assert_same(logits(loaded(tmp_path / "out")), expected)


def test_the_vision_tower_and_whole_modules(folders: Path, tmp_path: Path) -> None:
    config = {"target_modules": "all-linear", "modules_to_save": ["embed_tokens", "lm_head"], "bias": "none"}
    adapter = tune(folders / "gemma3", tmp_path / "a", **config)
    assert any("vision" in key for key in load_file(adapter / "adapter_model.safetensors"))
    merge(folders / "gemma3", adapter, tmp_path / "out", lam=1)
    merged, expected = loaded(tmp_path / "out"), with_peft(folders / "gemma3", adapter)
    assert_same(logits(merged), logits(expected))
    whole = expected.merge_and_unload().state_dict()
    for key, value in merged.state_dict().items():
        torch.testing.assert_close(value, whole[key], rtol=1e-5, atol=1e-5, msg=key)


def test_another_models_adapter_is_refused_with_the_class(folders: Path, tmp_path: Path) -> None:
    from mooring.errors import MismatchError
    from mooring.merging.pair import open_pair

    adapter = tune(folders / "gemma3", tmp_path / "a", target_modules=TEXT)
    renamed(adapter, lambda key: key.replace("q_proj", "query"))
    with pytest.raises(MismatchError, match="Gemma3ForConditionalGeneration has no such parameter") as caught:
        open_pair(folders / "gemma3", adapter)
    assert caught.value.code == "model.missing_tensor"
    assert "\n" not in str(caught.value)
