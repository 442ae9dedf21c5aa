"""Where a model goes, for GPUs that are not there; and a model that accelerate has spread out."""

from pathlib import Path
from typing import Any

import pytest
import torch

from mooring.config import Generate
from mooring.errors import ModelError
from mooring.inference.devices import SEVERAL, choose_device, load_options, memory_dtype, weights_size
from mooring.inference.placement import Placement, locate
from mooring.inference.transformers import TransformersEngine
from mooring.merging.pair import open_pair
from mooring.models.classes import load_model
from mooring.pipeline.sweeps.sweep import SweepSpec
from mooring.pipeline.sweeps.transformers import MergedModel

GB = 10**9


@pytest.mark.parametrize(
    ("device", "size", "free", "want"),
    [
        ("auto", 16, [], "cpu"),
        ("auto", 16, [24], "cuda"),
        ("auto", 22, [24], "cuda"),  # tight, but there is no other
        ("auto", 16, [24, 24], "cuda"),
        ("auto", 22, [24, 24], SEVERAL),
        ("auto", 140, [80, 80], SEVERAL),
        ("cpu", 140, [80], "cpu"),
        ("cuda:1", 140, [80, 80], "cuda:1"),
    ],
)
def test_the_fewest_gpus_that_fit(device: str, size: int, free: list[int], want: str) -> None:
    assert choose_device(device, size * GB, [gigabytes * GB for gigabytes in free]) == want
    assert bool(load_options(want)) == (want == SEVERAL)


@pytest.mark.parametrize("free", [[24], [80, 40]])
def test_gpus_that_are_too_small_are_one_line_with_a_way_out(free: list[int]) -> None:
    with pytest.raises(ModelError) as caught:
        choose_device("auto", 140 * GB, [gigabytes * GB for gigabytes in free])
    assert caught.value.code == "model.too_large"
    assert "dtype" in str(caught.value.hint)


def test_the_size_of_the_weights_in_memory(tiny_model_folder: Path) -> None:
    stored = (tiny_model_folder / "model.safetensors").stat().st_size
    assert weights_size(tiny_model_folder, "float32", "auto") == stored
    assert weights_size(tiny_model_folder, "bfloat16", "float32") == 2 * stored
    assert weights_size(tiny_model_folder, None, "float32") == stored


def test_weights_are_found_on_any_device_but_not_offloaded(tiny_model_folder: Path) -> None:
    from accelerate import cpu_offload, dispatch_model

    def load() -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
        model = TransformersEngine.load(tiny_model_folder, device="cpu").model
        tensors = {k: v.detach().clone() for k, v in model.state_dict().items() if k != "lm_head.weight"}
        return model, tensors

    model, tensors = load()
    children = {name: "cpu" for name, _ in model.model.named_children()}
    spread = dispatch_model(
        model,
        {f"model.{name}": device for name, device in children.items()} | {"lm_head": "cpu"},
        force_hooks=True,
    )
    assert isinstance(locate(spread, tensors), Placement)
    model, tensors = load()
    assert locate(cpu_offload(model, torch.device("cpu")), tensors) is None


@pytest.mark.parametrize(
    ("dtype", "stored", "device", "native", "want"),
    [
        ("auto", "bfloat16", "cpu", False, "float32"),
        ("auto", "float16", "cpu", False, "float32"),
        ("auto", "bfloat16", "cpu", True, "auto"),
        ("auto", "bfloat16", "cuda", False, "auto"),
        ("auto", "float32", "cpu", False, "auto"),
        ("auto", None, "cpu", False, "auto"),
        ("bfloat16", "bfloat16", "cpu", False, "bfloat16"),
    ],
)
def test_a_type_that_the_cpu_would_emulate_is_widened(
    monkeypatch: pytest.MonkeyPatch, dtype: Any, stored: str | None, device: str, native: bool, want: str
) -> None:
    monkeypatch.setattr("mooring.inference.devices.cpu_computes", lambda dtype: native)
    assert memory_dtype(dtype, stored, device) == want


@pytest.mark.parametrize("native", [True, False])
def test_a_model_in_16_bits_on_the_cpu(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, save_tiny_model: Any, native: bool
) -> None:
    """The engine on a folder and that of a sweep load it in the same type."""
    monkeypatch.setattr("mooring.inference.devices.cpu_computes", lambda dtype: native)
    folders = [save_tiny_model(tmp_path / name, seed=seed) for seed, name in enumerate("bt")]
    for folder in folders:
        load_model(folder, dtype=torch.bfloat16).save_pretrained(folder)
    want = "bfloat16" if native else "float32"
    assert TransformersEngine.load(folders[0], device="cpu").about["dtype"] == want
    with open_pair(*folders) as pair, MergedModel(SweepSpec(pair=pair, runner=Generate(device="cpu"))) as merged:
        assert merged.at(0.5).about["dtype"] == want
