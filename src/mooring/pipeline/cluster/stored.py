"""Model folders in a storage, by the digest of their files: sent once, and fetched once by each machine."""

import json
from collections.abc import Mapping
from pathlib import Path

from mooring.errors import StorageError
from mooring.events import Event, OnEvent
from mooring.files import gibibytes, sha256
from mooring.jsonio import convert, loads
from mooring.models.digest import combine, whole_digests
from mooring.models.model_cache import cached_model
from mooring.pipeline.storage import Storage


def send(storage: Storage, folder: Path, on_event: OnEvent) -> str:
    """Send a model folder to a storage, unless it is there. Returns the digest by which it is found.

    Raises:
        StorageError: It cannot be sent.
    """
    files = whole_digests(folder)
    digest = combine(files)
    if storage.read(_list_of(digest)) is not None:
        return digest
    there = storage.sizes(f"models/{digest}")  # of a command that was stopped while it sent them
    sizes = {name: (folder / name).stat().st_size for name in files}
    left = [name for name in files if there.get(name) != sizes[name]]
    message = f"sends {folder} to {storage.url} ({gibibytes(sum(sizes[name] for name in left))})"
    on_event(Event(step="storage", kind="info", message=message))
    storage.upload((folder / name, f"models/{digest}/{name}") for name in left)
    storage.write(_list_of(digest), json.dumps(files, indent=1).encode())
    return digest


def fetch(storage: Storage, digest: str) -> Path:
    """The folder of a model that was sent, in the cache of this machine.

    Raises:
        StorageError: It is not there any more, or was changed (`storage.no_model`), or cannot be fetched.
        OutputError: The cache cannot be written.
    """

    def write(out: Path) -> None:
        files = _files(storage, digest)
        storage.download((f"models/{digest}/{name}", out / name) for name in files)
        for name, expected in files.items():
            if sha256(out / name) != expected:
                raise _no_model(storage, digest)

    return cached_model(f"stored-{digest}", write)


def _files(storage: Storage, digest: str) -> Mapping[str, str]:
    """The files of a model and their digests."""
    text = storage.read(_list_of(digest))
    try:
        files: Mapping[str, str] = convert(Mapping[str, str], loads((text or b"").decode()))
    except ValueError:
        raise _no_model(storage, digest) from None
    if combine(files) != digest:  # so that the names are those that were sent
        raise _no_model(storage, digest)
    return files


def _no_model(storage: Storage, digest: str) -> StorageError:
    what = f"{storage.url}/models/{digest}: is not as it was sent"
    return StorageError(what, "remove it, and start the command again", code="storage.no_model")


def _list_of(digest: str) -> str:
    """The list of the files, which is written last."""
    return f"models/{digest}.json"
