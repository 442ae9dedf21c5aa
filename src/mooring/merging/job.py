"""One merge, described: which models, which method, and the method's options for every tensor."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Unpack, get_args

import torch

from mooring.errors import UserError
from mooring.merge_methods import Method, Role, method_named
from mooring.merging.layers import depths
from mooring.merging.pair import OutputTensor, Tokenizer
from mooring.merging.plan import Rescale, TensorParams
from mooring.merging.tensor_value import Given, TensorValue
from mooring.options import MethodOptions


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
        rank: How many singular vectors count; 0 for all (LoX, intruder dimensions).
        threshold: A cosine (Safe LoRA, SafeMERGE, intruder dimensions), a share of entropy (LSSF), or the most that an
            entry changes (NearSwap).
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
    rank: TensorValue | None = None
    threshold: TensorValue | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A complete description of a merge.

    Attributes:
        method: A name in `merge_methods.METHODS`.
        base: Folder or hub id of the base.
        tuned: Folders or hub ids of the tuned models: checkpoints, or LoRA adapters on the base.
        options: The method's options.
        dtype: Type of the output's tensors, as torch names it; defaults to the base's.
        tokenizer: Whose tokenizer and chat template the output gets (`pair.Tokenizer`).
        references: Folders or hub ids of further models that the method needs, by role.
    """

    method: str
    base: str
    tuned: tuple[str, ...]
    options: Options
    dtype: str | None = None
    tokenizer: Tokenizer = "larger"
    references: Mapping[Role, str] = dataclasses.field(default_factory=dict)


_PER_MODEL = ("weights", "density", "gamma", "epsilon")
_NUMBERS = ("base_weight", "rank", "threshold")
"""Options that are one number for every tensor."""


def options_of(method: str, lam: "Given | None" = None, **given: Unpack[MethodOptions]) -> Options:
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
    fields = {name: _option(known, name, option) for name, option in given.items() if option is not None}
    return Options(lam=value, **fields)


def values_by_folder(method: str, lambdas: Sequence[float]) -> dict[str, TensorValue]:
    """Several λ of one merge by the folders of their outputs, such as `lam-0.4`.

    Raises:
        UserError: Two of them are the same (`usage.repeated_lambda`).
    """
    values = {f"lam-{lam:g}": options_of(method, lam).lam for lam in lambdas}
    if len(values) < len(lambdas):
        raise UserError("two of the λ are the same", "give each once", code="usage.repeated_lambda")
    return values


def _option(method: Method, name: str, value: Any) -> Any:
    """An option's value in the form of `Options`."""
    if name not in method.options:
        takes = ", ".join(sorted(method.options)) or "none but λ"
        hint = f"leave it out (its options: {takes})"
        raise UserError(f"method {method.name} takes no {name}", hint, code="usage.unknown_option")
    if name in _PER_MODEL:
        several = isinstance(value, Sequence) and not isinstance(value, str)
        return tuple(TensorValue.of(v) for v in value) if several else (TensorValue.of(value),)
    if name in _NUMBERS:
        return TensorValue.of(value)
    valid, hint = {
        "rescale": (value in get_args(Rescale), "give inverse, l1 or none"),
        "normalize": (isinstance(value, bool), "give true or false"),
        "seed": (isinstance(value, int) and not isinstance(value, bool), "give an integer"),
    }[name]
    if not valid:
        raise UserError(f"{name}: {value!r} is not valid", hint, code="usage.bad_option")
    return value


def options_to_json(method: str, options: Options) -> dict[str, Any]:
    """The options that the method takes, as JSON for the manifest, with defaults written out."""
    found: dict[str, Any] = {}
    for name, default in sorted(method_named(method).options.items()):
        value = getattr(options, name)
        if name in _PER_MODEL:
            value = [one.to_json() for one in value] or (None if default is None else [default])
        elif value is None:
            value = default
        elif name in _NUMBERS:
            value = value.to_json()
        if value is not None:
            found[name] = value
    return found


def options_from_json(method: str, lam: Any, options: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """λ and the options of a manifest, as `options_of` takes them."""

    def value(given: Any) -> Any:
        if isinstance(given, Mapping) and given.keys() == {"contains"}:
            return TensorValue.containing([(key, _ramp(each)) for key, each in given["contains"].items()])
        if isinstance(given, Mapping):
            return TensorValue.of({key: _ramp(each) for key, each in given.items()})
        return _ramp(given)

    several = {name: tuple(map(value, options[name])) for name in _PER_MODEL if options.get(name) is not None}
    others = {name: value(given) if name in _NUMBERS else given for name, given in options.items()}
    return value(lam), {**others, **several}


def _ramp(given: Any) -> Any:
    return tuple(given) if isinstance(given, list) else given


_NEUTRAL: Mapping[str, Any] = {
    "density": 1.0,
    "gamma": 0.0,
    "epsilon": 0.0,
    "normalize": False,
    "rescale": "none",
    "seed": 0,
    "rank": 0,
    "threshold": 0.0,
}
"""The parameters of a method that does not have these options."""


def tensor_params(
    method: str,
    options: Options,
    tensors: Mapping[str, OutputTensor],
    models: int,
    lams: Sequence[TensorValue],
    note: Callable[[str, str], None],
    dtype: torch.dtype | None = None,
    references: tuple[Role, ...] = (),
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
        references: The roles of the further models that the method reads.

    Raises:
        UserError: The method takes fewer or more tuned models, a number is out of range for a tensor, a pattern matches
            no tensor, or none matches a tensor.
    """
    known = method_named(method)
    _check_count(known, models)
    names = [name for name, tensor in tensors.items() if tensor.dtype.is_floating_point]
    _check_patterns(options, lams, names)
    defaults = {**_NEUTRAL, **{name: value for name, value in known.options.items() if value is not None}}
    per_model: dict[str, tuple[TensorValue, ...]] = {}
    for field in _PER_MODEL:
        default = (TensorValue.of(defaults[field]),) if field in defaults else ()
        per_model[field] = getattr(options, field) or default
        if len(per_model[field]) not in (0, 1, models):
            what = f"{field}: {len(per_model[field])} values for {models} tuned models"
            raise UserError(what, "give one, or one for each", code="usage.wrong_number_of_values")
    scalars = {field: getattr(options, field) for field in ("normalize", "rescale", "seed")}
    scalars = {field: defaults[field] if value is None else value for field, value in scalars.items()}
    depth = depths(names)
    params = {}
    for name in names:
        numbers: dict[str, Any] = {}
        for field, values in per_model.items():
            found = tuple(value.at(name, depth[name]) for value in values)
            numbers[field] = found * models if len(found) == 1 else found
        for field in ("rank", "threshold"):
            given = getattr(options, field)
            numbers[field] = defaults[field] if given is None else given.at(name, depth[name])
        numbers["rank"] = int(numbers["rank"])
        params[name] = TensorParams(
            name=name,
            shape=tensors[name].shape,
            dtype=dtype or tensors[name].dtype,
            numel=tensors[name].shared,
            lams=tuple(lam.at(name, depth[name]) for lam in lams),
            base_weight=options.base_weight.at(name, depth[name]) if options.base_weight else None,
            note=functools.partial(note, name),
            kind=known.kind,
            references=references,
            **numbers,
            **scalars,
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
    given += [(field, value) for field in _NUMBERS if (value := getattr(options, field))]
    for field, value in given:
        for pattern in value.unused(names):
            what = f"{field}: the pattern {pattern!r} matches no tensor"
            raise UserError(what, "see the names in `mooring inspect`", code="usage.pattern_matches_nothing")


def _check_params(method: Method, params: TensorParams) -> None:
    """Raise if a number is out of range."""
    for lam in params.lams:
        check_lam(lam, bounded=method.bounded)
    for what, hint in _faults(method, params):
        raise UserError(f"{method.name}, {params.name}: {what}", hint, code="usage.option_out_of_range")


def check_lam(lam: float, *, bounded: bool = True) -> None:
    """Raise if λ is not from 0 to 1, or, if it is not bounded, not finite.

    Raises:
        UserError: It is out of range (`usage.lambda_out_of_range`).
    """
    if bounded and not 0 <= lam <= 1:  # raises for NaN as well
        hint = "give a number from 0 (the base) to 1 (the tuned model)"
        raise UserError(f"λ is {lam:g}", hint, code="usage.lambda_out_of_range")
    if not math.isfinite(lam):
        raise UserError(f"λ is {lam:g}", "give a finite number", code="usage.lambda_out_of_range")


def _faults(method: Method, params: TensorParams) -> Iterator[tuple[str, str]]:
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
    if params.rank < 0:
        yield f"rank is {params.rank}", "give the number of singular vectors, or 0 for all"
    if method.name == "nearswap" and params.threshold < 0:
        yield f"threshold is {params.threshold:g}", "give the most that an entry may change, from 0"
    if len(set(params.density)) > 1 and method.name == "sce":
        yield "density differs by model", "give one for all"
    if "threshold" in method.options and not -1 <= params.threshold <= 1:
        yield f"threshold is {params.threshold:g}", "give a number up to 1"
    if method.name == "linear" and params.base_weight is None and not params.normalize:
        yield "normalize is false, but there is no base_weight", "give base_weight, or leave it out"
    total = math.fsum(params.weights or (1.0,) * len(params.density)) + (params.base_weight or 0.0)
    if abs(total) < 1e-8 and (params.normalize if method.name == "linear" else method.name == "karcher"):
        yield f"the weights sum to {total:g}", "give weights that do not cancel"
    if method.name == "karcher" and min((*params.weights, params.base_weight or 0.0)) < 0:
        yield "a weight is negative", "give weights from 0"


_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def bytes_of(size: int | str | None) -> int | None:
    """The largest file's size in bytes from an integer, or from text such as `5GB` or `500MiB`; None stays None.

    Raises:
        UserError: It is not a positive size (`usage.bad_size`).
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
        raise UserError(f"max_shard_size: {size!r} is not a size", "write it as 5GB or 500MB", code="usage.bad_size")
    return count


def dtype_named(dtype: torch.dtype | str | None) -> torch.dtype | None:
    """A floating-point type, from torch's or its name; None stays None.

    Raises:
        UserError: A merged model cannot have it (`usage.bad_dtype`).
    """
    if dtype is None:
        return None
    found = getattr(torch, dtype.removeprefix("torch."), None) if isinstance(dtype, str) else dtype
    if found not in (torch.bfloat16, torch.float16, torch.float32, torch.float64):
        hint = "give bfloat16, float16, float32 or float64"
        raise UserError(f"dtype: {dtype!r} is unknown", hint, code="usage.bad_dtype")
    return found


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """The form of a merged model.

    Attributes:
        dtype: Type of its floating-point tensors, as torch's type or its name; defaults to the base's.
        max_shard_size: The largest file, in bytes or as text such as `5GB` (a larger tensor has a file of its own);
            defaults to the base's files.
        tokenizer: Whose tokenizer and chat template it gets: `larger`, `base` or `tuned` (`pair.Tokenizer`).
        allow_nonfinite: Continue if an input or a merged value is NaN or Inf.
        keep_quantization: Write quantized tensors in the base's format.
        verify: Read the result again and compare it with what was written.

    Raises:
        UserError: A value is invalid.
    """

    dtype: torch.dtype | str | None = None
    max_shard_size: int | str | None = None
    tokenizer: Tokenizer = "larger"
    allow_nonfinite: bool = False
    keep_quantization: bool = False
    verify: bool = True

    def __post_init__(self) -> None:
        if self.keep_quantization and self.dtype is not None:
            what = "keep_quantization: the base's format has its own types"
            raise UserError(what, "leave out --dtype or --keep-quantization", code="usage.keep_quantization")
        bytes_of(self.max_shard_size)
        dtype_named(self.dtype)
        if self.tokenizer not in get_args(Tokenizer):
            raise UserError(
                f"tokenizer: {self.tokenizer!r} is unknown", "give larger, base or tuned", code="usage.bad_option"
            )

    @property
    def torch_dtype(self) -> torch.dtype | None:
        """The type of its floating-point tensors; None for the base's."""
        return dtype_named(self.dtype)


DEFAULT_OUTPUT = Output()
