"""Many processes that log from many threads, of which one is killed: each has a run of its own in one repository."""

from __future__ import annotations

import mmap
import os
import random
import signal
import struct
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path

from coral.experiments import Experiment, ExperimentTracker
from coral.repository import Repository
from coral.testing.processes import Note, Warm
from tests.torture.harness import copy, lived
from tests.torture.planted import plant

PROCESSES = THREADS = 8
POINTS = 500
"""Of each thread."""
_STRIDE = 1 << 30
_EVERY = 50  # so manieth call logs a mapping
_COUNT = struct.Struct("=Q")
_PATIENCE_SECONDS = 50.0


def kill_a_tracker(warm: Warm, template: Path, place: Path, seed: int, *, bug: str | None = None) -> list[str]:
    """Have eight processes of eight threads log, and kill one at a moment that the seed chooses; what is wrong then.

    Args:
        template: a repository to begin with.
        place: a folder for the copy of it that is used.
    """
    ended = lived(warm.run(f"{__name__}:kill_one", copy(template, place), seed, bug), "the eight processes")
    return ended.result if isinstance(ended.result, list) else [str(ended.error)]


# -- in a fork of the warm process


def kill_one(note: Note, project: Path, seed: int, bug: str | None) -> list[str]:
    """As :func:`kill_a_tracker`."""
    if bug is not None:
        plant(bug)
    chance, logged = random.Random(seed), Logged()
    victim = chance.randrange(PROCESSES)
    enough = chance.randrange(1, THREADS * POINTS * 9 // 10)
    children = [_fork(lambda number=number: train(project, number, logged, victim)) for number in range(PROCESSES)]  # type: ignore[misc]
    until = time.monotonic() + _PATIENCE_SECONDS
    while sum(logged.of(victim)) < enough and time.monotonic() < until:
        time.sleep(0.0005)
    os.kill(children[victim], signal.SIGKILL)
    ends = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    wrong = [
        f"process {number} ended with {end}"
        for number, end in enumerate(ends)
        if end != (-signal.SIGKILL if number == victim else 0)
    ]
    # The first who looks folds what the dead process left; the second finds it folded.
    return wrong + _check(project, victim, logged) + _check(project, victim, logged)


class Logged:
    """How many points of each thread were acknowledged: in memory that all processes share, and a kill leaves alone."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, PROCESSES * THREADS * _COUNT.size)

    def note(self, process: int, thread: int, count: int) -> None:
        """So many points of a thread are acknowledged."""
        _COUNT.pack_into(self._memory, (process * THREADS + thread) * _COUNT.size, count)

    def of(self, process: int) -> list[int]:
        """The counts of a process's threads."""
        start = process * THREADS * _COUNT.size
        return [count for (count,) in _COUNT.iter_unpack(self._memory[start : start + THREADS * _COUNT.size])]


def train(project: Path, process: int, logged: Logged, victim: int) -> None:
    """Log from all threads to one run, then end it; the one that will be killed has no end of its own."""
    run = ExperimentTracker(Repository(project)).start(f"process {process}")

    def work(thread: int) -> None:
        for step in range(_STRIDE if process == victim else POINTS):
            if step % _EVERY == 0:
                run.log({f"m{thread}": value(process, thread, step)}, step=step)
            else:
                run.log(f"m{thread}", value(process, thread, step), step)
            logged.note(process, thread, step + 1)

    threads = [threading.Thread(target=work, args=(thread,)) for thread in range(THREADS)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    run.end()


def value(process: int, thread: int, step: int) -> float:
    """What is logged; no two points are the same."""
    return (process * THREADS + thread) * _STRIDE + step + 1 / 3


def _fork(work: Callable[[], None]) -> int:
    child = os.fork()
    if not child:
        try:
            work()
            os._exit(0)
        finally:
            os._exit(1)
    return child


# -- afterwards


def _check(project: Path, victim: int, logged: Logged) -> list[str]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        runs = {run.name: run for run in ExperimentTracker(Repository(project)).list()}
    wrong = []
    for process in range(PROCESSES):
        run = runs.get(f"process {process}")
        if run is None:
            wrong.append(f"the run of process {process} is gone")
            continue
        status = "failed" if process == victim else "completed"
        if str(run.status) != status or run.dropped_points:
            wrong.append(f"the run of process {process} is {run.status}, {run.dropped_points} points dropped")
        counts = logged.of(process)
        for thread, count in enumerate(counts):
            # Of the one that was killed a point may be there that it had no time to acknowledge.
            allowed = (count, count + 1) if process == victim else (POINTS,)
            wrong += _check_points(run, process, thread, allowed)
    return wrong


def _check_points(run: Experiment, process: int, thread: int, allowed: tuple[int, ...]) -> list[str]:
    found = [(point.step, point.value) for point in run.metrics if point.name == f"m{thread}"]
    wanted = [(step, value(process, thread, step)) for step in range(len(found))]
    if found != wanted:
        return [f"process {process}, thread {thread}: points twice, made up, or out of order"]
    if len(found) not in allowed:
        return [f"process {process}, thread {thread}: {len(found)} points, not {allowed[0]}"]
    return []
