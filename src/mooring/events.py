"""What a long operation reports while it runs: one type of event for every verb."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Literal, TypeAlias

from mooring.export import Record
from mooring.printable import visible


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Event(Record):
    """Something that happened in an operation.

    Attributes:
        step: What is at work: the id of a run's step, or the verb (`merge`, `generate`, …).
        kind: `started`; `progress`; `finished`; `cached` (done before); `info` or `warning` (a line for people).
        label: The step in words, for people; the step's id if empty.
        done: Units done so far.
        total: Units in all; 0 if unknown.
        unit: What is counted: `prompts`, `bytes`, `steps`, …
        tokens: Tokens generated so far by this step.
        message: The line of `info` and `warning`; beside a progress bar, what a person would want to read there.
        metrics: Numbers that belong to this moment, such as `{"loss": 1.2}`.
    """

    step: str
    kind: Literal["started", "progress", "finished", "cached", "info", "warning"]
    label: str = ""
    done: int = 0
    total: int = 0
    unit: str = ""
    tokens: int = 0
    message: str = ""
    metrics: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("label", "message"):  # which may hold text of a file, such as the name of a model
            object.__setattr__(self, name, visible(getattr(self, name)))


OnEvent: TypeAlias = Callable[[Event], None]
"""Receives every event of an operation; called from the thread that runs it."""


def ignore(event: Event) -> None:
    """Receive an event and do nothing with it."""
