"""Work that no interrupt reaches, and jobs that are done once."""

from __future__ import annotations

import contextvars
import itertools
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from coral import threads
from coral.errors import ConflictError
from coral.testing.interrupts import Steps
from coral.threads import Once, undisturbed


class Interrupt(Exception):
    """What the handler of these tests raises."""


@contextmanager
def interrupting(*seconds: float) -> Iterator[None]:
    """Have a signal handler raise in the main thread after each of these pauses."""

    def raise_it(*_: object) -> None:
        raise Interrupt

    def send() -> None:
        for pause in seconds:
            time.sleep(pause)
            os.kill(os.getpid(), signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, raise_it)
    sender = threading.Thread(target=send)
    sender.start()
    try:
        yield
    finally:
        sender.join()
        signal.signal(signal.SIGUSR1, before)


def test_the_job_is_done_by_another_thread_for_this_one() -> None:
    """It has the context of who asked, and its result and its error are the caller's."""
    name = contextvars.ContextVar("name", default="")
    name.set("mine")
    main = threading.current_thread()
    done = undisturbed(lambda: (threading.current_thread() is main, name.get(), threads.caller() is main))
    assert done == (False, "mine", True)
    with pytest.raises(ZeroDivisionError):
        undisturbed(lambda: 1 / 0)


def test_an_interrupt_waits_for_the_job() -> None:
    """The job is never torn: it has ended when the interrupt goes on."""
    steps: list[int] = []

    def job() -> None:
        for step in range(30):
            steps.append(step)
            time.sleep(0.01)

    with interrupting(0.1), pytest.raises(Interrupt):
        undisturbed(job)
    assert steps == list(range(30))


def test_a_job_stops_where_it_can() -> None:
    """An interrupted caller waits no longer than to the next place where nothing is half done."""
    begun = time.monotonic()

    def job() -> None:
        while True:
            time.sleep(0.01)
            threads.stop_if_unwanted()

    with interrupting(0.1), pytest.raises(Interrupt):
        undisturbed(job)
    assert time.monotonic() - begun < 20


def test_what_has_taken_effect_is_not_stopped() -> None:
    """After `finish` a job goes on to its end, wanted or not."""
    ended: list[bool] = []

    def job() -> None:
        threads.finish()
        time.sleep(0.3)
        threads.stop_if_unwanted()
        ended.append(True)

    with interrupting(0.1), pytest.raises(Interrupt):
        undisturbed(job)
    assert ended == [True]


def test_a_second_interrupt_does_not_wait() -> None:
    """Who presses Ctrl-C twice gets out, and the job goes on alone."""
    hold, ended = threading.Event(), threading.Event()

    def job() -> None:
        assert hold.wait(60)
        ended.set()

    with interrupting(0.1, 0.2), pytest.raises(Interrupt):
        undisturbed(job)
    assert not ended.is_set()
    hold.set()
    assert ended.wait(60)
    assert undisturbed(lambda: 5) == 5


def test_a_lock_is_waited_for_no_longer_than_wanted() -> None:
    """Who waits for a lock that another thread keeps can be interrupted."""
    lock = threading.Lock()
    lock.acquire()
    with interrupting(0.1), pytest.raises(Interrupt):
        undisturbed(lambda: threads.take(lock))
    lock.release()
    threads.take(lock)


@pytest.mark.parametrize("place", ["another thread", "a job"])
def test_in_place_where_there_is_no_need(place: str) -> None:
    """Other threads are never interrupted, and a job's own calls are part of it."""

    def same() -> bool:
        here = threading.get_ident()
        return undisturbed(threading.get_ident) == here

    if place == "a job":
        assert undisturbed(same)
    else:
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(same).result()


def test_a_handler_in_the_middle_is_refused() -> None:
    """Of one owner there is one job at a time; a handler on top of it must not wait for itself."""
    owner, refused = object(), list[str]()

    def handler(*_: object) -> None:
        try:
            undisturbed(lambda: None, owner=owner)
        except ConflictError as error:
            refused.append(error.message)
        assert undisturbed(lambda: 7, owner=object()) == 7

    def job() -> None:
        os.kill(os.getpid(), signal.SIGUSR1)
        time.sleep(0.2)

    before = signal.signal(signal.SIGUSR1, handler)
    try:
        undisturbed(job, owner=owner)
        undisturbed(lambda: None, owner=owner)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert len(refused) == 1 and "in the middle" in refused[0]


def test_every_step_of_the_caller_may_be_interrupted() -> None:
    """At whichever line: the job was done whole or not begun, and the next one is done."""
    bad: list[tuple[str, list[str]]] = []
    seen: list[str] = []

    def job() -> None:
        seen.append("begun")
        time.sleep(0.001)
        seen.append("over")

    for place in itertools.count(1):
        seen.clear()
        steps = Steps(place)
        hit = steps.run(lambda: undisturbed(job))
        if seen not in ([], ["begun", "over"]) or undisturbed(lambda: 3) != 3:
            bad.append((steps.place, list(seen)))
        if not hit:
            break
    assert not bad and place > 15


_NO_THREADS = """
    import resource, sys, threading
    def no_threads():
        size = int(open("/proc/self/statm").read().split()[0]) * 4096
        resource.setrlimit(resource.RLIMIT_AS, (size + (1 << 20), resource.RLIM_INFINITY))
        try:
            threading.Thread(target=print).start()
        except RuntimeError:
            return
        raise SystemExit("threads can be had all the same")
    def again():
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
"""


def without_threads(script: str, *arguments: object) -> str:
    """What a script prints that may call `no_threads` and `again`."""
    code = textwrap.dedent(_NO_THREADS) + textwrap.dedent(script)
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=Path(__file__).parents[1],
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="NOT TESTED: the size of a process is read in /proc")
def test_where_no_thread_can_be_had_the_caller_does_it() -> None:
    """Once: also where an executor keeps what it could not begin, and begins it when it can."""
    out = without_threads(
        """
        import time
        from concurrent.futures import ThreadPoolExecutor
        from coral.threads import Once, undisturbed
        done, pool = [], ThreadPoolExecutor(1)
        no_threads()
        print(undisturbed(threading.get_ident) == threading.get_ident())
        job = Once(lambda: done.append(1))
        try:
            pool.submit(job)
        except RuntimeError:
            job.instead()
        again()
        pool.submit(done.append, 2).result()
        print(done, undisturbed(threading.get_ident) == threading.get_ident())
        """
    )
    assert out.splitlines() == ["True", "[1, 2] False"]


def test_who_comes_second_waits_for_the_first() -> None:
    """A job that is told twice is done once, and both have its result, or its error."""
    hold, calls = threading.Event(), list[int]()

    def slow(number: int) -> int:
        calls.append(number)
        assert hold.wait(60)
        return number

    once = Once(slow, 4)
    with ThreadPoolExecutor(2) as pool:
        both = [pool.submit(once), pool.submit(once)]
        hold.set()
        assert [one.result() for one in both] == [4, 4] and calls == [4]
    failing = Once(int, "x")
    for _ in range(2):
        with pytest.raises(ValueError, match="invalid literal"):
            failing()
