"""Commits that are made while training goes on.

One at a time, each in a thread of its own: the next one waits for the one before, which keeps their order and bounds
the memory. Python waits for such threads before it exits, and so does a signal that would kill the process.
"""

from __future__ import annotations

import contextlib
import os
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING

from coral.verbs import signals

if TYPE_CHECKING:
    from coral.history import Commit


class PendingCommit:
    """A commit on its way; it is made whole or not at all, whether or not anybody asks for it."""

    def __init__(self, future: Future[Commit]) -> None:
        self._future = future
        self._was_told = False

    def done(self) -> bool:
        """Whether it is made, or has failed."""
        return self._future.done()

    def result(self, timeout: float | None = None) -> Commit:
        """The commit, waited for.

        Args:
            timeout: seconds to wait at most; None for ever.

        Raises:
            TimeoutError: it is not made yet.
            CoralError: what went wrong; nothing of it was committed.
        """
        with contextlib.suppress(TimeoutError):
            self._future.exception(timeout)
            self._was_told = True
        return self._future.result(0)

    def wait(self) -> None:
        """Wait until it is made or has failed."""
        self._future.exception()

    def failure(self) -> BaseException | None:
        """What went wrong, unless somebody was told of it already; waits. Who asks, is told."""
        error = self._future.exception()
        told, self._was_told = self._was_told, True
        return None if told else error

    def __repr__(self) -> str:
        if not self.done():
            return "<PendingCommit: under way>"
        error = self._future.exception()
        return f"<PendingCommit: {self._future.result().commit_hash[:10] if error is None else error!r}>"


class Background:
    """Makes the commits of one repository object beside its caller, one at a time."""

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._latest: PendingCommit | None = None

    def start(self, make: Callable[[Callable[[], None]], Commit]) -> PendingCommit:
        """Make a commit in a thread of its own.

        Args:
            make: makes it, and calls what it is given as soon as nobody else can get in between.

        Raises:
            CoralError: the commit before this one failed, and nobody was told yet; this one is not made.
        """
        self.settle()
        future: Future[Commit] = Future()
        begun = threading.Event()
        pending = self._latest = PendingCommit(future)
        signals.listen(self)

        def run() -> None:
            try:
                future.set_result(make(begun.set))
            except BaseException as error:
                future.set_exception(error)
            finally:
                begun.set()

        # Not a daemon: Python waits for it before it exits.
        threading.Thread(target=run, name="coral-commit", daemon=False).start()
        begun.wait()
        return pending

    def settle(self) -> None:
        """Wait for the commit under way. Raises what went wrong with it, unless its caller was told already."""
        pending = self._of_this_process()
        if pending is None:
            return
        error = pending.failure()
        self._latest = None
        signals.ignore(self)
        if error is not None:
            raise error

    def _of_this_process(self) -> PendingCommit | None:
        if self._pid != os.getpid():
            # A forked child has the parent's thread no more than its commit.
            self._pid, self._latest = os.getpid(), None
        return self._latest

    def warn_of_failure(self) -> None:
        """As :meth:`settle`, with a warning in place of an error: where a run must end whatever happens."""
        try:
            self.settle()
        except Exception as error:
            warnings.warn(f"a commit that was under way failed: {error}", stacklevel=2)

    # -- signals

    def before_death(self, number: int) -> None:
        """Finish the commit under way before the signal kills the process."""
        pending = self._of_this_process()
        if pending is not None:
            pending.wait()

    def noticed(self, number: int) -> None:
        """The program's own handler decides; if the process exits, Python waits for the commit."""
