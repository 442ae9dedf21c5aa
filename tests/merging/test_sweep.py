"""Slices cover, results keep their order, and a failure stops the rest."""

import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mooring.merging.slices import Slice, cut, sweep


@given(start=st.integers(0, 20), count=st.integers(0, 300), size=st.integers(0, 700), cell=st.integers(1, 50))
def test_slices_cover(start: int, count: int, size: int, cell: int) -> None:
    pieces = list(cut("x", start, start + count, size, cell))
    assert [n for p in pieces for n in range(p.start, p.stop)] == list(range(start, start + count))
    assert all((p.start - start) % cell == 0 for p in pieces)
    assert all(p.stop - p.start <= max(cell, size) for p in pieces)


@pytest.mark.parametrize("threads", [1, 3])
def test_order(threads: int) -> None:
    def work(piece: Slice) -> int:
        time.sleep(0.002 * (piece.start % 3))
        return piece.start

    pieces = [Slice("x", n, n + 1) for n in range(40)]
    assert [(p.start, r) for p, r in sweep(pieces, work, threads)] == [(n, n) for n in range(40)]


def test_failure_stops_the_rest() -> None:
    started: list[int] = []

    def work(piece: Slice) -> None:
        started.append(piece.start)
        if piece.start == 3:
            raise ValueError("three")

    with pytest.raises(ValueError, match="three"):
        list(sweep((Slice("x", n, n + 1) for n in range(10_000)), work, 2))
    assert len(started) < 100
    assert not [t for t in threading.enumerate() if t.name.startswith("ThreadPool")]
