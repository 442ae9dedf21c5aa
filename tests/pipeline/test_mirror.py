"""The copy of a run folder in a storage: what is copied when, who goes on from it, and what is refused. In memory."""

import json
import platform
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from mooring.config import Resources, Runner
from mooring.errors import ClusterError, MissingExtraError, OutputError, RecipeError, StorageError, UserError
from mooring.events import Event
from mooring.ledger import LEDGER
from mooring.pipeline import mirror as mirrors
from mooring.pipeline.cluster.sources import JudgeSource, StoredSource
from mooring.pipeline.cluster.stored import fetch, send
from mooring.pipeline.mirror import MARK, Mirror
from mooring.pipeline.run_folder import RunFolder
from mooring.pipeline.steps import SelectInputs, Stage, Step
from mooring.pipeline.storage import Storage, explanation

URL = "s3://bucket/runs-of-mine"


class Recorded(MemoryFileSystem):  # type: ignore[misc]
    """Files in memory, and what was written in which order."""

    cachable = False

    def __init__(self) -> None:
        super().__init__()
        self.written: list[str] = []

    def pipe_file(self, path: str, value: bytes, **options: Any) -> None:
        """See fsspec."""
        self.written.append(path)
        super().pipe_file(path, value, **options)

    def put_file(self, lpath: str, rpath: str, **options: Any) -> None:
        """See fsspec."""
        self.written.append(rpath)
        super().put_file(lpath, rpath, **options)


@pytest.fixture
def files() -> Iterator[Recorded]:
    """An empty storage's files."""
    MemoryFileSystem.store.clear()
    yield Recorded()
    MemoryFileSystem.store.clear()


@pytest.fixture
def storage(files: Recorded) -> Storage:
    """An empty storage."""
    return Storage(URL, files)


def write(folder: Path, **texts: str) -> None:
    """Write files of a run, `_` in their names for a slash, and a ledger that names no step."""
    for name, text in {"ledger.json": '{"steps": {}}', **texts}.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def contents(folder: Path) -> dict[str, str]:
    """The files of a run folder, without the mark."""
    found = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return {name: path.read_text() for name, path in found.items() if name != MARK}


def begun(storage: Storage, folder: Path) -> Mirror:
    """A mirror that has begun."""
    folder.mkdir(parents=True, exist_ok=True)
    mirror = Mirror(storage, folder)
    mirror.begin()
    return mirror


def test_an_empty_disk_gets_what_was_copied(storage: Storage, files: Recorded, tmp_path: Path) -> None:
    first, second = tmp_path / "a" / "mine", tmp_path / "b" / "mine"
    mirror = begun(storage, first)
    write(first, completions__base__x="answers", report__results="numbers")
    (first / "scratch").mkdir()
    (first / "scratch" / "merged").write_text("made again")
    (first / ".partial-x").write_text("half")
    mirror.copy()
    assert files.written[-1].endswith(f"/runs/mine/{LEDGER}")  # after all that it names
    assert Mirror(storage, second.parent / "other").begin() is False
    second.mkdir(parents=True)
    assert Mirror(storage, second).begin() is True
    assert contents(second) == {
        LEDGER: '{"steps": {}}',
        "completions/base/x": "answers",
        "report/results": "numbers",
    }


def test_only_what_changed_is_copied_and_what_was_removed_is_removed(
    storage: Storage, files: Recorded, tmp_path: Path
) -> None:
    folder = tmp_path / "mine"
    mirror = begun(storage, folder)
    write(folder, a="1", b="2")
    mirror.copy()
    files.written.clear()
    mirror.copy()
    assert not files.written
    (folder / "a").write_text("longer")
    (folder / "b").unlink()
    mirror.copy()
    assert [name.rpartition("/")[2] for name in files.written] == ["a"]
    assert {*storage.sizes("runs/mine")} == {"a", LEDGER, ".driver"}


def test_the_same_machine_goes_on_with_its_own_folder(storage: Storage, files: Recorded, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    mirror = begun(storage, folder)
    write(folder, a="1")
    mirror.copy()
    (folder / "a").write_text("after the last copy")
    again = Mirror(storage, folder)
    assert again.begin() is False
    files.written.clear()
    again.copy()
    assert storage.read("runs/mine/a") == b"after the last copy"
    assert [name.rpartition("/")[2] for name in files.written] == [".driver", "a"]


def test_the_command_that_was_started_last_owns_the_copy(storage: Storage, tmp_path: Path) -> None:
    first, second = tmp_path / "a" / "mine", tmp_path / "b" / "mine"
    former = begun(storage, first)
    write(first, a="1")
    former.copy()
    later = begun(storage, second)
    (second / "a").write_text("from the other machine")
    later.copy()
    (first / "a").write_text("too late")
    for late in (former.copy, former.check, former.finish):
        with pytest.raises(StorageError) as caught:
            late()
        assert caught.value.code == "storage.taken_over"
    assert storage.read("runs/mine/a") == b"from the other machine"
    assert Mirror(storage, first).begin() is True  # the first machine goes on from the other's
    assert (first / "a").read_text() == "from the other machine"


def test_a_fetch_that_was_stopped_is_done_again(
    storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = tmp_path / "a" / "mine", tmp_path / "b" / "mine"
    mirror = begun(storage, first)
    write(first, a="1", b="2")
    mirror.copy()
    second.mkdir(parents=True)
    get = Storage.download

    def stopped(self: Storage, wanted: Any) -> None:
        some = [*wanted]
        get(self, some[:1])
        if len(some) > 1:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Storage, "download", stopped)
        with pytest.raises(KeyboardInterrupt):
            Mirror(storage, second).begin()
    RunFolder(second)  # a run folder, even so
    assert Mirror(storage, second).begin() is True
    assert contents(second).keys() >= {LEDGER, "a", "b"}


def test_another_run_of_the_same_name_is_refused(storage: Storage, tmp_path: Path) -> None:
    first, second = tmp_path / "a" / "mine", tmp_path / "b" / "mine"
    mirror = begun(storage, first)
    write(first, a="1")
    mirror.copy()
    write(second, a="another")
    with pytest.raises(StorageError) as caught:
        Mirror(storage, second).begin()
    assert caught.value.code == "storage.another_run"
    assert str(second) in str(caught.value)
    assert (second / "a").read_text() == "another"


def test_a_name_that_leads_out_of_the_folder_is_refused(storage: Storage, tmp_path: Path) -> None:
    storage.write(f"runs/mine/{LEDGER}", b"{}")
    storage.write("runs/mine/../../up", b"x")
    with pytest.raises(StorageError) as caught:
        begun(storage, tmp_path / "mine")
    assert caught.value.code == "storage.bad_name"


def test_a_locked_run_folder_is_copied_while_it_works(
    storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirrors, "EVERY", 0.01)
    folder = tmp_path / "mine"
    run = RunFolder(folder, mirror=Mirror(storage, folder))
    out = folder / "answers"

    def make() -> None:
        out.write_text("some")
        while storage.read("runs/mine/answers") is None:
            pass
        storage.write("runs/mine/.driver", b"a later command")
        while True:
            run.emit(Event(step="x", kind="info"))

    inputs = SelectInputs(scores=(), config={}, metric=None)
    step = Step(id="step", label="a step", work=Stage.SELECT, inputs=inputs, outputs=(out,))
    with pytest.raises(StorageError) as caught, run.locked():
        run.once(step, "key", make)
    assert caught.value.code == "storage.taken_over"


def test_a_storage_that_fails_meanwhile_is_warned_of_once_and_tried_again(
    storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirrors, "EVERY", 0.01)
    folder, events, failures = tmp_path / "mine", list[Event](), [0]
    mirror = begun(storage, folder)
    write(folder, a="1")
    upload = Storage.upload

    def failing(self: Storage, wanted: Any) -> None:
        failures[0] += 1
        if failures[0] < 4:
            raise StorageError("away", code="storage.unreachable")
        upload(self, wanted)

    monkeypatch.setattr(Storage, "upload", failing)
    mirror.start(events.append)
    while storage.read("runs/mine/a") is None:
        pass
    mirror.finish()
    assert ["away" in event.message for event in events] == [True]


def test_models_are_sent_and_fetched_once_by_their_content(
    storage: Storage, files: Recorded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOORING_CACHE", str(tmp_path / "cache"))
    model, events = tmp_path / "model", list[Event]()
    write(
        model, **{"config.json": "{}", "model.safetensors": "weights", "additional_chat_templates__tool.jinja": "{{x}}"}
    )
    (model / "checkpoint-5").mkdir()
    (model / "checkpoint-5" / "optimizer.pt").write_text("not read by any loader")
    digest = send(storage, model, events.append)
    files.written.clear()
    assert send(storage, model, events.append) == digest
    assert not files.written
    assert len(events) == 1
    found = fetch(storage, digest)
    expected = {name: text for name, text in contents(model).items() if "checkpoint" not in name}
    assert contents(found) == expected
    files.store.clear()
    assert fetch(storage, digest) == found  # from the cache


@pytest.mark.parametrize("damage", ["changed", "removed", "other list"])
def test_a_model_that_was_changed_in_the_storage_is_refused(
    storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    monkeypatch.setenv("MOORING_CACHE", str(tmp_path / "cache"))
    write(tmp_path / "model", **{"config.json": "{}", "model.safetensors": "weights"})
    digest = send(storage, tmp_path / "model", lambda event: None)
    if damage == "changed":
        storage.write(f"models/{digest}/model.safetensors", b"weightz")
    elif damage == "removed":
        storage.remove([f"models/{digest}.json"])
    else:
        storage.write(f"models/{digest}.json", json.dumps({"../../up": "0" * 64}).encode())
    with pytest.raises(StorageError) as caught:
        fetch(storage, digest)
    assert caught.value.code == "storage.no_model"
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file() and path.suffix != ".lock"]


def test_a_node_that_cannot_fetch_a_model_is_named(
    storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOORING_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(Storage, "open", lambda url: storage)
    judge = JudgeSource(folder=tmp_path / "model", runner=Runner())
    source = StoredSource(source=judge, url=URL, digests={tmp_path / "model": "0" * 64})
    with pytest.raises(ClusterError, match=re.escape(platform.node())) as caught:
        source.load(tmp_path)
    assert caught.value.code == "cluster.storage"
    assert URL in str(caught.value)


def test_a_storage_that_gives_back_something_else_is_refused(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Storage, "read", lambda self, name: b"something else")
    with pytest.raises(StorageError) as caught:
        storage.check()
    assert caught.value.code == "storage.unreachable"


@pytest.mark.parametrize(
    ("scheme", "package", "extra"), [("s3", "s3fs", "s3"), ("gs", "gcsfs", "gcs"), ("az", "adlfs", "azure")]
)
def test_without_a_providers_package_its_extra_is_named(
    scheme: str, package: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=rf"mooring\[{extra}\]") as caught:
        Storage.open(f"{scheme}://bucket/x")
    assert caught.value.code == "extra.storage"


class DefaultCredentialsError(Exception):
    """Named as google.auth's."""


class HttpError(Exception):
    """As gcsfs's, with the status of the answer."""

    def __init__(self, code: int) -> None:
        super().__init__(f"status {code}")
        self.code = code


@pytest.mark.parametrize(
    ("url", "error", "code", "said"),
    [
        ("s3://bucket/x", FileNotFoundError("The specified bucket does not exist"), "storage.no_bucket", "bucket"),
        ("s3://bucket/x", PermissionError("Forbidden"), "storage.forbidden", "Forbidden"),
        ("s3://bucket/x", OSError(5, "down"), "storage.unreachable", "down"),
        ("gs://bucket/x", DefaultCredentialsError("none"), "storage.credentials", "gcloud"),
        ("gs://bucket/x", HttpError(401), "storage.credentials", "gcloud"),
        ("gs://bucket/x", HttpError(403), "storage.forbidden", "403"),
        ("az://bucket/x", ValueError("Must provide either a connection_string"), "storage.credentials", "AZURE_"),
    ],
)
def test_what_a_providers_error_means(url: str, error: Exception, code: str, said: str) -> None:
    found = explanation(url, error)
    assert found.code == code
    assert said in str(found)
    assert url in str(found)
    assert "\n" not in str(found)


def test_an_error_of_this_machines_disk_stays_one(tmp_path: Path) -> None:
    class Full(Recorded):
        def get_file(self, *args: Any, **options: Any) -> None:
            raise OSError(28, "No space left on device", str(tmp_path / "x"))

    with pytest.raises(OutputError) as caught:
        Storage(URL, Full()).download([("x", tmp_path / "x")])
    assert caught.value.code == "output.disk_full"


@pytest.mark.parametrize("url", ["s3://b", "gs://bucket/prefix", "az://container/a/b", "s3://my.bucket-1/x/"])
def test_places_that_are_buckets(url: str) -> None:
    assert Resources(storage=url).storage == url


@pytest.mark.parametrize("url", ["bucket/prefix", "s3:/b", "s3://", "http://b/x", "s3://b/x?versionId=1", "s3://a b/x"])
def test_places_that_are_none(url: str) -> None:
    with pytest.raises(ValueError, match="s3://BUCKET/PREFIX"):
        Resources(storage=url)


def test_scores_of_a_file_are_not_copied(tmp_path: Path) -> None:
    import mooring

    (tmp_path / "p.jsonl").write_text('{"prompt": "Hello.", "id": "a"}\n')
    (tmp_path / "c.jsonl").write_text('{"id": "a", "completion": "Hello."}\n')
    with pytest.raises(RecipeError) as caught:
        mooring.score(tmp_path / "c.jsonl", str(tmp_path / "p.jsonl"), kind="safety", judges="rules", storage=URL)
    assert caught.value.code == "recipe.storage_unused"


def test_a_run_that_is_refused_leaves_nothing_in_the_storage(
    storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "mine"
    run = RunFolder(folder, mirror=Mirror(storage, folder))
    monkeypatch.setattr(mirrors, "EVERY", 0.001)

    def work() -> None:
        with run.locked():
            time.sleep(0.05)
            raise RecipeError("refused", code="recipe.bad_value")

    with pytest.raises(UserError, match="refused"):
        work()
    assert not storage.sizes("runs/mine")
