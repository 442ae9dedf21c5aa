"""The models of a finished run that benchmarks measure again."""

from pathlib import Path

from mooring.config import Recipe
from mooring.models.resolve import resolve_model


def base_of(run: Path) -> Path:
    """The folder of a run's base: the one that its `align` step wrote, or the one that its recipe names."""
    recipe = Recipe.load(run / "recipe.yaml")
    return run / "base" if recipe.align else resolve_model(recipe.base)
