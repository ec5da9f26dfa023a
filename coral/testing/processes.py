"""Processes forked from a warm one: so that a kill costs milliseconds, and not another start of Python.

The warm process has the library of ``coral.testing.syscalls`` in front, and imports what the jobs need; it never has
threads, so that it may fork.
"""

from __future__ import annotations

import contextlib
import faulthandler
import importlib
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import NamedTuple

_SERVE = "import sys; from coral.testing.processes import serve; serve(int(sys.argv[1]))"

_HANGS_SECONDS = 60.0

Note = Callable[[object], None]
"""Tells the caller something at once; it is told even if the process is killed right after."""


class Ended(NamedTuple):
    """How a job came to its end.

    Attributes:
        notes: what it said, in order.
        result: what it returned; None when it was killed.
        error: the trace of an exception, None when there was none.
        finished: whether it came to its end by itself.
        signal: what ended it when it did not, such as ``SIGSEGV``; ``exit 3`` where it left by itself.
    """

    notes: list[object]
    result: object
    error: str | None
    finished: bool
    signal: str

    @property
    def told(self) -> list[tuple[object, ...]]:
        """Those of the notes that are tuples."""
        return [note for note in self.notes if isinstance(note, tuple)]


class Warm:
    """A warm process; use it as a context manager.

    Args:
        library: what :func:`coral.testing.syscalls.build` made; None for no library in front.
        modules: what to import beforehand.
        folder: where modules are looked for first.
    """

    def __init__(self, library: Path | None, modules: Sequence[str], *, folder: Path | None = None) -> None:
        self._ours, theirs = Pipe()
        front = ["env", f"LD_PRELOAD={library}"] if library is not None else []
        self._process = subprocess.Popen(
            [*front, sys.executable, "-c", _SERVE, str(theirs.fileno())], pass_fds=[theirs.fileno()], cwd=folder
        )
        theirs.close()
        self._ours.send(list(modules))

    def run(self, job: str, *arguments: object) -> Ended:
        """Run ``module:function``, with a :data:`Note` and these arguments, in a fork of the warm process."""
        self._ours.send((job, arguments))
        ended = self._ours.recv()
        assert isinstance(ended, Ended)
        return ended

    def close(self) -> None:
        """End the warm process."""
        self._ours.close()
        self._process.wait()

    def __enter__(self) -> Warm:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def serve(number: int) -> None:
    """Be the warm process: run jobs, one after the other, until nobody asks any more."""
    callers = Connection(number)
    for module in callers.recv():
        importlib.import_module(module)
    with contextlib.suppress(EOFError):
        while True:
            job, arguments = callers.recv()
            callers.send(_fork(job, arguments))


def _fork(job: str, arguments: tuple[object, ...]) -> Ended:
    here, there = Pipe(duplex=False)
    child = os.fork()
    if not child:
        here.close()
        _do(job, arguments, there)
    there.close()
    notes: list[object] = []
    said, value = "", None
    with contextlib.suppress(EOFError, OSError):  # killed, perhaps in the middle of a word
        while said not in ("result", "error"):
            if not here.poll(_HANGS_SECONDS):
                said, value = "error", f"it said nothing for {_HANGS_SECONDS:g} s after {notes[-1:]}"
                _end(child)
                break
            said, value = here.recv()
            if said == "note":
                notes.append(value)
    _, status = os.waitpid(child, 0)
    here.close()
    finished = said in ("result", "error")
    result, error = (value if said == one else None for one in ("result", "error"))
    return Ended(notes, result, error, finished, _how(status))


def _how(status: int) -> str:
    code = os.waitstatus_to_exitcode(status)
    names = {one.value: one.name for one in signal.Signals}
    return f"exit {code}" if code >= 0 else names.get(-code, f"signal {-code}")


def _end(child: int) -> None:
    """Have a job that hangs show where each of its threads is, on the standard error, and kill it."""
    os.kill(child, signal.SIGUSR1)
    time.sleep(1)
    os.kill(child, signal.SIGKILL)


def _do(job: str, arguments: tuple[object, ...], caller: Connection) -> None:
    faulthandler.register(signal.SIGUSR1)
    try:
        module, _, name = job.partition(":")
        function = getattr(importlib.import_module(module), name)
        caller.send(("result", function(lambda value: caller.send(("note", value)), *arguments)))
    except BaseException:
        caller.send(("error", traceback.format_exc()))
    finally:
        # No exit: nothing of the warm process is to be tidied up here, and nothing of the job.
        os.kill(os.getpid(), signal.SIGKILL)
