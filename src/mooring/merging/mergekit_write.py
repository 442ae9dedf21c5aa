"""Write a job as a configuration that `mergekit-yaml` (0.1.5) runs to the same merge."""

import itertools
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from mooring.errors import UserError
from mooring.merge_methods import METHODS
from mooring.merging.job import Job, Options
from mooring.merging.layers import depths
from mooring.merging.tensor_value import TensorValue, Value
from mooring.models import is_adapter

_MOST_FILTERS = 512
_NOTES = {
    "slerp": "mergekit's SLERP uses Linear if the cosine of a tensor's two versions exceeds 0.9995.",
    "model_stock": "mergekit does not clamp the ratio t to [0, 1] as Mooring does.",
    **dict.fromkeys(
        (name for name, method in METHODS.items() if "seed" in method.options),
        "mergekit draws other random numbers, so other entries are dropped.",
    ),
}

_Parameters = dict[str, Any]
Rules = list[tuple[str, Value]]


def write(job: Job, names: Iterable[str], *, dtype: str | None = None) -> str:
    """A job as mergekit's YAML.

    mergekit's filters are parts of names, not patterns, so a `TensorValue` is written for the given tensors: as filters
    and gradients if these give every tensor its number, otherwise as one filter per tensor. Numbers have 12 digits.
    `lines` becomes `task_arithmetic`. If the output's type is known, arithmetic is in float32, as here; otherwise in
    the type of the inputs.

    Args:
        job: The merge.
        names: The names of the base's tensors.
        dtype: Type of the base's tensors, used for the output if the job names none.

    Raises:
        UserError: mergekit cannot do this merge (`usage.mergekit_cannot`); the message says why.
    """
    if METHODS[job.method].accepts or job.method == "intruders":
        raise _cannot(f"mergekit has no {job.method}", "export another method")
    common, own, tuned = _parameters(job, depths(names))
    models: list[dict[str, Any]] = [{"model": _model(job.base)}, *({"model": m} for m in _tuned_models(job))]
    for entry, parameters in zip(models, (own, *tuned), strict=True):
        entry.update({"parameters": parameters} if parameters else {})
    out = job.dtype or dtype
    document = {
        "merge_method": "task_arithmetic" if job.method == "lines" else job.method,
        **({} if job.method == "nuslerp" and len(job.tuned) == 1 else {"base_model": _model(job.base)}),
        "models": models,
        **({"parameters": common} if common else {}),
        **({"dtype": "float64" if out == "float64" else "float32", "out_dtype": out} if out else {}),
        **(
            {}
            if job.tokenizer == "larger"
            else {"tokenizer_source": {"tuned": job.tuned[0]}.get(job.tokenizer, "base")}
        ),
    }
    heads = ["Written by Mooring for mergekit 0.1.5.", *([_NOTES[job.method]] if job.method in _NOTES else [])]
    text = yaml.dump(document, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
    return "".join(f"# {head}\n" for head in heads) + str(text)


def _cannot(problem: str, hint: str) -> UserError:
    return UserError(problem, hint, code="usage.mergekit_cannot")


def _parameters(job: Job, places: Mapping[str, float]) -> tuple[_Parameters, _Parameters, list[_Parameters]]:
    """mergekit's parameters of the whole merge, of the base, and of each tuned model."""
    options, count = job.options, len(job.tuned)
    nothing: list[_Parameters] = [{} for _ in job.tuned]
    if job.method == "linear":
        return _linear(options, count, places)
    if job.method == "slerp":
        return {"t": _value(options.lam, places)}, {}, nothing
    if job.method == "nuslerp" and count == 1:
        if options.lam.constant is None:
            raise _cannot("mergekit's nuslerp has one place for all tensors", "export with one λ")
        lam = options.lam.constant
        return {}, {"weight": _rounded(1 - lam)}, [{"weight": _rounded(lam)}]
    if job.method in ("model_stock", "nuslerp", "multislerp", "nearswap", "sce", "arcee_fusion"):
        if options.lam.constant != 1:
            raise _cannot(f"mergekit's {job.method} has no λ", "export with λ = 1")
        return _without_lambda(job, places)
    if job.method == "karcher":
        _check_equal(options, count, places)
        return {}, {}, nothing
    common, tuned = _task_vectors(job, places)
    return common, {}, tuned


def _linear(
    options: Options, count: int, places: Mapping[str, float]
) -> tuple[_Parameters, _Parameters, list[_Parameters]]:
    weights = _each(options.weights, count, 1.0)
    if options.base_weight is not None:
        normalize = METHODS["linear"].options["normalize"] if options.normalize is None else options.normalize
        own = {"weight": _value(options.base_weight, places)}
        return {"normalize": normalize}, own, [{"weight": _value(weight, places)} for weight in weights]
    lam = options.lam
    fixed = [weight.constant for weight in weights if weight.constant is not None]
    tuned = []
    for index in range(count):
        shares = {}
        for name, depth in places.items():
            given = [weight.at(name, depth) for weight in weights]
            shares[name] = lam.at(name, depth) * given[index] / math.fsum(given)
        rules = None
        if len(fixed) == count:
            factor = fixed[index] / math.fsum(fixed)
            rules = _mapped(_filters(lam), factor.__mul__)
        elif count == 1:
            rules = _filters(lam)
        tuned.append({"weight": _filtered(shares, rules, places)})
    rest = {name: 1 - lam.at(name, depth) for name, depth in places.items()}
    own = {"weight": _filtered(rest, _mapped(_filters(lam), lambda value: 1 - value), places)}
    return {}, own, tuned


def _task_vectors(job: Job, places: Mapping[str, float]) -> tuple[_Parameters, list[_Parameters]]:
    """Methods that add task vectors: λ as `lambda`, the other options by their own names."""
    options, count, defaults = job.options, len(job.tuned), METHODS[job.method].options
    lam = options.lam
    if job.method == "lines" and lam.constant is not None:
        lam = TensorValue.of((0.0, lam.constant))
    common: _Parameters = {"lambda": _value(lam, places)}
    common["normalize"] = defaults["normalize"] if options.normalize is None else options.normalize
    tuned = [{"weight": _value(weight, places)} for weight in _each(options.weights, count, 1.0)]
    for option in ("density", "gamma", "epsilon"):
        if option in defaults:
            values = _each(getattr(options, option), count, defaults[option])
            for parameters, one in zip(tuned, values, strict=True):
                parameters[option] = _value(one, places)
    if "rescale" in defaults:
        rescale = options.rescale or defaults["rescale"]
        densities = _each(options.density, count, defaults["density"])
        if rescale == "inverse" and any(d.at(name, depth) < 1 for d in densities for name, depth in places.items()):
            problem = "mergekit rescales by the l1 norm, not by 1/density"
            raise _cannot(problem, "export with rescale l1 or none")
        common["rescale"] = rescale == "l1"
    return common, tuned


def _without_lambda(job: Job, places: Mapping[str, float]) -> tuple[_Parameters, _Parameters, list[_Parameters]]:
    """Methods that add the whole merged change."""
    options, count, defaults = job.options, len(job.tuned), METHODS[job.method].options
    common: _Parameters = {}
    if job.method == "nearswap":
        common["t"] = _value(options.threshold or TensorValue.of(defaults["threshold"]), places)
    if job.method == "sce":
        common["select_topk"] = _value(_each(options.density, 1, defaults["density"])[0], places)
    if job.method == "multislerp":
        common["normalize_weights"] = defaults["normalize"] if options.normalize is None else options.normalize
    if job.method in ("nuslerp", "multislerp"):
        return common, {}, [{"weight": _value(weight, places)} for weight in _each(options.weights, count, 1.0)]
    return common, {}, [{} for _ in range(count)]


def _check_equal(options: Options, count: int, places: Mapping[str, float]) -> None:
    """Raise unless all models have the same weight, as mergekit's karcher requires."""
    weights = _each(options.weights, count, 1.0)
    for name, depth in places.items():
        given = [weight.at(name, depth) for weight in weights]
        if options.base_weight is not None:
            given.append(options.base_weight.at(name, depth))
        else:
            lam = options.lam.at(name, depth)
            given = [1 - lam, *(lam * weight / math.fsum(given) for weight in given)]
        if not all(math.isclose(one, given[0], rel_tol=1e-9) for one in given):
            what = f"mergekit's karcher gives all models the same weight, the base too; {name} has {_rounded(given)}"
            raise _cannot(what, f"export with λ = {count}/{count + 1} and no weights")


def _each(given: Sequence[TensorValue], count: int, default: float) -> tuple[TensorValue, ...]:
    """One value per tuned model, from one each, one for all, or the default."""
    given = tuple(given) or (TensorValue.of(default),)
    return given * count if len(given) == 1 else given


def _value(setting: TensorValue, places: Mapping[str, float]) -> Any:
    """A value in mergekit's form: a number, a gradient, or filters."""
    if setting.constant is not None:
        return _rounded(setting.constant)
    return _filtered({name: setting.at(name, depth) for name, depth in places.items()}, _filters(setting), places)


def _filtered(expected: Mapping[str, float], rules: Rules | None, places: Mapping[str, float]) -> Any:
    """The value in mergekit's form that gives every tensor its expected number, if possible by `rules`.

    A few tensors for which the rules are wrong get a filter of their own.
    """
    if len({_rounded(number) for number in expected.values()}) == 1:
        return _rounded(next(iter(expected.values())))
    if rules:
        wrong = [name for name in expected if not _right(rules, name, places[name], expected[name])]
        own: Rules = [(name, expected[name]) for name in sorted(wrong, key=len, reverse=True)]
        rules = own + rules
        if len(own) <= max(4, len(expected) // 8) and all(_right(rules, n, places[n], expected[n]) for n in expected):
            return _yaml(rules)
    # A name's own filter precedes those of shorter names, so it is the first that the name contains.
    return _yaml([(name, expected[name]) for name in sorted(expected, key=len, reverse=True)])


def _right(rules: Rules, name: str, depth: float, expected: float) -> bool:
    try:
        return math.isclose(TensorValue.containing(rules).at(name, depth), expected, rel_tol=1e-12, abs_tol=1e-12)
    except UserError:  # no filter matches
        return False


def _yaml(rules: Rules) -> Any:
    """Rules in mergekit's form."""
    if [pattern for pattern, _ in rules] == ["*"]:
        return _rounded(rules[0][1])
    return [{**({"filter": p} if p != "*" else {}), "value": _rounded(value)} for p, value in rules]


def _mapped(rules: Rules | None, change: Callable[[float], float]) -> Rules | None:
    """The same filters with other numbers; `change` must be linear, to commute with a gradient's interpolation."""
    if rules is None:
        return None
    return [(p, tuple(map(change, value)) if isinstance(value, tuple) else change(value)) for p, value in rules]


def _filters(setting: TensorValue) -> Rules | None:
    """A value's patterns approximated by parts of names; None if one has no such form."""
    if setting.matching == "contains":
        return list(setting.rules)
    found: Rules = []
    for pattern, value in setting.rules:
        choices = [_choices(part) for part in re.split(r"(\{[^{}]*\})", pattern)]
        if math.prod(len(some) for some in choices) > _MOST_FILTERS:
            return None
        for text in map("".join, itertools.product(*choices)):
            core = text.strip("*")
            if "*" in core or "?" in core:
                return None
            start = "" if text.startswith("*") or not core else "."
            found.append((start + core or "*", value))
    return found


def _choices(part: str) -> list[str]:
    """The alternatives of a part of a pattern: the numbers and texts within braces, or the part itself."""
    if not part.startswith("{"):
        return [part]
    found = []
    for text in part[1:-1].split(","):
        ends = re.fullmatch(r"(\d+)-(\d+)", text.strip())
        found += [str(n) for n in range(int(ends[1]), int(ends[2]) + 1)] if ends else [text.strip()]
    return found


def _rounded(value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return [_rounded(one) for one in value]
    return float(f"{value:.12g}")


def _tuned_models(job: Job) -> list[Any]:
    """The tuned models in mergekit's form; an adapter is written with its base."""
    return [_model(job.base, ref) if is_adapter(Path(ref)) else _model(ref) for ref in job.tuned]


def _model(ref: str, adapter: str | None = None) -> Any:
    """A reference in mergekit's form: a text, or a mapping if a local folder's name contains its `+` or `@`."""
    for one in (ref, adapter or ""):
        if one.startswith("bundled:") or one.lower().endswith(".gguf"):
            raise _cannot(f"{one}: mergekit does not read it", "name a folder of safetensors or a hub id")

    def is_plain(one: str) -> bool:
        return "+" not in one and " " not in one and not ("@" in one and Path(one).exists())

    if is_plain(ref) and is_plain(adapter or ""):
        return f"{ref}+{adapter}" if adapter else ref
    entry = {"model": ref if is_plain(ref) else {"path": ref}}
    return entry | ({"lora": adapter if is_plain(adapter) else {"path": adapter}} if adapter else {})


class _Dumper(yaml.SafeDumper):
    """Lists of numbers on one line."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _list(dumper: _Dumper, data: list[Any]) -> yaml.Node:
    return dumper.represent_sequence("tag:yaml.org,2002:seq", data, flow_style=all(isinstance(x, float) for x in data))


_Dumper.add_representer(list, _list)
