"""The run folder: what is done is not done twice, and what is not is."""

import json
from pathlib import Path

import pytest

from mooring.errors import DataError, OutputError
from mooring.pipeline.run_folder import Event, Store, key_of


class Maker:
    """Writes a file and counts how often."""

    def __init__(self, path: Path, text: str = "made") -> None:
        self.path = path
        self.text = text
        self.calls = 0

    def __call__(self) -> None:
        self.calls += 1
        self.path.write_text(self.text)


def test_a_step_is_done_once(tmp_path: Path) -> None:
    events: list[Event] = []
    store = Store(tmp_path / "run", events.append)
    make = Maker(tmp_path / "run" / "out")
    with store.locked():
        key = store.once("step", [1], [make.path], make)
        again = store.once("step", [1], [make.path], make)
    assert make.calls == 1
    assert key == again == key_of(["step", [1]])
    assert [e.kind for e in events] == ["start", "done", "kept"]


def test_the_ledger_outlives_the_process_that_wrote_it(tmp_path: Path) -> None:
    make = Maker(tmp_path / "run" / "out")
    for _ in range(2):
        store = Store(tmp_path / "run")
        with store.locked():
            store.once("step", [1], [make.path], make)
    assert make.calls == 1
    assert not store.worked


@pytest.mark.parametrize("change", ["inputs", "output"])
def test_a_step_is_done_again_when_its_inputs_change_or_its_output_is_gone(tmp_path: Path, change: str) -> None:
    store = Store(tmp_path / "run")
    make = Maker(tmp_path / "run" / "out")
    with store.locked():
        store.once("step", [1], [make.path], make)
        if change == "output":
            make.path.unlink()
        store.once("step", [2 if change == "inputs" else 1], [make.path], make)
    assert make.calls == 2


def test_what_other_inputs_left_is_removed_first_and_what_the_same_left_is_kept(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    store = Store(folder)
    out, work, other = folder / "out", folder / ".work-out", folder / "output"

    def stop() -> None:
        work.mkdir(exist_ok=True)
        (work / "half").touch()
        raise KeyboardInterrupt

    with store.locked():
        other.touch()
        with pytest.raises(KeyboardInterrupt):
            store.once("step", [1], [out], stop)
        seen: list[bool] = []
        store.once("step", [1], [], lambda: seen.append((work / "half").exists()))
        with pytest.raises(KeyboardInterrupt):
            store.once("step", [3], [out], stop)
        store.once("step", [2], [out], lambda: seen.append((work / "half").exists()))
    assert seen == [True, False]
    assert other.exists()


def test_a_failed_step_is_not_done(tmp_path: Path) -> None:
    store = Store(tmp_path / "run")
    out = tmp_path / "run" / "out"

    def fail() -> None:
        out.touch()
        raise ValueError

    with store.locked():
        with pytest.raises(ValueError):  # noqa: PT011
            store.once("step", [1], [out], fail)
        assert not store.is_done("step", key_of(["step", [1]]), [out])


def test_a_folder_that_holds_something_else_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(OutputError, match="holds something that is not a run"):
        Store(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_file_and_a_broken_ledger_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="is a file"):
        Store(tmp_path / "file")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "ledger.json").write_text("{")
    with pytest.raises(DataError, match=r"ledger\.json: not JSON"):
        Store(tmp_path / "run")


def test_a_second_run_in_one_folder_is_told(tmp_path: Path) -> None:
    first, second = Store(tmp_path / "run"), Store(tmp_path / "run")
    with first.locked(), pytest.raises(OutputError, match="another run is at work"), second.locked():
        pass


def test_what_a_killed_writer_left_is_cleared(tmp_path: Path) -> None:
    store = Store(tmp_path / "run")
    with store.locked():
        pass
    (tmp_path / "run" / ".partial-model").mkdir()
    (tmp_path / "run" / ".partial-model" / "half.safetensors").touch()
    (tmp_path / "run" / ".partial-x1").touch()
    with Store(tmp_path / "run").locked():
        assert not list((tmp_path / "run").glob(".partial-*"))


def test_a_digest_is_measured_again_only_when_a_file_changes(tmp_path: Path) -> None:
    store = Store(tmp_path / "run")
    data = tmp_path / "model"
    data.mkdir()
    (data / "weights").write_text("a")
    calls: list[Path] = []

    def measure(path: Path) -> str:
        calls.append(path)
        return (path / "weights").read_text()

    with store.locked():
        assert [store.digest(data, measure) for _ in range(3)] == ["a"] * 3
        (data / "weights").write_text("bc")
        assert store.digest(data, measure) == "bc"
    assert len(calls) == 2


def test_a_model_of_the_run_that_was_edited_since_is_refused(tmp_path: Path) -> None:
    store = Store(tmp_path / "run")
    model = tmp_path / "run" / "model"

    def make() -> None:
        model.mkdir(exist_ok=True)
        (model / "weights").write_text("made")

    def measure(path: Path) -> str:
        return (path / "weights").read_text()

    with store.locked():
        store.once("merge", [1], [model], make)
        store.digest(model, measure)
    (tmp_path / "run").rename(tmp_path / "moved")  # what was measured is known where the run goes
    store, model = Store(tmp_path / "moved"), tmp_path / "moved" / "model"
    with store.locked():
        assert store.digest(model, lambda _: "not measured") == "made"
        (model / "weights").write_text("edited")
        with pytest.raises(DataError, match="model: is not as the run left it"):
            store.digest(model, measure)
        (model / "weights").write_text("other weights")
        store.once("merge", [2], [model], lambda: (make(), (model / "weights").write_text("made again")))
        assert store.digest(model, measure) == "made again"


def test_seconds_are_told_of_done_steps(tmp_path: Path) -> None:
    store = Store(tmp_path / "run")
    with store.locked():
        store.once("step", [1], [], lambda: None)
    assert store.seconds().keys() == {"step"}
    assert json.loads((tmp_path / "run" / "ledger.json").read_text())["steps"]["step"]["done"] is True


@pytest.mark.parametrize("record", ["out.json", "folder/loss.json"])
def test_a_record_that_was_edited_since_is_refused_and_left_alone(tmp_path: Path, record: str) -> None:
    store = Store(tmp_path / "run")
    path = tmp_path / "run" / record
    output = path if record == "out.json" else path.parent

    def make() -> None:
        path.parent.mkdir(exist_ok=True)
        path.write_text("made")

    with store.locked():
        store.once("step", [1], [output], make)
        path.write_text("edited")
        whole = "it" if output == path else str(output)
        with pytest.raises(DataError, match=f"is not as the run left it; put it back as it was, or delete {whole}"):
            store.once("step", [1], [output], make)
        assert path.read_text() == "edited"
        store.once("step", [2], [output], make)  # of another recipe it is made anew
        assert path.read_text() == "made"


def test_a_ledger_from_before_there_were_digests_is_taken_as_it_is(tmp_path: Path) -> None:
    store = Store(tmp_path / "run")
    make = Maker(tmp_path / "run" / "out.json")
    with store.locked():
        store.once("step", [1], [make.path], make)
    ledger = json.loads((tmp_path / "run" / "ledger.json").read_text())
    del ledger["steps"]["step"]["files"]
    (tmp_path / "run" / "ledger.json").write_text(json.dumps(ledger))
    make.path.write_text("other")
    again = Store(tmp_path / "run")
    with again.locked():
        again.once("step", [1], [make.path], make)
    assert make.calls == 1
