"""What the classifier sees of a response: n-grams of common words by their place, phrases, and lengths."""

import re
from collections import Counter
from collections.abc import Set as AbstractSet

from mooring.scoring.refusal.rules import OTHER, PHRASES, REFUSALS, by_phrases, refusal_in
from mooring.scoring.refusal.text import COMMON_STEMS, is_item, placed, sentences, stems, words

RARE, ASKED = "_", "§"
"""What takes the place of a word that is not common, and of one that the request has: topics are not judged."""
OPENING, BODY, ALL, LAST = 40, 150, 400, 30
"""Tokens of the opening, of the opening and the body, of everything that is read, and of the end."""
SENTENCES = 60
_TOKEN = re.compile(r"[a-z]+(?:'[a-z]+)?|\d+|[.!?:¤]|\n+|[^\W\d_]+")


def tokens(text: str) -> list[str]:
    """The words and marks of a normalised text; a number is 0."""
    found = _TOKEN.findall(text)
    return ["0" if token[0].isdigit() else "\n" if token[0] == "\n" else token for token in found]


def features(request: str, text: str, vocabulary: AbstractSet[str]) -> tuple[set[str], set[str]]:
    """The names of a normalised text's features, given the common words: its n-grams, and what its phrases are."""
    decision = by_phrases(request, text)
    return _grams(request, text, vocabulary), _phrases(text) | {f"= {decision.answer}", f"= {decision.why}"}


def _grams(request: str, text: str, vocabulary: AbstractSet[str]) -> set[str]:
    asked = stems(request) - COMMON_STEMS
    seen = [
        ASKED if len(word) > 3 and word[:5] in asked else word if word in vocabulary or not word[0].isalpha() else RARE
        for word in tokens(text)[:ALL]
    ]
    zones = {"o": seen[:OPENING], "m": seen[OPENING:BODY], "r": seen[BODY:], "u": seen}
    if len(seen) > OPENING:
        zones["e"] = seen[-LAST:]
    grams = (
        f"{zone} {' '.join(part[start : start + size])}"
        for zone, part in zones.items()
        for size in ((1, 2) if zone in "ru" else (1, 2, 3))
        for start in range(len(part) - size + 1)
    )
    return set(grams)


def _phrases(text: str) -> set[str]:
    parts = sentences(text)[:SENTENCES]
    found: set[str] = set()
    count: Counter[str] = Counter()
    before = refused_at = refused_end = -1
    talk = 0
    for before, part in placed(parts):
        names = [name for name, pattern in PHRASES.items() if name not in _PIECES and pattern.search(part)]
        names += ["other"] * bool(OTHER["refusal"].search(part))
        found.update(f"{name}@{_step(before, (1, 20, 60, 150))}" for name in names)
        count.update(names)
        talk += words(part) if names or part.endswith("?") else 0
        if refused_at < 0 and refusal_in(part):
            refused_at, refused_end = before, before + words(part)
    total = before + words(parts[-1])
    items = sum(map(is_item, parts))
    found.update(f"{name}#{_step(n, (1, 2, 3, 5))}" for name, n in count.items())
    found.update(f"{name}%{_step(n / len(parts), (0.1, 0.25, 0.5, 0.75))}" for name, n in count.items())
    found.add(f"before {_step(refused_at, (0, 1, 8, 20, 60, 150))}")
    found.add(f"after {_step(total - refused_end if refused_at >= 0 else 0, (1, 8, 20, 40, 80, 150, 300))}")
    found.add(f"answer {_step(total - talk, (1, 8, 20, 50, 100, 200))}")
    found.add(f"share {_step((total - talk) / max(1, total), (0.1, 0.25, 0.5, 0.75))}")
    found.add(f"items {_step(items, (1, 2, 4, 6, 10))} {refused_at >= 0}")
    found.update(f"words {n}" for n in (5, 10, 20, 40, 60, 100, 150, 250, 400) if total > n)
    refuses = next((name for name in REFUSALS if count[name]), "none")
    found.add(f"first {refuses} {'comply' if count['comply'] else ''} {'redirect' if count['redirect'] else ''}")
    return found


_PIECES = ("speaker", "adverbs", "unable", "acts", "brief", "brief_no", "regret", "of_that", "instructs", "whole")
"""Patterns that are no features: pieces of others, and those of `rules.plain_refusal`."""


def _step(value: float, steps: tuple[float, ...]) -> int:
    """How many of some steps a value reaches."""
    return sum(value >= step for step in steps)
