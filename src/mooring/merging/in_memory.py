"""Merge in memory: the tensors that `merge` would write, at one λ after the other, without a folder."""

import threading
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Unpack

import torch
from torch import Tensor

from mooring.memory import available_memory
from mooring.merge_methods import check_references, method_named
from mooring.merging.engine import Engine, Sink, keeps_unchanged
from mooring.merging.job import DEFAULT_OUTPUT, Output, options_of
from mooring.merging.kept import Kept
from mooring.merging.manifest import write_side_files
from mooring.merging.pair import ModelPair
from mooring.merging.tensor_value import Given
from mooring.models import refuse_quantized
from mooring.options import MethodOptions


class Memory:
    """Tensors in memory as a merge's output, filled by position; any number of threads may write at once.

    Args:
        places: Contiguous tensors by name. Values are converted to a place's type and device if they differ.
    """

    def __init__(self, places: Mapping[str, Tensor]) -> None:
        self._flat = {name: place.detach().view(-1) for name, place in places.items()}

    def write(self, name: str, start: int, values: Tensor) -> None:
        """Copy a tensor's elements from `start` on to its place; ignores a tensor that has no place."""
        flat = self._flat.get(name)
        if flat is None:
            return
        if start + values.numel() > flat.numel():
            raise ValueError(f"{name}: {values.numel()} entries from {start} do not fit {flat.numel()}")
        flat[start : start + values.numel()].copy_(values.view(-1))


class Stream:
    """Tensors in memory as a merge's output, each allocated when its first elements are written."""

    def __init__(self, shapes: Mapping[str, torch.Size | tuple[int, ...]]) -> None:
        self._shapes = shapes
        self._lock = threading.Lock()
        self._tensors: dict[str, Tensor] = {}

    def write(self, name: str, start: int, values: Tensor) -> None:
        """See `Sink.write`."""
        with self._lock:
            if name not in self._tensors:
                self._tensors[name] = torch.empty(self._shapes[name], dtype=values.dtype)
        self._tensors[name].view(-1)[start : start + values.numel()].copy_(values.view(-1))

    def pop(self, name: str, dtype: torch.dtype) -> Tensor:
        """Return a complete tensor and forget it; one without elements was never written."""
        tensor = self._tensors.pop(name, None)
        return torch.empty(self._shapes[name], dtype=dtype) if tensor is None else tensor


class OpenMerge:
    """A base and its tuned models, merged in memory at one λ after the other.

    From the second λ on, the inputs (the base's values, and the tuned model's before they are rounded, so that no
    product of LoRA factors is computed again) and the method's statistics are kept, in at most half of the memory that
    is available then; what does not fit is read from the files for every λ. No result is used for another, so returning
    to a λ gives the same bits.

    Args:
        pair: The models. Closed with the merge.
        method: A name in `merge_methods.METHODS`.
        output: Its `dtype`, `tokenizer` and `allow_nonfinite` are used.
        threads: Number of worker threads; defaults to the number of cores, up to 4.
        settings: The method's options besides λ.

    Raises:
        UserError: The method is unknown, or requires a further model that the pair lacks.
        ModelError: The base is quantized (`model.quantized`).
    """

    def __init__(
        self,
        pair: ModelPair,
        *,
        method: str = "linear",
        output: Output = DEFAULT_OUTPUT,
        threads: int | None = None,
        **settings: Unpack[MethodOptions],
    ) -> None:
        check_references(method, pair.references)
        refuse_quantized(pair.base)
        self.pair = pair
        self._method, self._output, self._threads, self._settings = method, output, threads, settings
        self._kept: Kept | None = None
        self._changed: frozenset[str] | None = None

    @property
    def changed(self) -> frozenset[str]:
        """The tensors in which a tuned model differs from the base; known after the first merge."""
        if self._changed is None:
            raise ValueError("nothing was merged yet")
        return self._changed

    @property
    def kept_bytes(self) -> int:
        """Bytes of the models that are kept in memory for the next λ."""
        return self._kept.used if self._kept else 0

    @property
    def keeps_side_files(self) -> bool:
        """Whether configuration and tokenizer of the merge are the base's own."""
        return not self.pair.config and not self.pair.tokenizer(self._output.tokenizer)

    def fill(
        self,
        lam: "Given | None",
        places: Mapping[str, Tensor] | Sink,
        *,
        as_linear: bool = False,
        filled: Collection[str] = (),
    ) -> None:
        """Write the merge at λ into existing tensors, bit for bit what `merge` writes.

        Args:
            lam: λ, the weight of the tuned models, as in `merge`. 0 is the base, unless the
                method is not `anchored` (`merge_methods.Method`).
            places: As in `Memory`, by the names of the checkpoint; or another place to write to.
            as_linear: Merge by `linear`, so that λ = 1 is the tuned model itself, whatever the method would drop.
            filled: Names of tensors that hold this merge at another λ. Of these, only what λ changes is written. If
                there are any, the models are kept in memory from now on.

        Raises:
            UserError: An option is unknown or out of range.
            ModelError: An input is corrupt, or holds NaN or Inf.
            MismatchError: The models are equal.
        """
        self._kept = self._kept or Kept()
        if filled and not self._kept.room:
            self._kept.room = available_memory() // 2
        engine = self._engine(lam, as_linear, filled)
        engine.run([Memory(places) if isinstance(places, Mapping) else places])
        self._changed = frozenset(engine.changed)

    def tensors(self, lam: "Given | None", *, as_linear: bool = False) -> dict[str, Tensor]:
        """The merge at λ as new tensors by name, in the base's order, on the CPU, in the type that would be stored."""
        dtype = self._engine(lam, as_linear).dtype
        tensors = {name: torch.empty(t.shape, dtype=dtype(t)) for name, t in self.pair.tensors.items()}
        self.fill(lam, tensors, as_linear=as_linear)
        return tensors

    def stream(self, lam: "Given | None", *, as_linear: bool = False) -> Iterator[tuple[str, Tensor]]:
        """Yield the tensors of the merge at λ with their names, in bounded memory; otherwise as `tensors`.

        A few tensors, or one large one, are in memory at a time.
        """
        engine = self._engine(lam, as_linear)
        stream = Stream({name: tensor.shape for name, tensor in self.pair.tensors.items()})
        for window in engine.run_windows([stream]):
            for tensor in window:
                yield tensor.name, stream.pop(tensor.name, engine.dtype(tensor))

    def write_side_files(self, folder: Path) -> None:
        """Write the merged model's configuration and tokenizer, which do not depend on λ, to an existing empty folder.

        Raises:
            OutputError: The disk is full.
        """
        write_side_files(folder, self.pair, self.pair.tokenizer(self._output.tokenizer), self._output.torch_dtype)

    def _engine(self, lam: "Given | None", as_linear: bool, filled: Collection[str] = ()) -> Engine:
        method, options = self._method, options_of(self._method, lam, **self._settings)
        if not keeps_unchanged(method, options):
            filled = ()
        anchored = method_named(method).anchored and options.base_weight is None
        if as_linear or (anchored and options.lam.constant == 0):
            method, options = "linear", options_of("linear", lam)
        return Engine(
            self.pair,
            method,
            options,
            [options.lam],
            self._output,
            threads=self._threads,
            kept=self._kept,
            filled=filled,
        )

    def free(self) -> None:
        """Free what is kept in memory."""
        self._kept = None

    def close(self) -> None:
        """Close the models' files, and free what is kept."""
        self.free()
        self.pair.close()

    def __enter__(self) -> "OpenMerge":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
