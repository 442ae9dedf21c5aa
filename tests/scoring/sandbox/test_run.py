"""The sandbox as its callers see it: order, limits, what checks can do, and the error if it cannot be made."""

import logging
import shutil
import struct
from pathlib import Path

import pytest

from mooring.errors import MissingExtraError
from mooring.events import Event
from mooring.scoring.sandbox import (
    UNSAFE_NOTICE,
    Limits,
    Program,
    SandboxError,
    bubblewrap,
    require,
    run_programs,
)

needs_bwrap = pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed")
LIMITS = Limits(seconds=2.0)


def one(code: str, checks: str, setup: str = "", unsafe: bool = False) -> tuple[str, str]:
    """Run one program; its status and why."""
    (outcome,) = run_programs([Program(code, checks, "f", setup)], LIMITS, workers=1, unsafe=unsafe)
    return outcome.status, outcome.why


def test_without_bubblewrap_it_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingExtraError) as raised:
        require()
    assert (raised.value.code, raised.value.hint) == ("extra.bubblewrap", "run: apt install bubblewrap")
    with pytest.raises(MissingExtraError):
        run_programs([Program("def f():\n    return 1", "assert f() == 1", "f")])


def test_a_sandbox_that_may_not_be_made_is_one_clear_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake = tmp_path / "bwrap"
    fake.write_text("#!/bin/sh\necho 'bwrap: setting up uid map: Permission denied' >&2\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(SandboxError) as raised:
        require()
    assert raised.value.code == "usage.no_sandbox"
    assert raised.value.message.endswith("setting up uid map: Permission denied")
    assert "\n" not in str(raised.value)


def test_without_the_sandbox_it_runs_within_limits_and_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("MOORING_CANARY", "x")
    codes = [
        "def f(x):\n    return x + 1",
        "def f(x):\n    return x",
        "import os\nos._exit(0)",
        "import time\ntime.sleep(60)",
        "x = bytearray(2**30)\ndef f(x):\n    return x + 1",
        "while True:\n    print('x' * 1000)",
        "import os\nopen('here', 'w').write(os.environ.get('MOORING_CANARY', ''))\ndef f(x):\n    return x + 1",
    ]
    limits = Limits(seconds=1.0, memory=256 * 2**20, output=10_000)
    with caplog.at_level(logging.WARNING):
        outcomes = run_programs([Program(code, "assert f(1) == 2", "f") for code in codes], limits, unsafe=True)
    assert [outcome.status for outcome in outcomes] == [
        "passed", "failed", "failed", "timed out", "failed", "killed", "passed",
    ]  # fmt: skip
    assert UNSAFE_NOTICE in caplog.text
    assert not Path("here").exists()


@needs_bwrap
def test_outcomes_come_in_order_and_progress_is_reported() -> None:
    codes = ["import time\ntime.sleep(0.3)\ndef f():\n    return 0", "def f():\n    return 1", "def f():\n    return 2"]
    events: list[Event] = []
    programs = [Program(code, f"print('number', {n})\nassert f() == {n}", "f") for n, code in enumerate(codes)]
    outcomes = run_programs(programs, LIMITS, workers=3, on_event=events.append)
    assert [outcome.status for outcome in outcomes] == ["passed"] * 3
    assert [outcome.output for outcome in outcomes] == ["number 0\n", "number 1\n", "number 2\n"]
    assert [(event.done, event.total) for event in events] == [(1, 3), (2, 3), (3, 3)]
    assert run_programs([]) == []


@needs_bwrap
def test_each_program_has_a_fresh_folder() -> None:
    code = "import os\ndef f():\n    found = os.listdir('.')\n    open('left', 'w').close()\n    return found"
    outcomes = run_programs([Program(code, "assert f() == []", "f")] * 2, LIMITS, workers=1)
    assert [outcome.status for outcome in outcomes] == ["passed", "passed"]


@needs_bwrap
def test_what_passes_between_program_and_checks() -> None:
    code = (
        "calls = 0\ndef f(*arguments, **named):\n    global calls\n    calls += 1\n"
        "    if named.get('fail'):\n        raise named_error[named['fail']]('because')\n"
        "    return calls, arguments, named\n"
        "named_error = {'value': ValueError, 'own': type('Own', (Exception,), {})}\n"
    )
    checks = (
        "assert f([1], {2: 3}) == (1, ([1], {2: 3}), {})\n"
        "assert candidate(x=(1, {2})) == (2, (), {'x': (1, {2})})\n"
        "try:\n    f(fail='value')\n"
        "except ValueError as error:\n    assert str(error) == 'because'\nelse:\n    assert 0\n"
        "try:\n    f(fail='own')\n"
        "except RuntimeError as error:\n    assert str(error) == 'Own: because'\nelse:\n    assert 0\n"
        "assert f()[0] == 5\nassert twice(2) == 4\n"
    )
    assert one(code, checks, setup="def twice(x):\n    return 2 * x\ndef f():\n    pass\n") == ("passed", "")


@needs_bwrap
def test_the_same_program_gets_the_same_verdict() -> None:
    code = "import random\ndef f():\n    return random.random(), list({'a', 'b', 'c', 'd'}), hash('x')"
    program = Program(code, "raise ValueError(repr((f(), __import__('random').random())))", "f")
    outcomes = run_programs([program] * 3, LIMITS)
    assert len({outcome.why for outcome in outcomes}) == 1
    assert outcomes[0].why.startswith("ValueError: ((0.8444218515250481, ")  # Random(0)'s first number, on both sides
    assert outcomes[0].why.endswith("), 0.8444218515250481)")


@needs_bwrap
def test_checks_that_never_end_are_stopped() -> None:
    program = Program("def f():\n    return 1", "while f():\n    pass\n", "f")
    (outcome,) = run_programs([program], Limits(seconds=0.5))
    assert (outcome.status, outcome.why) == ("timed out", "more than 0.5 seconds")


@needs_bwrap
@pytest.mark.parametrize("kind", ["as we are", "in a user namespace"])
def test_a_program_is_no_one(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if kind == "in a user namespace":  # root takes another way by default
        monkeypatch.setattr(bubblewrap, "own_user", lambda: 0)
    code = (
        "import os\ndef f():\n"
        "    lines = dict(line.split(':\\t') for line in open('/proc/self/status') if ':\\t' in line)\n"
        "    return os.getuid(), os.getgid(), lines['CapEff'].strip(), lines['NoNewPrivs'].strip()\n"
        "def g():\n    return sorted(os.listdir('/')), os.listdir('/etc'), sorted(os.listdir('/dev')), \\\n"
        "        sorted(os.environ)\n"
    )
    checks = (
        "uid, gid, capabilities, locked = f()\nassert uid >= 65534 and gid >= 65534\n"
        "assert int(capabilities, 16) == 0 and locked == '1'\n"
    )
    assert one(code, checks) == ("passed", "")
    seen = (
        "top, etc, dev, names = f()\nassert not {'home', 'work', 'var', 'opt', 'sys', 'mnt', 'run'} & set(top), top\n"
        "assert etc == ['ld.so.cache'] and dev == ['null', 'urandom', 'zero'], (etc, dev)\n"
        "assert names == ['HOME', 'LANG', 'OMP_NUM_THREADS', 'PATH', 'PWD', 'PYTHONHASHSEED'], names\n"
    )
    assert one(code + "f = g\n", seen) == ("passed", "")
    for path in ("/proc/1/fd/1", "/proc/2/fd/1", "/proc/1/fd/0", "/proc/2/mem"):
        forged = f"import os\nos.open({path!r}, os.O_RDWR)\ndef f():\n    return 1"
        assert one(forged, "assert f() == 1")[1].startswith("PermissionError"), path


def run_filter(code: bytes, architecture: int, number: int, first: int = 0) -> int:
    """What the kernel would answer: a reading of the filter's five instructions."""
    instructions = list(struct.iter_unpack("=HBBI", code))
    data = {0: number, 4: architecture, 16: first}
    value, at = 0, 0
    while True:
        kind, yes, no, operand = instructions[at]
        at += 1
        if kind == 0x20:
            value = data[operand]
        elif kind == 0x06:
            return operand
        else:
            at += yes if {0x15: value == operand, 0x35: value >= operand, 0x45: bool(value & operand)}[kind] else no


@pytest.mark.parametrize(
    ("machine", "architecture", "numbers"),
    [
        (
            "x86_64",
            0xC000003E,
            {"read": 0, "ptrace": 101, "shmget": 29, "mq_open": 240}
            | {"clone": 56, "socket": 41, "kill": 62, "clone3": 435},
        ),
        (
            "aarch64",
            0xC00000B7,
            {"read": 63, "ptrace": 117, "shmget": 194, "mq_open": 180}
            | {"clone": 220, "socket": 198, "kill": 129, "clone3": 435},
        ),
    ],
)
def test_the_filter_refuses_what_it_should(machine: str, architecture: int, numbers: dict[str, int]) -> None:
    code = bubblewrap.seccomp_filter(machine)
    assert code is not None
    allow, kill, refuse = 0x7FFF0000, 0x80000000, 0x00050001

    def answer(name: str, first: int = 0) -> int:
        return run_filter(code, architecture, numbers[name], first)

    assert answer("read") == allow
    assert [answer(name) for name in ("ptrace", "shmget", "mq_open")] == [refuse] * 3
    assert answer("clone", 0x01200011) == allow
    assert answer("clone", 0x10000011) == refuse
    assert answer("clone3") == 0x00050000 | 38
    assert [answer("socket", family) for family in (1, 2, 10, 16, 40)] == [allow, allow, allow, refuse, refuse]
    assert [answer("kill", pid) for pid in (1, 2, 0xFFFFFFFF)] == [kill, allow, allow]
    assert run_filter(code, 0x40000003, 0) == kill  # calls of another architecture


def test_an_unknown_machine_has_no_filter() -> None:
    assert bubblewrap.seccomp_filter("riscv64") is None
