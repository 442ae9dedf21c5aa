"""Read a merged model again and check it against its manifest."""

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from mooring import bounded
from mooring.errors import ModelError
from mooring.merging.slices import SLICE, Slice, check_finite, cut, hash_values, scratch, sweep
from mooring.models import (
    MANIFEST,
    NAMES,
    Adapter,
    Checkpoint,
    Part,
    TensorDigest,
    content_digest,
    is_adapter,
    open_adapter,
    open_checkpoint,
    read_json,
)
from mooring.models.weights import INDEX


def verify(folder: str | Path, *, threads: int | None = None) -> dict[str, Any]:
    """Check a folder that Mooring wrote: names, shapes, types, digests, and no NaN or Inf.

    NaN and Inf are accepted if the merge was made with `allow_nonfinite`.

    Returns:
        Its manifest.

    Raises:
        ModelError: Something differs, or the folder has no manifest with digests.
    """
    folder = Path(folder)
    hint = "name a merged model's folder"
    if not folder.is_dir():
        raise ModelError(f"{folder}: there is no such folder", hint, code="model.not_found")
    if not (folder / MANIFEST).is_file():
        what = f"{folder}: has no {MANIFEST}, so it was not merged by Mooring"
        raise ModelError(what, hint, code="model.no_manifest")
    manifest = read_json(folder / MANIFEST, bounded.MANIFEST)
    if "digests" not in manifest:
        what = f"{folder / MANIFEST}: was written by an older Mooring"
        raise ModelError(what, "merge again", code="model.old_manifest")
    check_passed(folder, manifest)
    if not _well_formed(manifest):
        raise _differs(f"{folder / MANIFEST}: is malformed", code="model.bad_manifest")
    written = manifest["digests"]
    finite = not manifest.get("allow_nonfinite", False)
    with open_adapter(folder) if is_adapter(folder) else open_checkpoint(folder, as_stored=True) as model:
        if isinstance(model, Checkpoint) and len(model.shards) > 1 and not (folder / INDEX).is_file():
            raise _differs(f"{folder / INDEX}: is missing", code="model.missing_index")
        compare(model, written, finite=finite, threads=threads)
    if content_digest({name: tuple(entry) for name, entry in written.items()}) != manifest.get("digest"):
        raise _differs(
            f"{folder / MANIFEST}: its digest is not that of its list of tensors", code="model.digest_mismatch"
        )
    return manifest


def check_passed(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Raise if a merged model was checked when it was made, and does not compute what it should.

    Raises:
        ModelError: So its manifest says (`model.check_failed`).
    """
    check = manifest.get("check")
    if isinstance(check, dict) and check.get("passed") is False:
        faults = "; ".join(map(str, check.get("faults") or ()))[:500]
        raise ModelError(
            f"{folder}: was checked when it was made, and failed: {faults!a}", "merge again", code="model.check_failed"
        )


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
    model: Checkpoint | Adapter,
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
    folder = model.folder
    for name in sorted(written.keys() ^ model.tensors.keys()):
        fault = "is missing" if name in written else "is not in the manifest"
        raise _differs(f"{folder}: {name} {fault}", code="model.tensor_list_differs")
    for name, info in model.tensors.items():
        kind, shape, _ = written[name]
        if (NAMES[info.dtype], list(info.shape)) != (kind, list(shape)):
            now = f"{NAMES[info.dtype]} {list(info.shape)}"
            raise _differs(
                f"{folder}: {name} is {now}, but {kind} {list(shape)} was written", code="model.tensor_differs"
            )
    digests = {name: TensorDigest() for name in model.tensors}

    def work(piece: Slice) -> Part:
        size = (piece.stop - piece.start) * model.tensors[piece.name].dtype.itemsize
        values = model.read(piece.name, piece.start, piece.stop, out=scratch("read again", size, torch.uint8))
        if finite:
            check_finite(values, folder, piece.name)
        return hash_values(piece.start, values)

    pieces = (p for i in model.tensors.values() for p in cut(i.name, 0, i.numel, slice_bytes // i.dtype.itemsize))
    with contextlib.closing(sweep(pieces, work, threads, batch=8)) as results:
        for piece, part in results:
            digests[piece.name].add(part)
    for name, digest in digests.items():
        if digest.hexdigest() != written[name][2]:
            raise _differs(f"{folder}: the content of {name} is not what was written", code="model.tensor_differs")


def _differs(problem: str, *, code: str) -> ModelError:
    return ModelError(problem, "the folder is not what was written; merge again", code=code)
