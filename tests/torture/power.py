"""Power cuts on a real file system: a process commits and logs while the file system it writes to is shut down."""

from __future__ import annotations

import contextlib
import random
import threading
import time
import warnings
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import NamedTuple

from coral.errors import CoralError
from coral.experiments import ExperimentTracker
from coral.experiments.local import writer
from coral.repository import Repository
from coral.testing import syscalls
from coral.testing.mounts import FileSystem, Mounted
from coral.testing.processes import Ended, Note, Warm
from tests.torture.harness import age, copy, run_in
from tests.torture.planted import plant
from tests.torture.scenarios import Told, commit_one, weights

SHORT_SYNC = 0.2
_FIRST = 1000
_SLOW = 5  # every so manieth cut is of a run that logs for as long as coral may leave lines unsynced, and longer


class Cut(NamedTuple):
    """What came of one power cut: how much had been acknowledged, and what is wrong."""

    commits: int
    points: int
    wrong: list[str]


# -- in a fork of the warm process


def work(note: Note, project: Path, ready: Path, sync_seconds: float, seed: int, bug: str | None) -> None:
    """Commit and log until the disk refuses; note what was acknowledged, and when that began and ended.

    Args:
        ready: made when the first was.
    """
    if bug is not None:
        plant(bug)
        syscalls.watch(project)
    writer.SYNC_SECONDS = sync_seconds
    warnings.simplefilter("error", RuntimeWarning)  # how a run says that the disk refuses
    with contextlib.suppress(CoralError, RuntimeWarning):
        repo = Repository(project)
        if sync_seconds == SHORT_SYNC:
            _commit(repo, note, _FIRST, wait=True)
            ready.touch()
            _train(repo, note, random.Random(seed))
        else:
            ready.touch()
            _log(repo, note, range(1 << 30), lambda: time.sleep(0.005))


def _train(repo: Repository, note: Note, chance: random.Random) -> None:
    """A run that ends, with commits in between, and more commits after it; some of them beside the caller."""
    numbers = count(_FIRST + 1)

    def save() -> None:
        if chance.random() < 0.3:
            _commit(repo, note, next(numbers), wait=chance.random() < 0.6)

    _log(repo, note, range(chance.randrange(5, 60)), save)
    while True:
        _commit(repo, note, next(numbers), wait=chance.random() < 0.6)


def _log(repo: Repository, note: Note, steps: range, between: Callable[[], None]) -> None:
    run = ExperimentTracker(repo).start("during")
    name = run.experiment_id
    for step in steps:
        before = time.monotonic()
        run.log("loss", step / 7, step)
        note((before, time.monotonic(), ("log", name, step)))
        between()
    before = time.monotonic()
    run.end()
    note((before, time.monotonic(), ("safe", name)))
    note((before, time.monotonic(), ("ended", name)))


def _commit(repo: Repository, note: Note, number: int, *, wait: bool) -> None:
    before = time.monotonic()
    if wait:
        made = commit_one(repo, number)
    else:
        made = repo.save(weights(number), message=f"n={number}", step=number, wait=False).result().commit_hash
    note((before, time.monotonic(), ("commit", made, number)))


# -- outside


def cut_once(warm: Warm, kind: FileSystem, template: Path, place: Path, seed: int, *, bug: str | None = None) -> Cut:
    """Cut the power once, at a moment that the seed chooses, and look at what is left.

    Args:
        place: a folder that is not there yet, and is not afterwards.
    """
    chance = random.Random(seed)
    is_slow = seed % _SLOW == _SLOW - 1
    sync_seconds = writer.SYNC_SECONDS if is_slow else SHORT_SYNC
    delay = sync_seconds + chance.uniform(0.5, 1.5) if is_slow else chance.uniform(0.1, 1.2)
    with Mounted(kind, place) as mounted:
        project = copy(template, mounted.root / "project")
        mounted.sync()
        ended, began = _run_and_cut(warm, mounted, delay, project, mounted.beside / "ready", sync_seconds, seed, bug)
        told = _told(ended, began, sync_seconds)
        commits = sum(one[0] == "commit" for one in told)
        points = sum(one[0] == "log" for one in told)
        if ended.error is not None:
            return Cut(commits, points, [ended.error])
        mounted.restart()
        age(project)
        found = run_in(warm, "check_after", project, told, True, bug)
        assert isinstance(found, list)
    return Cut(commits, points, found)


def _run_and_cut(
    warm: Warm, mounted: Mounted, delay: float, project: Path, ready: Path, *arguments: object
) -> tuple[Ended, float]:
    ended: list[Ended] = []
    job = threading.Thread(target=lambda: ended.append(warm.run(f"{__name__}:work", project, ready, *arguments)))
    job.start()
    while job.is_alive() and not ready.exists():
        time.sleep(0.001)
    time.sleep(delay)
    began = time.monotonic()
    mounted.cut()
    job.join()
    return ended[0], began


def _told(ended: Ended, began: float, sync_seconds: float) -> list[Told]:
    """What was acknowledged before the cut began, and which points it may no longer take: those of long enough before
    the last call, since whoever logs that long after a point syncs it before the call returns.

    While XFS is being shut down, an fsync may succeed and do nothing: no power cut is like that.
    """
    acknowledged: list[tuple[float, float, Told]] = [one for one in ended.told if one[1] < began]  # type: ignore[operator, misc]
    last = max((before for before, _, told in acknowledged if told[0] == "log"), default=0.0)
    out: list[Told] = []
    for _, after, told in acknowledged:
        out.append(told)
        if told[0] == "log" and after <= last - sync_seconds:
            out.append(("safe", told[1]))
    return out
