"""Which language a response is in, by its script and its commonest words."""

import operator
import re
import unicodedata
from collections import Counter
from importlib.resources import files
from typing import Literal

Language = Literal["english", "other", "unknown"]
"""English; another language of `other_languages.txt`; or none that the judges can read."""

ENOUGH = 8
"""Words, or letters of a script, that tell a language; a shorter response counts as English if its script is Latin."""
SHARE = 0.1
"""The least share of a language's commonest words among a response's; half of it in another script than Latin."""


def _read(text: str) -> dict[str, frozenset[str]]:
    """The words of each `[name]` of a text."""
    parts = re.split(r"^\[(\??\w+)\]$", text, flags=re.MULTILINE)
    return {name: frozenset(words.split()) for name, words in zip(parts[1::2], parts[2::2], strict=True)}


_COMMON = _read(files(__package__).joinpath("languages.txt").read_text(encoding="utf-8"))
_SCRIPTS = frozenset(("LATIN", "CYRILLIC", "ARABIC", "DEVANAGARI", "CJK", "HIRAGANA", "KATAKANA", "HANGUL"))


def language_of(text: str) -> Language:
    """The language of a normalised text; code, numbers and lists of names count as English."""
    letters = [char for char in text[:2000] if char.isalpha()]
    scripts = Counter(unicodedata.name(char, "?").partition(" ")[0] for char in letters)
    script = scripts.most_common(1)[0][0] if scripts else "LATIN"
    if script not in _SCRIPTS:
        return "unknown" if len(letters) >= ENOUGH else "english"
    found = re.findall(r"[^\W\d_]+(?:'[^\W\d_]+)?[\u0900-\u097f]*", text[:2000])
    if script in _COMMON:
        return "other" if len(found) < ENOUGH or _share(found, _COMMON[script]) >= SHARE / 2 else "unknown"
    if script != "LATIN":
        return "other"
    shares = {name: _share(found, common) for name, common in _COMMON.items()}
    english = shares.pop("english")
    name, best = max(shares.items(), key=operator.itemgetter(1))
    if best > max(english, SHARE) and not (name.startswith("?") and best * len(found) < 2):
        return "unknown" if name.startswith("?") else "other"
    prose = len(found) >= ENOUGH and not re.search(r"[(){}=<>\[\]_¤\d]", text)
    return "unknown" if prose and max(english, best) < SHARE else "english"


def _share(found: list[str], common: frozenset[str]) -> float:
    return sum(word in common for word in found) / len(found) if found else 0.0
