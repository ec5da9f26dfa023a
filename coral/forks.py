"""What a forked child must not take over from its parent: locks that another thread held, and descriptors under flock.

A fork copies the thread that calls it and no other. A lock that another one held would stay held for ever in the child,
and a flock would outlive its holder for as long as any child that was forked meanwhile lives, though it never heard of
coral. So locks are made here, and whoever holds a descriptor under flock says so here.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import threading
import time
from typing import Any, Protocol
from weakref import ref

_BEFORE_SECONDS = 1.0
_POLL_SECONDS = 0.001


class Holder(Protocol):
    """Something that a forked child is not to have."""

    def after_fork(self) -> None:
        """This is the child: let go of it, without touching what is the parent's."""


class Living:
    """Objects for as long as somebody else has them.

    No WeakSet: it has Python code run whenever an object goes, in which an interrupt would be lost.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self._refs: list[ref[Any]] = []
        self._most = 64

    def add(self, one: object) -> None:
        with self.lock:
            self._refs.append(ref(one))
            if len(self._refs) > self._most:
                self._refs = [kept for kept in self._refs if kept() is not None]
                self._most = 2 * len(self._refs) + 64

    def all(self) -> list[Any]:
        return [one for kept in self._refs if (one := kept()) is not None]


_locks, _holders = Living(), Living()
opening = threading.RLock()
"""Held by who opens a descriptor that is to be put under flock, until it is noted where :func:`tell` finds it."""


def lock() -> threading.Lock:
    """A lock that nobody holds in a child that is forked."""
    made = threading.Lock()
    _locks.add(made)
    return made


def rlock() -> threading.RLock:
    """As :func:`lock`; its holder may take it again."""
    made = threading.RLock()
    _locks.add(made)
    return made


def tell(holder: Holder) -> None:
    """Call ``holder.after_fork`` in each child that is forked while the holder lives."""
    _holders.add(holder)


def _before() -> None:
    """Wait, for a moment and no longer, for what no child could go on from."""
    opening.acquire(timeout=_BEFORE_SECONDS)
    until = time.monotonic() + _BEFORE_SECONDS
    while _is_importing() and time.monotonic() < until:
        time.sleep(_POLL_SECONDS)


def _is_importing() -> bool:
    """Whether another thread is importing a module: Python keeps a lock for each, and a child has it as it was."""
    locks = [kept() for kept in list(getattr(importlib._bootstrap, "_module_locks", {}).values())]
    return any(getattr(lock, "owner", None) not in (None, threading.get_ident()) for lock in locks)


def _in_parent() -> None:
    try:
        opening.release()
    except RuntimeError:  # it was not to be had
        pass


def _in_child() -> None:
    for held in [opening, _locks.lock, _holders.lock, *_locks.all()]:
        held._at_fork_reinit()  # as the standard library does with its own
    for holder in _holders.all():
        with contextlib.suppress(Exception):  # the others have theirs all the same
            holder.after_fork()


os.register_at_fork(before=_before, after_in_parent=_in_parent, after_in_child=_in_child)
