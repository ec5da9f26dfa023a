"""Threads that do jobs, in a process that may have no more of them, that is forked, or that is at its end."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from coral import forks

if TYPE_CHECKING:
    from concurrent.futures import Future

P = ParamSpec("P")
T = TypeVar("T")
_BEGINS_SECONDS = 5.0
_RETRY_SECONDS = 60.0


class _NeverBeganError(RuntimeError):
    """A thread was made, and died, or has not begun for long."""


class _Begins(threading.Event):
    """What a thread that is started is waited for, with an end to it."""

    def wait(self, timeout: float | None = None) -> bool:
        if not super().wait(_BEGINS_SECONDS if timeout is None else timeout):
            raise _NeverBeganError("can't start new thread: it did not begin")
        return True


def start(thread: threading.Thread) -> None:
    """Start a thread. Raises RuntimeError where none can be had.

    One that died before it began, for lack of memory, the standard library would wait for for ever.
    """
    thread._started = _Begins()  # type: ignore[attr-defined]
    thread.start()


class Pool:
    """Threads that do jobs, all of them started when they are first wanted; they end with the pool.

    Unlike the standard library's it holds no lock in which a signal handler could find it, does a job in place where no
    thread can be had, and takes jobs up to the very end of the interpreter.

    Args:
        most: how many threads.
        name: of each of them.
        begin: what each does first.
    """

    def __init__(self, most: int, name: str, *, begin: Callable[[], None] | None = None) -> None:
        from concurrent.futures import Future  # not needed by those who only look, and no more to be had at the end

        self._most, self._name, self._begin, self._promise = most, name, begin, Future[Any]
        self.after_fork()
        forks.tell(self)

    def after_fork(self) -> None:
        """In a child: there are no threads yet."""
        self._started, self._retry_at = 0, 0.0
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()

    def submit(self, job: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Have a thread do a job."""
        future: Future[T] = self._promise()
        call = partial(fulfil, future, partial(job, *args, **kwargs))
        if self._is_there():
            self._jobs.put(call)
        else:
            call()
        return future

    def _is_there(self) -> bool:
        if sys.is_finalizing():
            return False
        if self._started < self._most and time.monotonic() >= self._retry_at:
            try:
                start(threading.Thread(target=_work, args=(self._jobs, self._begin), name=self._name, daemon=True))
                self._started += 1
            except _NeverBeganError:
                self._retry_at = time.monotonic() + _RETRY_SECONDS  # to find that out again takes long
            except RuntimeError:  # the process may have no more threads
                pass
        return self._started > 0

    def close(self) -> None:
        """Let the threads end once they have done what they were given."""
        for _ in range(self._started):
            self._jobs.put(None)
        self._started = self._most = 0

    def __del__(self) -> None:
        self.close()


def _work(jobs: SimpleQueue[Callable[[], None] | None], begin: Callable[[], None] | None) -> None:
    if begin is not None:
        begin()
    while (job := jobs.get()) is not None:
        job()
        del job  # and all that it holds


def fulfil(future: Future[T], job: Callable[[], T]) -> None:
    """Do a job, unless it was called off; its result or its error is the future's."""
    if not future.set_running_or_notify_cancel():
        return
    try:
        result = job()
    except BaseException as error:
        future.set_exception(error)
    else:
        future.set_result(result)
