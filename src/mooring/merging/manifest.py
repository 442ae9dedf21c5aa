"""What a merged folder holds besides its weights: the base's side files, its configuration, and how it was made."""

import dataclasses
import importlib.metadata
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from mooring.files import explained
from mooring.merging.inputs import Inputs
from mooring.merging.job import Options, Setting, as_plain
from mooring.merging.parameters import plain
from mooring.merging.slices import cut
from mooring.models import (
    MANIFEST,
    NAMES,
    Adapter,
    Checkpoint,
    TensorDigest,
    combine,
    content_digest,
    copy_side_files,
    file_digests,
    hash_part,
    read_json,
    side_files,
)

_VOCABULARY = ("tokenizer", "vocab", "merges", "spiece", "sentencepiece", "tekken")
_TOKENIZER = (*_VOCABULARY, "special_tokens_map", "added_tokens", "chat_template", "additional_chat_templates")
_TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
_GENERATION = "generation_config.json"
_COPIED = "copied: equal in all, and not floating-point"


@dataclasses.dataclass(frozen=True, slots=True)
class Record:
    """What is the same in the manifests of all outputs of a merge.

    Attributes:
        inputs: The models.
        method: The method's name.
        options: Its settings.
        changed: Tensors that some tuned model changed.
        decisions: What was decided about a tensor, or, under an empty name, about the whole.
        read: For every model, the digests of the tensors that the merge read.
        nonfinite: Whether NaN and Inf were let through.
    """

    inputs: Inputs
    method: str
    options: Options
    changed: Sequence[str]
    decisions: Mapping[str, Sequence[str]]
    read: Sequence[dict[str, TensorDigest]]
    nonfinite: bool = False


def write_side_files(folder: Path, record: Record, dtype: torch.dtype | None) -> None:
    """Copy configuration, tokenizer and the like from the base, changed where the merged model differs from it.

    Raises:
        OutputError: The disk is full.
    """
    inputs = record.inputs
    copy_side_files(inputs.base.folder, folder)
    changes = dict(inputs.config)
    source = inputs.models[inputs.tokenizer]
    taken = bool(inputs.tokenizer) and _has_tokenizer(source.folder)
    if taken and isinstance(source, Checkpoint):  # the end token may be one that was added
        changes |= {key: source.config[key] for key in _TOKEN_IDS if key in source.config}
        _copy_token_ids(source.folder, folder)
    if dtype is not None:
        key = "dtype" if "dtype" in inputs.base.config else "torch_dtype"
        changes[key] = str(dtype).removeprefix("torch.")
    if changes:
        config = json.loads(json.dumps(inputs.base.config))
        for key, value in changes.items():
            nested = config.get("text_config")
            within = isinstance(nested, dict) and key in nested and key not in config
            (nested if within else config)[key] = value
        with explained(folder):
            (folder / "config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", "utf-8")
    if taken:
        with explained(folder):
            for path in _tokenizer_files(inputs.base.folder):
                (folder / path).unlink()
            for path in _tokenizer_files(source.folder):
                (folder / path).parent.mkdir(exist_ok=True)
                shutil.copyfile(source.folder / path, folder / path)


def _copy_token_ids(source: Path, folder: Path) -> None:
    """Bring the ids of special tokens in the generation settings to those of the tokenizer's model."""
    theirs, ours = source / _GENERATION, folder / _GENERATION
    if not (theirs.is_file() and ours.is_file()):
        return
    ids = {key: value for key, value in read_json(theirs).items() if key in _TOKEN_IDS}
    with explained(folder):
        ours.write_text(json.dumps(read_json(ours) | ids, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _tokenizer_files(folder: Path) -> list[Path]:
    return [path for path in side_files(folder) if path.parts[0].startswith(_TOKENIZER)]


def _has_tokenizer(folder: Path) -> bool:
    """Whether a folder brings a tokenizer, not only a template or the like for one."""
    return any(path.parts[0].startswith(_VOCABULARY) for path in _tokenizer_files(folder))


def manifest(
    record: Record, lam: Setting, tensors: Mapping[str, tuple[torch.dtype, tuple[int, ...], TensorDigest]]
) -> dict[str, Any]:
    """How the output was made, as plain values. No dates and no paths: the same inputs give the same manifest.

    Args:
        record: What all outputs share.
        lam: λ.
        tensors: Name to type, shape and digest of what was written.
    """
    written = {
        name: (NAMES[dtype], list(shape), digest.hexdigest()) for name, (dtype, shape, digest) in tensors.items()
    }
    inputs = record.inputs
    decisions = {name: "; ".join(said) for name, said in record.decisions.items() if name}
    for name, target in inputs.targets.items():
        if not target.dtype.is_floating_point:
            decisions.setdefault(name, _COPIED)
    notes = list(record.decisions.get("", ()))
    if inputs.tokenizer:
        larger, base = (model.folder for model in (inputs.models[inputs.tokenizer], inputs.base))
        said = f"the tokenizer is that of {larger.resolve().name}"
        if not _has_tokenizer(larger):
            missing = f"{larger.resolve().name} has more vocabulary rows, but no tokenizer"
            said = f"{missing}: the tokenizer is that of {base.resolve().name}"
        notes.append(said)
    if record.nonfinite:
        notes.append("NaN and Inf were let through")
    return {
        "format": 2,
        "method": record.method,
        "lambda": as_plain(lam),
        "options": plain(record.method, record.options),
        "base": _source(inputs.base, record.read[0]),
        "tuned": [_source(m, read) for m, read in zip(inputs.tuned, record.read[1:], strict=True)],
        "tensors": {"all": len(inputs.targets), "changed": len(record.changed)},
        "decisions": dict(sorted(decisions.items())),
        "notes": notes,
        "digest": content_digest(written),
        "digests": {name: list(entry) for name, entry in sorted(written.items())},
        "made_with": {"mooring": _version(), "torch": torch.__version__},
    }


def write_manifest(folder: Path, content: Mapping[str, Any]) -> None:
    """Put a manifest into an output.

    Raises:
        OutputError: The disk is full.
    """
    with explained(folder):
        (folder / MANIFEST).write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _source(model: Checkpoint | Adapter, read: dict[str, TensorDigest]) -> dict[str, Any]:
    """An input: its folder's name, and a digest of what it holds."""
    name = model.folder.resolve().name
    if isinstance(model, Adapter):
        return {"name": name, "kind": "lora", "digest": f"sha256:{combine(file_digests(model.folder))}"}
    tensors = {}
    for info in model.tensors.values():
        digest = read.setdefault(info.name, TensorDigest())
        for piece in cut([info]) if digest.seen < info.nbytes else ():  # what the merge itself had no need to read
            first = piece.start * info.dtype.itemsize
            if first + (piece.stop - piece.start) * info.dtype.itemsize > digest.seen:
                start = max(piece.start, digest.seen // info.dtype.itemsize)
                values = model.read(info.name, start, piece.stop)
                digest.add(hash_part(start * info.dtype.itemsize, values.view(torch.uint8).numpy().data))
        tensors[info.name] = (NAMES[info.dtype], list(info.shape), digest.hexdigest())
    return {"name": name, "kind": "checkpoint", "digest": f"xxh3:{content_digest(tensors)}"}


def _version() -> str:
    """Mooring's own version; a source tree that is not installed has none."""
    try:
        return importlib.metadata.version("mooring")
    except importlib.metadata.PackageNotFoundError:
        return "source"
