"""Files that appear whole or not at all."""

import contextlib
import errno
import fcntl
import hashlib
import os
import signal
import subprocess
import sys
import threading
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path

import pytest

from mooring import files
from mooring.errors import OutputError


def test_a_file_is_replaced_in_one_step_and_a_failure_leaves_the_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "deep" / "file"
    files.atomic_text(path, "old")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OutputError) as caught:
        files.atomic_text(path, "new")
    assert caught.value.code == "output.disk_full"
    assert path.read_text() == "old"
    assert [p.name for p in path.parent.iterdir()] == ["file"]


def test_a_folder_appears_when_it_is_whole(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with files.atomic_folder(out) as folder:
        (folder / "a").write_text("1")
        assert not out.exists()
    assert (out / "a").read_text() == "1"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_folder_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def fail() -> None:
        with files.atomic_folder(tmp_path / "out") as folder:
            (folder / "a").touch()
            raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        fail()
    assert not list(tmp_path.iterdir())


def test_what_a_killed_writer_left_is_written_over(tmp_path: Path) -> None:
    left = tmp_path / ".partial-out"
    left.mkdir()
    (left / "half").touch()
    with files.atomic_folder(tmp_path / "out") as folder:
        assert not list(folder.iterdir())
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


WRITE = """
import sys, pathlib
from mooring import files
with files.atomic_folder(pathlib.Path(sys.argv[1])) as folder:
    (folder / "half").write_text("x" * 100)
    print("writing", flush=True)
    sys.stdin.readline()
"""


@contextlib.contextmanager
def writer(out: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that writes a folder, and is in the middle of it."""
    with subprocess.Popen(
        [sys.executable, "-c", WRITE, str(out)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
        try:
            yield process
        finally:
            process.kill()


def test_the_second_of_two_writers_fails_and_the_first_continues(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with writer(out) as first:
        with pytest.raises(OutputError) as caught, files.atomic_folder(out):
            pass
        assert caught.value.code == "output.locked"
        assert (tmp_path / ".partial-out" / "half").exists()
        first.communicate("\n")
        assert first.returncode == 0
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert [p.name for p in out.iterdir()] == ["half"]


def test_what_a_writer_killed_in_the_middle_left_is_cleared(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with writer(out) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert [p.name for p in tmp_path.iterdir()] == [".partial-out"]
    (tmp_path / ".partial-out" / "deep").mkdir()
    with files.atomic_folder(out) as folder:
        assert not list(folder.iterdir())
        (folder / "whole").touch()
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert [p.name for p in out.iterdir()] == ["whole"]


@pytest.mark.parametrize("left", [0, 3])
def test_of_many_writers_one_writes_alone_and_the_others_fail(tmp_path: Path, left: int) -> None:
    """The one that starts finds the folder empty and keeps it; the others fail; nothing half-written is left."""
    out = tmp_path / "out"
    ended: list[str] = []

    def begin(number: int) -> None:
        start.wait()
        try:
            with files.atomic_folder(out) as folder:
                assert not list(folder.iterdir())
                for name in "abc":
                    (folder / name).write_text(str(number))
                assert {p.read_text() for p in folder.iterdir()} == {str(number)}
            ended.append(str(number))
        except OutputError as error:
            ended.append("refused" if error.code in ("output.locked", "output.not_empty") else error.message)

    for _ in range(30):
        ended.clear()
        for name in range(left):
            (tmp_path / ".partial-out" / str(name)).mkdir(parents=True)
        start = threading.Barrier(6)
        threads = [threading.Thread(target=begin, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(ended) == 6
        (winner,) = set(ended) - {"refused"}
        assert ended.count("refused") == 5
        assert {p.name: p.read_text() for p in out.iterdir()} == dict.fromkeys("abc", winner)
        assert [p.name for p in tmp_path.iterdir()] == ["out"]
        for path in out.iterdir():
            path.unlink()
        out.rmdir()


def test_where_folders_cannot_be_locked_one_is_written_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: int) -> None:
        raise OSError(errno.EBADF, "Bad file descriptor")  # as NFS does for a folder

    monkeypatch.setattr(fcntl, "flock", refuse)
    (tmp_path / ".partial-out" / "old").mkdir(parents=True)
    with files.atomic_folder(tmp_path / "out") as folder:
        (folder / "a").touch()
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["a"]


def test_no_descriptor_is_left_open(tmp_path: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    with files.atomic_folder(tmp_path / "out"):
        with pytest.raises(OutputError), files.atomic_folder(tmp_path / "out"):
            pass
        assert len(list(Path("/proc/self/fd").iterdir())) == before + 1
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_link_is_followed_to_the_folder_that_is_written(tmp_path: Path) -> None:
    for real, made in (("empty", True), ("none", False)):
        if made:
            (tmp_path / real).mkdir()
        link = tmp_path / f"to-{real}"
        link.symlink_to(tmp_path / real)
        with files.atomic_folder(link) as folder:
            (folder / "a").touch()
        assert link.is_symlink()
        assert [p.name for p in (tmp_path / real).iterdir()] == ["a"]
    assert not list(tmp_path.glob(f"{files.PARTIAL}*"))


def test_a_path_that_cannot_be_written_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    os.mkfifo(tmp_path / "pipe")
    for path, code in (
        (tmp_path / "file", "is_a_file"),
        (tmp_path / "file" / "out", "parent_is_a_file"),
        (tmp_path / "file" / "deep" / "out", "parent_is_a_file"),
        (tmp_path / "pipe", "is_a_file"),
        (tmp_path / "loop", "link_loop"),
        (tmp_path / ("x" * 250), "name_too_long"),
        (tmp_path / ("x" * 300), "name_too_long"),
    ):
        with pytest.raises(OutputError) as caught, files.atomic_folder(path):
            pass
        assert caught.value.code == f"output.{code}"
        assert "\n" not in str(caught.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "loop", "pipe"]


def test_an_output_filled_in_the_meantime_is_kept(tmp_path: Path) -> None:
    out = tmp_path / "out"

    def write() -> None:
        with files.atomic_folder(out):
            out.mkdir()
            (out / "mine").touch()

    with pytest.raises(OutputError) as caught:
        write()
    assert caught.value.code == "output.not_empty"
    assert [p.name for p in out.iterdir()] == ["mine"]
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_faulty_input_is_named_and_not_the_output(tmp_path: Path) -> None:
    with pytest.raises(OutputError) as caught, files.explained(tmp_path / "out"):
        (tmp_path / "in.json").read_text()
    assert str(caught.value).startswith(f"{tmp_path / 'in.json'}: cannot be read (No such file")
    denied = PermissionError(errno.EACCES, "Permission denied", str(tmp_path / ".partial-out" / "a"))
    with pytest.raises(OutputError) as caught, files.explained(tmp_path / "out"):
        raise denied
    assert caught.value.code == "output.forbidden"
    assert caught.value.message.startswith(f"{tmp_path / 'out'}: ")
    with pytest.raises(FileNotFoundError), files.explained(tmp_path / "out"):
        (tmp_path / "out" / "a").read_text()  # a bug, which keeps its traceback


def test_an_output_that_holds_something_is_refused(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    with pytest.raises(OutputError) as caught:
        files.free_for_output(tmp_path / "full")
    assert caught.value.code == "output.not_empty"
    with pytest.raises(OutputError) as caught:
        files.free_for_output(tmp_path / "file")
    assert caught.value.code == "output.is_a_file"
    files.free_for_output(tmp_path / "empty")
    files.free_for_output(tmp_path / "none")


def test_room_is_checked_where_the_output_will_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    asked: list[Path] = []

    def disk_usage(path: Path) -> usage:
        asked.append(path)
        return usage(10, 5, 2**30)

    monkeypatch.setattr("shutil.disk_usage", disk_usage)
    files.need_room(tmp_path / "not" / "yet", 2**30)
    with pytest.raises(OutputError) as caught:
        files.need_room(tmp_path / "not" / "yet", 2**31)
    assert caught.value.code == "output.disk_full"
    assert asked == [tmp_path, tmp_path]


def test_sha256_is_hashlibs(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"mooring")
    assert files.sha256(tmp_path / "a") == hashlib.sha256(b"mooring").hexdigest()
