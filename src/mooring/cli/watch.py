"""The progress of a whole run: a live display on a terminal, and lines in a log."""

import contextlib
import dataclasses
import threading
import time
from collections.abc import Callable, Collection, Iterator
from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from mooring.cli.render import note_of, resumable
from mooring.cli.terminal import Screen
from mooring.events import Event, OnEvent
from mooring.inference.logs import own_stderr
from mooring.pipeline.progress import Progress, duration, summary
from mooring.printable import one_line

if TYPE_CHECKING:
    from mooring.pipeline.run import Run

_EACH = 60.0
"""Seconds between two lines of a log about the same step."""
_BAR = 20
"""Width of a bar."""
_ROWS = 6
"""Maximum number of running tasks that are shown."""


@dataclasses.dataclass(slots=True)
class _Task:
    """The same task for several models, such as `generate safety (validation)`.

    Attributes:
        name: The task.
        labels: The label of each step that was started, by its id.
        running: The last event of each step at work.
        ended: That of steps that have ended while another was at work.
    """

    name: str
    labels: dict[str, str] = dataclasses.field(default_factory=dict)
    running: dict[str, Event] = dataclasses.field(default_factory=dict)
    ended: dict[str, Event] = dataclasses.field(default_factory=dict)

    def title(self, steps: Collection[str]) -> str:
        """The label of the only step, or the task with the number of models."""
        return self.labels[next(iter(steps))] if len(steps) == 1 else f"{len(steps)} models: {self.name}"

    def end(self, step: str) -> None:
        """Take into account that a step has ended."""
        if last := self.running.pop(step, None):
            self.ended[step] = dataclasses.replace(last, done=last.total)
        if not self.running:
            self.ended.clear()


class Watch:
    """Shows the events of a run; they may come from several threads.

    On a terminal: a line for each finished task, and below them the running tasks, what comes next, and the whole run.
    Elsewhere: a line for each finished step, and at most one per minute for a running one.

    Args:
        run: The run.
        out: Where to show them.
        clock: The time in seconds from any origin.
    """

    def __init__(self, run: "Run", out: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._run, self._out, self._clock = run, out, clock
        self._measured = Progress(lambda: run.plan.steps.values())
        self._tasks: dict[str, _Task] = {}
        self._said: dict[str, float] = {}
        self._cached = 0
        self._lock = threading.RLock()

    def on_event(self, event: Event) -> None:
        """Take an event into account, and print what stays on the screen."""
        with self._lock:
            now = self._clock()
            self._measured.note(event, now)
            if event.kind == "cached":
                self._cached += 1
            elif event.kind == "started":
                self._say_cached()
                name = task_of(event.label or event.step)
                task = self._tasks.setdefault(name, _Task(name))
                task.labels[event.step] = event.label or event.step
                task.running[event.step] = event
                self._said[event.step] = now
            elif event.kind == "progress":
                self._progress(event, now)
            elif event.kind in ("info", "warning"):
                self._out.print(f"[yellow]note:[/yellow] {escape(one_line(event.message))}")
            elif event.kind == "finished":
                self._finished(event)

    def __rich__(self) -> RenderableType:
        """The live display."""
        with self._lock:
            overall = self._measured.overall(self._clock())
            running = [task for task in self._tasks.values() if task.running]
            rows = Table.grid(padding=(0, 1))
            rows.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
            rows.add_column(width=_BAR)
            rows.add_column(no_wrap=True)
            rows.expand = True
            for task in running[:_ROWS]:
                rows.add_row(Text(task.title({**task.ended, **task.running})), *_amount(task))
            parts = sum(event.done / event.total for task in running for event in task.running.values() if event.total)
            steps = ProgressBar(total=max(overall.steps, 1), completed=overall.done + parts, width=_BAR)
            rows.add_row(Text("the whole run", style="bold"), steps, Text(f"{overall.done}/{overall.steps} steps"))
        facts = [summary(overall), *([f"next: {coming}"] if (coming := self._next()) else [])]
        if len(running) > _ROWS:
            facts.insert(0, f"{len(running) - _ROWS} more at work")
        line = Text("  " + " · ".join(filter(None, facts)), style="dim", no_wrap=True, overflow="ellipsis")
        return Group(rows, line)

    def _say_cached(self) -> None:
        if self._cached:
            was = " was" if self._cached == 1 else "s were"
            self._out.print(f"[dim]{self._cached} step{was} done before[/dim]")
            self._cached = 0

    def _progress(self, event: Event, now: float) -> None:
        task = next((task for task in self._tasks.values() if event.step in task.running), None)
        if task is None:
            return
        task.running[event.step] = event
        if not self._out.is_terminal and now - self._said[event.step] >= _EACH:
            self._said[event.step] = now
            overall = self._measured.overall(now)
            count = f"{event.done:,}/{event.total:,} {event.unit}" if event.total else f"{event.done:,} {event.unit}"
            facts = [count, note_of(event), f"{overall.done}/{overall.steps} steps done", summary(overall)]
            self._out.print(escape(f"{task.labels[event.step]}: {', '.join(filter(None, facts))}"))

    def _finished(self, event: Event) -> None:
        label = event.label or event.step
        task = self._tasks.get(task_of(label))
        if task is not None:
            task.end(event.step)
        if not self._out.is_terminal:
            self._out.print(f"[green]✓[/green] {escape(label)} [dim]{escape(event.message)}[/dim]")
        elif task is not None and not task.running and not self._is_left(task.name):
            del self._tasks[task.name]
            seconds = self._measured.seconds(task.labels)
            took = duration(seconds) if seconds >= 1 else ""
            self._out.print(f"[green]✓[/green] {escape(task.title(task.labels))} [dim]{took}[/dim]")

    def _is_left(self, name: str) -> bool:
        """Whether a step of a task is still to be done."""
        steps = self._run.plan.steps.values()
        return any(task_of(step.label) == name and not self._measured.is_done(step.id) for step in steps)

    def _next(self) -> str:
        """The first task that has not started."""
        for step in self._run.plan.steps.values():
            if not self._measured.is_done(step.id) and step.id not in self._measured.running:
                name = task_of(step.label)
                if name not in self._tasks:
                    return name
        return ""


@contextlib.contextmanager
def watch(run: "Run") -> Iterator[OnEvent]:
    """Show the progress of a run on standard error, which an engine that starts meanwhile does not disturb."""
    with resumable(), own_stderr() as stderr:
        out = Screen(stderr, soft_wrap=True)
        watched = Watch(run, out)
        if not out.is_terminal:
            yield watched.on_event
            return
        with Live(get_renderable=watched.__rich__, console=out, refresh_per_second=4, transient=True):
            yield watched.on_event


def task_of(label: str) -> str:
    """What a step does, without the model that it does it with: `generate safety (test)`."""
    model, _, task = label.rpartition(": ")
    return task if model == "base" or model.startswith(("tuned", "merged", "λ", "try ")) else label


def _amount(task: _Task) -> tuple[RenderableType, RenderableType]:
    """A bar and a count of the units of a task's steps."""
    events = [*task.ended.values(), *task.running.values()]
    done, total = sum(event.done for event in events), sum(event.total for event in events)
    bar = ProgressBar(total=total or None, completed=done, width=_BAR, pulse=not total)
    last = events[-1]
    note = note_of(last) if len(events) == 1 and last.kind == "progress" else ""
    count = f"{done:,}/{total:,} {last.unit}" if total else ""
    return bar, Text(" · ".join(filter(None, (count, note))), style="cyan")
