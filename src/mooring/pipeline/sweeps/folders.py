"""A sweep for engines that open folders: one model at a time, and a merge is on the disk while it is used."""

from pathlib import Path

from mooring.inference.engine import Engine
from mooring.inference.load import close_engine, load_engine
from mooring.merge_point import MergePoint
from mooring.pipeline.run_folder import remove
from mooring.pipeline.sweeps.sweep import SweepSpec


class FolderSweep:
    """A sweep that opens a folder for each model. Implements `Sweep`.

    Merges are written to `scratch`, one at a time.
    """

    concurrent = False
    stays_loaded = False

    def __init__(self, spec: SweepSpec, scratch: Path) -> None:
        self._spec, self._scratch = spec, scratch
        self._opened: tuple[Path, Engine] | None = None

    def at(self, point: MergePoint) -> Engine:
        """See `Sweep.at`."""
        folder = self._spec.folder_of(point) or self._spec.written.get(point) or self._write(point)
        if self._opened is None or self._opened[0] != folder:
            self._free()  # before the next model is loaded
            self._opened = folder, load_engine(folder, self._spec.runner, self._spec.system, self._spec.log)
        return self._opened[1]

    def close(self) -> None:
        """See `Sweep.close`. Removes the merge that was written."""
        self._free()
        remove(self._scratch)

    def _free(self) -> None:
        if self._opened is not None:
            close_engine(self._opened[1])
            self._opened = None

    def _write(self, point: MergePoint) -> Path:
        """A folder with a merge; the scratch folder holds at most one."""
        out = self._scratch / point.folder
        if self._opened is None or self._opened[0] != out:
            self._free()
            remove(self._scratch)
            self._spec.write(point, out)
        return out
