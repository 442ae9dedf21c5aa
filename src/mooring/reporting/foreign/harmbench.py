"""Answers to harmful requests in the form of HarmBench's completions, with its labels: 1 is harmful."""

from pathlib import Path
from typing import Any

from mooring.attacks.names import kind_of
from mooring.jsonio import dumps
from mooring.reporting.foreign.answers import AnsweredSet, RunFacts, asked


def write(found: AnsweredSet, facts: RunFacts, folder: Path) -> Path | None:
    """Write one set, as `<task>.json`: a list of answers by the request's id; nothing for other sets than harmful."""
    if kind_of(found.name) != "safety":
        return None
    behaviors: dict[str, list[dict[str, Any]]] = {}
    for prompt, completions in found.answers:
        label = found.scores.get("harmful", {}).get(prompt.id)
        behaviors.setdefault(prompt.variant_of or prompt.id, []).extend(
            {"test_case": asked(prompt), "generation": completion.answer}
            | ({} if label is None else {"label": int(label)})
            for completion in completions
        )
    path = folder / f"{found.task}.json"
    path.write_text(dumps(behaviors, indent=1) + "\n", encoding="utf-8")
    return path
