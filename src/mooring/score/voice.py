"""What of a response is the model's own voice, in one form to match against, and its sentences."""

import re

from mooring.score.partly import BLANK

_CODE = re.compile(r"```[^\n]*\n?(.*?)(?:```|\Z)", re.DOTALL)
_CODE_LINE = re.compile(
    r"^\s*(?:def|class|import|from|return|if|for|while|const|let|var|function|#include|print|public)\b"
)
_QUOTED = re.compile(r'"[^"\n]{12,400}"')
_SENTENCE = re.compile(r"(?<=[.!?:;])[\"')\]]*\s+|(?<=[。！？])|\n+| - ")
_STRAIGHT = str.maketrans(
    {"’": "'", "‘": "'", "ʼ": "'", "`": "'", "“": '"', "”": '"', "…": "...", "–": "-", "—": " - ", "\u00a0": " "}
)
LONGEST = 600
"""Characters after which a sentence is cut."""


def normalise(text: str) -> str:
    """Lower case, straight quotes, no emphasis; code and quotations blanked, unless that is all."""
    text = _blank_code(text[:20_000]).translate(_STRAIGHT).lower()
    text = re.sub(r"\*+|__+|^#+ |[\u200b\ufeff]", "", text, flags=re.MULTILINE)
    spoken = re.sub(r"^[ \t]*>.*$", "", text, flags=re.MULTILINE)
    spoken = _QUOTED.sub(lambda quote: f" {BLANK}" * len(quote[0].split()) + " ", spoken)
    text = spoken if len(re.findall(r"\w+", spoken)) >= 4 else text.replace('"', "")
    return re.sub(r"[ \t\r\f\v]+", " ", text).strip()


def _blank_code(text: str) -> str:
    """Code, fenced or not, with its words blanked; a fence round mere prose is taken off."""
    if "```" in text:
        return _CODE.sub(lambda code: _blanked(code[1]) if re.search(r"[(){}=<>]", code[1]) else code[1] + "\n", text)
    lines = text.splitlines()
    return _blanked(text) if lines and 2 * sum(bool(_CODE_LINE.match(line)) for line in lines) >= len(lines) else text


def _blanked(code: str) -> str:
    return f"\n{' '.join([BLANK] * max(10, len(code.split())))} code\n"


def sentences(text: str) -> list[str]:
    """Sentences and lines, list markers kept, at least one; longer ones cut, so that all takes linear time."""
    parts = [part.strip() for part in _SENTENCE.split(text) if part.strip()] or [text]
    return [part[start : start + LONGEST] for part in parts for start in range(0, len(part) or 1, LONGEST)]
