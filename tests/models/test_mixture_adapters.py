"""Adapters on mixtures of experts: what is merged is PEFT's forward pass, whatever the layout of the files."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mooring.errors import UserError
from mooring.merging.adapter import merge_adapters
from mooring.merging.job import Job, Options
from mooring.merging.merge import merge
from mooring.merging.pair import open_pair
from mooring.merging.tensor_value import TensorValue
from mooring.models import lora, open_adapter, open_checkpoint
from tiny_adapters import loaded, logits, tune, with_peft  # type: ignore[import-not-found]
from tiny_models import build, save  # type: ignore[import-not-found]

MIXTURES = ["qwen3_moe", "mixtral", "gpt_oss", "deepseek_v3", "glm4_moe", "llama4", "qwen3_vl_moe"]
EXPERTS = ["experts.gate_up_proj", "experts.down_proj"]
ROUTER = {"gpt_oss": "router.weight", "llama4": "router"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Each mixture in the layout of its releases, and as transformers has it in memory."""
    here = tmp_path_factory.mktemp("mixtures")
    for name in MIXTURES:
        model = build(name)
        save(model, here / name)
        save(model, here / f"{name}-fused", save_original_format=False)
    return here


def halfway(base: Path, adapter: Path) -> Tensor:
    """What λ = 0.5 says, in float64."""
    model, tuned = loaded(base).double(), with_peft(base, adapter).double().merge_and_unload().state_dict()
    with torch.no_grad():
        for name, value in model.state_dict().items():
            value.lerp_(tuned[name].to(value.dtype), 0.5) if value.is_floating_point() else None
    return logits(model)


KINDS: dict[str, dict[str, Any]] = {
    "experts": {"target_modules": ["q_proj"], "target_parameters": EXPERTS},
    "last": {"target_modules": ["q_proj"], "target_parameters": EXPERTS[1:]},
    "ranks": {
        "target_modules": [],
        "target_parameters": EXPERTS,
        "rank_pattern": {"gate_up_proj": 3},
        "alpha_pattern": {r".*\.down_proj": 2},
        "use_rslora": True,
    },
}


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize(("name", "kind"), [(n, "experts") for n in MIXTURES] + [("qwen3_moe", k) for k in KINDS])
def test_factors_of_fused_experts(folders: Path, tmp_path: Path, name: str, kind: str, fused: bool) -> None:
    """Tuned in one layout and merged into the other."""
    base = folders / (f"{name}-fused" if fused else name)
    adapter = tune(folders / name, tmp_path / "a", **KINDS[kind])
    merge(base, adapter, tmp_path / "out", lam=1)
    difference = (logits(loaded(tmp_path / "out")) - logits(with_peft(folders / name, adapter))).abs().max()
    assert difference < 1e-5
    assert (logits(loaded(base)) - logits(loaded(tmp_path / "out"))).abs().max() > 1e-3
    assert load_file(tmp_path / "out" / "model.safetensors").keys() == load_file(base / "model.safetensors").keys()


@pytest.mark.parametrize("name", MIXTURES)
def test_half_of_the_change(folders: Path, tmp_path: Path, name: str) -> None:
    adapter = tune(folders / name, tmp_path / "a", **KINDS["experts"])
    merge(folders / name, adapter, tmp_path / "out", lam=0.5)
    assert (logits(loaded(tmp_path / "out")) - halfway(folders / name, adapter)).abs().max() < 1e-5


@pytest.mark.parametrize("name", ["qwen3_moe", "mixtral"])
def test_all_linear_targets_experts_and_router(folders: Path, tmp_path: Path, name: str) -> None:
    """PEFT turns `all-linear` on a mixture into `target_parameters`; the router is one of them."""
    adapter = tune(folders / name, tmp_path / "a", target_modules="all-linear")
    assert "gate.weight" in json.loads((adapter / "adapter_config.json").read_text())["target_parameters"]
    merge(folders / name, adapter, tmp_path / "out", lam=1)
    expected = logits(with_peft(folders / name, adapter))
    assert (logits(loaded(tmp_path / "out")) - expected).abs().max() < 1e-5


def of_older_version(base: Path, out: Path, **config: Any) -> Path:
    """An adapter with a pair of factors for each expert, as older versions of transformers and PEFT made it."""
    generator = torch.Generator().manual_seed(5)
    tensors = {}
    for name, weight in load_file(base / "model.safetensors").items():
        if ".experts." in name and weight.dim() == 2:
            module = f"base_model.model.{name.removesuffix('.weight')}"
            tensors[f"{module}.lora_A.weight"] = torch.randn(4, weight.shape[1], generator=generator) * 0.1
            tensors[f"{module}.lora_B.weight"] = torch.randn(weight.shape[0], 4, generator=generator) * 0.1
    out.mkdir()
    save_file(tensors, out / "adapter_model.safetensors")
    leaves = sorted({key.split(".")[-3] for key in tensors})
    fields = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": leaves, "task_type": "CAUSAL_LM"}
    (out / "adapter_config.json").write_text(json.dumps(fields | config))
    return out


@pytest.mark.parametrize("name", ["qwen3_moe", "mixtral", "deepseek_v3", "glm4_moe"])
def test_factors_of_single_experts(folders: Path, tmp_path: Path, name: str) -> None:
    """Each expert has its own in older adapters; the base may hold the experts together."""
    adapter = of_older_version(folders / name, tmp_path / "a")
    found = []
    for base in (folders / name, folders / f"{name}-fused"):
        merge(base, adapter, tmp_path / base.name, lam=1)
        found.append(logits(loaded(tmp_path / base.name)))
    assert torch.equal(found[0], found[1])
    assert (found[0] - logits(with_peft(folders / name, adapter))).abs().max() < 1e-5
    assert (found[0] - logits(loaded(folders / name))).abs().max() > 1e-3


def test_dora_of_single_experts_on_experts_together(folders: Path, tmp_path: Path) -> None:
    base = folders / "qwen3_moe"
    adapter = of_older_version(base, tmp_path / "a", use_dora=True)
    tensors = load_file(adapter / "adapter_model.safetensors")
    rows = {
        key.replace("lora_B.weight", "lora_magnitude_vector"): value for key, value in tensors.items() if "_B" in key
    }
    save_file(tensors | {k: v.abs().sum(1) + 0.5 for k, v in rows.items()}, adapter / "adapter_model.safetensors")
    found = []
    for folder in (base, folders / "qwen3_moe-fused"):
        merge(folder, adapter, tmp_path / folder.name, lam=1)
        found.append(logits(loaded(tmp_path / folder.name)))
    assert (found[0] - found[1]).abs().max() < 1e-6
    assert (found[0] - logits(loaded(base))).abs().max() > 1e-3


@pytest.mark.parametrize("name", MIXTURES)
def test_written_as_an_adapter(folders: Path, tmp_path: Path, name: str) -> None:
    """One, scaled; two, with their ranks stacked; and λ by module."""
    base = folders / name
    one = tune(base, tmp_path / "one", **KINDS["experts"])
    two = tune(base, tmp_path / "two", seed=2, target_modules=["q_proj", "o_proj"], target_parameters=EXPERTS[1:])
    by_module = {"*.experts.*": 0.2, "*": 0.7}
    for number, (tuned, lam) in enumerate([([one], 0.3), ([one, two], 0.6), ([one], by_module)]):
        job = Job(method="linear", base="", tuned=(), options=Options(lam=TensorValue.of(lam)))
        out = merge_adapters(base, tuned, tmp_path / f"adapter{number}", job)
        merge(base, tuned, tmp_path / f"whole{number}", lam=lam)
        difference = logits(with_peft(base, out)) - logits(loaded(tmp_path / f"whole{number}"))
        assert difference.abs().max() < 1e-5


def test_one_parameter_has_one_lambda_in_an_adapter(folders: Path, tmp_path: Path) -> None:
    adapter = tune(folders / "qwen3_moe", tmp_path / "a", **KINDS["experts"])
    job = Job(method="linear", base="", tuned=(), options=Options(lam=TensorValue.of({"*.experts.1.*": 0.2, "*": 0.7})))
    with pytest.raises(UserError) as caught:
        merge_adapters(folders / "qwen3_moe", [adapter], tmp_path / "out", job)
    assert caught.value.code == "usage.lambda_within_parameter"


@pytest.mark.parametrize("name", ["qwen3_moe", "qwen3_moe-fused", "llama4", "gpt_oss"])
@pytest.mark.parametrize("block", [1, 200, lora.BLOCK])
def test_any_slice_is_the_same_bytes(
    folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, block: int
) -> None:
    monkeypatch.setattr(lora, "BLOCK", block)
    monkeypatch.setattr(lora, "_EXPERTS", 2 * 4 * 4 * 48)  # two experts at a time
    base, makes = folders / name, [tune(folders / name.removesuffix("-fused"), tmp_path / "a", **KINDS["experts"])]
    if name.startswith("qwen3_moe"):
        makes.append(of_older_version(folders / "qwen3_moe", tmp_path / "b"))
    random = torch.Generator().manual_seed(block)
    for folder in makes:
        with open_adapter(folder) as one, open_adapter(folder) as other, open_checkpoint(base) as checkpoint:
            one.bind(checkpoint)
            other.bind(checkpoint)
            for tensor in sorted(one.changed):
                values = checkpoint.read(tensor)
                whole = one.read_tuned(tensor, 0, values.numel(), values)
                ends = [0, *sorted(torch.randint(0, values.numel(), (6,), generator=random).tolist()), values.numel()]
                parts = [other.read_tuned(tensor, i, j, values[i:j]) for i, j in itertools.pairwise(ends)]
                assert torch.equal(torch.cat(parts), whole)


def test_contradictions_are_named(folders: Path, tmp_path: Path) -> None:
    adapter = tune(folders / "qwen3_moe", tmp_path / "a", **KINDS["experts"])
    file = adapter / "adapter_config.json"
    config = json.loads(file.read_text())
    for fields, code in (
        ({"target_parameters": ["experts.down_proj"]}, "model.bad_adapter"),
        ({"target_parameters": ["experts.other", "experts.another"]}, "model.missing_tensor"),
        ({"r": 3}, "model.bad_adapter"),
    ):
        file.write_text(json.dumps(config | fields))
        with pytest.raises(UserError) as caught:
            open_pair(folders / "qwen3_moe", adapter)
        assert caught.value.code == code
        assert "\n" not in str(caught.value)


def test_servers_and_vllm_do_not_get_factors_of_experts(folders: Path, tmp_path: Path) -> None:
    """vLLM's sweep replaces weights instead, as for other adapters that it cannot apply."""
    from mooring.inference.vllm import lora_options
    from mooring.pipeline.sweeps.server import check_tuned

    adapter = tune(folders / "qwen3_moe", tmp_path / "a", **KINDS["experts"])
    with pytest.raises(UserError, match="target_parameters") as caught:
        check_tuned(adapter)
    assert caught.value.code == "recipe.server_needs_adapter"
    for folder in (adapter, of_older_version(folders / "qwen3_moe", tmp_path / "b")):
        with open_adapter(folder) as opened, pytest.raises(UserError) as caught:
            lora_options(opened)
        assert caught.value.code == "model.unsupported_adapter"
