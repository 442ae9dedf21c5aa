"""The models of a run, one in memory at a time: the base, the tuned one, and their merges."""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mooring.config import Recipe
from mooring.inference.engine import Engine
from mooring.inference.load import load_engine
from mooring.merge_point import MergePoint
from mooring.merging.merge import merge
from mooring.models import is_adapter
from mooring.pipeline.module_groups import patterns, tensor_names
from mooring.pipeline.run_folder import remove

if TYPE_CHECKING:
    from mooring.pipeline.merged_model import MergedModel


class Models:
    """Engines for the models of a run.

    With the engine `transformers` no merge is written: the weights of one model change in place. Other engines open
    folders: a merge is written to a scratch folder for as long as it is used.

    Args:
        recipe: The recipe.
        base: Folder of the base.
        tuned: Folder of the tuned model, or of a LoRA adapter on the base.
        options: Settings of the merging method besides λ.
        scratch: Where merges may be written for a while.

    Attributes:
        written: A merge that is on the disk for good, and its folder.
    """

    written: tuple[MergePoint, Path] | None = None

    def __init__(self, recipe: Recipe, base: Path, tuned: Path, options: Mapping[str, Any], scratch: Path) -> None:
        self._recipe = recipe
        self._base, self._tuned, self._options = base, tuned, dict(options)
        self._scratch = scratch
        self._merged: MergedModel | None = None
        self._opened: tuple[Path, Engine] | None = None

    @functools.cached_property
    def tensor_names(self) -> list[str]:
        """The names of the base's tensors."""
        return tensor_names(self._base)

    def at(self, point: MergePoint) -> Engine:
        """The engine of a model. One that was returned before must not be used any more: its weights have changed.

        Raises:
            UserError: A model cannot be loaded, or the merge cannot be made.
        """
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
            self._merged.close()
            self._merged = None
        remove(self._scratch)

    def merge(self, point: MergePoint, out: Path) -> Path:
        """Write a merged model.

        Raises:
            UserError: The merge cannot be made or written.
        """
        method = {"method": "linear"} if point.is_tuned else {"method": self._recipe.merge.method} | self._options
        return merge(self._base, self._tuned, out, lam=self._lam(point), **method)

    def _folder_of(self, point: MergePoint) -> Path | None:
        """The folder of a model that exists already; None if it has to be merged."""
        if point.is_base:
            return self._base
        return self._tuned if point.is_tuned and not is_adapter(self._tuned) else None

    def _lam(self, point: MergePoint) -> float | dict[str, float]:
        """λ as merging takes it: a number, or patterns of tensor names."""
        return patterns(self.tensor_names, point.overrides, point.lam) if point.by_module else point.lam

    def _merge_in_memory(self) -> "MergedModel":
        from mooring.pipeline.merged_model import MergedModel, MergedModelSpec

        if self._merged is None:
            spec = MergedModelSpec(
                base=self._base,
                tuned=self._tuned,
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
