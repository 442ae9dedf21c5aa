"""A model that is too large is refused before it is loaded, with what would fit."""

import sys
import types
from pathlib import Path
from typing import Any

import pytest

from mooring.config import Generate, Recipe
from mooring.errors import ModelError
from mooring.inference.fit import check_fits, weight_bytes
from mooring.inference.load import load_engine
from mooring.inference.vllm_shared import device_memory
from mooring.memory import total_memory
from mooring.models import open_checkpoint
from mooring.pipeline.run import run


@pytest.fixture
def size(tiny_model_folder: Path) -> int:
    """Bytes of the tiny model's weights, in float32."""
    with open_checkpoint(tiny_model_folder) as checkpoint:
        return checkpoint.nbytes


def refused(folder: Path, *args: Any, **options: Any) -> ModelError:
    with pytest.raises(ModelError) as caught:
        check_fits(folder, *args, **options)
    assert caught.value.code == "model.too_large"
    assert str(folder) in caught.value.message
    return caught.value


def test_the_size_depends_on_the_type(tiny_model_folder: Path, size: int) -> None:
    with open_checkpoint(tiny_model_folder) as checkpoint:
        assert weight_bytes(checkpoint, "auto") == weight_bytes(checkpoint, "float32") == size
        assert weight_bytes(checkpoint, "bfloat16") == size // 2


def test_what_fits_is_not_refused(tiny_model_folder: Path, size: int, tmp_path: Path) -> None:
    check_fits(tiny_model_folder, "auto", size)
    check_fits(tiny_model_folder, "bfloat16", size // 2)
    check_fits(tiny_model_folder, "auto", size, gpus=2, share=0.5)
    check_fits(tiny_model_folder, "auto", 0)  # the memory is not known
    check_fits(tmp_path, "auto", 1)  # its loader says what is wrong


def test_the_hint_says_what_would_fit(tiny_model_folder: Path, size: int) -> None:
    machine = refused(tiny_model_folder, "auto", size - 1)
    assert machine.hint.startswith("use --dtype bfloat16, or a smaller model")
    assert "this machine has" in machine.message
    assert "--dtype" not in refused(tiny_model_folder, "bfloat16", size // 2 - 1).hint
    one = refused(tiny_model_folder, "auto", size, gpus=1, share=0.9)
    assert "the GPU has" in one.message
    assert "90% may be used" in one.message
    assert "--tensor-parallel 2," in one.hint
    several = refused(tiny_model_folder, "auto", size // 8, gpus=2)
    assert "each of the 2 GPUs" in several.message
    assert "--tensor-parallel 8," in several.hint
    hopeless = refused(tiny_model_folder, "auto", 1, gpus=1)
    assert "--tensor-parallel" not in hopeless.hint
    assert "--engine openai" in hopeless.hint


def test_the_cpu_is_checked_before_a_model_is_loaded_and_before_a_run(
    tiny_model_folder: Path, save_tiny_model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr("mooring.inference.fit.total_memory", lambda: size - 1)
    with pytest.raises(ModelError) as caught:
        load_engine(tiny_model_folder, Generate(device="cpu"), None)
    assert caught.value.code == "model.too_large"
    plain = {"base": str(tiny_model_folder), "tuned": str(save_tiny_model(tmp_path / "tuned", seed=1))}
    small = {"generate": {"device": "cpu"}, "score": {"limit": 4}, "select": {"margin": 1.0}}
    with pytest.raises(ModelError) as caught:
        run(Recipe.parse(plain | small | {"out": str(tmp_path / "run")}))
    assert caught.value.code == "model.too_large"
    assert not (tmp_path / "run").exists()


def test_this_machine_has_memory() -> None:
    assert total_memory() > 2**28


def test_vllm_s_platform_is_asked_for_the_device_s_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    platform = types.SimpleNamespace(get_device_total_memory=lambda device: 80 * 2**30)
    monkeypatch.setitem(sys.modules, "vllm.platforms", types.SimpleNamespace(current_platform=platform))
    monkeypatch.setitem(sys.modules, "vllm", types.SimpleNamespace())
    assert device_memory() == 80 * 2**30
    monkeypatch.setitem(sys.modules, "vllm.platforms", types.SimpleNamespace())
    assert device_memory() == 0
