"""mergekit's parameters: numbers, gradients and filters, in scopes of which the more particular comes first."""

import dataclasses
import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mooring.errors import RecipeError
from mooring.merge.settings import Setting, Value

_KNOWN = (
    *("weight", "density", "gamma", "epsilon", "lambda", "normalize", "rescale", "t", "int8_mask"),
    *("filter_wise", "max_iter", "tol"),
)
_TRUE, _FALSE = ("true", "yes", "on", "y", "t", "1"), ("false", "no", "off", "n", "f", "0")
_TOLERANCE = 1e-12


@dataclasses.dataclass(frozen=True)
class Scope:
    """A `parameters` mapping and where it stands in the file."""

    where: str
    parameters: Mapping[str, Any]


def check_parameters(scopes: Iterable[Scope], shared: Sequence[str]) -> None:
    """Refuse parameters that no supported method has, and those of `shared` where they hold for one model only.

    Raises:
        RecipeError: There is one.
    """
    for scope in scopes:
        for key in scope.parameters:
            if key not in _KNOWN:
                near = difflib.get_close_matches(str(key), _KNOWN, n=1)
                mend = f"did you mean `{near[0]}`?" if near else f"known: {', '.join(_KNOWN)}"
                raise RecipeError(f"{scope.where}.{key} is not supported", mend)
            if key in shared:
                what = f"{scope.where}.{key}: mergekit takes no notice of it at a single model"
                raise RecipeError(what, "move it to the parameters at the top of the file")


def setting(name: str, scopes: Iterable[Scope], where: str, default: float | None = None) -> Setting:
    """A parameter for every tensor: the rules of all scopes in a row, so that what one leaves open the next decides.

    Args:
        name: The parameter.
        scopes: The more particular first.
        where: What needs it, for errors.
        default: For tensors that no rule matches; without one, it must be given somewhere.

    Raises:
        RecipeError: It is given nowhere, or not as mergekit has it.
    """
    rules: list[tuple[str, Value]] = []
    for scope in scopes:
        if name in scope.parameters:
            rules += [
                (pattern, _numbers(value, place))
                for pattern, value, place in _rules(scope.parameters[name], f"{scope.where}.{name}")
            ]
    if default is not None:
        rules.append(("*", float(default)))
    if not rules:
        raise RecipeError(f"{where}: {name} is missing", f"add parameters: {{{name}: …}}")
    return Setting.containing(rules)


def flag(name: str, scopes: Iterable[Scope], default: bool) -> bool:
    """A parameter that is on or off for the whole merge.

    Raises:
        RecipeError: It is neither, or differs between tensors.
    """
    found: list[bool] = []
    where = ""
    for scope in scopes:
        if name not in scope.parameters:
            continue
        where = f"{scope.where}.{name}"
        rules = _rules(scope.parameters[name], where)
        for _, value, place in rules:
            found += [_switch(item, place) for item in (value if isinstance(value, list) else [value])]
        if any(pattern == "*" for pattern, _, _ in rules):
            break
    else:
        found.append(default)
    if len(set(found)) > 1:
        raise RecipeError(f"{where}: to be on for some tensors only is not supported", "write true or false")
    return found[0]


def as_lambda(
    base: Setting, tuned: Sequence[Setting], normalize: bool, where: str
) -> tuple[Setting, tuple[Setting, ...]] | None:
    """λ and the tuned models' shares, where weights say nothing else: (1−λ)·base + λ·Σ share·tuned.

    Args:
        base: The base's weight.
        tuned: The tuned models' weights.
        normalize: Whether the weights are divided by their sum.
        where: For errors.

    Returns:
        None where the sum is not 1, is not the same over a gradient, or λ would lie outside [0, 1].

    Raises:
        RecipeError: The weights add up to 0, so cannot be divided by their sum.
    """
    varied = [one for one in (base, *tuned) if one.constant is None]
    patterns = [pattern for pattern, _ in (varied or [base])[0].rules]
    if any([pattern for pattern, _ in one.rules] != patterns for one in varied):
        return None
    parts = []
    for index, pattern in enumerate(patterns):
        values = [one.rules[index][1] if one.constant is None else one.constant for one in (base, *tuned)]
        parts.append(_split(values, normalize, f"{where} ({pattern})"))
    found = [part for part in parts if part]
    if len(found) < len(parts):
        return None
    lam = Setting.containing(zip(patterns, (lam for lam, _ in found), strict=True))
    shares = zip(*(share for _, share in found), strict=True)
    weights = tuple(Setting.containing(zip(patterns, share, strict=True)) for share in shares)
    equal = all(abs((one.constant or 0) - 1 / len(tuned)) < _TOLERANCE for one in weights)
    return lam, () if equal else weights


def _split(values: Sequence[Value], normalize: bool, where: str) -> tuple[Value, list[float]] | None:
    """λ and the shares of one rule, from the base's weight and the tuned models'."""
    length = max(len(value) if isinstance(value, tuple) else 1 for value in values)
    columns = [value if isinstance(value, tuple) else (value,) * length for value in values]
    if any(len(column) != length for column in columns) or (length > 1 and len(values) != 2):
        return None
    totals = [math.fsum(row) for row in zip(*columns, strict=True)]
    if normalize and any(abs(total) < _TOLERANCE for total in totals):
        raise RecipeError(f"{where}: the weights add up to 0", "change them, or write normalize: false")
    total = 1.0 if abs(totals[0] - 1) < _TOLERANCE else totals[0]
    if any(abs(other - total) > _TOLERANCE for other in totals) or not (normalize or total == 1):
        return None
    tuned = [math.fsum(row[1:]) for row in zip(*columns, strict=True)]
    lams = tuple(weight / total for weight in tuned)
    if not all(0 <= lam <= 1 for lam in lams) or (len(values) > 2 and abs(tuned[0]) < _TOLERANCE):
        return None
    return lams, [column[0] / tuned[0] for column in columns[1:]] if len(values) > 2 else [1.0]


def _rules(given: Any, where: str) -> list[tuple[str, Any, str]]:
    """(filter, number or gradient, place) of a parameter, in order; `*` is no filter."""
    entries = [given] if isinstance(given, dict) else given
    if not isinstance(entries, list) or not any(isinstance(entry, dict) for entry in entries):
        return [("*", given, where)]
    rules = []
    for index, entry in enumerate(entries):
        place = f"{where}[{index}]" if isinstance(given, list) else where
        if not isinstance(entry, dict) or "value" not in entry or set(entry) - {"filter", "value"}:
            raise RecipeError(f"{place}: is not a filter with its value", "write `- filter: …` and `value: …`")
        pattern = entry.get("filter")
        if not isinstance(pattern, str | None):
            raise RecipeError(f"{place}.filter: {pattern!r} is not a part of a tensor's name", "put it in quotes")
        rules.append((pattern or "*", entry["value"], f"{place}.value"))
    return rules


def _numbers(given: Any, where: str) -> Value:
    """A number, or a gradient. As in mergekit, a truth value is 0 or 1, and a text that reads as a number is one."""
    if isinstance(given, list) and given:
        return tuple(_number(item, where) for item in given)
    return _number(given, where)


def _number(given: Any, where: str) -> float:
    try:
        number = float(given) if isinstance(given, (bool, int, float, str)) else math.nan
    except (ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise RecipeError(f"{where}: {given!r} is not a number", "write a number, or a list of them for a gradient")
    return number


def _switch(given: Any, where: str) -> bool:
    text = str(given).lower().removesuffix(".0") if isinstance(given, (bool, int, float, str)) else ""
    if text not in (*_TRUE, *_FALSE):
        raise RecipeError(f"{where}: {given!r} is neither true nor false", "write true or false")
    return text in _TRUE
