"""Merging in processes: the bytes of one process, and its errors."""

import functools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from mooring.errors import ModelError
from mooring.merging import merge as merging
from mooring.merging import processes
from mooring.merging.engine import Engine
from mooring.merging.job import Output
from mooring.merging.merge import merge
from quantized_tensors import Case
from quantized_tensors import write as write_case

Write = Callable[..., Path]


def tensors(seed: int) -> dict[str, torch.Tensor]:
    """Several tensors, one of them much larger than the others, and one without an angle."""
    torch.manual_seed(seed)
    drawn = {f"layers.{n}.w": torch.randn(40 + n, 64) for n in range(6)}
    return {"embed": torch.randn(600, 64).to(torch.bfloat16), **drawn, "zero": torch.zeros(8), "none": torch.zeros(0)}


@pytest.fixture
def several(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows of 16 KiB, and two processes whatever the size of the model and the threads of the tests."""
    monkeypatch.setattr("mooring.merging.engine.WINDOW", 2**14)
    monkeypatch.setattr(merging, "processes", lambda engine, threads: 2)


def content(folder: Path) -> dict[str, bytes]:
    """The bytes of a model's files."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("method", ["linear", "slerp", "ties", "dare_linear"])
@pytest.mark.usefixtures("several")
def test_processes_write_the_bytes_and_notes_of_one(
    tmp_path: Path, write: Write, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, tuned = write(tmp_path / "base", tensors(1), 2), write(tmp_path / "tuned", tensors(2))
    seen: list[int] = []
    for name in ("two", "one"):
        if name == "one":
            monkeypatch.setattr(merging, "processes", lambda engine, threads: 1)
        merge(base, tuned, tmp_path / name, method=method, lambdas=[0.3, 0.6], on_event=lambda e: seen.append(e.done))
    for lam in ("lam-0.3", "lam-0.6"):
        assert content(tmp_path / "two" / lam) == content(tmp_path / "one" / lam)
    whole = seen.index(max(seen))
    assert seen[: whole + 1] == sorted(seen[: whole + 1])
    assert seen[-1] == max(seen)


@pytest.mark.usefixtures("several")
def test_processes_requantize_as_one_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that are no multiple of what is hashed together, so that parts of a tensor are hashed across its pieces."""
    generator = torch.Generator().manual_seed(0)
    for name in ("base", "tuned"):
        stored: dict[str, torch.Tensor] = {"norm": torch.rand(640, generator=generator)}
        for layer in range(3):
            drawn = torch.randn(1300 + layer, 640, generator=generator) * 99
            stored |= {f"{layer}.weight": drawn.to(torch.float8_e4m3fn)}
            stored |= {f"{layer}.weight_scale_inv": torch.rand(11, 5, generator=generator)}
        settings = {"quant_method": "fp8", "weight_block_size": [128, 128]}
        write_case(tmp_path / name, Case(stored, settings, torch.empty(0)))
    for name in ("two", "one"):
        if name == "one":
            monkeypatch.setattr(merging, "processes", lambda engine, threads: 1)
        output = Output(keep_quantization=True)
        merge(tmp_path / "base", tmp_path / "tuned", tmp_path / name, lambdas=[0.3, 1], output=output)
    for lam in ("lam-0.3", "lam-1"):
        assert content(tmp_path / "two" / lam) == content(tmp_path / "one" / lam)
        assert '"requantized"' in (tmp_path / "two" / lam / "mooring.json").read_text()


@pytest.mark.usefixtures("several")
def test_an_error_of_a_process_is_that_of_the_merge(tmp_path: Path, write: Write) -> None:
    broken = tensors(2)
    broken["layers.4.w"][3, 3] = float("nan")
    base, tuned = write(tmp_path / "base", tensors(1)), write(tmp_path / "tuned", broken)
    with pytest.raises(ModelError) as caught:
        merge(base, tuned, tmp_path / "out", method="slerp", lam=0.5)
    assert caught.value.code == "model.nonfinite"
    assert "layers.4.w" in caught.value.message
    assert caught.value.hint
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "tuned"]


@pytest.mark.usefixtures("several")
def test_a_process_that_was_killed_ends_the_merge(
    tmp_path: Path, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    do = Engine.do

    def deadly(self: Engine, window: Any, writers: Any) -> Any:
        if any(tensor.name == "layers.4.w" for tensor in window):
            os.kill(os.getpid(), signal.SIGKILL)
        return do(self, window, writers)

    base, tuned = write(tmp_path / "base", tensors(1)), write(tmp_path / "tuned", tensors(2))
    monkeypatch.setattr(Engine, "do", deadly)
    with pytest.raises(ModelError) as caught:
        merge(base, tuned, tmp_path / "out", lam=0.5)
    assert caught.value.code == "model.merge_killed"
    assert not (tmp_path / "out").exists()


def test_parts_that_others_fill_give_the_bytes_of_a_merge(
    tmp_path: Path, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mooring.merging.engine.WINDOW", 2**14)
    base, tuned = write(tmp_path / "base", tensors(1), 2), write(tmp_path / "tuned", tensors(2))
    whole = merge(base, tuned, tmp_path / "whole", method="slerp", lam=0.4)
    numbers: list[int] = []

    def fill_windows(parts: Any, given: Any) -> Iterator[Any]:
        for number, names in given.items():
            numbers.append(number)
            yield number, parts.fill(names)

    with merging.open_pair(base, tuned) as pair:
        options = merging.options_of("slerp", 0.4)
        out = merging.merge_pair(pair, tmp_path / "out", method="slerp", options=options, fill_windows=fill_windows)
    assert content(out) == content(whole)
    assert len(numbers) > 2


@pytest.mark.parametrize(("threads", "cores", "count"), [(None, 4, 4), (2, 4, 2), (1, 4, 1), (64, 4, 7)])
def test_there_are_as_many_processes_as_cores_and_windows_allow(
    tmp_path: Path, write: Write, monkeypatch: pytest.MonkeyPatch, threads: int | None, cores: int, count: int
) -> None:
    monkeypatch.setattr("mooring.merging.engine.WINDOW", 2**14)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(cores)))
    monkeypatch.setattr("threading.active_count", lambda: 1)
    base, tuned = write(tmp_path / "base", tensors(1)), write(tmp_path / "tuned", tensors(2))
    with merging.open_pair(base, tuned) as pair:
        options = merging.options_of("slerp", 0.4)
        build = functools.partial(Engine, pair, lams=[options.lam], output=merging.DEFAULT_OUTPUT)
        engine = build("slerp", options)
        assert processes.processes(engine, threads) == 1  # a small model
        monkeypatch.setattr(processes, "LEAST", 1)
        assert processes.processes(engine, threads) == min(count, len(engine.windows()))
        assert processes.processes(build("sce", merging.options_of("sce", 0.4)), threads) == 1  # whole tensors


SLEEPER = """
import os, sys, time
from pathlib import Path
from mooring.merging import engine, merge

def do(self, window, writers):
    (Path(sys.argv[3]) / str(os.getpid())).touch()
    time.sleep(600)

engine.Engine.do, engine.WINDOW, merge.processes = do, 2**14, lambda engine, threads: 2
merge.merge(sys.argv[1], sys.argv[2], sys.argv[2] + "-out", lam=0.5)
"""


@pytest.mark.slow
def test_processes_end_with_the_one_that_was_killed(tmp_path: Path, write: Write) -> None:
    base, tuned, started = (
        write(tmp_path / "base", tensors(1)),
        write(tmp_path / "tuned", tensors(2)),
        tmp_path / "started",
    )
    started.mkdir()
    with subprocess.Popen([sys.executable, "-c", SLEEPER, str(base), str(tuned), str(started)]) as owner:
        while len(workers := [*started.iterdir()]) < 2:
            assert owner.poll() is None
            time.sleep(0.05)
        owner.kill()
    for _ in range(600):
        if not any(_is_alive(int(process.name)) for process in workers):
            return
        time.sleep(0.05)
    pytest.fail("a process of the merge goes on")


def _is_alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
