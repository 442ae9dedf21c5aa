"""mergekit's configurations, read and written. Where mergekit can be imported, its own planner is the reference."""

import json
import math
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from mooring.errors import RecipeError, UserError
from mooring.merge_methods import METHODS
from mooring.merging.job import Job, Options
from mooring.merging.layers import depths
from mooring.merging.mergekit_read import read
from mooring.merging.mergekit_write import write
from mooring.merging.tensor_value import TensorValue

LAYERS = 4
KINDS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.gate_proj")
NAMES = (
    "model.embed_tokens.weight",
    *(
        f"model.layers.{i}.{kind}.weight"
        for i in range(LAYERS)
        for kind in (*KINDS, "mlp.down_proj", "input_layernorm")
    ),
    *(f"model.layers.{i}.post_attention_layernorm.weight" for i in range(LAYERS)),
    "model.norm.weight",
    "lm_head.weight",
)
DEPTHS = depths(NAMES)
CONSENSUS = ("ties", "dare_ties", "della", "breadcrumbs_ties")
SPARSE = (*CONSENSUS, "dare_linear", "della_linear", "breadcrumbs")
Parse = Callable[[str], Job]


@pytest.fixture
def parse(tmp_path: Path) -> Parse:
    """Read a configuration from text."""

    def parse_(text: str) -> Job:
        file = tmp_path / "config.yml"
        file.write_text(text)
        return read(file)

    return parse_


def numbers(job: Job, name: str) -> dict[str, list[float]]:
    """Everything that a job says of one tensor, as plain numbers; for linear and karcher the coefficients."""
    depth, o = DEPTHS[name], job.options

    def each(given: tuple[TensorValue, ...], default: float) -> list[float]:
        found = [s.at(name, depth) for s in given or (TensorValue.of(default),)]
        return found * len(job.tuned) if len(found) == 1 else found

    weights = each(o.weights, 1.0)
    if job.method in ("linear", "karcher"):
        if o.base_weight is None:
            lam = o.lam.at(name, depth)
            return {"coefficients": [1 - lam, *(lam * w / math.fsum(weights) for w in weights)]}
        given_ = [o.base_weight.at(name, depth), *weights]
        total = 1.0 if o.normalize is False else math.fsum(given_)
        return {"coefficients": [g / total for g in given_]}
    found = {"lambda": [o.lam.at(name, depth)], "weight": weights}
    if job.method in SPARSE:
        found["density"] = each(o.density, METHODS[job.method].options["density"])
    if "breadcrumbs" in job.method:
        found["gamma"] = each(o.gamma, 0.01)
    if "della" in job.method:
        found["epsilon"] = each(o.epsilon, 0.15)
    return found


@pytest.mark.parametrize("method", SPARSE)
def test_a_configuration_without_a_density_drops_nothing_as_in_mergekit(parse: Parse, method: str) -> None:
    job = parse(
        f"{{merge_method: {method}, base_model: b, dtype: bfloat16, models: [{{model: t, parameters: {{weight: 1}}}}]}}"
    )
    assert [density.constant for density in job.options.density] == [1.0]


def test_linear_with_weights_that_sum_to_one_is_a_lambda(parse: Parse) -> None:
    job = parse(
        "{merge_method: linear, base_model: b, models: [{model: b, parameters: {weight: 0.4}}, "
        "{model: t, parameters: {weight: 0.6}}], dtype: bfloat16}"
    )
    assert job == Job(
        method="linear", base="b", tuned=("t",), options=Options(lam=TensorValue.of(0.6)), dtype="bfloat16"
    )


def test_linear_without_a_base_takes_the_first_model(parse: Parse) -> None:
    job = parse(
        "{merge_method: linear, models: [{model: a, parameters: {weight: 1}}, "
        "{model: b, parameters: {weight: 1}}, {model: c, parameters: {weight: 2}}]}"
    )
    assert (job.base, job.tuned) == ("a", ("b", "c"))
    assert job.options.lam.constant == 0.75
    assert [w.constant for w in job.options.weights] == pytest.approx([1 / 3, 2 / 3])


def test_linear_with_other_sums_keeps_the_weights(parse: Parse) -> None:
    models = "models: [{model: a, parameters: {weight: 1}}, {model: b, parameters: {weight: 0.5}}]"
    options = parse(f"{{merge_method: linear, {models}, parameters: {{normalize: false}}}}").options
    assert options.base_weight == TensorValue.of(1.0)
    assert options.weights == (TensorValue.of(0.5),)
    assert options.normalize is False
    options = parse(
        "{merge_method: linear, models: [{model: a, parameters: {weight: 1.5}}, "
        "{model: b, parameters: {weight: -0.5}}]}"
    ).options
    assert options.base_weight == TensorValue.of(1.5)  # λ would be −0.5
    assert options.normalize is True


def test_linear_with_gradients(parse: Parse) -> None:
    job = parse(
        "{merge_method: linear, models: [{model: a, parameters: {weight: [0.8, 0.2]}}, "
        "{model: b, parameters: {weight: [0.2, 0.8]}}]}"
    )
    assert job.options.base_weight is None
    assert job.options.lam == TensorValue.containing([("*", (0.2, 0.8))])
    assert job.options.lam.at("model.norm.weight", 1) == 0.2  # as in mergekit, outside the layers
    job = parse(
        "{merge_method: linear, models: [{model: a, parameters: {weight: 1}}, "
        "{model: b, parameters: {weight: [1, 3]}}]}"
    )
    assert numbers(job, "model.layers.3.mlp.up_proj.weight")["coefficients"] == [0.25, 0.75]


def test_linear_whose_sum_moves_is_no_ramp(parse: Parse) -> None:
    models = "models: [{model: a, parameters: {weight: 2}}, {model: b, parameters: {weight: [1, 0.5]}}]"
    job = parse(f"{{merge_method: linear, {models}}}")
    middle = numbers(job, "model.layers.1.mlp.up_proj.weight")["coefficients"][1]
    assert middle == pytest.approx((1 - 0.5 / 3) / (3 - 0.5 / 3))
    job = parse(f"{{merge_method: linear, parameters: {{normalize: false}}, {models}}}")
    assert numbers(job, NAMES[0])["coefficients"] == [2, 1]


def test_slerp_with_filters(parse: Parse) -> None:
    job = parse(
        """
        slices: [{sources: [{model: a, layer_range: [0, 4]}, {model: b, layer_range: [0, 4]}]}]
        merge_method: slerp
        base_model: a
        parameters:
          t:
            - {filter: self_attn, value: [0, 0.5, 0.3, 0.7, 1]}
            - {filter: mlp, value: [1, 0]}
            - value: 0.5
        dtype: bfloat16
        """.replace("\n        ", "\n")
    )
    assert (job.base, job.tuned, job.options.weights) == ("a", ("b",), ())
    lam = job.options.lam
    assert lam.rules == (("self_attn", (0, 0.5, 0.3, 0.7, 1)), ("mlp", (1, 0)), ("*", 0.5))
    assert lam.at("model.layers.1.mlp.up_proj.weight", 0.25) == 0.75


@pytest.mark.parametrize(
    ("method", "normalize", "rescale"),
    [
        ("task_arithmetic", False, None),
        ("ties", True, "none"),
        ("dare_linear", False, "l1"),
        ("dare_ties", False, "l1"),
        ("della", True, "l1"),
        ("della_linear", False, "l1"),
        ("breadcrumbs", False, "none"),
        ("breadcrumbs_ties", False, "none"),
    ],
)
def test_defaults_are_mergekits_and_written_out(parse: Parse, method: str, normalize: bool, rescale: str) -> None:
    text = (
        f"{{merge_method: {method}, base_model: b, models: [{{model: b}}, {{model: s}}, {{model: t}}], "
        "parameters: {weight: 0.3, int8_mask: true}}"
    )
    job, (one, two) = parse(text), (TensorValue.of(1.0), TensorValue.of(0.3))
    assert job.tuned == ("s", "t")
    assert job.options == Options(
        lam=one,
        weights=(two, two),
        density=(one, one) if method in SPARSE else (),
        gamma=(TensorValue.of(0.01),) * 2 if "breadcrumbs" in method else (),
        epsilon=(TensorValue.of(0.15),) * 2 if "della" in method else (),
        normalize=normalize,
        rescale=rescale,  # type: ignore[arg-type]
    )
    assert job.tokenizer == "larger"


def test_given_parameters_go_before_defaults(parse: Parse) -> None:
    options = parse(
        "{merge_method: della, base_model: b, models: [{model: t, parameters: {weight: '1e-1', density: 0.4, "
        "epsilon: 0.05}}, {model: u, parameters: {weight: true}}], "
        "parameters: {lambda: 0.7, normalize: false, rescale: no, density: 0.9, gamma: 0.5}}"
    ).options
    assert options.lam.constant == 0.7
    assert [w.constant for w in options.weights] == [0.1, 1.0]
    assert [d.constant for d in options.density] == [0.4, 0.9]
    assert [e.constant for e in options.epsilon] == [0.05, 0.15]
    assert (options.normalize, options.rescale, options.gamma) == (False, "none", ())


def test_what_one_scope_leaves_open_the_next_decides(parse: Parse) -> None:
    job = parse(
        """
        slices:
          - sources:
              - {model: b, layer_range: [0, 4]}
              - {model: t, layer_range: [0, 4], parameters: {weight: {filter: mlp, value: 0.1}}}
            parameters: {weight: [{filter: self_attn, value: 0.2}, {filter: mlp, value: 9}]}
        parameters: {weight: 0.3}
        base_model: b
        merge_method: task_arithmetic
        """.replace("\n        ", "\n")
    )
    assert job.options.weights[0].rules == (("mlp", 0.1), ("self_attn", 0.2), ("*", 0.3))


def test_model_stock_and_karcher(parse: Parse) -> None:
    models = "[{model: s}, {model: t}]"
    job = parse(f"{{merge_method: model_stock, base_model: b, models: {models}, parameters: {{filter_wise: false}}}}")
    assert job == Job(method="model_stock", base="b", tuned=("s", "t"), options=Options(lam=TensorValue.of(1.0)))
    job = parse(f"{{merge_method: karcher, base_model: b, models: {models}, parameters: {{max_iter: 100, tol: 1e-9}}}}")
    assert job.options.base_weight == TensorValue.of(1 / 3)
    assert numbers(job, NAMES[0])["coefficients"] == pytest.approx([1 / 3] * 3)
    job = parse(f"{{merge_method: karcher, models: {models}}}")
    assert (job.base, job.tuned, job.options.lam.constant) == ("s", ("t",), 0.5)


def test_adapters(parse: Parse) -> None:
    job = parse(
        "{merge_method: ties, base_model: o/b@v1, models: [{model: o/b@v1+o/l@v2, parameters: {weight: 1}}, "
        "{model: {model: {path: o/b, revision: v1}, lora: {path: x+y}}, parameters: {weight: 1}}]}"
    )
    assert (job.base, job.tuned) == ("o/b@v1", ("o/l@v2", "x+y"))
    job = parse("{merge_method: linear, models: [{model: b+l}, {model: b+m}], parameters: {weight: 0.5}}")
    assert (job.base, job.tuned) == ("b", ("l", "m"))
    assert numbers(job, NAMES[0])["coefficients"] == [0, 0.5, 0.5]


@pytest.mark.parametrize(
    ("keys", "dtype"),
    [
        ("dtype: float16", "float16"),
        ("out_dtype: torch.bfloat16", "bfloat16"),
        ("dtype: float32, out_dtype: bfloat16", "bfloat16"),
        ("dtype: null", None),
    ],
)
def test_dtype(parse: Parse, keys: str, dtype: str | None) -> None:
    assert (
        parse(f"{{merge_method: slerp, base_model: a, models: [{{model: b}}], parameters: {{t: 0.5}}, {keys}}}").dtype
        == dtype
    )


@pytest.mark.parametrize(
    "keys",
    [
        "tokenizer_source: base",
        "tokenizer: {source: base}",
        "tokenizer_source: a",
        "tokenizer: {source: a, tokens: {}, pad_to_multiple_of: null}",
    ],
)
def test_the_bases_tokenizer(parse: Parse, keys: str) -> None:
    job = parse(f"{{merge_method: slerp, base_model: a, models: [{{model: b}}], parameters: {{t: 0.5}}, {keys}}}")
    assert job.tokenizer == "base"


OK = "merge_method: slerp, base_model: a, models: [{model: b}], parameters: {t: 0.5}"
TIES = "merge_method: ties, base_model: a"
SLICES = "merge_method: linear, slices: [{sources: [{model: b, layer_range: [0, 2]}"


UNSUPPORTED, MALFORMED, MISSING = (f"recipe.mergekit_{reason}" for reason in ("unsupported", "malformed", "missing"))


@pytest.mark.parametrize(
    ("text", "place", "code"),
    [
        ("merge_method: passthrough, models: [{model: a}]", "merge_method: passthrough", UNSUPPORTED),
        ("models: [{model: a}]", "merge_method: None", UNSUPPORTED),
        ("merge_method: [linear], models: [{model: a}]", "merge_method: ['linear']", UNSUPPORTED),
        (f"{OK}, dtyp: bfloat16", "dtyp", UNSUPPORTED),
        (f"{OK}, experts: []", "experts", UNSUPPORTED),
        (f"{OK}, chat_template: auto", "chat_template", UNSUPPORTED),
        (f"{OK}, dtype: int8", "dtype: int8", UNSUPPORTED),
        (f"{OK}, tokenizer_source: union", "tokenizer_source: union", UNSUPPORTED),
        (f"{OK}, tokenizer: {{}}", "tokenizer.source: union", UNSUPPORTED),
        (f"{OK}, tokenizer_source: b", "tokenizer_source: b", UNSUPPORTED),
        (f"{OK}, tokenizer_source: c", "tokenizer_source: c", UNSUPPORTED),
        ("merge_method: resta, base_model: a, models: [{model: b}]", "merge_method: resta", UNSUPPORTED),
        (f"{OK}, tokenizer: {{source: base, pad_to_multiple_of: 8}}", "tokenizer.pad_to_multiple_of", UNSUPPORTED),
        (f"{OK}, tokenizer: {{source: base}}, tokenizer_source: base", "tokenizer:", MALFORMED),
        (f"{OK}, modules: {{default: {{models: []}}}}", "modules", UNSUPPORTED),
        (f"{OK}, slices: [1]", "", MALFORMED),
        ("merge_method: linear, models: []", "", MALFORMED),
        ("merge_method: linear, models: {a: 1}", "models:", MALFORMED),
        ("merge_method: linear, models: [a]", "models[0]:", MALFORMED),
        ("merge_method: linear, models: [{model: a, wieght: 1}]", "models[0].wieght", UNSUPPORTED),
        ("merge_method: linear, models: [{model: a}, {model: b}]", "models[0]: weight", MISSING),
        ("merge_method: linear, models: [{model: 3}]", "models[0].model: 3", MALFORMED),
        ("merge_method: linear, models: [{model: a+b+c}]", "models[0].model: 'a+b+c'", MALFORMED),
        (
            "merge_method: linear, models: [{model: {model: a, override_architecture: X}}]",
            "models[0].model.override_architecture",
            UNSUPPORTED,
        ),
        ("merge_method: linear, models: [{model: a}], parameters: {weight: 1}", "0 models", MALFORMED),
        (
            "merge_method: linear, models: [{model: a}, {model: b+l}], parameters: {weight: 1}",
            "models[1]: b+l",
            MALFORMED,
        ),
        ("merge_method: linear, models: [{model: a}, {model: a}]", "models[1]:", MALFORMED),
        (
            "merge_method: linear, models: [{model: a, parameters: {weight: 1}}, {model: b, parameters: {weight: -1}}]",
            "weight (*):",
            MALFORMED,
        ),
        ("merge_method: slerp, models: [{model: a}, {model: b}]", "base_model", MISSING),
        ("merge_method: slerp, base_model: a, models: [{model: b}]", "t ", MISSING),
        (
            "merge_method: slerp, base_model: a, models: [{model: b, parameters: {t: 1}}]",
            "models[0].parameters.t:",
            MALFORMED,
        ),
        (
            "merge_method: slerp, base_model: a, models: [{model: b}, {model: c}], parameters: {t: 1}",
            "2 models",
            MALFORMED,
        ),
        ("merge_method: slerp, base_model: a+l, models: [{model: b}]", "base_model:", UNSUPPORTED),
        ("merge_method: model_stock, base_model: a, models: [{model: b}]", "1 models", MALFORMED),
        (
            "merge_method: model_stock, base_model: a, models: [{model: b}, {model: c}], parameters: {filter_wise: 1}",
            "parameters.filter_wise",
            UNSUPPORTED,
        ),
        ("merge_method: karcher, models: [{model: b}, {model: c}], parameters: {max_iter: 3}", "max_iter", UNSUPPORTED),
        (f"{TIES}, models: [{{model: b}}]", "models[0]: weight", MISSING),
        (f"{TIES}, models: [{{model: b}}], parameters: {{wieght: 1}}", "parameters.wieght", UNSUPPORTED),
        (f"{TIES}, models: [{{model: b}}], parameters: {{weight: x}}", "parameters.weight: 'x'", MALFORMED),
        (f"{TIES}, models: [{{model: b}}], parameters: {{weight: .nan}}", "parameters.weight: nan", MALFORMED),
        (f"{TIES}, models: [{{model: b}}], parameters: {{weight: []}}", "parameters.weight: []", MALFORMED),
        (
            f"{TIES}, models: [{{model: b}}], parameters: {{weight: [{{filter: mlp}}]}}",
            "parameters.weight[0]:",
            MALFORMED,
        ),
        (
            f"{TIES}, models: [{{model: b}}], parameters: {{weight: [{{filter: 3, value: 1}}]}}",
            "parameters.weight[0].filter: 3",
            MALFORMED,
        ),
        (
            f"{TIES}, models: [{{model: b}}], parameters: {{weight: [1, {{value: 1}}]}}",
            "parameters.weight[0]:",
            MALFORMED,
        ),
        (
            f"{TIES}, models: [{{model: b}}], parameters: {{weight: 1, normalize: maybe}}",
            "parameters.normalize: 'maybe'",
            MALFORMED,
        ),
        (
            f"{TIES}, models: [{{model: b}}], parameters: {{weight: 1, normalize: [{{filter: mlp, value: false}}]}}",
            "parameters.normalize:",
            UNSUPPORTED,
        ),
        (
            f"{TIES}, models: [{{model: b, parameters: {{weight: 1, lambda: 1}}}}]",
            "models[0].parameters.lambda:",
            MALFORMED,
        ),
        (
            "merge_method: slerp, base_model: a, slices: [{sources: [{model: b, layer_range: [0, 2]}]}]",
            "base_model: a",
            MALFORMED,
        ),
        ("merge_method: linear, slices: [{sources: [{model: b, layer_range: [0, 2]}]}, {}]", "slices:", UNSUPPORTED),
        (
            "merge_method: linear, slices: [{sources: [{model: b}]}]",
            "slices[0].sources[0].layer_range: None",
            MALFORMED,
        ),
        (
            "merge_method: linear, slices: [{sources: [{model: b, layer_range: [1, 2]}]}]",
            "slices[0].sources[0].layer_range: [1, 2]",
            MALFORMED,
        ),
        (
            f"{SLICES}, {{model: c, layer_range: [0, 3]}}]}}]",
            "slices[0].sources[1].layer_range: [0, 3]",
            MALFORMED,
        ),
        (
            "merge_method: linear, slices: [{sources: [{model: b, layer_range: [0, 2]}], residual_weight: 1}]",
            "slices[0].residual_weight",
            UNSUPPORTED,
        ),
    ],
)
def test_errors_name_the_place(parse: Parse, tmp_path: Path, text: str, place: str, code: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse(f"{{{text}}}")
    assert caught.value.code == code
    assert caught.value.message.startswith(f"{tmp_path / 'config.yml'}: {place}")
    assert "\n" not in str(caught.value)


def test_a_mistyped_key_gets_a_suggestion(parse: Parse) -> None:
    with pytest.raises(RecipeError) as caught:
        parse(f"{{{OK}, dtyp: bfloat16}}")
    assert caught.value.hint == "did you mean `dtype`?"


@pytest.mark.parametrize(
    ("text", "place", "code"),
    [
        ("- a", "config.yml: ", MALFORMED),
        ("a: [", "config.yml:1: ", "recipe.invalid_yaml"),
        ("!!python/object/apply:os.getcwd []", "config.yml:1: ", "recipe.invalid_yaml"),  # no object is built
    ],
)
def test_files_that_are_not_yaml_mappings(parse: Parse, text: str, place: str, code: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse(text)
    assert caught.value.code == code
    assert place in caught.value.message


def test_files_that_are_not_text(tmp_path: Path) -> None:
    (tmp_path / "x.yml").write_bytes(b"\xff\xfe\x00")
    for file in (tmp_path, tmp_path / "none.yml", tmp_path / "x.yml"):
        with pytest.raises(RecipeError) as caught:
            read(file)
        assert caught.value.code == "recipe.unreadable"


@pytest.mark.parametrize(
    "config", [{"num_hidden_layers": 4}, {"n_layer": 4}, {"text_config": {"num_hidden_layers": 4}}]
)
def test_slices_cover_the_layers_that_the_model_says_it_has(
    parse: Parse, tmp_path: Path, config: dict[str, Any]
) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "config.json").write_text(json.dumps(config))
    text = (
        "{{merge_method: slerp, base_model: {0}/a, parameters: {{t: 0.5}}, slices: [{{sources: "
        "[{{model: {0}/a, layer_range: [0, {1}]}}, {{model: {0}/b, layer_range: [0, {1}]}}]}}]}}"
    )
    assert parse(text.format(tmp_path, 4)).tuned == (f"{tmp_path}/b",)
    with pytest.raises(RecipeError) as caught:
        parse(text.format(tmp_path, 3))
    assert caught.value.code == MALFORMED
    assert "layer_range: [0, 3]" in caught.value.message


VALUES = st.floats(0.05, 0.95).map(lambda x: round(x, 3))
PATTERNS = st.sampled_from(
    [
        "layers.{0-1}.mlp.*",
        "{q,k,v}_proj.weight",
        "*attn*",
        "lm_head.weight",
        "layers.?.mlp.*",
        "norm.*",
        "layers.3.*",
        "model.*",
        "*_proj.weight",
    ]
)
GRADIENTS = st.one_of(VALUES, st.lists(VALUES, min_size=2, max_size=4).map(tuple))
GLOBS = st.one_of(
    GRADIENTS.map(TensorValue.of),
    st.builds(
        lambda some, rest: TensorValue.of({**some, "*": rest}),
        st.dictionaries(PATTERNS, GRADIENTS, max_size=3),
        GRADIENTS,
    ),
)


@st.composite
def jobs(draw: st.DrawFn) -> Job:
    method = draw(st.sampled_from(["linear", "slerp", "task_arithmetic", "lines", "model_stock", "karcher", *SPARSE]))
    count = {"slerp": 1, "model_stock": 2}.get(method) or draw(st.integers(1, 3))
    each = st.one_of(st.just(()), st.tuples(*[GLOBS] * count))
    lam = (
        TensorValue.of({"model_stock": 1.0, "karcher": count / (count + 1)}[method])
        if method in ("model_stock", "karcher")
        else draw(GLOBS)
    )
    thin = method in SPARSE
    return Job(
        method=method,
        base="b",
        tuned=tuple("tuv"[:count]),
        options=Options(
            lam=lam,
            base_weight=draw(st.one_of(st.none(), GLOBS)) if method == "linear" else None,
            weights=draw(each) if method in ("linear", "task_arithmetic", "lines", *SPARSE) else (),
            density=draw(each) if thin else (),
            gamma=draw(each) if "breadcrumbs" in method else (),
            epsilon=draw(each) if "della" in method else (),
            normalize=draw(st.sampled_from([None, True, False]))
            if method in ("linear", "task_arithmetic", *SPARSE)
            else None,
            rescale=draw(st.sampled_from(["l1", "none"])) if thin else None,
        ),
        dtype=draw(st.sampled_from([None, "bfloat16", "float64"])),
        tokenizer=draw(st.sampled_from(["base", "larger"])),
    )


@given(jobs())
@settings(max_examples=120, deadline=None)
def test_what_is_written_reads_as_the_same_merge(job: Job) -> None:
    file = Path("job.yml")
    text = write(job, NAMES, dtype="bfloat16")
    again = _read_text(text, file)
    assert (again.base, again.tuned, again.tokenizer) == (job.base, job.tuned, job.tokenizer)
    assert again.method == ("task_arithmetic" if job.method == "lines" else job.method)
    assert again.dtype == (job.dtype or "bfloat16")
    if job.method == "lines" and job.options.lam.constant is not None:
        return  # one λ is a ramp there: a test of its own
    for name in NAMES:
        theirs, ours = numbers(again, name), numbers(job, name)
        for key, found in ours.items():
            assert theirs[key] == pytest.approx(found, abs=1e-9), (name, key, text)
    if job.method in ("task_arithmetic", *SPARSE):
        assert again.options.normalize == (
            job.options.normalize if job.options.normalize is not None else job.method in ("ties", "della")
        )
        assert again.options.rescale == job.options.rescale


def _read_text(text: str, file: Path) -> Job:
    """Read a configuration that is in no file (a fixture would be shared by Hypothesis's examples)."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / file).write_text(text)
        return read(Path(folder) / file)


def job_of(method: str, lam: Any = 0.6, tuned: tuple[str, ...] = ("t",), **options: Any) -> Job:
    return Job(method=method, base="b", tuned=tuned, options=Options(lam=TensorValue.of(lam), **options))


def test_linear_is_written_as_weights() -> None:
    document = yaml.safe_load(write(job_of("linear", 0.6), NAMES, dtype="bfloat16"))
    assert document == {
        "merge_method": "linear",
        "base_model": "b",
        "models": [{"model": "b", "parameters": {"weight": 0.4}}, {"model": "t", "parameters": {"weight": 0.6}}],
        "dtype": "float32",
        "out_dtype": "bfloat16",
    }


def test_patterns_become_short_filters() -> None:
    job = job_of("slerp", {"layers.{0-1}.mlp.*": 0.3, "*": (0.2, 0.8)})
    assert yaml.safe_load(write(job, NAMES))["parameters"]["t"] == [
        {"filter": "model.norm.weight", "value": 0.8},  # mergekit has a gradient's first value there
        {"filter": "lm_head.weight", "value": 0.8},
        {"filter": ".layers.0.mlp.", "value": 0.3},
        {"filter": ".layers.1.mlp.", "value": 0.3},
        {"value": [0.2, 0.8]},
    ]


def test_lines_with_one_number_is_a_ramp_from_zero() -> None:
    document = yaml.safe_load(write(job_of("lines", 0.6), NAMES))
    assert document["merge_method"] == "task_arithmetic"
    assert document["parameters"]["lambda"][-1] == {"value": [0.0, 0.6]}


@pytest.mark.parametrize(
    "job",
    [
        job_of("dare_ties", density=(TensorValue.of(0.5),)),  # mergekit rescales by the l1 norm
        job_of("model_stock", tuned=("s", "t")),  # has no λ
        job_of("karcher", 0.7),  # the same weight for all models
        job_of("linear", tuned=("bundled:smollm2-135m-instruct",)),  # not a folder or a hub id
    ],
    ids=lambda job: job.method,
)
def test_what_mergekit_cannot_do_is_refused(job: Job) -> None:
    with pytest.raises(UserError) as caught:
        write(job, NAMES)
    assert caught.value.code == "usage.mergekit_cannot"


def test_dare_at_full_density_needs_no_rescaling() -> None:
    job = job_of("dare_linear", density=(TensorValue.of(1.0),))
    assert yaml.safe_load(write(job, NAMES))["parameters"]["rescale"] is False


def test_adapters_are_written_on_their_base(tmp_path: Path) -> None:
    for name in ("lora", "odd+name"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "adapter_config.json").write_text("{}")
    refs = tuple(str(tmp_path / name) for name in ("lora", "odd+name"))
    text = write(job_of("task_arithmetic", tuned=refs), NAMES)
    assert yaml.safe_load(text)["models"][1]["model"] == f"b+{refs[0]}"
    (tmp_path / "c.yml").write_text(text)
    assert read(tmp_path / "c.yml").tuned == refs


# Against mergekit itself, where it is installed.


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, dict[str, list[float]]]]:
    """What mergekit's planner gives every tensor for a configuration: as `numbers`."""
    config = pytest.importorskip("mergekit.config")
    from mergekit.architecture import get_architecture_info
    from mergekit.io.tasks import LoaderCache
    from mergekit.options import MergeOptions
    from mergekit.plan import MergePlanner
    from transformers import LlamaConfig

    folder = tmp_path_factory.mktemp("models")
    llama = LlamaConfig(num_hidden_layers=LAYERS, architectures=["LlamaForCausalLM"])
    for name in "btuv":
        llama.save_pretrained(folder / name)
        save_file({"lm_head.weight": torch.zeros(1)}, folder / name / "model.safetensors")

    def plan_(text: str) -> dict[str, dict[str, list[float]]]:
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            options = MergeOptions()
            LoaderCache().setup(options)
            loaded = config.MergeConfiguration.model_validate(yaml.safe_load(text))
            planner = MergePlanner(loaded, get_architecture_info(loaded, options), options, llama)
            planner._plan()
        return {weight.name: _numbers(loaded, task) for weight, task in planner._tensors}

    return plan_


def _numbers(config: Any, task: Any) -> dict[str, list[float]]:
    """The numbers of one of mergekit's tasks, the base's first."""
    order = sorted(task.model_order, key=lambda m: str(m) != "b")
    shared = dict(task.parameters.items())
    own = [dict(task.input_parameters[m].items()) for m in order]
    if config.merge_method in ("linear", "karcher"):
        weights = [one.get("weight", 1.0) for one in own]
        total = math.fsum(weights) if shared.get("normalize", True) else 1.0
        return {"coefficients": [w / total for w in weights]}
    found = {key: [one[key] for one in own[1:] if key in one] for key in ("weight", "density", "gamma", "epsilon")}
    found["lambda"] = [shared.get("lambda", shared.get("t", 1.0))]
    return found | {"flags": [bool(shared.get("normalize")), bool(shared.get("rescale"))]}


@given(jobs())
@settings(max_examples=60, deadline=None)
def test_mergekit_plans_what_was_written(plan: Callable[[str], dict[str, dict[str, list[float]]]], job: Job) -> None:
    theirs = plan(write(job, NAMES))
    assert set(theirs) == set(NAMES)
    if job.method == "lines" and (lam := job.options.lam.constant) is not None:
        job = job_of("lines", (0.0, lam), job.tuned, weights=job.options.weights)
    for name in NAMES:
        for key, found in numbers(job, name).items():
            if key in theirs[name] and theirs[name][key]:
                assert theirs[name][key] == pytest.approx(found, abs=1e-9), (name, key)


SIMPLE = st.one_of(VALUES, st.just(True), VALUES.map(str), st.lists(VALUES, min_size=1, max_size=4))
FILTERS = st.sampled_from(["mlp", "self_attn", "layers.1.", "norm", "lm_head", "*", "", None, "embed", "weight"])
CONDITION = st.builds(lambda f, v: {"filter": f, "value": v}, FILTERS, SIMPLE) | SIMPLE.map(lambda v: {"value": v})
PARAMETER = st.one_of(SIMPLE, CONDITION, st.lists(CONDITION, min_size=1, max_size=3))


@st.composite
def configurations(draw: st.DrawFn) -> dict[str, Any]:
    """A configuration with parameters in every scope, as YAML would give it."""
    method = draw(st.sampled_from([*["linear"] * 4, "slerp", "task_arithmetic", "karcher", *SPARSE]))
    tuned = "t" if method == "slerp" else "tuv"[: draw(st.integers(1, 3))]
    per_model = st.sampled_from(["weight", "density", "gamma", "epsilon", "int8_mask"])
    flags = {
        "normalize": st.booleans(),
        "rescale": st.sampled_from([True, False, "yes", 0]),
        "int8_mask": st.booleans(),
    }
    shared = draw(st.dictionaries(st.sampled_from(["weight", "density", "lambda", "gamma"]), PARAMETER))
    shared |= {key: draw(value) for key, value in flags.items() if draw(st.booleans())}
    fill = dict.fromkeys(("weight", "t"), 0.5)  # what must be given, so that no tensor is left without
    models = [
        {"model": name, "parameters": draw(st.dictionaries(per_model, PARAMETER))}
        for name in draw(st.permutations("b" + tuned))
    ]
    body: dict[str, Any] = {"models": models, "parameters": fill | shared}
    if isinstance(body["parameters"]["weight"], list | dict):  # may match only some tensors
        body["parameters"]["weight"] = [*_listed(body["parameters"]["weight"]), {"value": 0.25}]
    if draw(st.booleans()):
        middle = draw(st.dictionaries(st.sampled_from(["weight", "density", "lambda", "t"]), PARAMETER))
        sources = [{**model, "layer_range": [0, LAYERS]} for model in models]
        body = {"slices": [{"sources": sources, "parameters": middle}], "parameters": body["parameters"]}
    return {"merge_method": method, "base_model": "b", **body}


def _listed(given_: Any) -> list[Any]:
    conditions = [given_] if isinstance(given_, dict) else given_
    return conditions if isinstance(conditions[0], dict) else [{"value": conditions}]


@pytest.mark.slow
@given(configurations())
@settings(max_examples=150, deadline=None)
def test_a_configuration_reads_as_mergekit_plans_it(
    plan: Callable[[str], dict[str, dict[str, list[float]]]], configuration: dict[str, Any]
) -> None:
    text = yaml.safe_dump(configuration)
    job = _read_text(text, Path("config.yml"))
    order = [m["model"] for m in configuration.get("models") or configuration["slices"][0]["sources"]]
    assert job.tuned == tuple(name for name in order if name != "b")
    for name, theirs in plan(text).items():
        for key, found in numbers(job, name).items():
            if theirs.get(key):
                assert found == pytest.approx(theirs[key], rel=1e-9, abs=1e-12), (name, key)
        if job.options.normalize is not None and "flags" in theirs:
            assert job.options.normalize == theirs["flags"][0]
        if job.options.rescale is not None:
            assert (job.options.rescale == "l1") == theirs["flags"][1]


WEIGHTED = [
    {"model": name, "parameters": {"weight": weight}} for name, weight in zip("bcd", (1.0, 0.3, 0.5), strict=True)
]
EXAMPLES: dict[str, dict[str, Any]] = {
    "arcee_fusion.yml": {"merge_method": "arcee_fusion", "base_model": "a", "models": [{"model": "a"}, {"model": "b"}]},
    "bio-merge.yml": {
        "merge_method": "ties",
        "base_model": "a",
        "models": [{"model": name, "parameters": {"density": 0.5, "weight": 0.5}} for name in "bc"],
        "parameters": {"normalize": False, "int8_mask": True},
        "dtype": "float16",
    },
    "gradient-slerp.yml": {
        "merge_method": "slerp",
        "base_model": "a",
        "slices": [{"sources": [{"model": name, "layer_range": [0, 2]} for name in "ab"]}],
        "parameters": {
            "t": [
                {"filter": "self_attn", "value": [0, 0.5, 0.3, 0.7, 1]},
                {"filter": "mlp", "value": [1, 0.5, 0.7, 0.3, 0]},
                {"value": 0.5},
            ]
        },
        "dtype": "float16",
    },
    "linear.yml": {"merge_method": "linear", "models": WEIGHTED, "dtype": "float16"},
    "ties.yml": {
        "merge_method": "ties",
        "base_model": "a",
        "models": [
            {"model": "b", "parameters": {"density": [1, 0.7, 0.1], "weight": 1.0}},
            {"model": "c", "parameters": {"density": 0.5, "weight": [0, 0.3, 0.7, 1]}},
            {
                "model": "d",
                "parameters": {"density": 0.33, "weight": [{"filter": "mlp", "value": 0.5}, {"value": 0}]},
            },
        ],
        "parameters": {"normalize": True, "int8_mask": True},
        "dtype": "float16",
    },
    # Not in examples/: the methods of docs/merge_methods.md and the tokenizer of the README, in the same form.
    "nuslerp": {"merge_method": "nuslerp", "models": WEIGHTED[:2]},
    "nuslerp, of changes": {"merge_method": "nuslerp", "base_model": "a", "models": WEIGHTED[:2]},
    "multislerp": {"merge_method": "multislerp", "base_model": "a", "models": WEIGHTED},
    "sce": {
        "merge_method": "sce",
        "base_model": "a",
        "models": [{"model": name} for name in "bcd"],
        "parameters": {"select_topk": 0.5},
    },
    "nearswap": {"merge_method": "nearswap", "base_model": "a", "models": [{"model": "b"}], "parameters": {"t": 0.001}},
    "karcher": {"merge_method": "karcher", "models": [{"model": name} for name in "bcd"]},
    "model_stock": {"merge_method": "model_stock", "base_model": "a", "models": [{"model": name} for name in "bcd"]},
    "task_arithmetic": {"merge_method": "task_arithmetic", "base_model": "a", "models": WEIGHTED},
    "tokenizer_source: union": {"merge_method": "linear", "models": WEIGHTED, "tokenizer_source": "union"},
    "tokenizer: source: union": {"merge_method": "linear", "models": WEIGHTED, "tokenizer": {"source": "union"}},
    "tokenizer_source: a model": {"merge_method": "linear", "models": WEIGHTED, "tokenizer_source": "c"},
}
"""The structure of mergekit's examples/ (without the one that stacks layers), and of methods that have none there."""


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory, save_tiny_model: Any) -> Path:
    """A folder of four small models of the same tokenizer."""
    folder = tmp_path_factory.mktemp("small")
    for seed, name in enumerate("abcd"):
        save_tiny_model(folder / name, seed=seed)
    return folder


@pytest.mark.parametrize("example", EXAMPLES)
def test_configurations_as_in_mergekits_examples_are_merged(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, example: str
) -> None:
    import mooring

    configuration = EXAMPLES[example]
    file = tmp_path / "config.yml"
    file.write_text(yaml.safe_dump(configuration))
    monkeypatch.chdir(small)
    out = mooring.mergekit_run(file, out=tmp_path / "merged")
    manifest = json.loads((out / "mooring.json").read_text())
    assert manifest["method"] == configuration["merge_method"]
    with (
        safe_open(out / "model.safetensors", "pt") as merged,
        safe_open(small / "a" / "model.safetensors", "pt") as base,
    ):
        assert set(merged.keys()) == set(base.keys())
        name = "model.layers.1.mlp.down_proj.weight"
        assert not torch.equal(merged.get_tensor(name).float(), base.get_tensor(name).float())
        if "dtype" in configuration:
            assert merged.get_tensor(name).dtype == torch.float16


def test_a_union_of_other_vocabularies_is_refused(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(small)
    other = tmp_path / "b"
    shutil.copytree(small / "b", other)
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    tokenizer["added_tokens"].append({**tokenizer["added_tokens"][0], "id": 9999, "content": "<new>"})
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    file = tmp_path / "config.yml"
    text = f"{{merge_method: linear, models: [{{model: a}}, {{model: {other}}}], parameters: {{weight: 1}}, KEYS}}"
    file.write_text(text.replace("KEYS", "tokenizer_source: union"))
    with pytest.raises(RecipeError, match="has another vocabulary than a is not supported; write base") as caught:
        read(file)
    assert caught.value.code == UNSUPPORTED


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("{merge_method: passthrough, slices: []}", "mergekit-yaml"),
        ("merge_method: linear\n---\nmerge_method: slerp\n", "a file of its own"),
    ],
)
def test_what_mergekit_does_otherwise_is_named(parse: Parse, text: str, names: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse(text)
    assert caught.value.code == UNSUPPORTED
    assert names in caught.value.hint
