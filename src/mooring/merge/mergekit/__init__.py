"""Read a configuration of mergekit 0.1.5 (its YAML file) as the job that does the same; `write` does the reverse.

What has no effect in mergekit has none here: parameters of another method, and `int8_mask`, which only changes how
mergekit stores signs. What mergekit does and Mooring does not is refused by name. Two things are done better than
there: arithmetic is in float32 whatever `dtype` says, which names the type of the output unless `out_dtype` does;
and `karcher` is solved to the end, where mergekit stops after `max_iter` steps.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml

from mooring.errors import RecipeError
from mooring.merge.job import Job, Options
from mooring.merge.mergekit.export import write
from mooring.merge.mergekit.inputs import Inputs, Source, known, mapping, read_inputs, reference
from mooring.merge.mergekit.parameters import as_lambda, check_parameters, flag, setting
from mooring.merge.settings import Setting

__all__ = ["read", "write"]

_SPARSE = ("ties", "dare_linear", "dare_ties", "della", "della_linear", "breadcrumbs", "breadcrumbs_ties")
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
    """The job that a mergekit configuration describes.

    mergekit's defaults are written out. Relative paths stay relative to the working directory, as in mergekit.
    `slices` must cover all layers; where a model's folder is not on this machine, that all ranges are [0, N] must do.
    Without `base_model`, the first model is the base (its settings and its tokenizer are the output's).

    Raises:
        RecipeError: The file cannot be read, or asks for something that is not supported; the message names the place.
        ModelError: A model's `config.json` is not JSON.
    """
    path = Path(path)
    document = mapping(_load(path), str(path))
    known(document, _TOP, str(path))
    method = document.get("merge_method")
    if not isinstance(method, str) or method not in _SHARED:
        raise RecipeError(f"{path}: merge_method: {method} is not supported", f"known: {', '.join(sorted(_SHARED))}")
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
    """The method's settings, mergekit's defaults written out; `own` is the base as one of the models."""
    shared = inputs.scopes

    def each(name: str, default: float | None = None) -> tuple[Setting, ...]:
        return tuple(setting(name, (source.scope, *shared), source.where, default) for source in tuned)

    if method == "linear":
        weight = setting("weight", (own.scope, *shared), own.where) if own else Setting.of(0.0)
        normalize = flag("normalize", shared, True)
        found = as_lambda(weight, each("weight"), normalize, f"{path}: weight")
        if found:
            return Options(lam=found[0], weights=found[1])
        return Options(lam=Setting.of(1.0), base_weight=weight, weights=each("weight"), normalize=normalize)
    if method == "karcher":
        steps, close = setting("max_iter", shared, str(path), 10), setting("tol", shared, str(path), 1e-5)
        if (steps.constant or 0) < 10 or not (0 <= (1 if close.constant is None else close.constant) <= 1e-5):
            raise RecipeError(f"{path}: max_iter, tol: a coarser mean is not supported", "leave both out")
        share = Setting.of(1 / (len(tuned) + bool(own)))
        lam = Setting.of(len(tuned) / (len(tuned) + bool(own)))
        return Options(lam=lam, base_weight=share if own else Setting.of(0.0), weights=(share,) * len(tuned))
    if method == "slerp":
        return Options(lam=setting("t", shared, str(path)))
    if method == "model_stock":
        if flag("filter_wise", shared, False):
            raise RecipeError(f"{path}: parameters.filter_wise is not supported", "leave it out")
        return Options(lam=Setting.of(1.0))
    rescale = flag("rescale", shared, method.startswith(("dare", "della")))
    return Options(
        lam=setting("lambda", shared, str(path), 1.0),
        weights=each("weight"),
        density=each("density", 1.0) if method in _SPARSE else (),
        gamma=each("gamma", 0.01) if method.startswith("breadcrumbs") else (),
        epsilon=each("epsilon", 0.15) if method.startswith("della") else (),
        normalize=flag("normalize", shared, method in ("ties", "della")),
        rescale=("l1" if rescale else "none") if method in _SPARSE else None,
    )


def _base_and_tuned(inputs: Inputs, path: Path, method: str) -> tuple[str, Source | None, list[Source]]:
    """The base, the source that is the base itself (if one is), and the tuned models.

    As in mergekit, linear and karcher merge the base only where it is one of the models; others need it there.
    """
    base = inputs.base if inputs.base is not None else inputs.sources[0].model
    if inputs.base is None and method not in ("linear", "karcher"):
        raise RecipeError(f"{path}: base_model is missing", f"{method} needs one")
    seen: dict[tuple[str, str | None], str] = {}
    for source in inputs.sources:
        earlier = seen.setdefault((source.model, source.adapter), source.where)
        if earlier != source.where:
            raise RecipeError(f"{source.where}: is the same model as {earlier}", "name each model once")
        if source.adapter and not _same(source.model, base):
            what = f"{source.where}: {source.model}+{source.adapter} is an adapter on another model than {base}"
            raise RecipeError(what, "name the base before the +")
    own = next((source for source in inputs.sources if source.model == base and not source.adapter), None)
    tuned = [source for source in inputs.sources if source is not own]
    if own is None and method not in ("linear", "karcher"):
        raise RecipeError(f"{path}: base_model: {base} is not one of the sources", "add it to the slice")
    fewest, most = {"slerp": (1, 1), "model_stock": (2, None)}.get(method, (1, None))
    if len(tuned) < fewest or len(tuned) > (most or len(tuned)):
        count = f"{fewest}" if most else f"{fewest} or more"
        what = f"{path}: {len(tuned)} models besides the base"
        raise RecipeError(what, f"{method} merges {count}, each unlike the base")
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
            raise RecipeError(f"{path}: {key}: {name} is not supported", f"known: {', '.join(_DTYPES)}")
    return found


def _tokenizer(document: Mapping[str, Any], base: str, path: Path) -> Literal["base", "larger"]:
    """Whose tokenizer the output gets. mergekit copies the base's if nothing is said, and vocabularies must agree."""
    source, where = document.get("tokenizer_source"), f"{path}: tokenizer_source"
    if document.get("chat_template"):
        raise RecipeError(f"{path}: chat_template is not supported", "set it in the output's tokenizer files")
    if (tokenizer := document.get("tokenizer")) is not None:
        where = f"{path}: tokenizer"
        known(mapping(tokenizer, where), ("source", "tokens", "pad_to_multiple_of"), where)
        for key in ("tokens", "pad_to_multiple_of"):
            if tokenizer.get(key):
                raise RecipeError(f"{where}.{key} is not supported", "leave it out")
        if source is not None:
            raise RecipeError(f"{where}: stands beside tokenizer_source", "keep one of the two")
        source, where = tokenizer.get("source", "union"), f"{where}.source"
    if source is None:
        return "larger"
    if source != "base" and reference(source, where) != (base, None):
        raise RecipeError(f"{where}: {source} is not supported", "write base")
    return "base"


def _load(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "is not text"
        raise RecipeError(f"{path}: {reason}", "name a mergekit configuration, a YAML file") from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise RecipeError(f"{where}: {getattr(error, 'problem', None) or 'not YAML'}", "mend the YAML there") from None
