"""Groups of modules by the names of several architectures, and λ by group as the merge engine takes it."""

import pytest

from mooring.merging.layers import depths
from mooring.merging.tensor_value import TensorValue
from mooring.pipeline.module_groups import changed, group_of, patterns
from mooring.reporting.results import Changes

LLAMA = ("input_layernorm", "self_attn.q_proj", "self_attn.o_proj", "post_attention_layernorm", "mlp.up_proj")
CASES = {
    "llama": ("model.layers", LLAMA, {"self_attn.q_proj", "self_attn.o_proj"}),
    "phi3, fused": ("model.layers", ("self_attn.qkv_proj", "mlp.gate_up_proj"), {"self_attn.qkv_proj"}),
    "qwen3": ("model.layers", ("self_attn.q_norm", "mlp.gate_proj"), {"self_attn.q_norm"}),
    "gpt2": ("transformer.h", ("ln_1", "attn.c_attn", "attn.c_proj", "mlp.c_fc"), {"attn.c_attn", "attn.c_proj"}),
    "neox": ("gpt_neox.layers", ("attention.query_key_value", "mlp.dense_h_to_4h"), {"attention.query_key_value"}),
    "falcon": ("transformer.h", ("ln_attn", "self_attention.dense", "mlp.dense_4h_to_h"), {"self_attention.dense"}),
    "opt": ("model.decoder.layers", ("self_attn.out_proj", "self_attn_layer_norm", "fc1"), {"self_attn.out_proj"}),
    "internlm2": ("model.layers", ("attention.wqkv", "attention_norm", "feed_forward.w1"), {"attention.wqkv"}),
    "hybrid": ("model.layers", ("linear_attn.in_proj", "mlp.down_proj"), {"linear_attn.in_proj"}),
    "t5": ("encoder.block", ("layer.0.SelfAttention.q", "layer.1.DenseReluDense.wi"), {"layer.0.SelfAttention.q"}),
}
"""The stack, the modules of a layer, and those of them that are attention."""
OUTSIDE = ["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"]


MIXTURES = {
    "mixtral": ("block_sparse_moe.gate.weight", None, "block_sparse_moe.experts.3.w1.weight"),
    "qwen3_moe, together": ("mlp.gate.weight", None, "mlp.experts.gate_up_proj"),
    "deepseek_v3": (
        "mlp.gate.e_score_correction_bias",
        "mlp.shared_experts.up_proj.weight",
        "mlp.experts.11.down_proj.weight",
    ),
    "qwen3_next": ("mlp.gate.weight", "mlp.shared_expert_gate.weight", "mlp.experts.0.up_proj.weight"),
    "llama4": (
        "feed_forward.router.weight",
        "feed_forward.shared_expert.up_proj.weight",
        "feed_forward.experts.gate_up_proj",
    ),
    "gpt_oss": ("mlp.router.bias", None, "mlp.experts.gate_up_proj_bias"),
    "granitemoe": ("block_sparse_moe.router.layer.weight", None, "block_sparse_moe.experts.input_linear.weight"),
}
"""A tensor of the router, of the shared experts, if there are any, and of the routed experts of a layer."""


def names(stack: str, modules: tuple[str, ...], layers: int = 12) -> list[str]:
    return [f"{stack}.{n}.{module}.weight" for n in range(layers) for module in modules]


def given(tensors: list[str], modules: dict[str, float], lam: float) -> dict[str, float]:
    """λ of every tensor as the merge engine reads the patterns, none of which may match nothing."""
    setting = TensorValue.of(patterns(tensors, modules, lam))
    assert setting.unused(tensors) == ()
    depth = depths(tensors)
    return {name: setting.at(name, depth[name]) for name in tensors}


@pytest.mark.parametrize(("stack", "modules", "attention"), CASES.values(), ids=CASES.keys())
def test_a_group_is_a_third_of_the_depth_and_a_kind(stack: str, modules: tuple[str, ...], attention: set[str]) -> None:
    tensors = [*names(stack, modules), *OUTSIDE]
    groups = group_of(tensors)
    for n in range(12):
        depth = "early" if n < 4 else "middle" if n < 8 else "late"
        for module in modules:
            kind = "attention" if module in attention else "mlp"
            assert groups[f"{stack}.{n}.{module}.weight"] == f"{depth} {kind}"
    assert {groups[name] for name in OUTSIDE} == {None}


@pytest.mark.parametrize(("stack", "modules", "attention"), CASES.values(), ids=CASES.keys())
def test_patterns_give_every_tensor_the_lambda_of_its_group(
    stack: str, modules: tuple[str, ...], attention: set[str]
) -> None:
    tensors = [*names(stack, modules), *OUTSIDE]
    groups = group_of(tensors)
    lams = {group: 0.01 * i for i, group in enumerate(sorted({g for g in groups.values() if g}), 1)}
    left_out = lams.pop("middle mlp")
    assert left_out
    found = given(tensors, lams, 0.6)
    assert found == {name: lams.get(groups[name] or "", 0.6) for name in tensors}


@pytest.mark.parametrize("tensors", MIXTURES.values(), ids=MIXTURES.keys())
def test_the_parts_of_a_mixture_are_groups_of_their_own(tensors: tuple[str | None, ...]) -> None:
    kinds = dict(zip(("router", "shared experts", "experts"), tensors, strict=True))
    kinds |= {"attention": "self_attn.q_proj.weight", "mlp": "mlp.gate_proj.weight"}
    expected = {f"model.layers.{n}.{name}": kind for n in range(12) for kind, name in kinds.items() if name}
    groups = group_of(expected)
    assert {name: (group or "").partition(" ")[2] for name, group in groups.items()} == expected
    lams = {group: 0.01 * i for i, group in enumerate(sorted({g for g in groups.values() if g}), 1)}
    assert given(list(expected), lams, 0.6) == {name: lams[groups[name] or ""] for name in expected}


def test_a_dense_model_has_no_router() -> None:
    assert group_of(["model.layers.0.mlp.gate.weight"]) == {"model.layers.0.mlp.gate.weight": "late mlp"}


def test_stacks_are_distinguished_even_if_one_name_ends_like_the_other() -> None:
    tensors = [*names("layers", LLAMA, 4), *names("encoder.layers", LLAMA, 40), *OUTSIDE]
    groups = group_of(tensors)
    lams = {f"{depth} {kind}": 0.1 for depth in ("early", "late") for kind in ("attention", "mlp")}
    assert given(tensors, lams, 0.6) == {name: lams.get(groups[name] or "", 0.6) for name in tensors}
    assert groups["layers.3.mlp.up_proj.weight"] == "late mlp"
    assert groups["encoder.layers.3.mlp.up_proj.weight"] == "early mlp"


def test_layers_without_attention_have_no_pattern_for_it() -> None:
    tensors = [f"model.layers.{n}.{'mixer.in_proj' if n < 4 else 'self_attn.q_proj'}.weight" for n in range(12)]
    assert given(tensors, {"early mlp": 0.2, "late attention": 0.8}, 0.5)["model.layers.0.mixer.in_proj.weight"] == 0.2


def test_groups_that_tuning_left_alone_are_left_out_and_the_most_changed_come_first() -> None:
    tensors = names("model.layers", ("self_attn.q_proj", "mlp.up_proj"), 3)
    changes = Changes(
        layers=["0", "1", "2"],
        modules=["self_attn.q_proj.weight", "mlp.up_proj.weight"],
        relative=[[0.01, 0.0], [0.03, 0.02], [None, 0.0]],
    )
    assert changed(tensors, changes) == ["middle attention", "middle mlp", "early attention"]


def test_two_stacks_changes_are_read_by_stack() -> None:
    tensors = [*names("decoder.layers", ("mlp.up_proj",), 1), *names("encoder.layers", ("mlp.up_proj",), 2)]
    changes = Changes(
        layers=["decoder.layers.0", "encoder.layers.0", "encoder.layers.1"],
        modules=["mlp.up_proj.weight"],
        relative=[[0.0], [0.02], [0.0]],
    )
    assert changed(tensors, changes) == ["early mlp"]
