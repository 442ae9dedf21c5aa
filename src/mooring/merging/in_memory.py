"""A merge in memory: the tensors that `stream.merge` would write, at one λ after the other, without a folder."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mooring.errors import UserError
from mooring.merging.engine import Engine
from mooring.merging.inputs import open_inputs
from mooring.merging.job import Options
from mooring.merging.manifest import Record, write_side_files
from mooring.merging.merge import PLAIN, Output, engine_for, refuse_equal
from mooring.merging.parameters import method_named, options_of


class Memory:
    """Tensors in memory as a merge's output, filled by position; any number of threads may write at once.

    Args:
        places: Contiguous tensors by name. One of another type or device than the merge's gets its values converted.
    """

    def __init__(self, places: Mapping[str, Tensor]) -> None:
        self._flat = {name: place.detach().view(-1) for name, place in places.items()}

    def write(self, name: str, start: int, values: Tensor) -> None:
        """As `engine.Sink.write`; what has no place is passed over."""
        flat = self._flat.get(name)
        if flat is None:
            return
        if start + values.numel() > flat.numel():
            raise ValueError(f"{name}: {values.numel()} entries from {start} do not fit {flat.numel()}")
        flat[start : start + values.numel()].copy_(values.view(-1))


class OpenMerge:
    """A base and its tuned models, open for merging at one λ after the other.

    Nothing is kept between two λ: each is computed from the files, so that going back to one gives the same bits.

    Args:
        base: Folder of the aligned model.
        tuned: Folder of the tuned model, or of a LoRA adapter on the base; or several of them.
        method: A name in `rules.METHODS`.
        output: Its `dtype`, `tokenizer` and `allow_nonfinite`, as `merge` takes them.
        threads: How many work at once; as many as cores, up to 4, where it is not given.
        settings: Fields of `job.Options` besides `lam`.

    Raises:
        UserError: As `merge` does, but for what is wrong with an output folder or with a setting.
    """

    def __init__(
        self,
        base: str | Path,
        tuned: str | Path | Sequence[str | Path],
        *,
        method: str = "linear",
        output: Output = PLAIN,
        threads: int | None = None,
        **settings: Any,
    ) -> None:
        folders = [Path(tuned)] if isinstance(tuned, (str, Path)) else [Path(folder) for folder in tuned]
        if not folders:
            raise UserError("there is no tuned model", "name at least one")
        method_named(method)
        self._method, self._output, self._threads, self._settings = method, output, threads, settings
        self._inputs = open_inputs(base, folders, tokenizer=output.tokenizer)

    @property
    def keeps_side_files(self) -> bool:
        """Whether configuration and tokenizer of the merge are the base's own."""
        return not self._inputs.config and not self._inputs.tokenizer

    def fill(self, lam: Any, places: Mapping[str, Tensor], *, plain: bool = False) -> None:
        """Put the merge at λ into tensors that are there, bit for bit what `merge` writes.

        Args:
            lam: λ, the weight of the tuned models, as `merge` takes it. 0 is the base, whatever the method.
            places: As `Memory` takes them, by the names of the checkpoint.
            plain: Merge by `linear`, so that λ = 1 is the tuned model itself, whatever the method would drop.

        Raises:
            UserError: A setting is unknown or out of range.
            ModelError: An input is corrupt, or holds NaN or Inf.
            MismatchError: The models are equal.
        """
        engine = self._engine(lam, plain)
        engine.run([Memory(places)])
        refuse_equal(engine, self._inputs)

    def tensors(self, lam: Any, *, plain: bool = False) -> dict[str, Tensor]:
        """The same as new tensors by name, in the base's order, on the CPU, in the type that would be stored."""
        kind = self._engine(lam, plain).dtype
        made = {name: torch.empty(t.shape, dtype=kind(t)) for name, t in self._inputs.targets.items()}
        self.fill(lam, made, plain=plain)
        return made

    def write_side_files(self, folder: Path) -> None:
        """Put the merged model's configuration and tokenizer into an existing empty folder.

        Raises:
            OutputError: The disk is full.
        """
        record = Record(self._inputs, "linear", options_of("linear", 0), [], {}, [])  # what it copies hangs on no λ
        write_side_files(folder, record, self._output.dtype)

    def _engine(self, lam: Any, plain: bool) -> Engine:
        method, options = self._rule(lam, plain)
        return engine_for(
            self._inputs, method, options, [options.lam], self._output, lambda *_: None, threads=self._threads
        )

    def _rule(self, lam: Any, plain: bool) -> tuple[str, Options]:
        asked = options_of(self._method, lam, **self._settings)
        if plain or (asked.lam.constant == 0 and asked.base_weight is None):
            return "linear", options_of("linear", lam)
        return self._method, asked

    def close(self) -> None:
        """Close the models' files."""
        self._inputs.close()

    def __enter__(self) -> "OpenMerge":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


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
    """Merge tuned models into their base once, in memory: bit for bit what `merge` writes, by the checkpoint's names.

    Memory: the merged model, and a few slices a thread.

    Args:
        base: As `OpenMerge` takes it, like all that is not named here.
        tuned: Likewise.
        lam: λ, the weight of the tuned models, as `merge` takes it.
        method: Likewise.
        output: Likewise.
        side_files: An existing empty folder to put the merged model's configuration and tokenizer into, without its
            weights.
        threads: Likewise.
        settings: Likewise.

    Raises:
        UserError: As `merge` does, but for what is wrong with an output folder.
    """
    with OpenMerge(base, tuned, method=method, output=output, threads=threads, **settings) as merge:
        made = merge.tensors(lam)
        if side_files is not None:
            merge.write_side_files(side_files)
    return made
