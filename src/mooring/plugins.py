"""Merge methods, judges, metrics, prompt sets, attacks and engines that other packages and files define.

A plug-in is an object of the same type as a built-in one. It is found by its name: in an entry point of that name in
the group `mooring.judges`, `mooring.merge_methods`, …, or after `load`. What is built in is an item of the same
registries.
"""

import contextlib
import contextvars
import dataclasses
import functools
import hashlib
import importlib.metadata
import importlib.util
import inspect
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any, Protocol, TypeVar

from mooring.bounded import CONFIG, read_bytes
from mooring.errors import RecipeError
from mooring.files import expanded
from mooring.printable import shorten

TYPES: Mapping[str, str] = {
    "judges": "mooring.scoring.judges.base.Judge",
    "merge_methods": "mooring.merge_methods.Method",
    "metrics": "mooring.metrics.Metric",
    "prompt_sets": "mooring.data.catalogue.NamedSet",
    "attacks": "mooring.attacks.attack.Technique",
    "engines": "mooring.engines.EngineKind",
}
"""The groups of plug-ins, and the type of their objects. By name, since the ground imports no stage."""
HINT = "see docs/plugins.md"
_LONGEST_NAME = 100


class Named(Protocol):
    """What a registry holds."""

    @property
    def name(self) -> str: ...


T = TypeVar("T", bound=Named)


@dataclasses.dataclass(frozen=True, slots=True)
class Plugin:
    """A plug-in that was loaded.

    Attributes:
        group: What it is: a key of `TYPES`.
        value: The object.
        source: Where it is from: a distribution, or `module:object`.
        version: What the numbers that it makes depend on: the version of its distribution, and a digest of its module.
    """

    group: str
    value: Any
    source: str
    version: str


_loaded: dict[tuple[str, str], Plugin] = {}
_files: dict[tuple[Path, str], ModuleType] = {}


class Registry(Mapping[str, T]):
    """The items of one group by name: those that are built in, and plug-ins.

    A name that is not built in is looked for among the loaded plug-ins, then among entry points. Iteration gives what
    is built in and what has been loaded.
    """

    def __init__(self, group: str, built_in: Iterable[T]) -> None:
        self.group = group
        self.built_in: Mapping[str, T] = MappingProxyType({item.name: item for item in built_in})
        _registries[group] = self

    def __getitem__(self, name: str) -> T:
        if name in self.built_in:
            return self.built_in[name]
        value: T = find(self.group, name).value
        return value

    def __iter__(self) -> Iterator[str]:
        yield from self.built_in
        yield from (name for group, name in _loaded if group == self.group)

    def __len__(self) -> int:
        return sum(1 for _ in self)


_registries: dict[str, Registry[Any]] = {}


def find(group: str, name: str) -> Plugin:
    """The plug-in of a name.

    Raises:
        KeyError: There is none.
        RecipeError: It cannot be used; see `load`.
    """
    if (group, name) not in _loaded:
        entry = _entry_points(group).get(name)
        if entry is None:
            raise KeyError(name)
        _load_entry(group, entry)
    return _loaded[group, name]


def versioned(group: str, name: str) -> str:
    """A name for the keys of steps: that of a plug-in with its version, any other as it is."""
    if name in _registries[group].built_in:
        return name
    try:
        return f"{name} ({find(group, name).version})"
    except KeyError:
        return name


TRUSTED = "MOORING_PLUGINS"
"""The environment variable with the references that run folders may name, separated by commas."""
_in_run_folder = contextvars.ContextVar("_in_run_folder", default=False)


@contextlib.contextmanager
def of_run_folder() -> Iterator[None]:
    """A block that reads the recipe in a run folder, which may come from someone else: it brings no code of its own.

    In it, `load` takes only references that this process has loaded before, and those of `TRUSTED`.
    """
    token = _in_run_folder.set(True)
    try:
        yield
    finally:
        _in_run_folder.reset(token)


def load(reference: str) -> None:
    """Load plug-ins by reference: `module:object` or `path/to/file.py:object`; an object may be a list of plug-ins.

    Raises:
        RecipeError: It cannot be imported (`recipe.plugin_failed`), is not a plug-in (`recipe.not_a_plugin`), has the
            name of something that exists (`recipe.plugin_name_taken`), or only a run folder names it
            (`recipe.plugin_not_trusted`).
    """
    if _in_run_folder.get() and reference not in {
        *(plugin.source for plugin in _loaded.values()),
        *os.environ.get(TRUSTED, "").split(","),
    }:
        what = f"plug-in {reference}: is code that a run folder names"
        raise RecipeError(what, f"if you trust it: {TRUSTED}={reference}", code="recipe.plugin_not_trusted")
    where, colon, name = reference.rpartition(":")
    if not colon or not where or not name:
        raise _failed(reference, "is not module:object", "write my_package.judges:JUDGE, or path/to/judge.py:JUDGE")
    module = _imported(where, reference)
    value = module
    for part in name.split("."):
        try:
            value = getattr(value, part)
        except AttributeError:
            raise _failed(reference, f"{where} has no `{part}`", "name an object in it") from None
        except Exception as error:  # of a property
            raise _failed(reference, _reason(error), "correct it") from None
    for each in value if isinstance(value, list | tuple) else (value,):
        group = _group(each)
        if group is None:
            known = ", ".join(path.rpartition(".")[2] for path in TYPES.values())
            what = f"plug-in {reference}: is {type(each).__name__}, not one of {known}"
            raise RecipeError(what, HINT, code="recipe.not_a_plugin")
        _add(Plugin(group, each, reference, _digest(module)))


def in_file(reference: str) -> bool:
    """Whether a reference names a file, which only this machine has."""
    return expanded(reference.rpartition(":")[0]).suffix == ".py"


def entry_points() -> list[tuple[str, str, str]]:
    """(group, name, distribution) of all entry points of plug-ins, without loading them."""
    return [
        (group, name, _distribution(entry)) for group in TYPES for name, entry in sorted(_entry_points(group).items())
    ]


def _load_entry(group: str, entry: importlib.metadata.EntryPoint) -> None:
    label = f"mooring.{group}: {entry.name} of {_distribution(entry)}"
    try:
        value = entry.load()
    except (Exception, SystemExit) as error:
        raise _failed(label, _reason(error), "correct or uninstall that package") from None
    if _group(value) != group:
        what = f"plug-in {label}: is {type(value).__name__}, not {TYPES[group].rpartition('.')[2]}"
        raise RecipeError(what, HINT, code="recipe.not_a_plugin")
    if value.name != entry.name:
        hint = "give the entry point that name"
        raise _failed(label, f"its object has another name, {value.name!r}", hint)
    version = f"{_distribution(entry)} {_digest(sys.modules[entry.module])}"
    _add(Plugin(group, value, _distribution(entry), version))


def _add(plugin: Plugin) -> None:
    """Make a plug-in known; the same one again takes its own place."""
    name = plugin.value.name
    if not isinstance(name, str) or not 0 < len(name) <= _LONGEST_NAME or not name.isprintable():
        what = f"its name is not a text of at most {_LONGEST_NAME} characters in one line"
        raise _failed(plugin.source, what, "give it another name")
    place, known = (plugin.group, name), _loaded.get((plugin.group, name))
    registry = _registries.get(plugin.group)
    if (registry and name in registry.built_in) or (known and known.source != plugin.source):
        what = f"plug-in {plugin.source}: the name {name!r} is taken by {known.source if known else 'a built-in one'}"
        raise RecipeError(what, "give it another name", code="recipe.plugin_name_taken")
    _loaded[place] = plugin


def _group(value: object) -> str | None:
    """The group of an object, by its type."""
    names = {f"{kind.__module__}.{kind.__qualname__}" for kind in type(value).__mro__}
    return next((group for group, name in TYPES.items() if name in names), None)


def _imported(where: str, reference: str) -> ModuleType:
    try:
        if in_file(reference):
            return _from_file(expanded(where))
        return importlib.import_module(where)
    except (Exception, SystemExit) as error:
        hint = "install its package, or name a file" if isinstance(error, ImportError) else "correct it"
        raise _failed(reference, _reason(error), hint) from None


def _from_file(path: Path) -> ModuleType:
    """A file as a module of its own; the same content is executed once."""
    key = (path.resolve(), hashlib.sha256(read_bytes(path, CONFIG)).hexdigest())
    if key not in _files:
        name = f"mooring_plugin_{key[1][:16]}"
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # dataclasses and pickle look modules up by name
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
        _files[key] = module
    return _files[key]


def _digest(module: ModuleType) -> str:
    """The beginning of the SHA-256 of a module's source, or its name if it has none."""
    try:
        return hashlib.sha256(Path(inspect.getfile(module)).read_bytes()).hexdigest()[:12]
    except (TypeError, OSError):
        return module.__name__


@functools.cache
def _entry_points(group: str) -> dict[str, importlib.metadata.EntryPoint]:
    return {entry.name: entry for entry in importlib.metadata.entry_points(group=f"mooring.{group}")}


def _distribution(entry: importlib.metadata.EntryPoint) -> str:
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist else entry.value


def _reason(error: BaseException) -> str:
    """An exception in one line."""
    try:
        said = str(error)
    except Exception:  # its own text fails, too
        said = "…"
    return f"{type(error).__name__}: {shorten(said, 400)}"


def _failed(reference: str, reason: str, hint: str) -> RecipeError:
    return RecipeError(f"plug-in {reference}: {reason}", hint, code="recipe.plugin_failed")
