"""Objects that are there already: another git, which syncs nothing, may have written them a moment ago."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from coral.history import history as history_module
from coral.history import loose
from coral.history.history import History
from coral.storage import disk
from coral.testing import crash, syscalls
from coral.testing.disks import Failing, Recording
from coral.testing.trace import parse

_ROOT = Path(history_module.__file__).parents[2]
_PROGRAM = """
import subprocess, sys
from pathlib import Path
from coral.history.history import History

def git(*arguments, data):
    command = ["git", "-c", "core.fsync=none", "-C", git_dir, *arguments]
    return subprocess.run(command, input=data, stdout=subprocess.PIPE, check=True, close_fds=False).stdout.strip()

git_dir, how = Path(sys.argv[1]), sys.argv[2]
oid = git("hash-object", "-w", "--stdin", data=b"weights")
tree = git("mktree", data=b"100644 blob " + oid + b"\\tmodel\\n")
if how == "packed":
    git("pack-objects", "-q", "objects/pack/pack", data=oid + b"\\n" + tree + b"\\n")
    git("prune-packed", data=b"")
history = History(git_dir, locks=git_dir.parent / "locks")
blob = history.write_blob(b"weights")
assert blob == oid.decode()
made = history.write_commit(overlay={"model": blob}, message="m").commit_hash
history.move_branch("main", made, expected=None, reason="r")
"""


@pytest.mark.skipif(syscalls.compiler() is None, reason="NOT TESTED: no C compiler, or not Linux")
@pytest.mark.parametrize("how", ["loose", "packed"])
def test_a_power_cut_after_another_git_wrote(history: History, tmp_path: Path, how: str) -> None:
    """A ref names nothing that a power cut may take, whoever wrote it, and be it in a pack."""
    root = history.git_dir.parent
    before = crash.scan(root)
    with (tmp_path / "log").open("wb", buffering=0) as log:
        watched = syscalls.environment(syscalls.build(tmp_path), root, log.fileno())
        command = [sys.executable, "-c", _PROGRAM, str(history.git_dir), how]
        environment = {**os.environ, **watched, "PYTHONPATH": str(_ROOT)}
        subprocess.run(command, cwd=tmp_path, env=environment, pass_fds=[log.fileno()], check=True)
    operations = parse((tmp_path / "log").read_bytes())
    assert any("pack-" in operation.target for operation in operations) == (how == "packed")
    landed = 0
    for number, state in enumerate(crash.states(root, before, operations, limit=300, seed=1)):
        if ".git/refs/heads/main" in state.files:
            landed += 1
            crash.materialise(state, tmp_path / "states" / str(number))
            left = History(tmp_path / "states" / str(number) / ".git", locks=tmp_path / "states" / "locks")
            (tip,) = left.branches().values()
            assert left.read_blob(left.parts(tip)["model"]) == b"weights", (state.cut, state.loss)
    assert landed


def _again(history: History) -> History:
    """The same history, as another process opens it."""
    return History(history.git_dir, locks=history.git_dir.parent / "locks")


def _syncs(history: History) -> list[str]:
    """What is synced, below the repository, while a blob is written."""
    with disk.use(seen := Recording()):
        history.write_blob(b"weights")
    return [os.path.relpath(one.path, history.git_dir) for one in seen.operations if one.kind == "sync"]


def test_what_was_found_is_synced_once(history: History) -> None:
    """A process pays for what it finds, be it in a pack, when it relies on it for the first time."""
    key = loose.key(history.write_blob(b"weights"))
    other = _again(history)
    assert _syncs(other) == [key, os.path.dirname(key), "objects"]
    assert _syncs(other) == []
    assert other.consolidate(force=True) == 1
    other = _again(history)
    packs = {os.path.relpath(path, history.git_dir) for path in history.git_dir.glob("objects/pack/*")}
    assert len(packs) == 2 and not (history.git_dir / key).exists()
    found = _syncs(other)
    assert {*found[:-1]} == packs and found[-1] == "objects/pack"
    assert _syncs(other) == []


def test_an_object_whose_sync_fails_is_written_anew(history: History) -> None:
    """What the kernel could not write it may have dropped: another file takes its place, and is synced itself."""
    path = history.git_dir / loose.key(history.write_blob(b"weights"))
    before = path.stat().st_ino
    again = _again(history)
    with disk.use(Failing(0, errno.EIO, kinds={"sync"})):
        oid = again.write_blob(b"weights")
    assert path.stat().st_ino != before
    assert again.read_blob(oid) == b"weights"
    assert path.stat().st_mode & 0o777 == 0o444
