"""A disk that refuses: a clear error, a sound repository, and the next attempt works.

Run ``python -m tests.torture --only faults`` for every fault at every call of every scenario.
"""

from __future__ import annotations

import errno
import random
from pathlib import Path

import pytest

from coral.testing.processes import Warm
from coral.testing.syscalls import Plan
from coral.testing.trace import Kind
from tests.torture.faults import FAULTS, all_plans, refused
from tests.torture.harness import copy, run_in
from tests.torture.scenarios import SCENARIOS

SAMPLE = 16
SEED = 1


@pytest.mark.parametrize("fault", FAULTS)
def test_a_refusal_at_every_call_of_a_commit(warm: Warm, place: Path, template: Path, fault: str) -> None:
    """Whichever call of a commit fails, it says so or has no need to; what was there is sound; the retry succeeds."""
    number, reached = -1, True
    while reached:
        number += 1
        plan = FAULTS[fault].plan(number)
        found = run_in(warm, "tests.torture.faults:commit_and_retry", copy(template, place / "failing"), plan)
        assert isinstance(found, tuple)
        reached, wrong = found
        assert not wrong, (number, wrong)
    assert number > (5 if fault.startswith("short") else 40)


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_refusal_anywhere(warm: Warm, place: Path, template: Path, scenario: str) -> None:
    """Whatever is under way: a StorageError, or a warning where the promise is not to fail; the rest as above."""
    project = place / "failing"
    plans = all_plans(warm, scenario, template, project)
    assert len(plans) > 100
    chosen = random.Random(SEED).sample(plans, SAMPLE)
    assert not list(refused(warm, scenario, template, project, chosen))


@pytest.mark.parametrize(
    ("scenario", "kinds", "forever"), [("branch", {"unlink"}, False), ("repack", {"link", "rename"}, True)]
)
def test_a_refusal_without_a_word(
    warm: Warm, place: Path, template: Path, scenario: str, kinds: set[Kind], forever: bool
) -> None:
    """Calls of libgit2's of whose refusal it says nothing are not taken for a conflict, nor for damage."""
    plans = [Plan("fail", at, errno.EROFS, forever, frozenset(kinds)) for at in range(16)]
    assert not list(refused(warm, scenario, template, place / "failing", plans))
