"""What is left of acknowledged checkpoints after a power cut: coral beside git, ``save_file``, SQLite and others.

``python -m benchmarks.durability [--small] [--runs 5] [--cuts 20] [--bars] [--json PATH] [--folder DIR]``. Three parts:

* Modelled: what each store writes is recorded at the system calls, and each state that a power cut may leave is read
  again: every moment, with what was not synced kept, lost, torn or mixed (``coral.testing.crash`` says what a disk
  may do). Checkpoints of 20 kB; the first is safe from the beginning.
* Real (root only): each store keeps checkpoints on a loop-mounted ext4 and XFS, which is shut down
  0.2 to 2 s after the first.
* Time: one more checkpoint of 64 MB, all weights new, in a folder of this machine's disk; and the durability tax: a
  commit of 1 GB beside the same with no fsync, and beside one that only fills the page cache, turn by turn.

A state counts once: *unreadable* when nothing can be read, else *corrupted* when something that was acknowledged comes
back damaged, else *lost* when it is gone. Doubts favour the others: nothing else writes to the disk, git's index and
working file do not count, nor does a last line that is cut short, or what was not acknowledged, and where one file is
replaced again and again only the newest must be there.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import numpy
import pygit2

from benchmarks import bars
from benchmarks.cuts import BAD, JOBS, SEED, cut_once, modelled
from benchmarks.repository import facts, progress
from benchmarks.stores import Store, stores, weights
from coral import Repository
from coral.history import libgit
from coral.storage import disk
from coral.testing import syscalls
from coral.testing.disks import Unsynced
from coral.testing.mounts import FILE_SYSTEMS, FileSystem, why_not
from coral.testing.processes import Note, Warm
from coral.testing.trace import Kind

ROOT = Path(__file__).parents[1]
HERE = "benchmarks.durability"
CHECKPOINT_BYTES = 20_000


# -- time


COMMITS = ("synced", "not synced", "page cache")


class Careless(Unsynced):
    """A disk on which nothing is synced, and nothing is written out early; at most directly."""

    def __init__(self, *, in_cache: bool) -> None:
        super().__init__()
        self._in_cache = in_cache

    def call(self, kind: Kind, name: str, arguments: tuple[object, ...], do: Callable[[], object]) -> object:
        """Nothing for an fsync."""
        if self._in_cache and name == "pwrite":
            assert isinstance(arguments[0], int)
            flags = fcntl.fcntl(arguments[0], fcntl.F_GETFL)
            fcntl.fcntl(arguments[0], fcntl.F_SETFL, flags & ~os.O_DIRECT)
        return super().call(kind, name, arguments, do)

    @staticmethod
    def start_writeback(fd: int, offset: int, length: int) -> None:
        """Nothing."""


@contextmanager
def no_fsync(*, in_cache: bool) -> Iterator[None]:
    """Have neither coral nor libgit2 sync anything."""
    libgit._set_options()
    pygit2.settings.enable_fsync_gitdir(False)
    with disk.use(Careless(in_cache=in_cache)):
        yield


def seconds(note: Note, folder: Path, store: Store, number: int) -> float:
    """What one more checkpoint takes in a store that has one; all is on the disk before."""
    weights(number, store.size)
    keep = store.open(folder)
    keep(0)
    os.sync()
    before = time.perf_counter()
    if store.of_points:
        for one in range(1000 * number, 1000 * (number + 1)):
            keep(one)
        return (time.perf_counter() - before) / 1000
    keep(number)
    return time.perf_counter() - before


def commit_seconds(note: Note, folder: Path, size: int, how: str) -> float:
    """What the first commit of so many bytes takes, one of :data:`COMMITS`."""
    repo, kept = Repository(folder, init=True), weights(0, size)
    note("still alive")
    repo.stage_weights({"warm": numpy.zeros(1, numpy.float32)}, "warm.safetensors")
    repo.commit("warm")
    os.sync()

    def commit() -> float:
        before = time.perf_counter()
        repo.stage_weights(kept)
        repo.commit("all of it")
        return time.perf_counter() - before

    if how == "synced":
        return commit()
    with no_fsync(in_cache=how == "page cache"):
        return commit()


def seconds_of(warm: Warm, job: str, place: Path, *arguments: object) -> float:
    """What a function of this file measures in a fresh folder, in a process of its own."""
    folder = Path(tempfile.mkdtemp(dir=place))
    try:
        ended = warm.run(f"{HERE}:{job}", folder, *arguments)
        assert isinstance(ended.result, float), ended.error or "killed"
        return ended.result
    finally:
        shutil.rmtree(folder)


# -- all of it

Results = dict[str, dict[str, dict[str, int]]]


def power_cuts(options: argparse.Namespace, place: Path) -> Results:
    """Part one and two, by store and kind of cut."""
    found: Results = {}
    limit, checkpoints = (5, 2) if options.small else (1500, 6)
    if syscalls.compiler() is None:
        print("NOT MEASURED: power cuts: no C compiler, or not Linux, so that system calls cannot be watched")
        return found
    library = syscalls.build(place)
    kinds = [kind for kind in FILE_SYSTEMS if options.cuts and is_available(kind, place)]
    with Warm(library, [JOBS], folder=ROOT) as warm:
        for store in stores(CHECKPOINT_BYTES):
            progress(f"{store.name}: states")
            counts = found[store.name] = {}
            counts["model"] = dict(modelled(store, warm, library, place, checkpoints, limit))
            chance, delays = random.Random(SEED), (0.02, 0.05) if options.small else (0.2, 2.0)
            for kind in kinds:
                total: Counter[str] = Counter()
                for number in range(options.cuts):
                    progress(f"{store.name}: {kind}, cut {number + 1} of {options.cuts}")
                    total += cut_once(store, warm, kind, place / "cut", chance.uniform(*delays))
                counts[kind] = dict(total)
    return found


def is_available(kind: FileSystem, place: Path) -> bool:
    """Whether the power of such a file system can be cut here; says so when not."""
    why = why_not(kind, place / "try")
    if why is not None:
        print(f"NOT MEASURED: a real power cut: {why}")
    return why is None


def times(warm: Warm, options: argparse.Namespace, place: Path) -> dict[str, list[float]]:
    """Part three, turn by turn: seconds by store, and of commits synced and not."""
    found: dict[str, list[float]] = {}
    size, large = (1 << 18, 1 << 20) if options.small else (64 << 20, 1 << 30)
    for number in range(1, options.runs + 1):
        for store in stores(size):
            progress(f"run {number} of {options.runs}: {store.name}")
            found.setdefault(store.name, []).append(seconds_of(warm, "seconds", place, store, number))
    for number in range(1, options.runs + 1):
        for how in COMMITS if number % 2 else reversed(COMMITS):
            progress(f"run {number} of {options.runs}: commit of {large >> 20} MiB")
            found.setdefault(how, []).append(seconds_of(warm, "commit_seconds", place, large, how))
    progress("")
    return found


def table(cuts: Results, took: dict[str, list[float]]) -> Iterator[str]:
    """The league table, as Markdown; of points, the seconds are of one point. Where no power was cut, seconds alone."""
    yield "| | power cut | acknowledged | states or cuts | lost | corrupted | unreadable | seconds |"
    yield "|---|---|---:|---:|---:|---:|---:|---:|"
    for name, kinds in (cuts or {name: {"none": {}} for name in took if name not in COMMITS}).items():
        for kind, counts in kinds.items():
            found = [counts.get(what, 0) for what in ("acknowledged", "cuts", *BAD)]
            cells = [name, {"model": "modelled"}.get(kind, kind), *(f"{one:,}" for one in found)]
            yield f"| {' | '.join(cells)} | {median(took[name]):.3g} |"


def tax(took: dict[str, list[float]]) -> str:
    """The durability tax, in a sentence."""
    rows = []
    for name, of in (("medians", median), ("the fastest", min)):
        synced, *others = (of(took[how]) for how in COMMITS)
        beside = (
            f"{other:.2f} s {how} ({synced / other - 1:+.1%})" for how, other in zip(COMMITS[1:], others, strict=True)
        )
        rows.append(f"{name} {synced:.2f} s synced, {', '.join(beside)}")
    return f"durability tax of a commit, {len(took['synced'])} times each: {'; '.join(rows)}"


def broken(cuts: Results) -> list[str]:
    """The promises of coral's that were not kept: no commit is lost or damaged, and no point is damaged."""
    promised = {"coral": BAD, "coral, `run.log`": BAD[1:]}
    return [
        f"{name}: {what} ({kind})"
        for name, never in promised.items()
        for kind, counts in cuts.get(name, {}).items()
        for what in never
        if counts.get(what)
    ]


def main() -> int:
    """Measure, and print; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="a smoke run, in seconds")
    parser.add_argument("--runs", type=int, help="rounds of the times, of which the median is shown (5; small: 1)")
    parser.add_argument("--cuts", type=int, help="real power cuts for each store and file system (20; small: 1)")
    parser.add_argument("--json", type=Path, help="write every figure to this file, too")
    parser.add_argument("--folder", type=Path, help="where to measure times (the folder of temporary files)")
    bars.add_argument(parser)
    options = parser.parse_args()
    options.runs = options.runs or (1 if options.small else 5)
    options.cuts = (1 if options.small else 20) if options.cuts is None else options.cuts
    memory = Path("/dev/shm")
    with (
        tempfile.TemporaryDirectory(prefix="coral-", dir=memory if memory.is_dir() else None) as quick,
        tempfile.TemporaryDirectory(prefix="coral-", dir=options.folder) as place,
    ):
        known = facts(Path(place))
        for name, value in known.items():
            print(f"{name:<12} {value}")
        cuts = power_cuts(options, Path(quick).resolve())
        with Warm(None, [HERE], folder=ROOT) as warm:
            took = times(warm, options, Path(place).resolve())
    print("", *table(cuts, took), "", tax(took), sep="\n")
    if options.json:
        options.json.write_text(json.dumps({"facts": known, "cuts": cuts, "seconds": took}, indent=1))
    return bars.status(broken(cuts), asked=options.bars)


if __name__ == "__main__":
    sys.exit(main())
