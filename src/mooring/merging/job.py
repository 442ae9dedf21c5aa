"""One merge, described: which models, which method, and the method's options for every tensor."""

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, TypeAlias

import torch

from mooring.errors import UserError
from mooring.merging.layers import depths, layer
from mooring.merging.methods import method_named
from mooring.merging.pair import OutputTensor
from mooring.merging.plan import Method, Rescale, TensorParams

Value: TypeAlias = float | tuple[float, ...]
"""One number, or several that are spread evenly over the depth of the model and interpolated."""

Given: TypeAlias = "float | tuple[float, ...] | list[float] | Mapping[str, Any] | TensorValue"
"""What `TensorValue.of` accepts: a number, a ramp, patterns of names to either, or a `TensorValue`."""

_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)
_RANGE = re.compile(r"(\d{1,6})-(\d{1,6})", re.ASCII)
_LONGEST_RANGE = 10_000


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
            UserError: A number is not finite, or a pattern is malformed.
        """
        if isinstance(given, TensorValue):
            return given
        if not isinstance(given, Mapping):
            return cls((("*", _value(given)),))
        if not given:
            raise UserError("there are no patterns", "give at least `*`", code="usage.bad_pattern")
        rules = []
        for pattern in sorted(given, key="*".__eq__):  # stable: only `*` moves, to the end
            _compiled(pattern)
            rules.append((pattern, _value(given[pattern], pattern)))
        return cls(tuple(rules))

    @classmethod
    def containing(cls, rules: Iterable[tuple[str, Value]]) -> "TensorValue":
        """Build a value from mergekit's filters: the first text that a tensor's name contains decides.

        Raises:
            UserError: A number is not finite.
        """
        distinct: dict[str, Value] = {}
        for pattern, value in rules:
            if "*" in distinct:  # nothing after it is ever reached
                break
            distinct.setdefault(pattern or "*", _value(value, pattern))
        if list(distinct) == ["*"] and isinstance(distinct["*"], float):
            return cls.of(distinct["*"])
        return cls(tuple(distinct.items()), "contains")

    def at(self, name: str, depth: float) -> float:
        """The number for a tensor.

        Args:
            name: The tensor's name.
            depth: Its relative depth, from 0 to 1 (`layers.depths`).

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
        raise UserError(f"{name}: none of the patterns {patterns} matches it", hint, code="usage.nonfinite")

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


def interpolate(values: tuple[float, ...], depth: float) -> float:
    """A ramp's number at a depth from 0 to 1: piecewise linear between evenly spread values."""
    place = depth * (len(values) - 1)
    below = int(place)
    above = min(below + 1, len(values) - 1)
    return (1 - (place - below)) * values[below] + (place - below) * values[above]


def to_json(value: TensorValue) -> Any:
    """A value as JSON: a number, a list (a ramp), or a mapping of patterns to either.

    mergekit's filters are wrapped once more: `{"contains": {…}}`.
    """
    rules = {pattern: list(rule) if isinstance(rule, tuple) else rule for pattern, rule in value.rules}
    if value.matching == "contains":
        return {"contains": rules}
    return rules["*"] if list(rules) == ["*"] else rules


def parse(text: str) -> Value:
    """Parse a value from the command line: `0.6`, or `0.2..0.8`, a ramp from the first layer to the last.

    Raises:
        UserError: It is neither.
    """
    parts = [part.strip() for part in text.split("..")]
    if not all(_NUMBER.fullmatch(part) for part in parts):
        raise UserError(
            f"{text!r} is not a number", "write 0.6, or 0.2..0.8 for a ramp over depth", code="usage.bad_number"
        )
    return _value(tuple(float(part) for part in parts), text)


def parse_rule(text: str) -> tuple[str, Value]:
    """Parse a pattern and its value from the command line: `layers.{0-9}.mlp.*=0.3`.

    Raises:
        UserError: It is not PATTERN=VALUE, or one of the two is malformed.
    """
    pattern, equals, value = text.rpartition("=")
    if not equals or not pattern.strip():
        raise UserError(f"{text!r} is not PATTERN=VALUE", "write layers.{0-9}.mlp.*=0.3", code="usage.bad_pattern")
    _compiled(pattern.strip())
    try:
        return pattern.strip(), parse(value.strip())
    except UserError as error:
        raise UserError(f"{text!r}: {error.message}", error.hint, code=error.code) from None


def _value(given: Any, where: str = "") -> Value:
    """A number or a ramp, checked; a ramp of equal numbers becomes a number."""
    numbers = tuple(given) if isinstance(given, (tuple, list)) else (given,)
    prefix = f"{where}: " if where else ""
    if not numbers:
        raise UserError(
            f"{prefix}a ramp has no numbers", "give two, the first layer's and the last one's", code="usage.bad_number"
        )
    for number in numbers:
        if isinstance(number, bool) or not isinstance(number, (int, float)) or not math.isfinite(number):
            raise UserError(
                f"{prefix}{number!r} is not a finite number",
                "write 0.6, or 0.2..0.8 for a ramp over depth",
                code="usage.bad_number",
            )
    floats = tuple(float(number) for number in numbers)
    return floats[0] if len(set(floats)) == 1 else floats


def _matches(pattern: str, name: str, matching: str) -> bool:
    if pattern == "*":
        return True
    return pattern in name if matching == "contains" else bool(_compiled(pattern).fullmatch(name))


@functools.lru_cache(maxsize=4096)
def _compiled(pattern: str) -> re.Pattern[str]:
    """A glob as a regular expression for a whole name.

    Raises:
        UserError: It is empty, its braces are unbalanced, or a range is descending or too long.
    """
    if not isinstance(pattern, str) or not pattern:
        raise UserError(
            f"{pattern!r} is not a pattern of names", "write `*` for every tensor", code="usage.bad_pattern"
        )
    parts = []
    for part in re.split(r"(\{[^{}]*\}|\*+|\?)", pattern):
        if part.startswith("{") and part.endswith("}"):
            parts.append("(?:" + "|".join(_choice(pattern, text.strip()) for text in part[1:-1].split(",")) + ")")
        elif "{" in part or "}" in part:
            raise UserError(
                f"pattern {pattern!r}: braces are unbalanced", "write {0-9} or {q,k,v}", code="usage.bad_pattern"
            )
        else:
            parts.append(".*" if part.startswith("*") else "." if part == "?" else re.escape(part))
    return re.compile(r"(?:.*\.)?" + "".join(parts), re.DOTALL)


def _choice(pattern: str, text: str) -> str:
    """One choice within braces: a range of integers with no digit before or after, or a literal text."""
    if not text:
        raise UserError(
            f"pattern {pattern!r}: a choice within braces is empty", "write {0-9} or {q,k,v}", code="usage.bad_pattern"
        )
    match = _RANGE.fullmatch(text)
    if not match:
        return re.escape(text)
    first, last = int(match[1]), int(match[2])
    if not first <= last < first + _LONGEST_RANGE:
        raise UserError(
            f"pattern {pattern!r}: {{{text}}} is not an ascending range", "write {0-9}", code="usage.bad_pattern"
        )
    return r"(?<!\d)(?:" + "|".join(str(number) for number in range(first, last + 1)) + r")(?!\d)"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The options of a method, each a number for every tensor. What is not given has the method's default.

    Attributes:
        lam: λ, the weight of the tuned models.
        base_weight: The base's own coefficient instead of 1−λ, for `linear` and `karcher`; the tuned models' are then
            `weights` as they are.
        weights: One per tuned model. Defaults to equal shares of 1 for `linear` and `karcher`, else to 1 each.
        density: The share of a change's entries that is kept: one per tuned model, or one for all.
        gamma: The share of the largest entries that Breadcrumbs drops: one per tuned model, or one for all.
        epsilon: Half the width of DELLA's keep probability: one per tuned model, or one for all.
        normalize: Whether the sum of weighted changes is divided by the sum of weights.
        rescale: How dropped entries are compensated: `inverse` multiplies by 1/density, `l1` restores the sum of
            magnitudes, `none` does nothing.
        seed: Random seed (DARE, DELLA).
    """

    lam: TensorValue
    base_weight: TensorValue | None = None
    weights: tuple[TensorValue, ...] = ()
    density: tuple[TensorValue, ...] = ()
    gamma: tuple[TensorValue, ...] = ()
    epsilon: tuple[TensorValue, ...] = ()
    normalize: bool | None = None
    rescale: Rescale | None = None
    seed: int | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A complete description of a merge.

    Attributes:
        method: A name in `methods.METHODS`.
        base: Folder or hub id of the base.
        tuned: Folders or hub ids of the tuned models: checkpoints, or LoRA adapters on the base.
        options: The method's options.
        dtype: Type of the output's tensors, as torch names it; defaults to the base's.
        tokenizer: Whose tokenizer the output gets: the base's, or that of the model with more vocabulary rows.
    """

    method: str
    base: str
    tuned: tuple[str, ...]
    options: Options
    dtype: str | None = None
    tokenizer: Literal["base", "larger"] = "larger"


_PER_MODEL = ("weights", "density", "gamma", "epsilon")


def options_of(method: str, lam: Any = None, **given: Any) -> Options:
    """Build options from numbers, as a caller in Python or a recipe gives them.

    Args:
        method: The method's name.
        lam: λ: a number, a ramp, patterns to either, or a `TensorValue`; defaults to 1 for `model_stock`.
        given: The other fields of `Options`; `weights`, `density`, `gamma` and `epsilon` are one value, or a sequence
            of one value per tuned model. None means not given.

    Raises:
        UserError: The method is unknown, does not take an option, or a value is not a number.
    """
    known = method_named(method)
    if lam is None:
        if method != "model_stock":
            hint = "give λ, the weight of the tuned model, from 0 to 1"
            raise UserError(f"method {method} requires λ", hint, code="usage.lambda_missing")
        lam = 1.0
    value = TensorValue.of(lam)
    if method == "lines" and value.constant is not None:
        value = TensorValue.of((0.0, value.constant))
    fields: dict[str, Any] = {"lam": value}
    for name, value in given.items():
        if value is None:
            continue
        if name not in known.options:
            takes = ", ".join(sorted(known.options)) or "none but λ"
            what = f"method {method} takes no {name}"
            raise UserError(what, f"leave it out (its options: {takes})", code="usage.unknown_option")
        fields[name] = _parsed(name, value)
    return Options(**fields)


def _parsed(name: str, value: Any) -> Any:
    """An option's value in the form of `Options`."""
    if name in _PER_MODEL:
        several = isinstance(value, Sequence) and not isinstance(value, str)
        return tuple(TensorValue.of(v) for v in value) if several else (TensorValue.of(value),)
    if name == "base_weight":
        return TensorValue.of(value)
    if name == "rescale" and value not in ("inverse", "l1", "none"):
        raise UserError(f"rescale: {value!r} is unknown", "give inverse, l1 or none", code="usage.bad_option")
    if name == "normalize" and not isinstance(value, bool):
        raise UserError(f"normalize: {value!r} is not true or false", "give one of the two", code="usage.bad_option")
    if name == "seed" and (isinstance(value, bool) or not isinstance(value, int)):
        raise UserError(f"seed: {value!r} is not an integer", "give an integer", code="usage.bad_option")
    return value


def options_to_json(method: str, options: Options) -> dict[str, Any]:
    """The options that the method takes, as JSON for the manifest, with defaults written out."""
    found: dict[str, Any] = {}
    for name, default in sorted(method_named(method).options.items()):
        value = getattr(options, name)
        if name in _PER_MODEL:
            value = [to_json(one) for one in value] or (None if default is None else [default])
        elif value is None:
            value = default
        elif name == "base_weight":
            value = to_json(value)
        if value is not None:
            found[name] = value
    return found


def tensor_params(
    method: str,
    options: Options,
    tensors: Mapping[str, OutputTensor],
    models: int,
    lams: Sequence[TensorValue],
    note: Callable[[str, str], None],
    dtype: torch.dtype | None = None,
) -> dict[str, TensorParams]:
    """The parameters of every floating-point tensor.

    Args:
        method: The method's name.
        options: Its options.
        tensors: The tensors.
        models: How many tuned models there are.
        lams: λ, one per output.
        note: Called with a tensor's name and a decision about it.
        dtype: The type of the outputs; defaults to the base's.

    Raises:
        UserError: The method takes fewer or more tuned models, a number is out of range for a tensor, a pattern matches
            no tensor, or none matches a tensor.
    """
    known = method_named(method)
    _check_count(known, models)
    names = [name for name, tensor in tensors.items() if tensor.dtype.is_floating_point]
    _check_patterns(options, lams, names)
    depth = depths(names)
    defaults: dict[str, Any] = {
        "density": 1.0,
        "gamma": 0.0,
        "epsilon": 0.0,
        "normalize": False,
        "rescale": "none",
        "seed": 0,
    }
    defaults |= {name: default for name, default in known.options.items() if default is not None}

    def numbers(name: str, field: str) -> tuple[float, ...]:
        given: tuple[TensorValue, ...] = getattr(options, field)
        if not given:
            return (defaults[field],) * models if field in defaults else ()
        if len(given) not in (1, models):
            what = f"{field}: {len(given)} values for {models} tuned models"
            raise UserError(what, "give one, or one for each", code="usage.wrong_number_of_values")
        found = tuple(value.at(name, depth[name]) for value in given)
        return found * models if len(found) == 1 else found

    def scalar(field: str) -> Any:
        value = getattr(options, field)
        return defaults[field] if value is None else value

    params = {}
    for name in names:
        params[name] = TensorParams(
            name=name,
            shape=tensors[name].shape,
            dtype=dtype or tensors[name].dtype,
            numel=tensors[name].shared,
            lams=tuple(lam.at(name, depth[name]) for lam in lams),
            base_weight=options.base_weight.at(name, depth[name]) if options.base_weight else None,
            weights=numbers(name, "weights"),
            density=numbers(name, "density"),
            gamma=numbers(name, "gamma"),
            epsilon=numbers(name, "epsilon"),
            normalize=scalar("normalize"),
            rescale=scalar("rescale"),
            seed=scalar("seed"),
            note=functools.partial(note, name),
            kind=known.kind,
        )
        _check_params(known, params[name])
    return params


def _check_count(method: Method, models: int) -> None:
    if models < method.least:
        what = f"{method.name} merges at least {method.least} tuned models, not {models}"
        raise UserError(what, "name more of them", code="usage.too_few_models")
    if method.most is not None and models > method.most:
        hint = "use karcher for several" if method.name == "slerp" else "name fewer"
        what = f"{method.name} merges {method.most} tuned model, not {models}"
        raise UserError(what, hint, code="usage.too_many_models")


def _check_patterns(options: Options, lams: Sequence[TensorValue], names: Sequence[str]) -> None:
    """Raise for a pattern that matches nothing, which is probably mistyped."""
    given = [("lam", lam) for lam in lams]
    given += [(field, value) for field in _PER_MODEL for value in getattr(options, field)]
    if options.base_weight:
        given.append(("base_weight", options.base_weight))
    for field, value in given:
        for pattern in value.unused(names):
            what = f"{field}: the pattern {pattern!r} matches no tensor"
            raise UserError(what, "see the names in `mooring inspect`", code="usage.pattern_matches_nothing")


def _check_params(method: Method, params: TensorParams) -> None:
    """Raise if a number is out of range."""
    for lam in params.lams:
        if method.bounded and not 0 <= lam <= 1:  # raises for NaN as well
            hint = "give a number from 0 (the base) to 1 (the tuned model)"
            raise UserError(f"λ is {lam:g}", hint, code="usage.lambda_out_of_range")
        if not math.isfinite(lam):
            raise UserError(f"λ is {lam:g}", "give a finite number", code="usage.lambda_out_of_range")
    for what, hint in _faults(method, params):
        raise UserError(f"{method.name}, {params.name}: {what}", hint, code="usage.option_out_of_range")


def _faults(method: Method, params: TensorParams) -> Iterable[tuple[str, str]]:
    """What is out of range, and the fix."""
    for density, gamma, epsilon in zip(params.density, params.gamma, params.epsilon, strict=True):
        if not 0 <= density <= 1:
            yield f"density is {density:g}", "give the share to keep, from 0 to 1"
        if not 0 <= gamma <= 1:
            yield f"gamma is {gamma:g}", "give the share of largest entries to drop, from 0 to 1"
        if not epsilon >= 0:
            yield f"epsilon is {epsilon:g}", "give half the width of the keep probability, from 0"
        if method.kind == "magprune" and density < 1 and not (density - epsilon > 0 and density + epsilon < 1):
            yield f"density {density:g} ± epsilon {epsilon:g} leaves (0, 1)", "give a smaller epsilon"
    if method.name == "linear" and params.base_weight is None and not params.normalize:
        yield "normalize is false, but there is no base_weight", "give base_weight, or leave it out"
    total = math.fsum(params.weights or (1.0,) * len(params.density)) + (params.base_weight or 0.0)
    if abs(total) < 1e-8 and (params.normalize if method.name == "linear" else method.name == "karcher"):
        yield f"the weights sum to {total:g}", "give weights that do not cancel"
    if method.name == "karcher" and min((*params.weights, params.base_weight or 0.0)) < 0:
        yield "a weight is negative", "give weights from 0"


def bytes_of(size: int | str | None, what: str = "max_shard_size") -> int | None:
    """A size in bytes from an integer, or from text such as `5GB` or `500MiB`; None stays None.

    Raises:
        UserError: It is not a positive size.
    """
    if size is None:
        return None
    text = str(size)
    number = text.rstrip("BbIiGgMmKk ")
    try:
        count = size if isinstance(size, int) else int(float(number) * _UNITS[text[len(number) :].strip().upper()])
    except (ValueError, KeyError, OverflowError):
        count = 0
    if count < 1 or isinstance(size, bool):
        raise UserError(f"{what}: {size!r} is not a size", "write it as 5GB or 500MB", code="usage.bad_size")
    return count


_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def dtype_named(dtype: torch.dtype | str | None) -> torch.dtype | None:
    """A floating-point type, from torch's or its name; None stays None.

    Raises:
        UserError: A merged model cannot have it.
    """
    if dtype is None:
        return None
    found = getattr(torch, dtype.removeprefix("torch."), None) if isinstance(dtype, str) else dtype
    if found not in (torch.bfloat16, torch.float16, torch.float32, torch.float64):
        hint = "give bfloat16, float16, float32 or float64"
        raise UserError(f"dtype: {dtype!r} is unknown", hint, code="usage.bad_dtype")
    return found
