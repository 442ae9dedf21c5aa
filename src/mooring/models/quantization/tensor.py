"""One quantized tensor: which stored tensors it is made of, and how its values are computed from them."""

import abc
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from mooring.errors import ModelError
from mooring.models.safetensors_file import TensorInfo

Infos = Mapping[str, TensorInfo]
"""Stored tensors by name."""


class Stored(Protocol):
    """The tensors of a folder as they are stored; any number of threads may read at once."""

    @property
    def tensors(self) -> Infos:
        """Name to place."""
        ...

    def read(self, name: str, start: int = 0, stop: int | None = None, *, out: Tensor | None = None) -> Tensor:
        """Elements [start, stop) of a stored tensor, flattened, in its storage type."""
        ...

    def cached(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """As `read`, but kept for the next call with the same arguments; not to be changed.

        For a tensor that is stored transposed, of which every slice needs a little from everywhere.
        """
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuantizedTensor(abc.ABC):
    """A tensor whose values are computed from codes and scales.

    Attributes:
        name: The name that the tensor has in a model that is not quantized.
        shape: Its shape there.
        dtype: The type of its values, as the format's reference library gives them.
        parts: The stored tensors that it replaces; the first holds the codes.
        format: The format's name.
    """

    format: ClassVar[str]
    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    parts: tuple[str, ...]

    @property
    def columns(self) -> int:
        """Number of entries in a row, which is everything along the last axis."""
        return self.shape[-1]

    @abc.abstractmethod
    def rows(self, stored: Stored, first: int, last: int) -> Tensor:
        """Values of rows [first, last), with all axes but the last one flattened: (last − first, columns), contiguous.

        In `dtype`, or a wider type that is rounded to it by the caller. It may be memory of this thread that its next
        call overwrites.

        Raises:
            ModelError: A file ends before the rows do, or cannot be read.
        """

    def read(self, stored: Stored, start: int, stop: int, out: Tensor) -> None:
        """Write the values of entries [start, stop) of the flattened tensor to `out`, which has `dtype`."""
        if start < stop:
            first, last = start // self.columns, -(-stop // self.columns)
            values = self.rows(stored, first, last).view(-1)
            out.copy_(values[start - first * self.columns : stop - first * self.columns])


Runs = Mapping[str, tuple[int, Tensor]]
"""By name of a stored tensor, the element at which a run begins, and its elements."""

PIECE = 2**17
"""About how many entries are quantized together."""


class Requantizable(QuantizedTensor):
    """A format that changed values can be written in again, in pieces that do not depend on each other."""

    @property
    @abc.abstractmethod
    def piece(self) -> int:
        """Entries of the flattened tensor that are quantized together; the last piece may be shorter."""

    @abc.abstractmethod
    def quantize(self, stored: Stored, start: int, values: Tensor, change: Tensor) -> Runs:
        """Codes and scales of a piece: scales by the format's own rule, unless those that there are still serve.

        What shares a scale and did not change at all keeps its codes and its scale.

        Args:
            stored: The model that this tensor belongs to.
            start: The piece's first entry.
            values: Its values, float32, flattened.
            change: By how much they differ from those in `stored`.
        """

    def values_of(self, stored: Stored, start: int, count: int, runs: Runs) -> Tensor:
        """What is read from entry `start` on once `runs` are stored, in `dtype`."""
        out = torch.empty(count, dtype=self.dtype)
        self.read(_Overlay(stored, runs), start, start + count, out)
        return out


class _Overlay:
    """Stored tensors, parts of which are replaced in memory."""

    def __init__(self, stored: Stored, runs: Runs) -> None:
        self._stored, self._runs = stored, runs

    @property
    def tensors(self) -> Infos:
        return self._stored.tensors

    def read(self, name: str, start: int = 0, stop: int | None = None, *, out: Tensor | None = None) -> Tensor:
        if name not in self._runs:
            return self._stored.read(name, start, stop, out=out)
        first, run = self._runs[name]
        return run[start - first : len(run) if stop is None else stop - first]

    cached = read


def kept_scales(old: Tensor, new: Tensor, share: float) -> Tensor:
    """Where an old scale still serves: it covers the values, and they use at least a share of its range.

    With the scale that there is, what did not change stays as it is, and rounding is nearest to the base's values.
    """
    return (new <= old) & (new >= share * old)


def whole_rows(columns: int, height: int = 1) -> int:
    """Entries in about `PIECE`, in whole rows of blocks of a height."""
    return height * columns * max(1, PIECE // (height * columns))


def compute_dtype(config: Mapping[str, Any], default: torch.dtype = torch.bfloat16) -> torch.dtype:
    """The type that a model's `config.json` gives for its weights."""
    nested = config.get("text_config")
    for source in (config, nested if isinstance(nested, dict) else {}):
        named = source.get("dtype", source.get("torch_dtype"))
        found = getattr(torch, named.removeprefix("torch."), None) if isinstance(named, str) else None
        if found in (torch.bfloat16, torch.float16, torch.float32, torch.float64):
            assert isinstance(found, torch.dtype)
            return found
    return default


def malformed(info: TensorInfo, why: str) -> ModelError:
    """The error for a stored tensor that does not fit its format."""
    what = f"{info.file}: {info.name} ({info.dtype}, {list(info.shape)}) {why}"
    return ModelError(what, "fetch the model again", code="model.bad_quantization")


def unsupported(file: Path, what: str) -> ModelError:
    """The error for a kind of quantization that cannot be read."""
    hint = "name the model as it was before quantization, or convert it to 16 bits with the library that quantized it"
    return ModelError(f"{file}: {what}", hint, code="model.quantized")
