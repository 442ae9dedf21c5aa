"""Prompts and examples, from a file, the hub, or what ships with Mooring."""

from mooring.data.references import Reference, parse_reference, parse_references
from mooring.data.rows import prompts_digest
from mooring.data.sets import load_examples, load_prompts, load_splits
from mooring.data.splits import split_prompts

__all__ = [
    "Reference",
    "load_examples",
    "load_prompts",
    "load_splits",
    "parse_reference",
    "parse_references",
    "prompts_digest",
    "split_prompts",
]
