"""Full disks, killed processes, inputs that vanish: one line, nothing half-written, inputs untouched.

Processes here are real ones; a hook in them stops the merge at a chosen place, so that the moment is no matter of luck.
"""

import contextlib
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from mooring.cli import main
from mooring.errors import ModelError, OutputError, UserError
from mooring.merging.merge import merge

Write = Callable[..., Path]

MIB = 2**20
PLACES = {
    "first bytes": "mooring.models.checkpoint:Writer.write:1",
    "middle": "mooring.models.checkpoint:Writer.write:7",
    "side files": "mooring.merging.merge:write_side_files:1",
    "manifest": "mooring.merging.merge:write_manifest:1",
    "verify": "mooring.merging.merge:compare:1",
    "rename": "mooring.files:_rename:1",
}
"""Moments of a merge: module, function, and which call of it."""


def tensors(seed: int) -> dict[str, torch.Tensor]:
    """A few tensors of 64 KiB."""
    random = torch.Generator().manual_seed(seed)
    return {f"layers.{k}.weight": torch.randn(128, 128, generator=random) for k in range(12)}


@pytest.fixture
def pair(tmp_path: Path, write: Write) -> tuple[Path, Path]:
    """A base and a tuned model, in a folder of their own."""
    return write(tmp_path / "in" / "base", tensors(1), 2), write(tmp_path / "in" / "tuned", tensors(2), 3)


@pytest.fixture
def untouched(pair: tuple[Path, Path]) -> Iterator[None]:
    """The inputs have the same files, bytes and times after the test."""

    def state() -> dict[Path, tuple[bytes, int]]:
        return {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in sorted(pair[0].parent.rglob("*")) if p.is_file()}

    before = state()
    yield
    assert state() == before


@pytest.fixture
def tmpfs(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """`tmpfs(size)` mounts an empty disk of so many MiB."""
    mounted = []

    def mount(size: int) -> Path:
        place = tmp_path / f"disk{len(mounted)}"
        place.mkdir()
        if not shutil.which("mount"):
            pytest.skip("there is no mount command")
        call = ["mount", "-t", "tmpfs", "-o", f"size={size}m", "none", str(place)]
        if (said := subprocess.run(call, capture_output=True, text=True, check=False)).returncode:
            pytest.skip(f"a disk cannot be mounted here ({said.stderr.strip()})")
        mounted.append(place)
        return place

    yield mount
    for place in mounted:
        subprocess.run(["umount", "-l", str(place)], check=True)


def read_only(place: Path) -> None:
    """Let a mounted disk be read only."""
    subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)


def fill(place: Path) -> None:
    """Leave no byte free on a disk."""
    with (place / "filler").open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(MIB)):
            pass
    assert shutil.disk_usage(place).free == 0


def content(folder: Path) -> dict[str, bytes]:
    """Every file by name."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def command(capsys: pytest.CaptureFixture[str], *args: object) -> tuple[int, str]:
    """The exit code and standard error of `mooring merge`, in this process."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main(["merge", *map(str, args)])
    return int(stop.value.code or 0), capsys.readouterr().err


def check_line(answer: tuple[int, str], *words: str) -> None:
    """Exit 2 and one line with these words."""
    code, err = answer
    assert code == 2
    assert err.startswith("mooring: ")
    assert err.count("\n") == 1
    assert all(word in err for word in words), err


def hook(place: str, mark: Path, most: float) -> None:
    """Let a call of a function leave a mark, then wait until there is a file `go` beside it, or so many seconds."""
    module, path, number = place.split(":")
    __import__(module)
    owner: Any = sys.modules[module]
    *parents, name = path.split(".")
    for parent in parents:
        owner = getattr(owner, parent)
    original, calls = getattr(owner, name), []

    def waits(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == int(number):
            mark.touch()
            end = time.monotonic() + most
            while time.monotonic() < end and not mark.with_name("go").exists():
                time.sleep(0.005)
        return original(*args, **kwargs)

    setattr(owner, name, waits)


def _child(args: list[str], place: str, mark: Path, most: float) -> None:
    with mark.with_name("err").open("wb") as err:
        os.dup2(err.fileno(), 2)
    sys.stderr = os.fdopen(2, "w", closefd=False)
    hook(place, mark, most)
    main(["merge", *args])


def start(args: list[object], place: str, folder: Path, most: float = 30) -> Any:
    """A merge in a process of its own, that has come to a place and waits there."""
    folder.mkdir()
    mark = folder / "mark"
    process = multiprocessing.get_context("fork").Process(target=_child, args=(list(map(str, args)), place, mark, most))
    process.start()
    end = time.monotonic() + 30
    while not mark.exists():
        assert process.is_alive(), (folder / "err").read_text()
        assert time.monotonic() < end
        time.sleep(0.005)
    return process


# A disk that is full


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("moment", ["files are made", "middle", "manifest"])
@pytest.mark.parametrize("lambdas", [False, True])
def test_a_disk_that_fills_up(
    pair: tuple[Path, Path],
    tmpfs: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    moment: str,
    lambdas: bool,
) -> None:
    """Room was there when the work began, and something else took it."""
    disk = tmpfs(72)
    stream = sys.modules["mooring.merging.merge"]
    name = {"files are made": "need_room", "middle": "_write_tensors", "manifest": "write_side_files"}[moment]
    original = getattr(stream, name)

    def then_fill(*args: Any, **options: Any) -> None:
        original(*args, **options)
        fill(disk)

    monkeypatch.setattr(stream, name, then_fill)
    settings = ("--lambdas", "0.2,0.8") if lambdas else ("--lam", 0.5)
    check_line(command(capsys, *pair, *settings, "--out", disk / "deep" / "out"), "no room left on the disk", "out")
    assert {path.name for path in disk.rglob("*")} <= {"filler", "deep"}
    monkeypatch.undo()
    (disk / "filler").unlink()
    assert command(capsys, *pair, *settings, "--out", disk / "deep" / "out")[0] == 0


@pytest.mark.usefixtures("untouched")
def test_a_disk_that_is_too_small(
    pair: tuple[Path, Path], tmpfs: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    disk = tmpfs(8)
    check_line(command(capsys, *pair, "--lam", 0.5, "--out", disk / "out"), "MiB will be written", "are free")
    assert not list(disk.iterdir())


@pytest.mark.usefixtures("untouched")
def test_an_output_on_a_disk_that_may_not_be_written(
    pair: tuple[Path, Path], tmpfs: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    disk = tmpfs(72)
    read_only(disk)
    answer = command(capsys, *pair, "--lam", 0.5, "--out", disk / "out")
    check_line(answer, str(disk / "out"), "Read-only file system", "choose another folder")
    assert not list(disk.iterdir())


def test_inputs_on_a_disk_that_may_not_be_written(
    pair: tuple[Path, Path], tmp_path: Path, tmpfs: Callable[..., Path]
) -> None:
    whole = merge(*pair, tmp_path / "whole", lam=0.5)
    disk = tmpfs(16)
    copies = [Path(shutil.copytree(folder, disk / folder.name)) for folder in pair]
    read_only(disk)
    assert content(merge(copies[0], copies[1], tmp_path / "out", lam=0.5)) == content(whole)


# A process that is killed or stopped


@pytest.mark.usefixtures("untouched")
def test_a_killed_merge_is_cleaned_up_by_the_next(pair: tuple[Path, Path], tmp_path: Path) -> None:
    whole = merge(*pair, tmp_path / "whole", lam=0.5)
    for k, place in enumerate(PLACES.values()):
        folder = tmp_path / str(k)
        folder.mkdir()
        process = start([*pair, "--lam", 0.5, "--out", folder / "out"], place, tmp_path / f"process{k}")
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert process.exitcode == -signal.SIGKILL
        assert [path.name for path in folder.iterdir()] == [".partial-out"]  # nothing under the final name
        assert content(merge(*pair, folder / "out", lam=0.5)) == content(whole)
        assert [path.name for path in folder.iterdir()] == ["out"]


@pytest.mark.usefixtures("untouched")
def test_two_merges_into_one_folder(
    pair: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = merge(*pair, tmp_path / "whole", lam=0.5)
    for k, place in enumerate((PLACES["first bytes"], PLACES["rename"])):
        out = tmp_path / f"out{k}"
        args = [*pair, "--lam", 0.5, "--out", out]
        process = start(args, place, tmp_path / f"process{k}")
        check_line(command(capsys, *args), f"{out}: is being written by another process", "wait for it to end")
        (tmp_path / f"process{k}" / "go").touch()
        process.join()
        assert process.exitcode == 0
        assert content(out) == content(whole)
        check_line(command(capsys, *args), f"{out}: is not empty")


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("place", ["middle", "verify"])
def test_ctrl_c(pair: tuple[Path, Path], tmp_path: Path, place: str) -> None:
    folder = tmp_path / "to"
    folder.mkdir()
    process = start([*pair, "--lam", 0.5, "--out", folder / "out"], PLACES[place], tmp_path / "process", most=0.3)
    os.kill(process.pid, signal.SIGINT)
    process.join()
    assert process.exitcode == 130
    assert "Traceback" not in (tmp_path / "process" / "err").read_text()
    assert not list(folder.iterdir())


@pytest.mark.slow
@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGINT])
def test_a_command_of_its_own(pair: tuple[Path, Path], tmp_path: Path, sent: signal.Signals) -> None:
    """As from a shell: a new interpreter."""
    folder, mark = tmp_path / "to", tmp_path / "mark"
    folder.mkdir()
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from test_faults import hook, main; from pathlib import Path; "
        "hook(sys.argv[2], Path(sys.argv[3]), float(sys.argv[4])); main(sys.argv[5:])"
    )
    hooked = [str(Path(__file__).parent), PLACES["middle"], str(mark), "0.5" if sent == signal.SIGINT else "30"]
    args = ["merge", *map(str, pair), "--lam", "0.5", "--out", str(folder / "out")]
    with subprocess.Popen(
        [sys.executable, "-c", code, *hooked, *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        while not mark.exists():
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        process.send_signal(sent)
        out, err = process.communicate(timeout=30)
    assert process.returncode == (130 if sent == signal.SIGINT else -signal.SIGKILL)
    assert "Traceback" not in out + err
    assert not (folder / "out").exists()
    assert [path.name for path in folder.iterdir()] == ([] if sent == signal.SIGINT else [".partial-out"])


# Inputs that change under way


def failing(kind: type[UserError], pair: tuple[Path, Path], out: Path, change: Callable[[], Any], **more: Any) -> str:
    """The line with which a merge ends after a change that is made once it has written something."""
    done: list[int] = []

    def progress(*_: int) -> None:
        if not done:
            change()
        done.append(1)

    with pytest.raises(kind) as caught:
        merge(*pair, out, on_event=progress, threads=1, slice_bytes=2**12, **{"lam": 0.5} | more)
    assert done
    assert not out.exists()
    assert not list(out.parent.glob(".partial*"))
    assert "\n" not in str(caught.value)
    assert caught.value.hint
    return str(caught.value)


@pytest.fixture
def fine_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    """A grid so fine that much is left to read when the first slice has been written."""
    monkeypatch.setattr(sys.modules["mooring.merging.slices"], "CELL", 1024)


@pytest.mark.usefixtures("fine_cells")
@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("method", ["linear", "slerp", "ties"])
def test_an_input_that_shrinks(pair: tuple[Path, Path], tmp_path: Path, side: int, method: str) -> None:
    file = sorted(pair[side].glob("*.safetensors"))[-1]
    message = failing(ModelError, pair, tmp_path / "out", lambda: os.truncate(file, 4000), method=method)
    assert f"{file}: ends within layers." in message


@pytest.mark.usefixtures("fine_cells")
def test_an_input_that_vanishes(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """Files that are open stay readable; what is to be opened or copied later is missed."""
    moved = tmp_path / "moved"
    for side, kind in ((0, UserError), (1, ModelError)):
        message = failing(kind, pair, tmp_path / "out", lambda side=side: pair[side].rename(moved))
        assert str(pair[side]) in message
        assert "No such file" in message
        moved.rename(pair[side])


@pytest.mark.usefixtures("fine_cells")
def test_side_files_that_vanish(pair: tuple[Path, Path], tmp_path: Path) -> None:
    config = pair[0] / "config.json"
    original = config.read_bytes()
    out = tmp_path / "out"
    config.write_bytes(original)
    (pair[0] / "tokenizer.json").write_text("{}")
    stream = sys.modules["mooring.merging.manifest"]
    listed = stream.side_files

    def late(folder: Path) -> list[Path]:
        found = list(listed(folder))
        (pair[0] / "tokenizer.json").unlink(missing_ok=True)
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules["mooring.models.checkpoint"], "side_files", late)
        with pytest.raises(OutputError) as caught:
            merge(*pair, out, lam=0.5)
    assert f"{pair[0] / 'tokenizer.json'}: cannot be read (No such file" in str(caught.value)
    assert not out.exists()


# Folders in folders


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("as_adapter", [False, True])
def test_an_output_in_an_input_or_around_it(
    pair: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], as_adapter: bool
) -> None:
    (tmp_path / "link").symlink_to(pair[0])
    if as_adapter:
        (pair[1] / "adapter_config.json").write_text("{}")
    places = [*pair, pair[0] / "x", pair[1] / "x" / "y", tmp_path / "link" / "x", pair[0] / ".." / "tuned" / "x"]
    for out in places:
        more = ["--as-adapter"] if as_adapter else []
        check_line(command(capsys, *pair, "--lam", 0.5, "--out", out, *more), str(out), "is inside the input")
    check_line(command(capsys, *pair, "--lam", 0.5, "--out", pair[0].parent), "is not empty")
    assert {path.name for path in pair[0].parent.iterdir()} == {"base", "tuned"}
    (pair[1] / "adapter_config.json").unlink(missing_ok=True)


def test_an_output_that_leads_back_to_itself(pair: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    link = pair[0].with_name("link")
    link.symlink_to("link")
    check_line(command(capsys, *pair, "--lam", 0.5, "--out", link), str(link), "leads back to itself")
    assert link.is_symlink()


def test_an_input_where_the_output_is_made(pair: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    """The folder that is filled, beside the output, is emptied first."""
    rescued = pair[1].rename(pair[1].with_name(".partial-out"))
    before = content(rescued)
    out = rescued.with_name("out")
    check_line(command(capsys, pair[0], rescued, "--lam", 0.5, "--out", out), ".partial-out", "choose another name")
    assert content(rescued) == before
    assert not out.exists()
