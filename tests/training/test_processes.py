"""Tuning in several processes: the same steps as in one, and resumed by any number of them."""

import json
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mooring.config import Tune
from mooring.errors import ModelError, RecipeError
from mooring.events import Event
from mooring.records import Message, Prompt
from mooring.training.batches import batches
from mooring.training.lora import CURVE, tune
from mooring.training.processes import Job
from mooring.training.trainer import ShuffledSampler

OPTIONS: dict[str, Any] = {"system": None, "seed": 7}


def examples(count: int) -> list[Prompt]:
    """Questions with answers of different lengths."""
    said = "It is the number {}. " * 3
    return [
        Prompt(id=str(i), messages=(Message("user", f"What is {i}?"),), reference=(said.format(i, i, i))[: 12 + 3 * i])
        for i in range(count)
    ]


def settings(**changes: Any) -> Tune:
    """Settings that change a tiny model a lot; 17 examples are trained on, in steps of 4: 4, 4, 4, 4, 1."""
    values: dict[str, Any] = {"learning_rate": 0.02, "max_steps": 7, "save_steps": 2}
    values |= {"batch_size": 4, "per_device_train_batch_size": 2}
    return Tune(**{"data": ("x",), "r": 4, "val_set_size": 0.2} | values | changes)


def curve(folder: Path) -> list[dict[str, float]]:
    """The loss curve of an adapter."""
    found: list[dict[str, float]] = json.loads((folder / CURVE).read_text())
    return found


def close(one: Path, other: Path, most: float = 1e-4) -> None:
    """Check that two curves have the same points, with losses that differ by little."""
    assert [entry.keys() for entry in curve(one)] == [entry.keys() for entry in curve(other)]
    for left, right in zip(curve(one), curve(other), strict=True):
        assert left == pytest.approx(right, abs=most)


@given(st.integers(1, 64), st.integers(1, 16), st.integers(1, 12))
def test_a_step_has_the_same_examples_for_any_number_of_processes(examples: int, each: int, nproc: int) -> None:
    config = Tune(data=("x",), batch_size=examples, per_device_train_batch_size=each, nproc=nproc)
    if examples % nproc:
        with pytest.raises(RecipeError) as caught:
            batches(config)
        assert caught.value.code == "recipe.bad_nproc"
        return
    found = batches(config)
    assert found.each * found.processes * found.accumulated == examples
    assert found.each <= each


@given(st.integers(1, 50), st.integers(1, 12), st.integers(0, 3))
def test_an_epoch_is_filled_up_to_whole_steps(count: int, multiple: int, epoch: int) -> None:
    sampler = ShuffledSampler(count, multiple, 5)
    sampler.set_epoch(epoch)
    order = list(sampler)
    assert len(order) == len(sampler)
    assert len(order) % multiple == 0
    assert sorted(order[:count]) == list(range(count))
    assert set(order[count:]) <= {count}
    assert len(order) - count < multiple


def test_a_job_reads_as_it_was_written(tmp_path: Path) -> None:
    for checkpoint in (None, tmp_path / "checkpoint-2"):
        job = Job(
            config=settings(),
            base=tmp_path,
            examples=tuple(examples(3)),
            ordinary=tuple(examples(1)),
            out=tmp_path,
            also={tmp_path / "ema": settings(ema=0.9)},
            work=tmp_path,
            checkpoint=checkpoint,
            system=None,
            seed=7,
            base_name="owner/model",
        )
        assert Job.from_json(job.to_json()) == job


@pytest.mark.parametrize("kl", [0.0, 2.0])
def test_accumulated_steps_have_the_loss_of_whole_ones(
    tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kl: float
) -> None:
    for module in ("lora", "trainer"):  # in 16 bits, gradients are rounded before they are added
        monkeypatch.setattr(f"mooring.training.{module}.compute_dtype", lambda: "float32")
    made = []
    for each in (1, 4):
        section, ordinary = settings(per_device_train_batch_size=each, kl=kl), examples(5)
        out = tmp_path / str(each)
        made.append(tune(section, tiny_model_folder, examples(21), out, ordinary=ordinary, **OPTIONS))
    close(*made)


def test_processes_that_cannot_share_a_step_are_refused_before(tiny_model_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        tune(settings(nproc=3), tiny_model_folder, examples(8), tmp_path / "adapter", **OPTIONS)
    assert caught.value.code == "recipe.bad_nproc"
    with pytest.raises(ModelError) as lacking:
        tune(settings(fsdp=True), tiny_model_folder, examples(8), tmp_path / "adapter", **OPTIONS)
    assert lacking.value.code == "model.too_few_gpus"
    with pytest.raises(ModelError, match="are too many for the CPU") as lacking:
        tune(settings(nproc=2**20, batch_size=2**20), tiny_model_folder, examples(8), tmp_path / "adapter", **OPTIONS)
    assert lacking.value.code == "model.too_few_gpus"
    assert not [*tmp_path.iterdir()]


class StopError(Exception):
    """Takes the place of a kill."""


@pytest.fixture
def sharding_on_a_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """accelerate uses FSDP2 on GPUs only; give the processes a copy of it that does so on a CPU as well."""
    import accelerate

    copy = tmp_path / "packages" / "accelerate"
    shutil.copytree(Path(accelerate.__file__).parent, copy)
    before, after = (copy / "state.py").read_text().split("elif self.distributed_type in [")  # of FSDP: the only one
    (copy / "state.py").write_text(f"{before}elif self.distributed_type in [DistributedType.MULTI_CPU,{after}")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(copy.parent), *filter(None, sys.path)]))
    monkeypatch.setattr("mooring.training.adapter.check_devices", lambda config: None)


@pytest.mark.slow
@pytest.mark.usefixtures("sharding_on_a_cpu")
def test_processes_tune_as_one_does_and_resume_what_others_began(tiny_model_folder: Path, tmp_path: Path) -> None:
    """Stopped in one process and resumed by two; killed in two that share the weights, and resumed by one with FSDP."""
    from peft import AutoPeftModelForCausalLM

    data = examples(21)
    whole = tune(settings(), tiny_model_folder, data, tmp_path / "whole", **OPTIONS)

    def stop(event: Event) -> None:
        if event.done == 3:
            raise StopError

    again = tmp_path / "again"
    with pytest.raises(StopError):
        tune(settings(), tiny_model_folder, data, again, on_event=stop, **OPTIONS)
    steps: list[int] = []
    tune(settings(nproc=2), tiny_model_folder, data, again, on_event=lambda each: steps.append(each.done), **OPTIONS)
    assert steps == [3, 4, 5, 6, 7]
    close(whole, again)
    AutoPeftModelForCausalLM.from_pretrained(again)

    killed, work, workers = tmp_path / "killed", tmp_path / ".work-killed", set[int]()

    def kill(event: Event) -> None:
        if event.done == 5:
            workers.update(_workers(work))
            for process in workers:
                os.kill(process, signal.SIGKILL)

    with pytest.raises(ModelError, match="tuning in 2 processes failed") as caught:
        tune(settings(nproc=2, fsdp=True), tiny_model_folder, data, killed, on_event=kill, **OPTIONS)
    assert caught.value.code == "model.tuning_failed"
    assert len(workers) == 2
    assert (work / "checkpoint-4" / "pytorch_model_fsdp.bin").exists()  # the form that FSDP gives it
    steps.clear()
    tune(settings(fsdp=True), tiny_model_folder, data, killed, on_event=lambda each: steps.append(each.done), **OPTIONS)
    assert steps == [5, 6, 7]
    close(whole, killed, 0.01)  # FSDP adds gradients in 16 bits


def _workers(work: Path) -> list[int]:
    """The processes that were given a job, but for torchrun itself."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if str(work / "job.json").encode() in words and b"torch.distributed.run" not in words:
            found.append(int(process.name))
    return found
