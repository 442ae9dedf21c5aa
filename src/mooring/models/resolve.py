"""Model references: a folder, a GGUF file, a bundled model or a hub id -> a local folder."""

import re
from pathlib import Path

from mooring.errors import ModelError, UserError
from mooring.files import expanded
from mooring.hub import download_errors, explain
from mooring.models.bundled import bundled_model, converted_gguf
from mooring.models.checkpoint import is_adapter, open_checkpoint

HUB_ID = re.compile(r"(?P<id>[\w.-]+(?:/[\w.-]+)?)(?:@(?P<revision>[\w./-]+))?", re.ASCII)
"""`owner/name`, optionally with `@revision` (a branch, a tag or a commit)."""
_NO_ID = re.compile(r"(?:^|/)[-.]|[-.](?:/|$)|--|\.\.|\.git$|[^/]{97}")
"""What the hub refuses in an id."""
MODEL_FILES = ["*.safetensors", "*.json", "tokenizer*", "*.jinja", "*.model", "vocab*", "merges.txt"]
PICKLED = ["pytorch_model*.bin", "adapter_model.bin"]
"""Weights in PyTorch's format, downloaded only if there are no others; no pickled code is run."""
IGNORED_FILES = ["*/*", "consolidated*"]
"""Other formats' folders, and second copies of the weights."""


def resolve_model(ref: str) -> Path:
    """The local folder that holds a model.

    Args:
        ref: A folder, returned as it is; a `.gguf` file, converted once into the cache; `bundled:…`; or an id on the
            hub (`owner/name`, `owner/name@revision`), downloaded once into the hub's cache.

    Raises:
        ModelError: It is missing, is not a model, or cannot be downloaded.
        MissingExtraError: The package that brings the bundled model is not installed.
        OutputError: The cache cannot be written.
    """
    if not ref:
        hint = "name a folder, a .gguf file or a hub id"
        raise ModelError("the model's name is empty", hint, code="model.empty_name")
    if ref.startswith("bundled:"):
        return bundled_model(ref)
    path = expanded(ref)
    if path.is_dir():
        return path
    if path.is_file():
        if path.suffix.lower() != ".gguf":
            hint = "name the folder that holds it, or a .gguf file"
            raise ModelError(f"{path}: is a file, not a model", hint, code="model.not_a_folder")
        return converted_gguf(path)
    if path.suffix.lower() == ".gguf":
        raise ModelError(f"{path}: no such file", "check the path", code="model.not_found")
    match = HUB_ID.fullmatch(ref)
    if not match or _NO_ID.search(match["id"]):
        hint = "check the path, or name a model on the hub as owner/name"
        raise ModelError(f"{path}: no such folder", hint, code="model.not_found")
    return _downloaded(match["id"], match["revision"])


def local_model(ref: str) -> Path | None:
    """The folder of a model if it is on this machine, in the hub's cache too; None if it would have to be downloaded.

    Raises:
        ModelError: It is neither here nor an id on the hub.
        MissingExtraError: As `resolve_model`.
    """
    hub = hub_name(ref)
    if hub is None:
        return resolve_model(ref)
    from huggingface_hub import try_to_load_from_cache

    for name in ("config.json", "adapter_config.json"):
        file = try_to_load_from_cache(hub, name, revision=ref.partition("@")[2] or None)
        if isinstance(file, str) and _is_whole(Path(file).parent):
            return Path(file).parent
    return None


def _is_whole(folder: Path) -> bool:
    """Whether a folder has the files of a model: a checkpoint's configuration and weights, or an adapter's."""
    try:
        if is_adapter(folder):
            return any((folder / name).is_file() for name in ("adapter_model.safetensors", "adapter_model.bin"))
        open_checkpoint(folder).close()
    except ModelError as error:
        return error.code == "model.quantized"
    return True


def hub_name(ref: str) -> str | None:
    """The id on the hub that a model reference names, without its revision; `None` for something local."""
    match = HUB_ID.fullmatch(ref)
    if not match or _NO_ID.search(match["id"]) or Path(ref).exists():
        return None
    return match["id"]


def lasting_name(ref: str) -> str | None:
    """What names a model on any machine: its id on the hub, or that of a bundled model; `None` for a folder or file."""
    return ref if ref.startswith("bundled:") else hub_name(ref)


def named_folder(name: str) -> Path | None:
    """The folder of the base that an adapter names, if that is a folder on this machine or a bundled model."""
    if not name.startswith("bundled:"):
        return Path(name) if name and Path(name).is_dir() else None
    try:
        return bundled_model(name)
    except UserError:  # its package is not installed
        return None


def _downloaded(repo: str, revision: str | None) -> Path:
    """A snapshot of a model on the hub, in the hub's own cache."""
    from huggingface_hub import snapshot_download

    try:
        folder = Path(
            snapshot_download(repo, revision=revision, allow_patterns=MODEL_FILES, ignore_patterns=IGNORED_FILES)
        )
        if not any(folder.glob("*.safetensors")):
            snapshot_download(repo, revision=revision, allow_patterns=PICKLED, ignore_patterns=IGNORED_FILES)
    except download_errors() as error:
        what, hint = explain(error, f"huggingface.co/{repo}")
        hint = hint or "connect, or name a local folder"
        raise ModelError(f"{repo}: {what}", hint, code="model.download_failed") from None
    if not any(any(folder.glob(pattern)) for pattern in ("*.safetensors", *PICKLED)):
        hint = "choose a repository that does, or a .gguf file"
        raise ModelError(f"{repo}: holds no weights as safetensors", hint, code="model.no_weights")
    return folder
