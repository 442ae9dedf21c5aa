"""The page of a run that is at work: how far it is, and what is known so far. It runs no script."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from mooring.reporting import figures
from mooring.reporting.page import assets

REFRESH = 5
"""Seconds after which the page is asked for again."""


@dataclasses.dataclass(frozen=True, slots=True)
class StageState:
    """The steps of one kind: how many are done, of how many, and how long they took."""

    name: str
    done: int
    steps: int
    time: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LiveState:
    """How far a run is.

    Attributes:
        sentence: Whether it is at work, or stopped.
        done: Steps that are done.
        steps: Steps that are known.
        current: The step at work; empty if there is none.
        units: What it has done.
        total: Of how many; 0 if unknown.
        unit: What is counted.
        stages: By kind of step.
    """

    sentence: str
    done: int
    steps: int
    current: str = ""
    units: int = 0
    total: int = 0
    unit: str = ""
    stages: Sequence[StageState] = ()


def as_html(state: LiveState, *, title: str, figure: Any = None) -> str:
    """The page, which fetches nothing and renews itself."""
    from markupsafe import Markup

    style = assets.read(__name__, "live.css")
    template = assets.environment().from_string(assets.read(__name__, "live.html.jinja"))
    return template.render(
        title=title,
        state=state,
        refresh=REFRESH,
        policy=assets.policy(None, style, inline=True),
        style=Markup(style),
        figure=Markup(figures.inline(figure, "over-lambda")) if figure is not None else None,
    )
