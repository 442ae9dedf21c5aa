"""What an engine prints goes to its log file; what Mooring prints goes to the terminal."""

import io
import logging
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from mooring.inference.logs import engine_logs, log_tail, own_stderr

CHILD = "import sys; print('out of the child'); print('error of the child', file=sys.stderr)"


def python(code: str, *args: object) -> subprocess.CompletedProcess[str]:
    """Run code in another process, whose file descriptors are its own."""
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_this_process_and_its_children_write_to_the_file(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "models.log"
    done = python(
        f"""
        import os, subprocess, sys
        from pathlib import Path
        from mooring.inference.logs import engine_logs, own_stderr

        print("before")
        with own_stderr() as terminal:
            with engine_logs(Path(sys.argv[1])):
                print("python's output")
                print("python's error", file=sys.stderr)
                os.write(1, b"output of C\\n")
                os.write(2, b"error of C\\n")
                child = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read(); " + {CHILD!r}],
                                         stdin=subprocess.PIPE)
                print("progress", file=terminal)
            print("after")
            child.communicate()  # it prints when the block has ended
            print("still here", file=terminal)
        """,
        log,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "before\nafter\n"
    assert done.stderr == "progress\nstill here\n"
    written = {"python's output", "python's error", "output of C", "error of C", "out of the child"}
    assert set(log.read_text().splitlines()) == written | {"error of the child"}


def test_a_logger_of_the_engine_writes_to_the_file_for_good(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    logger, path = logging.getLogger("vllm"), tmp_path / "models.log"
    handler = logging.StreamHandler(sys.stdout)
    logger.addHandler(handler)
    try:
        with engine_logs(path):
            logger.warning("while it starts")
        logger.warning("and later")
    finally:
        logger.removeHandler(handler)
    assert path.read_text().splitlines()[-1] == "and later"
    assert capsys.readouterr().out == ""


def test_the_streams_come_back_when_the_engine_fails(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "models.log"

    def fail() -> None:
        print("the reason")
        raise RuntimeError

    with pytest.raises(RuntimeError), engine_logs(path):
        fail()
    print("again")
    os.write(2, b"here\n")
    assert capfd.readouterr() == ("again\n", "here\n")
    with engine_logs(path):
        print("the second start")
    assert path.read_text() == "the reason\nthe second start\n"


@pytest.mark.parametrize(("fails", "kept"), [(False, False), (True, True)])
def test_a_temporary_file_is_kept_only_if_something_failed(tmp_path: Path, fails: bool, kept: bool) -> None:
    done = python(
        """
        import contextlib, sys, tempfile
        from mooring.inference.logs import engine_logs

        tempfile.tempdir = sys.argv[1]
        with contextlib.suppress(RuntimeError), engine_logs() as path:
            print("a line")
            if sys.argv[2] == "True":
                raise RuntimeError
        assert path.read_text() == "a line\\n"
        """,
        tmp_path,
        fails,
    )
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.iterdir())) == kept


def test_the_tail_is_what_a_person_would_see(tmp_path: Path) -> None:
    path = tmp_path / "log"
    assert log_tail(path) == ""
    path.write_bytes(b"x" * 100_000 + b"\n" + b"\n".join(b"%d" % n for n in range(50)) + b"\n\n")
    assert log_tail(path).splitlines() == [str(n) for n in range(30, 50)]
    path.write_bytes("10 %\r100 %\n\x1b[31mred \x1b[0m\n  \nλ\n".encode() + b"\xff\n")
    assert log_tail(path, lines=4) == "100 %\nred\nλ\n\N{REPLACEMENT CHARACTER}"


def test_a_replaced_stderr_is_used_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    own = io.StringIO()
    monkeypatch.setattr(sys, "stderr", own)
    with own_stderr() as found:
        assert found is own
