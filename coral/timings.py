"""Where time goes: steps by name, nested or not, added up by whoever wants to know."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar, Token
from types import TracebackType
from typing import NamedTuple


class Timings(NamedTuple):
    """Where the time of a commit went.

    Attributes:
        steps: seconds by step, in the order in which they were first begun; a step's own are without those inside it.
    """

    steps: dict[str, float]

    @property
    def total(self) -> float:
        """Seconds of all steps together."""
        return sum(self.steps.values())


class Stopwatch:
    """Adds up the steps that are done while it runs, in whichever thread."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._steps: dict[str, float] = {}

    @contextmanager
    def running(self, name: str) -> Iterator[None]:
        """A step that is timed, with those inside of it."""
        running = _running.get()
        outer = running.outer if running is not None and running.stopwatch is self else None
        token = _running.set(_Running(self, outer))
        try:
            with step(name):
                yield
        finally:
            _running.reset(token)

    def take(self) -> Timings:
        """What has been added up, and begin again."""
        taken, self._steps = self._steps, {}
        return Timings(taken)

    def begin(self, name: str) -> float:
        """Note that a step begins; returns the time."""
        self._steps.setdefault(name, 0.0)
        return self._clock()

    def end(self, name: str, began: float, inner: float) -> float:
        """Add a step without what took place inside of it; returns how long it took, with that."""
        took = self._clock() - began
        self._steps[name] = self._steps.get(name, 0.0) + took - inner
        return took


class _Running(NamedTuple):
    """The stopwatch that runs here, and the step that others are inside of."""

    stopwatch: Stopwatch
    outer: step | None


class step:
    """A step of something that may be timed: ``with step("seal"):``."""

    __slots__ = ("_began", "_inner", "_name", "_outer", "_token")

    def __init__(self, name: str) -> None:
        self._name = name
        self._token: Token[_Running | None] | None = None

    def __enter__(self) -> None:
        running = _running.get()
        if running is not None:
            stopwatch, self._outer = running
            self._token, self._inner = _running.set(_Running(stopwatch, self)), 0.0
            self._began = stopwatch.begin(self._name)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        running = _running.get()
        if self._token is None or running is None:
            return
        took = running.stopwatch.end(self._name, self._began, self._inner)
        if self._outer is not None:
            self._outer._inner += took
        _running.reset(self._token)


_running: ContextVar[_Running | None] = ContextVar("coral_running", default=None)
