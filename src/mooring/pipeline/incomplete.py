"""What a run lacks: answers that no worker of a cluster lived to give, and the steps that rest on them."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from mooring.pipeline.judging import answers_path
from mooring.pipeline.steps import Generate, Judge, Step, built_on
from mooring.records import Completion, read_jsonl

SHOWN = 20
"""Ids of prompts that a sentence names."""


def lost_answers(steps: Iterable[Step]) -> dict[str, list[str]]:
    """For each step that lacks answers, the ids of the prompts (of a judge: of its questions) that have none."""
    found: dict[str, list[str]] = {}
    for step in steps:
        if isinstance(step.work, Generate):
            paths = [*step.outputs]
        elif isinstance(step.work, Judge):
            paths = [answers_path(verdicts) for verdicts in step.outputs]
        else:
            continue
        for path in paths:
            if lost := _lost_in(path):
                found.setdefault(step.id, []).extend(lost)
    return found


def resting_on(steps: Mapping[str, Step], ids: Iterable[str]) -> set[str]:
    """Some steps, and all that are built on them."""
    found = {*ids}
    while more := {id for id, step in steps.items() if id not in found and built_on(step.inputs) & found}:
        found |= more
    return found


def sentence(lost: Mapping[str, list[str]]) -> str:
    """What a run lacks, in a sentence."""
    ids = list(dict.fromkeys(id for each in lost.values() for id in each))
    count, rest = sum(map(len, lost.values())), len(ids) - SHOWN
    named = ", ".join(ids[:SHOWN]) + (f" and {rest} more" if rest > 0 else "")
    return f"Incomplete. Missing answers, since three workers died of each: {count} ({named})."


def _lost_in(path: Path) -> list[str]:
    if not path.is_file() or '"lost"' not in path.read_text(encoding="utf-8"):
        return []
    return [completion.prompt_id for completion in read_jsonl(path, Completion) if completion.finish == "lost"]
