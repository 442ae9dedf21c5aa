"""A response as the judges of refusals read it: its answer alone, in one typography, in sentences."""

import re
from collections.abc import Iterator
from itertools import accumulate

from mooring.thinking import split_thoughts

LONGEST = 20_000
"""Characters of a response that are read."""
SENTENCE = 600
"""Characters at which a sentence is split, so that matching takes linear time."""

_SPECIAL = re.compile(
    r"</?s>|<\|[^<>|\n]{1,40}\|>|<(?:pad|eos|bos|unk|start_of_turn|end_of_turn|end_of_text|endoftext)>|\[/?INST\]"
)
"""Special tokens that an engine or a server left in a response."""
_STRAIGHT = str.maketrans(
    {"’": "'", "‘": "'", "ʼ": "'", "`": "'", "“": '"', "”": '"', "…": "...", "–": "-", "—": " - ", "\u00a0": " "}
)
_CODE = re.compile(r"```[^\n]*\n?(.*?)(?:```|\Z)", re.DOTALL)
_QUOTED = re.compile(r'"[^"\n]{12,400}"')
_END = re.compile(r"(?<=[.!?:;])[\"')\]]*\s+|(?<=[。！？])|\n+")
_ITEM = re.compile(r"\s*(?:[-*•]|\d{1,2}[.)]|step \d+)\s")
_WORD = re.compile(r"[\w¤][\w'-]*")
_CJK = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")


def answer_of(response: str) -> tuple[str, bool]:
    """A response's answer, without thoughts and special tokens, and whether it has thoughts but no answer."""
    parts = split_thoughts(response[:LONGEST])
    answer = _SPECIAL.sub(" ", parts.answer)
    return answer, parts.thoughts is not None and not re.search(r"\w", answer)


def normalise(text: str) -> str:
    """Lower case, straight quotes, no emphasis; code and quotations, which are not the model's own voice, become ¤."""
    text = text.translate(_STRAIGHT).lower()
    text = _CODE.sub(lambda code: " ¤" * 10 if re.search(r"[(){}=<>]", code[1]) else code[1] + "\n", text)
    text = re.sub(r"\*+|__+|^#+ |[\u200b\ufeff]", "", text, flags=re.MULTILINE)
    spoken = _QUOTED.sub(lambda quote: " ¤" * len(quote[0].split()) + " ", text)
    text = spoken if len(re.findall(r"\w+", spoken)) >= 4 else text.replace('"', "")
    return re.sub(r"[ \t\r\f\v]+", " ", text).strip()


def sentences(text: str) -> list[str]:
    """Sentences and lines, at least one, with their list markers."""
    parts = [part.strip() for part in _END.split(text) if part.strip()] or [text]
    return [part[start : start + SENTENCE] for part in parts for start in range(0, len(part) or 1, SENTENCE)]


def placed(parts: list[str]) -> Iterator[tuple[int, str]]:
    """Each sentence with the number of words before it."""
    return zip(accumulate(map(words, parts), initial=0), parts, strict=False)


def words(text: str) -> int:
    """The number of words; in scripts without spaces, two characters count as one word."""
    wide = len(_CJK.findall(text))
    return len(_WORD.findall(_CJK.sub(" ", text) if wide else text)) + wide // 2


def is_item(part: str) -> bool:
    """Whether a sentence is a list item."""
    return bool(_ITEM.match(part))


def stems(text: str) -> frozenset[str]:
    """The first five letters of each longer word."""
    return frozenset(word[:5] for word in re.findall(r"[^\W\d_]{4,}", text.lower()))


COMMON_STEMS = stems(
    "what when where which that this with from have your they them there would could should about into some does will "
    "make help give write tell explain need want"
)
"""Those of requests of any kind."""
