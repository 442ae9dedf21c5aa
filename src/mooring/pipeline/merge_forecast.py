"""What a merge will read and write, and how long it will take: measured on the storage and on a part of the models."""

import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mooring.errors import UserError
from mooring.files import explained, gibibytes, need_room
from mooring.merging.engine import Engine
from mooring.merging.job import Job, Output, values_by_folder
from mooring.merging.merge import ROOM_FOR_SIDE_FILES, check_output
from mooring.merging.pair import ModelPair, open_pair, resolved
from mooring.merging.pair import qlora_base as quantized_base
from mooring.merging.processes import workers
from mooring.models.resolve import resolve_model
from mooring.pipeline.forecast import PYTHON, Forecast

SAMPLE = 2**28
"""The most bytes that are read, written or merged to measure the speed of it."""
_CHUNK = 2**23


class Nowhere:
    """An output that keeps nothing."""

    def write(self, name: str, start: int, values: Tensor) -> None:
        """See `Sink.write`."""


def forecast_merge(
    job: Job,
    out: Path,
    *,
    lambdas: Sequence[float] = (),
    threads: int | None = None,
    on: str = "local",
    as_adapter: bool = False,
    allow_nonfinite: bool = False,
    qlora_base: str = "given",
    **_: Any,
) -> Forecast:
    """What a merge would do, and how long it would take; arguments and errors as in `mooring.merge`.

    Reading and writing are measured on the storage, with up to 256 MiB that are not in the page cache; the arithmetic
    on a part of the models of that size. Nothing is left on the disk.

    Raises:
        UserError: The merge would be refused; or it is one on a cluster or of adapters, for which there is no estimate.
    """
    if on != "local" or as_adapter:
        what = "--dry-run: measures a merge of whole models on this machine"
        raise UserError(what, "leave out --on and --as-adapter", code="usage.dry_run_merge")
    base, tuned, references = (
        resolve_model(job.base),
        [resolve_model(ref) for ref in job.tuned],
        resolved(job.references),
    )
    if qlora_base == "dequantized":
        base = quantized_base(base, tuned)
    check_output(out, base, *tuned, *references.values())
    output = Output(dtype=job.dtype, allow_nonfinite=allow_nonfinite)
    lams = list((values_by_folder(job.method, lambdas) or {"": job.options.lam}).values())
    with open_pair(base, tuned, references=references) as pair:
        engine = Engine(pair, job.method, job.options, lams, output, threads=1)
        read, written = sum(_bytes(model.folder) for model in pair.inputs), engine.nbytes * len(lams)
        need_room(out, written + ROOM_FOR_SIDE_FILES)
        shared = workers(engine, threads)
        arithmetic = _arithmetic(engine, len(lams)) / shared
        reading = _read_speed(pair)
        with explained(out):
            writing = _write_speed(out)
    seconds = read / reading + arithmetic * engine.nbytes + written / writing + written / reading
    facts: Mapping[str, str] = {
        "reads": f"{gibibytes(read)}, at {gibibytes(round(reading))}/s",
        "writes": f"{gibibytes(written)}, at {gibibytes(round(writing))}/s, and reads it again",
        "merges": f"{gibibytes(round(1 / arithmetic))}/s, with {shared} at work",
        "time": f"about {_duration(seconds)}, if the storage is as fast as for {gibibytes(SAMPLE)} of it",
    }
    stages = [("merge", f"{job.method}, {len(pair.tensors)} tensors of {len(pair.inputs)} models")]
    return Forecast(stages=stages, facts=facts, disk=written + ROOM_FOR_SIDE_FILES, memory=PYTHON)


def _bytes(folder: Path) -> int:
    """Bytes of a model's weights, as they are stored."""
    files = [folder] if folder.is_file() else [*folder.glob("*.safetensors"), *folder.glob("*.bin")]
    return sum(file.stat().st_size for file in files)


def _arithmetic(engine: Engine, outputs: int) -> float:
    """Seconds for each byte of a model that one worker takes, once it is in the page cache."""
    windows = engine.windows()
    sizes = [sum(tensor.numel * engine.dtype(tensor).itemsize for tensor in window) for window in windows]
    fitting = [number for number, size in enumerate(sizes) if size <= SAMPLE]
    chosen = (
        max(fitting, key=lambda number: sizes[number]) if fitting else min(range(len(sizes)), key=sizes.__getitem__)
    )
    own = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for _ in range(2):  # the first time, it may come from the disk
            started = time.perf_counter()
            engine.do(windows[chosen], [Nowhere()] * outputs)
            seconds = time.perf_counter() - started
    finally:
        torch.set_num_threads(own)
    return seconds / max(1, sizes[chosen])


def _read_speed(pair: ModelPair) -> float:
    """Bytes per second that the storage of the base gives, from the middle of its largest file."""
    file = max({info.file for info in pair.base.stored.tensors.values()}, key=lambda each: each.stat().st_size)
    size = file.stat().st_size
    count = min(size, SAMPLE)
    start = (size - count) // 2
    handle = os.open(file, os.O_RDONLY)
    try:
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(handle, start, count, os.POSIX_FADV_DONTNEED)
        started = time.perf_counter()
        for offset in range(start, start + count, _CHUNK):
            os.pread(handle, min(_CHUNK, start + count - offset), offset)
        return count / (time.perf_counter() - started)
    finally:
        os.close(handle)


def _write_speed(out: Path) -> float:
    """Bytes per second that the storage of the output takes."""
    folder = out.absolute().parent
    while not folder.exists():
        folder = folder.parent
    chunk = os.urandom(_CHUNK)
    with tempfile.TemporaryFile(dir=folder) as file:
        started = time.perf_counter()
        for _ in range(SAMPLE // _CHUNK // 2):
            file.write(chunk)
        file.flush()
        os.fsync(file.fileno())
        return SAMPLE / 2 / (time.perf_counter() - started)


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
