"""Every byte of a small repository flipped: what is read is right, or there is an error; nothing wrong is returned.

Packs alone, byte by byte, are flipped in ``tests/repository/test_damage.py``. Here it is every file below ``.coral``,
and whatever can be asked: some bytes of each file; ``python -m tests.torture --only flips`` flips them all.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from coral import Repository
from coral.errors import CoralError
from coral.testing.processes import Note, Warm
from tests.torture.flips import Flipped, answers, make, places, some
from tests.torture.harness import ROOT, run_in


@pytest.fixture(scope="module")
def memory() -> Iterator[Path]:
    """A folder in memory where there is one: nothing here is about the disk."""
    folder = Path(tempfile.mkdtemp(dir="/dev/shm" if os.path.isdir("/dev/shm") else None))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def apart() -> Iterator[Warm]:
    """A process of its own: a crash is one more thing that is wrong."""
    with Warm(None, [__name__], folder=ROOT) as warm:
        yield warm


def flip_some(note: Note, folder: Path) -> tuple[int, list[str]]:
    """A few bytes of each file; how many were noticed, and what is wrong."""
    sound = make(folder / "project")
    bad = [f"sound: {name}" for name, value in answers(sound).items() if isinstance(value, CoralError)]
    flipped = Flipped(sound)
    for place in some(places(sound)):
        note(place)
        bad += flipped.flip(place)
    return flipped.noticed, bad


def test_no_flip_changes_an_answer(apart: Warm, memory: Path) -> None:
    """Whichever byte flips, in packs, indexes, git objects, refs, runs, journals, staging and caches: each answer is
    right, or an error or a warning that says so; or fsck says so."""
    found = run_in(apart, f"{__name__}:flip_some", memory)
    assert isinstance(found, tuple)
    noticed, bad = found
    assert not bad and noticed > 100


def flip_beside(note: Note, folder: Path) -> list[str]:
    """Flip the index of a pack of git's, again and again while somebody has it open; what is wrong."""
    sound = make(folder / "project")
    flipped, bad = Flipped(sound), list[str]()
    (index,) = (sound / ".coral/.git/objects/pack").glob("*.idx")
    name = index.relative_to(sound).as_posix()
    for at in range(8, index.stat().st_size - 40, 36):
        beside = Repository(folder / "copy")
        commits = list(beside.log())
        bad += flipped.flip((name, at))
        bad += [] if list(beside.log()) == commits else ["whoever had it open sees something else"]
    return bad


def test_a_flip_is_seen_by_whoever_opens_the_file_next(apart: Warm, memory: Path) -> None:
    """Whoever has the file open already is left alone: libgit2 would follow a map that changes out of its bounds."""
    assert not run_in(apart, f"{__name__}:flip_beside", memory / "beside")
