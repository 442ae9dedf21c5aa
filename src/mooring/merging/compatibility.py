"""Whether two models belong together, as far as their folders tell."""

import contextlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mooring.errors import MismatchError
from mooring.merging.inputs import open_inputs
from mooring.merging.slices import same
from mooring.models import ADAPTER_CONFIG, is_adapter, read_config, read_json

_HOUSEKEEPING = {
    "_name_or_path",
    "architectures",
    "dtype",
    "torch_dtype",
    "transformers_version",
    "use_cache",
    "vocab_size",
} | {"bos_token_id", "eos_token_id", "pad_token_id"}
"""Keys of a configuration that do not change what the weights compute, or are told of elsewhere."""

STEP = 2**20
"""Entries that are compared at a time."""


def belong_together(base: str | Path, tuned: str | Path) -> list[str]:
    """Hold that a merge of two models makes sense, before the work begins.

    Reads headers and configurations, and the weights only as far as the first difference.

    Returns:
        Warnings, a sentence each.

    Raises:
        ModelError: One of them cannot be opened.
        MismatchError: They are swapped, of different architecture, differ in a tensor's name or shape, or are equal.
    """
    base, tuned = Path(base), Path(tuned)
    with open_inputs(base, [tuned]) as inputs:
        for target in inputs.targets.values():
            for start in range(0, target.shared, STEP):
                ours, (theirs,) = inputs.read(target, start, min(start + STEP, target.shared))
                if not same(ours, theirs):
                    return warnings(base, tuned, inputs.tokenizer)
        if any(target.rest for target in inputs.targets.values()):  # it has more vocabulary rows
            return warnings(base, tuned, inputs.tokenizer)
    raise MismatchError(f"{tuned}: equals {base}, so a merge would change nothing", "name a tuned model")


def warnings(base: Path, tuned: Path, tokenizer: int = 0) -> list[str]:
    """What is odd about a pair but does not forbid a merge: another base's name, configuration, tokenizer, template.

    Args:
        base: The base's folder.
        tuned: The tuned model's folder.
        tokenizer: Whose tokenizer the merged model gets: 0 the base's, 1 the tuned model's.

    Raises:
        ModelError: A JSON file of theirs is corrupt.
    """
    found = []
    if is_adapter(tuned):
        found += _other_base(base, read_json(tuned / ADAPTER_CONFIG))
    else:
        found += _configuration(read_config(base), read_config(tuned))
    kept = "the tuned model's" if tokenizer else "the base's"
    ours, theirs = _tokenizer(base), _tokenizer(tuned)
    templates, vocabularies = ((ours[key], theirs[key]) for key in ("chat_template", "vocabulary"))
    if None not in templates and templates[0] != templates[1]:
        found.append(f"the chat template differs; the merged model gets {kept}")
    elif templates[0] is None and templates[1] is not None:
        found.append(f"only the tuned model has a chat template; the merged model gets {'it' if tokenizer else 'none'}")
    if None not in vocabularies and vocabularies[0] != vocabularies[1]:
        how = "; ".join(_vocabulary(*map(_ids, vocabularies)))
        found.append(f"the tokenizer's vocabulary differs ({how}); the merged model gets {kept}")
    for key in ("bos_token", "eos_token", "pad_token", "unk_token"):
        if theirs[key] is not None and ours[key] != theirs[key]:
            found.append(f"{key} is {theirs[key]!r} in the tuned model and {ours[key]!r} in the base; {kept} is kept")
    return found


def _configuration(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """Where the configurations differ. What one side alone writes is left out: versions of a library write more."""
    differ = [key for key in ours if key in theirs and key not in _HOUSEKEEPING and ours[key] != theirs[key]]

    def told(key: str) -> str:
        if isinstance(ours[key], (dict, list)) or isinstance(theirs[key], (dict, list)):
            return key
        return f"{key} ({ours[key]} in the base, {theirs[key]} in the tuned model)"

    return (
        [f"config.json differs in {', '.join(map(told, differ))}; the merged model gets the base's"] if differ else []
    )


def _ids(vocabulary: Any) -> dict[str, int]:
    """Token to id; a unigram model writes a list of tokens and scores."""
    if isinstance(vocabulary, dict):
        return vocabulary
    with contextlib.suppress(TypeError, IndexError, KeyError):
        return {entry[0]: number for number, entry in enumerate(vocabulary)}
    return {}


def _vocabulary(ours: Mapping[str, int], theirs: Mapping[str, int]) -> Iterator[str]:
    """How one vocabulary differs from another: sizes, what was added, what is missing, what has another id."""
    yield f"{len(ours)} tokens in the base, {len(theirs)} in the tuned model"
    for word, names in (("added", theirs.keys() - ours.keys()), ("missing", ours.keys() - theirs.keys())):
        if names:
            some = sorted(names, key=lambda name: ((theirs if word == "added" else ours)[name], name))[:3]
            yield f"{len(names)} {word}: {', '.join(map(repr, some))}{' …' if len(names) > 3 else ''}"
    if moved := sum(theirs[name] != ours[name] for name in ours.keys() & theirs.keys()):
        yield f"{moved} with another id"


def _other_base(base: Path, config: Mapping[str, Any]) -> list[str]:
    """Whether an adapter names another base. A path tells little, since folders move: its last part is compared."""
    named = str(config.get("base_model_name_or_path") or "")
    ours = {base.resolve().name, *_own_names(base)}
    if not named or any(_plain(named) == _plain(own) for own in ours) or Path(named).resolve() == base.resolve():
        return []
    return [f"the adapter names {named} as its base, not {base}"]


def _own_names(base: Path) -> list[str]:
    """What else a base may be called: the name in its config, and the hub id in a cache path."""
    names = [str(read_config(base).get("_name_or_path") or "")]
    names += [part.removeprefix("models--") for part in base.absolute().parts if part.startswith("models--")]
    return names


def _plain(name: str) -> str:
    """The last part of a hub id or path, letters and digits only."""
    last = name.replace("--", "/").rstrip("/").rsplit("/", 1)[-1]
    return re.sub(r"[^a-z0-9]", "", last.lower())


def _tokenizer(folder: Path) -> dict[str, Any]:
    """What a folder says about its tokenizer; None where it does not say."""

    def token(value: Any) -> Any:
        return value.get("content") if isinstance(value, dict) else value

    config = read_json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").is_file() else {}
    found = {key: token(config.get(key)) for key in ("bos_token", "eos_token", "pad_token", "unk_token")}
    template = config.get("chat_template")
    if (folder / "chat_template.jinja").is_file():
        template = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    found["chat_template"] = template
    found["vocabulary"] = None
    if (folder / "tokenizer.json").is_file():
        data = read_json(folder / "tokenizer.json")
        with contextlib.suppress(AttributeError, TypeError):
            added = {entry["content"]: entry["id"] for entry in data.get("added_tokens") or []}
            vocabulary = data["model"]["vocab"]
            found["vocabulary"] = (vocabulary | added) if isinstance(vocabulary, dict) else vocabulary
    return found
