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
from typing import Any

from mooring.bounded import YAML, UnusableError, YAMLError, parse_yaml, read_bytes
from mooring.errors import RecipeError
from mooring.merge_methods import METHODS
from mooring.merging.job import Job, Options
from mooring.merging.pair import Tokenizer
from mooring.merging.tensor_value import TensorValue, Value
from mooring.models import read_config
from mooring.models.classes import text_fields
from mooring.models.vocabulary import TOKENIZER, ids_by_token, vocabulary

_SPARSE = tuple(name for name, method in METHODS.items() if method.kind and not method.accepts)
_DEFAULTS = {"density": 1.0, "gamma": 0.01, "epsilon": 0.15}
"""mergekit's defaults of what a method drops: all is kept unless a configuration says otherwise."""
_MERGE_BASE_IF_LISTED = ("linear", "karcher")
_BASE_IS_OPTIONAL = (*_MERGE_BASE_IF_LISTED, "nuslerp")
_WHOLE_MERGE: Mapping[str, tuple[str, ...]] = {
    "linear": ("normalize",),
    "slerp": ("t",),
    "model_stock": ("filter_wise",),
    "karcher": ("max_iter", "tol"),
    "nuslerp": ("nuslerp_flatten", "nuslerp_row_wise"),
    "multislerp": ("normalize_weights", "eps"),
    "nearswap": ("t",),
    "sce": ("select_topk",),
    "arcee_fusion": (),
    **dict.fromkeys(("task_arithmetic", *_SPARSE), ("lambda", "normalize", "rescale")),
}
"""Supported methods, with the parameters that mergekit reads for the whole merge only."""
_INSTEAD: Mapping[str, str] = {
    "passthrough": "it stacks layers into another architecture: do that with mergekit-yaml, and merge what it writes",
    "rectify_embed": "merge with `tokenizer_source: base`",
    "ram": "use ties or sce",
    "ramplus_tl": "use ties or sce",
}
"""What to do in place of mergekit's other methods."""
_PARAMETERS = (
    *("weight", "density", "gamma", "epsilon", "lambda", "normalize", "rescale", "t", "int8_mask"),
    *(
        "filter_wise",
        "max_iter",
        "tol",
        "nuslerp_flatten",
        "nuslerp_row_wise",
        "normalize_weights",
        "eps",
        "select_topk",
    ),
)
_KEYS = (
    *("merge_method", "base_model", "models", "slices", "modules", "parameters", "dtype", "out_dtype"),
    *("tokenizer_source", "tokenizer", "chat_template"),
)
_TRUE, _FALSE = ("true", "yes", "on", "y", "t", "1"), ("false", "no", "off", "n", "f", "0")
_DTYPES = ("bfloat16", "float16", "float32", "float64")
_LAYER_KEYS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_TOLERANCE = 1e-12


@dataclasses.dataclass(frozen=True)
class _Scope:
    """A `parameters` mapping, and its place in the file."""

    where: str
    parameters: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class _Source:
    """A model of the merge: its place in the file, the model, an adapter on it, its own parameters."""

    where: str
    model: str
    adapter: str | None
    scope: _Scope


@dataclasses.dataclass(frozen=True)
class _Inputs:
    """The sources in order, the base if one is named, and the parameters of the whole merge, most specific first."""

    sources: Sequence[_Source]
    base: str | None
    scopes: Sequence[_Scope]


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
    document = _mapping(_load(path), str(path))
    _check_keys(document, _KEYS, str(path))
    method = document.get("merge_method")
    if not isinstance(method, str) or method not in _WHOLE_MERGE:
        known = f"known: {', '.join(sorted(_WHOLE_MERGE))}"
        raise _unsupported(f"{path}: merge_method: {method}", _INSTEAD.get(str(method), known))
    inputs = _read_inputs(document, path)
    for scope in inputs.scopes:
        _check_keys(scope.parameters, _PARAMETERS, scope.where)
    for source in inputs.sources:
        _check_keys(source.scope.parameters, _PARAMETERS, source.scope.where)
        for key in source.scope.parameters:
            if key in _WHOLE_MERGE[method]:
                problem = "mergekit ignores it for a single model"
                hint = "move it to the parameters at the top of the file"
                raise _malformed(f"{source.scope.where}.{key}", problem, hint)
    base, own, tuned = _base_and_tuned(inputs, path, method)
    return Job(
        method=method,
        base=base,
        tuned=tuple(source.adapter or source.model for source in tuned),
        options=_options(method, inputs, own, tuned, path),
        dtype=_dtype(document, path),
        tokenizer=_tokenizer(document, base, [source.model for source in tuned], path),
    )


def _malformed(where: str, problem: str, hint: str) -> RecipeError:
    return RecipeError(f"{where}: {problem}", hint, code="recipe.mergekit_malformed")


def _missing(where: str, hint: str) -> RecipeError:
    return RecipeError(f"{where} is missing", hint, code="recipe.mergekit_missing")


def _unsupported(what: str, hint: str) -> RecipeError:
    return RecipeError(f"{what} is not supported", hint, code="recipe.mergekit_unsupported")


def _load(path: Path) -> Any:
    try:
        return parse_yaml(read_bytes(path, YAML), YAML)
    except (OSError, UnusableError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        hint = "name a mergekit configuration, a YAML file"
        raise RecipeError(f"{path}: {reason}", hint, code="recipe.unreadable") from None
    except YAMLError as error:
        if "another document" in str(error):
            what = "write each merge in a file of its own, and name the folder of one as a model of the next"
            raise _unsupported(f"{path}: more than one document (mergekit-multi)", what) from None
        where = f"{path}:{error.line}" if error.line else str(path)
        raise RecipeError(f"{where}: {error}", "fix the YAML syntax there", code="recipe.invalid_yaml") from None


def _mapping(given: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(given, dict):
        raise _malformed(where, "is not a mapping of keys to values", "write `key: value`")
    return given


def _check_keys(given: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean `{near[0]}`?" if near else f"known here: {', '.join(known)}"
            raise _unsupported(f"{where}{'.' if ': ' in where else ': '}{key}", hint)


# --- Models ---


def _read_inputs(document: Mapping[str, Any], path: Path) -> _Inputs:
    whole = _scope(document, f"{path}: parameters")
    base = _base(document, f"{path}: base_model")
    if document.get("modules"):
        raise _unsupported(f"{path}: modules", "write models")
    models, slices = document.get("models"), document.get("slices")
    if bool(models) == bool(slices):
        raise _malformed(str(path), "needs either models or slices, and not both", "list the models")
    if models:
        sources = _sources(models, f"{path}: models", ("model", "parameters"))
        if base is not None and not any(source.model == base and not source.adapter for source in sources):
            where = f"{path}: base_model"
            sources.append(_Source(where, base, None, _Scope(where, {})))
        return _Inputs(sources, base, [whole])
    where = f"{path}: slices"
    if not isinstance(slices, list) or len(slices) != 1:
        raise _unsupported(f"{where}: more than one slice (layers rearranged)", "write models")
    where = f"{where}[0]"
    piece = _mapping(slices[0], where)
    _check_keys(piece, ("sources", "base_model", "parameters"), where)
    sources = _sources(piece.get("sources"), f"{where}.sources", ("model", "layer_range", "parameters"))
    _check_layers(sources, piece["sources"])
    inner = _scope(piece, f"{where}.parameters")
    return _Inputs(sources, _base(piece, f"{where}.base_model") or base, [inner, whole])


def _scope(entry: Mapping[str, Any], where: str) -> _Scope:
    return _Scope(where, _mapping(entry.get("parameters") or {}, where))


def _sources(entries: Any, where: str, keys: Sequence[str]) -> list[_Source]:
    if not isinstance(entries, list) or not entries:
        raise _malformed(where, "is not a list of models", "write `- model: …`")
    sources = []
    for index, entry in enumerate(entries):
        place = f"{where}[{index}]"
        _check_keys(_mapping(entry, place), keys, place)
        model, adapter = _reference(entry.get("model"), f"{place}.model")
        sources.append(_Source(place, model, adapter, _scope(entry, f"{place}.parameters")))
    return sources


def _base(entry: Mapping[str, Any], where: str) -> str | None:
    if entry.get("base_model") is None:
        return None
    base, adapter = _reference(entry["base_model"], where)
    if adapter:
        raise _unsupported(f"{where}: a base with an adapter", "merge that adapter first")
    return base


def _reference(given: Any, where: str) -> tuple[str, str | None]:
    """A model and an adapter on it, from `model`, `model@revision`, `model+adapter` or the same as a mapping."""
    if isinstance(given, Mapping):
        _check_keys(given, ("model", "lora", "override_architecture"), where)
        if given.get("override_architecture") is not None:
            raise _unsupported(f"{where}.override_architecture", "leave it out")
        adapter = given.get("lora")
        return _model_path(given.get("model"), f"{where}.model"), adapter and _model_path(adapter, f"{where}.lora")
    model, plus, adapter = str(given or "").partition("+")
    if not isinstance(given, str) or "+" in adapter or not model or (plus and not adapter):
        raise _malformed(where, f"{given!r} is not a model", "write a folder, a hub id, or MODEL+ADAPTER")
    return model, adapter or None


def _model_path(given: Any, where: str) -> str:
    if isinstance(given, Mapping):
        _check_keys(given, ("path", "revision"), where)
        path, revision = given.get("path"), given.get("revision")
        given = f"{path}@{revision}" if path and revision else path
    if not isinstance(given, str) or not given:
        raise _malformed(where, f"{given!r} is not a model", "write a folder or a hub id")
    return given


def _check_layers(sources: Sequence[_Source], entries: Sequence[Mapping[str, Any]]) -> None:
    """Raise unless every source gives all its layers, so that the slice is the whole model."""
    first = entries[0].get("layer_range")
    for source, entry in zip(sources, entries, strict=True):
        given = entry.get("layer_range")
        where = f"{source.where}.layer_range"
        if not isinstance(given, list) or len(given) != 2 or not all(type(end) is int for end in given):
            raise _malformed(where, f"{given!r} is not a range of layers", "write [0, N]")
        layers = _count_layers(source.model)
        if given[0] != 0 or given != first or given[1] != (layers or given[1]) or given[1] < 1:
            problem = f"{given} is not all layers" + (f" (the model has {layers})" if layers else "")
            raise _malformed(where, problem, "slices that rearrange layers are not supported: write models")


def _count_layers(model: str) -> int | None:
    """How many layers a model has, if its folder is on this machine and its configuration says so."""
    if not (Path(model) / "config.json").is_file():
        return None
    config = read_config(Path(model))
    counts = [place.get(key) for place in (config, text_fields(config)) for key in _LAYER_KEYS]
    return next((count for count in counts if type(count) is int), None)


def _base_and_tuned(inputs: _Inputs, path: Path, method: str) -> tuple[str, _Source | None, list[_Source]]:
    """The base, the source that is the base itself (if one is), and the tuned models.

    As in mergekit, linear and karcher merge the base only if it is one of the models; others require it.
    """
    base = inputs.base if inputs.base is not None else inputs.sources[0].model
    if inputs.base is None and method not in _BASE_IS_OPTIONAL:
        raise _missing(f"{path}: base_model", f"{method} needs one")
    seen: dict[tuple[str, str | None], str] = {}
    for source in inputs.sources:
        earlier = seen.setdefault((source.model, source.adapter), source.where)
        if earlier != source.where:
            raise _malformed(source.where, f"is the same model as {earlier}", "name each model once")
        if source.adapter and not _same_folder(source.model, base):
            problem = f"{source.model}+{source.adapter} is an adapter on another model than {base}"
            raise _malformed(source.where, problem, "name the base before the +")
    own = next((source for source in inputs.sources if source.model == base and not source.adapter), None)
    tuned = [source for source in inputs.sources if source is not own]
    if own is None and method not in _MERGE_BASE_IF_LISTED:
        raise _malformed(f"{path}: base_model", f"{base} is not one of the sources", "add it to the slice")
    fewest, most = METHODS[method].least, METHODS[method].most
    if method == "nuslerp":  # of the base and a model, or of two models' changes
        fewest = most = 1 if inputs.base is None else 2
    if not fewest <= len(tuned) <= (most or len(tuned)):
        hint = f"{method} merges {fewest if most else f'{fewest} or more'}, each different from the base"
        raise _malformed(str(path), f"{len(tuned)} models apart from the base", hint)
    return base, own, tuned


def _same_folder(one: str, other: str) -> bool:
    folders = Path(one), Path(other)
    return one == other or (all(f.is_dir() for f in folders) and folders[0].resolve() == folders[1].resolve())


# --- Options ---


def _options(method: str, inputs: _Inputs, own: _Source | None, tuned: Sequence[_Source], path: Path) -> Options:
    """The method's options with defaults written out; `own` is the base as one of the models."""
    shared = inputs.scopes

    def each(name: str, default: float | None = None) -> tuple[TensorValue, ...]:
        return tuple(_value(name, (source.scope, *shared), source.where, default) for source in tuned)

    if method == "linear":
        weight = _value("weight", (own.scope, *shared), own.where) if own else TensorValue.of(0.0)
        normalize = _flag("normalize", shared, True)
        found = _as_lambda(weight, each("weight"), normalize, f"{path}: weight")
        if found:
            return Options(lam=found[0], weights=found[1])
        return Options(lam=TensorValue.of(1.0), base_weight=weight, weights=each("weight"), normalize=normalize)
    if method == "karcher":
        steps = _value("max_iter", shared, str(path), 10).constant
        tolerance = _value("tol", shared, str(path), 1e-5).constant
        if (steps or 0) < 10 or tolerance is None or not 0 <= tolerance <= 1e-5:
            raise _unsupported(f"{path}: max_iter, tol: a coarser mean", "leave both out")
        share = TensorValue.of(1 / (len(tuned) + bool(own)))
        lam = TensorValue.of(len(tuned) / (len(tuned) + bool(own)))
        return Options(lam=lam, base_weight=share if own else TensorValue.of(0.0), weights=(share,) * len(tuned))
    if method == "slerp":
        return Options(lam=_value("t", shared, str(path)))
    if method == "nearswap":
        return Options(lam=TensorValue.of(1.0), threshold=_value("t", shared, str(path)))
    if method == "sce":
        return Options(lam=TensorValue.of(1.0), density=(_value("select_topk", shared, str(path), 1.0),))
    if method == "arcee_fusion":
        return Options(lam=TensorValue.of(1.0))
    if method == "nuslerp":
        if _flag("nuslerp_row_wise", shared, False) or not _flag("nuslerp_flatten", shared, True):
            raise _unsupported(f"{path}: nuslerp_flatten: false", "leave it out: whole tensors are interpolated")
        if inputs.base is not None:
            return Options(lam=TensorValue.of(1.0), weights=each("weight"))
        weights = (
            [one.constant for one in (_value("weight", (own.scope, *shared), own.where), *each("weight"))]
            if own
            else []
        )
        if len(weights) != 2 or None in weights or abs(math.fsum(w or 0.0 for w in weights)) < _TOLERANCE:
            raise _unsupported(f"{path}: nuslerp without base_model, with weights by tensor", "write two numbers")
        return Options(lam=TensorValue.of((weights[1] or 0.0) / math.fsum(w or 0.0 for w in weights)))
    if method == "multislerp":
        normalize = _flag("normalize_weights", shared, True)
        return Options(lam=TensorValue.of(1.0), weights=each("weight"), normalize=normalize)
    if method == "model_stock":
        if _flag("filter_wise", shared, False):
            raise _unsupported(f"{path}: parameters.filter_wise", "leave it out")
        return Options(lam=TensorValue.of(1.0))
    defaults = {**METHODS[method].options, **_DEFAULTS}
    rescale = _flag("rescale", shared, defaults.get("rescale") == "inverse")
    per_model: dict[str, Any] = {n: each(n, defaults[n]) for n in _DEFAULTS if n in METHODS[method].options}
    return Options(
        lam=_value("lambda", shared, str(path), 1.0),
        weights=each("weight"),
        normalize=_flag("normalize", shared, defaults["normalize"]),
        rescale=("l1" if rescale else "none") if method in _SPARSE else None,
        **per_model,
    )


def _value(name: str, scopes: Iterable[_Scope], where: str, default: float | None = None) -> TensorValue:
    """A parameter for every tensor: the rules of all scopes, most specific first, then the default."""
    rules = [
        (pattern, _numbers(value, place))
        for scope in scopes
        if name in scope.parameters
        for pattern, value, place in _rules(scope.parameters[name], f"{scope.where}.{name}")
    ]
    if default is not None:
        rules.append(("*", float(default)))
    if not rules:
        raise _missing(f"{where}: {name}", f"add parameters: {{{name}: …}}")
    return TensorValue.containing(rules)


def _flag(name: str, scopes: Iterable[_Scope], default: bool) -> bool:
    """A parameter that is on or off for the whole merge."""
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
        raise _unsupported(f"{where}: to be on for some tensors only", "write true or false")
    return found[0]


def _as_lambda(
    base: TensorValue, tuned: Sequence[TensorValue], normalize: bool, where: str
) -> tuple[TensorValue, tuple[TensorValue, ...]] | None:
    """λ and the tuned models' shares, if weights have the form (1−λ)·base + λ·Σ share·tuned; else None."""
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
        raise _malformed(where, "the weights add up to 0", "change them, or write normalize: false")
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
            raise _malformed(place, "is not a filter with its value", "write `- filter: …` and `value: …`")
        pattern = entry.get("filter")
        if not isinstance(pattern, str | None):
            raise _malformed(f"{place}.filter", f"{pattern!r} is not a part of a tensor's name", "put it in quotes")
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
        hint = "write a number, or a list of them for a gradient"
        raise _malformed(where, f"{given!r} is not a number", hint)
    return number


def _switch(given: Any, where: str) -> bool:
    text = str(given).lower().removesuffix(".0") if isinstance(given, (bool, int, float, str)) else ""
    if text not in (*_TRUE, *_FALSE):
        raise _malformed(where, f"{given!r} is neither true nor false", "write true or false")
    return text in _TRUE


def _dtype(document: Mapping[str, Any], path: Path) -> str | None:
    found = None
    for key in ("dtype", "out_dtype"):
        if (name := document.get(key)) not in (None, ""):
            found = str(name).removeprefix("torch.")
            if found not in _DTYPES:
                raise _unsupported(f"{path}: {key}: {name}", f"known: {', '.join(_DTYPES)}")
    return found


def _tokenizer(document: Mapping[str, Any], base: str, tuned: Sequence[str], path: Path) -> Tokenizer:
    """Whose tokenizer the output gets. mergekit copies the base's by default, and vocabularies must agree.

    Where all models have the same vocabulary, the union is that vocabulary, and no row of the embedding moves.
    """
    source, where = document.get("tokenizer_source"), f"{path}: tokenizer_source"
    if document.get("chat_template"):
        raise _unsupported(f"{path}: chat_template", "set it in the output's tokenizer files")
    if (tokenizer := document.get("tokenizer")) is not None:
        where = f"{path}: tokenizer"
        _check_keys(_mapping(tokenizer, where), ("source", "tokens", "pad_to_multiple_of"), where)
        for key in ("tokens", "pad_to_multiple_of"):
            if tokenizer.get(key):
                raise _unsupported(f"{where}.{key}", "leave it out")
        if source is not None:
            raise _malformed(where, "cannot be combined with tokenizer_source", "keep one of the two")
        source, where = tokenizer.get("source", "union"), f"{where}.source"
    if source is None:
        return "larger"
    if source == "base" or (source != "union" and _reference(source, where) == (base, None)):
        return "base"
    if source != "union" and _reference(source, where) != (tuned[0], None):
        raise _unsupported(f"{where}: {source}", f"write base, or {tuned[0]}")
    if other := _other_vocabulary(base, tuned):
        raise _unsupported(f"{where}: {source}, where {other}", "write base, or leave it out")
    return "base" if source == "union" else "tuned"


def _other_vocabulary(base: str, tuned: Sequence[str]) -> str | None:
    """Why the vocabularies of the models are not, or not known to be, that of the base: in words; None if they are."""
    for model in (base, *tuned):
        if not (Path(model) / TOKENIZER).is_file():
            return f"the vocabulary of {model} is not in a {TOKENIZER} on this machine"
    ours = ids_by_token(vocabulary(Path(base)))
    others = (model for model in tuned if ids_by_token(vocabulary(Path(model))) != ours)
    return next((f"{model} has another vocabulary than {base}" for model in others), None)
