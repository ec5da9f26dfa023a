"""A disk that refuses: a clear error, a sound repository, and the next attempt works."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from coral.testing.processes import Warm
from coral.testing.syscalls import Plan
from coral.testing.trace import CHANGES, Kind
from tests.torture.harness import copy, run_in

FAULTS = {"ENOSPC": errno.ENOSPC, "EIO": errno.EIO, "EROFS": errno.EROFS, "EINTR": errno.EINTR, "short": 0}
# Who is interrupted for ever tries for ever.
CASES = [(fault, forever) for fault in FAULTS for forever in (False, True) if not (fault == "EINTR" and forever)]
WRITES: frozenset[Kind] = frozenset({"write"})
OPENS: frozenset[Kind] = frozenset({"open"})


@pytest.mark.parametrize(("fault", "forever"), CASES)
def test_a_refusal_at_every_call_of_a_commit(
    warm: Warm, place: Path, template: Path, fault: str, forever: bool
) -> None:
    """Whichever call of a commit fails, it says so or has no need to; what was there is sound; the retry succeeds."""
    kinds = WRITES if fault == "short" else CHANGES | OPENS if fault == "EROFS" else CHANGES
    number, reached = -1, True
    while reached:
        number += 1
        plan = Plan("fail" if FAULTS[fault] else "short", number, FAULTS[fault], forever, kinds)
        found = run_in(warm, "fail_and_retry", copy(template, place / "failing"), plan)
        assert isinstance(found, tuple)
        reached, wrong = found
        assert not wrong, (number, wrong)
    assert number > (5 if fault == "short" else 40)
