"""The run folder: what is done is not done twice, and what is not done is."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from mooring.errors import DataError, OutputError, UserError
from mooring.events import Event
from mooring.pipeline.run_folder import RunFolder
from mooring.pipeline.steps import SelectInputs, Stage, Step

INPUTS = SelectInputs(scores=(), config={}, metric=None)


def step(*outputs: Path, id_: str = "step") -> Step:
    return Step(id=id_, label=f"the {id_}", work=Stage.SELECT, inputs=INPUTS, outputs=outputs)


class Maker:
    """Writes a file and counts how often."""

    def __init__(self, path: Path, text: str = "made") -> None:
        self.path = path
        self.text = text
        self.calls = 0
        self.step = step(path)

    def __call__(self) -> None:
        self.calls += 1
        self.path.write_text(self.text)


def refused(call: Callable[[], object], code: str) -> UserError:
    with pytest.raises(UserError) as caught:
        call()
    assert caught.value.code == code
    return caught.value


def test_a_step_is_done_once(tmp_path: Path) -> None:
    events: list[Event] = []
    folder = RunFolder(tmp_path / "run", events.append)
    make = Maker(tmp_path / "run" / "out")
    with folder.locked():
        folder.once(make.step, "key", make)
        folder.once(make.step, "key", make)
    assert make.calls == 1
    assert [event.kind for event in events] == ["started", "finished", "cached"]
    assert {(event.step, event.label) for event in events} == {("step", "the step")}


def test_the_ledger_outlives_the_process_that_wrote_it(tmp_path: Path) -> None:
    make = Maker(tmp_path / "run" / "out")
    for _ in range(2):
        folder = RunFolder(tmp_path / "run")
        with folder.locked():
            folder.once(make.step, "key", make)
    assert make.calls == 1
    assert not folder.worked


@pytest.mark.parametrize("change", ["key", "output"])
def test_a_step_is_done_again_when_its_key_changes_or_its_output_is_missing(tmp_path: Path, change: str) -> None:
    folder = RunFolder(tmp_path / "run")
    make = Maker(tmp_path / "run" / "out")
    with folder.locked():
        folder.once(make.step, "key", make)
        if change == "output":
            make.path.unlink()
        folder.once(make.step, "other" if change == "key" else "key", make)
    assert make.calls == 2


def test_what_another_key_left_is_removed_and_what_the_same_key_left_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "run"
    folder = RunFolder(path)
    out, work, other = path / "out", path / ".work-out", path / "output"

    def stop() -> None:
        work.mkdir(exist_ok=True)
        (work / "half").touch()
        raise KeyboardInterrupt

    with folder.locked():
        other.touch()
        with pytest.raises(KeyboardInterrupt):
            folder.once(step(out), "1", stop)
        seen: list[bool] = []
        folder.once(step(), "1", lambda: seen.append((work / "half").exists()))
        with pytest.raises(KeyboardInterrupt):
            folder.once(step(out), "3", stop)
        folder.once(step(out), "2", lambda: seen.append((work / "half").exists()))
    assert seen == [True, False]
    assert other.exists()


def test_a_failed_step_is_not_done(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    out = tmp_path / "run" / "out"

    def fail() -> None:
        out.touch()
        raise ValueError

    with folder.locked():
        with pytest.raises(ValueError):  # noqa: PT011
            folder.once(step(out), "key", fail)
        assert not folder.is_done(step(out), "key")
        assert folder.is_untouched


def test_a_folder_that_holds_something_else_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    refused(lambda: RunFolder(tmp_path), "output.not_a_run")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_file_and_a_broken_ledger_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    refused(lambda: RunFolder(tmp_path / "file"), "output.is_a_file")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "ledger.json").write_text("{")
    assert "ledger.json" in refused(lambda: RunFolder(tmp_path / "run"), "data.bad_ledger").message


def test_a_second_run_in_one_folder_is_refused(tmp_path: Path) -> None:
    first, second = RunFolder(tmp_path / "run"), RunFolder(tmp_path / "run")
    with first.locked(), pytest.raises(OutputError) as caught, second.locked():
        pass
    assert caught.value.code == "output.locked"


def test_what_a_killed_writer_left_is_removed(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    with folder.locked():
        pass
    (tmp_path / "run" / ".partial-model").mkdir()
    (tmp_path / "run" / ".partial-model" / "half.safetensors").touch()
    (tmp_path / "run" / ".partial-x1").touch()
    with RunFolder(tmp_path / "run").locked():
        assert not list((tmp_path / "run").glob(".partial-*"))


def test_a_digest_is_measured_again_only_when_a_file_changes(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    data = tmp_path / "model"
    data.mkdir()
    (data / "weights").write_text("a")
    calls: list[Path] = []

    def measure(path: Path) -> str:
        calls.append(path)
        return (path / "weights").read_text()

    with folder.locked():
        assert [folder.digest(data, measure) for _ in range(3)] == ["a"] * 3
        (data / "weights").write_text("bc")
        assert folder.digest(data, measure) == "bc"
    assert len(calls) == 2


def test_a_model_of_the_run_that_was_modified_since_is_refused(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    model = tmp_path / "run" / "model"

    def make() -> None:
        model.mkdir(exist_ok=True)
        (model / "weights").write_text("made")

    def measure(path: Path) -> str:
        return (path / "weights").read_text()

    with folder.locked():
        folder.once(step(model), "1", make)
        folder.digest(model, measure)
    (tmp_path / "run").rename(tmp_path / "moved")  # digests move with the run
    folder, model = RunFolder(tmp_path / "moved"), tmp_path / "moved" / "model"
    with folder.locked():
        assert folder.digest(model, lambda _: "not measured") == "made"
        (model / "weights").write_text("edited")
        refused(lambda: folder.digest(model, measure), "data.modified")
        (model / "weights").write_text("other weights")
        folder.once(step(model), "2", lambda: (make(), (model / "weights").write_text("made again")))
        assert folder.digest(model, measure) == "made again"


def test_the_ledger_knows_the_seconds_and_labels_of_done_steps(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    with folder.locked():
        folder.once(step(), "key", lambda: None)
    record = json.loads((tmp_path / "run" / "ledger.json").read_text())["steps"]["step"]
    assert (record["done"], record["label"], record["key"]) == (True, "the step", "key")
    assert record.get("seconds", 0) >= 0


@pytest.mark.parametrize("record", ["out.json", "folder/loss.json"])
def test_a_record_that_was_modified_since_is_refused_and_left_alone(tmp_path: Path, record: str) -> None:
    folder = RunFolder(tmp_path / "run")
    path = tmp_path / "run" / record
    output = path if record == "out.json" else path.parent

    def make() -> None:
        path.parent.mkdir(exist_ok=True)
        path.write_text("made")

    with folder.locked():
        folder.once(step(output), "1", make)
        path.write_text("edited")
        error = refused(lambda: folder.once(step(output), "1", make), "data.modified")
        assert isinstance(error, DataError)
        assert str(path) in error.message
        assert f"delete {'it' if output == path else output}" in error.hint
        assert path.read_text() == "edited"
        folder.once(step(output), "2", make)  # with another key it is made again
        assert path.read_text() == "made"


def test_a_record_that_was_removed_since_is_made_again(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    make = Maker(tmp_path / "run" / "out.json")
    with folder.locked():
        folder.once(make.step, "key", make)
        make.path.unlink()
        folder.once(make.step, "key", make)
    assert make.calls == 2
