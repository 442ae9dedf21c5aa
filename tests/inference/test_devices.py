"""Where a model goes, for GPUs that are not there; and a model that accelerate has spread out."""

from pathlib import Path

import pytest
import torch

from mooring.errors import ModelError
from mooring.inference.devices import SEVERAL, choose_device, load_options, weights_size
from mooring.inference.placement import Placement, locate
from mooring.inference.transformers import TransformersEngine

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
