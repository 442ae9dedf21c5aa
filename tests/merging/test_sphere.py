"""Angles, SLERP, Model Stock and the Karcher mean: from Gram matrices, against extended precision on whole vectors."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mooring.merging import sphere
from mooring.merging.dense import gram_matrices, sphere_pair

Array = np.ndarray[Any, Any]


def gram(base: Array, *tuned: Array) -> Array:
    """Inner products of base, tuned₁ − base …"""
    flat = [torch.as_tensor(vector) for vector in (base, *tuned)]
    return np.asarray(gram_matrices(0, flat[0], flat[1:]).sum(axis=0))


def at_angle(angle: float, size: float = 1.0, ratio: float = 1.0, dim: int = 50) -> tuple[Array, Array]:
    """Two vectors that far apart."""
    rng = np.random.default_rng(0)
    first, second = np.linalg.qr(rng.normal(size=(dim, 2)))[0].T
    return size * first, size * ratio * (math.cos(angle) * first + math.sin(angle) * second)


@pytest.mark.parametrize("angle", [1e-9, 1e-7, 1e-5, 1e-3, 0.1, 1.0, math.pi / 2, 2.0, 3.0, math.pi - 1e-3])
@pytest.mark.parametrize("size", [1e-6, 1.0, 1e5])
@pytest.mark.parametrize("ratio", [1.0, 0.5, 3.0])
def test_angle(angle: float, size: float, ratio: float) -> None:
    base, tuned = at_angle(angle, size, ratio)
    found, reason = sphere.angle(gram(base, tuned))
    assert reason is None
    exact = float(reference.arc(base, tuned))  # what rounding the vectors to float64 left of the angle
    # a change of length beside a small change of direction leaves rounding of the former in the latter
    floor = 2e-8 if ratio != 1 else 1e-16
    assert found == pytest.approx(exact, rel=1e-6, abs=floor)


@pytest.mark.parametrize("lam", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("angle", [1e-9, 1e-7, 1e-5, 1e-3, 0.031, 0.1, 1.0, 2.0, 3.0, math.pi - 1e-2])
def test_slerp_is_the_formula_at_any_angle(angle: float, lam: float) -> None:
    """0.031 is about where mergekit turns to Linear (cosine 0.9995); there is no such place here."""
    base, tuned = at_angle(angle, 2.0, 1.3)
    found, _ = sphere.angle(gram(base, tuned))
    pair = sphere_pair(lam, found)
    own, (other,) = reference.slerp_pair(base, tuned, lam)
    result, expected = pair.base * base + pair.tuned[0] * tuned, own * base + other * tuned
    assert np.abs(result - expected).max() < 1e-12 * np.abs(expected).max() / math.sin(angle) ** (angle > 1)
    theta = math.acos(max(-1, min(1, float(base @ tuned / np.linalg.norm(base) / np.linalg.norm(tuned)))))
    if theta > 0.031:  # the formula from the cosine, as mergekit has it, is exact enough there
        plain = (math.sin((1 - lam) * theta) * base + math.sin(lam * theta) * tuned) / math.sin(theta)
        assert np.abs(result - plain).max() < 1e-9


def test_slerp_of_unit_vectors_stays_on_the_sphere_at_even_speed() -> None:
    base, tuned = at_angle(1.2)
    pair = sphere_pair(0.25, sphere.angle(gram(base, tuned))[0])
    result = pair.base * base + pair.tuned[0] * tuned
    assert np.linalg.norm(result) == pytest.approx(1, abs=1e-12)
    assert float(reference.arc(base, result)) == pytest.approx(0.3, abs=1e-12)
    assert float(reference.arc(result, tuned)) == pytest.approx(0.9, abs=1e-12)


@pytest.mark.parametrize(
    ("base", "tuned", "words"),
    [
        (np.zeros(3), np.ones(3), "base tensor is zero"),
        (np.ones(3), np.zeros(3), "tuned tensor is zero"),
        (np.ones(3), -np.ones(3), "opposite"),
        (np.ones(3), -2.5 * np.ones(3), "opposite"),
    ],
)
def test_no_angle(base: Array, tuned: Array, words: str) -> None:
    found, reason = sphere.angle(gram(base, tuned))
    assert found is None
    assert words in str(reason)
    assert sphere_pair(0.3, found).base == 0.7
    assert sphere_pair(0.3, found).tuned == (0.3,)


def test_equal_tensors_have_the_angle_zero() -> None:
    assert sphere.angle(gram(np.ones(5), np.ones(5))) == (0.0, None)
    found, _ = sphere.angle(gram(np.ones(5), 3 * np.ones(5)))  # one length changed
    assert found == pytest.approx(0, abs=1e-7)


# Model Stock.


def changes_at(cosine: float, count: int) -> list[Array]:
    """Unit vectors with the same cosine between any two."""
    wanted = np.full((count, count), cosine) + (1 - cosine) * np.eye(count)
    values, vectors = np.linalg.eigh(wanted)
    return list(vectors * np.sqrt(np.maximum(values, 0)) @ np.eye(count))


@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize("cosine", [0.0, 0.2, 0.5, 0.99, 1.0])
def test_model_stock_ratio(cosine: float, count: int) -> None:
    lengths = np.arange(1, count + 1)
    vectors = np.array([c * n for c, n in zip(changes_at(cosine, count), lengths, strict=True)])
    ratio, reason = sphere.model_stock_ratio(vectors @ vectors.T)
    assert ratio == pytest.approx(count * cosine / (1 + (count - 1) * cosine), abs=1e-7)
    assert ratio <= 1
    assert reason is None or cosine == 0  # rounding may bring a mean cosine of 0 below it


@pytest.mark.parametrize(
    ("vectors", "expected", "words"),
    [
        ([[1.0, 0.0], [-0.3, 1.0]], 0.0, "clamped to 0"),
        ([[1.0, 0.0], [-1.0, 0.0]], 0.0, "the base"),
        ([[1.0, 0.0], [0.0, 0.0]], 0.0, "did not change it"),
        ([[1.0, 0.0], [1.0, 0.0], [0.0, 0.0]], 0.6, "did not change it"),
    ],
)
def test_model_stock_says_what_it_decided(vectors: Sequence[Sequence[float]], expected: float, words: str) -> None:
    rows = np.array(vectors)
    ratio, reason = sphere.model_stock_ratio(rows @ rows.T)
    assert ratio == pytest.approx(expected)
    assert words in str(reason)


# The Karcher mean.


def combined(coefficients: Sequence[float], vectors: Sequence[Array]) -> Array:
    return np.asarray(sum(c * v for c, v in zip(coefficients, vectors, strict=True)))


@pytest.mark.parametrize("angle", [1e-9, 1e-4, 0.1, 1.0, 2.0, 3.0])
@pytest.mark.parametrize("lam", [0.2, 0.5])
@pytest.mark.parametrize("ratio", [1.0, 2.5])
def test_karcher_of_two_is_slerp_of_directions(angle: float, lam: float, ratio: float) -> None:
    base, tuned = at_angle(angle, 2.0, ratio)
    found, reason = sphere.karcher_coefficients(gram(base, tuned), [1 - lam, lam])
    assert reason is None
    first, second = (v / np.linalg.norm(v) for v in (base, tuned))
    own, (other,) = reference.slerp_pair(first, second, lam)
    expected = 2.0 * (1 - lam + lam * ratio) * (own * first + other * second)
    assert np.abs(combined(found, [base, tuned]) - expected).max() < 1e-10


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 2**32),
    count=st.integers(2, 5),
    dim=st.integers(2, 40),
    bias=st.sampled_from([0.0, 0.3, 1.0, 30.0, 1e5]),
    even=st.booleans(),
)
def test_the_gradient_is_zero_at_the_karcher_mean(seed: int, count: int, dim: int, bias: float, even: bool) -> None:
    """From nearly parallel vectors to widely spread ones; the norm is the weighted mean of norms."""
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(count, dim)) + bias * rng.normal(size=dim)
    vectors *= rng.uniform(0.3, 3, size=(count, 1))
    weights = np.full(count, 1 / count) if even else rng.dirichlet(np.full(count, 3.0))
    found, reason = sphere.karcher_coefficients(gram(vectors[0], *vectors[1:]), weights.tolist())
    units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    if reason:  # with more vectors than axes, they may lie all around
        assert "merged as linear" in reason
        assert found == weights.tolist()
        assert (units @ units.T).min() < 0
        return
    mean = combined(found, list(vectors))
    assert np.linalg.norm(mean) == pytest.approx(float(weights @ np.linalg.norm(vectors, axis=1)), rel=1e-9)
    mean = mean.astype(np.longdouble) / reference.length(mean)
    arcs = np.array([reference.arc(mean, u) for u in units])
    gradient = (weights * arcs / np.sin(arcs)) @ (units - np.cos(arcs)[:, None] * mean)
    assert reference.length(gradient) < 1e-6


def test_karcher_where_there_is_no_mean() -> None:
    ones = np.ones(4)
    found, reason = sphere.karcher_coefficients(gram(ones, -ones), [0.5, 0.5])
    assert found == [0.5, 0.5]
    assert "cancel" in str(reason)
    found, reason = sphere.karcher_coefficients(gram(ones, -ones), [0.25, 0.75])
    assert found == [0.25, 0.75]
    assert "opposite" in str(reason)
    found, reason = sphere.karcher_coefficients(gram(0 * ones, 0 * ones), [0.5, 0.5])
    assert found == [0.5, 0.5]
    assert "zero" in str(reason)


def test_karcher_without_what_is_zero_or_weighs_nothing() -> None:
    ones, other = np.ones(4), np.array([1.0, -1.0, 2.0, 0.5])
    found, reason = sphere.karcher_coefficients(gram(0 * ones, ones), [0.25, 0.75])
    assert (found, reason) == (pytest.approx([0, 0.75]), None)  # its norm counts, its direction does not
    assert sphere.karcher_coefficients(gram(ones, other), [0.0, 1.0]) == ([0.0, 1.0], None)
    assert sphere.karcher_coefficients(gram(0 * ones, other), [1.0, 0.0]) == ([1.0, 0.0], None)
    found, _ = sphere.karcher_coefficients(gram(ones, other, -other), [0.5, 0.5, 0.0])
    pair, _ = sphere.karcher_coefficients(gram(ones, other), [0.5, 0.5])
    assert found == pytest.approx([*pair, 0.0])
