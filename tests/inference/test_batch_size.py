"""The batch size that fits: halved when memory runs out, one for all of a file, and found again by a resumed run."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mooring.errors import DataError, ModelError
from mooring.inference import transformers as module
from mooring.inference.store import complete_to_file, likelihood_to_file
from mooring.inference.transformers import TransformersEngine, first_batch_size
from mooring.records import Message, Prompt
from mooring.sampling import SamplingParams

PROMPTS = [
    Prompt(id=f"p{i}", messages=(Message("user", f"Say {'so ' * i}"),), reference="So.", origin=f"set.jsonl:{i + 1}")
    for i in range(11)
]
GREEDY = SamplingParams(max_tokens=4)
Limit = Callable[[int], list[int]]


@pytest.fixture
def limit(monkeypatch: pytest.MonkeyPatch) -> Limit:
    """Let memory run out above a number of rows; returns the sizes of the batches that were tried."""

    def set_limit(most: int) -> list[int]:
        sizes: list[int] = []

        def limited(function: Any) -> Any:
            def call(model: Any, rows: Any, *given: Any) -> Any:
                sizes.append(len(rows))
                if len(rows) > most:
                    raise torch.OutOfMemoryError("CUDA out of memory.")
                return function(model, rows, *given)

            return call

        for name in ("decode", "response_nll", "decode_drafted"):
            monkeypatch.setattr(module, name, limited(originals[name]))
        return sizes

    originals = {name: getattr(module, name) for name in ("decode", "response_nll", "decode_drafted")}
    return set_limit


@pytest.fixture
def engine(tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> TransformersEngine:
    """An engine that finds its batch size, beginning with 8, as on a GPU."""
    monkeypatch.setattr(module, "first_batch_size", lambda device: (8, True))
    return TransformersEngine.load(tiny_model_folder, device="cpu", dtype="float32")


def fixed(folder: Path, size: int) -> TransformersEngine:
    return TransformersEngine.load(folder, device="cpu", dtype="float32", batch_size=size)


def test_only_a_gpu_looks_for_it() -> None:
    assert first_batch_size("cpu") == (32, False)
    assert first_batch_size("cuda") == (256, True)


@pytest.mark.parametrize("drafts", [None, {"p1": "So"}])
def test_a_file_is_made_with_one_batch_size(
    engine: TransformersEngine, tiny_model_folder: Path, tmp_path: Path, limit: Limit, drafts: Any
) -> None:
    want = complete_to_file(fixed(tiny_model_folder, 2), PROMPTS, GREEDY, tmp_path / "want.jsonl", drafts=drafts)
    sizes = limit(8 if drafts else 3)  # drafts of four batches are checked together
    made = complete_to_file(engine, PROMPTS, GREEDY, tmp_path / "made.jsonl", drafts=drafts)
    assert made == want
    assert {c.made_by["engine"]["batch_size"] for c in made} == {2}
    assert engine.batch_size == 2
    if not drafts:
        assert sizes == [8, 4, 2, 2, 2, 2, 2, 1]
    sizes.clear()
    complete_to_file(engine, PROMPTS[:2], GREEDY, tmp_path / "more.jsonl")
    assert sizes == [2]  # kept


def test_memory_that_runs_out_late_starts_the_file_again(
    engine: TransformersEngine, tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    want = complete_to_file(fixed(tiny_model_folder, 4), PROMPTS, GREEDY, tmp_path / "want.jsonl")
    calls: list[int] = []

    def late(model: Any, rows: Any, *given: Any) -> Any:
        calls.append(len(rows))
        if len(calls) == 2:
            raise torch.OutOfMemoryError
        return decode(model, rows, *given)

    decode = module.decode
    monkeypatch.setattr(module, "decode", late)
    assert complete_to_file(engine, PROMPTS, GREEDY, tmp_path / "made.jsonl") == want
    assert calls == [8, 3, 4, 4, 3]
    assert (tmp_path / "made.jsonl").read_bytes() == (tmp_path / "want.jsonl").read_bytes()


@pytest.mark.parametrize("kind", ["complete", "likelihood"])
def test_a_resumed_file_continues_with_its_batch_size(
    engine: TransformersEngine,
    tiny_model_folder: Path,
    tmp_path: Path,
    limit: Limit,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
) -> None:
    def make(engine: TransformersEngine, path: Path) -> bytes:
        if kind == "complete":
            complete_to_file(engine, PROMPTS, GREEDY, path)
        else:
            likelihood_to_file(engine, PROMPTS, path)
        return path.read_bytes()

    want = make(fixed(tiny_model_folder, 4), tmp_path / "want.jsonl")
    limit(4)
    stopped = TransformersEngine.load(tiny_model_folder, device="cpu", dtype="float32")
    name = "_generate" if kind == "complete" else "_score"
    batches, work = [], getattr(stopped, name)

    def stop(rows: Any, *given: Any) -> Any:
        batches.append(len(rows))
        if len(batches) == 3:  # one was too large, one was done
            raise KeyboardInterrupt
        return work(rows, *given)

    monkeypatch.setattr(stopped, name, stop)
    with pytest.raises(KeyboardInterrupt):
        make(stopped, tmp_path / "made.jsonl")
    assert json.loads((tmp_path / "made.jsonl.part").read_text().splitlines()[0])["batch_size"] == 4
    sizes = limit(100)  # more memory than before changes nothing
    assert make(engine, tmp_path / "made.jsonl") == want
    assert sizes == [4, 3]


def test_the_batch_size_of_a_run_is_recorded(
    engine: TransformersEngine, tiny_model_folder: Path, tmp_path: Path, limit: Limit
) -> None:
    record = tmp_path / "batch_size.json"
    engine.record_batch_size(record)
    assert not record.exists()
    limit(4)
    complete_to_file(engine, PROMPTS, GREEDY, tmp_path / "a.jsonl")
    assert record.read_text() == "4\n"
    later = TransformersEngine.load(tiny_model_folder, device="cpu", dtype="float32")
    later.record_batch_size(record)
    assert (engine.batch_size, later.batch_size) == (4, 4)
    given = fixed(tiny_model_folder, 6)
    given.record_batch_size(record)
    assert given.batch_size == 6
    record.write_text('"many"')
    with pytest.raises(DataError) as caught:
        later.record_batch_size(record)
    assert caught.value.code == "data.bad_record"


def test_what_never_fits_is_one_line_with_a_way_out(
    engine: TransformersEngine, tiny_model_folder: Path, tmp_path: Path, limit: Limit
) -> None:
    limit(0)
    for asked, hint in ((engine, "max_tokens"), (fixed(tiny_model_folder, 8), "batch_size: 4")):
        with pytest.raises(ModelError) as caught:
            complete_to_file(asked, PROMPTS, GREEDY, tmp_path / "a.jsonl")
        assert caught.value.code == "model.out_of_memory"
        assert hint in str(caught.value.hint)
