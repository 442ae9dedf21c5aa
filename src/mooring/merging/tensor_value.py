"""A number for every tensor: one number, a ramp over depth, or patterns of names to either."""

import dataclasses
import functools
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any, Literal, TypeAlias

from mooring.errors import UserError
from mooring.merging.layers import layer

Value: TypeAlias = float | tuple[float, ...]
"""One number, or several that are spread evenly over the depth of the model and interpolated."""

Given: TypeAlias = "float | tuple[float, ...] | list[float] | Mapping[str, Any] | TensorValue"
"""What `TensorValue.of` accepts: a number, a ramp, patterns of names to either, or a `TensorValue`."""

_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)
_RANGE = re.compile(r"(\d{1,6})-(\d{1,6})", re.ASCII)
_LONGEST_RANGE = 10_000
_HOW_TO_WRITE = "write 0.6, or 0.2..0.8 for a ramp over depth"


@dataclasses.dataclass(frozen=True, slots=True)
class TensorValue:
    """A number for every tensor. Built by `of` or `containing`, which check and normalize it.

    Attributes:
        rules: (pattern, value), tried in order; the first pattern that matches a tensor's name decides.
        matching: `glob`: a pattern such as `layers.{0-9}.mlp.*` matches a name from its start, or from any dot, to its
            end; `*` matches anything including dots, `?` one character, `{0-9}` the integers 0 to 9, `{q,k,v}` one of
            these. `contains`: mergekit's filters: a pattern matches every name that contains it, and `*` every name; a
            ramp has its first value outside the layers, and a pattern may match nothing.
    """

    rules: tuple[tuple[str, Value], ...]
    matching: Literal["glob", "contains"] = "glob"

    @classmethod
    def of(cls, given: Given) -> "TensorValue":
        """Build a value from numbers.

        Args:
            given: A number; a sequence of numbers, spread evenly over the depth; or a mapping of patterns to either, of
                which the first that matches decides; `*` alone is tried last, whatever its position.

        Raises:
            UserError: A number is not finite (`usage.bad_number`), or a pattern is malformed (`usage.bad_pattern`).
        """
        if isinstance(given, TensorValue):
            return given
        if not isinstance(given, Mapping):
            return cls((("*", _checked(given)),))
        if not given:
            raise _bad_pattern("there are no patterns", "give at least `*`")
        rules = []
        for pattern in sorted(given, key="*".__eq__):  # stable: only `*` moves, to the end
            _compiled(pattern)
            rules.append((pattern, _checked(given[pattern], pattern)))
        return cls(tuple(rules))

    @classmethod
    def containing(cls, rules: Iterable[tuple[str, Value]]) -> "TensorValue":
        """Build a value from mergekit's filters: the first text that a tensor's name contains decides.

        Raises:
            UserError: A number is not finite (`usage.bad_number`).
        """
        distinct: dict[str, Value] = {}
        for pattern, value in rules:
            if "*" in distinct:  # nothing after it is ever reached
                break
            distinct.setdefault(pattern or "*", _checked(value, pattern))
        if list(distinct) == ["*"] and isinstance(distinct["*"], float):
            return cls.of(distinct["*"])
        return cls(tuple(distinct.items()), "contains")

    def at(self, name: str, depth: float) -> float:
        """The number for a tensor.

        Args:
            name: The tensor's name.
            depth: Its relative depth, from 0 to 1 (`layers.depths`).

        Raises:
            UserError: No pattern matches the name (`usage.no_pattern_matches`).
        """
        value = next((value for pattern, value in self.rules if _matches(pattern, name, self.matching)), None)
        if value is None:
            patterns = ", ".join(pattern for pattern, _ in self.rules)
            hint = "add the pattern `*`" if self.matching == "glob" else "add a value that has no filter"
            what = f"{name}: none of the patterns {patterns} matches it"
            raise UserError(what, hint, code="usage.no_pattern_matches")
        if isinstance(value, float):
            return value
        if self.matching == "contains" and layer(name) is None:
            return value[0]
        return interpolate(value, depth)

    @property
    def constant(self) -> float | None:
        """The number if it is the same for every tensor, else None."""
        values = {value for _, value in self.rules}
        value = values.pop()
        return value if not values and isinstance(value, float) and self.rules[-1][0] == "*" else None

    def unused(self, names: Iterable[str]) -> tuple[str, ...]:
        """The patterns that match none of these names (probably mistyped); `*` and mergekit's filters never count."""
        if self.matching == "contains":
            return ()
        names = tuple(names)
        patterns = (pattern for pattern, _ in self.rules if pattern != "*")
        return tuple(p for p in patterns if not any(_matches(p, name, self.matching) for name in names))

    def to_json(self) -> Any:
        """A number, a list (a ramp), or a mapping of patterns to either; mergekit's filters as `{"contains": {…}}`."""
        rules = {pattern: list(rule) if isinstance(rule, tuple) else rule for pattern, rule in self.rules}
        if self.matching == "contains":
            return {"contains": rules}
        return rules["*"] if list(rules) == ["*"] else rules


def interpolate(values: tuple[float, ...], depth: float) -> float:
    """A ramp's number at a depth from 0 to 1: piecewise linear between evenly spread values."""
    place = depth * (len(values) - 1)
    below = int(place)
    above = min(below + 1, len(values) - 1)
    return (1 - (place - below)) * values[below] + (place - below) * values[above]


def parse(text: str) -> Value:
    """Parse a value from the command line: `0.6`, or `0.2..0.8`, a ramp from the first layer to the last.

    Raises:
        UserError: It is neither (`usage.bad_number`).
    """
    parts = [part.strip() for part in text.split("..")]
    if not all(_NUMBER.fullmatch(part) for part in parts):
        raise UserError(f"{text!r} is not a number", _HOW_TO_WRITE, code="usage.bad_number")
    return _checked(tuple(float(part) for part in parts), text)


def parse_rule(text: str) -> tuple[str, Value]:
    """Parse a pattern and its value from the command line: `layers.{0-9}.mlp.*=0.3`.

    Raises:
        UserError: It is not PATTERN=VALUE, or one of the two is malformed.
    """
    pattern, equals, value = text.rpartition("=")
    if not equals or not pattern.strip():
        raise _bad_pattern(f"{text!r} is not PATTERN=VALUE", "write layers.{0-9}.mlp.*=0.3")
    _compiled(pattern.strip())
    try:
        return pattern.strip(), parse(value.strip())
    except UserError as error:
        raise UserError(f"{text!r}: {error.message}", error.hint, code=error.code) from None


def _is_scalar(number: Any) -> bool:
    """Whether it is a scalar of NumPy, or a tensor of one number without dimensions."""
    return hasattr(number, "item") and getattr(number, "shape", None) == ()


def _checked(given: Any, where: str = "") -> Value:
    """A number or a ramp, checked; a ramp of equal numbers becomes a number."""
    numbers = tuple(given) if isinstance(given, (tuple, list)) or getattr(given, "ndim", 0) == 1 else (given,)
    numbers = tuple(number.item() if _is_scalar(number) else number for number in numbers)
    prefix = f"{where}: " if where else ""
    if not numbers:
        hint = "give two, the first layer's and the last one's"
        raise UserError(f"{prefix}a ramp has no numbers", hint, code="usage.bad_number")
    for number in numbers:
        if isinstance(number, bool) or not isinstance(number, (int, float)) or not math.isfinite(number):
            raise UserError(f"{prefix}{number!r} is not a finite number", _HOW_TO_WRITE, code="usage.bad_number")
    floats = tuple(float(number) for number in numbers)
    return floats[0] if len(set(floats)) == 1 else floats


def _matches(pattern: str, name: str, matching: str) -> bool:
    if pattern == "*":
        return True
    return pattern in name if matching == "contains" else bool(_compiled(pattern).fullmatch(name))


def _bad_pattern(problem: str, hint: str) -> UserError:
    return UserError(problem, hint, code="usage.bad_pattern")


@functools.lru_cache(maxsize=4096)
def _compiled(pattern: str) -> re.Pattern[str]:
    """A glob as a regular expression for a whole name."""
    if not isinstance(pattern, str) or not pattern:
        raise _bad_pattern(f"{pattern!r} is not a pattern of names", "write `*` for every tensor")
    parts = []
    for part in re.split(r"(\{[^{}]*\}|\*+|\?)", pattern):
        if part.startswith("{") and part.endswith("}"):
            parts.append("(?:" + "|".join(_choice(pattern, text.strip()) for text in part[1:-1].split(",")) + ")")
        elif "{" in part or "}" in part:
            raise _bad_pattern(f"pattern {pattern!r}: braces are unbalanced", "write {0-9} or {q,k,v}")
        else:
            parts.append(".*" if part.startswith("*") else "." if part == "?" else re.escape(part))
    return re.compile(r"(?:.*\.)?" + "".join(parts), re.DOTALL)


def _choice(pattern: str, text: str) -> str:
    """One choice within braces: a range of integers with no digit before or after, or a literal text."""
    if not text:
        raise _bad_pattern(f"pattern {pattern!r}: a choice within braces is empty", "write {0-9} or {q,k,v}")
    match = _RANGE.fullmatch(text)
    if not match:
        return re.escape(text)
    first, last = int(match[1]), int(match[2])
    if not first <= last < first + _LONGEST_RANGE:
        raise _bad_pattern(f"pattern {pattern!r}: {{{text}}} is not an ascending range", "write {0-9}")
    return r"(?<!\d)(?:" + "|".join(str(number) for number in range(first, last + 1)) + r")(?!\d)"
