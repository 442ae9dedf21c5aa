"""A model's folder as engines open it: a full checkpoint, or a LoRA adapter on a base that is on this machine."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from mooring.errors import ModelError, UserError
from mooring.models import ADAPTER_CONFIG, is_adapter, read_config, read_json
from mooring.models.classes import load_tokenizer, text_fields
from mooring.models.resolve import hub_name, resolve_model
from mooring.models.trainers import explained

Dtype = Literal["auto", "bfloat16", "float16", "float32"]
"""Type of the weights in memory; see `devices.memory_dtype` for `auto`."""


@dataclasses.dataclass(frozen=True, slots=True)
class ModelFolder:
    """A folder with a model.

    Attributes:
        path: The folder.
        base: Folder of the full checkpoint: of the adapter's base, or `path` itself.
        adapter: The adapter's configuration; None for a full checkpoint.
    """

    path: Path
    base: Path
    adapter: Mapping[str, Any] | None

    @property
    def tokenizer(self) -> Path:
        """The folder with the tokenizer: an adapter may bring its own."""
        return self.path if (self.path / "tokenizer_config.json").is_file() else self.base

    def load_tokenizer(self) -> Any:
        """The tokenizer, by transformers. No code of the folder is run."""
        return load_tokenizer(self.tokenizer)


def open_folder(path: Path) -> ModelFolder:
    """Find the checkpoint or the adapter in a folder.

    Raises:
        ModelError: There is no such folder, it holds no model, or the adapter's base is neither on this machine nor on
            the hub.
    """
    if not is_adapter(path):
        read_config(path)  # raises unless the folder holds a model
        return ModelFolder(path, path, None)
    config = read_json(path / ADAPTER_CONFIG)
    return ModelFolder(path, _base_of(path, config), config)


def _base_of(path: Path, config: Mapping[str, Any]) -> Path:
    """The folder of an adapter's base, found as any model that is named; a model on the hub is downloaded."""
    name = config.get("base_model_name_or_path")
    if not isinstance(name, str) or not name:
        what = f"{path}/{ADAPTER_CONFIG}: does not say what its base is (`base_model_name_or_path`)"
        hint = "merge it: mooring merge BASE ADAPTER --lam 1"
        found = None if "peft_type" in config else explained(path, f"no peft_type in its {ADAPTER_CONFIG}")
        raise found or ModelError(what, hint, code="model.base_not_found")
    revision = config.get("revision")
    on_hub = hub_name(name) is not None and isinstance(revision, str) and revision
    try:
        return resolve_model(f"{name}@{revision}" if on_hub else name)
    except UserError as error:
        what = f"{path}: its base model is not here ({error.message})"
        hint = f"set `base_model_name_or_path` in {ADAPTER_CONFIG} to its folder"
        raise ModelError(what, hint, code="model.base_not_found") from None


def stored_dtype(folder: Path) -> Dtype:
    """The type of a checkpoint's weights according to its configuration; `auto` if it names none."""
    config = text_fields(read_config(folder))
    dtype: Any = str(config.get("dtype") or config.get("torch_dtype")).removeprefix("torch.")
    return dtype if dtype in ("bfloat16", "float16", "float32") else "auto"
