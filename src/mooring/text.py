"""Numbers and untrusted text for people's eyes."""

import re
import unicodedata

from mooring.metrics import METRICS, find_metric
from mooring.records import Score

ARROWS = {"higher": "↑", "lower": "↓"}
MISSING = "–"
HELD = "\u00a0"
"""A space at which no line is broken."""


def name_of(measure: str) -> str:
    """A score's name for people, in one line: `asr@rules` is `attack success rate, by rules`."""
    if measure.startswith("pass@"):
        return one_line(measure)
    if measure.startswith("lm_eval:"):
        return one_line(measure.removeprefix("lm_eval:"))
    whole, _, judge = measure.partition("@")
    name, _, part = whole.partition(":")
    words = METRICS[name].label if name in METRICS else name.replace("_", " ")
    return one_line(", ".join([words, *([part] if part else []), *([f"by {judge}"] if judge else [])]))


def one_line(text: str) -> str:
    """Untrusted text as `visible`, on one line."""
    return " ".join(visible(text).split())


def is_rate(measure: str) -> bool:
    """Whether a score is a share, shown in percent."""
    metric = find_metric(measure)
    return metric is None or metric.unit == "rate"


def number(value: float | None, measure: str) -> str:
    """A score's value: a rate in percent, a loss in nats."""
    if value is None:
        return MISSING
    return f"{100 * value:.1f} %" if is_rate(measure) and 0 <= value <= 1 else f"{value:.3f}"


def with_interval(score: Score | None) -> str:
    """A score with its 95 % interval, or a dash where it was not measured."""
    if score is None:
        return MISSING
    if score.value is None:
        return "undefined"
    if score.low is None or score.high is None:
        return number(score.value, score.name)
    if is_rate(score.name) and 0 <= score.value <= 1:
        return f"{number(score.value, score.name)} [{100 * score.low:.1f}, {100 * score.high:.1f}]"
    return f"{score.value:.3f} [{score.low:.3f}, {score.high:.3f}]"


def percent(share: float | None) -> str:
    """A share in whole percent."""
    return "undefined" if share is None else f"{100 * share:.0f} %"


def visible(text: str) -> str:
    """Untrusted text in which nothing acts unseen.

    Controls, bidirectional overrides, zero-width and other format characters, lone surrogates and private or
    unassigned code points are written out; line breaks and tabs stay.
    """
    # What is printable holds none of these, and most text is.
    if text.replace("\n", "").replace("\t", "").isprintable():
        return text
    return "".join(_shown(character) for character in text.replace("\r\n", "\n"))


def _shown(character: str) -> str:
    if character in "\n\t" or unicodedata.category(character) not in {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}:
        return character
    return f"⟨U+{ord(character):04X}⟩"


def markdown(text: str) -> str:
    """Untrusted text as plain words in one line or table cell of Markdown."""
    return re.sub(r"([\\`*_\[\]<>|#~&])", r"\\\1", one_line(text))


def fenced(text: str, kind: str = "") -> str:
    """Untrusted text as a Markdown code block, behind a fence longer than any in it."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{kind}\n{visible(text).rstrip()}\n{fence}"
