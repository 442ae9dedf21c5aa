"""The models of a run: its pair, open, and the sweep that answers for it."""

from collections.abc import Callable, Sequence
from pathlib import Path

from mooring.inference.engine import Engine
from mooring.merge_point import MergePoint
from mooring.pipeline.sweeps.load import open_sweep
from mooring.pipeline.sweeps.sweep import Sweep, SweepSpec


class Models:
    """Engines for the models of a run.

    Args:
        spec: The models, and how they are merged and run.
        scratch: A folder for what is written temporarily.
        opener: Opens the sweep, if that of the recipe's engine is not to be used.
    """

    def __init__(self, spec: SweepSpec, scratch: Path, opener: Callable[[SweepSpec], Sweep] | None = None) -> None:
        self.spec = spec
        self._opener = opener or (lambda spec: open_sweep(spec, scratch))
        self._sweep: Sweep | None = None

    @property
    def tensor_names(self) -> Sequence[str]:
        """The names of the base's tensors that a merge can change."""
        return self.spec.tensor_names

    @property
    def sweep(self) -> Sweep:
        """The sweep; no model is loaded before its first use."""
        if self._sweep is None:
            self._sweep = self._opener(self.spec)
        return self._sweep

    @property
    def stays_loaded(self) -> bool:
        """Whether models are loaded, and should stay so while steps that need no room are done."""
        return self._sweep is not None and self._sweep.stays_loaded

    def at(self, point: MergePoint) -> Engine:
        """The engine of a model; see `Sweep.at`."""
        return self.sweep.at(point)

    def merge(self, point: MergePoint, out: Path) -> Path:
        """Write a merged model."""
        return self.spec.write(point, out)

    def unload(self) -> None:
        """Free every model, and remove what was written for them. The pair stays open."""
        if self._sweep is not None:
            self._sweep.close()
            self._sweep = None

    def release(self) -> None:
        """Free every model and close their files."""
        self.unload()
        self.spec.close()
