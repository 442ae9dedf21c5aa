"""Tuning in several processes on this machine: torchrun starts them, and they report through a pipe."""

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mooring import errors
from mooring.config import Tune
from mooring.errors import ModelError
from mooring.events import Event, OnEvent
from mooring.records import Prompt, from_dict

_ON_CPU = 8
"""Processes that may tune on a CPU that has fewer cores."""
LOG = "processes.log"
"""What the processes print, in the folder with the checkpoints."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What every process that tunes has to know.

    Attributes:
        config: The hyperparameters.
        base: Folder of the model to tune.
        examples: Prompts with references.
        ordinary: Ordinary ones, for `config.kl`.
        out: Folder for the adapter.
        also: The hyperparameters of further adapters of the same training, by their folders.
        work: Folder with the checkpoints.
        checkpoint: The one to resume from.
        system: System prompt of examples that have none.
        seed: Seed of data order, split, initialization and dropout.
        base_name: What the adapter names as its base.
    """

    config: Tune
    base: Path
    examples: tuple[Prompt, ...]
    ordinary: tuple[Prompt, ...]
    out: Path
    also: Mapping[Path, Tune]
    work: Path
    checkpoint: Path | None
    system: str | None
    seed: int
    base_name: str

    @property
    def adapters(self) -> Mapping[Path, Tune]:
        """All adapters by their folders, that of `out` first."""
        return {self.out: self.config, **self.also}

    def to_json(self) -> str:
        """As JSON."""
        plain = {
            **{field.name: getattr(self, field.name) for field in dataclasses.fields(self)},
            "config": self.config.model_dump(mode="json"),
            "examples": [example.to_dict() for example in self.examples],
            "ordinary": [example.to_dict() for example in self.ordinary],
            "also": {str(folder): each.model_dump(mode="json") for folder, each in self.also.items()},
        }
        return json.dumps(plain, default=str)

    @classmethod
    def from_json(cls, text: str) -> "Job":
        """From `to_json`."""
        plain = json.loads(text)
        paths = {name: Path(plain[name]) for name in ("base", "out", "work")}
        checkpoint = Path(plain["checkpoint"]) if plain["checkpoint"] else None
        prompts = {name: tuple(from_dict(Prompt, each) for each in plain[name]) for name in ("examples", "ordinary")}
        also = {Path(folder): Tune(**each) for folder, each in plain["also"].items()}
        typed = {"config": Tune(**plain["config"]), "also": also, "checkpoint": checkpoint}
        return cls(**plain | paths | prompts | typed)


def check_devices(config: Tune) -> None:
    """Check that there is a GPU for each of several processes; without any, a few share the CPU, but no weights.

    Raises:
        ModelError: There are fewer (`model.too_few_gpus`).
    """
    import torch

    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if 0 < there < config.nproc:
        what = f"tune.nproc: {config.nproc} processes need as many GPUs, and there are {there}"
        raise ModelError(what, f"give at most {there}", code="model.too_few_gpus")
    if not there and config.nproc > (most := max(os.cpu_count() or 1, _ON_CPU)):
        what = f"tune.nproc: {config.nproc} processes are too many for the CPU, and there is no GPU"
        raise ModelError(what, f"give at most {most}", code="model.too_few_gpus")
    if config.fsdp and not there:
        what = "tune.fsdp: weights are divided among GPUs, and there is none"
        raise ModelError(what, "leave out `fsdp`", code="model.too_few_gpus")


def in_processes(job: Job, on_event: OnEvent) -> None:
    """Train in `job.config.nproc` processes, which end when this one does, also if it is killed.

    Raises:
        UserError: One of them raised it.
        ModelError: One of them failed (`model.tuning_failed`).
    """
    import torch

    given = job.work / "job.json"
    given.write_text(job.to_json())
    log = job.work / LOG
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(job.config.nproc), "-m", "mooring.training.worker", str(given)]
    threads = str(max(1, torch.get_num_threads() // job.config.nproc))
    failure: errors.UserError | None = None
    with log.open("w") as printed, _running(command, printed, os.environ | {"OMP_NUM_THREADS": threads}) as started:
        assert started.stdout is not None
        for line in started.stdout:
            said = json.loads(line)
            if "error" in said:
                failure = failure or _error(said["error"])
            else:
                on_event(Event(**said["event"]))
    if failure:
        raise failure
    if started.returncode:
        what = f"tuning in {job.config.nproc} processes failed: one ended with an error"
        raise ModelError(what, f"see {log}; `nproc: 1` tunes in one process", code="model.tuning_failed")


@contextlib.contextmanager
def _running(command: list[str], log: Any, env: Mapping[str, str]) -> Iterator[subprocess.Popen[str]]:
    """Run a command within a block. Its stdin is closed when this process ends, so that it ends too."""
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, env=env, start_new_session=True
    ) as started:
        try:
            yield started
            started.wait()
        finally:
            if started.poll() is None:
                started.terminate()


def _error(said: Mapping[str, str]) -> errors.UserError:
    kind: type[errors.UserError] = getattr(errors, said["type"])
    return kind(said["message"], said["hint"], code=said["code"])
