"""The machinery of the torture tests: scenarios recorded, killed and refused in processes of their own."""

from __future__ import annotations

import os
import pickle
import shutil
import time
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path

from coral.repository import Repository
from coral.testing import crash, syscalls
from coral.testing.crash import State
from coral.testing.processes import Ended, Note, Warm
from coral.testing.syscalls import Plan
from coral.testing.trace import Operation, parse
from tests.torture.planted import plant
from tests.torture.scenarios import SCENARIOS, Told, check, commit_beside

ROOT = Path(__file__).parents[2]
_AGE_SECONDS = 60.0
RACING = 30
MODULES = (
    "_strptime",
    "coral.experiments",
    "coral.objects.consolidate",
    "coral.objects.reading",
    "coral.objects.writer",
    "coral.verbs.care.fsck",
    "coral.verbs.care.gc",
    "coral.verbs.care.repack",
    "coral.verbs.care.scrub",
    "coral.verbs.checkpoint",
    "coral.verbs.inside_git.filter",
    "coral.verbs.weights",
    "git",
    "numpy.ma",
    "numpy.random",
    "safetensors.numpy",
    "tests.torture.faults",
    "tests.torture.harness",
    "tests.torture.pages",
)


def start(folder: Path) -> Warm | None:
    """A warm process under watch; None where there is no compiler."""
    if syscalls.compiler() is None:
        return None
    library = folder / syscalls.NAME
    return Warm(library if library.exists() else syscalls.build(folder), MODULES, folder=ROOT)


class Died(Exception):
    """A process came to an end that nobody had planned: it crashed, was killed, or left."""


def lived(ended: Ended, what: object) -> Ended:
    """A job that was not killed on purpose. Raises Died."""
    if not ended.finished:
        raise Died(f"{ended.signal} at {what}, after {ended.notes[-1:]}")
    return ended


def run_in(warm: Warm, job: str, *arguments: object) -> object:
    """What a function, of this file where no module is named, returns in a fork of the warm process; its errors are the
    caller's, and so is its death, as Died."""
    ended = lived(warm.run(job if ":" in job else f"{__name__}:{job}", *arguments), job)
    assert ended.error is None, ended.error
    return ended.result


# -- in a fork of the warm process


def record(note: Note, scenario: str, project: Path, log: Path) -> None:
    """Run a scenario, and record all of it."""
    fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    syscalls.watch(project, log=fd)
    SCENARIOS[scenario](project, lambda told: syscalls.mark(pickle.dumps(told)))
    os.close(fd)


def run_with(note: Note, scenario: str, project: Path, plan: Plan, bug: str | None = None) -> int:
    """Run a scenario with a plan against it; returns how many calls there were."""
    if bug is not None:
        plant(bug)
    syscalls.watch(project)
    syscalls.arm(plan)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        SCENARIOS[scenario](project, note)
    return syscalls.count()


def check_after(note: Note, project: Path, told: list[Told], power: bool, bug: str | None = None) -> list[str]:
    """As :func:`checked`."""
    if bug is not None:
        plant(bug)
    return checked(project, told, power=power)


def hunt(
    note: Note, bug: str, scenario: str, project: Path, template: Path, log: Path, limit: int, seed: int
) -> tuple[int, list[str]] | None:
    """Plant a bug, record a scenario, and look for it: how many states it took, and what was wrong, or None."""
    plant(bug)
    record(note, scenario, project, log)
    syscalls.lie("")
    found = bad_states(project, template, recorded(log), project.with_name("hunt"), limit=limit, seed=seed)
    for number, (_, wrong) in enumerate(found, 1):
        note(number)  # still alive
        if wrong:
            return number, wrong
    return None


def cut(
    note: Note, project: Path, template: Path, log: Path, scratch: Path, limit: int, seed: int
) -> tuple[int, list[str]]:
    """Look at the states that a power cut may leave of what was recorded; how many, and what is wrong."""
    count, wrong = 0, list[str]()
    for state, what in bad_states(project, template, recorded(log), scratch, limit=limit, seed=seed):
        count += 1
        note(count)  # still alive
        wrong += [f"cut {state.cut}, {state.loss} lost: {what[0]}"] if what else []
    return count, wrong


def nothing(note: Note) -> None:
    """Show that the process is there."""


def race(note: Note, project: Path, first: int, bug: str | None) -> None:
    """Commit again and again to a branch that another process commits to."""
    if bug is not None:
        plant(bug)
    repo = Repository(project)
    for number in range(first, first + RACING):
        note(("landed", commit_beside(repo, number, f"part{first}.safetensors")))


# -- outside


def kill_once(
    warm: Warm, scenario: str, template: Path, project: Path, plan: Plan, *, bug: str | None = None
) -> tuple[bool, list[str]]:
    """Run a scenario and have it killed; whether it was, and what is wrong afterwards."""
    copy(template, project)
    ended = warm.run(f"{__name__}:run_with", scenario, project, plan, bug)
    if ended.error is not None:
        return False, [ended.error]
    if ended.signal != "SIGKILL":  # as it is of a job that came to its end, too
        lived(ended, plan)
    age(project)
    found = run_in(warm, "check_after", project, ended.told, False, bug)
    assert isinstance(found, list)
    return not ended.finished, found


def checked(project: Path, told: list[Told], *, power: bool) -> list[str]:
    """What was promised and is not kept; an exception is one more thing that is wrong."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return check(project, told, power=power)
    except Exception:
        return [traceback.format_exc(limit=-6)]


def age(folder: Path) -> None:
    """Let a minute pass: what a kill leaves is looked at by a person, or by the next start of the job."""
    then = time.time() - _AGE_SECONDS
    for path in folder.rglob("*"):
        os.utime(path, (then, then), follow_symlinks=False)


def copy(template: Path, project: Path) -> Path:
    """A fresh copy of a repository."""
    if project.exists():
        shutil.rmtree(project)
    shutil.copytree(template, project)
    return project


def recorded(log: Path) -> list[Operation]:
    """What a scenario wrote."""
    return parse(log.read_bytes())


def bad_states(
    project: Path, template: Path, operations: list[Operation], scratch: Path, *, limit: int, seed: int
) -> Iterator[tuple[State, list[str]]]:
    """Each state that a power cut may leave, with what is wrong with it."""
    for state in crash.states(project, crash.scan(template), operations, limit=limit, seed=seed):
        if scratch.exists():
            shutil.rmtree(scratch)
        crash.materialise(state, scratch)
        yield state, checked(scratch, [pickle.loads(mark) for mark in state.marks], power=True)
