"""A model server in a process of its own, on one port of loopback, started and killed as often as a test wants."""

import os
import re
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path

PATIENCE = 600
"""Seconds until a server has to answer."""


class ServerProcess:
    """A server.

    Args:
        model: The folder of the model that it serves.
        command: What starts it; `{port}` in an argument is replaced by its port.
        log: File that its output is appended to.
        env: Environment variables besides this process's.
    """

    def __init__(self, model: Path, command: Sequence[str], log: Path, env: Mapping[str, str]) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.command = [part.format(port=self.port) for part in command]
        self.model, self.log, self.env = model, log, env
        self.url = f"http://127.0.0.1:{self.port}/v1"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, without waiting."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command, stdout=log, stderr=log, env=os.environ | self.env, start_new_session=True
            )

    def wait(self) -> None:
        """Wait until it answers."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            assert self.process is not None
            assert self.process.poll() is None, self.log.read_text()
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=1):
                    return
            except OSError:
                time.sleep(0.2)
        raise AssertionError(self.log.read_text())

    def kill(self) -> None:
        """Kill it with all of its processes, as the machine would when it runs out of memory."""
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None

    def answered(self) -> int:
        """The number of requests for a response that it has answered since the log began."""
        return len(
            re.findall(r'"POST /v1/(?:chat/completions|completions|responses) HTTP/1\.1" 200', self.log.read_text())
        )
