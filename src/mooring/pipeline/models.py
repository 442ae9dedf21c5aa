"""The models of a run, one in memory at a time: the base, the tuned one, and their merges."""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mooring.config import Recipe
from mooring.inference.engine import Engine
from mooring.inference.load import load_engine
from mooring.merge_point import MergePoint
from mooring.merging.job import options_of
from mooring.merging.merge import merge_pair
from mooring.merging.pair import ModelPair
from mooring.models import Adapter
from mooring.pipeline.module_groups import patterns, tensor_names
from mooring.pipeline.run_folder import remove

if TYPE_CHECKING:
    from mooring.pipeline.merged_model import MergedModel


class Models:
    """Engines for the models of a run.

    With the engine `transformers` no merge is written: the weights of one model change in place. Other engines open
    folders: a merge is written to a scratch folder for as long as it is used. `written` is a merge that is on the disk
    permanently, and its folder.
    """

    written: tuple[MergePoint, Path] | None = None

    def __init__(self, recipe: Recipe, pair: ModelPair, options: Mapping[str, Any], scratch: Path) -> None:
        self.pair = pair
        self._recipe, self._options, self._scratch = recipe, options, scratch
        self._merged: MergedModel | None = None
        self._opened: tuple[Path, Engine] | None = None

    @functools.cached_property
    def tensor_names(self) -> list[str]:
        """The names of the base's tensors that a merge can change."""
        return tensor_names(self.pair.base)

    def at(self, point: MergePoint) -> Engine:
        """The engine of a model. Do not use one that was returned before: its weights have changed."""
        folder = self._folder_of(point)
        if self._recipe.generate.engine == "transformers":
            merged = self._merge_in_memory()
            if folder is None or (point.is_base and merged.keeps_side_files):
                self._opened = None
                return merged.at(self._lam(point), plain=point.is_tuned)
            merged.unload()
        return self._open(folder or self._written(point))

    def release(self) -> None:
        """Release every model, and remove what was written for them."""
        self._opened = None
        if self._merged is not None:
            self._merged.unload()
            self._merged = None
        self.pair.close()
        remove(self._scratch)

    def merge(self, point: MergePoint, out: Path) -> Path:
        """Write a merged model."""
        method = "linear" if point.is_tuned else self._recipe.merge.method
        options = options_of(method, self._lam(point), **({} if point.is_tuned else self._options))
        return merge_pair(self.pair, out, method=method, options=options)

    def _folder_of(self, point: MergePoint) -> Path | None:
        """The folder of a model that exists already; None if it has to be merged."""
        if point.is_base:
            return self.pair.base.folder
        tuned = self.pair.tuned[0]
        return tuned.folder if point.is_tuned and not isinstance(tuned, Adapter) else None

    def _lam(self, point: MergePoint) -> float | dict[str, float]:
        """λ as merging takes it: a number, or patterns of tensor names."""
        return patterns(self.tensor_names, point.overrides, point.lam) if point.by_module else point.lam

    def _merge_in_memory(self) -> "MergedModel":
        from mooring.pipeline.merged_model import MergedModel, MergedModelSpec

        if self._merged is None:
            spec = MergedModelSpec(
                pair=self.pair,
                method=self._recipe.merge.method,
                options=self._options,
                runner=self._recipe.generate,
                system=self._recipe.system,
            )
            self._merged = MergedModel(spec)
        return self._merged

    def _open(self, folder: Path) -> Engine:
        if self._opened is None or self._opened[0] != folder:
            self._opened = None  # free the memory before the next model is loaded
            self._opened = folder, load_engine(folder, self._recipe.generate, self._recipe.system)
        return self._opened[1]

    def _written(self, point: MergePoint) -> Path:
        """A folder with a merge; the scratch folder holds at most one."""
        if self.written is not None and self.written[0] == point:
            return self.written[1]
        out = self._scratch / point.folder
        if self._opened is None or self._opened[0] != out:
            self._opened = None
            remove(self._scratch)
            self.merge(point, out)
        return out
