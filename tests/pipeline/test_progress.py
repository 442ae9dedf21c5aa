"""How far a run is, and how long the rest will take."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mooring.config import Recipe
from mooring.events import Event
from mooring.merge_point import BASE
from mooring.pipeline.plan import build
from mooring.pipeline.progress import Overall, Progress, duration, summary
from mooring.pipeline.run import Run
from mooring.pipeline.steps import Generate, Judge, SelectInputs, Stage, Step, Tune


def step(id_: str, pace: str, units: int | None = 1) -> Step:
    inputs = SelectInputs(scores=(), config={}, metric=None)
    return Step(id=id_, label=id_, work=Stage.SELECT, inputs=inputs, outputs=(), pace=pace, units=units)


STEPS = {
    each.id: each
    for each in (
        step("tune", "tune", None),
        step("generate/0/safety/validation", "generate", 100),
        step("generate/1/safety/validation", "generate", 100),
        step("generate/0/task/test", "generate task", 50),
        step("generate/<λ = chosen>/safety/test", "generate", 40),
        step("select", ""),
    )
}
SAFETY = "generate/0/safety/validation"


def started(id_: str) -> Event:
    return Event(step=id_, kind="started")


def finished(id_: str) -> Event:
    return Event(step=id_, kind="finished")


def cached(id_: str) -> Event:
    return Event(step=id_, kind="cached")


def progress(id_: str, done: int, total: int, tokens: int = 0) -> Event:
    return Event(step=id_, kind="progress", done=done, total=total, tokens=tokens)


def after(*events: tuple[float, Event], now: float | None = None, steps: dict[str, Step] = STEPS) -> Overall:
    """The progress of a run after events at these seconds."""
    measured = Progress(steps.values)
    for at, event in events:
        measured.note(event, at)
    return measured.overall(events[-1][0] if now is None else now)


def test_before_anything_was_measured_there_is_no_estimate() -> None:
    found = after((0.0, started("tune")))
    assert (found.done, found.steps, found.left, found.tokens, found.tokens_per_second) == (0, 6, None, 0, None)


def test_tuning_alone_gives_a_lower_bound() -> None:
    found = after((0.0, started("tune")), (1.0, progress("tune", 0, 30)), (11.0, progress("tune", 10, 30)))
    assert found.left == pytest.approx(20 * 1.1)
    assert not found.complete


def test_the_time_left_covers_all_steps_that_remain() -> None:
    events = [
        (0.0, cached("tune")),
        (0.0, started(SAFETY)),
        (5.0, progress(SAFETY, 0, 100)),
        (50.0, progress(SAFETY, 50, 100, 2000)),
    ]
    found = after(*events)
    # 1 s per response: 50 of this step, 100 of the next, 40 on test; the task's 50 at the same pace for now.
    assert found.left == pytest.approx(50 + 100 + 40 + 50)
    assert found.complete
    assert (found.done, found.tokens, found.tokens_per_second) == (1, 2000, 40.0)
    events += [(100.0, finished(SAFETY))]
    assert after(*events).left == pytest.approx(100 + 40 + 50)
    task = "generate/0/task/test"
    events += [(100.0, started(task)), (100.0, progress(task, 0, 50)), (150.0, progress(task, 10, 50, 500))]
    found = after(*events)
    assert found.left == pytest.approx(40 * 5 + 140 * 1)
    assert (found.tokens, found.tokens_per_second) == (2500, pytest.approx(2500 / 150))


def test_what_a_stopped_step_had_does_not_count_as_speed() -> None:
    events = [(0.0, cached("tune")), (0.0, started(SAFETY)), (0.0, progress(SAFETY, 80, 100))]
    assert after(*events).left is None
    found = after(*events, (20.0, progress(SAFETY, 90, 100, 10)))
    assert found.left == pytest.approx(2 * (10 + 100 + 40 + 50))


def test_steps_at_the_same_time_share_it() -> None:
    other, task = "generate/1/safety/validation", "generate/0/task/test"
    events = [(0.0, cached("tune")), *((0.0, started(id_)) for id_ in (SAFETY, other, task))]
    events += [(60.0, progress(SAFETY, 50, 100, 500)), (60.0, progress(other, 50, 100, 500))]
    events = [
        *events[:4],
        *((0.0, progress(id_, 0, total)) for id_, total in ((SAFETY, 100), (other, 100))),
        *events[4:],
    ]
    found = after(*events)
    # 60 s for 100 responses of two steps, of which the third had 20 s: 0.4 s per response, and the task's alike.
    assert found.left == pytest.approx(0.4 * (50 + 50 + 40 + 50))
    assert (found.tokens, found.tokens_per_second) == (1000, pytest.approx(1000 / 60))
    # When all have ended, the time that they took together is what the clock says.
    events += [(60.0, progress(task, 50, 50, 800)), *((100.0, finished(id_)) for id_ in (SAFETY, other, task))]
    found = after(*events)
    assert (found.done, found.tokens_per_second) == (4, pytest.approx(1800 / 100))
    assert found.left == pytest.approx(40 * (100 * 2 / 3) / 200)


def test_speed_counts_time_once_and_no_pauses() -> None:
    other = "generate/1/safety/validation"
    events = [
        (0.0, started(SAFETY)),
        (5.0, started(other)),
        (10.0, progress(SAFETY, 100, 100, 100)),
        (10.0, finished(SAFETY)),
        (20.0, progress(other, 100, 100, 100)),
        (20.0, finished(other)),
        (90.0, started("select")),
    ]
    assert after(*events, now=100.0).tokens_per_second == pytest.approx(200 / 20)


def test_steps_that_the_run_learns_of_take_the_place_of_those_that_stood_for_them() -> None:
    steps = dict(STEPS)
    measured = Progress(lambda: steps.values())
    measured.note(cached("tune"), 0.0)
    assert measured.overall(0.0).steps == 6
    del steps["generate/<λ = chosen>/safety/test"]
    steps["generate/0.4/safety/test"] = step("generate/0.4/safety/test", "generate", 40)
    measured.note(started("generate/0.4/safety/test"), 0.0)
    measured.note(finished("generate/0.4/safety/test"), 40.0)
    found = measured.overall(40.0)
    assert (found.done, found.steps) == (2, 6)
    assert found.left == pytest.approx(250)


def test_a_step_that_was_not_planned_counts_when_it_starts() -> None:
    part = f"{SAFETY}/part-1"
    found = after((0.0, started(part)), (10.0, progress(part, 0, 20)), (20.0, progress(part, 10, 20, 5)))
    assert found.steps == 7
    assert found.left == pytest.approx(2 * (10 + 100 + 100 + 40 + 50))
    assert not found.complete  # how long tuning takes is not known
    assert after((0.0, cached("extra")), (0.0, started("other")), (1.0, finished("other"))).done == 2


@given(st.lists(st.tuples(st.sampled_from([*STEPS, "new"]), st.floats(0.1, 100), st.integers(0, 200)), max_size=12))
def test_whatever_happens_the_numbers_make_sense(done: list[tuple[str, float, int]]) -> None:
    measured, now = Progress(STEPS.values), 0.0
    for id_, seconds, units in done:
        measured.note(started(id_), now)
        measured.note(progress(id_, 0, units), now)
        now += seconds
        measured.note(progress(id_, units, units, units), now)
        measured.note(finished(id_), now)
        found = measured.overall(now)
        assert 0 <= found.done <= found.steps
        assert found.left is None or found.left >= 0
    for id_ in STEPS:
        measured.note(cached(id_), now)
    found = measured.overall(now)
    assert found.done == found.steps
    assert not found.left
    assert found.complete


def test_the_summary_for_people() -> None:
    known = Overall(done=3, steps=9, tokens=12345, tokens_per_second=210.4, left=290, complete=True)
    assert summary(known) == "12,345 tokens, 210 per second, about 5 min left"
    unknown = dataclasses.replace(known, complete=False, tokens=0, tokens_per_second=None)
    assert summary(unknown) == "at least 5 min left"
    assert summary(dataclasses.replace(known, left=None)) == "12,345 tokens, 210 per second"
    assert summary(dataclasses.replace(unknown, done=9, left=0)) == ""
    assert [duration(s) for s in (0, 11, 55, 56, 60, 61)] == ["5 s", "15 s", "55 s", "1 min", "1 min", "2 min"]
    assert [duration(s) for s in (5900, 5999, 6001)] == ["99 min", "1 h 40 min", "1 h 41 min"]


def test_a_run_does_what_was_planned(tmp_path: Path, tiny_model_folder: Path, save_tiny_model: Any) -> None:
    tuned = save_tiny_model(tmp_path / "tuned", seed=1)
    rows = "".join(f'{{"prompt": "Set the alarm to {i}.", "completion": "alarm.set(hour={i})"}}\n' for i in range(6))
    (tmp_path / "task.jsonl").write_text(rows)
    recipe = Recipe.parse(
        {
            "out": str(tmp_path / "run"),
            "base": str(tiny_model_folder),
            "tuned": str(tuned),
            "merge": {"lambdas": [0.5]},
            "generate": {"max_tokens": 2},
            "score": {"task": str(tmp_path / "task.jsonl"), "limit": 3, "metrics": ["call_match", "response_loss"]},
            "select": {"margin": 1.0},
        }
    )
    run = Run(recipe)
    first = [each.label for each in run.plan.steps.values()]
    measured, seen, totals = Progress(lambda: run.plan.steps.values()), [], {}

    def on_event(event: Event) -> None:
        measured.note(event, float(len(seen)))
        if event.kind == "started":
            seen.append(event.step)
        if event.kind == "progress":
            totals[event.step] = event.total

    run.execute(on_event)
    assert seen == list(run.plan.steps)
    assert [each.label.replace("λ = 0.5", "λ = chosen") for each in run.plan.steps.values()] == [
        label.replace("λ = 0.5", "λ = chosen") for label in first
    ]
    for id_, total in totals.items():
        assert total == run.plan.steps[id_].units, id_
    found = measured.overall(1.0)
    assert (found.done, found.left, found.complete) == (found.steps, None, True)


def test_tuning_and_several_judges_are_planned() -> None:
    recipe = Recipe.parse(
        {
            "base": "a/b",
            "align": {"data": ["bundled:harmful#10"]},
            "tune": {"data": ["bundled:tools#10"]},
            "generate": {"task": {"n": 3, "temperature": 0.6}},
            "score": {"task": "bundled:tools", "limit": 4, "judges": ["wildguard", "rules"], "lm_eval": ["bbh"]},
        }
    )
    steps = build(recipe).steps
    assert list(steps)[:4] == ["align", "align/merge", "tune", "check_pair"]
    assert (steps["tune"].work, steps["tune"].units, steps["tune"].pace) == (Tune("tune"), None, "tune")
    assert steps["judge/0.2/safety/validation/wildguard"].pace == "judge wildguard"
    assert steps["judge/0.2/safety/validation/rules"].pace == ""
    task = steps["generate/0/task/test"]
    assert task.work == Generate(BASE, "task", "test")
    assert task.units is not None
    assert (task.pace, task.units % 3) == ("generate task", 0)
    labels = [each.label for each in steps.values()]
    assert [label for label in labels if "lm-eval" in label] == [
        f"{who}: lm-eval bbh" for who in ("base", "λ = chosen", "tuned")
    ]


def test_each_judge_is_loaded_once_for_all_models() -> None:
    recipe = Recipe.parse({"base": "a/b", "tuned": "c/d", "score": {"judges": ["wildguard", "llama-guard-3"]}})
    order = [
        each.work.judge
        for each in build(recipe).steps.values()
        if isinstance(each.work, Judge) and each.work.split == "validation"
    ]
    assert order == sorted(order, key=["wildguard", "llama-guard-3"].index)
    assert len({*order}) == 2
