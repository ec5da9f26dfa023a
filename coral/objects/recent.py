"""What was used last, kept for the next time, up to a bound."""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

from coral import forks

T = TypeVar("T")


class Recent(Generic[T]):
    """Values by name, made when they are asked for and not kept. Threads may share it.

    What is let go of is never closed here: it ends when the last one who uses it is done, so that a thread may go on
    reading from a file that the others have forgotten.

    Args:
        limit: weight of all that is kept; the last one is kept whatever it weighs.
        weigh: weight of a value.
    """

    def __init__(self, *, limit: int, weigh: Callable[[T], int] = lambda value: 1) -> None:
        self._limit = limit
        self._weigh = weigh
        self._lock = forks.rlock()  # a signal handler may read as well
        self._values: OrderedDict[str, T] = OrderedDict()
        self._weight = 0

    def __len__(self) -> int:
        return len(self._values)

    def get(self, name: str, make: Callable[[], T]) -> T:
        """The value of a name, made when it is not kept; two threads that ask at once may both make it."""
        value = self._values.get(name)
        if value is not None:
            # Without the lock, for speed: another thread may have let go of it just now.
            with contextlib.suppress(KeyError):
                self._values.move_to_end(name)
            return value
        value = make()
        with self._lock:
            self._drop(name)
            self._values[name] = value
            self._weight += self._weigh(value)
            while self._weight > self._limit and len(self._values) > 1:
                self._drop(next(iter(self._values)))
        return value

    def drop(self, name: str) -> None:
        """Let go of a value, when it is kept."""
        with self._lock:
            self._drop(name)

    def _drop(self, name: str) -> None:
        value = self._values.pop(name, None)
        if value is not None:
            self._weight -= self._weigh(value)
