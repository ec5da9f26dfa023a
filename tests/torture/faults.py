"""A disk that refuses: whichever call of a scenario fails, what came of it, and whether the next attempt works."""

from __future__ import annotations

import errno
import gc
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from coral.errors import NothingToCommitError, StorageError
from coral.repository import Repository
from coral.testing import syscalls
from coral.testing.processes import Note, Warm
from coral.testing.syscalls import Plan
from coral.testing.trace import CHANGES, Kind
from tests.torture.harness import age, checked, copy, lived, run_in
from tests.torture.scenarios import SCENARIOS, Tell, Told, commit_one, refs_of

LOGGED = ("log", "artifact", "safe", "ended")
_WRITES: frozenset[Kind] = frozenset({"write"})
_OPENS: frozenset[Kind] = frozenset({"open"})


class Fault(NamedTuple):
    """One way to refuse.

    Attributes:
        errno: what the call says; 0 is a write that takes half of its bytes.
        forever: whether every later call fails too.
        kinds: the calls that count.
    """

    errno: int
    forever: bool
    kinds: frozenset[Kind] = CHANGES

    def plan(self, at: int) -> Plan:
        """The fault at the call of this number."""
        return Plan("fail" if self.errno else "short", at, self.errno, self.forever, self.kinds)


FAULTS: dict[str, Fault] = {
    **{
        f"{name}, {'from then on' if forever else 'once'}": Fault(code, forever, kinds)
        for name, code, kinds in (
            ("ENOSPC", errno.ENOSPC, CHANGES),
            ("EIO", errno.EIO, CHANGES),
            ("EROFS", errno.EROFS, CHANGES | _OPENS),
            ("short", 0, _WRITES),
        )
        for forever in (False, True)
    },
    # Who is interrupted for ever tries for ever.
    "EINTR, once": Fault(errno.EINTR, False),
}


def all_plans(warm: Warm, scenario: str, template: Path, project: Path) -> list[Plan]:
    """Each fault at each call of a scenario."""
    found = []
    for fault in FAULTS.values():
        counted = Plan("short", -1, kinds=fault.kinds)
        count = run_in(warm, "run_with", scenario, copy(template, project), counted)
        assert isinstance(count, int) and count > 0
        found += [fault.plan(at) for at in range(count)]
    return found


def refused(warm: Warm, scenario: str, template: Path, project: Path, plans: list[Plan]) -> Iterator[tuple[Plan, str]]:
    """What is wrong with a scenario after each of these plans, and with a second attempt on a disk that is well."""
    for plan in plans:
        ended = lived(warm.run(f"{__name__}:fail_and_go_on", scenario, copy(template, project), plan), plan)
        wrong = ended.result if isinstance(ended.result, list) else [str(ended.error)]
        yield from ((plan, one) for one in wrong)


# -- in a fork of the warm process


def fail_and_go_on(note: Note, scenario: str, project: Path, plan: Plan) -> list[str]:
    """Run a scenario on a disk that refuses, look at what it left, take it back, and run it once more."""
    before = refs_of(Repository(project))
    syscalls.watch(project)
    syscalls.arm(plan)
    told, wrong = _attempt(scenario, project, plan)
    syscalls.arm(Plan())
    # A repository object that has something staged keeps collection out for as long as it lives.
    gc.collect()
    age(project)
    wrong += checked(project, told, power=False)
    if wrong:
        return wrong
    try:
        take_back(Repository(project), before)
        again: list[Told] = []
        SCENARIOS[scenario](project, again.append)
    except BaseException:
        return [f"the retry: {traceback.format_exc(limit=-4)}"]
    return [f"after the retry: {one}" for one in checked(project, again, power=False)]


def _attempt(scenario: str, project: Path, plan: Plan) -> tuple[list[Told], list[str]]:
    """What was promised, and whether the refusal was told as it should be."""
    told: list[Told] = []
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            SCENARIOS[scenario](project, _unless_degraded(told, warned if plan.forever else []))
        except BaseException as error:
            return told, _unclear(error, plan)
    return told, []


def _unless_degraded(told: list[Told], warned: list[warnings.WarningMessage]) -> Tell:
    """Notes what is promised; a run that has warned promises to keep what is logged in memory, until the disk is well
    or the process ends."""

    def tell(one: Told) -> None:
        if one[0] not in LOGGED or not any("cannot be written for now" in str(each.message) for each in warned):
            told.append(one)

    return tell


def _unclear(error: BaseException, plan: Plan) -> list[str]:
    if not isinstance(error, StorageError):
        return [f"not a StorageError: {''.join(traceback.format_exception(error, limit=-4))}"]
    if not error.message or (plan.errno and error.errno not in (plan.errno, None)):
        return [f"the error says {error!r}"]
    return []


def take_back(repo: Repository, refs: dict[str, str]) -> None:
    """Have every branch and tag be what it was."""
    repo.checkout("main", force=True)
    repo.reset(refs["branch main"], hard=True, force=True)
    for name, oid in refs_of(repo).items():
        kind, _, short = name.partition(" ")
        if refs.get(name) != oid:
            repo.delete_branch(short, force=True) if kind == "branch" else repo.delete_tag(short)
    for name, oid in refs.items():
        kind, _, short = name.partition(" ")
        if name not in refs_of(repo):
            repo.create_branch(short, oid) if kind == "branch" else repo.tag(short, oid)


def commit_and_retry(note: Note, project: Path, plan: Plan) -> tuple[bool, list[str]]:
    """Commit on a disk that refuses, then on one that does not; whether it refused, and what is wrong."""
    repo = Repository(project)
    syscalls.watch(project)
    syscalls.arm(plan)
    told: list[Told] = []
    wrong: list[str] = []
    try:
        told.append(("commit", commit_one(repo, 100), 100))
    except BaseException as error:
        wrong += _unclear(error, plan)
    reached = syscalls.count() > plan.at
    syscalls.arm(Plan())
    if not told:
        age(project)
        try:
            told.append(("commit", commit_one(repo, 100), 100))
        except NothingToCommitError:  # refused when all was done but the last fsync
            told.append(("commit", repo.resolve("HEAD"), 100))
            wrong += [] if next(repo.log()).message == "n=100" else ["the retry finds nothing to commit"]
        except BaseException:
            wrong.append(f"the retry: {traceback.format_exc(limit=-4)}")
    return reached, wrong + checked(project, told, power=False)
