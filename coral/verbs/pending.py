"""Commits that are made while training goes on.

One at a time, each in a thread of its own: the next one waits for the one before, which keeps their order and bounds
the memory. The process waits for them before it exits, and so does a signal that would kill it, where the main thread
has caught it (:func:`coral.verbs.signals.catch`). A failure that nobody asked for is told by the next commit, or else
at exit, and the process then ends with an exit status that is not 0. A child of ``multiprocessing`` runs nothing then.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, TextIO

from coral import forks, pool, threads
from coral.errors import ConflictError
from coral.live import Live
from coral.verbs import signals

if TYPE_CHECKING:
    from concurrent.futures import Future

    from coral.history import Commit

    Make = Callable[[Callable[[], None]], Commit]


class PendingCommit(Live):
    """A commit on its way; it is made whole or not at all, whether or not anybody asks for it.

    Attributes:
        maker: the thread that makes it.
        was_told: whether somebody knows how it went.
    """

    def __init__(self, future: Future[Commit]) -> None:
        self._promised = future
        self._pid = os.getpid()
        self.maker: int | None = None
        self.was_told = False

    @property
    def _future(self) -> Future[Commit]:
        if self._pid != os.getpid():
            raise ConflictError("this commit is made by the parent process", hint="ask for it there")
        return self._promised

    def done(self) -> bool:
        """Whether it is made, or has failed. In a forked child nobody knows: ConflictError."""
        return self._future.done()

    def result(self, timeout: float | None = None) -> Commit:
        """The commit, waited for.

        Args:
            timeout: seconds to wait at most; None for ever.

        Raises:
            TimeoutError: it is not made yet.
            CoralError: what went wrong; nothing of it was committed. Or this is a forked child, and it is the parent's.
        """
        try:
            return self._future.result(timeout)
        except BaseException as error:
            # What else is raised, such as an interrupt, tells nobody of it.
            self.was_told |= self._future.done() and error is self._future.exception()
            raise

    def wait(self) -> None:
        """Wait until it is made or has failed."""
        self._future.exception()

    def failure(self) -> BaseException | None:
        """What went wrong, unless somebody was told of it already; waits. Raises ConflictError for who makes it."""
        if self.maker == threading.get_ident() and not self.done():
            raise ConflictError("this commit is just being made", hint="an observer of commits must not wait for one")
        error = self._future.exception()
        return None if self.was_told else error

    def __repr__(self) -> str:
        if self._pid != os.getpid():
            return "<PendingCommit: of the parent process>"
        if not self.done():
            return "<PendingCommit: under way>"
        error = self._future.exception()
        return f"<PendingCommit: {self._future.result().commit_hash[:10] if error is None else error!r}>"


class Background:
    """Makes the commits of one repository object beside its callers, one at a time. Threads may share it."""

    def __init__(self) -> None:
        self._turn = forks.rlock()
        self._noting = forks.rlock()
        self._latest: PendingCommit | None = None
        _all.add(self)
        forks.tell(self)

    def start(self, prepare: Callable[[], Make]) -> PendingCommit:
        """Make a commit in a thread of its own, once the one before it is made.

        Args:
            prepare: copies what the commit is to be made of, and returns what makes it, which calls what it is given as
                soon as nobody else can get in between. No other commit is prepared meanwhile.

        Raises:
            CoralError: the commit before this one failed, and nobody was told yet; this one is not made.
            ConflictError: no thread can be started.
        """
        with contextlib.suppress(signals.DyingError):
            threads.take(self._turn)
            try:
                self.settle()
                return self._start(prepare())
            finally:
                self._turn.release()
        signals.stay()

    def _start(self, make: Make) -> PendingCommit:
        from concurrent.futures import Future  # it loads logging, which nobody needs who only looks

        future: Future[Commit] = Future()
        pending = PendingCommit(future)
        begun, caller = threading.Event(), threads.caller()

        def run() -> None:
            if not future.set_running_or_notify_cancel():
                return  # it began too late
            threads.work_for(caller)
            pending.maker = threading.get_ident()
            try:
                future.set_result(make(begun.set))
            except BaseException as error:
                future.set_exception(error)
            else:
                self._forget(pending)
            finally:
                begun.set()

        signals.listen(self)
        try:
            _run_beside(run)
        except BaseException:
            future.cancel()
            signals.ignore(self)
            raise
        with self._noting:
            # Not earlier: who finds it waits for it, and now there is somebody to keep it.
            self._latest = pending
        begun.wait()
        if future.done() and future.exception() is None:  # before it could be found
            self._forget(pending)
        if _is_over:
            _tell_of(pending)
        return pending

    def settle(self) -> None:
        """Wait for the commit under way. Raises what went wrong with it, unless its caller was told already."""
        pending = self._latest
        error = self.failure()
        if pending is None or error is None:
            return
        try:
            raise error
        except BaseException as raised:
            if raised is error:  # and no interrupt
                self._forget(pending)
            raise

    def failure(self) -> BaseException | None:
        """As :meth:`settle`, but what went wrong is returned, and still to be told."""
        pending = self._latest
        error = pending.failure() if pending is not None else None
        if pending is not None and error is None:
            self._forget(pending)
        return error

    @threads.uninterrupted
    def _forget(self, pending: PendingCommit) -> None:
        with self._noting:  # another thread may be about to note the next one
            if self._latest is pending:
                self._latest = None
                signals.ignore(self)
        pending.was_told = True

    def after_fork(self) -> None:
        """A forked child has the parent's thread no more than its commit."""
        self._latest = None

    # -- the end of the process

    def before_death(self, number: int) -> None:
        """Finish the commit under way before the signal kills the process."""
        self._turn.acquire()  # for good: nobody starts another one
        if self._latest is not None:
            _tell_of(self._latest)

    def noticed(self, number: int) -> None:
        """The program's own handler decides; if the process exits, it waits for the commit."""

    def before_exit(self) -> None:
        """Wait for the commit under way, and tell of what went wrong if nobody was told."""
        if self._latest is not None:
            _tell_of(self._latest)


_all = forks.Living()
_is_over = False


def _run_beside(run: Callable[[], None]) -> None:
    """Run in a thread; at the end of the process, when nothing waits for threads any more, in this one."""
    if _is_over:
        run()
        return
    try:
        # Not a daemon: Python waits for it before it exits.
        pool.start(threading.Thread(target=run, name="coral-commit", daemon=False))
    except RuntimeError as error:
        if threading.main_thread().is_alive():
            raise ConflictError(
                f"the commit cannot be made beside the program: {error}",
                hint="allow the process more threads or memory, or save with wait=True",
            ) from error
        run()


def _tell_of(pending: PendingCommit) -> None:
    """Wait for a commit; if it fails and nobody was told, tell as of an exception that nobody caught."""
    error = pending.failure()
    if error is None:
        return
    pending.was_told = True
    if not isinstance(sys.stderr, _LastFlush):
        sys.stderr = _LastFlush(sys.stderr)
    error.__cause__, error.__suppress_context__ = None, True
    error.add_note("The commit that was made beside the program is lost, and nobody asked how it went.")
    sys.excepthook(type(error), error.with_traceback(None), None)  # where in coral it came from, nobody asked


class _LastFlush:
    """The standard error stream, which tells Python at its very end that something could not be written.

    Python then exits with status 120: nothing else that runs at exit can change the exit status and let all others,
    that run there too, have their turn.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream
        self.closed = False

    def flush(self) -> None:
        if self._stream is not None:
            self._stream.flush()
        try:
            sys._getframe(1)
        except ValueError:  # called by no Python code, but by Python
            raise OSError("a commit is lost") from None

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)


def _at_exit() -> None:
    global _is_over
    _is_over = True
    for background in _all.all():
        with contextlib.suppress(
            Exception
        ):  # of a hook that tells of exceptions: the others are waited for all the same
            background.before_exit()


# As early as can be: what is registered later is called before, and may begin another commit.
atexit.register(_at_exit)
