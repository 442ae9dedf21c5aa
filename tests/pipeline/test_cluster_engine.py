"""The workers of a cluster as an engine, without a cluster: the bits of their answers are those of one process."""

import dataclasses
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

import tiny_adapters
from mooring.config import Runner
from mooring.errors import ClusterError, DataError, ModelError
from mooring.inference.load import load_engine
from mooring.merge_point import BASE, TUNED, MergePoint
from mooring.pipeline.cluster.engine import ClusterSweep, fixed, judge_engine
from mooring.pipeline.cluster.sources import JudgeSource, ModelsSource, SeriesSource
from mooring.pipeline.cluster.units import Unit
from mooring.pipeline.cluster.work import Failure, Setup, Worker
from mooring.pipeline.sweeps.transformers import TransformersSweep
from mooring.records import Completion, Message, Prompt
from mooring.sampling import SamplingParams

PROMPTS = [
    Prompt(
        id=f"p{n}",
        messages=(Message("user", "Tell me about the sea. " * (n % 5 + 1)),),
        reference="It is wet." * (n % 3 + 1),
    )
    for n in range(11)
]
RUNNER = Runner(batch_size=3, dtype="float32", device="cpu")


class Here:
    """Units done in this process, in any order, by as many workers as there are."""

    def __init__(self, *sources: Any, folder: Path, seed: int = 0) -> None:
        import torch

        setup = Setup(folder=str(folder), threads=torch.get_num_threads())
        self.workers = [Worker(source, setup) for source in sources]
        self.draw = random.Random(seed)
        self.lost: set[str] = set()
        self.units: list[Unit] = []

    def submit(self, units: Sequence[Unit]) -> Iterator[tuple[Unit, Any]]:
        """As `Dispatcher.submit`."""
        self.units += units
        for unit in self.draw.sample(units, len(units)):
            if self.lost & {*unit.prompts}:
                yield unit, None
                continue
            result = self.draw.choice(self.workers).do(unit.work)
            if isinstance(result, Failure):
                raise result.error()
            yield unit, result


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path) -> ModelsSource:
    """A base and an adapter."""
    tuned = tiny_adapters.tune(tiny_model_folder, tmp_path_factory.mktemp("adapter") / "tuned")
    own = SeriesSource(tuned=(tuned,))
    return ModelsSource(base=tiny_model_folder, own=own, runner=RUNNER, system="You are a helpful assistant.")


@pytest.fixture
def here(source: ModelsSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Here:
    """Two workers with these models."""
    monkeypatch.chdir(tmp_path)
    return Here(source, source, folder=tmp_path)


def plain(completions: Sequence[Completion]) -> dict[str, Completion]:
    """Completions by key, without what made them."""
    return {each.key: dataclasses.replace(each, made_by={}) for each in completions}


@pytest.mark.parametrize("point", [BASE, MergePoint(0.5), TUNED], ids=lambda point: point.folder)
def test_workers_answer_and_measure_as_one_process_does(
    source: ModelsSource, here: Here, point: MergePoint, tmp_path: Path
) -> None:
    spec = source.open()
    cluster, alone = ClusterSweep(spec, here.submit).at(point), TransformersSweep(spec, tmp_path / "scratch").at(point)
    greedy = SamplingParams(max_tokens=5)
    several = SamplingParams(max_tokens=4, temperature=1.0, n=4, seed=3)
    for params in (greedy, several):
        expected = plain([each for batch in alone.complete(PROMPTS, params) for each in batch])
        found = [each for batch in cluster.complete(PROMPTS, params) for each in batch]
        assert plain(found) == expected
        assert {found[0].made_by["engine"][name] for name in ("engine", "device")} == {"transformers", "cpu"}
    losses = {each.prompt_id: each for batch in alone.likelihood(PROMPTS) for each in batch}
    assert {each.prompt_id: each for batch in cluster.likelihood(PROMPTS) for each in batch} == losses
    assert len({unit.key for unit in here.units}) == len(here.units) == 4 + 15 + 4


def test_finished_batches_are_not_done_again(source: ModelsSource, here: Here) -> None:
    engine, params = ClusterSweep(source.open(), here.submit).at(BASE), SamplingParams(max_tokens=3)
    first = next(iter(engine.complete(PROMPTS, params)))
    here.units.clear()
    rest = [each for batch in engine.complete(PROMPTS, params, done={c.key for c in first}) for each in batch]
    assert len(here.units) == 3
    assert {c.key for c in first}.isdisjoint({c.key for c in rest})
    assert len(first) + len(rest) == len(PROMPTS)


def test_the_prompts_of_a_unit_that_was_given_up_are_lost(source: ModelsSource, here: Here) -> None:
    engine = ClusterSweep(source.open(), here.submit).at(BASE)
    here.lost = {"p3"}
    found = [each for batch in engine.complete(PROMPTS, SamplingParams(max_tokens=3)) for each in batch]
    lost = [each for each in found if each.finish == "lost"]
    assert len(found) == len(PROMPTS)
    assert "p3" in {each.prompt_id for each in lost}
    assert len(lost) in (2, 3)  # its batch
    assert all(each.unanswered for each in lost)
    with pytest.raises(ClusterError, match="p3") as caught:
        [*engine.likelihood(PROMPTS)]
    assert caught.value.code == "cluster.lost"


def test_a_prompt_that_is_too_long_is_refused_before_any_unit(source: ModelsSource, here: Here) -> None:
    engine = ClusterSweep(source.open(), here.submit).at(BASE)
    with pytest.raises(DataError) as caught:
        [*engine.complete(PROMPTS, SamplingParams(max_tokens=10_000))]
    assert caught.value.code == "data.context_exceeded"
    assert not here.units


def test_a_judge_answers_as_in_one_process(tiny_model_folder: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    here = Here(JudgeSource(folder=tiny_model_folder, runner=fixed(RUNNER)), folder=tmp_path)
    engine = judge_engine(here.submit, "judge a", tiny_model_folder, RUNNER, BASE)
    params = SamplingParams(max_tokens=5)
    alone = load_engine(tiny_model_folder, RUNNER, None)
    expected = plain([each for batch in alone.complete(PROMPTS, params) for each in batch])
    assert plain([each for batch in engine.complete(PROMPTS, params) for each in batch]) == expected


def test_an_error_of_a_worker_is_the_users(source: ModelsSource, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    gone = dataclasses.replace(source, base=tmp_path / "nothing")
    here = Here(gone, folder=tmp_path)
    engine = ClusterSweep(source.open(), here.submit).at(BASE)
    with pytest.raises(ModelError, match="nothing"):
        [*engine.complete(PROMPTS, SamplingParams(max_tokens=3))]


def test_a_batch_has_a_fixed_size_on_every_device() -> None:
    assert fixed(Runner()).batch_size == 32
    assert fixed(RUNNER) == RUNNER
    assert fixed(Runner(engine="vllm")).batch_size is None
