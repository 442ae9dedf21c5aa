"""A merge that several machines share: what each needs to fill a part of the output, which lies on shared storage."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import torch

from mooring.merge_methods import Role
from mooring.merging.engine import Done, Engine
from mooring.merging.job import Options, Output
from mooring.merging.pair import open_pair
from mooring.merging.tensor_value import TensorValue
from mooring.models import Writer

Shards: TypeAlias = dict[str, list[tuple[str, torch.dtype, tuple[int, ...]]]]
"""File name to (name, dtype, shape) of its tensors, in the order of their bytes."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """A merge whose output files exist and are to be filled, window by window.

    Attributes:
        base: Folder of the base.
        tuned: Folders of the tuned models.
        references: Folders of further models that the method needs, by role.
        method: A name in `merge_methods.METHODS`.
        options: The method's options.
        lams: λ, one per output.
        output: The form of the outputs.
        slice_bytes: Bytes of the base that are held at a time.
        folders: The outputs.
        shards: The files of an output.
    """

    base: Path
    tuned: Sequence[Path]
    references: Mapping[Role, Path]
    method: str
    options: Options
    lams: Sequence[TensorValue]
    output: Output
    slice_bytes: int
    folders: Sequence[Path]
    shards: Shards

    def inputs(self) -> list[Path]:
        """The folders that are read."""
        return [self.base, *self.tuned, *self.references.values()]

    def fill(self, names: Sequence[str]) -> Done:
        """Fill a window of the outputs, given the names of its tensors. Errors as in `Engine.run`."""
        with contextlib.ExitStack() as stack:
            pair = stack.enter_context(open_pair(self.base, list(self.tuned), references=dict(self.references)))
            engine = Engine(
                pair,
                self.method,
                self.options,
                self.lams,
                self.output,
                slice_bytes=self.slice_bytes,
                threads=1,
            )
            writers = [stack.enter_context(Writer(folder, self.shards, existing=True)) for folder in self.folders]
            return engine.do([pair.tensors[name] for name in names], writers)


FillWindows: TypeAlias = Callable[[Parts, Mapping[int, Sequence[str]]], Iterator[tuple[int, Done]]]
"""Fills windows, given by their numbers and the names of their tensors; yields each number with what was made of it, in
any order."""
