"""Completions to a file, killed at any place and resumed."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mooring.errors import DataError, OutputError
from mooring.events import Event
from mooring.inference.engine import plan_batches
from mooring.inference.store import complete_to_file, likelihood_to_file
from mooring.records import Completion, Message, Prompt, read_jsonl
from mooring.sampling import SamplingParams
from scripted_engine import ScriptedEngine

PROMPTS = [
    Prompt(id=f"p{i}", messages=(Message("user", "word " * (i * 7 % 5 + 1)),), reference="a b") for i in range(10)
]


class KilledError(Exception):
    pass


def reply(prompt: Prompt) -> str:
    return f"answer to {prompt.id}, “quoted”\nin two lines"


def engine() -> ScriptedEngine:
    return ScriptedEngine(reply, batch_size=3)


def test_the_file_is_in_the_order_of_the_prompts_and_says_what_made_it(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "c.jsonl"
    made = complete_to_file(engine(), PROMPTS, SamplingParams(seed=3), path, made_by={"model": "sha256:1"})
    assert [c.prompt_id for c in made] == [p.id for p in PROMPTS]
    assert read_jsonl(path, Completion) == made
    assert made[0].made_by["model"] == "sha256:1"
    assert made[0].made_by["engine"] == {"engine": "scripted", "batch_size": 3}
    assert made[0].made_by["settings"]["seed"] == 3
    assert [p.name for p in path.parent.iterdir()] == ["c.jsonl"]


def test_progress_counts_prompts_and_tokens(tmp_path: Path) -> None:
    events: list[Event] = []
    made = complete_to_file(engine(), PROMPTS, SamplingParams(), tmp_path / "c", on_event=events.append)
    assert [(e.done, e.total) for e in events] == [(0, 10), (3, 10), (6, 10), (9, 10), (10, 10)]
    assert {(e.step, e.kind, e.unit) for e in events} == {("generate", "progress", "responses")}
    assert events[0].tokens == 0
    assert events[-1].tokens == sum(c.tokens for c in made)
    events.clear()
    likelihood_to_file(engine(), PROMPTS, tmp_path / "l", on_event=events.append)
    assert [(e.step, e.done, e.unit) for e in (events[0], events[-1])] == [
        ("likelihood", 0, "responses"),
        ("likelihood", 10, "responses"),
    ]


@pytest.mark.parametrize("after", [0, 1, 2, 3])
def test_a_killed_run_resumes_after_the_last_complete_batch(tmp_path: Path, after: int) -> None:
    class Dying(ScriptedEngine):
        def complete(self, *args: object, **named: object) -> Iterator[list[Completion]]:  # type: ignore[override]
            for i, batch in enumerate(super().complete(*args, **named)):  # type: ignore[arg-type]
                if i == after:
                    raise KilledError
                yield batch

    whole = tmp_path / "whole.jsonl"
    complete_to_file(engine(), PROMPTS, SamplingParams(), whole)
    path = tmp_path / "c.jsonl"
    with pytest.raises(KilledError):
        complete_to_file(Dying(reply, batch_size=3), PROMPTS, SamplingParams(), path)
    assert not path.exists()
    again = engine()
    seen: list[int] = []
    complete_to_file(again, PROMPTS, SamplingParams(), path, on_event=lambda event: seen.append(event.done))
    assert len(again.asked) == 10 - 3 * after
    assert seen[0] == 3 * after
    assert path.read_bytes() == whole.read_bytes()
    assert not (tmp_path / "c.jsonl.part").exists()


@given(
    st.integers(0, 10_000), st.sampled_from([b"", b"\x00", b"{", b"\n", b'{"prompt_id": 1}\n', b"[]\n", b"\xff\xfe\n"])
)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_a_part_cut_anywhere_gives_the_same_file(tmp_path: Path, cut: int, rubbish: bytes) -> None:
    path, part = tmp_path / "c.jsonl", tmp_path / "c.jsonl.part"
    states: list[bytes] = []
    complete_to_file(
        engine(),
        PROMPTS,
        SamplingParams(),
        path,
        on_event=lambda _: states.append(part.read_bytes() if part.exists() else b""),
    )
    want = path.read_bytes()
    path.unlink()
    part.write_bytes(states[-1][: cut % (len(states[-1]) + 1)] + rubbish)
    complete_to_file(engine(), PROMPTS, SamplingParams(), path)
    assert path.read_bytes() == want
    assert not part.exists()


@pytest.mark.parametrize("change", ["settings", "prompts", "model", "kind"])
def test_the_part_file_of_another_run_is_discarded(tmp_path: Path, change: str) -> None:
    path, part = tmp_path / "c.jsonl", tmp_path / "c.jsonl.part"
    states: list[bytes] = []
    record = lambda _: states.append(part.read_bytes() if part.exists() else b"")  # noqa: E731
    complete_to_file(engine(), PROMPTS, SamplingParams(), path, made_by={"model": 1}, on_event=record)
    part.write_bytes(states[-1])
    again = engine()
    if change == "kind":
        likelihood_to_file(again, PROMPTS, path, made_by={"model": 1})
    else:
        asked = [*PROMPTS[:-1], Prompt(id="p9", messages=(Message("user", "new"),))] if change == "prompts" else PROMPTS
        chosen = SamplingParams(seed=1) if change == "settings" else SamplingParams()
        complete_to_file(again, asked, chosen, path, made_by={"model": 2 if change == "model" else 1})
    assert len(again.asked) == 10


def test_likelihoods_are_written_to_a_file(tmp_path: Path) -> None:
    made = likelihood_to_file(ScriptedEngine({}, nll=0.5), PROMPTS, tmp_path / "l.jsonl")
    assert [(x.prompt_id, x.nll, x.tokens) for x in made[:2]] == [("p0", 1.5, 3), ("p1", 1.5, 3)]
    assert json.loads((tmp_path / "l.jsonl").read_text().splitlines()[0]) == {
        "prompt_id": "p0",
        "nll": 1.5,
        "tokens": 3,
    }


def test_no_prompts_leave_nothing(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        complete_to_file(engine(), [], SamplingParams(), tmp_path / "c.jsonl")
    assert caught.value.code == "data.no_prompts"
    assert not list(tmp_path.iterdir())


def test_a_forbidden_folder_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*args: object, **named: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", forbidden)
    with pytest.raises(OutputError) as caught:
        complete_to_file(engine(), PROMPTS, SamplingParams(), tmp_path / "a" / "c.jsonl")
    assert caught.value.code == "output.forbidden"


def test_a_scripted_answer_is_cut_and_found_by_id_or_text() -> None:
    scripted = ScriptedEngine({"p0": "one two three", "hello": "four"}, default="five")
    asked = [Prompt(id=i, messages=(Message("user", t),)) for i, t in (("p0", "x"), ("p1", "hello"), ("p2", "y"))]
    made = {c.prompt_id: c for batch in scripted.complete(asked, SamplingParams(max_tokens=2)) for c in batch}
    assert {k: (c.text, c.tokens, c.finish) for k, c in made.items()} == {
        "p0": ("one two", 2, "length"),
        "p1": ("four", 1, "stop"),
        "p2": ("five", 1, "stop"),
    }


@given(st.lists(st.integers(1, 300), max_size=60), st.integers(1, 9))
def test_batches_contain_every_prompt_once(lengths: list[int], size: int) -> None:
    batches = plan_batches(lengths, size)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    flat = [lengths[i] for batch in batches for i in batch]
    assert flat == sorted(flat, reverse=True)
    assert all(len(batch) <= size for batch in batches)
