"""How a process ends, told truthfully to its runs: by itself, by an uncaught exception, by Ctrl-C, by a signal.

Hooks are chained, never replaced: whoever was there before is called as before (see ``coral.verbs.signals``). What
cannot be caught (SIGKILL, power) is found out by others through the run's lock; see ``liveness``.

``sys.exit(3)`` outside of a ``with`` block cannot be told from a script that ran to its end: SystemExit reaches no
hook, and is gone, with its code, before ``atexit`` runs. Such a run is COMPLETED; in a ``with`` block it is FAILED.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
from types import TracebackType
from typing import Protocol

from coral.experiments.experiment import ExperimentStatus
from coral.experiments.scalars import Json, class_name, text
from coral.verbs import signals

Failure = dict[str, Json]
_MAX_MESSAGE = 10_000


class Endable(Protocol):
    """A live run."""

    thread_id: int | None

    def finish(self, status: ExperimentStatus, failure: Failure | None) -> None:
        """End it, if it has not ended; never raises because of the storage."""


class _State:
    """What this process knows of its end."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.live: dict[int, Endable] = {}
        self.uncaught: BaseException | None = None
        self.signal: int | None = None
        self.hooked = False


_state = _State()


def watch(run: Endable) -> None:
    """End this run when the process ends; call :func:`forget` once it has ended.

    Signals count once they are caught, see :func:`coral.verbs.signals.catch`.
    """
    global _state
    if _state.pid != os.getpid():
        _state = _forked(_state)
    _state.live[id(run)] = run
    _hook_once()
    try:
        signals.listen(_listener)
    except signals.DyingError:
        signals.stay()


def forget(run: Endable) -> None:
    """Stop watching a run."""
    _state.live.pop(id(run), None)
    if not _state.live and _state.pid == os.getpid():
        signals.ignore(_listener)


def live() -> list[Endable]:
    """The runs of this process that have not ended; a forked child has none of its parent's."""
    return list(_state.live.values()) if _state.pid == os.getpid() else []


def describe(error: BaseException) -> tuple[ExperimentStatus, Failure | None]:
    """The status of a run that this exception ended."""
    if isinstance(error, KeyboardInterrupt):
        return ExperimentStatus.CANCELLED, {"kind": "interrupt", "message": "stopped by Ctrl-C"}
    if isinstance(error, GeneratorExit) or (isinstance(error, SystemExit) and _is_success(error.code)):
        return ExperimentStatus.COMPLETED, None
    return ExperimentStatus.FAILED, {"kind": "exception", "type": class_name(error), "message": message(error)}


def message(said: object) -> str:
    """What a failure says of itself, whatever it was given as; of a long text the beginning."""
    return text(said, _MAX_MESSAGE)


def _is_success(code: object) -> bool:
    return code is None or (isinstance(code, int) and code == 0)


def describe_exit(error: BaseException) -> tuple[ExperimentStatus, Failure | None]:
    """As :func:`describe`; the exit that the program's own handler of a signal chose came of that signal."""
    if isinstance(error, SystemExit) and _state.signal is not None and _state.pid == os.getpid():
        return ExperimentStatus.CANCELLED, _of_signal(_state.signal)
    return describe(error)


def _forked(parent: _State) -> _State:
    state = _State()
    state.hooked = parent.hooked  # inherited, and this process's now
    return state


def _hook_once() -> None:
    if _state.hooked:
        return
    _state.hooked = True
    atexit.register(_at_exit)
    before, thread_before = sys.excepthook, threading.excepthook

    def uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        # At a prompt an exception ends a line of input, not the process.
        if not hasattr(sys, "ps1"):
            _state.uncaught = error
        before(kind, error, trace)

    def uncaught_in_thread(args: threading.ExceptHookArgs) -> None:
        error = args.exc_value
        if error is not None:
            for run in live():
                if run.thread_id == threading.get_ident():
                    run.finish(*describe(error))
        thread_before(args)

    sys.excepthook, threading.excepthook = uncaught, uncaught_in_thread


def _at_exit() -> None:
    status, failure = ExperimentStatus.COMPLETED, None
    if _state.uncaught is not None:
        status, failure = describe(_state.uncaught)
    if _state.signal is not None:
        status, failure = ExperimentStatus.CANCELLED, _of_signal(_state.signal)
    for run in live():
        run.finish(status, failure)


class _Listener:
    """What a signal does to the runs of this process."""

    def before_death(self, number: int) -> None:
        for run in live():
            run.finish(ExperimentStatus.CANCELLED, _of_signal(number))

    def noticed(self, number: int) -> None:
        # If the process ends of it, the exit says why.
        if _state.pid == os.getpid():
            _state.signal = number


_listener = _Listener()


def _of_signal(number: int) -> Failure:
    name = signal.Signals(number).name
    return {"kind": "signal", "signal": name, "message": f"stopped by {name}"}
