"""Power cuts, modelled and real, for any way to keep checkpoints: what became of those that were acknowledged."""

from __future__ import annotations

import os
import shutil
import threading
import time
import warnings
from collections import Counter
from itertools import count
from pathlib import Path
from typing import Literal

from benchmarks.stores import NAMELESS, Store
from coral.testing import crash, syscalls
from coral.testing.mounts import FileSystem, Mounted
from coral.testing.processes import Ended, Note, Warm
from coral.testing.trace import parse

Verdict = Literal["sound", "lost", "corrupted", "unreadable"]
BAD: tuple[Verdict, ...] = ("lost", "corrupted", "unreadable")
JOBS = "benchmarks.cuts"
"""This module, as a warm process knows it."""
SEED = 1
POINTS_A_CHECKPOINT = 20
"""Points are many and small: so many are logged for one checkpoint of the others."""


def judge(store: Store, folder: Path, acknowledged: list[int]) -> Verdict:
    """What became of the acknowledged checkpoints."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = store.read(folder)
    except Exception:
        return "unreadable"
    wanted = acknowledged if store.keeps_all else []
    if NAMELESS in found or not all(found.get(number, True) for number in wanted):
        return "corrupted"
    if not store.keeps_all:
        newest = max(found, default=NAMELESS)
        if not found.get(newest, True):
            return "corrupted"
        return "lost" if newest < acknowledged[-1] else "sound"
    return "sound" if found.keys() >= set(wanted) else "lost"


def begin(note: Note, store: Store, folder: Path) -> None:
    """A store with checkpoint 0."""
    folder.mkdir(parents=True)
    store.open(folder)(0)


def judged(note: Note, store: Store, folder: Path, acknowledged: list[int]) -> Verdict:
    """As :func:`judge`, in a process that keeps nothing open afterwards."""
    return judge(store, folder, acknowledged)


# -- modelled


def record(note: Note, store: Store, folder: Path, log: Path, library: Path, checkpoints: int) -> None:
    """Keep checkpoints, and record what that writes; a mark says which was acknowledged."""
    fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.set_inheritable(fd, True)
    os.environ.update(syscalls.environment(library, folder, fd))
    syscalls.watch(folder, log=fd)
    keep = store.open(folder)
    for number in range(1, checkpoints + 1):
        keep(number)
        syscalls.mark(str(number).encode())
    os._exit(0)  # what a tidy end would still write is not there when the power is cut


def modelled(store: Store, warm: Warm, library: Path, place: Path, checkpoints: int, limit: int) -> Counter[str]:
    """How many states there are of each verdict, and how much was acknowledged."""
    template, folder, log = place / "template", place / "store", place / "log"
    for old in (template, folder):
        shutil.rmtree(old, ignore_errors=True)
    checked(warm.run(f"{JOBS}:begin", store, template))
    shutil.copytree(template, folder)
    number = checkpoints * (POINTS_A_CHECKPOINT if store.of_points else 1)
    ended = warm.run(f"{JOBS}:record", store, folder, log, library, number)
    assert ended.signal == "exit 0", ended.error or ended.signal
    operations = parse(log.read_bytes())
    counts = Counter(acknowledged=sum(one.kind == "mark" for one in operations))
    assert counts["acknowledged"] == number, f"{store.name}: {counts}"
    for state in crash.states(folder, crash.scan(template), operations, limit=limit, seed=SEED):
        left = place / "left"
        shutil.rmtree(left, ignore_errors=True)
        crash.materialise(state, left)
        counts["cuts"] += 1
        counts[judge(store, left, [0, *map(int, state.marks)])] += 1
    return counts


# -- real


def keep_on(note: Note, store: Store, folder: Path, ready: Path) -> None:
    """Keep checkpoints until the disk refuses; ``ready`` is made after the first."""
    warnings.simplefilter("error", RuntimeWarning)  # how a run of coral's says that it does
    keep = store.open(folder)
    for number in count(1):
        keep(number)
        note((number, time.monotonic()))
        if number == 1:
            ready.touch()
        if store.of_points:
            time.sleep(0.002)


def cut_once(store: Store, warm: Warm, kind: FileSystem, place: Path, delay: float) -> Counter[str]:
    """Cut the power once; the verdict, and how much was acknowledged."""
    ended: list[Ended] = []
    with Mounted(kind, place) as mounted:
        folder, ready = mounted.root / "store", mounted.beside / "ready"
        checked(warm.run(f"{JOBS}:begin", store, folder))
        mounted.sync()
        job = threading.Thread(target=lambda: ended.append(warm.run(f"{JOBS}:keep_on", store, folder, ready)))
        job.start()
        while job.is_alive() and not ready.exists():
            time.sleep(0.001)
        time.sleep(delay)
        began = time.monotonic()
        mounted.cut()
        job.join()
        mounted.restart()
        # While XFS is being shut down, an fsync may succeed and do nothing: no power cut is like that.
        acknowledged = [number for number, when in ended[0].told if isinstance(when, float) and when < began]
        verdict = checked(warm.run(f"{JOBS}:judged", store, folder, [0, *acknowledged])).result
    return Counter({str(verdict): 1, "cuts": 1, "acknowledged": len(acknowledged)})


def checked(ended: Ended) -> Ended:
    """What a job that must not fail came to."""
    assert ended.finished and ended.error is None, ended.error or "killed"
    return ended
