"""One merge, written down: which models, which method, which settings."""

import dataclasses
import functools
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any, Literal, TypeAlias

from mooring.errors import UserError

# --- A number for every tensor: one value, a ramp over depth, or patterns of names to either ---


Value: TypeAlias = float | tuple[float, ...]
"""One number, or two or more that are spread evenly over the depth of the model and interpolated between."""

Given: TypeAlias = "float | tuple[float, ...] | list[float] | Mapping[str, Any] | Setting"
"""What `Setting.of` takes: a number, a ramp, patterns of names to either, or a setting."""

_LAYER = re.compile(r"(?:^|\.)(?:layers?|h|blocks?)\.(\d+)\.")
_BEFORE = re.compile(r"(?:^|[._])(?:embed(?!_out)|embeddings?|emb|wte|wpe)(?:[._]|$)|^shared\.")
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)
_RANGE = re.compile(r"(\d{1,6})-(\d{1,6})", re.ASCII)
_LONGEST_RANGE = 10_000


@dataclasses.dataclass(frozen=True, slots=True)
class Setting:
    """A number for every tensor. Build one with `of` or `containing`, which check it and bring it to one form.

    Attributes:
        rules: (pattern, value), tried in order; the first pattern that matches a tensor's name decides.
        matching: `glob`: a pattern such as `layers.{0-9}.mlp.*` matches a name from its start or from some dot on to
            its end; `*` stands for anything, dots too, `?` for one character, `{0-9}` for the whole numbers 0 to 9,
            `{q,k,v}` for one of these. `contains`: mergekit's filters: a pattern matches every name that contains it,
            and `*` every name; a ramp has its first value outside the layers, and what matches nothing is no mistake.
    """

    rules: tuple[tuple[str, Value], ...]
    matching: Literal["glob", "contains"] = "glob"

    @classmethod
    def of(cls, given: Given) -> "Setting":
        """A setting from plain values.

        Args:
            given: A number; a sequence of numbers, spread evenly over the depth; or a mapping of patterns to either,
                where the first that matches decides, `*` alone being tried last wherever it stands.

        Raises:
            UserError: A number is not finite, or a pattern is not well formed.
        """
        if isinstance(given, Setting):
            return given
        if not isinstance(given, Mapping):
            return cls((("*", _value(given)),))
        if not given:
            raise UserError("a setting has no patterns", "give at least `*`")
        rules = []
        for pattern in sorted(given, key="*".__eq__):  # stable: only `*` moves, to the end
            _compiled(pattern)
            rules.append((pattern, _value(given[pattern], pattern)))
        return cls(tuple(rules))

    @classmethod
    def containing(cls, rules: Iterable[tuple[str, Value]]) -> "Setting":
        """A setting in mergekit's manner: the first text that a tensor's name contains decides.

        Raises:
            UserError: A number is not finite.
        """
        kept: dict[str, Value] = {}
        for pattern, value in rules:
            if "*" in kept:  # nothing after it is ever reached
                break
            kept.setdefault(pattern or "*", _value(value, pattern))
        if list(kept) == ["*"] and isinstance(kept["*"], float):
            return cls.of(kept["*"])
        return cls(tuple(kept.items()), "contains")

    def at(self, name: str, depth: float) -> float:
        """The number for a tensor.

        Args:
            name: The tensor's name.
            depth: Where it lies, from 0 to 1 (`depths`).

        Raises:
            UserError: No pattern matches the name.
        """
        value = self._rule(name)
        if isinstance(value, float):
            return value
        if self.matching == "contains" and layer(name) is None:
            return value[0]
        return interpolate(value, depth)

    def _rule(self, name: str) -> Value:
        for pattern, value in self.rules:
            if _matches(pattern, name, self.matching):
                return value
        patterns = ", ".join(pattern for pattern, _ in self.rules)
        hint = "add the pattern `*`" if self.matching == "glob" else "add a value that has no filter"
        raise UserError(f"{name}: none of the patterns {patterns} matches it", hint)

    @property
    def constant(self) -> float | None:
        """The number, where it is the same for every tensor."""
        values = {value for _, value in self.rules}
        value = values.pop()
        return value if not values and isinstance(value, float) and self.rules[-1][0] == "*" else None

    def unused(self, names: Iterable[str]) -> tuple[str, ...]:
        """The patterns that match none of these names, so are likely mistyped; `*` and mergekit's filters never are."""
        if self.matching == "contains":
            return ()
        names = tuple(names)
        patterns = (pattern for pattern, _ in self.rules if pattern != "*")
        return tuple(p for p in patterns if not any(_matches(p, name, self.matching) for name in names))


def interpolate(values: tuple[float, ...], depth: float) -> float:
    """A ramp's number at a depth from 0 to 1: piecewise linear between values that are spread evenly over it."""
    place = depth * (len(values) - 1)
    below = int(place)
    above = min(below + 1, len(values) - 1)
    return (1 - (place - below)) * values[below] + (place - below) * values[above]


def as_plain(setting: Setting) -> Any:
    """A setting as plain values for JSON: a number, a list (a ramp), or a mapping of patterns to either.

    mergekit's manner of matching is told by one more level: `{"contains": {…}}`.
    """
    rules = {pattern: list(value) if isinstance(value, tuple) else value for pattern, value in setting.rules}
    if setting.matching == "contains":
        return {"contains": rules}
    return rules["*"] if list(rules) == ["*"] else rules


def parse(text: str) -> Value:
    """A value as the command line gives it: `0.6`, or `0.2..0.8`, a ramp from the first layer to the last.

    Raises:
        UserError: It is neither.
    """
    parts = [part.strip() for part in text.split("..")]
    if not all(_NUMBER.fullmatch(part) for part in parts):
        raise UserError(f"{text!r} is not a number", "write 0.6, or 0.2..0.8 for a ramp over depth")
    return _value(tuple(float(part) for part in parts), text)


def parse_rule(text: str) -> tuple[str, Value]:
    """A pattern and its value as the command line gives them: `layers.{0-9}.mlp.*=0.3`.

    Raises:
        UserError: It is not PATTERN=VALUE, or one of the two is not well formed.
    """
    pattern, equals, value = text.rpartition("=")
    if not equals or not pattern.strip():
        raise UserError(f"{text!r} is not PATTERN=VALUE", "write layers.{0-9}.mlp.*=0.3")
    _compiled(pattern.strip())
    try:
        return pattern.strip(), parse(value.strip())
    except UserError as error:
        raise UserError(f"{text!r}: {error.message}", error.hint) from None


def layer(name: str) -> tuple[str, int] | None:
    """The stack that a tensor lies in and its layer's number there; None outside the layers.

    `model.layers.3.experts.7.up.weight` lies in layer 3 of `model.layers`; the first number counts.
    """
    match = _LAYER.search(name)
    return (name[: match.start(1) - 1], int(match[1])) if match else None


def depths(names: Iterable[str]) -> dict[str, float]:
    """How deep in the model every tensor lies: 0 in the first layer, 1 in the last, by the numbers in the names.

    Each stack of layers (encoder, decoder, vision tower) is counted by itself; the only layer of a stack has depth 1,
    as in mergekit. Outside the layers: embeddings 0, all else (the last norm, the head) 1; mergekit gives both 0.
    """
    places = {name: layer(name) for name in names}
    last: dict[str, int] = {}
    for place in places.values():
        if place:
            last[place[0]] = max(place[1], last.get(place[0], 0))

    def depth(name: str, place: tuple[str, int] | None) -> float:
        if place is None:
            return 0.0 if _BEFORE.search(name) else 1.0
        return place[1] / last[place[0]] if last[place[0]] else 1.0

    return {name: depth(name, place) for name, place in places.items()}


def _value(given: Any, where: str = "") -> Value:
    """A number, or a ramp in its shortest form: one of equal numbers is a number."""
    numbers = tuple(given) if isinstance(given, (tuple, list)) else (given,)
    prefix = f"{where}: " if where else ""
    if not numbers:
        raise UserError(f"{prefix}a ramp has no numbers", "give two, the first layer's and the last one's")
    for number in numbers:
        if isinstance(number, bool) or not isinstance(number, (int, float)) or not math.isfinite(number):
            raise UserError(
                f"{prefix}{number!r} is not a finite number", "write 0.6, or 0.2..0.8 for a ramp over depth"
            )
    floats = tuple(float(number) for number in numbers)
    return floats[0] if len(set(floats)) == 1 else floats


def _matches(pattern: str, name: str, matching: str) -> bool:
    if pattern == "*":
        return True
    return pattern in name if matching == "contains" else bool(_compiled(pattern).fullmatch(name))


@functools.lru_cache(maxsize=4096)
def _compiled(pattern: str) -> re.Pattern[str]:
    """A glob as a regular expression for the whole of a name.

    Raises:
        UserError: It is empty, its braces do not pair, or a range runs backwards or is too long.
    """
    if not isinstance(pattern, str) or not pattern:
        raise UserError(f"{pattern!r} is not a pattern of names", "write `*` for every tensor")
    parts = []
    for part in re.split(r"(\{[^{}]*\}|\*+|\?)", pattern):
        if part.startswith("{") and part.endswith("}"):
            parts.append("(?:" + "|".join(_choice(pattern, text.strip()) for text in part[1:-1].split(",")) + ")")
        elif "{" in part or "}" in part:
            raise UserError(f"pattern {pattern!r}: braces do not pair", "write {0-9} or {q,k,v}")
        else:
            parts.append(".*" if part.startswith("*") else "." if part == "?" else re.escape(part))
    return re.compile(r"(?:.*\.)?" + "".join(parts), re.DOTALL)


def _choice(pattern: str, text: str) -> str:
    """One of the choices within braces: a range of whole numbers, no digit before or after, or a text as it stands."""
    if not text:
        raise UserError(f"pattern {pattern!r}: a choice within braces is empty", "write {0-9} or {q,k,v}")
    match = _RANGE.fullmatch(text)
    if not match:
        return re.escape(text)
    first, last = int(match[1]), int(match[2])
    if not first <= last < first + _LONGEST_RANGE:
        raise UserError(
            f"pattern {pattern!r}: {{{text}}} is not a range from a number up to a higher one", "write {0-9}"
        )
    return r"(?<!\d)(?:" + "|".join(str(number) for number in range(first, last + 1)) + r")(?!\d)"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The settings of a method; each `Setting` gives a number for every tensor.

    Attributes:
        lam: λ, the weight of the tuned models.
        base_weight: The base's own coefficient in place of 1−λ, for `linear` and `karcher`; the tuned models' are then
            `weights` as they stand.
        weights: One a tuned model. Without: equal shares of 1 for `linear` and `karcher`, 1 each elsewhere.
        density: The share of a change's entries that is kept: one a tuned model, or one for all; 1 without.
        gamma: The share of the largest entries that Breadcrumbs drops; likewise; 0.01 without.
        epsilon: Half the width of DELLA's keep probability; likewise; 0.15 without.
        normalize: Whether the sum of weighted changes is divided by the sum of weights; the method's default without.
        rescale: What makes up for dropped entries: `inverse` is 1/density, `l1` restores the sum of magnitudes, `none`
            nothing; the method's default without.
        seed: Seed of what is drawn (DARE, DELLA).
    """

    lam: Setting
    base_weight: Setting | None = None
    weights: tuple[Setting, ...] = ()
    density: tuple[Setting, ...] = ()
    gamma: tuple[Setting, ...] = ()
    epsilon: tuple[Setting, ...] = ()
    normalize: bool | None = None
    rescale: Literal["inverse", "l1", "none"] | None = None
    seed: int = 42


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A merge, complete.

    Attributes:
        method: A name in `rules.METHODS`.
        base: Folder or hub id of the base.
        tuned: Folders or hub ids of the tuned models: checkpoints, or LoRA adapters on the base.
        options: The method's settings.
        dtype: Type of the output's tensors, as torch names it; the base's own without.
        tokenizer: Whose tokenizer the output gets: the base's, or that of the model with more vocabulary rows.
    """

    method: str
    base: str
    tuned: tuple[str, ...]
    options: Options
    dtype: str | None = None
    tokenizer: Literal["base", "larger"] = "larger"
