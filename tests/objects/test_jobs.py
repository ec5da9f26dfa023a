"""Jobs of worker threads: in order, few at a time, and none left running."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from coral.objects.jobs import in_order


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as pool:
        yield pool


def _close(results: Iterator[int]) -> None:
    assert next(results) == 1
    results.close()  # type: ignore[attr-defined]


def _fail(results: Iterator[int]) -> None:
    with pytest.raises(ZeroDivisionError):
        list(results)


@pytest.mark.parametrize(("first", "end"), [(1, _close), (0, _fail)], ids=["caller", "error"])
def test_none_runs_any_more(pool: ThreadPoolExecutor, first: int, end: Callable[[Iterator[int]], None]) -> None:
    """Who stops early, or is stopped by an error, waits for the job that has begun; what has not never does."""
    begun, go_on = threading.Event(), threading.Event()
    ended: list[int] = []

    def slow(number: int) -> int:
        begun.set()
        assert go_on.wait(60)
        ended.append(number)
        return number

    def started() -> Iterator[Future[int]]:
        yield pool.submit(lambda: 1 // first)
        yield pool.submit(slow, 2)
        yield pool.submit(slow, 3)
        yield pool.submit(slow, 4)
        assert begun.wait(60)
        threading.Timer(0.2, go_on.set).start()
        yield pool.submit(slow, 5)

    end(in_order(started(), 5))
    assert 2 in ended and 5 not in ended
    left = len(ended)
    pool.submit(int).result()
    assert len(ended) == left
