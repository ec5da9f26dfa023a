"""What the end of a process waits for: a commit under way, a run to be closed.

A process ends by itself, or by a signal. Handlers of signals are chained, never replaced: a program's own handler
decides whether its process ends, and is called as before. A signal whose default is to kill the process still kills it,
with that exit status, when all is done that has to be.

What has to be done may need a lock that the main thread holds just when the signal comes. So the handler, which runs on
top of the main thread, waits for nothing: it wakes a thread that does, and the main thread goes on meanwhile.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable
from queue import SimpleQueue
from types import FrameType
from typing import Any, NoReturn, Protocol

from coral import forks, pool

_Handler = Callable[[int, FrameType | None], Any] | int | None
_SIGNALS = (signal.SIGTERM, signal.SIGHUP)
_KILLED_SECONDS = 1.0


class Listener(Protocol):
    """Someone who wants to know of the end."""

    def before_death(self, number: int) -> None:
        """The process is about to be killed by this signal; must not raise."""

    def noticed(self, number: int) -> None:
        """The program's own handler is about to deal with this signal."""


class DyingError(Exception):
    """The process is about to be killed: what is begun now would not be waited for."""


class _Watch:
    """What this process knows of its signals."""

    def __init__(self) -> None:
        self.previous: dict[int, _Handler] = {}
        self.calling: set[int] = set()
        self.set_handler: Callable[[int, None], object] = lambda number, handler: None
        self.lock = forks.rlock()
        self.after_fork()

    def after_fork(self) -> None:
        """A child has none of its parent's threads, runs and commits; the handlers it has."""
        self.listeners: list[Listener] = []
        self.wakes: SimpleQueue[int] = SimpleQueue()
        self.is_awaited = self.is_dying = False
        self.pid = os.getpid()


_watch = _Watch()
forks.tell(_watch)


def catch() -> None:
    """Have the signals caught; Python allows that to the main thread alone, so in another one this does nothing.

    To be called again by whoever begins what the end has to wait for: another library may have put its own in between.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    import ctypes  # for _kill: not needed by those who only look, and not to be looked for in a handler

    _watch.set_handler = ctypes.pythonapi.PyOS_setsig
    for number in _SIGNALS:
        before = signal.getsignal(number)
        if before is _on_signal:
            # Put back, perhaps, by somebody who had kept it; whoever was there before it is not known any more.
            _watch.previous.setdefault(number, signal.SIG_DFL)
        # None: installed by C code, which Python cannot chain to. Ignored signals do not end the process. And who put
        # a handler of its own in the place of this one decides, and may call it.
        elif before == signal.SIG_DFL or (callable(before) and number not in _watch.previous):
            _watch.previous[number] = before
            signal.signal(number, _on_signal)


def listen(listener: Listener) -> None:
    """Tell a listener of signals from now on, as far as they are caught; any thread may call this.

    Raises:
        DyingError: a signal came, and the process ends without another look at who listens.
    """
    with _watch.lock:
        if _watch.is_dying and listener not in _watch.listeners:
            raise DyingError
        if listener not in _watch.listeners:
            _watch.listeners.append(listener)
        if not _watch.is_awaited:
            with contextlib.suppress(RuntimeError):  # no thread to be had: the handler itself must wait, then
                pool.start(threading.Thread(target=_await_death, name="coral-signals", daemon=True))
                _watch.is_awaited = True


def ignore(listener: Listener) -> None:
    """Undo :func:`listen`; harmless when it was not called. The last one takes the handlers away."""
    with _watch.lock:
        if listener in _watch.listeners and not _watch.is_dying:
            _watch.listeners.remove(listener)
    let_go()


def let_go() -> None:
    """Put the handlers back, if nobody listens, and this is the main thread."""
    if _watch.listeners or threading.current_thread() is not threading.main_thread():
        return
    for number in list(_watch.previous):
        if signal.getsignal(number) is _on_signal:
            signal.signal(number, _watch.previous.pop(number))


def stay_if_dying() -> None:
    """Wait for the end where a signal is about to bring it: what is asked for now would be an error, and is none."""
    if _watch.is_dying and _watch.pid == os.getpid():
        stay()


def stay() -> NoReturn:
    """Wait for the end of a process that is about to be killed."""
    while True:
        threading.Event().wait()


def _on_signal(number: int, frame: FrameType | None) -> None:
    before = _watch.previous.get(number)
    if callable(before) and number not in _watch.calling:
        _watch.calling.add(number)  # one that calls whom it found, and found this one, leaves it to us
        try:
            for listener in list(_watch.listeners):
                listener.noticed(number)
            before(number, frame)
        finally:
            _watch.calling.discard(number)
    elif _watch.pid != os.getpid():
        _kill(number)  # a child so fresh that it has not come to `after_fork`
    elif _watch.is_awaited:
        _watch.is_dying = True
        _watch.wakes.put(number)
    else:
        _die(number)


def _await_death() -> None:
    _die(_watch.wakes.get())


def _die(number: int) -> None:
    with _watch.lock:
        listeners = list(_watch.listeners)
    for listener in listeners:
        with contextlib.suppress(BaseException):  # whatever it is, the process must end
            listener.before_death(number)
    _kill(number)


def _kill(number: int) -> None:
    # Python lets the main thread alone do this, which may be at anything.
    _watch.set_handler(number, None)
    os.kill(os.getpid(), number)
    # The first process of a container is killed by no signal of its own.
    time.sleep(_KILLED_SECONDS)
    os._exit(128 + number)


# The main thread went on, and may come to its end before the signal is dealt with: the signal is what ends it.
atexit.register(stay_if_dying)
