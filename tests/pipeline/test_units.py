"""The queue of units: what is pulled, what is lost, what is done twice, and by whom."""

import random

import pytest

from mooring.pipeline.cluster.units import Become, Unit, UnitQueue, shards


def unit(key: str, kind: str = "models", group: str = "") -> Unit:
    """A unit with one prompt, named as the unit is."""
    return Unit(key=key, kind=kind, group=group, prompts=(key,))


def with_workers(*names: str, kind: str = "models") -> UnitQueue:
    """A queue with workers that took a second to start."""
    queue = UnitQueue()
    for name in names:
        queue.starting(name, kind, 0.0)
        queue.ready(name, 1.0)
    return queue


def take(queue: UnitQueue, worker: str, now: float = 1.0) -> str:
    """The key of the unit that a worker gets."""
    found = queue.take(worker, now)
    assert isinstance(found, Unit)
    return found.key


def test_units_are_cut_by_number_alone() -> None:
    assert [list(shard) for shard in shards(7, 3)] == [[0, 1, 2], [3, 4, 5], [6]]
    assert not shards(0, 3)


def test_idle_workers_pull_the_next_unit_whoever_they_are() -> None:
    queue = with_workers("a", "b")
    queue.add(map(unit, "123"))
    assert (take(queue, "a"), take(queue, "b")) == ("1", "2")
    queue.finish("b", 2.0)
    assert take(queue, "b") == "3"
    queue.finish("b", 3.0)
    assert queue.take("b", 3.0) is None


def test_a_worker_stays_at_its_group_and_then_goes_where_fewest_are() -> None:
    queue = with_workers("a", "b", "c")
    queue.add([unit("x1", group="x"), unit("x2", group="x"), unit("y1", group="y"), unit("z1", group="z")])
    assert [take(queue, name) for name in "abc"] == ["x1", "y1", "z1"]
    queue.finish("a", 2.0)
    assert take(queue, "a") == "x2"


def test_a_unit_counts_as_waiting_or_done_once_however_often_it_is_added() -> None:
    queue = with_workers("a")
    queue.add([unit("1"), unit("1")])
    take(queue, "a")
    queue.add([unit("1")])
    assert not queue.waiting
    assert queue.unfinished == 1


def test_the_unit_of_a_worker_that_died_is_done_next_by_another() -> None:
    queue = with_workers("a", "b")
    queue.add(map(unit, "123"))
    assert take(queue, "a") == "1"
    assert queue.leave("a") is None
    assert take(queue, "b") == "1"


def test_a_unit_that_kills_three_workers_is_given_up_and_the_rest_goes_on() -> None:
    queue = with_workers("a", "b", "c", "d")
    queue.add(map(unit, "12"))
    for name in "ab":
        assert take(queue, name) == "1"
        assert queue.leave(name) is None
    assert take(queue, "c") == "1"
    given_up = queue.leave("c")
    assert given_up is not None
    assert given_up.prompts == ("1",)
    assert take(queue, "d") == "2"
    queue.finish("d", 2.0)
    assert queue.unfinished == 0


def test_a_worker_that_is_sent_away_does_not_count_against_its_unit() -> None:
    queue = with_workers("a", "b", "c", "d")
    queue.add([unit("1")])
    for name in "abc":
        take(queue, name)
        assert queue.leave(name, died=False) is None
    assert take(queue, "d") == "1"


def slow_unit(queue: UnitQueue) -> None:
    """Worker `a` has unit `slow` since second 1; five others took a second each."""
    queue.add(map(unit, ["slow", *"12345"]))
    assert take(queue, "a") == "slow"
    for second in range(1, 6):
        take(queue, "b", second)
        queue.finish("b", second + 1.0)


def test_a_slow_unit_is_started_a_second_time_and_its_first_result_counts() -> None:
    queue = with_workers("a", "b", "c")
    slow_unit(queue)
    assert queue.take("b", 2.5) is None  # not yet slow
    assert take(queue, "b", 6.0) == "slow"
    assert queue.take("c", 6.0) is None  # not a third time
    first = queue.finish("b", 7.0)
    assert first is not None
    assert first.key == "slow"
    assert queue.finish("a", 8.0) is None
    assert queue.unfinished == 0


def test_a_unit_that_another_worker_has_too_does_not_wait_again_when_one_dies() -> None:
    queue = with_workers("a", "b", "c")
    slow_unit(queue)
    take(queue, "b", 6.0)
    queue.leave("a")
    assert not queue.waiting
    assert queue.unfinished == 1
    queue.leave("b")
    assert queue.waiting == {"models": 1}


def test_the_last_worker_of_its_kind_finishes_before_it_judges() -> None:
    queue = with_workers("a")
    queue.add([unit("1"), *(unit(f"j{n}", "judge") for n in range(100))])
    assert take(queue, "a") == "1"
    queue.finish("a", 2.0)
    assert queue.take("a", 2.0) == Become("judge")


def test_one_of_several_workers_judges_while_later_units_are_answered() -> None:
    queue = with_workers("a", "b", "c")
    queue.add(unit(f"{n}") for n in range(100))
    queue.add(unit(f"j{n}", "judge") for n in range(10))
    assert queue.take("a", 1.0) == Become("judge")
    queue.leave("a", died=False)
    queue.starting("d", "judge", 1.0)
    assert (take(queue, "b"), take(queue, "c")) == ("0", "1")


def test_no_worker_changes_for_less_than_two_starts() -> None:
    queue = with_workers("a", "b")
    queue.add(unit(f"{n}") for n in range(100))
    queue.add([unit("j1", "judge"), unit("j2", "judge")])  # as long as two starts
    assert take(queue, "a") == "0"
    queue.add([unit("j3", "judge")])
    assert queue.take("b", 1.0) == Become("judge")


def test_cancelled_units_are_not_started_and_their_results_not_kept() -> None:
    queue = with_workers("a", "b")
    queue.add(map(unit, "123"))
    take(queue, "a")
    queue.cancel(["1", "2"])
    assert queue.finish("a", 2.0) is None
    assert take(queue, "b") == "3"


@pytest.mark.parametrize("seed", range(20))
def test_every_unit_is_kept_once_whatever_dies(seed: int) -> None:
    """Workers that start, finish, die and are sent away in any order: no unit is lost, none kept twice."""
    draw, queue, kept, given_up = random.Random(seed), UnitQueue(), [], []
    keys = [f"{kind}{n}" for kind in ("models", "judge") for n in range(40)]
    queue.add(unit(key, key.rstrip("0123456789"), str(number % 3)) for number, key in enumerate(keys))
    idle, busy, now, born = [], [], 0.0, 0
    becomes: str | None = None
    while queue.unfinished:
        now += draw.random()
        if len(idle) + len(busy) < 4:
            name, born = f"worker-{born}", born + 1
            queue.starting(name, becomes or queue.wanted() or "models", now)
            queue.ready(name, now + 0.1)
            idle.append(name)
            becomes = None
        if idle and draw.random() < 0.6:
            name = idle.pop(draw.randrange(len(idle)))
            found = queue.take(name, now)
            if isinstance(found, Unit):
                busy.append(name)
            elif isinstance(found, Become):
                queue.leave(name, died=False)
                becomes = found.kind
            else:
                idle.append(name)
        elif busy:
            name = busy.pop(draw.randrange(len(busy)))
            if draw.random() < 0.2:
                given_up += [each.key for each in [queue.leave(name)] if each]
            else:
                kept += [each.key for each in [queue.finish(name, now)] if each]
                idle.append(name)
    assert sorted(kept + given_up) == sorted(keys)
