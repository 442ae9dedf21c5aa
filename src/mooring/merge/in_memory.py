"""A merge that is kept in memory: the tensors that `stream.merge` would write, without a folder of weights."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mooring.errors import UserError
from mooring.merge.engine import Engine
from mooring.merge.inputs import open_inputs
from mooring.merge.manifest import Record, write_side_files
from mooring.merge.sites import method_named, options_of
from mooring.merge.stream import PLAIN, Output, engine_for, refuse_equal


class Memory:
    """Tensors in memory, filled by position; any number of threads may write at once.

    Args:
        shapes: Name to type and shape of every tensor, in order.

    Attributes:
        tensors: The tensors by name, on the CPU.
    """

    def __init__(self, shapes: dict[str, tuple[torch.dtype, tuple[int, ...]]]) -> None:
        self.tensors = {name: torch.empty(shape, dtype=dtype) for name, (dtype, shape) in shapes.items()}

    def write(self, name: str, start: int, values: Tensor) -> None:
        """As `engine.Sink.write`."""
        place = self.tensors[name]
        if values.dtype != place.dtype or start + values.numel() > place.numel():
            raise ValueError(f"{name}: {values.numel()} × {values.dtype} from {start} do not fit {tuple(place.shape)}")
        place.view(-1)[start : start + values.numel()].copy_(values.view(-1))


def merged_tensors(
    base: str | Path,
    tuned: str | Path | Sequence[str | Path],
    *,
    lam: Any = None,
    method: str = "linear",
    output: Output = PLAIN,
    side_files: Path | None = None,
    threads: int | None = None,
    **settings: Any,
) -> dict[str, Tensor]:
    """Merge tuned models into their base, in memory: bit for bit what `merge` writes, by the names of the checkpoint.

    Memory: the merged model, and a few slices a thread. The inputs are read from the disk anew at each call.

    Args:
        base: Folder of the aligned model.
        tuned: Folder of the tuned model, or of a LoRA adapter on the base; or several of them.
        lam: λ, the weight of the tuned models, as `merge` takes it.
        method: A name in `rules.METHODS`.
        output: Its `dtype`, `tokenizer` and `allow_nonfinite`, as `merge` takes them.
        side_files: An existing empty folder to put the merged model's configuration and tokenizer into, without its
            weights.
        threads: How many work at once; as many as cores, up to 4, where it is not given.
        settings: Other fields of `job.Options`.

    Returns:
        Every tensor of the merged model by name, in the base's order, on the CPU, in the type that would be stored.

    Raises:
        UserError: As `merge` does, but for what is wrong with an output folder.
    """
    folders = [Path(tuned)] if isinstance(tuned, (str, Path)) else [Path(folder) for folder in tuned]
    if not folders:
        raise UserError("there is no tuned model", "name at least one")
    method_named(method)
    options = options_of(method, lam, **settings)
    with open_inputs(base, folders, tokenizer=output.tokenizer) as inputs:
        engine: Engine = engine_for(inputs, method, options, [options.lam], output, lambda *_: None, threads=threads)
        memory = Memory({name: (engine.dtype(target), target.shape) for name, target in inputs.targets.items()})
        engine.run([memory])
        refuse_equal(engine, inputs)
        if side_files is not None:
            write_side_files(side_files, Record(inputs, method, options, [], {}, []), output.dtype)
    return memory.tensors
