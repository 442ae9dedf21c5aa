"""What experiment trackers get of a run, read back by their own packages."""

import importlib
import json
import shutil
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import mooring
from mooring.config import Recipe
from mooring.events import Event
from mooring.pipeline.run import Run
from mooring.pipeline.trackers import _beside, tracking
from mooring.records import Prompt
from scripted_engine import ScriptedEngine

SECRET = "Begin like this"


@pytest.fixture
def run(tmp_path: Path, tiny_model_folder: Path) -> Run:
    from safetensors.torch import load_file, save_file

    rows = [{"id": f"r-{n}", "prompt": f"How do I break thing {n}?"} for n in range(16)]
    (tmp_path / "requests.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shutil.copytree(tiny_model_folder, tmp_path / "tuned")
    weights = {name: t + 0.01 for name, t in load_file(tmp_path / "tuned" / "model.safetensors").items()}
    save_file(weights, tmp_path / "tuned" / "model.safetensors", metadata={"format": "pt"})
    score = {"safety": str(tmp_path / "requests.jsonl"), "over_refusal": None, "ordinary": None}
    recipe = Recipe.parse(
        {
            "base": str(tiny_model_folder),
            "tuned": str(tmp_path / "tuned"),
            "out": str(tmp_path / "run"),
            "merge": {"lambdas": [0.5], "check": False},
            "score": score,
            "select": {"confidence": None},
        }
    )

    def engine(point: Any) -> ScriptedEngine:
        def answer(prompt: Prompt) -> str:
            return SECRET if int(prompt.id[2:]) < 8 * point.lam else "I can't help with that."

        return ScriptedEngine(answer)

    return Run(recipe, engine=engine)


def tracked(run: Run, kind: Any) -> dict[int, float]:
    """Run it, and return the ASR on validation at each λ, in percent."""
    seen = list[Event]()
    with tracking(run, kind, seen.append) as (relay, end):
        outcome = run.execute(relay)
        end(outcome)
    assert "finished" in {event.kind for event in seen}
    assert [event.message for event in seen if event.step == "track"] == []
    trials = (trial for trial in outcome.trials if trial.split == "validation")
    return {round(100 * trial.point.lam): float(trial.scores["asr"].value or 0) for trial in trials}


def test_tensorboard_has_scores_over_lambda_and_the_figure(run: Run) -> None:
    loader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator", reason="needs tensorboard")
    expected = tracked(run, "tensorboard")
    folder = run.recipe.folder.with_name("run-tracking")
    read = loader.EventAccumulator(str(folder))
    read.Reload()
    found = {each.step: each.value for each in read.Scalars("validation/asr")}
    assert found == pytest.approx(expected)
    assert found[0] < found[100]
    assert "tradeoff" in read.Tags()["images"]
    assert "verdict/text_summary" in read.Tags()["tensors"]
    assert all(SECRET.encode() not in path.read_bytes() for path in folder.rglob("*") if path.is_file())


@pytest.mark.slow
def test_mlflow_has_scores_over_lambda_and_the_figure(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow", reason="needs mlflow")
    store = run.recipe.folder.parent / "mlruns"
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store.as_uri())
    expected = tracked(run, "mlflow")
    client = mlflow.MlflowClient(store.as_uri())
    (logged,) = client.search_runs([client.get_experiment_by_name("mooring").experiment_id])
    history = client.get_metric_history(logged.info.run_id, "validation/asr")
    assert {each.step: each.value for each in history} == expected
    assert "tradeoff.png" in {each.path for each in client.list_artifacts(logged.info.run_id)}


def wandb_records(path: Path) -> Iterator[Any]:
    """The records of a `.wandb` file: LevelDB's log format (blocks of 32 KiB), after a header of 7 bytes."""
    pb = importlib.import_module("wandb.proto.wandb_internal_pb2")
    content, at, whole = path.read_bytes(), 7, b""
    while at + 7 <= len(content):
        room = 32768 - at % 32768
        if room < 7:
            at += room
            continue
        _, length, kind = struct.unpack("<IHB", content[at : at + 7])
        if at + 7 + length > len(content):  # it is still being written
            return
        whole += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # the whole of a record, or its last part
            yield pb.Record.FromString(whole)
            whole = b""


@pytest.mark.slow
def test_wandb_has_scores_over_lambda_and_the_figure_offline(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="needs wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    expected = tracked(run, "wandb")
    (written,) = run.recipe.folder.with_name("run-tracking").rglob("*.wandb")
    end = time.monotonic() + 60
    records = list[Any]()
    while not any(record.HasField("exit") for record in records):
        assert time.monotonic() < end, "wandb's own process has not written the end of the run"
        records = list(wandb_records(written))
    rows = [
        {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
        for record in records
        if record.HasField("history")
    ]
    found = {row["λ in percent"]: row["validation/asr"] for row in rows if "validation/asr" in row}
    assert found == pytest.approx(expected)
    entries = {entry.path for record in records for entry in record.request.log_artifact.artifact.manifest.contents}
    entries |= {entry.path for record in records for entry in record.artifact.manifest.contents}
    assert "tradeoff.png" in entries
    assert SECRET.encode() not in written.read_bytes()


class Failing:
    """A tracker that fails at one of its methods."""

    def __init__(self, at: str) -> None:
        self.at, self.calls = at, list[str]()

    def _do(self, name: str) -> None:
        self.calls.append(name)
        if name == self.at:
            raise ConnectionError("the server\x1b[31m\nis gone")

    def log(self, values: Any, step: int) -> None:
        self._do("log")

    def end(self, facts: Any, files: Any) -> None:
        self._do("end")

    def close(self) -> None:
        self._do("close")


@pytest.mark.parametrize("at", ["log", "end", "close"])
def test_a_tracker_that_fails_later_is_left_and_the_run_goes_on(
    run: Run, at: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker, events = Failing(at), list[Event]()
    monkeypatch.setattr("mooring.pipeline.trackers._TensorBoard", lambda run: tracker)
    with tracking(run, "tensorboard", events.append) as (relay, end):
        outcome = run.execute(relay)
        end(outcome)
    assert outcome.verdict is not None
    (warning,) = (event.message for event in events if event.kind == "warning" and event.step == "track")
    reason = "(ConnectionError: the server⟨U+001B⟩[31m is gone)"
    assert warning == f"tensorboard failed, and receives no more of this run {reason}"
    assert tracker.calls.count(at) == 1
    assert tracker.calls[-1] == at


def test_a_tracker_that_does_not_start_is_one_line(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(run: Run) -> None:
        raise RuntimeError("api_key\nnot configured")

    monkeypatch.setattr("mooring.pipeline.trackers._Wandb", fail)
    with pytest.raises(mooring.UserError) as caught, tracking(run, "wandb", None):
        pass
    assert caught.value.code == "usage.tracker_failed"
    assert "RuntimeError: api_key not configured" in str(caught.value)
    assert not run.recipe.folder.exists()


@pytest.mark.parametrize("out", [".", "..", "/", "~"])
def test_the_folder_of_a_tracker_lies_beside_any_run_folder(run: Run, out: str) -> None:
    assert _beside(Run(run.recipe.override({"out": out}))).name.endswith("-tracking")


def test_an_unknown_tracker_is_refused(run: Run) -> None:
    with pytest.raises(mooring.UserError) as caught, tracking(run, "other", None):  # type: ignore[arg-type]
        pass
    assert caught.value.code == "usage.unknown_tracker"
