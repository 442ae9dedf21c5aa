"""Where prompts, examples and models come from: a file, the hub, or what ships with Mooring."""

from mooring.data.references import kind_of
from mooring.data.rows import prompts_digest
from mooring.data.sets import load_examples, load_halves, load_prompts
from mooring.data.splits import split_prompts

__all__ = [
    "kind_of",
    "load_examples",
    "load_halves",
    "load_prompts",
    "prompts_digest",
    "split_prompts",
]
