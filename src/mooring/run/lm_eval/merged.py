"""A merge at any λ as an engine that can be asked, without a folder of its weights."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mooring.chat import DEFAULT_SYSTEM
from mooring.errors import UserError
from mooring.generate.transformers_engine import Dtype, TransformersEngine
from mooring.run.sweep.merged_model import MergedModel


def load_merged(
    base: str | Path,
    tuned: str | Path | Sequence[str | Path],
    *,
    lam: Any,
    method: str = "linear",
    system: str | None = DEFAULT_SYSTEM,
    batch_size: int = 32,
    dtype: Dtype = "auto",
    device: str = "auto",
    **settings: Any,
) -> TransformersEngine:
    """The model that `merge` would write at λ, as `TransformersEngine.load` would load it from there.

    On the CPU, in the type of the checkpoint, it takes the memory of one model. Configuration and tokenizer pass
    through a temporary folder.

    Args:
        base: Folder of the aligned model.
        tuned: Folder of the tuned model, or of a LoRA adapter on the base; or several of them.
        lam: λ, the weight of the tuned models.
        method: A name in `merge.rules.METHODS`.
        system: As the engine's.
        batch_size: As the engine's.
        dtype: Type in memory; `auto` is the checkpoint's.
        device: `auto` is a GPU where there is one.
        settings: Other settings of the method.

    Raises:
        UserError: As `MergedModel` and its `at`.
        ModelError: transformers cannot make a model of the merged tensors.
    """
    model = MergedModel(
        base, tuned, method=method, system=system, batch_size=batch_size, dtype=dtype, device=device, **settings
    )
    try:
        return model.at(lam)
    finally:
        model.close()


def open_engine(
    base: str | Path,
    tuned: str | Path | None = None,
    *,
    lam: Any = None,
    method: str = "linear",
    system: str | None = DEFAULT_SYSTEM,
    batch_size: int = 32,
    dtype: Dtype = "auto",
    device: str = "auto",
    **settings: Any,
) -> TransformersEngine:
    """A model as it lies in its folder, or, where a tuned model and λ are named too, their merge in memory.

    Args:
        base: A model's folder: a checkpoint, or an adapter on a base that lies here.
        tuned: A model that was tuned from it.
        lam: λ, the weight of the tuned model; it comes with `tuned`.
        method: As `load_merged`'s; it, too, means something only with `tuned`, and so do the rest.
        system: As `load_merged`'s.
        batch_size: As `load_merged`'s.
        dtype: As `load_merged`'s.
        device: As `load_merged`'s.
        settings: As `load_merged`'s.

    Raises:
        UserError: One of `tuned` and `lam` came without the other; or as `load_merged`.
        ModelError: The folder is not a model that can be loaded.
    """
    common: dict[str, Any] = {"system": system, "batch_size": batch_size, "dtype": dtype, "device": device}
    if tuned is None:
        if lam is not None or settings:
            what = "λ" if lam is not None else next(iter(settings))
            raise UserError(f"{what} is given, but no tuned model", "name the tuned model, too, or leave it out")
        return TransformersEngine.load(Path(base), **common)
    if lam is None and method != "model_stock":
        raise UserError(f"{tuned}: there is no λ to merge it with", "give λ, or name it as the one model")
    return load_merged(base, tuned, lam=lam, method=method, **common, **settings)
