"""On a real file system, whose power is cut while a process trains: what was acknowledged is there.

Run ``python -m tests.torture --only cuts`` for two hundred on each. See ``coral.testing.mounts`` for what is cut.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from coral.testing.mounts import FILE_SYSTEMS, FileSystem, Mounted, why_not
from coral.testing.processes import Warm
from tests.torture.power import cut_once

BUGS = ("no fsync of the pack", "no fsync of git's objects")
CUTS = 5


@pytest.fixture(scope="module", params=FILE_SYSTEMS)
def kind(request: pytest.FixtureRequest, place: Path) -> Iterator[FileSystem]:
    """A kind of file system that can be mounted here."""
    why = why_not(request.param, place / f"try-{request.param}")
    if why is not None:
        pytest.skip(f"NOT TESTED: no power can be cut here: {why}")
    yield request.param


def test_a_file_system_forgets_what_was_not_synced(kind: FileSystem, place: Path) -> None:
    """After a cut nothing can be written; after the restart what was synced is there, and nothing else."""
    with Mounted(kind, place / "forgets") as mounted:
        (mounted.root / "safe").write_bytes(b"safe")
        mounted.sync()
        (mounted.root / "lost").write_bytes(b"lost")
        mounted.cut()
        with pytest.raises(OSError):
            (mounted.root / "refused").write_bytes(b"refused")
        mounted.restart()
        assert (mounted.root / "safe").read_bytes() == b"safe"
        assert not (mounted.root / "lost").exists() and not (mounted.root / "refused").exists()
    assert str(place) not in Path("/proc/mounts").read_text() and not (place / "forgets").exists()


def test_what_is_in_use_is_unmounted_all_the_same(kind: FileSystem, place: Path) -> None:
    """Whatever still uses it: no mount and no file is left behind."""
    mounted = Mounted(kind, place / "used")
    with (mounted.root / "open").open("wb"):
        mounted.close()
    assert str(place) not in Path("/proc/mounts").read_text() and not (place / "used").exists()


def test_a_power_cut_takes_nothing_that_was_acknowledged(
    warm: Warm, place: Path, template: Path, kind: FileSystem
) -> None:
    """Commits, ended runs, and points older than the time between two syncs are there, and work goes on."""
    commits = points = 0
    for seed in range(CUTS):
        cut = cut_once(warm, kind, template, place / "cut", seed)
        assert not cut.wrong, (seed, cut.wrong)
        commits, points = commits + cut.commits, points + cut.points
    assert commits and points


@pytest.mark.parametrize("bug", BUGS)
def test_power_cuts_find_a_planted_bug(warm: Warm, place: Path, template: Path, kind: FileSystem, bug: str) -> None:
    """A harness that finds nothing proves nothing: each of these bugs is found.

    Not all of those in ``planted.py`` would be: ext4 hands over the bytes of a file that replaces another one, so
    that it keeps an unsynced ref.
    """
    assert any(cut_once(warm, kind, template, place / "planted", seed, bug=bug).wrong for seed in range(8))
