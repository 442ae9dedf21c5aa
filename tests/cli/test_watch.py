"""What a person sees of a run: on a terminal and in a log."""

import io
import types
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from rich.console import Console

from mooring.cli.watch import Watch, task_of
from mooring.events import Event
from mooring.pipeline.steps import SelectInputs, Stage, Step

VALIDATION, TEST = "generate safety (validation)", "generate safety (test)"


def step(id_: str, label: str, pace: str = "", units: int | None = 1) -> Step:
    inputs = SelectInputs(scores=(), config={}, metric=None)
    return Step(id=id_, label=label, work=Stage.SELECT, inputs=inputs, outputs=(), pace=pace, units=units)


STEPS = [
    step("tune", "tune", "tune", None),
    step("g/0", f"base: {VALIDATION}", "generate", 100),
    step("g/0.5", f"λ = 0.5: {VALIDATION}", "generate", 100),
    step("g/1", f"tuned: {VALIDATION}", "generate", 100),
    step("select", "select"),
    step("t/0", f"base: {TEST}", "generate", 60),
]


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def watch(clock: Clock, *, terminal: bool, width: int = 100) -> tuple[Watch, Console, io.StringIO]:
    file = io.StringIO()
    console = Console(file=file, force_terminal=terminal, color_system=None, width=width, soft_wrap=True)
    run: Any = types.SimpleNamespace(plan=types.SimpleNamespace(steps={each.id: each for each in STEPS}))
    return Watch(run, console, clock), console, file


def events(kind: Any, *ids: str, done: int = 0, total: int = 0, tokens: int = 0, message: str = "") -> Iterator[Event]:
    labels = {each.id: each.label for each in STEPS}
    for id_ in ids:
        yield Event(
            step=id_, kind=kind, label=labels[id_], done=done, total=total, unit="responses", tokens=tokens,
            message=message,
        )  # fmt: skip


def tell(watched: Watch, clock: Clock, now: float, happened: Iterator[Event]) -> None:
    clock.now = now
    for event in happened:
        watched.on_event(event)


def screen(watched: Watch, console: Console) -> list[str]:
    with console.capture() as captured:
        console.print(watched)
    return [line.rstrip() for line in captured.get().splitlines()]


def until_three_models_run(watched: Watch, clock: Clock) -> None:
    tell(watched, clock, 0.0, events("cached", "tune"))
    tell(watched, clock, 0.0, events("started", "g/0", "g/0.5", "g/1", total=100))
    tell(watched, clock, 0.0, events("progress", "g/0", "g/0.5", "g/1", total=100))
    tell(watched, clock, 50.0, events("progress", "g/0", "g/0.5", done=75, total=100, tokens=1000))


def test_models_that_answer_at_the_same_time_are_one_row(clock: Clock) -> None:
    watched, console, file = watch(clock, terminal=True)
    until_three_models_run(watched, clock)
    rows = screen(watched, console)
    assert rows[0].startswith(f"3 models: {VALIDATION}")
    assert rows[0].endswith("150/300 responses")
    assert rows[1].startswith("the whole run")
    assert rows[1].endswith("1/6 steps")
    assert "2,000 tokens, 40 per second" in rows[2]
    assert rows[2].endswith("next: select")
    assert len(rows) == 3
    tell(watched, clock, 80.0, events("finished", "g/0"))
    assert screen(watched, console)[0].endswith("175/300 responses")
    assert file.getvalue() == "1 step was done before\n"
    tell(watched, clock, 90.0, events("finished", "g/0.5", "g/1"))
    assert file.getvalue().splitlines()[1:] == [f"✓ 3 models: {VALIDATION} 2 min"]
    assert "models" not in "".join(screen(watched, console))


def test_the_bar_of_the_run_counts_parts_of_steps(clock: Clock) -> None:
    def bar(**given: int) -> int:
        watched, _, _ = watch(clock, terminal=True)
        tell(watched, clock, 0.0, events("started", "g/0", "g/0.5", "g/1", total=100))
        tell(watched, clock, 1.0, events("progress", "g/0", "g/0.5", "g/1", total=100, **given))
        console = Console(file=io.StringIO(), force_terminal=True, color_system="truecolor", width=100)
        with console.capture() as captured:
            console.print(watched)
        filled = captured.get().splitlines()[1].partition("━")[2].partition("\x1b")[0]
        return filled.count("━")

    assert bar(done=90) > bar(done=10)


def test_the_time_left_goes_on_without_events(clock: Clock) -> None:
    watched, console, _ = watch(clock, terminal=True)
    until_three_models_run(watched, clock)
    before = screen(watched, console)[2]
    clock.now = 500.0
    after = screen(watched, console)[2]
    assert before != after
    assert "min left" in after


@pytest.mark.parametrize("width", [30, 60, 100])
def test_every_row_fits_the_terminal(clock: Clock, width: int) -> None:
    watched, console, _ = watch(clock, terminal=True, width=width)
    until_three_models_run(watched, clock)
    rows = screen(watched, console)
    assert len(rows) == 3
    assert all(len(row) <= width for row in rows)


def test_a_single_step_has_its_own_label_and_numbers(clock: Clock) -> None:
    watched, console, file = watch(clock, terminal=True)
    tell(watched, clock, 0.0, events("started", "tune"))
    tell(watched, clock, 1.0, events("progress", "tune", done=2, total=48, message="loss 1.234"))
    rows = screen(watched, console)
    assert rows[0].startswith("tune ")
    assert rows[0].endswith("2/48 responses · loss 1.234")
    tell(watched, clock, 20.0, events("finished", "tune"))
    assert file.getvalue() == "✓ tune 20 s\n"


def test_a_log_has_a_line_per_step_and_at_most_one_per_minute(clock: Clock) -> None:
    watched, _, file = watch(clock, terminal=False)
    tell(watched, clock, 0.0, events("cached", "tune"))
    tell(watched, clock, 0.0, events("started", "g/0", total=100))
    for second in range(1, 181):
        tell(watched, clock, second, events("progress", "g/0", done=second // 2, total=100, tokens=10 * second))
    tell(watched, clock, 181.0, events("finished", "g/0", message="181 s"))
    lines = file.getvalue().splitlines()
    assert lines[0] == "1 step was done before"
    assert [line.partition(",")[0] for line in lines[1:4]] == [
        f"base: {VALIDATION}: {done}/100 responses" for done in (30, 60, 90)
    ]
    assert "1/6 steps done, 600 tokens, 10 per second, " in lines[1]
    assert lines[4:] == [f"✓ base: {VALIDATION} 181 s"]


def test_notes_are_shown_as_they_are(clock: Clock) -> None:
    watched, _, file = watch(clock, terminal=False)
    watched.on_event(Event(step="drafts", kind="info", message="[bold]40 % were accepted[/bold]"))
    assert file.getvalue() == "note: [bold]40 % were accepted[/bold]\n"


@pytest.mark.parametrize(
    ("label", "task"),
    [
        ("λ = 0.5: judge safety (test) by wildguard", "judge safety (test) by wildguard"),
        ("λ by module (early mlp: 0.7): score (test)", "score (test)"),
        ("try 3: score (validation)", "score (validation)"),
        ("align: merge", "align: merge"),
        ("select", "select"),
    ],
)
def test_the_task_of_a_step(label: str, task: str) -> None:
    assert task_of(label) == task


def test_events_may_come_from_several_threads(clock: Clock) -> None:
    import threading

    watched, console, _ = watch(clock, terminal=True)

    def work(ids: Sequence[str]) -> None:
        for id_ in ids:
            for event in (*events("started", id_, total=100), *events("progress", id_, done=1, total=100)):
                watched.on_event(event)
            for event in events("finished", id_):
                watched.on_event(event)

    threads = [threading.Thread(target=work, args=([each.id],)) for each in STEPS]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        screen(watched, console)
    assert screen(watched, console)[0].endswith("6/6 steps")
