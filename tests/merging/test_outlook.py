"""What each method would do, against merges made in float64."""

import math

import pytest
import torch
from torch import Tensor

from mooring.merging.change import Change
from mooring.merging.inspect import Outlook, arc, outlook
from mooring.merging.measure import Extent, measure

NAMES = ("model.embed_tokens.weight", "model.layers.0.up.weight", "model.layers.1.up.weight", "model.norm.weight")


def models(change: float = 0.2) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    random = torch.Generator().manual_seed(0)
    base = {name: torch.randn(60, 50, generator=random).double() for name in NAMES}
    tuned = {
        n: v + change * (i + 1) * torch.randn(60, 50, generator=random).double()
        for i, (n, v) in enumerate(base.items())
    }
    return base, tuned


def measured(base: dict[str, Tensor], tuned: dict[str, Tensor]) -> tuple[Change, ...]:
    extents = {name: Extent(name, value.dtype, tuple(value.shape)) for name, value in base.items()}
    slices = lambda p, _: tuple(m[p.name].flatten()[p.start : p.stop] for m in (base, tuned))  # noqa: E731
    return measure(extents, slices).changes


def found(lam: float, change: float = 0.2) -> dict[str, Outlook]:
    return {o.methods[0]: o for o in outlook(measured(*models(change)), lam)}


def distances(merged: dict[str, Tensor], change: float = 0.2) -> tuple[float, float]:
    """‖merged − base‖ and ‖merged − tuned‖, in ‖δ‖."""
    base, tuned = models(change)
    flat = [torch.cat([model[name].flatten() for name in NAMES]) for model in (merged, base, tuned)]
    whole = (flat[2] - flat[1]).norm()
    return tuple(((flat[0] - other).norm() / whole).item() for other in flat[1:])  # type: ignore[return-value]


def slerp(a: Tensor, b: Tensor, lam: float) -> Tensor:
    angle = math.acos((a.flatten() @ b.flatten() / a.norm() / b.norm()).item())
    return (math.sin((1 - lam) * angle) * a + math.sin(lam * angle) * b) / math.sin(angle)


@pytest.mark.parametrize("lam", [0.0, 0.3, 0.5, 1.0])
def test_distances_are_those_of_the_merged_model(lam: float) -> None:
    base, tuned = models()
    depth = dict(zip(NAMES, (0.0, 0.0, 1.0, 1.0), strict=True))
    dense = {
        "linear": {n: (1 - lam) * base[n] + lam * tuned[n] for n in NAMES},
        "slerp": {n: slerp(base[n], tuned[n], lam) for n in NAMES},
        "karcher": {
            n: ((1 - lam) * base[n].norm() + lam * tuned[n].norm())
            * slerp(base[n] / base[n].norm(), tuned[n] / tuned[n].norm(), lam)
            for n in NAMES
        },
        "lines": {n: base[n] + lam * depth[n] * (tuned[n] - base[n]) for n in NAMES},
    }
    for method, merged in dense.items():
        said = found(lam)[method]
        assert (said.from_base, said.from_tuned) == pytest.approx(distances(merged), abs=1e-7), method


def kept(delta: Tensor, first: int, count: int) -> Tensor:
    order = delta.flatten().abs().argsort(descending=True)[first : first + count]
    mask = torch.zeros(delta.numel(), dtype=torch.bool)
    mask[order] = True
    return delta * mask.view(delta.shape)


@pytest.mark.parametrize(("method", "first"), [("ties", 0), ("breadcrumbs", 30)])
def test_methods_that_rank_are_about_right(method: str, first: int) -> None:
    base, tuned = models()
    merged = {n: base[n] + 0.5 * kept(tuned[n] - base[n], first, 1500) for n in NAMES}
    said = found(0.5)[method]
    assert (said.from_base, said.from_tuned) == pytest.approx(distances(merged), rel=0.02)


def test_methods_that_draw_are_right_in_expectation() -> None:
    base, tuned = models()
    random = torch.Generator().manual_seed(3)
    dare, della = {}, {}
    for name in NAMES:
        delta = tuned[name] - base[name]
        dare[name] = base[name] + 0.5 * 2 * delta * (torch.rand(delta.shape, generator=random) < 0.5)
        rank = delta.flatten().abs().argsort().argsort().view(delta.shape).double() / (delta.numel() - 1)
        chance = 0.35 + 0.3 * rank
        della[name] = base[name] + 0.5 * delta / chance * (torch.rand(delta.shape, generator=random) < chance)
    for method, merged in (("dare_linear", dare), ("della", della)):
        said = found(0.5)[method]
        assert (said.from_base, said.from_tuned) == pytest.approx(distances(merged), rel=0.03)


def test_dare_says_how_much_noise() -> None:
    assert "noise of 0.30 ‖δ‖" in found(0.3)["dare_linear"].remark
    assert found(0.3)["dare_linear"].from_base == pytest.approx(0.3 * math.sqrt(2))


@pytest.mark.parametrize("angle", [1e-12, 1e-6, 0.01, 1.0, 3.0])
def test_arc_does_not_cancel(angle: float) -> None:
    excess, weight = arc(angle, 0.3)
    if angle >= 0.01:
        exact = (math.sin(0.7 * angle) + math.sin(0.3 * angle)) / math.sin(angle) - 1
        assert excess == pytest.approx(exact, rel=1e-9)
    else:
        assert excess == pytest.approx(0.3 * 0.7 * angle**2 / 2, rel=1e-6)
    assert weight == pytest.approx(math.sin(0.3 * angle) / math.sin(angle))


def test_slerp_remark_names_the_largest_angle() -> None:
    remark = found(0.5, change=1e-6)["slerp"].remark
    assert "model.norm.weight" in remark
    assert float(remark.split()[0]) < 1e-6
    assert float(found(0.5, change=0.5)["slerp"].remark.split()[0]) > 0.05


def test_model_stock_wants_two() -> None:
    said = found(0.5)["model_stock"]
    assert (said.from_base, said.from_tuned) == (None, None)
    assert "two tuned models" in said.remark


def test_unchanged_and_integer_tensors_have_no_outlook() -> None:
    base = {"x": torch.ones(4)}
    assert outlook(measured(base, base), 0.5) == ()
    base = {"x": torch.arange(4)}
    assert outlook(measured(base, {"x": torch.arange(4) + 1}), 0.5) == ()


def test_every_method_has_an_outlook() -> None:
    from mooring.merge_methods import METHODS

    assert {name for o in outlook(measured(*models()), 0.5) for name in o.methods} == set(METHODS)
