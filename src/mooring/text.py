"""Numbers and untrusted text for people: how each is formatted, and how each medium's markup is escaped."""

import dataclasses
import math
import re
from pathlib import Path

from mooring.attacks.names import NONE, attack_of, without_attack
from mooring.metrics import METRICS, find_metric
from mooring.printable import one_line, visible
from mooring.records import Score

ARROWS = {"higher": "↑", "lower": "↓"}
MISSING = "–"
"""Shown for what was not measured."""
UNDEFINED = "undefined"
"""Shown for a number that was measured and has no value."""
NO_BREAK = "\u00a0"


# --- Numbers ---


def is_rate(measure: str) -> bool:
    """Whether a score is from 0 to 1 and shown in percent."""
    metric = find_metric(measure)
    return metric is None or metric.unit == "rate"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Number:
    """A number as it is shown: in percent if it is a rate.

    Attributes:
        value: The number; a rate is from 0 to 1. `None` if it is undefined.
        low: Lower end of its interval.
        high: Upper end.
        sd: Standard deviation over seeds; NaN if there is only one value.
        rate: Whether it is shown in percent, with one digit after the point; others have three digits.
        digits: Another number of digits.
        signed: Whether a plus sign is shown: for differences.
        unit: What follows the number; a rate that is not a difference has ` %`.
        remark: What follows the unit.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    sd: float | None = None
    rate: bool = False
    digits: int | None = None
    signed: bool = False
    unit: str | None = None
    remark: str = ""

    @property
    def short(self) -> str:
        """The number without its interval."""
        if self.value is None:
            return UNDEFINED
        unit = self.unit if self.unit is not None else " %" if self.rate and not self.signed else ""
        sd = "" if self.sd is None else f" ± {MISSING if math.isnan(self.sd) else self._format(self.sd)}"
        return f"{self._format(self.value)}{sd}{unit}{self.remark}"

    @property
    def interval(self) -> str:
        """Its interval in brackets; empty if there is none."""
        if self.value is None or self.low is None or self.high is None:
            return ""
        return f"[{self._format(self.low)}, {self._format(self.high)}]"

    def _format(self, value: float) -> str:
        scale, digits = (100, 1) if self.rate else (1, 3)
        digits = digits if self.digits is None else self.digits
        return f"{scale * value:{'+' if self.signed else ''}.{digits}f}".replace("-", "−")

    def __str__(self) -> str:
        return f"{self.short} {self.interval}".rstrip()


def number_of(value: float | None, measure: str, low: float | None = None, high: float | None = None) -> Number:
    """A score's value as it is shown: a rate in percent, anything else as it is."""
    return Number(value=value, low=low, high=high, rate=is_rate(measure) and value is not None and 0 <= value <= 1)


def score_number(score: Score | None) -> Number | None:
    """A score with its 95 % interval; `None` if it was not measured."""
    return None if score is None else number_of(score.value, score.name, score.low, score.high)


# --- Names ---


def name_of(measure: str) -> str:
    """A score's name for people, in one line: `asr+base64@rules` is `attack success rate, base64, by rules`."""
    if measure.startswith(("pass@", "lm_eval:")):
        return one_line(measure.removeprefix("lm_eval:"))
    attack = attack_of(measure)
    whole, _, judge = without_attack(measure).partition("@")
    name, _, part = whole.partition(":")
    words = METRICS[name].label if name in METRICS else name.replace("_", " ")
    under = [] if attack == NONE else [attack]
    return one_line(", ".join([words, *([part] if part else []), *under, *([f"by {judge}"] if judge else [])]))


def short_name(measure: str) -> str:
    """`name_of` without its remark in parentheses."""
    return name_of(measure).partition(" (")[0]


def without_folders(ref: str) -> str:
    """A reference to a model or a set in one line; of a path, which may reveal too much, only the last part."""
    return one_line(Path(ref).name if ref.startswith((".", "~", "/")) else ref)


def model_name(ref: str) -> str:
    """The name of a model or data set in one line: the last part of a path or hub id, without revision or `#500`."""
    name = re.split("[@#]", ref)[0].rstrip("/\\")
    return one_line(re.split(r"[/\\]|^bundled:", name)[-1] or ref)


# --- Untrusted text ---


def markdown(text: str) -> str:
    """Untrusted text as plain words in one line or table cell of Markdown: no markup, HTML, links or mentions."""
    escaped = re.sub(r"([\\`*_\[\]<>|#~&@!$])", r"\\\1", one_line(text))
    return re.sub(r"(?i)(?<=\bwww)(?=\.)|:(?=//)", lambda found: f"\\{found[0]}", escaped)


def markdown_code(text: str) -> str:
    """Untrusted text as a Markdown code span, between more backticks than any run in it."""
    line = one_line(text) or " "
    ticks = "`" * (1 + _longest_run(line))
    space = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{ticks}{space}{line}{space}{ticks}"


def fenced(text: str, kind: str = "") -> str:
    """Untrusted text as a Markdown code block, behind a fence longer than any run of backticks in it."""
    fence = "`" * max(3, 1 + _longest_run(text))
    return f"{fence}{kind}\n{visible(text).rstrip()}\n{fence}"


def _longest_run(text: str) -> int:
    return max(map(len, re.findall("`+", text)), default=0)


_LATEX = {
    "\\": r"\textbackslash{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "[": "{[}",
    "]": "{]}",
    "λ": r"$\lambda$",
    "κ": r"$\kappa$",
    "±": r"$\pm$",
    "−": r"$-$",
    "–": "--",
    "⟨": r"$\langle$",
    "⟩": r"$\rangle$",
}


def latex(text: str) -> str:
    """Untrusted text as plain words of LaTeX, in one line."""
    return "".join(_LATEX.get(character, character) for character in one_line(text))


def csv_cell(text: str) -> str:
    """Untrusted text for a spreadsheet, in one line; it cannot be taken for a formula."""
    return without_formula(one_line(text))


def without_formula(text: str) -> str:
    """Return text with an apostrophe in front if a spreadsheet would evaluate it as a formula."""
    return f"'{text}" if text.lstrip().startswith(tuple("=+-@＝＋－＠")) else text  # full-width ones are taken, too
