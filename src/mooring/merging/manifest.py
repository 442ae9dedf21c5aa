"""What a merged folder holds apart from its weights: side files, configuration, and a record of how it was made."""

import dataclasses
import importlib.metadata
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from mooring.errors import ModelError
from mooring.files import explained
from mooring.merging.job import Options, options_to_json
from mooring.merging.pair import ModelPair, Tokenizer
from mooring.merging.slices import SLICE, cut, hash_values
from mooring.merging.tensor_value import TensorValue
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
    read_json,
    side_files,
)
from mooring.models.classes import places_of, text_fields
from mooring.models.relaid import RelaidCheckpoint
from mooring.models.vocabulary import SETTINGS, TEMPLATE, adds_tokens, chat_template
from mooring.printable import as_json

_VOCABULARY = ("tokenizer", "vocab", "merges", "spiece", "sentencepiece", "tekken")
_TOKENIZER = (*_VOCABULARY, "special_tokens_map", "added_tokens", "chat_template", "additional_chat_templates")
_TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
_ABOUT_QUANTIZATION = ("quantize_config.json", "quant_config.json", "hf_quant_config.json")
"""What GPTQ, AWQ and ModelOpt write beside `config.json`."""
_GENERATION = "generation_config.json"
_COPIED = "copied: equal in all, and not floating-point"

Written = Mapping[str, tuple[str, list[int], str]]
"""Type, shape and digest of every tensor by name."""


class Decisions:
    """Sentences about what was decided for a tensor, by its name, or for the whole model, under an empty name."""

    def __init__(self, given: Mapping[str, str] | None = None) -> None:
        self._sentences = {name: [sentence] for name, sentence in (given or {}).items()}

    def add(self, name: str, sentence: str) -> None:
        """Add a sentence, once."""
        if sentence not in self._sentences.setdefault(name, []):
            self._sentences[name].append(sentence)

    @property
    def whole(self) -> list[str]:
        """The sentences about the whole model."""
        return list(self._sentences.get("", ()))

    def by_tensor(self) -> dict[str, str]:
        """The others, by tensor name in alphabetical order."""
        return {name: "; ".join(sentences) for name, sentences in sorted(self._sentences.items()) if name}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What the manifests of all outputs of a merge have in common.

    Attributes:
        pair: The models.
        method: The method's name.
        options: Its options.
        changed: How many tensors differ from the base in a tuned model or a reference.
        decisions: Decisions about tensors and the whole model.
        read: For every model, the digests of the tensors that the merge read.
        tokenizer: The index of the model whose tokenizer the output gets.
        allow_nonfinite: Whether NaN and Inf were let through.
    """

    pair: ModelPair
    method: str
    options: Options
    changed: int
    decisions: Decisions
    read: Sequence[dict[str, TensorDigest]]
    tokenizer: int = 0
    allow_nonfinite: bool = False


def write_side_files(
    folder: Path, pair: ModelPair, tokenizer: int, dtype: torch.dtype | None, *, keep_quantization: bool = False
) -> None:
    """Copy configuration and other side files from the base, and the tokenizer from a model, with the merge's changes.

    `dtype` is the type of the output's tensors, if it is not the base's. What the configuration says about quantization
    is left out unless the output is quantized as the base is.

    Raises:
        OutputError: The disk is full.
    """
    copy_side_files(pair.base.folder, folder)
    about_quantization = bool(pair.base.quantized or pair.base.quantization)
    if about_quantization and not keep_quantization:
        for name in _ABOUT_QUANTIZATION:
            (folder / name).unlink(missing_ok=True)
    changes = dict(pair.config)
    source = pair.models[tokenizer]
    taken = bool(tokenizer) and _has_tokenizer(source.folder)
    if taken and isinstance(source, Checkpoint):  # the end token may be one that was added
        changes |= {
            key: place[key]
            for key in _TOKEN_IDS
            for place in (text_fields(source.config), source.config)
            if key in place
        }
        _copy_token_ids(source.folder, folder)
    if dtype is not None:
        key = "dtype" if "dtype" in pair.base.config else "torch_dtype"
        changes[key] = str(dtype).removeprefix("torch.")
    if changes or (about_quantization and not keep_quantization):
        config = json.loads(json.dumps(pair.base.stored_config if keep_quantization else pair.base.config))
        for key, value in changes.items():
            for place in places_of(config, key):
                place[key] = value
        with explained(folder):
            (folder / "config.json").write_text(as_json(config, indent=2) + "\n", "utf-8")
    if taken:
        with explained(folder):
            for path in _tokenizer_files(pair.base.folder):
                (folder / path).unlink()
            for path in _tokenizer_files(source.folder):
                (folder / path).parent.mkdir(exist_ok=True)
                shutil.copyfile(source.folder / path, folder / path)
            away = {name.name for name in side_files(pair.base.folder, links_away=True)}
            template = None if away & {TEMPLATE, SETTINGS} else chat_template(pair.base.folder)
            extends = chat_template(source.folder) is None and adds_tokens(pair.base.folder, source.folder, None)
            if isinstance(template, str) and extends:  # otherwise it may use tokens that do not exist
                (folder / TEMPLATE).write_text(template, encoding="utf-8")


def check_tokenizer(pair: ModelPair, choice: Tokenizer) -> None:
    """Raise ModelError if the tuned model's tokenizer is to be taken, and it has none (`model.no_tokenizer`)."""
    tuned = pair.tuned[0].folder
    if choice == "tuned" and not _has_tokenizer(tuned):
        hint = "copy the tokenizer's files there, or use --tokenizer base"
        raise ModelError(f"{tuned}: has no tokenizer", hint, code="model.no_tokenizer")


def links_away(pair: ModelPair) -> list[str]:
    """A sentence for each side file that a merge leaves out because it links to a file outside the model's folder.

    Raises:
        ModelError: The base's configuration is such a link, without which the output would be no model.
    """
    said = []
    for model in pair.models:
        for name in side_files(model.folder, links_away=True):
            if name.name == "config.json" and model is pair.base:
                what = f"{model.folder / name}: links to a file outside the model's folder and the hub's cache"
                raise ModelError(what, "copy that file into the folder", code="model.link_away")
            if name.name != "config.json":
                where = "links to a file outside the model's folder and the hub's cache"
                said.append(f"{name} of {model.folder.resolve().name} was not copied: it {where}")
    return said


def _copy_token_ids(source: Path, folder: Path) -> None:
    """Copy the ids of special tokens in the generation settings from the tokenizer's model."""
    theirs, ours = source / _GENERATION, folder / _GENERATION
    if not (theirs.is_file() and ours.is_file()):
        return
    ids = {key: value for key, value in read_json(theirs).items() if key in _TOKEN_IDS}
    with explained(folder):
        ours.write_text(as_json(read_json(ours) | ids, indent=2) + "\n", encoding="utf-8")


def _tokenizer_files(folder: Path) -> list[Path]:
    return [path for path in side_files(folder) if path.parts[0].startswith(_TOKENIZER)]


def _has_tokenizer(folder: Path) -> bool:
    """Whether a folder has a tokenizer, not only files that accompany one."""
    return any(path.parts[0].startswith(_VOCABULARY) for path in _tokenizer_files(folder))


def manifest(
    record: Record,
    lam: TensorValue,
    tensors: Mapping[str, tuple[torch.dtype, tuple[int, ...], TensorDigest]],
    survival: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The record of how an output was made, as JSON. No dates and no paths: the same inputs give the same manifest.

    `tensors` has the type, shape and digest of every tensor that was written, and `survival` what rounding left of the
    change of each tensor that was quantized again.
    """
    pair, decisions = record.pair, record.decisions.by_tensor()
    for name, tensor in pair.tensors.items():
        if not tensor.dtype.is_floating_point:
            decisions.setdefault(name, _COPIED)
    notes = record.decisions.whole
    if record.tokenizer:
        larger, base = (model.folder for model in (pair.models[record.tokenizer], pair.base))
        if _has_tokenizer(larger):
            notes.append(f"the tokenizer is that of {larger.resolve().name}")
        elif record.tokenizer == pair.largest:
            missing = f"{larger.resolve().name} has more vocabulary rows, but no tokenizer"
            notes.append(f"{missing}: the tokenizer is that of {base.resolve().name}")
    if record.allow_nonfinite:
        notes.append("NaN and Inf were let through")
    if survival:
        shares = sorted(each["change"] for each in survival.values())
        notes.append(
            f"written in the base's quantized format: of a tensor's change, {shares[0]:.0%} to {shares[-1]:.0%} "
            f"survives rounding ({shares[len(shares) // 2]:.0%} in the median)"
        )
    written = {
        name: (NAMES[dtype], list(shape), digest.hexdigest()) for name, (dtype, shape, digest) in tensors.items()
    }
    return {
        "format": 2,
        "method": record.method,
        "lambda": lam.to_json(),
        "options": options_to_json(record.method, record.options),
        **({"allow_nonfinite": True} if record.allow_nonfinite else {}),
        "base": source_entry(pair.base, record.read[0]),
        "tuned": [source_entry(m, read) for m, read in zip(pair.tuned, record.read[1:], strict=False)],
        **{
            role: source_entry(model, read)
            for (role, model), read in zip(pair.references.items(), record.read[len(pair.models) :], strict=True)
        },
        "tensors": {"all": len(tensors), "changed": record.changed},
        "decisions": dict(sorted(decisions.items())),
        "notes": notes,
        **({"requantized": dict(survival)} if survival else {}),
        **written_entry(written),
    }


def written_entry(written: Written) -> dict[str, Any]:
    """The end of a manifest: the digests of what was written, and the versions of what wrote it."""
    return {
        "digest": content_digest(written),
        "digests": {name: list(entry) for name, entry in sorted(written.items())},
        "made_with": {"mooring": _version(), "torch": torch.__version__},
    }


def write_manifest(folder: Path, content: Mapping[str, Any]) -> None:
    """Write a manifest to an output.

    Raises:
        OutputError: The disk is full.
    """
    with explained(folder):
        (folder / MANIFEST).write_text(as_json(content, indent=1) + "\n", encoding="utf-8")


def source_entry(model: Checkpoint | Adapter, read: dict[str, TensorDigest]) -> dict[str, Any]:
    """An input: its folder's name, and a digest of its content. `read` is what the merge has read of a whole model.

    With `relaid`, the digest is that of the content in the base's names and layout.
    """
    name = model.folder.resolve().name
    if isinstance(model, Adapter):
        return {"name": name, "kind": "lora", "digest": f"sha256:{combine(file_digests(model.folder))}"}
    relaid = isinstance(model, RelaidCheckpoint)
    kept = model.kept if isinstance(model, RelaidCheckpoint) else frozenset()
    tensors = {}
    for info in (info for info in model.tensors.values() if info.name not in kept):
        digest = read.setdefault(info.name, TensorDigest())
        size = info.dtype.itemsize
        for piece in cut(info.name, digest.seen // size, info.numel, SLICE // size):  # what the merge did not read
            digest.add(hash_values(piece.start, model.read(info.name, piece.start, piece.stop)))
        tensors[info.name] = (NAMES[info.dtype], list(info.shape), digest.hexdigest())
    entry = {"name": name, "kind": "checkpoint", "digest": f"xxh3:{content_digest(tensors)}"}
    return entry | ({"relaid": True} if relaid else {})


def _version() -> str:
    """Mooring's version; a source tree that is not installed has none."""
    try:
        return importlib.metadata.version("mooring")
    except importlib.metadata.PackageNotFoundError:
        return "source"
