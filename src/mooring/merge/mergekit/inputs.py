"""What a mergekit configuration merges: `models` or `slices`, the base, and the parameters that hold for which."""

import dataclasses
import difflib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mooring.checkpoint import read_config
from mooring.errors import RecipeError
from mooring.merge.mergekit.parameters import Scope

_LAYER_KEYS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")


@dataclasses.dataclass(frozen=True)
class Source:
    """A model that goes into the merge: the place that names it, a model, an adapter on it, its own parameters."""

    where: str
    model: str
    adapter: str | None
    scope: Scope


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What is merged: the sources in their order, the base that was named, and parameters that hold for all."""

    sources: tuple[Source, ...]
    base: str | None
    scopes: tuple[Scope, ...]


def read_inputs(document: Mapping[str, Any], path: Path) -> Inputs:
    """The sources of `models` or `slices`, with what holds for all of them, the more particular first.

    Raises:
        RecipeError: Something there is malformed or not supported.
        ModelError: A model's `config.json` is not JSON.
    """
    whole = Scope(f"{path}: parameters", mapping(document.get("parameters") or {}, f"{path}: parameters"))
    base = _base(document, f"{path}: base_model")
    if document.get("modules"):
        raise RecipeError(f"{path}: modules is not supported", "write models")
    models, slices = document.get("models"), document.get("slices")
    if bool(models) == bool(slices):
        raise RecipeError(f"{path}: needs either models or slices, and not both", "list the models")
    if models:
        sources = _sources(models, f"{path}: models", ("model", "parameters"))
        if base is not None and not any(source.model == base and not source.adapter for source in sources):
            sources.append(Source(f"{path}: base_model", base, None, Scope(f"{path}: base_model", {})))
        return Inputs(tuple(sources), base, (whole,))
    where = f"{path}: slices"
    if not isinstance(slices, list) or len(slices) != 1:
        raise RecipeError(f"{where}: more than one slice (layers put together anew) is not supported", "write models")
    piece = mapping(slices[0], f"{where}[0]")
    known(piece, ("sources", "base_model", "parameters"), f"{where}[0]")
    sources = _sources(piece.get("sources"), f"{where}[0].sources", ("model", "layer_range", "parameters"))
    _check_layers(sources, piece["sources"])
    inner = Scope(f"{where}[0].parameters", mapping(piece.get("parameters") or {}, f"{where}[0].parameters"))
    base = _base(piece, f"{where}[0].base_model") or base
    return Inputs(tuple(sources), base, (inner, whole))


def _sources(entries: Any, where: str, keys: Sequence[str]) -> list[Source]:
    if not isinstance(entries, list) or not entries:
        raise RecipeError(f"{where}: is not a list of models", "write `- model: …`")
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
        raise RecipeError(f"{where}: a base with an adapter is not supported", "merge that adapter first")
    return base


def reference(given: Any, where: str) -> tuple[str, str | None]:
    """A model and an adapter on it, from `model`, `model@revision`, `model+adapter` or the same as a mapping.

    Raises:
        RecipeError: It is none of these.
    """
    if isinstance(given, Mapping):
        known(given, ("model", "lora", "override_architecture"), where)
        if given.get("override_architecture") is not None:
            raise RecipeError(f"{where}.override_architecture is not supported", "leave it out")
        adapter = given.get("lora")
        return _path(given.get("model"), f"{where}.model"), _path(adapter, f"{where}.lora") if adapter else None
    model, plus, adapter = str(given or "").partition("+")
    if not isinstance(given, str) or "+" in adapter or not model or (plus and not adapter):
        raise RecipeError(f"{where}: {given!r} is not a model", "write a folder, a hub id, or MODEL+ADAPTER")
    return model, adapter or None


def _path(given: Any, where: str) -> str:
    if isinstance(given, Mapping):
        known(given, ("path", "revision"), where)
        path, revision = given.get("path"), given.get("revision")
        given = f"{path}@{revision}" if path and revision else path
    if not isinstance(given, str) or not given:
        raise RecipeError(f"{where}: {given!r} is not a model", "write a folder or a hub id")
    return given


def _check_layers(sources: Sequence[Source], entries: Sequence[Mapping[str, Any]]) -> None:
    """Hold that every source gives all its layers, so that the slice is the whole model."""
    first = entries[0].get("layer_range")
    for source, entry in zip(sources, entries, strict=True):
        given = entry.get("layer_range")
        where = f"{source.where}.layer_range"
        if not isinstance(given, list) or len(given) != 2 or not all(type(end) is int for end in given):
            raise RecipeError(f"{where}: {given!r} is not a range of layers", "write [0, N]")
        layers = _count_layers(source.model)
        if given[0] != 0 or given != first or given[1] != (layers or given[1]) or given[1] < 1:
            what = f"{where}: {given} is not all layers" + (f" (the model has {layers})" if layers else "")
            raise RecipeError(what, "slices that put layers together anew are not supported: write models")


def _count_layers(model: str) -> int | None:
    """How many layers a model has, where its folder is on this machine and says so."""
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
    """A part of the file that must be a mapping.

    Raises:
        RecipeError: It is something else.
    """
    if not isinstance(given, dict):
        raise RecipeError(f"{where}: is not a mapping of keys to values", "write `key: value`")
    return given


def known(given: Mapping[str, Any], keys: Iterable[str], where: str) -> None:
    """Refuse keys that mean nothing here.

    Raises:
        RecipeError: There is one.
    """
    keys = tuple(keys)
    for key in given:
        if key not in keys:
            near = difflib.get_close_matches(str(key), keys, n=1)
            mend = f"did you mean `{near[0]}`?" if near else f"known here: {', '.join(keys)}"
            joint = "." if ": " in where else ": "
            raise RecipeError(f"{where}{joint}{key} is not supported", mend)
