"""The models of a run, one in memory at a time: the base, the tuned one, and their merge at any λ between."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mooring.config import Recipe
from mooring.inference.engine import Engine
from mooring.inference.load import load_engine
from mooring.merging.merge import merge
from mooring.models import is_adapter
from mooring.pipeline.run_folder import key_of, remove

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
        written: The λ of a merge that is on the disk for good, and its folder.
    """

    written: tuple[Lam, Path] | None = None

    def __init__(self, recipe: Recipe, base: Path, tuned: Path, rule: Mapping[str, Any], scratch: Path) -> None:
        self._recipe = recipe
        self._base, self._tuned, self._rule = base, tuned, dict(rule)
        self._scratch = scratch
        self._merged: MergedModel | None = None
        self._opened: tuple[Path, Engine] | None = None

    def at(self, lam: Lam) -> Engine:
        """The model at λ: 0 is the base, 1 the tuned model, whatever the rule would drop. Or at λ by module.

        What was returned for another λ must not be asked any more: the model is the same, and its weights are others.

        Raises:
            UserError: A model cannot be loaded, or the merge cannot be made.
        """
        folder = self._base if lam == 0 else self._tuned if lam == 1 and not is_adapter(self._tuned) else None
        if self._recipe.generate.engine == "transformers":
            merged = self._merge_in_memory()
            if folder is None or (lam == 0 and merged.keeps_side_files):
                self._opened = None
                return merged.at(lam, plain=lam == 1)
            merged.unload()
        return self._open(folder or self._folder(lam))

    def release(self) -> None:
        """Let every model go, and remove what was written for them."""
        self._opened = None
        if self._merged is not None:
            self._merged.close()
            self._merged = None
        remove(self._scratch)

    def merge(self, lam: Lam, out: Path) -> Path:
        """Write the merged model at λ.

        Raises:
            UserError: As `merge.stream.merge`.
        """
        rule = {"method": "linear"} if lam == 1 else {"method": self._recipe.merge.method} | self._rule
        return merge(self._base, self._tuned, out, lam=lam, **rule)

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

    def _folder(self, lam: Lam) -> Path:
        """A folder with the merge at λ, the only one of its kind in the scratch folder."""
        if self.written is not None and self.written[0] == lam:
            return self.written[1]
        out = self._scratch / (f"modules-{key_of(lam)[:12]}" if isinstance(lam, Mapping) else f"lam-{lam:g}")
        if self._opened is None or self._opened[0] != out:
            self._opened = None
            remove(self._scratch)  # the last λ's, or what a killed run left
            self.merge(lam, out)
        return out
