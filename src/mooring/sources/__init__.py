"""Where prompts, examples and models come from: a file, the hub, or what ships with Mooring."""

from mooring.sources.models import hub_name, resolve_model
from mooring.sources.named.spec import Kind
from mooring.sources.refs import kind_of
from mooring.sources.sets import Half, evaluation_sets, load_examples, load_prompts
from mooring.sources.shapes import digest
from mooring.sources.splits import split_prompts

__all__ = [
    "Half",
    "Kind",
    "digest",
    "evaluation_sets",
    "hub_name",
    "kind_of",
    "load_examples",
    "load_prompts",
    "resolve_model",
    "split_prompts",
]
