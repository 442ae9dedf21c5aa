"""References to data sets, such as `advbench`, `mine.jsonl#500` or `owner/name@config:split`."""

import dataclasses
import difflib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from mooring.data.bundled import BUNDLED
from mooring.data.catalogue import NAMED
from mooring.data.rows import is_data_file
from mooring.errors import DataError
from mooring.files import expanded
from mooring.records import Kind, Split

PARTS: dict[str, Split] = {"train": "tune", "validation": "validation", "test": "test"}
"""The parts of task data, as `NAME:part` calls them. They share no question."""
_COUNT = re.compile(r"(?P<most>max)?(?P<count>[0-9]+)(?:/(?P<field>[\w.-]+))?")
_HUB_ID = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)(?:@(?P<config>[\w.+-]+))?(?::(?P<split>\w+))?")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """A parsed reference to a data set.

    Attributes:
        text: The reference as it was written.
        source: Where the rows come from: a file, a named set (docs/sets.md), a bundled set, or the hub.
        name: Path of the file, name of the set (without `bundled:`), or id on the hub.
        config: Configuration of a data set on the hub.
        part: The part of a named set, if the reference names one.
        hub_split: The split of a data set on the hub, if the reference names one.
        count: Number of rows; `None` for all.
        stratify: Field over whose values the rows are drawn evenly.
        at_most: Whether a set with fewer than `count` rows is accepted.
    """

    text: str
    source: Literal["file", "named", "bundled", "hub"]
    name: str
    config: str | None = None
    part: Split | None = None
    hub_split: str | None = None
    count: int | None = None
    stratify: str | None = None
    at_most: bool = False

    @property
    def kind(self) -> Kind | None:
        """What a named or a bundled set is for; `None` for files and the hub, of which nothing is known."""
        if self.source == "named":
            return NAMED[self.name].kind
        return BUNDLED[self.name] if self.source == "bundled" else None

    @property
    def has_splits(self) -> bool:
        """Whether the set has its own splits, and the reference does not name one of them."""
        if self.source == "named":
            return self.part is None and NAMED[self.name].validation > 0
        return self.source == "bundled"

    @property
    def address(self) -> str:
        """The set and its part, without a number of rows; equal for two references to the same rows."""
        part = self.part or self.hub_split
        if self.source == "file":
            return str(expanded(self.name).resolve())
        name = f"bundled:{self.name}" if self.source == "bundled" else self.name
        return name + (f"@{self.config}" if self.config else "") + (f":{part}" if part else "")


def parse_reference(text: str) -> Reference:
    """Parse `NAME`, `NAME:part` or `owner/name@config:split`, each optionally with `#N`, `#maxN` or `#N/field`.

    A file takes precedence over a named set of the same name.

    Raises:
        DataError: There is no set of that name (`data.unknown_set`), `#` is not followed by a number of rows
            (`data.bad_count`), or the set has no such part (`data.unknown_split`).
    """
    name, mark, end = text.rpartition("#")
    if not mark or expanded(text).exists() or ("/" in end and is_data_file(end)):
        return _source(text, text)
    match = _COUNT.fullmatch(end)
    if match is None or int(match["count"]) == 0:
        hint = "write it as FILE#500, FILE#max500 or FILE#500/field"
        raise DataError(f"{text}: `#{end}` is not a number of rows", hint, code="data.bad_count")
    count, at_most = int(match["count"]), match["most"] is not None
    return dataclasses.replace(_source(text, name), count=count, stratify=match["field"], at_most=at_most)


def parse_references(refs: "References") -> list[Reference]:
    """Parse one reference or several; those that are parsed already stay as they are."""
    several = [refs] if isinstance(refs, str | Reference) else refs
    return [ref if isinstance(ref, Reference) else parse_reference(ref) for ref in several]


References = str | Reference | Iterable[str | Reference]
"""One reference or several, as text or parsed."""


def _source(text: str, name: str) -> Reference:
    path = expanded(name)
    if path.is_file():
        return Reference(text=text, source="file", name=name)
    if name.startswith("bundled:"):
        return _bundled(text, name)
    set_name, mark, part = name.partition(":")
    if set_name in NAMED and (not mark or not Path(set_name).is_file()):
        return Reference(text=text, source="named", name=set_name, part=_part(text, set_name, part) if mark else None)
    if path.exists() or is_data_file(name) or name.startswith(("/", "./", "../", "~")):
        return Reference(text=text, source="file", name=name)
    if match := _HUB_ID.fullmatch(name):
        return Reference(text=text, source="hub", name=match["name"], config=match["config"], hub_split=match["split"])
    known = [*NAMED, *(f"bundled:{bundled}" for bundled in BUNDLED)]
    message = f"{name}: neither a file, a named set nor a hub id (owner/name)"
    raise DataError(message, _suggestion(name, known), code="data.unknown_set")


def _bundled(text: str, name: str) -> Reference:
    bundled = name.removeprefix("bundled:")
    if bundled not in BUNDLED:
        hint = _suggestion(name, [f"bundled:{each}" for each in BUNDLED])
        raise DataError(f"{name}: no such bundled set", hint, code="data.unknown_set")
    return Reference(text=text, source="bundled", name=bundled)


def _part(text: str, name: str, part: str) -> Split:
    if not NAMED[name].validation:
        raise DataError(f"{text}: `{name}` has no parts", f"write `{name}`", code="data.unknown_split")
    if part not in PARTS:
        hint = f"its parts are {', '.join(PARTS)}"
        raise DataError(f"{text}: `{name}` has no part `{part}`", hint, code="data.unknown_split")
    return PARTS[part]


def _suggestion(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.5)
    return f"did you mean `{near[0]}`?" if near else f"named sets: {', '.join(known)}"
