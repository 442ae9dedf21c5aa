"""Programs that mean harm. Each would pass if the harm worked: so each that does not pass was held."""

import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mooring.scoring.sandbox import Limits, Program, run_programs

pytestmark = pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed")

LIMITS = Limits(seconds=1.0, memory=192 * 2**20, processes=8, output=100_000, files=2**20)
SQUARE = "def f(x):\n    return x * x\n"
CHECKS = "def check(candidate):\n    assert candidate(2) == 4\n    assert candidate(3) == 9\n\ncheck(f)\n"
SECRET = "canary-7d1c"

HARM = {
    "fork bomb": "import os\nwhile True:\n    os.fork()",
    "fork bomb that goes on": (
        "import os\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        pass"
    ),
    "thread bomb": (
        "import threading, time\nfor _ in range(50):\n    threading.Thread(target=time.sleep, args=(9,)).start()"
    ),
    "memory bomb": "kept = []\nwhile True:\n    kept.append(bytearray(2**24))",
    "memory of many processes": (
        "import os, time\nfor _ in range(4):\n    if not os.fork():\n        x = bytearray(b'x') * (80 * 2**20)\n"
        "        time.sleep(9)\ntime.sleep(9)"
    ),
    "mapped memory": "import mmap\nmmap.mmap(-1, 2**30)",
    "shared memory of System V": (
        "import ctypes\nassert ctypes.CDLL(None).shmget(0, ctypes.c_size_t(2**20), 0o1600) >= 0"
    ),
    "a message queue of System V": "import ctypes\nassert ctypes.CDLL(None).msgget(0, 0o1600) >= 0",
    "semaphores of System V": "import ctypes\nassert ctypes.CDLL(None).semget(0, 1, 0o1600) >= 0",
    "a message queue of POSIX": "import ctypes\nassert ctypes.CDLL(None).mq_open(b'/q', 0o102, 0o600, None) >= 0",
    "memory in a hidden file": "import os\nos.memfd_create('x')",
    "endless output": "while True:\n    print('x' * 1000)",
    "endless errors": "import os\nwhile True:\n    os.write(2, b'x' * 1000)",
    "endless loop": "while True:\n    pass",
    "endless loop in the function": "def g(x):\n    while True:\n        pass",
    "loop that catches all": (
        "import signal\nfor n in (1, 2, 14, 15):\n    signal.signal(n, signal.SIG_IGN)\n"
        "while True:\n    try:\n        pass\n    except BaseException:\n        pass"
    ),
    "sleep": "import time\ntime.sleep(60)",
    "stopping the checker": "import os, signal, time\nos.kill(os.getppid(), signal.SIGSTOP)\ntime.sleep(0.1)",
    "deep recursion": "def g(x):\n    return g(x) + 1\ng(1)",
    "recursion without a limit": "import sys\nsys.setrecursionlimit(10**9)\ndef g(x):\n    return [g(x)]\ng(1)",
    "a value without end": "def g(x):\n    k = []\n    k.append(k)\n    return k",
    "an answer too large": "def g(x):\n    return 'x' * (64 * 2**20)",
    "large file": "with open('/tmp/ours', 'wb') as file:\n    for _ in range(64):\n        file.write(bytes(2**20))",
    "many files": "for n in range(8):\n    with open(f'/tmp/{n}', 'wb') as file:\n        file.write(bytes(2**19))",
    "network to this machine": "import socket\nsocket.create_connection(('127.0.0.1', PORT), 0.3).send(b'x')",
    "network outside": "import socket\nsocket.create_connection(('192.0.2.1', 80), 0.3)",
    "a name looked up": "import socket\nsocket.gethostbyname('example.com')",
    "sockets past the network": "import socket\nsocket.socket(40, socket.SOCK_STREAM)",
    "reading a user's file": "print(open(FILE).read())",
    "reading the home": "import os\nprint(os.listdir(HOME + '/'))\nprint(open(HOME + '/.profile').read())",
    "reading the accounts": "print(open('/etc/passwd').read())",
    "reading the repository": "import os\nprint(os.listdir(REPOSITORY))",
    "reading the environment": "import os\nprint(os.environ['MOORING_CANARY'])",
    "reading another's environment": (
        "import glob\nfor path in glob.glob('/proc/[0-9]*/environ'):\n    try:\n        print(open(path).read())\n"
        "    except OSError:\n        pass\nraise SystemExit"
    ),
    "killing the checker": "import os\nos.kill(os.getppid(), 9)",
    "killing all": "import os\nos.kill(-1, 9)",
    "killing the first process": "import os\nos.kill(1, 9)",
    "killing the parent outside": "import os\nos.kill(PARENT, 9)",
    "writing outside": "open(FILE, 'w').write('spoilt')",
    "writing to the system": "open('/usr/x', 'w')",
    "writing to the root": "open('/x', 'w')",
    "writing to shared memory": "import os\nos.makedirs('/dev/shm', exist_ok=True)\nopen('/dev/shm/x', 'w')",
    "changing the library": "import os\nopen(os.__file__, 'a').write('x')",
    "leaving a daemon": "import os, time\nif not os.fork():\n    os.setsid()\n    time.sleep(60)",
    "leaving a shell": "import subprocess\nsubprocess.Popen(['/bin/sh', '-c', 'sleep 60'], start_new_session=True)",
    "becoming root": "import os\nos.setuid(0)",
    "a namespace of its own": "import ctypes\nassert not ctypes.CDLL(None).unshare(0x10000000)",
    "mounting": "import ctypes\nassert not ctypes.CDLL(None).mount(b'none', b'/tmp', b'tmpfs', 0, None)",
    "raising its limits": (
        "import resource\nresource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))"
    ),
}
"""What goes before a right function (or, as `g`, in its place)."""

FORGED = {
    "leaving with 0": "import os\nos._exit(0)",
    "sys.exit": "import sys\nsys.exit(0)",
    "leaving in the call": "import os\ndef f(x):\n    os._exit(0)",
    "printing that it passed": "print('passed')\nprint('OK')\ndef f(x):\n    print('passed')",
    "at exit": "import atexit, os\natexit.register(os.write, 1, b'passed')\ndef f(x):\n    raise SystemExit(0)",
    "answering == with True": (
        "class Yes:\n    __eq__ = __ge__ = __le__ = lambda s, o: True\n    __hash__ = object.__hash__\n"
        "def f(x):\n    return Yes()"
    ),
    "an int that lies": (
        "class Yes(int):\n    __eq__ = lambda s, o: True\n    __hash__ = int.__hash__\ndef f(x):\n    return Yes()"
    ),
    "patched builtins": (
        "import builtins\nbuiltins.AssertionError = type('Never', (Exception,), {})\nbuiltins.exec = print\n"
        "builtins.isinstance = lambda *_: True\ndef f(x):\n    return 0"
    ),
    "patched modules": (
        "import sys\nfor name in list(sys.modules):\n    if name.startswith('mooring'):\n"
        "        sys.modules[name].__dict__.update(main=print, encode=lambda v: b'T0:')\ndef f(x):\n    return 0"
    ),
    "patched frames": (
        "import sys\nframe = sys._getframe()\nwhile frame:\n"
        "    for key in list(frame.f_globals):\n        if key in ('_check', 'Stopped', '_Caller'):\n"
        "            frame.f_globals[key] = lambda *_: ('passed', '')\n"
        "    frame = frame.f_back\ndef f(x):\n    return 0"
    ),
    "no check": "def check(candidate):\n    pass\ncandidate = check\ndef f(x):\n    return 0",
    "answers before questions": (
        "import os\nfor fd in range(3, 10):\n    try:\n"
        "        os.write(fd, (b'\\0' * 7 + b'\\4vN0:') + (b'\\0' * 7 + b'\\4vT0:') * 3)\n"
        "    except OSError:\n        pass\ndef f(x):\n    return True"
    ),
    "a verdict on all descriptors": (
        "import os\nfor fd in range(1, 64):\n    try:\n        os.write(fd, b't3:u6:passedu0:d3:0.1')\n"
        "    except OSError:\n        pass\ndef f(x):\n    return 0"
    ),
    "a verdict through /proc": (
        "import glob, os\nfor path in glob.glob('/proc/[0-9]*/fd/*'):\n    try:\n"
        "        with open(path, 'wb', 0) as file:\n            file.write(b't3:u6:passedu0:d3:0.1')\n"
        "    except OSError:\n        pass\nos._exit(0)"
    ),
    "reading the verdict's pipe": (
        "import os\nfor pid in ('1', '2'):\n    for fd in '012':\n        try:\n"
        "            os.open(f'/proc/{pid}/fd/{fd}', os.O_RDWR)\n            found = True\n"
        "        except OSError:\n            pass\nassert found\n" + SQUARE
    ),
    "the first process's memory": "import os\nopen('/proc/1/mem', 'r+b', 0)\n" + SQUARE,
    "looking for the checks": (
        "import gc, sys\ntext = repr([o for o in gc.get_objects() if isinstance(o, (dict, tuple, list))])\n"
        "frame = sys._getframe()\nwhile frame:\n    text += repr(frame.f_locals)\n    frame = frame.f_back\n"
        "assert ' '.join(['assert', 'candidate(2)']) in text\n" + SQUARE
    ),
    "the checker's memory": "import os\nopen(f'/proc/{os.getppid()}/mem', 'r+b', 0)\n" + SQUARE,
    "the checker's input": "import os\nopen('/proc/2/fd/0', 'rb', 0)\n" + SQUARE,
    "tracing the checker": (
        "import ctypes, os\nassert not ctypes.CDLL(None).ptrace(16, os.getppid(), 0, 0)\n" + SQUARE
    ),
    "a function that is not there": "g = 1",
    "no Python": "def f(x) return 4",
}
"""Programs whole: they are after the verdict."""


def left_over(of: int | None = None) -> list[int]:
    """Processes in the sandboxes that a process of root's made, known by their users, whoever is their parent now."""
    first = 2_000_000_000 + (of or os.getpid()) % 1_000_000 * 100
    found = []
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            user = int(status.read_text().partition("Uid:")[2].split()[0])
        except (OSError, ValueError, IndexError):
            continue  # it ended meanwhile
        if first <= user < first + 100:
            found.append(int(status.parent.name))
    return found


@pytest.mark.slow
def test_a_sandbox_ends_although_its_checker_was_stopped_and_its_maker_killed() -> None:
    code = HARM["stopping the checker"] + "\nwhile True:\n    time.sleep(1)\n" + SQUARE
    call = (
        "from mooring.scoring.sandbox import Limits, Program, run_programs\n"
        f"print('ready', flush=True)\nrun_programs([Program({code!r}, {CHECKS!r}, 'f')], Limits(seconds=1.0))"
    )
    with subprocess.Popen([sys.executable, "-c", call], stdout=subprocess.PIPE, text=True) as maker:
        assert maker.stdout is not None
        assert maker.stdout.readline() == "ready\n"
        if os.geteuid() == 0:
            seen = 0
            for _ in range(200):  # seen twice in a row: the trial sandbox, made first, ends within less
                seen = seen + 1 if len(left_over(maker.pid)) >= 3 else 0
                if seen == 2:
                    break
                time.sleep(0.3)
            assert seen == 2
        maker.kill()
    for _ in range(600):
        if not left_over(maker.pid):
            break
        time.sleep(0.02)
    assert not left_over(maker.pid)


@pytest.fixture(scope="module")
def listener() -> Iterator[socket.socket]:
    """A server on loopback that no one may reach."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        yield server


def fill(code: str, canary: Path, port: int) -> str:
    """A program with this machine's places in it."""
    places = {"FILE": str(canary), "HOME": str(Path.home()), "REPOSITORY": str(Path(__file__).parents[3])}
    numbers = f"PORT, PARENT = {port}, {os.getpid()}\n"
    return numbers + "".join(f"{name} = {value!r}\n" for name, value in places.items()) + code


@pytest.mark.parametrize("name", [*HARM, *FORGED])
def test_it_fails_and_harms_nothing(
    name: str, tmp_path: Path, listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    canary = tmp_path / "canary"
    canary.write_text(SECRET)
    monkeypatch.setenv("MOORING_CANARY", SECRET)
    code = FORGED.get(name, "")
    if not code:
        code = HARM[name] + "\n" + (SQUARE if "def g(x)" not in HARM[name] else "f = g\n")
    before = children()
    (outcome,) = run_programs([Program(fill(code, canary, listener.getsockname()[1]), CHECKS, "f")], LIMITS, workers=1)
    assert outcome.status != "passed"
    assert outcome.status in ("failed", "timed out", "killed")
    if name == "stopping the checker":  # stopped from outside
        assert (outcome.status, outcome.why) == ("timed out", "more than 1 seconds")
    assert SECRET not in outcome.output + outcome.why
    assert len(outcome.output) <= 2000
    assert canary.read_text() == SECRET
    assert sorted(path.name for path in tmp_path.iterdir()) == ["canary"]
    assert not Path("/usr/x").exists()
    assert not Path("/x").exists()
    assert not Path("/tmp/ours").exists()
    with pytest.raises(BlockingIOError):
        listener.accept()
    for _ in range(100):  # the last of a namespace goes a moment after its first
        if children() == before and not left_over():
            break
        time.sleep(0.02)
    assert children() == before
    assert not left_over()


@pytest.mark.parametrize("name", ["reading a user's file", "reading the environment", "writing outside"])
def test_without_the_sandbox_it_would_work(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The programs do what they say: held by nothing, they pass or print the secret."""
    canary = tmp_path / "canary"
    canary.write_text(SECRET)
    monkeypatch.setenv("MOORING_CANARY", SECRET)
    code = fill(HARM[name] + "\n" + SQUARE + "assert f(2) == 4\n", canary, 1)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert SECRET in done.stdout or canary.read_text() == "spoilt"


def test_a_fork_bomb_stays_small() -> None:
    most, stop = 0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not stop.is_set():
            most = max(most, len(children()))
            time.sleep(0.01)

    before = len(children())
    watcher = threading.Thread(target=watch)
    watcher.start()
    code = HARM["fork bomb that goes on"]
    (outcome,) = run_programs([Program(code, CHECKS, "f")], LIMITS, workers=1)
    stop.set()
    watcher.join()
    assert outcome.status != "passed"
    assert before < most <= before + LIMITS.processes + 5  # bubblewrap, the first, the checks', the program's


def children() -> set[int]:
    """All that descends from this process."""
    parents: dict[int, int] = {}
    for path in Path("/proc").iterdir():
        if path.name.isdigit():
            try:
                parents[int(path.name)] = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
    found = {os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {os.getpid()}
