"""Too little memory: whatever of a scenario fails is an error, nothing acknowledged is lost, and the next one works."""

from __future__ import annotations

import gc
import random
import sys
import traceback
import warnings
from pathlib import Path

from coral.errors import CoralError
from coral.repository import Repository
from coral.testing.memory import little_memory
from coral.testing.processes import Note, Warm
from tests.torture.faults import take_back
from tests.torture.harness import age, checked, copy, lived
from tests.torture.scenarios import SCENARIOS, Told, commit_one, refs_of

MOST = 96 << 20
"""Bytes more than a process has at its start; where there are so many, no scenario fails."""


def why_not() -> str | None:
    """Why memory cannot be limited here; None where it can."""
    return None if sys.platform == "linux" else "how much a process has mapped is not known here"


def starve(warm: Warm, scenario: str, template: Path, project: Path, seed: int) -> tuple[bool, list[str]]:
    """Run a scenario with an amount of memory that the seed chooses; whether something failed, and what is wrong."""
    more = int(MOST * random.Random(seed).random() ** 5)
    job = f"{__name__}:starve_and_go_on"
    ended = lived(warm.run(job, scenario, copy(template, project), more), f"{scenario}, {more:,} bytes")
    if not isinstance(ended.result, tuple):
        return True, [f"{more:,} bytes: {ended.error}"]
    failed, wrong = ended.result
    return failed, [f"{more:,} bytes: {one}" for one in wrong]


# -- in a fork of the warm process


def starve_and_go_on(note: Note, scenario: str, project: Path, more: int) -> tuple[bool, list[str]]:
    """Run a scenario with so much more memory, look at what it left, and go on with what was open, and anew."""
    SCENARIOS[scenario](copy(project, project.with_name("warming")), lambda _: None)  # what is imported late is here
    before, told, failed = refs_of(Repository(project)), list[Told](), False
    kept = Repository(project)
    refs_of(kept)
    try:
        with warnings.catch_warnings(), little_memory(more):
            warnings.simplefilter("ignore")
            SCENARIOS[scenario](project, told.append)
    except BaseException as error:
        failed = True
        if not _is_clear(error):
            return True, [f"not an error of memory or of coral's: {traceback.format_exc(limit=-6)}"]
    gc.collect()
    age(project)
    wrong = checked(project, told, power=False)
    if wrong:
        return failed, wrong
    try:
        take_back(Repository(project), before)
        again: list[Told] = [("commit", commit_one(kept, 100), 100)]
        take_back(Repository(project), before)
        again = []
        SCENARIOS[scenario](project, again.append)
    except BaseException:
        return failed, [f"with enough memory: {traceback.format_exc(limit=-6)}"]
    return failed, [f"with enough memory: {one}" for one in checked(project, again, power=False)]


def _is_clear(error: BaseException) -> bool:
    if isinstance(error, RuntimeError):
        return isinstance(error, CoralError) or "can't start new thread" in str(error)
    return isinstance(error, MemoryError | CoralError)
