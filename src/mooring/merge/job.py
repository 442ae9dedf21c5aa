"""One merge, written down: which models, which method, which settings."""

import dataclasses
from typing import Literal

from mooring.merge.settings import Setting


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The settings of a method; each `Setting` gives a number for every tensor.

    Attributes:
        lam: λ, the weight of the tuned models.
        base_weight: The base's own coefficient in place of 1−λ, for `linear` and `karcher`; the tuned models' are then
            `weights` as they stand.
        weights: One a tuned model. Without: equal shares of 1 for `linear` and `karcher`, 1 each elsewhere.
        density: The share of a change's entries that is kept: one a tuned model, or one for all; 1 without.
        gamma: The share of the largest entries that Breadcrumbs drops; likewise; 0.01 without.
        epsilon: Half the width of DELLA's keep probability; likewise; 0.15 without.
        normalize: Whether the sum of weighted changes is divided by the sum of weights; the method's default without.
        rescale: What makes up for dropped entries: `inverse` is 1/density, `l1` restores the sum of magnitudes, `none`
            nothing; the method's default without.
        seed: Seed of what is drawn (DARE, DELLA).
    """

    lam: Setting
    base_weight: Setting | None = None
    weights: tuple[Setting, ...] = ()
    density: tuple[Setting, ...] = ()
    gamma: tuple[Setting, ...] = ()
    epsilon: tuple[Setting, ...] = ()
    normalize: bool | None = None
    rescale: Literal["inverse", "l1", "none"] | None = None
    seed: int = 42


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A merge, complete.

    Attributes:
        method: A name in `rules.METHODS`.
        base: Folder or hub id of the base.
        tuned: Folders or hub ids of the tuned models: checkpoints, or LoRA adapters on the base.
        options: The method's settings.
        dtype: Type of the output's tensors, as torch names it; the base's own without.
        tokenizer: Whose tokenizer the output gets: the base's, or that of the model with more vocabulary rows.
    """

    method: str
    base: str
    tuned: tuple[str, ...]
    options: Options
    dtype: str | None = None
    tokenizer: Literal["base", "larger"] = "larger"
