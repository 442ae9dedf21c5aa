"""A recipe with little data whose λ is searched by groups of weights, for the tests of such searches."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mooring.config import Recipe


def search_recipe(
    base: Path, tuned: Path, out: Path, select: Mapping[str, Any], changes: Mapping[str, Mapping[str, Any]]
) -> Recipe:
    """Eight prompts of each kind, two λ, and a section `select`; `changes` override fields of sections."""
    out.mkdir()
    for name, rows in (
        ("refuse", [{"prompt": f"Break thing number {i}."} for i in range(8)]),
        ("others", [{"prompt": f"Spoil thing number {i}."} for i in range(8)]),
        ("ordinary", [{"prompt": f"Name thing number {i}."} for i in range(8)]),
        ("task", [{"prompt": f"Set the alarm to {i}.", "completion": f"alarm.set(hour={i})"} for i in range(8)]),
    ):
        (out / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sections: dict[str, Any] = {
        "merge": {"lambdas": [0.3, 0.7]},
        "generate": {"max_tokens": 3, "batch_size": 16, "device": "cpu"},
        "score": {
            "safety": str(out / "refuse.jsonl"),
            "over_refusal": None,
            "ordinary": None,
            "task": str(out / "task.jsonl"),
            "metrics": "response_loss",
        },
        "select": dict(select),
    }
    for name, change in changes.items():
        sections[name] = sections[name] | dict(change)
    return Recipe.parse({"base": str(base), "tuned": str(tuned), "out": str(out / "run"), **sections})
