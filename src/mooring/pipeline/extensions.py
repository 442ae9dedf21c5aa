"""What is built in and what plug-ins add, listed."""

import dataclasses

from mooring import plugins
from mooring.attacks import TECHNIQUES
from mooring.data.catalogue import NAMED
from mooring.engines import ENGINES
from mooring.errors import UserError
from mooring.export import Record
from mooring.merge_methods import METHODS
from mooring.metrics import METRICS
from mooring.plugins import Registry
from mooring.scoring.judges import JUDGES


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PluginInfo(Record):
    """An item of a registry.

    Attributes:
        group: `judges`, `merge_methods`, `metrics`, `prompt_sets`, `attacks` or `engines`.
        name: Its name.
        source: `built-in`, the distribution with its version, or `module:object`.
        error: Why it cannot be used; empty if it can.
    """

    group: str
    name: str
    source: str
    error: str = ""


def list_plugins() -> list[PluginInfo]:
    """See `mooring.list_plugins`."""
    registries: tuple[Registry[object], ...] = (JUDGES, METHODS, METRICS, NAMED, TECHNIQUES, ENGINES)  # type: ignore[type-var,assignment]
    errors: dict[tuple[str, str], str] = {}
    for group, name, _ in plugins.entry_points():
        try:
            plugins.find(group, name)
        except UserError as error:
            errors[group, name] = str(error)
    found = []
    for registry in registries:
        for name in registry:
            built_in = name in registry.built_in
            source = "built-in" if built_in else plugins.find(registry.group, name).source
            found.append(PluginInfo(group=registry.group, name=name, source=source))
        found += [
            PluginInfo(group=group, name=name, source=source, error=errors[group, name])
            for group, name, source in plugins.entry_points()
            if group == registry.group and (group, name) in errors
        ]
    return found
