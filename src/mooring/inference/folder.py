"""A model's folder as engines open it: a full checkpoint, or a LoRA adapter on a base that is on this machine."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from mooring.errors import ModelError
from mooring.models import ADAPTER_CONFIG, is_adapter, read_config, read_json
from mooring.models.classes import load_tokenizer

Dtype = Literal["auto", "bfloat16", "float16", "float32"]
"""Type of the weights in memory; `auto` is the checkpoint's own."""


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
        ModelError: There is no such folder, it holds no model, or the adapter's base is not on this machine.
    """
    if not is_adapter(path):
        read_config(path)  # raises unless the folder holds a model
        return ModelFolder(path, path, None)
    config = read_json(path / ADAPTER_CONFIG)
    base = Path(str(config.get("base_model_name_or_path")))
    if not base.is_dir():
        hint = "copy the base model there"
        raise ModelError(f"{path}: its base model {base} is not a folder here", hint, code="model.base_not_found")
    return ModelFolder(path, base, config)
