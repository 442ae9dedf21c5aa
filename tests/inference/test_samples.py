"""Several samples a prompt on transformers: each is a function of seed, prompt and sample, and of nothing else."""

import itertools
from pathlib import Path

import pytest

from mooring.errors import DataError
from mooring.events import Event
from mooring.inference.store import complete_to_file
from mooring.inference.transformers import TransformersEngine
from mooring.records import Completion, Message, Prompt, sample_key
from mooring.sampling import SamplingParams

TEXTS = ["Hi", "What is the capital of Norway?", "Write a poem about the sea. " * 3, "Why?", "12 hours, 12 foxes"]
SETTINGS = SamplingParams(max_tokens=10, temperature=0.8, top_p=0.95, top_k=50, n=3)
KEYS = {sample_key(f"p{i}", sample) for i in range(len(TEXTS)) for sample in range(3)}


def prompts() -> list[Prompt]:
    return [Prompt(id=f"p{i}", messages=(Message("user", text),)) for i, text in enumerate(TEXTS)]


def engine(folder: Path, batch_size: int) -> TransformersEngine:
    return TransformersEngine.load(folder, batch_size=batch_size, device="cpu", dtype="float32")


def texts(made: list[list[Completion]]) -> dict[str, str]:
    return {c.key: c.text for batch in made for c in batch}


@pytest.fixture(scope="module")
def alone(tiny_model_folder: Path) -> dict[str, str]:
    """Every answer in a batch of its own."""
    return texts(list(engine(tiny_model_folder, 1).complete(prompts(), SETTINGS)))


def test_every_sample_is_present_and_distinct(alone: dict[str, str]) -> None:
    assert set(alone) == KEYS
    for i in range(len(TEXTS)):
        three = [alone[sample_key(f"p{i}", sample)] for sample in range(3)]
        assert all(a != b for a, b in itertools.combinations(three, 2))


@pytest.mark.parametrize("batch_size", [2, 4, 7, 100])
def test_samples_do_not_depend_on_the_batch(tiny_model_folder: Path, alone: dict[str, str], batch_size: int) -> None:
    assert texts(list(engine(tiny_model_folder, batch_size).complete(prompts(), SETTINGS))) == alone
    assert texts(list(engine(tiny_model_folder, batch_size).complete(prompts()[::-1], SETTINGS))) == alone


@pytest.mark.parametrize("kept", [1, 6, 14])
def test_samples_do_not_depend_on_which_are_done(tiny_model_folder: Path, alone: dict[str, str], kept: int) -> None:
    done = set(sorted(KEYS)[:kept])
    made = texts(list(engine(tiny_model_folder, 4).complete(prompts(), SETTINGS, done=done)))
    assert made == {key: alone[key] for key in made}
    assert set(made) | done == KEYS


def test_more_samples_leave_the_first_as_they_are(tiny_model_folder: Path, alone: dict[str, str]) -> None:
    one = SamplingParams(max_tokens=10, temperature=0.8, top_p=0.95, top_k=50, n=1)
    made = texts(list(engine(tiny_model_folder, 3).complete(prompts(), one)))
    assert made == {f"p{i}": alone[f"p{i}"] for i in range(len(TEXTS))}


def test_another_seed_gives_other_samples(tiny_model_folder: Path, alone: dict[str, str]) -> None:
    other = SamplingParams(max_tokens=10, temperature=0.8, top_p=0.95, top_k=50, n=3, seed=43)
    assert texts(list(engine(tiny_model_folder, 8).complete(prompts(), other))) != alone


def test_a_file_of_samples_is_the_same_after_a_kill(tiny_model_folder: Path, tmp_path: Path) -> None:
    whole = complete_to_file(engine(tiny_model_folder, 4), prompts(), SETTINGS, tmp_path / "whole.jsonl")
    assert [(c.prompt_id, c.sample) for c in whole] == [(f"p{i}", n) for i in range(len(TEXTS)) for n in range(3)]

    def kill(event: Event) -> None:
        if event.done >= 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        complete_to_file(engine(tiny_model_folder, 4), prompts(), SETTINGS, tmp_path / "killed.jsonl", on_event=kill)
    complete_to_file(engine(tiny_model_folder, 4), prompts(), SETTINGS, tmp_path / "killed.jsonl")
    assert (tmp_path / "killed.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_samples_of_a_greedy_model_are_refused(tiny_model_folder: Path) -> None:
    with pytest.raises(DataError) as caught:
        next(engine(tiny_model_folder, 4).complete(prompts(), SamplingParams(max_tokens=8, n=3)))
    assert caught.value.code == "data.greedy_samples"
