"""What a signal that would end the process waits for: a commit under way, a run to be closed.

Handlers are chained, never replaced: a program's own handler decides whether its process ends, and is called as before.
A signal whose default is to kill the process still kills it, with that exit status.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, Protocol

_Handler = Callable[[int, FrameType | None], Any] | int | None
_SIGNALS = (signal.SIGTERM, signal.SIGHUP)


class Listener(Protocol):
    """Someone who wants to know of such signals."""

    def before_death(self, number: int) -> None:
        """The process is about to be killed by this signal; must not raise."""

    def noticed(self, number: int) -> None:
        """The program's own handler is about to deal with this signal."""


_listeners: list[Listener] = []
_previous: dict[int, _Handler] = {}


def listen(listener: Listener) -> None:
    """Tell a listener of signals from now on; from another thread than the main one, where Python allows no handler,
    only if handlers are there already."""
    if listener not in _listeners:
        _listeners.append(listener)
    if threading.current_thread() is not threading.main_thread():
        return
    for number in _SIGNALS:
        before = signal.getsignal(number)
        # None: installed by C code, which Python cannot chain to. Ignored signals do not end the process.
        if number not in _previous and before is not None and before is not signal.SIG_IGN:
            _previous[number] = before
            signal.signal(number, _on_signal)


def ignore(listener: Listener) -> None:
    """Undo :func:`listen`; harmless when it was not called. The last one takes the handlers away."""
    if listener in _listeners:
        _listeners.remove(listener)
    if _listeners or threading.current_thread() is not threading.main_thread():
        return
    for number in list(_previous):
        if signal.getsignal(number) is _on_signal:
            signal.signal(number, _previous.pop(number))


def _on_signal(number: int, frame: FrameType | None) -> None:
    before = _previous.get(number)
    if callable(before):
        for listener in list(_listeners):
            listener.noticed(number)
        before(number, frame)
        return
    for listener in list(_listeners):
        listener.before_death(number)
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
