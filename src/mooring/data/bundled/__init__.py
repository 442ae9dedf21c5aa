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
"""Sets that ship with the package, called `bundled:…`, and what each is for; each has its own splits."""
TOOL_COUNTS: dict[Split, int] = {"tune": 400, "validation": 60, "test": 80}
"""Default numbers of tool questions."""
TOOL_SEED = 0
"""The tool questions are the same in every run, so that runs with different seeds can be compared."""


def load_bundled(name: str, split: Split, count: int | None = None) -> list[Prompt]:
    """Load one split of a set that ships with the package.

    Args:
        name: A key of `BUNDLED`.
        split: Which split.
        count: For the tools only: how many to generate; defaults to `TOOL_COUNTS`.

    Raises:
        DataError: There are fewer (`data.too_few_rows`).
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
