"""Merge in several processes on this machine: threads would wait for Python's lock between their passes over slices."""

import ctypes
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from typing import Any

import torch

from mooring.errors import ModelError
from mooring.merging.engine import Done, Engine, Sink
from mooring.merging.slices import default_threads

LEAST = 2**28
"""Bytes of an output from which on processes are worth starting."""
_PARENT_DEATH = 1
"""prctl(2): the signal that a process gets when its parent has died."""


def processes(engine: Engine, threads: int | None) -> int:
    """How many processes share a merge: as many as it may have threads, or cores; 1 for this process alone.

    Processes are copies of this one, which is only safe while it has no other threads. Methods that hold whole tensors
    stay in one, so that memory stays bounded.
    """
    alone = threading.active_count() == 1 and sys.platform == "linux"
    if engine.whole_tensors or engine.nbytes < LEAST or not alone:
        return 1
    return min(threads or len(os.sched_getaffinity(0)), len(engine.windows()))


def workers(engine: Engine, threads: int | None) -> int:
    """How many processes or threads are at work."""
    shared = processes(engine, threads)
    return shared if shared > 1 else threads or default_threads()


def in_processes(engine: Engine, writers: Sequence[Sink], count: int) -> Iterator[tuple[int, Done]]:
    """Fill the outputs of a merge in processes, which take one window after the other, the largest first.

    Yields the number of each window with what was made of it, in any order.

    Raises:
        UserError: As `Engine.run`.
        ModelError: A process was killed (`model.merge_killed`).
    """
    context: Any = multiprocessing.get_context("fork")
    order = engine.order()
    taken = context.Value("q", 0)
    open_ends: dict[Connection, Any] = {}
    try:
        for _ in range(count):
            ours, theirs = context.Pipe(duplex=False)
            process = context.Process(target=_work, args=(engine, writers, order, taken, theirs), daemon=True)
            process.start()
            theirs.close()
            open_ends[ours] = process
        failed: BaseException | None = None
        left = set(order)
        while open_ends:
            for end in multiprocessing.connection.wait(list(open_ends)):
                assert isinstance(end, Connection)
                try:
                    found = end.recv()
                except EOFError:
                    open_ends.pop(end).join()
                    continue
                if isinstance(found, BaseException):
                    failed = failed or found
                    taken.value = len(order)  # starts no further window
                else:
                    left.discard(found[0])
                    yield found
        if failed:
            raise failed
        if left:
            what, hint = "a process of the merge was killed", "it may lack memory; `--threads 1` merges in one process"
            raise ModelError(what, hint, code="model.merge_killed")
    finally:
        for process in open_ends.values():
            process.terminate()
            process.join()


def _work(engine: Engine, writers: Sequence[Sink], order: Sequence[int], taken: Any, end: Connection) -> None:
    """Fill windows until none is left. The process ends when its parent does."""
    ctypes.CDLL(None).prctl(_PARENT_DEATH, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the parent, which ends this process
    torch.set_num_threads(1)
    engine.use_threads(1)
    windows = engine.windows()
    while True:
        with taken.get_lock():
            at, taken.value = taken.value, taken.value + 1
        if at >= len(order):
            return
        try:
            end.send((order[at], engine.do(windows[order[at]], writers)))
        except BaseException as error:
            error.add_note(traceback.format_exc())
            end.send(error)
            return
