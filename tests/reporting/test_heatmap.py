"""The heat map: what is drawn, and that the same numbers give the same bytes."""

import itertools
import math
from pathlib import Path

import pytest

from mooring.errors import UserError
from mooring.merging.change import Change
from mooring.pipeline.changes import layer_changes
from mooring.reporting.heatmap import TITLE, Heatmap, draw, scale, write
from mooring.reporting.results import Changes

KINDS = ("input_layernorm", "self_attn.q_proj", "mlp.up_proj")


def change(name: str, relative: float) -> Change:
    return Change(name=name, shape=(8, 8), base_square=1.0, change_square=relative**2, along=0.0)


def changes(layers: int, kinds: tuple[str, ...] = KINDS) -> Changes:
    inside = [
        change(f"model.layers.{n}.{kind}.weight", 0.001 * (n + 1) * place)
        for n in range(layers)
        for place, kind in enumerate(kinds)
    ]
    return layer_changes([change("model.embed_tokens.weight", 0.02), *inside, change("lm_head.weight", 0.0)])


def heatmap(*found: Change) -> Heatmap:
    return Heatmap.of(layer_changes(found))


def test_rows_are_modules_and_columns_layers() -> None:
    found = Heatmap.of(changes(12))
    assert (found.modules, list(found.layers)) == (list(KINDS), [str(n) for n in range(12)])
    assert found.rows[0] == [0.0] * 12
    assert found.rows[2] == pytest.approx([0.002 * (n + 1) for n in range(12)])


def test_layers_that_differ() -> None:
    found = heatmap(change("h.0.a.weight", 0.1), change("h.0.b.weight", 0.2), change("h.1.b.weight", 0.3))
    assert (found.modules, list(found.layers)) == (["a", "b"], ["0", "1"])
    assert found.rows[0] == [pytest.approx(0.1), None]


def test_two_stacks_and_experts() -> None:
    names = ["encoder.layers.0.x.weight", "decoder.layers.0.x.weight"]
    found = heatmap(*(change(name, 0.1) for name in names))
    assert list(found.layers) == ["decoder.layers.0", "encoder.layers.0"]
    assert [label.get_text() for label in draw(found).axes[0].get_xticklabels()] == list(found.layers)
    experts = heatmap(*(change(f"model.layers.0.mlp.experts.{n}.up.weight", 0.1 * n) for n in range(3)))
    assert experts.modules == ["mlp.experts.*.up"]
    assert experts.rows[0][0] == pytest.approx(math.sqrt((0.01 + 0.04) / 3), rel=1e-4)


@pytest.mark.parametrize(("layers", "step"), [(2, 1), (30, 5), (80, 5), (200, 5)])
def test_what_is_drawn(layers: int, step: int) -> None:
    figure = draw(Heatmap.of(changes(layers)))
    grid, strip, _bar = figure.axes
    assert figure.get_suptitle() == TITLE
    assert [label.get_text() for label in grid.get_yticklabels()] == list(KINDS)
    assert [label.get_text() for label in grid.get_xticklabels()] == [str(n) for n in range(0, layers, step)]
    assert grid.images[0].get_array().shape == (len(KINDS), layers)
    assert grid.images[0].get_array().mask[0].all()  # unchanged: the ground shows
    assert [label.get_text() for label in strip.get_yticklabels()] == ["embed_tokens", "lm_head"]
    assert [text.get_text() for text in strip.texts] == ["2 %", "0 %"]


def test_labels_do_not_overlap_on_eighty_layers_by_nine_modules() -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure = draw(Heatmap.of(changes(80, tuple(f"self_attn.some_projection_{n}" for n in range(9)))))
    FigureCanvasAgg(figure).draw()
    for labels, start, stop in (
        (figure.axes[0].get_xticklabels(), "x0", "x1"),
        (figure.axes[0].get_yticklabels()[::-1], "y0", "y1"),
    ):
        boxes = [label.get_window_extent() for label in labels]
        assert all(getattr(a, stop) < getattr(b, start) for a, b in itertools.pairwise(boxes))


def test_models_without_layers_or_with_nothing_else() -> None:
    outside = draw(heatmap(*(change(f"odd.{chr(97 + n)}", 0.01 * n) for n in range(20)))).axes[0]
    assert len(outside.get_yticklabels()) == 12  # those that changed most
    assert outside.get_yticklabels()[0].get_text() == "odd.t"
    assert len(draw(heatmap(change("model.layers.0.x", 0.1))).axes) == 2  # the grid and the colours


def test_scale() -> None:
    from matplotlib.colors import LogNorm

    assert not isinstance(scale([0.1, 0.2, 0.0]), LogNorm)
    wide = scale([1e-9, 0.1, None])
    assert isinstance(wide, LogNorm)
    assert (wide.vmin, wide.vmax) == (pytest.approx(1e-5), 0.1)


def test_the_same_numbers_give_the_same_bytes(tmp_path: Path) -> None:
    first, second = (write(changes(3), tmp_path / name).read_bytes() for name in ("a.png", "b.PNG"))
    assert first == second
    assert first.startswith(b"\x89PNG")


def test_a_tensor_that_was_zero_is_drawn(tmp_path: Path) -> None:
    zero = Change(name="model.norm.weight", shape=(8,), base_square=0.0, change_square=1.0, along=0.0)
    figure = draw(heatmap(zero, change("model.layers.0.x.weight", 0.1)))
    assert figure.axes[1].texts[0].get_text() == "from zero"
    assert write(layer_changes([zero]), tmp_path / "zero.png").is_file()


def test_another_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        write(changes(2), tmp_path / "change.svg")
    assert caught.value.code == "usage.not_png"
    assert not list(tmp_path.iterdir())
