"""The numbers of a method for every tensor, checked before the work begins."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch

from mooring.errors import UserError
from mooring.merging.dense import Site
from mooring.merging.inputs import Target
from mooring.merging.job import Options, Setting, as_plain, depths
from mooring.merging.methods import METHODS, Method

_PER_MODEL = ("weights", "density", "gamma", "epsilon")
_BOUNDED = ("linear", "slerp", "karcher", "model_stock")
"""Methods that interpolate: λ lies in [0, 1]. The others add λ times a change, which may be any number."""


def method_named(name: str) -> Method:
    """Look a method up.

    Raises:
        UserError: It is unknown.
    """
    if name not in METHODS:
        raise UserError(f"method {name!r} is unknown", f"known: {', '.join(METHODS)}")
    return METHODS[name]


def options_of(method: str, lam: Any = None, **given: Any) -> Options:
    """Options from plain values, as a caller in Python or a recipe gives them.

    Args:
        method: The method's name.
        lam: λ: a number, a ramp, patterns to either, or a `Setting`; for `model_stock` 1 where it is not given.
        given: The other fields of `Options`; `weights`, `density`, `gamma` and `epsilon` are one value or a sequence of
            values, one a tuned model; None is not given.

    Raises:
        UserError: The method is unknown, takes no such option, or a value is not a number.
    """
    known = method_named(method)
    if lam is None:
        if method != "model_stock":
            raise UserError(f"method {method} wants λ", "give λ, the weight of the tuned model, from 0 to 1")
        lam = 1.0
    setting = Setting.of(lam)
    if method == "lines" and setting.constant is not None:
        setting = Setting.of((0.0, setting.constant))
    fields: dict[str, Any] = {"lam": setting}
    for name, value in given.items():
        if value is None:
            continue
        if name not in known.options:
            takes = ", ".join(sorted(known.options)) or "none but λ"
            raise UserError(f"method {method} takes no {name}", f"leave it out (its options: {takes})")
        if name in _PER_MODEL:
            several = isinstance(value, Sequence) and not isinstance(value, str)
            value = tuple(Setting.of(v) for v in value) if several else (Setting.of(value),)
        elif name == "base_weight":
            value = Setting.of(value)
        _check_kind(name, value)
        fields[name] = value
    return Options(**fields)


def _check_kind(name: str, value: Any) -> None:
    """Refuse what is not a choice: a typing error would pass for another one."""
    if name == "rescale" and value not in ("inverse", "l1", "none"):
        raise UserError(f"rescale: {value!r} is unknown", "give inverse, l1 or none")
    if name == "normalize" and not isinstance(value, bool):
        raise UserError(f"normalize: {value!r} is not true or false", "give one of the two")
    if name == "seed" and (isinstance(value, bool) or not isinstance(value, int)):
        raise UserError(f"seed: {value!r} is not a whole number", "give one")


def sites(
    method: str,
    options: Options,
    targets: Mapping[str, Target],
    models: int,
    lams: Sequence[Setting],
    note: Callable[[str, str], None],
    dtype: torch.dtype | None = None,
) -> dict[str, Site]:
    """The site of every floating-point tensor.

    Args:
        method: The method's name.
        options: Its settings.
        targets: The tensors.
        models: How many tuned models there are.
        lams: λ, one an output.
        note: Told a tensor's name and what was decided for it.
        dtype: The type of the outputs; the base's own without.

    Raises:
        UserError: The method takes fewer or more tuned models, a number is out of range for some tensor, a pattern
            matches no tensor, or none matches a tensor.
    """
    known = method_named(method)
    _check_count(method, known, models)
    names = [name for name, target in targets.items() if target.dtype.is_floating_point]
    _check_patterns(options, lams, names)
    depth = depths(names)

    def numbers(name: str, field: str, default: float | None) -> tuple[float, ...]:
        given: tuple[Setting, ...] = getattr(options, field)
        if not given:
            return () if default is None else (default,) * models
        if len(given) not in (1, models):
            raise UserError(f"{field}: {len(given)} values for {models} tuned models", "give one, or one for each")
        found = tuple(setting.at(name, depth[name]) for setting in given)
        return found * models if len(found) == 1 else found

    made = {}
    for name in names:
        base_weight = options.base_weight.at(name, depth[name]) if options.base_weight else None
        site = Site(
            name=name,
            shape=targets[name].shape,
            dtype=dtype or targets[name].dtype,
            numel=targets[name].shared,
            lams=tuple(lam.at(name, depth[name]) for lam in lams),
            base_weight=base_weight,
            weights=numbers(name, "weights", None),
            density=numbers(name, "density", 1.0),
            gamma=numbers(name, "gamma", 0.01),
            epsilon=numbers(name, "epsilon", 0.15),
            normalize=known.normalize if options.normalize is None else options.normalize,
            rescale=known.rescale if options.rescale is None else options.rescale,
            seed=options.seed,
            note=_noter(note, name),
            kind=known.kind,
        )
        _check(method, known, site)
        made[name] = site
    return made


def _noter(note: Callable[[str, str], None], name: str) -> Callable[[str], None]:
    return lambda sentence: note(name, sentence)


def _check_count(method: str, known: Method, models: int) -> None:
    if models < known.least:
        raise UserError(f"{method} merges at least {known.least} tuned models, not {models}", "name more of them")
    if known.most is not None and models > known.most:
        hint = "use karcher for several" if method == "slerp" else "name fewer"
        raise UserError(f"{method} merges {known.most} tuned model, not {models}", hint)


def _check_patterns(options: Options, lams: Sequence[Setting], names: Iterable[str]) -> None:
    """Refuse a pattern that matches nothing: a typing error would pass unseen."""
    names = list(names)
    given = [("lam", lam) for lam in lams]
    given += [(field, setting) for field in _PER_MODEL for setting in getattr(options, field)]
    if options.base_weight:
        given.append(("base_weight", options.base_weight))
    for field, setting in given:
        for pattern in setting.unused(names):
            raise UserError(f"{field}: the pattern {pattern!r} matches no tensor", "see the names in `mooring inspect`")


def _check(method: str, known: Method, site: Site) -> None:
    for lam in site.lams:
        if method in _BOUNDED and not 0 <= lam <= 1:  # refuses NaN as well
            raise UserError(f"λ is {lam:g}", "give a number from 0 (the base) to 1 (the tuned model)")
        if not math.isfinite(lam):
            raise UserError(f"λ is {lam:g}", "give a finite number")
    where = f"{method}, {site.name}"
    for density, gamma, epsilon in zip(site.density, site.gamma, site.epsilon, strict=True):
        if not 0 <= density <= 1:
            raise UserError(f"{where}: density is {density:g}", "give the share to keep, from 0 to 1")
        if not 0 <= gamma <= 1:
            raise UserError(f"{where}: gamma is {gamma:g}", "give the share of largest entries to drop, from 0 to 1")
        if not epsilon >= 0:
            raise UserError(
                f"{where}: epsilon is {epsilon:g}", "give half the width of the keep probability, from 0 on"
            )
        if known.kind == "magprune" and density < 1 and not (density - epsilon > 0 and density + epsilon < 1):
            raise UserError(
                f"{where}: density {density:g} ± epsilon {epsilon:g} leaves (0, 1)", "give a smaller epsilon"
            )
    if method == "linear" and site.base_weight is None and not site.normalize:
        raise UserError(
            f"{where}: normalize is false, but there is no base_weight", "give base_weight, or leave it out"
        )
    total = math.fsum(site.weights or (1.0,) * len(site.density)) + (site.base_weight or 0.0)
    if abs(total) < 1e-8 and (site.normalize if method == "linear" else method == "karcher"):
        raise UserError(f"{where}: the weights sum to {total:g}", "give weights that do not cancel")
    if method == "karcher" and min((*site.weights, site.base_weight or 0.0)) < 0:
        raise UserError(f"{where}: a weight is negative", "give weights from 0 on")


def plain(method: str, options: Options) -> dict[str, Any]:
    """The options as plain values for the manifest: those that mean something to the method, defaults written out."""
    known = method_named(method)
    defaults = {"density": 1.0, "gamma": 0.01, "epsilon": 0.15}
    found: dict[str, Any] = {}
    for name in sorted(known.options):
        value = getattr(options, name)
        if name in _PER_MODEL:
            value = [as_plain(setting) for setting in value] or ([defaults[name]] if name in defaults else None)
        elif name == "base_weight" and value is not None:
            value = as_plain(value)
        elif name == "normalize":
            value = known.normalize if value is None else value
        elif name == "rescale":
            value = value or known.rescale
        if value is not None:
            found[name] = value
    return found
