"""What the tokenizer files of a model folder say: tokens with their ids, special tokens, the chat template."""

import contextlib
import filecmp
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mooring import bounded
from mooring.errors import ModelError
from mooring.models.checkpoint import read_json, read_text

TOKENIZER, SETTINGS, TEMPLATE = "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"
SPECIAL = ("bos_token", "eos_token", "pad_token", "unk_token")


def special_tokens(folder: Path) -> dict[str, Any]:
    """A folder's special tokens by their roles; None for those that it does not define."""

    def token(value: Any) -> Any:
        return value.get("content") if isinstance(value, dict) else value

    settings = _settings(folder)
    return {key: token(settings.get(key)) for key in SPECIAL}


def chat_template(folder: Path) -> Any:
    """A folder's chat template as its files have it; None if it has none.

    Raises:
        ModelError: A file is corrupt.
    """
    if (folder / TEMPLATE).is_file():
        return read_text(folder / TEMPLATE)
    return _settings(folder).get("chat_template")


def vocabulary(folder: Path) -> Any:
    """The vocabulary of a folder's `tokenizer.json`: ids by token, or a unigram model's list; None without one.

    Raises:
        ModelError: The file is corrupt.
    """
    if not (folder / TOKENIZER).is_file():
        return None
    data = read_json(folder / TOKENIZER, bounded.TOKENIZER)
    with contextlib.suppress(AttributeError, TypeError, KeyError):
        added = {entry["content"]: entry["id"] for entry in data.get("added_tokens") or []}
        found = data["model"]["vocab"]
        return (found | added) if isinstance(found, dict) else found
    return None


def ids_by_token(found: Any) -> dict[str, int]:
    """Token to id, from what `vocabulary` returns; a unigram model writes a list of tokens and scores."""
    if isinstance(found, dict):
        return found
    with contextlib.suppress(TypeError, IndexError, KeyError):
        return {entry[0]: number for number, entry in enumerate(found or ())}
    return {}


def adds_tokens(ours: Path, theirs: Path, rows: int | None) -> bool:
    """Whether another folder's tokenizer has all tokens of ours, with the same ids, and more, all below `rows`."""
    one, other_one = ours / TOKENIZER, theirs / TOKENIZER
    if not (one.is_file() and other_one.is_file()) or filecmp.cmp(one, other_one, shallow=False):
        return False
    with contextlib.suppress(ModelError, TypeError):
        known, other = (ids_by_token(vocabulary(folder)) for folder in (ours, theirs))
        highest = max(other.values(), default=-1)
        return len(other) > len(known) > 0 and known.items() <= other.items() and (rows is None or highest < rows)
    return False


def _settings(folder: Path) -> Mapping[str, Any]:
    return read_json(folder / SETTINGS, bounded.TOKENIZER) if (folder / SETTINGS).is_file() else {}
