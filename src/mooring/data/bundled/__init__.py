"""The prompt sets that ship with Mooring."""

from importlib import resources

from mooring.data.rows import Row, read_rows, to_prompts
from mooring.data.tool_calls import generate
from mooring.records import Kind, Message, Prompt, Split

BUNDLED: dict[str, Kind] = {
    "harmful": "safety",
    "lookalikes": "over_refusal",
    "ordinary": "ordinary",
    "tools": "task",
    "tools-simple": "task",
}
"""Sets that ship with the package, named `bundled:…`, and what each measures; each is split already."""
TOOL_COUNTS: dict[Split, int] = {"tune": 400, "validation": 60, "test": 80}
"""How many tool questions are made where nothing else is said."""
TOOL_SEED = 0
"""The tool questions are the same for every run, so that runs with different seeds can be compared."""


def load_bundled(name: str, split: Split, count: int | None = None) -> list[Prompt]:
    """One split of a set that ships with the package.

    Args:
        name: One of `BUNDLED`.
        split: tune, validation or test.
        count: For the tools: how many to make, in place of `TOOL_COUNTS`. The other sets are given whole.

    Raises:
        DataError: There are not so many.
    """
    if name.startswith("tools"):
        return _tools(name, split, TOOL_COUNTS[split] if count is None else count)
    with resources.as_file(resources.files("mooring.data.bundled") / f"{name}.jsonl") as path:
        rows = read_rows(path)
    short = [Row(f"bundled:{name}:{number}", row.values) for number, row in enumerate(rows, 1)]
    return to_prompts([row for row in short if row.values["split"] == split])


def _tools(name: str, split: Split, count: int) -> list[Prompt]:
    examples = generate(split, count, TOOL_SEED, simple=name == "tools-simple")
    return [
        Prompt(
            id=example.id,
            messages=(Message("user", example.prompt),),
            reference=example.call,
            category=example.function,
            origin=f"bundled:{name}:{split}:{number}",
        )
        for number, example in enumerate(examples, 1)
    ]
