"""A reference to a data set, taken apart."""

import dataclasses
import difflib
import re
from pathlib import Path

from mooring.data.bundled import BUNDLED
from mooring.data.named import NAMED, PARTS, Part
from mooring.data.rows import is_data_file
from mooring.errors import DataError
from mooring.records import Kind

DRAW = re.compile(r"(?P<most>max)?(?P<count>[0-9]+)(?:/(?P<field>[\w.-]+))?")
"""`#500`, `#500/lang`: so many rows, and the field that they are drawn evenly over; `#max500`: at most so many."""


@dataclasses.dataclass(frozen=True, slots=True)
class Reference:
    """What a reference says.

    Attributes:
        text: The whole of it, for messages.
        name: Of a file, a named set, a bundled set or a data set on the hub.
        part: The part of a named set that is split, where one is named.
        count: How many rows; all where it is not given.
        field: The field that they are drawn evenly over.
        at_most: Whether fewer will do, where the set has no more.
    """

    text: str
    name: str
    part: Part | None = None
    count: int | None = None
    field: str | None = None
    at_most: bool = False

    @property
    def is_split(self) -> bool:
        """Whether it brings its own tuning, validation and test rows, of which none is chosen here."""
        if self.name.startswith("bundled:"):
            return True
        return self.part is None and is_named(self.name) and NAMED[self.name].validation > 0


def is_named(name: str) -> bool:
    """Whether it is a named set; a file of that name goes first."""
    return name in NAMED and not Path(name).expanduser().is_file()


def parse(ref: str) -> Reference:
    """Take a reference apart: `NAME`, `NAME:part` (named sets), each with `#N`, `#maxN` or `#N/field` at its end.

    Raises:
        DataError: It names no number of rows after `#`, or a part that the set has not.
    """
    name, mark, end = ref.rpartition("#")
    if not mark or Path(ref).expanduser().exists() or ("/" in end and is_data_file(end)):
        return _with_part(Reference(ref, ref))
    match = DRAW.fullmatch(end)
    if match is None or int(match["count"]) == 0:
        raise DataError(
            f"{ref}: `#{end}` is not a number of rows", "write it as FILE#500, FILE#max500 or FILE#500/field"
        )
    return _with_part(Reference(ref, name, None, int(match["count"]), match["field"], bool(match["most"])))


def _with_part(ref: Reference) -> Reference:
    """The reference with the part of a named set taken off its name."""
    name, mark, part = ref.name.partition(":")
    if not mark or not is_named(name):
        return ref
    if not NAMED[name].validation:
        raise DataError(f"{ref.text}: `{name}` has no parts", f"write `{name}`")
    for known in PARTS:
        if part == known:
            return dataclasses.replace(ref, name=name, part=known)
    raise DataError(f"{ref.text}: `{name}` has no part `{part}`", f"its parts are {', '.join(PARTS)}")


def kind_of(ref: str) -> Kind | None:
    """What a named or a bundled set measures; None of any other, of which nothing is known.

    Raises:
        DataError: As `parse`.
    """
    name = parse(ref).name
    if is_named(name):
        return NAMED[name].kind
    return BUNDLED.get(name.removeprefix("bundled:")) if name.startswith("bundled:") else None


def unknown(name: str) -> DataError:
    """That nothing goes by this name, and which name may have been meant."""
    known = [*NAMED, *(f"bundled:{bundled}" for bundled in BUNDLED)]
    return DataError(f"{name}: neither a file, a named set nor a hub id (owner/name)", nearest(name, known))


def nearest(name: str, known: list[str]) -> str:
    """The known name that is most like it, else all of them."""
    near = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.5)
    return f"did you mean `{near[0]}`?" if near else f"named sets: {', '.join(known)}"
