"""Work that no interrupt reaches: done by a thread of its own, while the thread that asked for it waits.

Python raises KeyboardInterrupt, and whatever else a signal handler raises, in the main thread alone, between any two
steps of it. Locks, flags and files that are halfway there would be left so. What changes a repository is therefore done
by another thread; the main one only waits. When it is interrupted it asks that thread to stop where nothing is half
done, waits until it has, and only then lets the interrupt go on; a second one does not wait.
"""

from __future__ import annotations

import contextlib
import contextvars
import sys
import threading
import warnings
from collections.abc import Callable
from functools import wraps
from queue import SimpleQueue
from types import FrameType
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar

from coral import forks
from coral.errors import ConflictError
from coral.pool import start

P = ParamSpec("P")
S = TypeVar("S")
T = TypeVar("T")
_POLL_SECONDS = 0.05
_OURS = ("coral.", "contextlib", "functools")
# What may be in the middle of something when it is interrupted, or calls back; others only pass calls on.
_LOWER = tuple(
    f"coral.{name}"
    for name in (
        *("threads", "pool", "storage", "objects", "history", "containers", "tensors", "verbs", "repository"),
        "experiments",
    )
)

_CALLS_HANDLERS = "coral.verbs.signals"  # a program's own, on top of anything or nothing


class Stopped(BaseException):
    """Whoever waits for this work was interrupted, and no longer wants it."""


class _Work(Generic[T]):
    """A job on its way to another thread and back."""

    def __init__(self, job: Callable[[], T]) -> None:
        context = contextvars.copy_context()
        self._left: list[Callable[[], T]] = [lambda: context.run(job)]
        self.caller = caller()
        self._bell = threading.Lock()
        self._bell.acquire()
        self._is_over = False
        self._result: list[T] = []
        self._error: BaseException | None = None
        self.warnings: list[tuple[str, type[Warning]]] = []
        self.may_stop = True
        self.is_unwanted = False

    def do(self) -> None:
        """Do it, in this thread, unless it was called off; :meth:`tell` must follow."""
        try:
            job = self._left.pop()
        except IndexError:
            return
        _this.work, _this.caller = self, self.caller
        try:
            self._result.append(job())
        except BaseException as error:
            self._error = error
        finally:
            _this.work = _this.caller = None

    def tell(self) -> None:
        """It is over."""
        self._is_over = True
        self._bell.release()

    def wait(self) -> T:
        """What came of it, once it is over."""
        self._await()
        error, self._error = self._error, None
        with contextlib.suppress(Warning) if error is not None else contextlib.nullcontext():
            for text, category in self.warnings:
                warn(text, category)
        if error is None:
            return self._result.pop()
        try:
            raise error
        finally:
            del error  # it holds this frame

    def call_off(self) -> None:
        """Have it not begin; wait until it has ended, as soon as it can, where it did."""
        self.is_unwanted = True
        try:
            self._left.pop()
        except IndexError:
            self._await()
        self._error = None  # its frames hold this
        self._result.clear()

    def _await(self) -> None:
        # Whoever is interrupted after the bell, and comes again, hears no second one.
        while not self._is_over:
            self._bell.acquire()


class _Helper:
    """A thread that does one piece of work after the other."""

    def __init__(self) -> None:
        self.inbox: SimpleQueue[_Work[Any]] = SimpleQueue()
        start(threading.Thread(target=self._serve, name="coral-undisturbed", daemon=True))

    def _serve(self) -> None:
        while True:
            work = self.inbox.get()
            work.do()
            _idle.append(self)  # first, so that the next one who asks finds it
            work.tell()
            del work  # and all that it holds


class _This(threading.local):
    work: _Work[Any] | None = None
    caller: threading.Thread | None = None


class _Forked:
    def after_fork(self) -> None:
        _idle.clear()


_this = _This()
_idle: list[_Helper] = []
_forked = _Forked()
forks.tell(_forked)


def undisturbed(job: Callable[[], T], *, owner: object = None) -> T:
    """What a job returns or raises, done where no signal handler interrupts it.

    In place, where there is no need: in another thread than the main one, or within such a job. And so in a callback or
    a handler on top of coral's own code, which may hold what the job wants; and where no thread can be had.

    Args:
        owner: has one job at a time.

    Raises:
        ConflictError: this is a handler, or a callback, in the middle of a job of the same owner.
    """
    if threading.get_ident() != threading.main_thread().ident or _is_nested(sys._getframe(1), owner):
        return job()
    work = _Work(job)
    try:
        if _hand_over(work):
            return work.wait()
    except BaseException:
        work.call_off()
        raise
    return job()


def uninterrupted(method: Callable[Concatenate[S, P], T]) -> Callable[Concatenate[S, P], T]:
    """A method that is done :func:`undisturbed`."""

    @wraps(method)
    def call(self: S, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return undisturbed(lambda: method(self, *args, **kwargs))

    return call


def one_at_a_time(method: Callable[Concatenate[S, P], T]) -> Callable[Concatenate[S, P], T]:
    """A method that is done :func:`undisturbed`, and owned by its object."""

    @wraps(method)
    def call(self: S, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return undisturbed(lambda: method(self, *args, **kwargs), owner=self)

    return call


def _hand_over(work: _Work[T]) -> bool:
    if sys.is_finalizing():  # threads are there, and run no more
        return False
    try:
        helper = _idle.pop() if _idle else _Helper()
    except RuntimeError:  # the process may have no more threads
        return False
    helper.inbox.put(work)
    return True


def _is_nested(frame: FrameType | None, owner: object) -> bool:
    """Whether this is part of a job that is done in place, or on top of coral's own code that may be halfway.

    Raises:
        ConflictError: on top of a job of this owner.
    """
    is_own = True
    while frame is not None:
        module = str(frame.f_globals.get("__name__"))
        is_own = is_own and module.startswith(_OURS)
        if frame.f_code is undisturbed.__code__ and is_own:
            return True
        if not is_own and module.startswith(_LOWER) and module != _CALLS_HANDLERS:
            _refuse_inside(frame, owner)
            return True
        frame = frame.f_back
    return False


def _refuse_inside(frame: FrameType | None, owner: object) -> None:
    while owner is not None and frame is not None:
        if frame.f_code is undisturbed.__code__ and frame.f_locals["owner"] is owner:
            raise ConflictError(
                "this repository object is in the middle of staging or committing",
                hint="in a signal handler, set a flag and save at the next step",
            )
        frame = frame.f_back


def caller() -> threading.Thread:
    """The thread of the program that this thread works for: itself, where it works for no other."""
    return _this.caller or threading.current_thread()


def work_for(thread: threading.Thread) -> None:
    """Say which thread of the program this one works for from now on."""
    _this.caller = thread


def warn(text: str, category: type[Warning] = RuntimeWarning) -> None:
    """Warn, at the line of the program that called coral, whichever thread it is done in."""
    if _this.work is not None:
        _this.work.warnings.append((text, category))
        return
    level = 1
    frame: FrameType | None = sys._getframe()
    while frame is not None and str(frame.f_globals.get("__name__")).startswith(_OURS):
        level, frame = level + 1, frame.f_back
    warnings.warn(text, category, stacklevel=level)


def stop_if_unwanted() -> None:
    """Raise :class:`Stopped` when whoever waits for this thread's work was interrupted; nothing may be half done."""
    work = _this.work
    if work is not None and work.is_unwanted and work.may_stop:
        raise Stopped


def finish() -> None:
    """From here on this thread's work is done to its end, wanted or not: it has taken effect."""
    if _this.work is not None:
        _this.work.may_stop = False


def take(lock: threading.Lock | threading.RLock) -> None:
    """Take a lock; whoever is no longer wanted stops waiting for it. Raises Stopped."""
    while not lock.acquire(timeout=_POLL_SECONDS):
        stop_if_unwanted()
