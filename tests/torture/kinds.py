"""What the full form consists of: each kind of work, how much of it there is to do, and how a slice of it is done."""

from __future__ import annotations

import importlib.util
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from signal import Signals

from coral.testing.mounts import FILE_SYSTEMS, why_not
from coral.testing.processes import Warm
from coral.testing.syscalls import Action, Plan, compiler
from tests.torture import faults
from tests.torture.fuzz import READERS
from tests.torture.harness import MODULES, ROOT, Died, copy, kill_once, run_in, start
from tests.torture.living import HOW
from tests.torture.power import cut_once
from tests.torture.races import COLLECTING, WRITERS, race
from tests.torture.scenarios import SCENARIOS, prepare
from tests.torture.starved import starve
from tests.torture.starved import why_not as why_not_starved
from tests.torture.trackers import kill_a_tracker

_ACTIONS: tuple[Action, ...] = ("kill before", "kill half", "kill after")
_PLAIN = (
    "tests.torture.flips",
    "tests.torture.fuzz",
    "tests.torture.machine",
    "tests.torture.trackers",
    "tests.torture.living",
)
_LIMIT = 250
_KILLS = 50
EXAMPLES = 25_000
_COMMITS = 200
_STARVED = 50
_INTERRUPTS = 200
_FORKS = 50
_SECONDS = 10

Slice = tuple[int, list[str]]
"""How many were done, and what was wrong."""


class Bench:
    """What the slices that are done one after the other share, each made when it is first wanted.

    Args:
        place: a folder of its own, in memory where there is one.
        part: how much of a slice is done; less than all of it shows that it runs, and no more.
    """

    def __init__(self, place: Path, *, part: float = 1.0) -> None:
        self.place = place
        self._part = part
        place.mkdir()

    def some(self, full: int) -> int:
        """How many of so many are done."""
        return max(1, round(full * self._part))

    @cached_property
    def template(self) -> Path:
        """The repository that every scenario begins with."""
        prepare(self.place / "template")
        return self.place / "template"

    @cached_property
    def watched(self) -> Warm:
        """A warm process whose system calls are watched."""
        warm = start(self.place)
        assert warm is not None
        return warm

    @cached_property
    def plain(self) -> Warm:
        """A warm process that is not watched."""
        return Warm(None, _PLAIN, folder=ROOT)

    @cached_property
    def starved(self) -> Warm:
        """A warm process that is not watched and has all that scenarios need."""
        return Warm(None, (*MODULES, "tests.torture.starved"), folder=ROOT)

    def close(self) -> None:
        """End the warm processes."""
        for warm in {"watched", "plain", "starved"} & self.__dict__.keys():
            self.__dict__[warm].close()


@dataclass(frozen=True)
class Kind:
    """One kind of work.

    Attributes:
        rows: its parts; each has seeds of its own, that count from 0.
        full: how many of it all rows together shall do; or, where ``is_whole``, in how many slices a row is whole.
        work: does the slice of a row that a seed stands for.
        is_whole: whether there is no more to do than all there is.
        why_not: why it cannot be done on this machine; None where it can.
        is_optional: whether it is done only when it is asked for.
    """

    rows: tuple[str, ...]
    full: int
    work: Callable[[Bench, str, int], Slice]
    is_whole: bool = False
    why_not: Callable[[], str | None] = lambda: None
    is_optional: bool = False

    @property
    def share(self) -> int:
        """How much of it one row shall do."""
        return self.full if self.is_whole else -(-self.full // len(self.rows))


def crash_states(bench: Bench, scenario: str, seed: int) -> Slice:
    """What a power cut may leave of a scenario."""
    project, log = copy(bench.template, bench.place / "recorded"), bench.place / "log"
    run_in(bench.watched, "record", scenario, project, log)
    return _slice(
        run_in(bench.watched, "cut", project, bench.template, log, bench.place / "state", bench.some(_LIMIT), seed)
    )


def kills(bench: Bench, scenario: str, seed: int) -> Slice:
    """A scenario killed at calls that chance draws."""
    count = run_in(bench.watched, "run_with", scenario, copy(bench.template, bench.place / "all"), Plan("short", -1))
    assert isinstance(count, int)
    chance, wrong, killed = random.Random(seed), list[str](), 0
    for _ in range(bench.some(_KILLS)):
        plan = Plan(chance.choice(_ACTIONS), chance.randrange(count))
        was_killed, what = kill_once(bench.watched, scenario, bench.template, bench.place / "killed", plan)
        killed += was_killed
        wrong += [f"{plan.action} call {plan.at}: {what[0]}"] if what else []
    return killed, wrong


def refusals(bench: Bench, scenario: str, seed: int) -> Slice:
    """Every so manieth of all faults at all calls of a scenario."""
    project = bench.place / "failing"
    plans = faults.all_plans(bench.watched, scenario, bench.template, project)[seed :: KINDS["faults"].full]
    plans = plans[: bench.some(len(plans))]
    found = faults.refused(bench.watched, scenario, bench.template, project, plans)
    return len(plans), [f"{plan}: {wrong}" for plan, wrong in found]


def flips(bench: Bench, row: str, seed: int) -> Slice:
    """Every so manieth byte of a repository flipped."""
    folder = bench.place / "flipped"
    return _slice(
        run_in(bench.plain, "tests.torture.flips:flip_each", folder, seed, KINDS["flips"].full, bench.some(1 << 10))
    )


def fuzz(bench: Bench, reader: str, seed: int) -> Slice:
    """A reader of files that chance has changed."""
    count = bench.some(EXAMPLES)
    wrong = run_in(bench.plain, "tests.torture.fuzz:fuzz", reader, count, seed)
    assert isinstance(wrong, list)
    return count, wrong


def guided(bench: Bench, reader: str, seed: int) -> Slice:
    """A reader of files that are led by the branches it takes."""
    count = bench.some(EXAMPLES)
    options = [reader, f"-runs={count}", f"-seed={seed + 1}", f"-artifact_prefix={bench.place}/"]
    command = [sys.executable, "-m", "tests.torture.guided", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, check=False)
    if done.returncode < 0:
        raise Died(f"libFuzzer: {Signals(-done.returncode).name}")
    return count, [done.stderr.decode(errors="replace")[-3000:]] if done.returncode else []


def trackers(bench: Bench, row: str, seed: int) -> Slice:
    """One of many processes that log is killed."""
    return 1, kill_a_tracker(bench.plain, bench.template, bench.place / "trackers", seed)


def cuts(bench: Bench, kind: str, seed: int) -> Slice:
    """The power of a file system is cut."""
    (chosen,) = (one for one in FILE_SYSTEMS if one == kind)
    return 1, cut_once(bench.watched, chosen, bench.template, bench.place / "cut", seed).wrong


def machine(bench: Bench, row: str, seed: int) -> Slice:
    """Verbs in any order, beside plain dictionaries."""
    return _slice(run_in(bench.plain, "tests.torture.machine:train", seed))


def races(bench: Bench, how: str, seed: int) -> Slice:
    """Processes that commit, read and collect at once."""
    count = bench.some(_COMMITS)
    return WRITERS * count, race(bench.place / f"race {how} {seed}", how, count)


def memory(bench: Bench, scenario: str, seed: int) -> Slice:
    """A scenario with too little memory, again and again."""
    count, wrong = bench.some(_STARVED), list[str]()
    for number in range(count):
        one = seed * _STARVED + number
        wrong += starve(bench.starved, scenario, bench.template, bench.place / "starved", one)[1]
    return count, wrong


def interrupts(bench: Bench, how: str, seed: int) -> Slice:
    """Verbs on objects that live on are interrupted, at a moment or at a line that chance draws."""
    project, count = copy(bench.template, bench.place / "interrupted"), bench.some(_INTERRUPTS)
    return _slice(run_in(bench.plain, "tests.torture.living:interrupt", project, how, count, seed))


def threads(bench: Bench, count: str, seed: int) -> Slice:
    """So many threads share a repository object and a run."""
    project, seconds = copy(bench.template, bench.place / "shared"), bench.some(_SECONDS)
    return _slice(run_in(bench.plain, "tests.torture.living:share", project, int(count.split()[0]), seconds, seed))


def forks(bench: Bench, row: str, seed: int) -> Slice:
    """Children are forked in the middle of what threads do."""
    project = copy(bench.template, bench.place / "forked")
    return _slice(run_in(bench.plain, "tests.torture.living:fork", project, bench.some(_FORKS), seed))


def large(bench: Bench, row: str, seed: int) -> Slice:
    """Files that are too large for every day, through git; by pytest, which has what git needs at hand."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/inside_git/large.py"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode < 0:
        raise Died(f"pytest: {Signals(-done.returncode).name}")
    return 1, [done.stdout[-3000:]] if done.returncode else []


def _slice(found: object) -> Slice:
    assert isinstance(found, tuple)
    done, wrong = found
    assert isinstance(done, int) and isinstance(wrong, list)
    return done, wrong


def _no_compiler() -> str | None:
    return None if compiler() else "there is no C compiler, or this is not Linux, so system calls cannot be watched"


def _no_mounts() -> str | None:
    with tempfile.TemporaryDirectory() as folder:
        reasons = [why_not(kind, Path(folder).resolve() / kind) for kind in FILE_SYSTEMS]
    return _no_compiler() or next(filter(None, reasons), None)


def _no_atheris() -> str | None:
    return None if importlib.util.find_spec("atheris") else "atheris is not installed"


_ALL = tuple(SCENARIOS)
KINDS: dict[str, Kind] = {
    "states": Kind(_ALL, 20_000, crash_states, why_not=_no_compiler),
    "kills": Kind(_ALL, 10_000, kills, why_not=_no_compiler),
    "faults": Kind(_ALL, 48, refusals, is_whole=True, why_not=_no_compiler),
    "cuts": Kind(FILE_SYSTEMS, 200 * len(FILE_SYSTEMS), cuts, why_not=_no_mounts),
    "flips": Kind(("a small repository",), 64, flips, is_whole=True),
    "fuzz": Kind(tuple(READERS), 5_000_000 * len(READERS), fuzz),
    "guided": Kind(tuple(READERS), 5_000_000 * len(READERS), guided, why_not=_no_atheris, is_optional=True),
    "machine": Kind(("training",), 20_000, machine),
    "races": Kind(tuple(COLLECTING), 20 * WRITERS * _COMMITS, races),
    "interrupts": Kind(HOW, 10_000, interrupts),
    "threads": Kind(("2 threads", "8 threads"), 20_000, threads),
    "forks": Kind(("children of three threads",), 500, forks),
    "memory": Kind(_ALL, 10_000, memory, why_not=why_not_starved),
    "large": Kind(("five gigabytes through git",), 1, large, is_whole=True),
    "trackers": Kind(("one of eight",), 100, trackers),
}
"""By the name that ``--only`` takes."""
