"""A run on the terminal: a line for each step that is done, a bar for the one at work, and one for the whole run."""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

from rich.markup import escape

from mooring.cli.show import Tick, console, progress_bars, resumable, ticking

if TYPE_CHECKING:
    from mooring.recipe import Recipe
    from mooring.run.progress import Step
    from mooring.run.store import Event


@contextlib.contextmanager
def watch(recipe: "Recipe") -> Iterator[Callable[["Event"], None]]:
    """Show a run of a recipe; gives what is to be told of its events."""
    from mooring.run.progress import Pace, said

    out = console()
    kept = 0
    pace = Pace(_steps(recipe) if out.is_terminal else {})
    with resumable(), progress_bars(out) as progress:
        whole = progress.add_task("the whole run", total=None, note="", whole=True, visible=out.is_terminal)
        ticks: dict[str, Tick] = {}

        def on_event(event: "Event") -> None:
            nonlocal kept
            now = time.monotonic()
            pace.note(event, now)
            if event.kind == "kept":
                kept += 1
            elif event.kind == "start":
                if kept:
                    out.print(f"[dim]{kept} step{' was' if kept == 1 else 's were'} done before[/dim]")
                    kept = 0
                ticks[event.step] = ticking(progress, event.step)
            elif event.kind == "progress" and event.step in ticks:
                ticks[event.step](event.done, event.total, event.note, event.tokens)
            elif event.kind == "say":
                out.print(f"[yellow]note:[/yellow] {escape(event.note)}")
            elif event.kind == "done":
                for task in set(progress.task_ids) - {whole}:
                    progress.remove_task(task)
                out.print(f"[green]✓[/green] {escape(event.step)} [dim]{escape(event.note)}[/dim]")
            overall = pace.overall(now)
            progress.update(whole, completed=overall.done, total=overall.steps, note=said(overall))

        yield on_event


def _steps(recipe: "Recipe") -> "Mapping[str, Step]":
    """The plan of a run; none where a set cannot be read, which the run itself will say."""
    from mooring.errors import UserError
    from mooring.run.progress import planned

    try:
        return planned(recipe)
    except UserError:
        return {}
