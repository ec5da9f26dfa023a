"""Packing loose objects loses nothing: beside readers and writers, and killed at any moment."""

from __future__ import annotations

import errno
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from coral.errors import CorruptionError, StorageError
from coral.history import consolidate as module
from coral.history import history as history_module
from coral.history.history import History
from coral.history.libgit import PackedObjects
from coral.history.loose import key
from tests.history.helpers import commit, commit_on, line_of

Git = Callable[..., str]
_ROOT = Path(history_module.__file__).parents[2]


def _loose(history: History) -> int:
    return len(list((history.git_dir / "objects").glob("[0-9a-f][0-9a-f]/*")))


def test_consolidate(history: History, git: Git, folder: Path) -> None:
    """All loose objects go into one pack; open handles, the real git and later writes go on."""
    line = line_of(history, 30)
    history.create_tag("v1", line[3], message="t")
    other = History(history.git_dir, locks=folder / "locks")
    other.resolve("HEAD")
    before = _loose(history)
    assert history.consolidate() == 0 and _loose(history) == before
    assert history.consolidate(force=True) == before
    assert _loose(history) == 0
    assert len(list((history.git_dir / "objects/pack").glob("*.pack"))) == 1
    for reader in (other, history):
        assert len(list(reader.log("main"))) == 30
        assert reader.parts(line[0]) and reader.tags() == {"v1": line[3]}
        assert reader.resolve(line[7][:12]) == line[7]
    git("fsck", "--strict")
    assert history.consolidate(force=True) == 0
    commit_on(history, "main", "after")
    assert len(list(other.log("main"))) == 31
    git("fsck", "--strict")


def test_a_pack_that_the_disk_refuses(history: History) -> None:
    """It is the disk's error, with its number, and no damage; the loose objects stay."""
    line = line_of(history, 30)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limit[1]))
    try:
        with pytest.raises(StorageError) as caught:
            history.consolidate(force=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert caught.value.errno == errno.EFBIG
    assert _loose(history) and len(list(history.log("main"))) == len(line)
    assert history.consolidate(force=True)


def test_trigger(history: History, monkeypatch: pytest.MonkeyPatch) -> None:
    """It starts by itself once a folder holds its share of many objects, and leaves large ones alone."""
    monkeypatch.setattr(module, "MANY", 0)
    monkeypatch.setattr(module, "_MAX_OBJECT_BYTES", 2000)
    large = history.write_blob(os.urandom(3000))
    numbers = (b"%d" % number for number in range(10**6))
    first = next(data for data in numbers if history.write_blob(data)[:2] == "17")
    assert history.consolidate() > 0
    assert _loose(history) == 1
    assert history.consolidate() == 0
    assert history.read_blob(large) and history.read_blob(history.write_blob(first)) == first


def test_bounded(history: History, monkeypatch: pytest.MonkeyPatch) -> None:
    """One call takes a bounded number of objects and bytes, the oldest first; the next call goes on."""
    line = line_of(history, 10)
    before = _loose(history)
    monkeypatch.setattr(module, "_MAX_OBJECTS", 5)
    assert history.consolidate(force=True) == 5
    assert not (history.git_dir / key(line[0])).exists() and (history.git_dir / key(line[-1])).exists()
    monkeypatch.setattr(module, "_MAX_OBJECTS", 500)
    monkeypatch.setattr(module, "_MAX_TOTAL_BYTES", 300)
    assert 0 < history.consolidate(force=True) < before - 5
    assert len(list(history.log("main"))) == 10


def test_damaged_objects_stay_loose(history: History) -> None:
    """A damaged loose object is not packed, and does not stop the others."""
    line = line_of(history, 5)
    path = history.git_dir / key(line[1])
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-5])
    assert history.consolidate(force=True) > 0
    assert path.exists()
    with pytest.raises(CorruptionError, match=line[1]):
        history.commit(line[1])


def test_bad_pack_keeps_the_loose(history: History, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loose copies stay when the new pack does not read back."""
    line_of(history, 3)
    before = _loose(history)
    monkeypatch.setattr(PackedObjects, "verify", lambda self, oid: False)
    with pytest.raises(CorruptionError):
        history.consolidate(force=True)
    assert _loose(history) == before


def test_leftovers_are_swept(history: History) -> None:
    """What killed writers left in the object store goes after an hour, not before."""
    line_of(history, 2)
    objects = history.git_dir / "objects"
    old = [objects / "tmp_object_git2_ab12", objects / "pack" / "pack_git2_ff00", objects / "pack" / "pack-x.idx"]
    fresh = objects / "tmp_object_git2_cd34"
    for path in (*old, fresh):
        path.write_bytes(b"x")
    for path in old:
        os.utime(path, (1, 1))
    history.consolidate(force=True)
    assert [path.exists() for path in (*old, fresh)] == [False, False, False, True]


_WORKER = """
import sys; from pathlib import Path
from coral.history.history import History
history = History(Path(sys.argv[1]), locks=Path(sys.argv[2]))
print("ready", flush=True)
number = 0
while True:
    tip = history.branches()["main"]
    blob = history.write_blob(b"%d" % number)
    made = history.write_commit(base=tip, overlay={"m": blob}, parents=[tip], message=str(number)).commit_hash
    history.move_branch("main", made, expected=tip, reason="r")
    print(made, flush=True)
    if number % 4 == 3: history.consolidate(force=True)
    number += 1
"""


@pytest.mark.parametrize("seed", range(4))
def test_killed(history: History, folder: Path, git: Git, seed: int) -> None:
    """kill -9 at any moment of committing and packing loses no commit that was reported, and nothing is damaged."""
    commit_on(history, "main", "start")
    locks = folder / "locks"
    process = subprocess.Popen(
        [sys.executable, "-c", _WORKER, history.git_dir, locks], cwd=_ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    time.sleep(random.Random(seed).uniform(0.05, 0.4))
    process.send_signal(signal.SIGKILL)
    reported = process.communicate()[0].split()
    survivor = History(history.git_dir, locks=locks)
    held = [found.commit_hash for found in survivor.log("main")]
    assert [oid for oid in reported if oid not in held] == []
    for oid in held:
        assert all(survivor.read_blob(blob) is not None for blob in survivor.parts(oid).values())
    git("fsck", "--strict", "--no-dangling")
    if seed == 0:  # a lock file may be fresh and is waited for
        commit_on(survivor, "main", "after")


def test_beside_a_reader_and_a_writer(history: History, folder: Path) -> None:
    """Readers see every commit at every moment while another process commits and packs."""
    commit_on(history, "main", "start")
    process = subprocess.Popen(
        [sys.executable, "-c", _WORKER, history.git_dir, folder / "locks"], cwd=_ROOT, stdout=subprocess.DEVNULL
    )
    try:
        # A second; more where the machine is so busy that the other process has hardly begun.
        started, seen = time.monotonic(), 0
        while time.monotonic() < started + 1.0 or (seen <= 3 and time.monotonic() < started + 30.0):
            found = list(history.log("main"))
            assert len(found) >= seen
            seen = len(found)
            for one in found[:5]:
                assert all(map(history.read_blob, history.parts(one.commit_hash).values()))
    finally:
        process.kill()
        process.wait()
    assert seen > 3
    assert commit(history, "still").commit_hash
