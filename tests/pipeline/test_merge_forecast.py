"""What a merge would take, without doing it."""

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import mooring
from mooring.errors import UserError
from mooring.pipeline import merge_forecast


def model(folder: Path, seed: int) -> Path:
    """A folder with 3 tensors, 768 KiB in all."""
    torch.manual_seed(seed)
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    save_file({f"layers.{n}.w": torch.randn(256, 256) for n in range(3)}, folder / "model.safetensors")
    return folder


def test_it_measures_and_leaves_nothing(tmp_path: Path) -> None:
    base, tuned = model(tmp_path / "base", 1), model(tmp_path / "tuned", 2)
    found = mooring.plan_merge(base, tuned, out=tmp_path / "out", method="slerp", lambdas=[0.2, 0.4], threads=2)
    assert found.stages == [("merge", "slerp, 3 tensors of 2 models")]
    assert found.facts["reads"].startswith("1.5 MiB, at ")
    assert found.facts["writes"].startswith("1.5 MiB, at ")  # an output for each λ
    assert found.facts["merges"].endswith("with 2 at work")
    assert re.match(r"about \d+ s, ", found.facts["time"])
    assert found.disk == 2 * 768 * 2**10 + 64 * 2**20
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "tuned"]


def test_the_time_is_the_sum_of_what_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = 768 * 2**10
    for name, value in {"_read_speed": size, "_write_speed": size / 10, "_arithmetic": 60 / size}.items():
        monkeypatch.setattr(merge_forecast, name, lambda *_, value=value: value)
    base, tuned = model(tmp_path / "base", 1), model(tmp_path / "tuned", 2)
    found = mooring.plan_merge(base, tuned, out=tmp_path / "out", lam=0.4, threads=4)
    assert found.facts["time"].startswith("about 28 s")  # 2 to read, 60 / 4 to merge, 10 to write, 1 to read again


def test_what_a_merge_would_refuse_is_refused(tmp_path: Path) -> None:
    base, tuned = model(tmp_path / "base", 1), model(tmp_path / "tuned", 2)
    for out, options, code in (
        (tmp_path / "base" / "in", {}, "output.inside_input"),
        (tmp_path / "out", {"on": "ray"}, "usage.dry_run_merge"),
        (tmp_path / "out", {"as_adapter": True}, "usage.dry_run_merge"),
        (tmp_path / "out", {"method": "magic"}, "usage.unknown_method"),
    ):
        with pytest.raises(UserError) as caught:
            mooring.plan_merge(base, tuned, out=out, lam=0.4, **options)  # type: ignore[arg-type]
        assert caught.value.code == code


def test_where_nothing_can_be_written_is_refused(tmp_path: Path) -> None:
    base, tuned = model(tmp_path / "base", 1), model(tmp_path / "tuned", 2)
    (tmp_path / "file").touch()
    for out in ("/proc/self/x", "/proc/x/y", tmp_path / "file" / "x", f"/{'x' * 300}"):
        with pytest.raises(UserError) as caught:
            mooring.plan_merge(base, tuned, out=out, lam=0.4)
        assert caught.value.code.startswith("output."), out
