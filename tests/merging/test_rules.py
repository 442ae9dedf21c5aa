"""The rules on a slice, and the numbers that reach them: what is refused, and what a setting means."""

import itertools
import math
from collections.abc import Generator
from typing import Any

import pytest
import reference
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mooring.errors import UserError
from mooring.merge_methods import METHODS, method_named
from mooring.merging.job import Options, options_of, options_to_json, tensor_params
from mooring.merging.methods import FORMULAS
from mooring.merging.pair import OutputTensor
from mooring.merging.plan import TensorParams
from mooring.merging.run_job import make_job
from mooring.merging.sparse import add_up, elect
from mooring.merging.tensor_value import TensorValue

DTYPES = [torch.bfloat16, torch.float16, torch.float32, torch.float64]
ARITHMETIC = 4 * 2.0**-24
"""Relative error that float32 arithmetic may bring before the one rounding."""
NAMES = ("model.embed_tokens.weight", "model.layers.0.mlp.up.weight", "model.layers.1.mlp.up.weight", "lm_head.weight")


def tensor(seed: int, dtype: torch.dtype, scale: float) -> Tensor:
    return (torch.randn(257, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale).to(dtype)


def made_sites(
    method: str, lam: Any = 0.5, models: int = 1, *, notes: Any = None, **given: Any
) -> dict[str, TensorParams]:
    """The sites of a small model, and of a tensor of whole numbers, which has none."""
    options = options_of(method, lam, **given)
    targets = {name: OutputTensor(name, torch.bfloat16, (4, 4), 16, (name,) * 2, 0, "f") for name in NAMES}
    targets["steps"] = OutputTensor("steps", torch.int64, (4,), 4, ("steps",) * 2, 0, "f")
    return tensor_params(method, options, targets, models, [options.lam], notes or (lambda name, sentence: None))


def applied(method: str, base: Tensor, tuned: list[Tensor], lam: float, **options: Any) -> Tensor:
    """A method without passes, on a whole tensor."""
    target = {"w": OutputTensor("w", base.dtype, tuple(base.shape), base.numel(), ("w",) * 2, 0, "f")}
    whole = {"density": 1.0} if METHODS[method].kind else {}
    given = options_of(method, lam, **(whole | options))
    site = tensor_params(method, given, target, len(tuned), [given.lam], lambda name, sentence: None)["w"]
    plan = FORMULAS[method](site, len(tuned))
    if isinstance(plan, Generator):
        with pytest.raises(StopIteration) as end:
            next(plan)
        plan = end.value.value
    return plan(0, base, tuned, 0).to(base.dtype).clone()


@given(
    seeds=st.tuples(st.integers(0, 99), st.integers(100, 199)),
    dtypes=st.tuples(st.sampled_from(DTYPES), st.sampled_from(DTYPES)),
    lam=st.floats(0, 1),
    scale=st.sampled_from([1e-3, 1.0, 50.0]),
    method=st.sampled_from(["linear", "task_arithmetic", "dare_linear", "ties"]),
)
def test_types_may_differ(
    seeds: tuple[int, int], dtypes: tuple[torch.dtype, torch.dtype], lam: float, scale: float, method: str
) -> None:
    base, tuned = tensor(seeds[0], dtypes[0], scale), tensor(seeds[1], dtypes[1], scale)
    exact = (1 - lam) * base.double() + lam * tuned.double()
    info = torch.finfo(base.dtype)
    size = base.double().abs() + tuned.double().abs()
    # half a unit in the last place for the one rounding, and what float32 arithmetic may add
    bound = exact.abs() * info.eps / 2 + info.tiny * info.eps + size * ARITHMETIC
    assert ((applied(method, base, [tuned], lam).double() - exact).abs() <= bound).all()


@pytest.mark.parametrize("lam", [0.2002, 0.8004])
def test_lambda_is_not_rounded_to_the_storage_type(lam: float) -> None:
    """bfloat16 has 0.2002 as 0.2002 ± 0.0005: 200.25 would become 200.0 or 201.0."""
    base, tuned = torch.zeros(1, dtype=torch.bfloat16), torch.full((1,), 1000.0, dtype=torch.bfloat16)
    for method in ("linear", "task_arithmetic", "ties", "dare_linear"):
        assert applied(method, base, [tuned], lam) == torch.tensor(1000 * lam).to(torch.bfloat16)
        assert applied(method, base.float(), [tuned.float()], lam).item() == pytest.approx(1000 * lam, rel=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("weights", [None, [1.0, 0.0]])
def test_ends_are_exact(dtype: torch.dtype, weights: list[float] | None) -> None:
    base, tuned = tensor(0, dtype, 1.0), tensor(1, dtype, 1.0)
    base[0], tuned[1] = -0.0, -0.0
    models = [tuned] if weights is None else [tuned, base + 1]
    for lam, end in ((0, base), (1, tuned)):
        found = applied("linear", base, models, lam, weights=weights)
        assert torch.equal(found.view(torch.uint8), end.view(torch.uint8))


@given(
    lam=st.floats(-2, 2),
    weights=st.lists(st.floats(-2, 2), min_size=1, max_size=3),
    dtype=st.sampled_from(DTYPES),
    method=st.sampled_from(["task_arithmetic", "ties", "dare_ties", "dare_linear", "breadcrumbs"]),
)
def test_what_did_not_change_stays(lam: float, weights: list[float], dtype: torch.dtype, method: str) -> None:
    """To the bit: −0 too, whatever the signs of λ and the weights, beside entries that do change."""
    base = tensor(3, dtype, 1.0)
    base[:20], base[20:40] = -0.0, 0.0
    tuned = [base.clone() for _ in weights]
    for model in tuned:
        model[200:] += 1
    found = applied(method, base, tuned, lam, weights=weights)
    assert torch.equal(found[:200].view(torch.uint8), base[:200].view(torch.uint8))


def test_a_large_extrapolation_is_not_refused() -> None:
    assert applied("task_arithmetic", torch.ones(2), [torch.full((2,), 3.0)], -1.5).tolist() == [-2.0, -2.0]


# TIES's election.

VOTES = [-2.0, -1.0, 0.0, 1.0, 2.0]


@pytest.mark.parametrize(
    "weights", [(1.0, 1.0, 1.0), (0.5, 2.0, 1.0), (1.0, -1.0, 0.5), (0.1, 0.2, -0.3), (0.0, 1.0, 1.0), (0.0, 0.0, 0.0)]
)
@pytest.mark.parametrize("normalize", [True, False])
def test_every_election_of_three(weights: tuple[float, ...], normalize: bool) -> None:
    cases = list(itertools.product(VOTES, repeat=3))
    found = elect([torch.tensor(column) for column in zip(*cases, strict=True)], weights, normalize)
    for case, result in zip(cases, found.tolist(), strict=True):
        votes = [w * d for w, d in zip(weights, case, strict=True)]
        if 0 < abs(sum(votes)) < 1e-9:  # 0 but for rounding, which may fall to either side
            continue
        positive = sum(votes) >= 0
        agree = [i for i, vote in enumerate(votes) if (vote > 0 if positive else vote < 0)]
        expected = sum(votes[i] for i in agree)
        if normalize:
            expected /= round(sum(weights[i] for i in agree), 9) or 1.0
        assert result == pytest.approx(expected), case


@pytest.mark.parametrize("weight", [1.0, 0.3, -0.7, 0.0])
@pytest.mark.parametrize("normalize", [True, False])
def test_elect_with_a_single_change(weight: float, normalize: bool) -> None:
    change = torch.tensor([-1.5, 0.0, 2.0])
    factor = (1.0 if weight else 0.0) if normalize else weight
    assert elect([change.clone()], [weight], normalize).tolist() == pytest.approx((change * factor).tolist())


def test_adding_up() -> None:
    changes = torch.tensor([1.0, -2.0]), torch.tensor([3.0, 0.5])
    assert add_up([c.clone() for c in changes], [0.5, 1.5], False).tolist() == [5.0, -0.25]
    assert add_up([c.clone() for c in changes], [0.5, 1.5], True).tolist() == [2.5, -0.125]
    assert add_up([c.clone() for c in changes], [1.0, -1.0], True).tolist() == [-2.0, -2.5]  # divides by no zero


def test_linear_with_several_models_and_a_weight_for_the_base() -> None:
    base, one, other = torch.zeros(1), torch.ones(1), torch.full((1,), 10.0)
    assert applied("linear", base, [one, other], 0.5).item() == 2.75
    assert applied("linear", base, [one, other], 0.5, weights=[3, 1]).item() == 0.5 * (0.75 + 2.5)
    assert applied("linear", base + 4, [one, other], 0.5, weights=[3, 1], base_weight=4).item() == 29 / 8
    assert applied("linear", base + 4, [one, other], 0.5, weights=[3, 1], base_weight=4, normalize=False).item() == 29


# Options and sites.


def test_every_method_has_its_defaults() -> None:
    assert set(METHODS) == {
        *("linear", "slerp", "task_arithmetic", "lines", "model_stock", "karcher"),
        *reference.KINDS,
        *("nuslerp", "multislerp", "nearswap", "sce", "arcee_fusion"),
        *("chat_vector", "resta", "lox", "lssf", "safe_lora", "safe_merge", "intruders"),
    }
    for name, method in METHODS.items():
        assert method.options.get("normalize", False) == (name in {*reference.NORMALIZED, "linear", "multislerp"})
        assert (method.options.get("rescale") == "inverse") == (name in {*reference.RESCALED, "resta"})


@pytest.mark.parametrize("name", ["magic", "", "Linear"])
def test_unknown_method(name: str) -> None:
    with pytest.raises(UserError) as caught:
        method_named(name)
    assert caught.value.code == "usage.unknown_method"


def test_every_method_has_an_implementation() -> None:
    assert list(FORMULAS) == list(METHODS)


@pytest.mark.parametrize(
    ("method", "options", "code"),
    [
        ("linear", {"density": 0.5}, "usage.unknown_option"),
        ("slerp", {"weights": [1.0]}, "usage.unknown_option"),
        ("ties", {"seed": 1}, "usage.unknown_option"),
        ("ties", {"densty": 0.5}, "usage.unknown_option"),
        ("task_arithmetic", {"base_weight": 1}, "usage.unknown_option"),
        ("karcher", {"normalize": True}, "usage.unknown_option"),
        ("dare_linear", {"rescale": "l2"}, "usage.bad_option"),
        ("dare_linear", {"rescale": True}, "usage.bad_option"),
        ("ties", {"normalize": "no"}, "usage.bad_option"),
        ("dare_ties", {"seed": 1.5}, "usage.bad_option"),
        ("dare_ties", {"seed": True}, "usage.bad_option"),
        ("ties", {"density": "half"}, "usage.bad_number"),
        ("ties", {"density": [0.5, math.nan]}, "usage.bad_number"),
        ("ties", {"weights": [[0.1, 0.2], True]}, "usage.bad_number"),
    ],
)
def test_invalid_options(method: str, options: dict[str, Any], code: str) -> None:
    with pytest.raises(UserError) as caught:
        options_of(method, 0.5, **options)
    assert caught.value.code == code


def test_a_method_that_drops_drops_something_by_default() -> None:
    for name, method in METHODS.items():
        if method.kind and name != "resta":  # whose paper adds the safety vector with and without DARE
            assert 0 < method.options["density"] < 1, name
            assert options_to_json(name, options_of(name, 0.5))["density"] == [method.options["density"]]


@pytest.mark.parametrize(
    ("method", "models", "density", "refused"),
    [
        ("dare_linear", 1, 1.0, True),
        ("dare_linear", 3, [1, 1.0, 1.0], True),
        ("dare_linear", 2, [1.0, 0.9], False),
        ("ties", 1, 1.0, True),
        ("ties", 2, 1.0, False),  # it elects signs
        ("dare_ties", 2, 1.0, False),
        ("breadcrumbs", 2, 1.0, True),
        ("della_linear", 1, (0.5, 1.0), False),
        ("dare_linear", 1, None, False),
    ],
)
def test_a_density_that_drops_nothing_is_refused(method: str, models: int, density: Any, refused: bool) -> None:
    tuned = [f"t{number}" for number in range(models)]
    if not refused:
        make_job("b", tuned, 0.5, method=method, density=density)
        return
    with pytest.raises(UserError) as caught:
        make_job("b", tuned, 0.5, method=method, density=density)
    assert caught.value.code == "usage.drops_nothing"
    assert "task_arithmetic" in caught.value.hint


OUT, LAMBDA, UNMATCHED = "usage.option_out_of_range", "usage.lambda_out_of_range", "usage.pattern_matches_nothing"


@pytest.mark.parametrize(
    ("method", "models", "options", "code"),
    [
        ("linear", 1, {"lam": -0.01}, LAMBDA),
        ("slerp", 1, {"lam": 1.01}, LAMBDA),
        ("karcher", 2, {"lam": {"*.mlp.*": 2, "*": 0.5}}, LAMBDA),
        ("model_stock", 2, {"lam": (0.0, 1.5)}, LAMBDA),
        ("slerp", 2, {}, "usage.too_many_models"),
        ("model_stock", 1, {}, "usage.too_few_models"),
        ("ties", 3, {"weights": [1, 2]}, "usage.wrong_number_of_values"),
        ("ties", 1, {"density": [0.5, 0.6]}, "usage.wrong_number_of_values"),
        ("ties", 1, {"density": 1.1}, OUT),
        ("ties", 1, {"density": -0.1}, OUT),
        ("breadcrumbs", 2, {"gamma": [0.1, 1.2]}, OUT),
        ("della", 1, {"density": 0.1}, OUT),
        ("della", 1, {"density": 0.9, "epsilon": 0.1}, OUT),
        ("della_linear", 1, {"density": 0.5, "epsilon": -0.1}, OUT),
        ("linear", 2, {"weights": [1, -1]}, OUT),
        ("linear", 1, {"base_weight": -1}, OUT),
        ("karcher", 1, {"base_weight": 0, "weights": [0]}, OUT),
        ("karcher", 2, {"weights": [2, -1]}, OUT),
        ("karcher", 1, {"base_weight": -0.5}, OUT),
        ("linear", 1, {"normalize": False}, OUT),
        ("sce", 2, {"density": [0.5, 0.6]}, OUT),
        ("nearswap", 1, {"threshold": -0.001}, OUT),
        ("nearswap", 1, {"threshold": 1.001}, OUT),
        ("intruders", 1, {"rank": -1}, OUT),
        ("intruders", 1, {"threshold": -1.001}, OUT),
        ("ties", 1, {"density": {"layers.{0-9}.mpl.*": 0.5, "*": 1}}, UNMATCHED),
        ("linear", 1, {"lam": {"visual.*": 0.5, "*": 0.1}}, UNMATCHED),
        ("linear", 1, {"base_weight": {"visual.*": 1, "*": 1}}, UNMATCHED),
        ("linear", 1, {"lam": {"layers.*": 0.5}}, "usage.no_pattern_matches"),
    ],
)
def test_numbers_out_of_range(method: str, models: int, options: dict[str, Any], code: str) -> None:
    with pytest.raises(UserError) as caught:
        made_sites(method, options.pop("lam", 0.5), models, **options)
    assert caught.value.code == code
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("lam", [math.nan, math.inf, None])
def test_no_lambda(lam: float | None) -> None:
    for method in METHODS:
        if lam is not None or method != "model_stock":  # which needs none
            with pytest.raises(UserError):
                options_of(method, lam)
    assert options_of("model_stock").lam.constant == 1.0


def test_what_is_not_refused() -> None:
    made_sites("task_arithmetic", -3.0)
    made_sites("ties", 5.0, density=0.0)
    made_sites("della", 0.5, density=1.0)  # nothing is dropped, so ε does not matter
    made_sites("della", 0.5, density=0.5, epsilon=0.0)
    made_sites("karcher", 0.5, weights=[0], base_weight=1)
    made_sites("linear", 0.5, 2, weights=[2, -1])
    made_sites("linear", 0.5, 2, weights=[1, -1], base_weight=1, normalize=False)  # nothing is divided by the sum
    made_sites("task_arithmetic", 0.5, 2, weights=[1, -1])
    made_sites("sce", 0.5, 2, density=[0.5, 0.5])
    made_sites("nearswap", 0.5, threshold=0)
    made_sites("intruders", 0.5, rank=0, threshold=-1)
    made_sites("intruders", 0.5, rank=1, threshold=1)
    made_sites("breadcrumbs", 0.5, density=[0.0], gamma=[1.0])


def test_sites_have_their_own_numbers() -> None:
    notes: list[tuple[str, str]] = []
    found = made_sites(
        "breadcrumbs_ties",
        (0.2, 0.8),
        2,
        notes=lambda name, sentence: notes.append((name, sentence)),
        density={"*.mlp.*": 0.3, "*": 0.9},
        gamma=[0.1, 0.2],
    )
    assert list(found) == list(NAMES)  # not the whole numbers
    assert [s.lams for s in found.values()] == [(0.2,), (0.2,), (0.8,), (0.8,)]
    assert [s.density for s in found.values()] == [(0.9, 0.9), (0.3, 0.3), (0.3, 0.3), (0.9, 0.9)]
    assert {(s.gamma, s.epsilon, s.weights, s.seed) for s in found.values()} == {((0.1, 0.2), (0.0, 0.0), (), 0)}
    assert {(s.normalize, s.rescale, s.numel) for s in found.values()} == {(False, "none", 16)}
    found["lm_head.weight"].note("so")
    assert notes == [("lm_head.weight", "so")]


def test_lines_ramps_up_to_one_number() -> None:
    assert options_of("lines", 0.6).lam == TensorValue.of((0.0, 0.6))
    assert options_of("lines", (0.1, 0.6)).lam == TensorValue.of((0.1, 0.6))
    assert options_of("lines", 0).lam.constant == 0


def test_options_as_plain_values() -> None:
    assert options_to_json("linear", options_of("linear", 0.5)) == {"normalize": True}
    assert options_to_json("slerp", Options(lam=TensorValue.of(0.5), seed=7)) == {}
    given = options_of("della", 0.5, weights=[1, (0.1, 0.2)], density=0.5, seed=7)
    assert options_to_json("della", given) == {
        "density": [0.5],
        "epsilon": [0.15],
        "normalize": True,
        "rescale": "inverse",
        "seed": 7,
        "weights": [1.0, [0.1, 0.2]],
    }
