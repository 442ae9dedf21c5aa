"""Merging without leaving LoRA: PEFT loads the result, and it says what the formula says."""

import json
import math
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lora_models import load, peft, tune  # type: ignore[import-not-found]
from mooring.errors import ModelError, UserError
from mooring.merging.adapter import BoundAdapters, gram, merge_adapters
from mooring.merging.job import Job, Options
from mooring.merging.pair import open_pair
from mooring.merging.tensor_value import TensorValue
from mooring.merging.verify import verify
from mooring.models import open_adapter, open_checkpoint

ALL = ["q_proj", "o_proj", "up_proj"]
HEAD = "lm_head.weight"


def say(model: Any) -> Tensor:
    with torch.no_grad():
        values: Tensor = model(torch.arange(1, 12)[None]).logits
    return values


def weights(folder: Path, base: Path) -> dict[str, Tensor]:
    """The tuned model's tensors, in float64; a head that a tied base does not store too."""
    with open_adapter(folder) as adapter, open_checkpoint(base) as model:
        adapter.bind(model)
        found = {}
        for name in [*model.tensors, *adapter.unties]:
            shape = adapter.shape(name)
            values = model.read(adapter.unties.get(name, name))
            found[name] = adapter.read_tuned(name, 0, math.prod(shape), values).double().view(shape)
        embedding = next(name for name in found if name.endswith(("embed_tokens.weight", "wte.weight")))
        return {HEAD: found[embedding]} | found


def formula(base: Path, tuned: list[Path], combine: Callable[[str, Tensor, list[Tensor]], Tensor]) -> Tensor:
    """What the base says once every tensor is what the formula makes of it."""
    model = load(base)
    plain = {name: value.double() for name, value in model.state_dict().items()}
    models = [weights(folder, base) for folder in tuned]
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.clone())
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if name in models[0]:
                value.copy_(combine(name, plain[name], [m[name] for m in models]))
    return say(model.eval())


def error_of(*arguments: Any) -> str:
    """The code of the error with which `merge_adapters` fails, in one line."""
    with pytest.raises(UserError) as caught:
        merge_adapters(*arguments)
    assert "\n" not in str(caught.value)
    return caught.value.code


def job(method: str, lam: Any, **options: Any) -> Job:
    return Job(method=method, base="", tuned=(), options=Options(lam=TensorValue.of(lam), **options))


def check(out: Path, base: Path, expected: Tensor) -> None:
    torch.testing.assert_close(say(peft(base, out)), expected, rtol=1e-5, atol=2e-5)


KINDS: list[tuple[str, dict[str, Any]]] = [
    ("biased", {"target_modules": ALL}),
    (
        "biased",
        {"target_modules": ALL, "use_rslora": True, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"o_proj": 1}},
    ),
    ("biased", {"target_modules": ALL, "bias": "all", "modules_to_save": ["lm_head"]}),
    ("biased", {"target_modules": ALL, "bias": "lora_only"}),
    ("biased", {"target_modules": ALL, "lora_bias": True}),
    ("biased", {"target_modules": ["embed_tokens", "lm_head", "q_proj"]}),
    ("gpt2", {"target_modules": ["c_attn", "c_proj"], "bias": "lora_only"}),
    ("tied", {"target_modules": ["lm_head", "q_proj"]}),
    ("tied", {"target_modules": ["embed_tokens"], "ensure_weight_tying": True}),
    ("tied", {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]}),
    ("tied", {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}),
]


@pytest.mark.parametrize(("model", "config"), KINDS)
def test_one_and_two_adapters(bases: Mapping[str, Path], tmp_path: Path, model: str, config: dict[str, Any]) -> None:
    base = bases[model]
    one, two = tune(base, tmp_path / "one", **config), tune(base, tmp_path / "two", seed=2, **config)
    out = merge_adapters(base, [one], tmp_path / "linear", job("linear", 0.3))
    check(out, base, formula(base, [one], lambda _, b, t: 0.7 * b + 0.3 * t[0]))

    given = job("task_arithmetic", 0.5, weights=(TensorValue.of(0.9), TensorValue.of(0.4)))
    out = merge_adapters(base, [one, two], tmp_path / "sum", given)
    check(out, base, formula(base, [one, two], lambda _, b, t: b + 0.45 * (t[0] - b) + 0.2 * (t[1] - b)))
    assert json.loads((out / "adapter_config.json").read_text())["rank_pattern"] == {}

    def stock(_: str, b: Tensor, t: list[Tensor]) -> Tensor:
        x, y = ((v - b).flatten() for v in t)
        if not x.any() or not y.any():
            return b
        cosine = float(x @ y / x.norm() / y.norm())
        return b + max(0.0, 2 * cosine / (1 + cosine)) * ((t[0] + t[1]) / 2 - b)

    out = merge_adapters(base, [one, two], tmp_path / "stock", job("model_stock", 1.0))
    check(out, base, formula(base, [one, two], stock))


def test_one_factor_keeps_a_and_b(bases: Mapping[str, Path], tmp_path: Path) -> None:
    """Byte for byte; α tells the difference, with its patterns."""
    config = {"target_modules": ALL, "alpha_pattern": {"o_proj": 1}, "use_rslora": True}
    one = tune(bases["biased"], tmp_path / "one", **config)
    out = merge_adapters(bases["biased"], [one], tmp_path / "out", job("task_arithmetic", 0.5))
    before, after = load_file(one / "adapter_model.safetensors"), load_file(out / "adapter_model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    written = json.loads((out / "adapter_config.json").read_text())
    assert (written["lora_alpha"], written["alpha_pattern"], written["use_rslora"]) == (3, {"o_proj": 0.5}, True)


def test_a_number_for_every_module(bases: Mapping[str, Path], tmp_path: Path) -> None:
    base = bases["biased"]
    one = tune(base, tmp_path / "one", target_modules=ALL, rank_pattern={"q_proj": 2})
    lams = {"mlp.*": 0.3, "layers.0.self_attn.q_proj.*": 0.0, "*": 0.8}
    out = merge_adapters(base, [one], tmp_path / "out", job("linear", lams))

    def mix(name: str, b: Tensor, t: list[Tensor]) -> Tensor:
        lam = 0.3 if ".mlp." in name else 0.0 if "layers.0.self_attn.q_proj" in name else 0.8
        return (1 - lam) * b + lam * t[0]

    check(out, base, formula(base, [one], mix))
    written = json.loads((out / "adapter_config.json").read_text())
    assert (written["r"], written["lora_alpha"], written["rank_pattern"]) == (4, 4, {})
    shapes = {key: value.shape for key, value in load_file(out / "adapter_model.safetensors").items()}
    assert {shape[0] for key, shape in shapes.items() if "lora_A" in key} == {4}


def test_adapters_on_different_modules(bases: Mapping[str, Path], tmp_path: Path) -> None:
    base = bases["tied"]
    one = tune(base, tmp_path / "one", target_modules=["lm_head", "q_proj"])
    two = tune(base, tmp_path / "two", seed=2, target_modules=["embed_tokens", "q_proj", "up_proj"], r=2)
    out = merge_adapters(base, [one, two], tmp_path / "out", job("linear", 0.8))
    check(out, base, formula(base, [one, two], lambda _, b, t: 0.2 * b + 0.4 * t[0] + 0.4 * t[1]))
    keys = load_file(out / "adapter_model.safetensors")
    assert not any("base_layer" in key for key in keys)  # PEFT's copies of the base's own weights
    assert {value.shape[0] for key, value in keys.items() if "lora_A" in key} == {6}


def test_more_vocabulary_rows(bases: Mapping[str, Path], tmp_path: Path) -> None:
    """Shared rows are merged; the others are the adapter's."""
    base = bases["tied"]
    one = tune(base, tmp_path / "one", rows=3, target_modules=["q_proj"])
    name = "base_model.model.model.embed_tokens.weight"
    saved = load_file(one / "adapter_model.safetensors")
    for key in (name, "base_model.model.lm_head.weight"):
        saved[key] = saved[key] + 1
    save_file(saved, one / "adapter_model.safetensors")
    out = merge_adapters(base, [one], tmp_path / "out", job("linear", 0.25))
    before = load_file(base / "model.safetensors")["model.embed_tokens.weight"]
    after = load_file(out / "adapter_model.safetensors")[name]
    torch.testing.assert_close(after[: len(before)], before + 0.25)
    assert torch.equal(after[len(before) :], saved[name][len(before) :])
    say(peft(base, out, 3))
    assert error_of(base, [one, one], tmp_path / "both", job("linear", 0.25)) == "model.adapters_incompatible"


@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
def test_gram_matrix_of_changes(bases: Mapping[str, Path], tmp_path: Path, kind: str) -> None:
    """Found without multiplying the changes out: against dense ones in float64."""
    base, names = bases["biased"], ["model.layers.0.self_attn.q_proj.weight", "model.embed_tokens.weight"]
    folders = [
        tune(base, tmp_path / str(n), seed=n, target_modules=["q_proj", "embed_tokens"], r=r, lora_alpha=n + 1)
        for n, r in enumerate([2, 5, 3])
    ]
    for folder in folders:
        tensors = load_file(folder / "adapter_model.safetensors")
        tensors = {k: v if "base_layer" in k else v.to(getattr(torch, kind)) for k, v in tensors.items()}
        save_file(tensors, folder / "adapter_model.safetensors")
    with open_pair(base, folders) as models:
        inputs = BoundAdapters(models)
        adapters = inputs.adapters
        for name in names:
            found = torch.from_numpy(gram(inputs, name))
            dense = torch.stack(
                [_dense(adapter, name).flatten() for adapter in adapters],
            )
            torch.testing.assert_close(found, dense @ dense.T, rtol=1e-12, atol=1e-12)


def _dense(adapter: Any, name: str) -> Tensor:
    change = adapter.changes[name]
    product = adapter.tensor(change.b).double() @ adapter.tensor(change.a).double() * change.scale
    return product.T if change.embedding else product


def test_where_the_ratio_was_clamped_is_in_the_manifest(bases: Mapping[str, Path], tmp_path: Path) -> None:
    base = bases["biased"]
    one = tune(base, tmp_path / "one", target_modules=["q_proj"])
    two = Path(shutil.copytree(one, tmp_path / "two"))
    tensors = load_file(one / "adapter_model.safetensors")
    key = "base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight"
    save_file(tensors | {key: -tensors[key]}, two / "adapter_model.safetensors")
    out = merge_adapters(base, [one, two], tmp_path / "out", job("model_stock", 1.0))
    record = json.loads((out / "mooring.json").read_text())
    assert list(record["decisions"]) == ["model.layers.1.self_attn.q_proj.weight"]
    assert (record["kind"], record["method"], [t["name"] for t in record["tuned"]]) == (
        "lora",
        "model_stock",
        ["one", "two"],
    )
    merged = load_file(out / "adapter_model.safetensors")
    assert not merged[key].any()
    assert merged[key.replace("layers.1", "layers.0")].any()


def test_several_numbers_at_once(bases: Mapping[str, Path], tmp_path: Path) -> None:
    """A folder for each, with what one alone gives; each can be verified later."""
    one = tune(bases["biased"], tmp_path / "one", target_modules=["q_proj"], bias="all")
    out = merge_adapters(bases["biased"], [one], tmp_path / "out", job("linear", 0.1), [0.2, 0.75])
    assert sorted(path.name for path in out.iterdir()) == ["lam-0.2", "lam-0.75"]
    alone = merge_adapters(bases["biased"], [one], tmp_path / "alone", job("linear", 0.75))
    assert all((out / "lam-0.75" / file.name).read_bytes() == file.read_bytes() for file in alone.iterdir())
    assert verify(alone)["lambda"] == 0.75
    weights = alone / "adapter_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(ModelError) as caught:
        verify(alone)
    assert caught.value.code == "model.tensor_differs"
    twice = bases["biased"], [one], tmp_path / "twice", job("linear", 0.1), [0.2, 0.2]
    assert error_of(*twice) == "usage.repeated_lambda"


def test_type_and_tokenizer(bases: Mapping[str, Path], tmp_path: Path) -> None:
    one = tune(bases["tied"], tmp_path / "one", target_modules=["q_proj"])
    shutil.copy(bases["tied"] / "tokenizer.json", one)
    shutil.copy(bases["tied"] / "tokenizer_config.json", one)
    given = Job(method="linear", base="", tuned=(), options=Options(lam=TensorValue.of(0.5)), dtype="bfloat16")
    out = merge_adapters(bases["tied"], [one], tmp_path / "out", given)
    assert (out / "tokenizer.json").read_bytes() == (one / "tokenizer.json").read_bytes()
    assert {value.dtype for value in load_file(out / "adapter_model.safetensors").values()} == {torch.bfloat16}
    again = merge_adapters(bases["tied"], [one], tmp_path / "again", given)
    assert all((again / file.name).read_bytes() == file.read_bytes() for file in out.iterdir())


@pytest.mark.parametrize(
    ("config", "given", "code"),
    [
        ({"use_dora": True}, job("linear", 0.5), "usage.dora_gives_no_adapter"),
        ({}, job("linear", 1.5), "usage.lambda_out_of_range"),
        ({}, job("task_arithmetic", -0.5), "usage.lambda_out_of_range"),
        ({}, job("ties", 0.5), "usage.method_gives_no_adapter"),
        ({}, job("model_stock", 1.0), "usage.too_few_models"),
        (
            {},
            job("linear", 0.5, base_weight=TensorValue.of(0.5), weights=(TensorValue.of(0.4),), normalize=False),
            "usage.weights_scale_base",
        ),
    ],
)
def test_what_does_not_give_an_adapter(
    bases: Mapping[str, Path], tmp_path: Path, config: dict[str, Any], given: Job, code: str
) -> None:
    one = tune(bases["biased"], tmp_path / "one", target_modules=["q_proj"], **config)
    assert error_of(bases["biased"], [one], tmp_path / "out", given) == code
    assert not (tmp_path / "out").exists()


def test_adapters_that_cannot_be_combined(bases: Mapping[str, Path], tmp_path: Path) -> None:
    base = bases["tied"]
    one = tune(base, tmp_path / "one", target_modules=["q_proj"], modules_to_save=["lm_head"])
    two = tune(base, tmp_path / "two", target_modules=["lm_head"])
    assert error_of(base, [one, two], tmp_path / "out", job("linear", 0.5)) == "model.adapters_incompatible"
    assert error_of(base, [one, base], tmp_path / "out", job("linear", 0.5)) == "usage.not_an_adapter"


def test_faults_leave_nothing(bases: Mapping[str, Path], tmp_path: Path) -> None:
    one = tune(bases["tied"], tmp_path / "one", target_modules=["q_proj"])
    assert error_of(bases["tied"], [one], one / "out", job("linear", 0.5)) == "output.inside_input"
    tensors = load_file(one / "adapter_model.safetensors")
    key = next(iter(tensors))
    tensors[key][0, 0] = math.nan
    save_file(tensors, one / "adapter_model.safetensors")
    assert error_of(bases["tied"], [one], tmp_path / "out", job("linear", 0.5)) == "model.nonfinite"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one"]


def test_a_change_of_zero(bases: Mapping[str, Path], tmp_path: Path) -> None:
    one = tune(bases["tied"], tmp_path / "one", target_modules=["q_proj"])
    tensors = load_file(one / "adapter_model.safetensors")
    save_file({k: v * ("lora_B" not in k) for k, v in tensors.items()}, one / "adapter_model.safetensors")
    assert error_of(bases["tied"], [one], tmp_path / "out", job("linear", 0.5)) == "model.equal"
    assert not (tmp_path / "out").exists()


def test_of_another_base(bases: Mapping[str, Path], tmp_path: Path) -> None:
    shutil.copytree(bases["tied"], tmp_path / "other")
    tensors = load_file(tmp_path / "other" / "model.safetensors")
    save_file({k: v * 1.01 for k, v in tensors.items()}, tmp_path / "other" / "model.safetensors", {"format": "pt"})
    one = tune(tmp_path / "other", tmp_path / "one", target_modules=["q_proj"])
    assert error_of(bases["tied"], [one], tmp_path / "out", job("linear", 0.5)) == "model.base_mismatch"
    assert merge_adapters(tmp_path / "other", [one], tmp_path / "out", job("linear", 0.5)).is_dir()
