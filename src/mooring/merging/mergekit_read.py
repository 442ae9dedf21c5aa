"""Read a configuration of mergekit 0.1.5 (its YAML file) as a job; `mergekit_write` does the reverse.

What has no effect in mergekit has none here: parameters of another method, and `int8_mask`, which only changes how
mergekit stores signs. Features of mergekit that Mooring lacks raise an error that names them. Two things differ:
arithmetic is in float32 whatever `dtype` says, which names the type of the output unless `out_dtype` does; and
`karcher` is solved to convergence, where mergekit stops after `max_iter` steps.
"""

import dataclasses
import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml

from mooring.errors import RecipeError
from mooring.merging.job import Job, Options, TensorValue, Value
from mooring.merging.methods import METHODS
from mooring.models import read_config

_KNOWN = (
    *("weight", "density", "gamma", "epsilon", "lambda", "normalize", "rescale", "t", "int8_mask"),
    *("filter_wise", "max_iter", "tol"),
)
_TRUE, _FALSE = ("true", "yes", "on", "y", "t", "1"), ("false", "no", "off", "n", "f", "0")
_TOLERANCE = 1e-12


@dataclasses.dataclass(frozen=True)
class Scope:
    """A `parameters` mapping and its place in the file."""

    where: str
    parameters: Mapping[str, Any]


def check_parameters(scopes: Iterable[Scope], shared: Sequence[str]) -> None:
    """Raise for parameters that no supported method has, and for those of `shared` that are given for one model only.

    Raises:
        RecipeError: There is one.
    """
    for scope in scopes:
        for key in scope.parameters:
            if key not in _KNOWN:
                near = difflib.get_close_matches(str(key), _KNOWN, n=1)
                hint = f"did you mean `{near[0]}`?" if near else f"known: {', '.join(_KNOWN)}"
                raise RecipeError(f"{scope.where}.{key} is not supported", hint, code="recipe.nonfinite")
            if key in shared:
                what = f"{scope.where}.{key}: mergekit ignores it for a single model"
                raise RecipeError(
                    what, "move it to the parameters at the top of the file", code="recipe.mergekit_malformed"
                )


def setting(name: str, scopes: Iterable[Scope], where: str, default: float | None = None) -> TensorValue:
    """A parameter for every tensor: the rules of all scopes in sequence, of which the first that matches applies.

    Args:
        name: The parameter.
        scopes: The more specific first.
        where: What requires it, for errors.
        default: For tensors that no rule matches; if None, it must be given somewhere.

    Raises:
        RecipeError: It is missing, or malformed.
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
        raise RecipeError(
            f"{where}: {name} is missing", f"add parameters: {{{name}: …}}", code="recipe.mergekit_missing"
        )
    return TensorValue.containing(rules)


def flag(name: str, scopes: Iterable[Scope], default: bool) -> bool:
    """A parameter that is on or off for the whole merge.

    Raises:
        RecipeError: It is not a boolean, or differs between tensors.
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
        raise RecipeError(
            f"{where}: to be on for some tensors only is not supported",
            "write true or false",
            code="recipe.mergekit_unsupported",
        )
    return found[0]


def as_lambda(
    base: TensorValue, tuned: Sequence[TensorValue], normalize: bool, where: str
) -> tuple[TensorValue, tuple[TensorValue, ...]] | None:
    """λ and the tuned models' shares, if weights have that form: (1−λ)·base + λ·Σ share·tuned.

    Args:
        base: The base's weight.
        tuned: The tuned models' weights.
        normalize: Whether the weights are divided by their sum.
        where: For errors.

    Returns:
        None if the sum is not 1, differs over a gradient, or λ would be outside [0, 1].

    Raises:
        RecipeError: The weights sum to 0, so cannot be divided by their sum.
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
    lam = TensorValue.containing(zip(patterns, (lam for lam, _ in found), strict=True))
    shares = zip(*(share for _, share in found), strict=True)
    weights = tuple(TensorValue.containing(zip(patterns, share, strict=True)) for share in shares)
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
        raise RecipeError(
            f"{where}: the weights add up to 0",
            "change them, or write normalize: false",
            code="recipe.mergekit_malformed",
        )
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
            raise RecipeError(
                f"{place}: is not a filter with its value",
                "write `- filter: …` and `value: …`",
                code="recipe.mergekit_malformed",
            )
        pattern = entry.get("filter")
        if not isinstance(pattern, str | None):
            raise RecipeError(
                f"{place}.filter: {pattern!r} is not a part of a tensor's name",
                "put it in quotes",
                code="recipe.mergekit_malformed",
            )
        rules.append((pattern or "*", entry["value"], f"{place}.value"))
    return rules


def _numbers(given: Any, where: str) -> Value:
    """A number, or a gradient. As in mergekit, a boolean is 0 or 1, and a text that parses as a number is one."""
    if isinstance(given, list) and given:
        return tuple(_number(item, where) for item in given)
    return _number(given, where)


def _number(given: Any, where: str) -> float:
    try:
        number = float(given) if isinstance(given, (bool, int, float, str)) else math.nan
    except (ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise RecipeError(
            f"{where}: {given!r} is not a number",
            "write a number, or a list of them for a gradient",
            code="recipe.mergekit_malformed",
        )
    return number


def _switch(given: Any, where: str) -> bool:
    text = str(given).lower().removesuffix(".0") if isinstance(given, (bool, int, float, str)) else ""
    if text not in (*_TRUE, *_FALSE):
        raise RecipeError(
            f"{where}: {given!r} is neither true nor false", "write true or false", code="recipe.mergekit_malformed"
        )
    return text in _TRUE


_LAYER_KEYS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")


@dataclasses.dataclass(frozen=True)
class Source:
    """A model in the merge: the place that names it, a model, an adapter on it, its own parameters."""

    where: str
    model: str
    adapter: str | None
    scope: Scope


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What is merged: the sources in order, the named base, and the parameters of the whole merge."""

    sources: tuple[Source, ...]
    base: str | None
    scopes: tuple[Scope, ...]


def read_inputs(document: Mapping[str, Any], path: Path) -> Inputs:
    """The sources of `models` or `slices`, with the parameters of the whole merge, the more specific first.

    Raises:
        RecipeError: Something is malformed or not supported.
        ModelError: A model's `config.json` is not JSON.
    """
    whole = Scope(f"{path}: parameters", mapping(document.get("parameters") or {}, f"{path}: parameters"))
    base = _base(document, f"{path}: base_model")
    if document.get("modules"):
        raise RecipeError(f"{path}: modules is not supported", "write models", code="recipe.mergekit_unsupported")
    models, slices = document.get("models"), document.get("slices")
    if bool(models) == bool(slices):
        raise RecipeError(
            f"{path}: needs either models or slices, and not both", "list the models", code="recipe.mergekit_malformed"
        )
    if models:
        sources = _sources(models, f"{path}: models", ("model", "parameters"))
        if base is not None and not any(source.model == base and not source.adapter for source in sources):
            sources.append(Source(f"{path}: base_model", base, None, Scope(f"{path}: base_model", {})))
        return Inputs(tuple(sources), base, (whole,))
    where = f"{path}: slices"
    if not isinstance(slices, list) or len(slices) != 1:
        raise RecipeError(
            f"{where}: more than one slice (layers rearranged) is not supported",
            "write models",
            code="recipe.mergekit_unsupported",
        )
    piece = mapping(slices[0], f"{where}[0]")
    known(piece, ("sources", "base_model", "parameters"), f"{where}[0]")
    sources = _sources(piece.get("sources"), f"{where}[0].sources", ("model", "layer_range", "parameters"))
    _check_layers(sources, piece["sources"])
    inner = Scope(f"{where}[0].parameters", mapping(piece.get("parameters") or {}, f"{where}[0].parameters"))
    base = _base(piece, f"{where}[0].base_model") or base
    return Inputs(tuple(sources), base, (inner, whole))


def _sources(entries: Any, where: str, keys: Sequence[str]) -> list[Source]:
    if not isinstance(entries, list) or not entries:
        raise RecipeError(f"{where}: is not a list of models", "write `- model: …`", code="recipe.mergekit_malformed")
    found = []
    for index, entry in enumerate(entries):
        place = f"{where}[{index}]"
        known(mapping(entry, place), keys, place)
        own = mapping(entry.get("parameters") or {}, f"{place}.parameters")
        found.append(Source(place, *reference(entry.get("model"), f"{place}.model"), Scope(f"{place}.parameters", own)))
    return found


def _base(entry: Mapping[str, Any], where: str) -> str | None:
    if entry.get("base_model") is None:
        return None
    base, adapter = reference(entry["base_model"], where)
    if adapter:
        raise RecipeError(
            f"{where}: a base with an adapter is not supported",
            "merge that adapter first",
            code="recipe.mergekit_unsupported",
        )
    return base


def reference(given: Any, where: str) -> tuple[str, str | None]:
    """A model and an adapter on it, from `model`, `model@revision`, `model+adapter` or the same as a mapping.

    Raises:
        RecipeError: It is none of these.
    """
    if isinstance(given, Mapping):
        known(given, ("model", "lora", "override_architecture"), where)
        if given.get("override_architecture") is not None:
            raise RecipeError(
                f"{where}.override_architecture is not supported", "leave it out", code="recipe.mergekit_unsupported"
            )
        adapter = given.get("lora")
        return _path(given.get("model"), f"{where}.model"), _path(adapter, f"{where}.lora") if adapter else None
    model, plus, adapter = str(given or "").partition("+")
    if not isinstance(given, str) or "+" in adapter or not model or (plus and not adapter):
        raise RecipeError(
            f"{where}: {given!r} is not a model",
            "write a folder, a hub id, or MODEL+ADAPTER",
            code="recipe.mergekit_malformed",
        )
    return model, adapter or None


def _path(given: Any, where: str) -> str:
    if isinstance(given, Mapping):
        known(given, ("path", "revision"), where)
        path, revision = given.get("path"), given.get("revision")
        given = f"{path}@{revision}" if path and revision else path
    if not isinstance(given, str) or not given:
        raise RecipeError(
            f"{where}: {given!r} is not a model", "write a folder or a hub id", code="recipe.mergekit_malformed"
        )
    return given


def _check_layers(sources: Sequence[Source], entries: Sequence[Mapping[str, Any]]) -> None:
    """Raise unless every source gives all its layers, so that the slice is the whole model."""
    first = entries[0].get("layer_range")
    for source, entry in zip(sources, entries, strict=True):
        given = entry.get("layer_range")
        where = f"{source.where}.layer_range"
        if not isinstance(given, list) or len(given) != 2 or not all(type(end) is int for end in given):
            raise RecipeError(
                f"{where}: {given!r} is not a range of layers", "write [0, N]", code="recipe.mergekit_malformed"
            )
        layers = _count_layers(source.model)
        if given[0] != 0 or given != first or given[1] != (layers or given[1]) or given[1] < 1:
            what = f"{where}: {given} is not all layers" + (f" (the model has {layers})" if layers else "")
            raise RecipeError(
                what, "slices that rearrange layers are not supported: write models", code="recipe.mergekit_malformed"
            )


def _count_layers(model: str) -> int | None:
    """How many layers a model has, if its folder is on this machine and its configuration says so."""
    if not (Path(model) / "config.json").is_file():
        return None
    config = read_config(Path(model))
    text = config.get("text_config")
    for place in (config, text if isinstance(text, dict) else {}):
        for key in _LAYER_KEYS:
            if type(place.get(key)) is int:
                return int(place[key])
    return None


def mapping(given: Any, where: str) -> Mapping[str, Any]:
    """Check that a part of the file is a mapping.

    Raises:
        RecipeError: It is not.
    """
    if not isinstance(given, dict):
        raise RecipeError(
            f"{where}: is not a mapping of keys to values", "write `key: value`", code="recipe.mergekit_malformed"
        )
    return given


def known(given: Mapping[str, Any], keys: Iterable[str], where: str) -> None:
    """Raise for unknown keys.

    Raises:
        RecipeError: There is one.
    """
    keys = tuple(keys)
    for key in given:
        if key not in keys:
            near = difflib.get_close_matches(str(key), keys, n=1)
            hint = f"did you mean `{near[0]}`?" if near else f"known here: {', '.join(keys)}"
            joint = "." if ": " in where else ": "
            raise RecipeError(f"{where}{joint}{key} is not supported", hint, code="recipe.nonfinite")


_SPARSE = tuple(name for name, method in METHODS.items() if method.kind)
_TASK_VECTORS = ("task_arithmetic", *_SPARSE)
_SHARED = {
    "linear": ("normalize",),
    "slerp": ("t",),
    "model_stock": ("filter_wise",),
    "karcher": ("max_iter", "tol"),
    **dict.fromkeys(_TASK_VECTORS, ("lambda", "normalize", "rescale")),
}
_DTYPES = ("bfloat16", "float16", "float32", "float64")
_TOP = (
    *("merge_method", "base_model", "models", "slices", "modules", "parameters", "dtype", "out_dtype"),
    *("tokenizer_source", "tokenizer", "chat_template"),
)


def read(path: str | Path) -> Job:
    """Read the job that a mergekit configuration describes.

    mergekit's defaults are written out. Relative paths stay relative to the working directory, as in mergekit.
    `slices` must cover all layers; if a model's folder is not on this machine, it is assumed that [0, N] does.
    Without `base_model`, the first model is the base (its settings and its tokenizer are the output's).

    Raises:
        RecipeError: The file cannot be read, or requests something that is not supported; the message names the place.
        ModelError: A model's `config.json` is not JSON.
    """
    path = Path(path)
    document = mapping(_load(path), str(path))
    known(document, _TOP, str(path))
    method = document.get("merge_method")
    if not isinstance(method, str) or method not in _SHARED:
        raise RecipeError(
            f"{path}: merge_method: {method} is not supported",
            f"known: {', '.join(sorted(_SHARED))}",
            code="recipe.mergekit_unsupported",
        )
    inputs = read_inputs(document, path)
    check_parameters(inputs.scopes, ())
    check_parameters([source.scope for source in inputs.sources], _SHARED[method])
    base, own, tuned = _base_and_tuned(inputs, path, method)
    return Job(
        method=method,
        base=base,
        tuned=tuple(source.adapter or source.model for source in tuned),
        options=_options(method, inputs, own, tuned, path),
        dtype=_dtype(document, path),
        tokenizer=_tokenizer(document, base, path),
    )


def _options(method: str, inputs: Inputs, own: Source | None, tuned: Sequence[Source], path: Path) -> Options:
    """The method's options with defaults written out; `own` is the base as one of the models."""
    shared = inputs.scopes

    def each(name: str, default: float | None = None) -> tuple[TensorValue, ...]:
        return tuple(setting(name, (source.scope, *shared), source.where, default) for source in tuned)

    if method == "linear":
        weight = setting("weight", (own.scope, *shared), own.where) if own else TensorValue.of(0.0)
        normalize = flag("normalize", shared, True)
        found = as_lambda(weight, each("weight"), normalize, f"{path}: weight")
        if found:
            return Options(lam=found[0], weights=found[1])
        return Options(lam=TensorValue.of(1.0), base_weight=weight, weights=each("weight"), normalize=normalize)
    if method == "karcher":
        steps, close = setting("max_iter", shared, str(path), 10), setting("tol", shared, str(path), 1e-5)
        if (steps.constant or 0) < 10 or not (0 <= (1 if close.constant is None else close.constant) <= 1e-5):
            raise RecipeError(
                f"{path}: max_iter, tol: a coarser mean is not supported",
                "leave both out",
                code="recipe.mergekit_unsupported",
            )
        share = TensorValue.of(1 / (len(tuned) + bool(own)))
        lam = TensorValue.of(len(tuned) / (len(tuned) + bool(own)))
        return Options(lam=lam, base_weight=share if own else TensorValue.of(0.0), weights=(share,) * len(tuned))
    if method == "slerp":
        return Options(lam=setting("t", shared, str(path)))
    if method == "model_stock":
        if flag("filter_wise", shared, False):
            raise RecipeError(
                f"{path}: parameters.filter_wise is not supported", "leave it out", code="recipe.mergekit_unsupported"
            )
        return Options(lam=TensorValue.of(1.0))
    defaults = METHODS[method].options
    rescale = flag("rescale", shared, defaults.get("rescale") == "inverse")
    return Options(
        lam=setting("lambda", shared, str(path), 1.0),
        weights=each("weight"),
        density=each("density", defaults["density"]) if method in _SPARSE else (),
        gamma=each("gamma", defaults["gamma"]) if "gamma" in defaults else (),
        epsilon=each("epsilon", defaults["epsilon"]) if "epsilon" in defaults else (),
        normalize=flag("normalize", shared, defaults["normalize"]),
        rescale=("l1" if rescale else "none") if method in _SPARSE else None,
    )


def _base_and_tuned(inputs: Inputs, path: Path, method: str) -> tuple[str, Source | None, list[Source]]:
    """The base, the source that is the base itself (if one is), and the tuned models.

    As in mergekit, linear and karcher merge the base only if it is one of the models; others require it.
    """
    base = inputs.base if inputs.base is not None else inputs.sources[0].model
    if inputs.base is None and method not in ("linear", "karcher"):
        raise RecipeError(f"{path}: base_model is missing", f"{method} needs one", code="recipe.mergekit_missing")
    seen: dict[tuple[str, str | None], str] = {}
    for source in inputs.sources:
        earlier = seen.setdefault((source.model, source.adapter), source.where)
        if earlier != source.where:
            raise RecipeError(
                f"{source.where}: is the same model as {earlier}",
                "name each model once",
                code="recipe.mergekit_malformed",
            )
        if source.adapter and not _same(source.model, base):
            what = f"{source.where}: {source.model}+{source.adapter} is an adapter on another model than {base}"
            raise RecipeError(what, "name the base before the +", code="recipe.mergekit_malformed")
    own = next((source for source in inputs.sources if source.model == base and not source.adapter), None)
    tuned = [source for source in inputs.sources if source is not own]
    if own is None and method not in ("linear", "karcher"):
        raise RecipeError(
            f"{path}: base_model: {base} is not one of the sources",
            "add it to the slice",
            code="recipe.mergekit_malformed",
        )
    fewest, most = METHODS[method].least, METHODS[method].most
    if len(tuned) < fewest or len(tuned) > (most or len(tuned)):
        count = f"{fewest}" if most else f"{fewest} or more"
        what = f"{path}: {len(tuned)} models apart from the base"
        raise RecipeError(
            what, f"{method} merges {count}, each different from the base", code="recipe.mergekit_malformed"
        )
    return base, own, tuned


def _same(one: str, other: str) -> bool:
    return one == other or (
        Path(one).is_dir() and Path(other).is_dir() and Path(one).resolve() == Path(other).resolve()
    )


def _dtype(document: Mapping[str, Any], path: Path) -> str | None:
    found = None
    for key in ("dtype", "out_dtype"):
        name = document.get(key)
        if name is None or name == "":
            continue
        found = str(name).removeprefix("torch.")
        if found not in _DTYPES:
            raise RecipeError(
                f"{path}: {key}: {name} is not supported",
                f"known: {', '.join(_DTYPES)}",
                code="recipe.mergekit_unsupported",
            )
    return found


def _tokenizer(document: Mapping[str, Any], base: str, path: Path) -> Literal["base", "larger"]:
    """Whose tokenizer the output gets. mergekit copies the base's by default, and vocabularies must agree."""
    source, where = document.get("tokenizer_source"), f"{path}: tokenizer_source"
    if document.get("chat_template"):
        raise RecipeError(
            f"{path}: chat_template is not supported",
            "set it in the output's tokenizer files",
            code="recipe.mergekit_unsupported",
        )
    if (tokenizer := document.get("tokenizer")) is not None:
        where = f"{path}: tokenizer"
        known(mapping(tokenizer, where), ("source", "tokens", "pad_to_multiple_of"), where)
        for key in ("tokens", "pad_to_multiple_of"):
            if tokenizer.get(key):
                raise RecipeError(f"{where}.{key} is not supported", "leave it out", code="recipe.mergekit_unsupported")
        if source is not None:
            raise RecipeError(
                f"{where}: cannot be combined with tokenizer_source",
                "keep one of the two",
                code="recipe.mergekit_malformed",
            )
        source, where = tokenizer.get("source", "union"), f"{where}.source"
    if source is None:
        return "larger"
    if source != "base" and reference(source, where) != (base, None):
        raise RecipeError(f"{where}: {source} is not supported", "write base", code="recipe.mergekit_unsupported")
    return "base"


def _load(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "is not text"
        raise RecipeError(
            f"{path}: {reason}", "name a mergekit configuration, a YAML file", code="recipe.unreadable"
        ) from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise RecipeError(
            f"{where}: {getattr(error, 'problem', None) or 'not YAML'}",
            "fix the YAML syntax there",
            code="recipe.bad_yaml",
        ) from None
