"""Adapters: what PEFT computes, or a refusal that names the reason."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from mooring.errors import MismatchError, ModelError
from mooring.models import adapter_config, lora, open_adapter, open_checkpoint, peft_patterns

PREFIX = "base_model.model.model.layers.0.mlp.up_proj"
WEIGHT = "model.layers.0.mlp.up_proj.weight"
UNSUPPORTED, MALFORMED = "model.unsupported_adapter", "model.bad_adapter"
PAIR = {"x.lora_A.weight": (2, 3), "x.lora_B.weight": (4, 2)}


def adapter(folder: Path, rows: int = 10, columns: int = 7, rank: int = 2, **config: Any) -> Path:
    """An adapter on one weight."""
    folder.mkdir(exist_ok=True)
    random = torch.Generator().manual_seed(1)
    tensors = {
        f"{PREFIX}.lora_A.weight": torch.randn(rank, columns, generator=random),
        f"{PREFIX}.lora_B.weight": torch.randn(rows, rank, generator=random),
    }
    save_file(tensors, folder / "adapter_model.safetensors")
    defaults = {"peft_type": "LORA", "r": rank, "lora_alpha": 6, "base_model_name_or_path": "org/some-base"}
    (folder / "adapter_config.json").write_text(json.dumps(defaults | config))
    return folder


def base(folder: Path, shape: tuple[int, ...] = (10, 7), dtype: torch.dtype = torch.float32, **config: Any) -> Path:
    folder.mkdir()
    save_file({WEIGHT: torch.zeros(shape, dtype=dtype)}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def expected(folder: Path, scale: float) -> torch.Tensor:
    tensors = load_file(folder / "adapter_model.safetensors")
    return scale * tensors[f"{PREFIX}.lora_B.weight"].double() @ tensors[f"{PREFIX}.lora_A.weight"].double()


@pytest.mark.parametrize(
    ("config", "scale"),
    [
        ({}, 3.0),
        ({"use_rslora": True}, 6 / 2**0.5),
        ({"alpha_pattern": {"up_proj": 1}}, 0.5),
        ({"alpha_pattern": {"down_proj": 1}}, 3.0),
        ({"alpha_pattern": {r"layers\.\d+\.mlp\.up_proj": 8}}, 4.0),
        ({"alpha_pattern": {"p_proj": 8}}, 3.0),
        ({"r": 64, "rank_pattern": {"up_proj": 2}}, 3.0),
    ],
)
def test_scale(tmp_path: Path, config: dict[str, Any], scale: float) -> None:
    folder = adapter(tmp_path / "a", **config)
    with open_adapter(folder) as opened, open_checkpoint(base(tmp_path / "b")) as model:
        opened.bind(model)
        delta = opened.read_tuned(WEIGHT, 0, 70, torch.zeros(70)).view(10, 7)
    torch.testing.assert_close(delta.double(), expected(folder, scale), rtol=1e-6, atol=1e-6)


@settings(deadline=None)
@given(cut=st.tuples(st.integers(0, 70), st.integers(0, 70)), block=st.sampled_from([1, 14, 21, 70, 1000]))
def test_any_slice_is_the_same_bytes(
    tmp_path_factory: pytest.TempPathFactory, cut: tuple[int, int], block: int
) -> None:
    here = tmp_path_factory.mktemp("adapter")
    folder = adapter(here / "a")
    start, stop = sorted(cut)
    with (
        pytest.MonkeyPatch.context() as patch,
        open_adapter(folder) as opened,
        open_checkpoint(base(here / "b")) as model,
    ):
        patch.setattr(lora, "BLOCK", block)
        opened.bind(model)
        whole = opened.read_tuned(WEIGHT, 0, 70, torch.zeros(70))
        part = opened.read_tuned(WEIGHT, start, stop, torch.zeros(stop - start))
        assert torch.equal(part, whole[start:stop])
    torch.testing.assert_close(whole.view(10, 7).double(), expected(folder, 3.0), rtol=1e-6, atol=1e-6)


def test_named_adapter_keys(tmp_path: Path) -> None:
    folder = adapter(tmp_path / "a")
    pair = {"x.lora_A.default.weight": torch.ones(2, 3), "x.lora_B.default.weight": torch.ones(4, 2)}
    save_file(pair, folder / "adapter_model.safetensors")
    with open_adapter(folder) as opened:
        assert list(opened.changes) == ["x.weight"]
        assert opened.base_name == "org/some-base"


@pytest.mark.parametrize(
    ("config", "code", "name"),
    [
        ({"peft_type": "IA3"}, UNSUPPORTED, "IA3"),
        ({"use_dora": True}, MALFORMED, "up_proj"),
        ({"use_dora": True, "lora_bias": True}, UNSUPPORTED, "lora_bias"),
        ({"peft_type": "PREFIX_TUNING"}, UNSUPPORTED, "changes no weights"),
        ({"peft_type": {"a": "b"}}, UNSUPPORTED, "not LoRA"),
        ({"layer_replication": [[0, 1]]}, UNSUPPORTED, "layer_replication"),
        ({"init_lora_weights": "pissa_niter_4"}, UNSUPPORTED, "pissa_niter_4"),
        ({"init_lora_weights": "pissa\x1b[31m"}, UNSUPPORTED, r"pissa\x1b[31m"),
        ({"target_parameters": "experts"}, MALFORMED, "target_parameters"),
        ({"modules_to_save": [["a"]]}, MALFORMED, "modules_to_save"),
        ({"trainable_token_indices": [True]}, MALFORMED, "trainable_token_indices"),
        ({"trainable_token_indices": {"x": [1, 1]}}, MALFORMED, "twice"),
        ({"use_bdlora": {"nblocks": 0}}, MALFORMED, "use_bdlora"),
        ({"use_qalora": True, "qalora_group_size": "x"}, MALFORMED, "qalora_group_size"),
        ({"lora_alpha": 10**400}, "model.bad_json", "adapter_config.json"),
        ({"lora_alpha": True}, MALFORMED, "lora_alpha"),
        ({"r": 10**15}, MALFORMED, "lora_alpha"),
        ({"rank_pattern": {"up_proj": {"a": {}}}}, MALFORMED, "rank_pattern"),
        ({"alpha_pattern": {"up_proj": math.inf}}, MALFORMED, "alpha_pattern"),
        ({"alpha_pattern": {"(" * 5000: 1}}, MALFORMED, "alpha_pattern"),
        ({"alpha_pattern": {"(?:a{65535}){65535}": 1}}, MALFORMED, "alpha_pattern"),
        ({"alpha_pattern": {"a" * 20_000: 1}}, MALFORMED, "alpha_pattern"),
        ({"alpha_pattern": {"\x1b]0;x\x07(": 1}}, MALFORMED, r"\x1b]0;x\x07("),
        ({"r": 4}, MALFORMED, "rank 4"),
        ({"r": 0}, MALFORMED, "lora_alpha"),
        ({"r": None}, MALFORMED, "lora_alpha"),
        ({"lora_alpha": "x"}, MALFORMED, "lora_alpha"),
        ({"rank_pattern": [1]}, MALFORMED, "lora_alpha"),
        ({"alpha_pattern": {"(": 1}}, MALFORMED, "lora_alpha"),
    ],
)
def test_an_unsupported_or_malformed_configuration_is_named(
    tmp_path: Path, config: dict[str, Any], code: str, name: str
) -> None:
    with pytest.raises(ModelError) as caught:
        open_adapter(adapter(tmp_path / "a", **config))
    assert caught.value.code == code
    assert name in caught.value.message
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("tensors", "code", "name"),
    [
        ({"x.lora_A.weight": (2, 3)}, MALFORMED, "x"),
        ({"x.lora_embedding_A": (2, 3)}, MALFORMED, "x"),
        ({"x.lora_magnitude_vector": (2,)}, MALFORMED, "x"),
        (PAIR | {"x.lora_magnitude_vector": (4,)}, MALFORMED, "DoRA"),
        (PAIR | {"x.lora_A.bias": (2,)}, UNSUPPORTED, "x.lora_A.bias"),
        (PAIR | {"x.lora_embedding_A": (2, 3)}, UNSUPPORTED, "x.lora_"),
        (PAIR | {"x.lora_diag": (2,)}, UNSUPPORTED, "x.lora_diag"),
        (PAIR | {"y.base_layer.lora_A.weight": (2, 3)}, MALFORMED, "y.base_layer"),
        ({"x.token_adapter.trainable_tokens_delta": (2, 3)}, MALFORMED, "trainable_token_indices"),
        (PAIR | {"z.base_layer.weight": (2, 3), "z.weight": (2, 3)}, MALFORMED, "z.weight"),
        ({"x.lora_A.weight": (2, 3), "x.lora_B.weight": (4, 3)}, MALFORMED, "rank 2"),
        ({"x.lora_A.weight": (2, 3, 3, 3), "x.lora_B.weight": (4, 1, 1, 1)}, UNSUPPORTED, "groups"),
        ({"x.lora_A.a.weight": (2, 3), "x.lora_A.b.weight": (2, 3)}, MALFORMED, "A.weight"),
        ({}, MALFORMED, "LoRA"),
    ],
)
def test_malformed_tensors_are_named(tmp_path: Path, tensors: dict[str, tuple[int, ...]], code: str, name: str) -> None:
    folder = adapter(tmp_path / "a")
    save_file({k: torch.zeros(v) for k, v in tensors.items()}, folder / "adapter_model.safetensors")
    with pytest.raises(ModelError) as caught:
        open_adapter(folder)
    assert caught.value.code == code
    assert name in caught.value.message


@pytest.mark.parametrize("pattern", ["(a|aa)+$x", "(?:x*)*" * 300, "(a{0,99}){0,99}"])
def test_a_catastrophic_pattern_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pattern: str) -> None:
    """`re` would take years; a pattern that backtracks without end must not hang the merge."""
    monkeypatch.setattr(adapter_config, "_SECONDS_TO_MATCH", 0.2)
    folder = adapter(tmp_path / "a", rank_pattern={pattern: 2})
    name = f"base_model.model.{'a' * 60}.layers.{'a.' * 30}"
    tensors = {f"{name}{i}.lora_{side}.weight": torch.zeros(2, 2) for i in range(9) for side in "AB"}
    save_file(tensors, folder / "adapter_model.safetensors")
    with pytest.raises(ModelError, match="too long") as caught:
        open_adapter(folder)
    assert caught.value.code == MALFORMED


@pytest.mark.parametrize("option", ["target_modules", "exclude_modules", "modules_to_save", "layers_pattern"])
def test_a_pattern_that_peft_would_match_forever_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    monkeypatch.setattr(peft_patterns, "_SECONDS", 0.5)
    modules = ["", "a", f"{'a' * 40}.layers.0.b"]
    endless = "(a+)+c"
    lists = option in ("modules_to_save", "layers_pattern")
    for value in [endless, [endless]] if lists else [endless]:
        with pytest.raises(ModelError, match="too long") as caught:
            peft_patterns.refuse_endless_patterns(tmp_path, {option: value}, modules)
        assert caught.value.code == MALFORMED
    monkeypatch.setattr(peft_patterns, "_SECONDS", 60)
    for harmless in (r".*layers\.\d+\.(b|c)", "(", None, 3, ["b"], {"a": 1}):
        peft_patterns.refuse_endless_patterns(tmp_path, {option: harmless, "rank_pattern": {"b+": 1}}, modules)


@pytest.mark.parametrize(
    "name",
    [
        "base_model.model.base_model.model.model.layers.0.mlp.up_proj",
        "base_model.model._orig_mod.model.layers.0.mlp.up_proj",
        "_orig_mod.base_model.model.model.layers.0._orig_mod.mlp.up_proj",
        "module.base_model.model.model.layers.0.mlp.up_proj",
        "base_model.model.module.model.layers.0._checkpoint_wrapped_module.mlp.up_proj",
        "base_model.model.model.layers.0._fsdp_wrapped_module.mlp.up_proj",
        "model.layers.0.mlp.up_proj",
    ],
)
def test_what_wrappers_put_into_names_is_ignored(tmp_path: Path, name: str) -> None:
    folder = adapter(tmp_path / "a")
    tensors = load_file(folder / "adapter_model.safetensors")
    renamed = {key.replace(PREFIX, name).replace(".weight", ".default.weight"): value for key, value in tensors.items()}
    save_file(renamed, folder / "adapter_model.safetensors")
    with open_adapter(folder) as opened, open_checkpoint(base(tmp_path / "b")) as model:
        opened.bind(model)
        assert opened.changed == {WEIGHT}


def test_no_weights(tmp_path: Path) -> None:
    folder = adapter(tmp_path / "a")
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(ModelError) as caught:
        open_adapter(folder)
    assert caught.value.code == "model.no_weights"


def test_fits_its_base(tmp_path: Path) -> None:
    with open_adapter(adapter(tmp_path / "a")) as opened, open_checkpoint(base(tmp_path / "b")) as model:
        opened.bind(model)


def test_does_not_fit(tmp_path: Path) -> None:
    with open_adapter(adapter(tmp_path / "a")) as opened:
        with open_checkpoint(base(tmp_path / "b", (10, 8))) as model, pytest.raises(MismatchError) as caught:
            opened.bind(model)
        assert caught.value.code == "model.shape_mismatch"
        assert all(word in str(caught.value) for word in (WEIGHT, "[10, 7]", "[10, 8]"))
        with open_checkpoint(base(tmp_path / "c", dtype=torch.int8)) as model, pytest.raises(MismatchError) as caught:
            opened.bind(model)
        assert caught.value.code == "model.dtype_mismatch"
        (tmp_path / "d").mkdir()
        save_file({"other": torch.zeros(1)}, tmp_path / "d" / "model.safetensors")
        (tmp_path / "d" / "config.json").write_text("{}")
        with open_checkpoint(tmp_path / "d") as model, pytest.raises(MismatchError) as caught:
            opened.bind(model)
        assert caught.value.code == "model.missing_tensor"
        assert str(caught.value).count(caught.value.hint) == 1


def test_an_adapter_of_a_classifier_is_refused_with_its_class(tmp_path: Path) -> None:
    folder = adapter(tmp_path / "a", task_type="SEQ_CLS")
    head = {"base_model.model.score.weight": torch.zeros(2, 7)}
    save_file(load_file(folder / "adapter_model.safetensors") | head, folder / "adapter_model.safetensors")
    with (
        open_adapter(folder) as opened,
        open_checkpoint(base(tmp_path / "b")) as model,
        pytest.raises(MismatchError) as caught,
    ):
        opened.bind(model)
    assert caught.value.code == "model.other_class"
    assert all(word in str(caught.value) for word in ("score.weight", "SEQ_CLS"))


@pytest.mark.parametrize("key", ["x.weight", "x.base_layer.weight", "x.modules_to_save.weight"])
def test_a_whole_tensor_under_any_of_its_names(tmp_path: Path, key: str) -> None:
    """As PEFT has saved them over time; it comes back in its storage type, and in the base's shape."""
    folder = adapter(tmp_path / "a")
    stored = torch.arange(70).half().view(10, 7)
    key = f"base_model.model.{key}".replace("x", WEIGHT.removesuffix(".weight"))
    save_file({key: stored, f"{WEIGHT}.original_module.weight": torch.zeros(2)}, folder / "adapter_model.safetensors")
    with open_adapter(folder) as opened, open_checkpoint(base(tmp_path / "b")) as model:
        opened.bind(model)
        assert torch.equal(opened.read_tuned(WEIGHT, 7, 21, torch.zeros(14)), stored.view(-1)[7:21])
    with (
        open_adapter(folder) as opened,
        open_checkpoint(base(tmp_path / "c", (12, 7))) as model,
        pytest.raises(MismatchError) as caught,
    ):
        opened.bind(model)
    assert caught.value.code == "model.shape_mismatch"


def test_a_square_weight_has_the_orientation_of_the_others(tmp_path: Path) -> None:
    """PEFT writes `fan_in_fan_out` for the last module only: the weights beside it decide where they can."""
    folder = adapter(tmp_path / "a", 7, 7)
    whole = expected(folder, 3.0)
    for number, (flag, shape, transposed) in enumerate(
        [(False, (7, 9), True), (True, (9, 7), False), (True, (9, 9), True), (False, (9, 9), False)]
    ):
        (folder / "adapter_config.json").write_text(
            json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 6, "fan_in_fan_out": flag})
        )
        where = tmp_path / f"base{number}"
        where.mkdir()
        beside = {WEIGHT: torch.zeros(7, 7), "other.weight": torch.zeros(shape), "other.bias": torch.zeros(9)}
        save_file(beside, where / "model.safetensors")
        (where / "config.json").write_text("{}")
        with open_adapter(folder) as opened, open_checkpoint(where) as model:
            opened.bind(model)
            change = opened.read_tuned(WEIGHT, 0, 49, torch.zeros(49)).view(7, 7).double()
        torch.testing.assert_close(change, whole.T if transposed else whole, rtol=1e-6, atol=1e-6)


def test_tuned_values_need_a_base(tmp_path: Path) -> None:
    with open_adapter(adapter(tmp_path / "a")) as opened, pytest.raises(ValueError, match="not bound"):
        opened.read_tuned(WEIGHT, 0, 1, torch.zeros(1))
