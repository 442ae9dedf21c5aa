"""Public data by name: prompt sets and task data, from a folder or the hub."""

from mooring.sources.named.load import NAMED, PARTS, Part, load_named, table
from mooring.sources.named.spec import Kind, NamedSet, Table

__all__ = ["NAMED", "PARTS", "Kind", "NamedSet", "Part", "Table", "load_named", "table"]
