"""The full form of the torture tests, in slices: ``python -m tests.torture [--minutes N]`` goes on where it stopped.

Each slice has its own seed: so many crash states of one scenario, so many kills, so many files for one reader, and so
on (``tests/torture/kinds.py``). What is done is kept in a state file after each slice; the table is written anew each
time. A slice that finds something is kept with its seed, and the program ends with status 1. One that did not come to
its end, since a process of it crashed, was killed or raised, is not done: it is told of, and done again next time.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
import time
import traceback
from collections.abc import Collection
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from datetime import UTC, datetime
from pathlib import Path
from queue import SimpleQueue
from typing import NamedTuple, TypedDict

from tests.torture.harness import ROOT
from tests.torture.kinds import KINDS, Bench, Slice

RESULTS = ROOT / "benchmarks" / "results"
SMALL = 0.005
Name = tuple[str, str]
"""A kind, and one of its rows."""


class Row(TypedDict):
    """How far a row is.

    Attributes:
        done, wrong: how many were.
        seed: of the next slice.
        seconds: how long it took.
        failed: the slices that did not come to their end, by their seeds, and why.
    """

    done: int
    wrong: int
    seed: int
    seconds: float
    failed: dict[str, str]


class Failed(NamedTuple):
    """A slice that did not come to its end."""

    why: str


class Progress:
    """What was done so far, in a file.

    Args:
        path: of the file; what it says of rows that are no more is dropped.
        small: whether one slice of each kind is all there is to do.
    """

    def __init__(self, path: Path, *, small: bool = False) -> None:
        self._path, self._small = path, small
        kept = json.loads(path.read_text()) if path.exists() else {"rows": {}, "found": []}
        self.found: list[str] = kept["found"]
        empty = Row(done=0, wrong=0, seed=0, seconds=0.0, failed={})
        self.rows: dict[Name, Row] = {
            (kind, row): {**empty, "failed": {}, **kept["rows"].get(f"{kind}: {row}", {})}
            for kind in KINDS
            for row in KINDS[kind].rows[: 1 if small else None]
        }
        self._again = {name: [int(seed) for seed in row["failed"]] for name, row in self.rows.items()}

    @property
    def failed(self) -> list[str]:
        """The slices that did not come to their end, and why."""
        return [
            f"{': '.join(name)}, seed {seed}: FAILED: {why}"
            for name, row in self.rows.items()
            for seed, why in row["failed"].items()
        ]

    def part(self, name: Name) -> float:
        """How much of a row is done, or was tried; 1 is all of it."""
        kind, row = KINDS[name[0]], self.rows[name]
        if self._small:
            return min(1, row["seed"])
        return (row["seed"] if kind.is_whole else row["done"]) / kind.share

    def next(self, kinds: Collection[str], busy: Collection[Name]) -> tuple[Name, int] | None:
        """The row that is furthest from its full count, and a seed: first one that failed before this program began.
        None when all are there, or at work."""
        free = [name for name in self.rows if name[0] in kinds and name not in busy]
        again = next((name for name in free if self._again[name]), None)
        if again is not None:
            return again, self._again[again].pop(0)
        name = min((name for name in free if self.part(name) < 1), key=self.part, default=None)
        return None if name is None else (name, self.rows[name]["seed"])

    def add(self, name: Name, seed: int, found: Slice | Failed, seconds: float) -> None:
        """Note a slice."""
        row = self.rows[name]
        row["failed"].pop(str(seed), None)
        if isinstance(found, Failed):
            row["failed"][str(seed)] = found.why
        else:
            done, wrong = found
            self.found += [f"{': '.join(name)}, seed {seed}: {one}" for one in wrong]
            row["done"] += done
            row["wrong"] += len(wrong)
        row["seed"] = max(row["seed"], seed + 1)
        row["seconds"] = round(row["seconds"] + seconds, 1)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        fresh = self._path.with_suffix(".tmp")
        rows = {": ".join(name): row for name, row in self.rows.items()}
        fresh.write_text(json.dumps({"rows": rows, "found": self.found}, indent=1))
        fresh.replace(self._path)


def table(progress: Progress) -> str:
    """The results, as Markdown: the kinds, their rows, and what was found."""
    lines = ["# Torture", ""]
    lines.append(f"`make torture`, {datetime.now(UTC):%Y-%m-%d}, {platform.machine()}, Linux {platform.release()},")
    lines += [f"Python {platform.python_version()}. Seeds count from 0, one a slice.", ""]
    lines += ["| what | done | of | slices (seeds) | failed | wrong | minutes |", "|---|---:|---:|---:|---:|---:|---:|"]
    for kind in KINDS:
        rows = {name: row for name, row in progress.rows.items() if name[0] == kind}
        whole = Row(
            done=sum(row["done"] for row in rows.values()),
            wrong=sum(row["wrong"] for row in rows.values()),
            seed=sum(row["seed"] for row in rows.values()),
            seconds=sum(row["seconds"] for row in rows.values()),
            failed={f"{row}: {seed}": why for row, one in rows.items() for seed, why in one["failed"].items()},
        )
        share = KINDS[kind].share
        lines.append(_line(f"**{kind}**", whole, share * len(rows), kind))
        lines += [_line(f"{kind}: {name[1]}", row, share, kind) for name, row in rows.items() if len(rows) > 1]
    return (
        "\n".join([*lines, "", *(f"- {one.splitlines()[0]}" for one in progress.failed + progress.found)]).rstrip()
        + "\n"
    )


def _line(what: str, row: Row, share: int, kind: str) -> str:
    of = f"all, in {share:,} slices" if KINDS[kind].is_whole else f"{share:,}"
    counts = f"{row['seed']:,} | {len(row['failed'])} | {row['wrong']}"
    return f"| {what} | {row['done']:,} | {of} | {counts} | {row['seconds'] / 60:.0f} |"


class Workers:
    """Slices at work, as many at once as there are benches; the work itself is done in processes of their own."""

    def __init__(self, benches: list[Bench]) -> None:
        self._pool = ThreadPoolExecutor(len(benches))
        self._free: SimpleQueue[Bench] = SimpleQueue()
        for bench in benches:
            self._free.put(bench)
        self._count = len(benches)
        self._running: dict[Future[tuple[Slice | Failed, float]], tuple[Name, int]] = {}

    @property
    def busy(self) -> list[Name]:
        """The rows at work."""
        return [name for name, _ in self._running.values()]

    @property
    def is_full(self) -> bool:
        """Whether there is no free bench."""
        return len(self._running) == self._count

    def begin(self, name: Name, seed: int) -> None:
        """Begin a slice."""
        self._running[self._pool.submit(self._do, name, seed)] = name, seed

    def ended(self) -> list[tuple[Name, int, Slice | Failed, float]]:
        """Wait for a slice, and return those that have ended, with the seconds they took."""
        done, _ = wait(self._running, return_when=FIRST_COMPLETED)
        return [(*self._running.pop(one), *one.result()) for one in done]

    def _do(self, name: Name, seed: int) -> tuple[Slice | Failed, float]:
        bench, started = self._free.get(), time.monotonic()
        found: Slice | Failed
        try:
            found = KINDS[name[0]].work(bench, name[1], seed)
        except Exception as error:
            found = Failed(f"{error!r}\n{traceback.format_exc(limit=-4)}")
        finally:
            self._free.put(bench)
        return found, time.monotonic() - started


def options() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(prog="python -m tests.torture", description=__doc__)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no slice after so long")
    usual = [name for name, kind in KINDS.items() if not kind.is_optional]
    parser.add_argument("--only", default=",".join(usual), help=f"some of: {','.join(KINDS)}")
    parser.add_argument("--jobs", type=int, default=1, help="how many slices at once")
    parser.add_argument("--small", action="store_true", help="a fraction of one slice of each kind, noted nowhere")
    parser.add_argument("--state", type=Path, default=RESULTS / "torture.json", help="where to go on from")
    parser.add_argument("--table", type=Path, default=RESULTS / "torture.md", help="where to write the table")
    found = parser.parse_args()
    found.only = found.only.split(",")
    if unknown := set(found.only) - KINDS.keys():
        parser.error(f"no such kind: {', '.join(unknown)}")
    return found


def run(wanted: argparse.Namespace, progress: Progress, workers: Workers) -> None:
    """Run slices until the time is up or all are done."""
    stop = time.monotonic() + 60 * wanted.minutes
    while True:
        while not workers.is_full and time.monotonic() < stop:
            chosen = progress.next(wanted.only, workers.busy)
            if chosen is None:
                break
            workers.begin(*chosen)
        if not workers.busy:
            return
        for name, seed, found, seconds in workers.ended():
            progress.add(name, seed, found, seconds)
            wanted.table.write_text(table(progress))
            print(f"{': '.join(name)}: {told(seed, found)}", flush=True)


def told(seed: int, found: Slice | Failed) -> str:
    """What became of a slice."""
    if isinstance(found, Failed):
        return f"seed {seed} FAILED\n  {found.why}"
    return "\n  ".join([f"{found[0]} done, {len(found[1])} wrong", *found[1]])


def main() -> int:
    """The exit status: 0 nothing wrong, 1 something was found or failed, 2 something could not be tested here."""
    wanted = options()
    missing = {kind: why for kind in wanted.only if (why := KINDS[kind].why_not()) is not None}
    wanted.only = [kind for kind in wanted.only if kind not in missing]
    for kind, why in missing.items():
        print(f"NOT TESTED: {kind}: {why}", flush=True)
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="coral-", dir=memory if memory.is_dir() else None) as folder:
        place = Path(folder).resolve()
        if wanted.small:
            wanted.state, wanted.table = place / "state.json", place / "table.md"
        progress = Progress(wanted.state, small=wanted.small)
        benches = [Bench(place / str(number), part=SMALL if wanted.small else 1.0) for number in range(wanted.jobs)]
        try:
            run(wanted, progress, Workers(benches))
        finally:
            for bench in benches:
                bench.close()
    print(table(progress))
    return 1 if progress.found or progress.failed else 2 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
