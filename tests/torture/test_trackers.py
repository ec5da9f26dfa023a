"""A killed process costs none of the points that it was told are logged, and its neighbours nothing at all."""

from __future__ import annotations

from pathlib import Path

from coral.testing.processes import Warm
from tests.torture.trackers import kill_a_tracker

SEED = 1


def test_a_killed_process_loses_no_point(warm: Warm, place: Path, template: Path) -> None:
    """Eight processes of eight threads log; one is killed. No acknowledged point is lost, none is there twice or made
    up, and the others' runs are complete."""
    assert kill_a_tracker(warm, template, place / "trackers", SEED) == []


def test_a_planted_bug_is_found(warm: Warm, place: Path, template: Path) -> None:
    """A harness that finds nothing proves nothing: lines that wait in memory are missed."""
    assert kill_a_tracker(warm, template, place / "trackers", SEED, bug="lines kept back")
