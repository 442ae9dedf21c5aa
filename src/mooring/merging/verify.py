"""Read a merged model again and check it against its manifest."""

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from mooring.errors import ModelError
from mooring.merging.slices import SLICE, Slice, check_finite, cut, scratch, sweep
from mooring.models import (
    MANIFEST,
    NAMES,
    Part,
    TensorDigest,
    TensorFiles,
    content_digest,
    hash_part,
    is_adapter,
    open_adapter,
    open_checkpoint,
    read_json,
)

_MERGE_AGAIN = "the folder is not what was written; merge again"


def verify(folder: str | Path, *, threads: int | None = None) -> dict[str, Any]:
    """Check a folder that Mooring wrote: names, shapes, types, digests, and no NaN or Inf.

    NaN and Inf are accepted if the merge was made with `allow_nonfinite`.

    Returns:
        Its manifest.

    Raises:
        ModelError: Something differs, or the folder has no manifest with digests.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ModelError(f"{folder}: there is no such folder", "name a merged model's folder", code="model.not_found")
    if not (folder / MANIFEST).is_file():
        raise ModelError(
            f"{folder}: has no {MANIFEST}, so it was not merged by Mooring",
            "name a merged model's folder",
            code="model.no_manifest",
        )
    manifest = read_json(folder / MANIFEST)
    if "digests" not in manifest:
        raise ModelError(
            f"{folder / MANIFEST}: was written by an older Mooring", "merge again", code="model.old_manifest"
        )
    if not _well_formed(manifest):
        raise ModelError(f"{folder / MANIFEST}: is malformed", _MERGE_AGAIN, code="model.bad_manifest")
    written = manifest["digests"]
    finite = not manifest.get("allow_nonfinite", False)
    with open_adapter(folder) if is_adapter(folder) else open_checkpoint(folder) as model:
        compare(folder, model, written, finite=finite, threads=threads)
    if content_digest({name: tuple(entry) for name, entry in written.items()}) != manifest.get("digest"):
        raise ModelError(
            f"{folder / MANIFEST}: its digest is not that of its list of tensors",
            _MERGE_AGAIN,
            code="model.digest_mismatch",
        )
    return manifest


def _well_formed(manifest: Mapping[str, Any]) -> bool:
    """Whether a manifest is well formed, as far as `verify` relies on it."""
    digests, tensors = manifest["digests"], manifest.get("tensors")
    return (
        isinstance(digests, dict)
        and all(_is_entry(entry) for entry in digests.values())
        and isinstance(manifest.get("notes"), list)
        and isinstance(manifest.get("allow_nonfinite", False), bool)
        and isinstance(tensors, dict)
        and tensors.get("all") == len(digests)
    )


def _is_entry(entry: Any) -> bool:
    """Whether this is a tensor's type, shape and digest."""
    if not isinstance(entry, list) or len(entry) != 3:
        return False
    kind, shape, digest = entry
    return isinstance(kind, str) and isinstance(shape, list) and isinstance(digest, str)


def compare(
    folder: Path,
    model: TensorFiles,
    written: Mapping[str, Any],
    *,
    finite: bool = True,
    threads: int | None = None,
    slice_bytes: int = SLICE,
) -> None:
    """Check that a model's tensors are those of a list, name to (type, shape, digest).

    Raises:
        ModelError: A tensor is missing, is not in the list, differs in type, shape or content, or holds NaN or Inf.
    """
    for name in sorted(written.keys() ^ model.tensors.keys()):
        fault = "is missing" if name in written else "is not in the manifest"
        raise ModelError(f"{folder}: {name} {fault}", _MERGE_AGAIN, code="model.tensor_list_differs")
    for name, info in model.tensors.items():
        kind, shape, _ = written[name]
        if (NAMES[info.dtype], list(info.shape)) != (kind, list(shape)):
            what = f"{folder}: {name} is {NAMES[info.dtype]} {list(info.shape)}, but {kind} {list(shape)} was written"
            raise ModelError(what, _MERGE_AGAIN, code="model.tensor_differs")
    found = digests(model, folder if finite else None, threads, slice_bytes)
    for name, digest in found.items():
        if digest.hexdigest() != written[name][2]:
            raise ModelError(
                f"{folder}: the content of {name} is not what was written", _MERGE_AGAIN, code="model.tensor_differs"
            )


def digests(
    model: TensorFiles, check: Path | None = None, threads: int | None = None, slice_bytes: int = SLICE
) -> dict[str, TensorDigest]:
    """The digest of every tensor.

    Args:
        model: The tensors.
        check: The folder to name in an error if a value is NaN or Inf; None accepts them.
        threads: Number of worker threads.
        slice_bytes: Bytes that a thread holds at a time.

    Raises:
        ModelError: A value is NaN or Inf.
    """
    found = {name: TensorDigest() for name in model.tensors}

    def work(piece: Slice) -> Part:
        size = (piece.stop - piece.start) * model.tensors[piece.name].dtype.itemsize
        values = model.read(piece.name, piece.start, piece.stop, out=scratch("read again", size, torch.uint8))
        if check is not None:
            check_finite(values, check, piece.name)
        return hash_part(piece.start * values.dtype.itemsize, values.view(torch.uint8).numpy().data)

    with contextlib.closing(sweep(cut(model.tensors.values(), slice_bytes), work, threads, batch=8)) as results:
        for piece, part in results:
            found[piece.name].add(part)
    return found
