"""Whether a base and a tuned model belong together."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from mooring.errors import MismatchError
from mooring.merging.pair import QUANTIZED_NAME, ModelPair, Tokenizer
from mooring.merging.slices import same
from mooring.models import Adapter, Checkpoint
from mooring.models.adapter_config import unknown_options
from mooring.models.classes import text_fields
from mooring.models.resolve import named_folder
from mooring.models.vocabulary import chat_template, ids_by_token, special_tokens, vocabulary
from mooring.printable import shorten, visible
from mooring.text import without_folders

_IGNORED = (
    *("_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version", "use_cache", "vocab_size"),
    *("bos_token_id", "eos_token_id", "pad_token_id"),
)
"""Keys of a configuration that do not change what the weights compute, or have a warning of their own."""

TAKE_TUNED = "`--tokenizer tuned`"

_STEP = 2**20
"""Entries that are compared at a time."""


def check_pair(pair: ModelPair) -> list[str]:
    """Check that a merge of two models makes sense, before the work begins.

    Reads the weights only up to the first difference.

    Returns:
        Warnings, one sentence each.

    Raises:
        ModelError: A file is corrupt.
        MismatchError: The models are equal.
    """
    if not _differs(pair):
        what = f"{pair.tuned[0].folder}: equals {pair.base.folder}, so a merge would change nothing"
        raise MismatchError(what, "name a tuned model", code="model.equal")
    return pair_warnings(pair)


def _differs(pair: ModelPair) -> bool:
    """Whether the first tuned model differs from the base; more vocabulary rows count as a difference."""
    for tensor in pair.tensors.values():
        for start in range(0, tensor.shared, _STEP):
            base, (tuned, *_) = pair.read(tensor, start, min(start + _STEP, tensor.shared))
            if not same(base, tuned):
                return True
    return any(tensor.rest for tensor in pair.tensors.values())


def pair_warnings(pair: ModelPair, tokenizer: Tokenizer = "larger") -> list[str]:
    """Incompatibilities of a base and its first tuned model that do not prevent a merge, one sentence each.

    Compares the name of the base, configurations, tokenizers and chat templates. They hold no paths.

    Args:
        pair: The models, open.
        tokenizer: Whose tokenizer the merged model is to get.

    Raises:
        ModelError: A JSON file is corrupt.
    """
    base, tuned = pair.base, pair.tuned[0]
    found = (
        [*_other_base(base, tuned), *_unknown_options(tuned)]
        if isinstance(tuned, Adapter)
        else _configuration(base.config, tuned.config)
    )
    found += pair.remarks
    from_tuned = pair.tokenizer(tokenizer) > 0
    source = "the tuned model's" if from_tuned else "the base's"
    other = "" if from_tuned else f" ({TAKE_TUNED} takes the tuned model's)"
    folders = base.folder, tuned.folder
    templates, vocabularies = list(map(chat_template, folders)), list(map(vocabulary, folders))
    if None not in templates and templates[0] != templates[1]:
        found.append(f"the chat template differs; the merged model gets {source}{other}")
    elif templates[0] is None and templates[1] is not None:
        gets = "it" if from_tuned else f"none ({TAKE_TUNED} takes it)"
        found.append(f"only the tuned model has a chat template; the merged model gets {gets}")
    if None not in vocabularies and vocabularies[0] != vocabularies[1]:
        how = "; ".join(_vocabulary(*map(ids_by_token, vocabularies)))
        found.append(f"the tokenizer's vocabulary differs ({how}); the merged model gets {source}{other}")
    ours, theirs = map(special_tokens, folders)
    for key, token in theirs.items():
        if token is not None and ours[key] != token:
            values = f"{_quoted(token)} in the tuned model and {_quoted(ours[key])} in the base"
            found.append(f"{key} is {values}; {source} is kept")
    return list(map(visible, found))


def _quoted(value: Any) -> str:
    return shorten(repr(value))


def _configuration(ours: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
    """Where the configurations differ. Keys of one side only are left out: newer versions of a library write more."""
    if (ours is text_fields(ours)) != (theirs is text_fields(theirs)):  # one of them is the language model alone
        ours, theirs = text_fields(ours), text_fields(theirs)
    differ = [key for key in ours if key in theirs and key not in _IGNORED and ours[key] != theirs[key]]

    def described(key: str) -> str:
        if isinstance(ours[key], (dict, list)) or isinstance(theirs[key], (dict, list)):
            return key
        return f"{key} ({shorten(str(ours[key]))} in the base, {shorten(str(theirs[key]))} in the tuned model)"

    keys = ", ".join(map(described, differ))
    return [f"config.json differs in {keys}; the merged model gets the base's"] if differ else []


def _vocabulary(ours: Mapping[str, int], theirs: Mapping[str, int]) -> Iterator[str]:
    """How two vocabularies differ: sizes, added tokens, missing tokens, tokens with another id."""
    yield f"{len(ours)} tokens in the base, {len(theirs)} in the tuned model"
    for word, names in (("added", theirs.keys() - ours.keys()), ("missing", ours.keys() - theirs.keys())):
        if names:
            first = sorted(names, key=lambda name: ((theirs if word == "added" else ours)[name], name))[:3]
            yield f"{len(names)} {word}: {', '.join(map(_quoted, first))}{' …' if len(names) > 3 else ''}"
    if moved := sum(theirs[name] != ours[name] for name in ours.keys() & theirs.keys()):
        yield f"{moved} with another id"


def _other_base(base: Checkpoint, adapter: Adapter) -> list[str]:
    """Whether an adapter names another base. Folders move, so only the last part of a path is compared."""
    named = adapter.base_name or ""
    names = [base.folder.resolve().name, str(base.config.get("_name_or_path") or "")]
    # in a hub cache, the id is part of the path
    names += [part.removeprefix("models--") for part in base.folder.absolute().parts if part.startswith("models--")]
    same_name = any(_normalized(named) == _normalized(name) for name in names)
    folder = named_folder(named)
    if not named or same_name or (folder and folder.resolve() == base.folder.resolve()):
        return []
    return [f"the adapter names {shorten(without_folders(named))} as its base, not {base.folder.resolve().name}"]


def _unknown_options(adapter: Adapter) -> list[str]:
    """Whether an adapter has options that PEFT did not have when this was written, and that may change the weights."""
    names = [ascii(name)[1:-1][:80] for name in unknown_options(adapter.config)]
    return [f"the adapter has options that are not known here, and not followed: {', '.join(names)}"] if names else []


def _normalized(name: str) -> str:
    """The last part of a hub id or path, letters and digits only, without what says that it is quantized."""
    last = name.replace("--", "/").rstrip("/").rsplit("/", 1)[-1]
    while match := QUANTIZED_NAME.search(last):
        last = last[: match.start()] + last[match.end() :]
    return re.sub(r"[^a-z0-9]", "", last.lower())
