"""Work that no interrupt reaches, and jobs that are done once."""

from __future__ import annotations

import contextvars
import itertools
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from coral import threads
from coral.errors import ConflictError
from coral.pool import Pool
from coral.testing.interrupts import Steps
from coral.threads import undisturbed
from tests.processes import without_threads


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


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="NOT TESTED: the size of a process is read in /proc")
def test_where_no_thread_can_be_had_the_caller_does_it() -> None:
    """Once, and at once; threads are started when they can be."""
    out = without_threads(
        """
        from coral.pool import Pool
        from coral.threads import undisturbed
        done, pool = [], Pool(2, "x")
        def here():
            return threading.get_ident() == threading.main_thread().ident
        no_threads()
        print(undisturbed(here), pool.submit(here).result(), pool.submit(done.append, 1).result())
        again()
        print(undisturbed(here), pool.submit(here).result(), done)
        """
    )
    assert out.splitlines() == ["True True None", "False False [1]"]


def test_in_place_all_of_a_job_is_done_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when a thread could be had for its inner calls: it would wait for what the outer one holds."""
    lock = threading.Lock()

    def inner() -> bool:
        return threading.get_ident() == threading.main_thread().ident

    def outer() -> bool:
        with lock:
            monkeypatch.undo()
            return undisturbed(inner)

    monkeypatch.setattr(threads, "_hand_over", lambda work: False)
    assert undisturbed(outer)


def test_in_place_an_interrupt_goes_through(monkeypatch: pytest.MonkeyPatch) -> None:
    """At every line: nobody waits for a thread that there is not."""
    monkeypatch.setattr(threads, "_hand_over", lambda work: False)
    for place in itertools.count(1):
        if not Steps(place).run(lambda: undisturbed(lambda: time.sleep(0))):
            break
    assert place > 10 and undisturbed(lambda: 3) == 3


def test_a_pool_does_jobs_in_threads_that_end_with_it() -> None:
    """Results and errors are the future's, a job that was called off is not begun, and no thread is left."""
    pool, hold, seen = Pool(1, "of a test"), threading.Event(), list[int]()
    first = pool.submit(hold.wait, 60)
    called_off, failing = pool.submit(seen.append, 1), pool.submit(int, "x")
    assert called_off.cancel()
    hold.set()
    assert first.result() and isinstance(failing.exception(60), ValueError) and not seen
    pool.close()
    assert pool.submit(threading.get_ident).result() == threading.get_ident()
    del pool
    until = time.monotonic() + 20
    while any(thread.name == "of a test" for thread in threading.enumerate()) and time.monotonic() < until:
        time.sleep(0.01)
    assert not any(thread.name == "of a test" for thread in threading.enumerate())


def test_what_is_left_to_the_end_of_the_interpreter_ends_too() -> None:
    """Threads are there then, and run no more: whoever is called there does all in place."""
    script = """
        import os
        from coral.pool import Pool
        from coral.threads import undisturbed
        pool = Pool(1, "x")
        print(undisturbed(lambda: 1), pool.submit(int, 2).result(), flush=True)
        class Late:
            def __del__(self, os=os, undisturbed=undisturbed, pool=pool):
                os.write(1, b"%d %d\\n" % (undisturbed(lambda: 3), pool.submit(int, 4).result()))
        late = Late()
        late.itself = late
        """
    assert without_threads(script).splitlines() == ["1 2", "3 4"]
