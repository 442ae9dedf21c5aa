"""What a merge keeps in memory from one λ to the next: its inputs and its statistics, neither of which depends on λ."""

import dataclasses
import threading
from typing import Any

from torch import Tensor

from mooring.merging.slices import Slice


@dataclasses.dataclass(frozen=True, slots=True)
class Inputs:
    """A slice of every model; `tuned` holds `base` itself for a model that equals it there."""

    base: Tensor
    tuned: list[Tensor]


class Kept:
    """Inputs and statistics of one merge, kept as far as the memory goes; any number of threads may use it at once.

    The values are those that were read and computed, so a merge from them is a merge from the files, bit for bit. What
    finds no room is read and computed again.

    Args:
        room: Bytes that may be kept. It may be set later.

    Attributes:
        differs: For every slice that was read, which tuned models differ from the base in it.
        used: Bytes that are kept.
    """

    def __init__(self, room: int = 0) -> None:
        self.room = room
        self.used = 0
        self.differs: dict[Slice, tuple[bool, ...]] = {}
        self._inputs: dict[Slice, Inputs] = {}
        self._statistics: dict[tuple[str, str, int], Any] = {}
        self._lock = threading.Lock()

    def inputs(self, piece: Slice) -> Inputs | None:
        """The inputs of a slice, if they are kept."""
        return self._inputs.get(piece)

    def keep_inputs(self, piece: Slice, base: Tensor, tuned: list[Tensor]) -> None:
        """Keep a copy of a slice's inputs if there is room, and something to merge; `differs` has to be known."""
        differs = self.differs[piece]
        changed = [values for values, different in zip(tuned, differs, strict=True) if different]
        if changed and piece not in self._inputs and self._take(sum(values.nbytes for values in (base, *changed))):
            ground = base.clone()
            copies = [t.clone() if d else ground for t, d in zip(tuned, differs, strict=True)]
            self._inputs[piece] = Inputs(ground, copies)

    def statistic(self, method: str, name: str, number: int) -> Any:
        """The result of a method's pass over a tensor, if it is kept; else None."""
        return self._statistics.get((method, name, number))

    def keep_statistic(self, method: str, name: str, number: int, result: Any) -> None:
        """Keep the result of a pass (an array) if there is room."""
        if self._take(int(result.nbytes)):
            self._statistics[method, name, number] = result

    def _take(self, size: int) -> bool:
        with self._lock:
            fits = self.used + size <= self.room
            self.used += size if fits else 0
            return fits
