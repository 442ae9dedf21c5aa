"""Untrusted text made safe to print: nothing in it acts on a terminal, and nothing stays unseen."""

import json
import unicodedata
from typing import Any

_CATEGORIES = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
"""Controls, format characters, surrogates, private and unassigned code points, separators of lines and paragraphs."""


def visible(text: str) -> str:
    """Untrusted text in which nothing acts unseen.

    Controls, bidirectional overrides, zero-width and other format characters, lone surrogates and private or
    unassigned code points are written out; line breaks and tabs stay.
    """
    if _is_plain(text):
        return text
    return "".join(f"⟨U+{ord(c):04X}⟩" if _acts(c) else c for c in text.replace("\r\n", "\n"))


def one_line(text: str) -> str:
    """Untrusted text as `visible`, in one line."""
    return " ".join(visible(text).split())


def shorten(text: str, most: int = 80) -> str:
    """Untrusted text in one line of at most `most` characters."""
    line = one_line(text[: most + 1])
    return line if len(line) <= most else f"{line[: most - 1]}…"


def as_json(value: Any, **options: Any) -> str:
    """A value as JSON, in which such characters are escaped, so that it is safe to print and reads back as it was.

    `options` are those of `json.dumps`.
    """
    text = json.dumps(value, ensure_ascii=False, **options)
    return text if _is_plain(text) else "".join(json.dumps(c)[1:-1] if _acts(c) else c for c in text)


def _is_plain(text: str) -> bool:
    """Whether no character acts; what is printable holds none, and most text is."""
    return text.replace("\n", "").replace("\t", "").isprintable()


def _acts(character: str) -> bool:
    return character not in "\n\t" and unicodedata.category(character) in _CATEGORIES
