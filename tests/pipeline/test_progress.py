"""The plan of a run names what the run does, and the pace reckons from what was done."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import mooring
from mooring.config import Recipe
from mooring.pipeline.progress import CHOSEN, SLIGHT, Overall, Pace, Step, duration, planned, said
from mooring.pipeline.run_folder import Event

STEPS = {
    "tune": Step("tune", None),
    "base: answer safety (validation)": Step("answer", 100),
    "tuned: answer safety (validation)": Step("answer", 100),
    "base: answer task (test)": Step("answer task", 50),
    f"{CHOSEN}: answer safety (test)": Step("answer", 40),
    "select": Step(SLIGHT),
}


def after(*told: tuple[float, Event], now: float | None = None, steps: dict[str, Step] = STEPS) -> Overall:
    """How far a run is after events at these seconds."""
    pace = Pace(steps)
    for at, event in told:
        pace.note(event, at)
    return pace.overall(told[-1][0] if now is None else now)


def progress(step: str, done: int, total: int, tokens: int = 0) -> Event:
    return Event(step, "progress", done, total, "", tokens)


SAFETY = "base: answer safety (validation)"


def test_before_anything_was_measured_nothing_is_foretold() -> None:
    found = after((0.0, Event("tune", "start")))
    assert (found.done, found.steps, found.left, found.tokens, found.tokens_per_second) == (0, 6, None, 0, None)


def test_tuning_alone_is_a_lower_bound() -> None:
    found = after((0.0, Event("tune", "start")), (1.0, progress("tune", 0, 30)), (11.0, progress("tune", 10, 30)))
    assert found.left == pytest.approx(20 * 1.1)
    assert not found.whole


def test_the_time_left_is_that_of_all_that_is_still_to_do() -> None:
    told = [
        (0.0, Event("tune", "kept")),
        (0.0, Event(SAFETY, "start")),
        (5.0, progress(SAFETY, 0, 100)),
        (50.0, progress(SAFETY, 50, 100, 2000)),
    ]
    found = after(*told)
    # 1 s a response: 50 of this step, 100 of the next, 40 on test; the task's 50 by the same pace until it has its own.
    assert found.left == pytest.approx(50 + 100 + 40 + 50)
    assert found.whole
    assert (found.done, found.tokens, found.tokens_per_second) == (1, 2000, 40.0)
    told += [(100.0, Event(SAFETY, "done"))]
    assert after(*told).left == pytest.approx(100 + 40 + 50)
    task = "base: answer task (test)"
    told += [(100.0, Event(task, "start")), (100.0, progress(task, 0, 50)), (150.0, progress(task, 10, 50, 500))]
    found = after(*told)
    assert found.left == pytest.approx(40 * 5 + 140 * 1)
    assert (found.tokens, found.tokens_per_second) == (2500, pytest.approx(2500 / 150))


def test_what_a_stopped_step_had_does_not_count_as_speed() -> None:
    told = [(0.0, Event("tune", "kept")), (0.0, Event(SAFETY, "start")), (0.0, progress(SAFETY, 80, 100))]
    assert after(*told).left is None
    found = after(*told, (20.0, progress(SAFETY, 90, 100, 10)))
    assert found.left == pytest.approx(2 * (10 + 100 + 40 + 50))


def test_the_chosen_lambda_is_found_in_the_plan() -> None:
    found = after(
        (0.0, Event("tune", "kept")),
        (0.0, Event("λ = 0.4: answer safety (test)", "start")),
        (1.0, progress("λ = 0.4: answer safety (test)", 0, 40)),
        (40.0, Event("λ = 0.4: answer safety (test)", "done")),
    )
    assert (found.done, found.steps) == (2, 6)
    assert found.left == pytest.approx(250)


def test_merges_by_module_take_the_places_that_were_kept_for_them() -> None:
    steps = {f"try {n}: answer safety (validation)": Step("answer", 10) for n in (1, 2, 3)}
    steps |= {"write the model": Step(SLIGHT)}
    names = [f"λ by module ({name} 0.8, else 0.6): answer safety (validation)" for name in ("early mlp", "late mlp")]
    told = [(0.0, Event(names[0], "start")), (20.0, Event(names[0], "done")), (20.0, Event(names[1], "kept"))]
    found = after(*told, steps=steps)
    assert (found.done, found.steps, found.left) == (2, 4, pytest.approx(20.0))
    # Once the model is written the search is over, and the third is not to come.
    found = after(*told, (20.0, Event("write the model", "start")), steps=steps)
    assert (found.done, found.steps) == (2, 3)


def test_a_step_that_was_not_planned_counts_when_it_begins() -> None:
    part = f"{SAFETY}, part 1"
    found = after((0.0, Event(part, "start")), (10.0, progress(part, 0, 20)), (20.0, progress(part, 10, 20, 5)))
    assert found.steps == 7
    assert found.left == pytest.approx(2 * (10 + 100 + 100 + 40 + 50))
    assert not found.whole  # how long tuning takes is not known
    assert after((0.0, Event("odd", "kept")), (0.0, Event("odder", "start")), (1.0, Event("odder", "done"))).done == 2


@given(st.lists(st.tuples(st.sampled_from([*STEPS, "new"]), st.floats(0.1, 100), st.integers(0, 200)), max_size=12))
def test_whatever_happens_the_numbers_make_sense(done: list[tuple[str, float, int]]) -> None:
    pace, now = Pace(STEPS), 0.0
    for name, seconds, units in done:
        pace.note(Event(name, "start"), now)
        pace.note(progress(name, 0, units), now)
        now += seconds
        pace.note(progress(name, units, units, units), now)
        pace.note(Event(name, "done"), now)
        found = pace.overall(now)
        assert 0 <= found.done <= found.steps
        assert found.left is None or found.left >= 0
    for name in STEPS:
        pace.note(Event(name, "kept"), now)
    found = pace.overall(now)
    assert found.done == found.steps
    assert not found.left
    assert found.whole


def test_for_people() -> None:
    known = Overall(done=3, steps=9, tokens=12345, tokens_per_second=210.4, left=290, whole=True)
    assert said(known) == "12,345 tokens, 210 a second, about 5 min left"
    unknown = dataclasses.replace(known, whole=False, tokens=0, tokens_per_second=None)
    assert said(unknown) == "at least 5 min left"
    assert said(dataclasses.replace(known, left=None)) == "12,345 tokens, 210 a second"
    assert said(dataclasses.replace(unknown, done=9, left=0)) == ""
    assert [duration(s) for s in (0, 11, 55, 56, 60, 61)] == ["5 s", "15 s", "55 s", "1 min", "1 min", "2 min"]
    assert [duration(s) for s in (5900, 5999, 6001)] == ["99 min", "1 h 40 min", "1 h 41 min"]


def test_a_run_does_what_was_planned(
    tmp_path: Path, tiny_model_folder: Path, save_tiny_model: Any, capsys: pytest.CaptureFixture[str]
) -> None:
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
    steps = planned(recipe)
    pace, seen, totals = Pace(steps), [], {}

    def on_event(event: Event) -> None:
        pace.note(event, float(len(seen)))
        if event.kind == "start":
            seen.append(event.step)
        if event.kind == "progress":
            totals[event.step] = event.total

    mooring.run(recipe, on_event=on_event)
    named = [name.replace("λ = 0.5", CHOSEN) if "(test)" in name else name for name in seen]
    assert set(steps) <= set(named)
    # A step that the plan does not know may come, but none that takes its time.
    assert not [name for name in set(named) - set(steps) if "answer" in name or "judge" in name or "score" in name]
    for name, planned_name in zip(seen, named, strict=True):
        if name in totals:
            assert totals[name] == steps[planned_name].units, name
    found = pace.overall(1.0)
    assert (found.done, found.left, found.whole) == (found.steps, None, True)


def test_tuning_and_several_judges_are_planned(tmp_path: Path) -> None:
    recipe = Recipe.parse(
        {
            "base": "a/b",
            "align": {"data": ["bundled:harmful#10"]},
            "tune": {"data": ["bundled:tools#10"]},
            "generate": {"task": {"n": 3, "temperature": 0.6}},
            "score": {"task": "bundled:tools", "limit": 4, "judges": ["wildguard", "rules"], "lm_eval": ["bbh"]},
        }
    )
    steps = planned(recipe)
    assert list(steps)[:4] == ["align", "align: merge", "tune", "check the pair"]
    assert steps["tune"] == Step("tune", None)
    assert steps["λ = 0.2: judge safety (validation) by wildguard"].kind == "judge wildguard"
    assert steps["λ = 0.2: judge safety (validation) by rules"].kind == SLIGHT
    task = steps["base: answer task (test)"]
    assert task.units is not None
    assert (task.kind, task.units % 3) == ("answer task", 0)
    assert [name for name in steps if "lm-eval" in name] == [f"{who}: lm-eval bbh" for who in ("base", CHOSEN, "tuned")]
