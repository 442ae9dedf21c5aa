"""The models of a run, one in memory at a time: the base, the tuned one, and their merge at any λ between."""

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

Lam = float | Mapping[str, float]
"""λ, or λ by module: patterns of tensors' names to λ, as `merge` takes them."""


class Models:
    """Engines for the models of a run.

    With the engine `transformers` nothing is written: one model's weights change in place. Other engines open folders:
    a merge is written to a scratch folder for as long as it is asked.

    Args:
        recipe: The run's recipe.
        base: Folder of the base.
        tuned: Folder of the tuned model, or of a LoRA adapter on the base.
        rule: Settings of the merging rule besides λ.
        scratch: Where merges may be written for a while.

    Attributes:
        written: A merge that is on the disk for good, and its folder.
    """

    written: tuple[MergePoint, Path] | None = None

    def __init__(self, recipe: Recipe, base: Path, tuned: Path, rule: Mapping[str, Any], scratch: Path) -> None:
        self._recipe = recipe
        self._base, self._tuned, self._rule = base, tuned, dict(rule)
        self._scratch = scratch
        self._merged: MergedModel | None = None
        self._opened: tuple[Path, Engine] | None = None

    def at(self, point: MergePoint) -> Engine:
        """The model at a point; at λ = 1 it is the tuned model itself, whatever the method would drop.

        What was returned for another point must not be asked any more: the model is the same, with other weights.

        Raises:
            UserError: A model cannot be loaded, or the merge cannot be made.
        """
        folder = None
        if point.is_base:
            folder = self._base
        elif point.is_tuned and not is_adapter(self._tuned):
            folder = self._tuned
        if self._recipe.generate.engine == "transformers":
            merged = self._merge_in_memory()
            if folder is None or (point.is_base and merged.keeps_side_files):
                self._opened = None
                return merged.at(self.lam_of(point), plain=point.is_tuned)
            merged.unload()
        return self._open(folder or self._folder(point))

    def release(self) -> None:
        """Let every model go, and remove what was written for them."""
        self._opened = None
        if self._merged is not None:
            self._merged.close()
            self._merged = None
        remove(self._scratch)

    def lam_of(self, point: MergePoint) -> Lam:
        """λ as `merge` takes it."""
        return patterns(tensor_names(self._base), point.overrides, point.lam) if point.by_module else point.lam

    def merge(self, point: MergePoint, out: Path) -> Path:
        """Write the merged model at a point.

        Raises:
            UserError: As `merge.stream.merge`.
        """
        rule = {"method": "linear"} if point.is_tuned else {"method": self._recipe.merge.method} | self._rule
        return merge(self._base, self._tuned, out, lam=self.lam_of(point), **rule)

    def _merge_in_memory(self) -> "MergedModel":
        from mooring.pipeline.merged_model import MergedModel, MergedModelSpec

        if self._merged is None:
            self._merged = MergedModel(
                MergedModelSpec(
                    base=self._base,
                    tuned=self._tuned,
                    method=self._recipe.merge.method,
                    options=self._rule,
                    runner=self._recipe.generate,
                    system=self._recipe.system,
                )
            )
        return self._merged

    def _open(self, folder: Path) -> Engine:
        if self._opened is None or self._opened[0] != folder:
            self._opened = None  # before the next one is loaded
            self._opened = folder, load_engine(folder, self._recipe.generate, self._recipe.system)
        return self._opened[1]

    def _folder(self, point: MergePoint) -> Path:
        """A folder with the merge at a point, the only one of its kind in the scratch folder."""
        if self.written is not None and self.written[0] == point:
            return self.written[1]
        out = self._scratch / point.folder
        if self._opened is None or self._opened[0] != out:
            self._opened = None
            remove(self._scratch)  # the last λ's, or what a killed run left
            self.merge(point, out)
        return out
