"""What is acknowledged to a process that lives on is kept, and what comes next on the same objects works.

Run ``python -m tests.torture --only interrupts,threads,forks`` for thousands.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from coral.testing.processes import Warm
from tests.torture.harness import MODULES, ROOT, copy
from tests.torture.living import HOW


@pytest.fixture(scope="module")
def plain() -> Iterator[Warm]:
    """A warm process."""
    with Warm(None, (*MODULES, "tests.torture.living"), folder=ROOT) as warm:
        yield warm


def outcome(warm: Warm, job: str, *arguments: object) -> tuple[int, list[str]]:
    """How much a job did, and what it found wrong."""
    ended = warm.run(f"tests.torture.living:{job}", *arguments)
    assert ended.error is None and isinstance(ended.result, tuple), ended
    return ended.result


@pytest.mark.parametrize("how", HOW)
def test_interrupts(plain: Warm, template: Path, place: Path, how: str) -> None:
    """At any moment of any verb: the next ones work, and nothing is lost, or a mixture."""
    hits, wrong = outcome(plain, "interrupt", copy(template, place / how), how, 40, 0)
    assert not wrong and hits >= 30


@pytest.mark.parametrize("threads", [2, 8])
def test_threads(plain: Warm, template: Path, place: Path, threads: int) -> None:
    """Every commit holds what its caller passed, or the call was refused."""
    calls, wrong = outcome(plain, "share", copy(template, place / f"{threads} threads"), threads, 1.5, 0)
    assert not wrong and calls > 20


def test_forks(plain: Warm, template: Path, place: Path) -> None:
    """Children that are forked in the middle of what threads do can do all of it, and do not hang."""
    _, wrong = outcome(plain, "fork", copy(template, place / "forks"), 6, 0)
    assert not wrong
