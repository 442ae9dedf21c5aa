"""Results as plain JSON values and as pandas data frames: what every record of Mooring can do."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from mooring.errors import MissingExtraError

if TYPE_CHECKING:
    import pandas


class Record:
    """Base of the frozen dataclasses that hold results. Rates are from 0 to 1."""

    __slots__ = ()

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain JSON values, fields in their order."""
        return {
            name: str(value) if isinstance(value, PurePath) else value
            for name, value in dataclasses.asdict(self).items()  # type: ignore[call-overload]
        }

    def to_rows(self) -> list[dict[str, Any]]:
        """The rows of `to_pandas`: a single one, unless the record is a table."""
        return [self.to_dict()]

    def to_pandas(self) -> "pandas.DataFrame":
        """Convert to a data frame.

        Raises:
            MissingExtraError: pandas is not installed (`extra.pandas`).
        """
        return to_pandas(self)


def to_pandas(results: Record | Iterable[Any] | Mapping[str, Any]) -> "pandas.DataFrame":
    """Convert a result, or results in lists or by name, such as those of `score` and `compare`, to one data frame.

    Raises:
        MissingExtraError: pandas is not installed (`extra.pandas`).
        TypeError: `results` contains something that is not a record.
    """
    try:
        import pandas
    except ImportError:
        raise MissingExtraError("pandas", "pip install 'mooring[pandas]'", code="extra.pandas") from None
    return pandas.DataFrame(list(_rows(results)))


def _rows(results: Any) -> Iterator[dict[str, Any]]:
    if isinstance(results, Record):
        yield from results.to_rows()
    elif isinstance(results, Mapping):
        yield from _rows(results.values())
    elif isinstance(results, Iterable) and not isinstance(results, str | bytes):
        for result in results:
            yield from _rows(result)
    else:
        raise TypeError(f"{type(results).__name__} is not a record of Mooring, or a collection of them")
