"""A merge at any λ as an engine that can be asked, without a folder of its weights."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

from mooring.chat import DEFAULT_SYSTEM
from mooring.errors import ModelError, UserError
from mooring.generate.transformers_engine import Dtype, TransformersEngine, quiet
from mooring.merge.in_memory import merged_tensors


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
        UserError: As `merge.in_memory.merged_tensors`.
        ModelError: transformers cannot make a model of the merged tensors.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    with tempfile.TemporaryDirectory() as scratch, quiet():
        tensors = merged_tensors(base, tuned, lam=lam, method=method, side_files=Path(scratch), **settings)
        try:
            model, tokenizer = _assemble(Path(scratch), tensors, dtype)
        except ModelError:
            raise
        except Exception as error:  # whatever a loader meets in a broken folder, in one line
            reason = str(error).strip().split("\n")[0] or type(error).__name__
            raise ModelError(f"{base}: its merge cannot be loaded ({reason})", "is the folder whole?") from error
    return TransformersEngine(model.to(device), tokenizer, system=system, batch_size=batch_size)


def _assemble(folder: Path, tensors: dict[str, torch.Tensor], dtype: Dtype) -> tuple[Any, Any]:
    """Model and tokenizer, from a folder without weights and the weights."""
    local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    config = transformers.AutoConfig.from_pretrained(folder, **local)
    with torch.device("meta"):
        kind = type(transformers.AutoModelForCausalLM.from_config(config, trust_remote_code=False))
    model, info = kind.from_pretrained(
        None,
        config=config,
        generation_config=_generation_config(folder),
        state_dict=tensors,
        dtype=dtype,
        output_loading_info=True,
    )
    if missing := sorted(info["missing_keys"]):
        raise ModelError(f"the merge: {len(missing)} tensors are missing, such as {missing[0]}", "is the base whole?")
    return model, transformers.AutoTokenizer.from_pretrained(folder, **local)


def _generation_config(folder: Path) -> Any:
    """As transformers finds it for a folder: its own file, or the part of the model's configuration that is one."""
    try:
        return transformers.GenerationConfig.from_pretrained(folder, local_files_only=True)
    except OSError:
        return transformers.GenerationConfig.from_pretrained(
            folder, config_file_name="config.json", _from_model_config=True, local_files_only=True
        )


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
