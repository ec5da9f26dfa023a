"""Locks between real processes; none outlives its holder."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from coral.errors import LockedError, StorageError
from coral.storage.locks import ProcessLock, file_lock, is_held
from tests.processes import run_python, start_python

HOLD = """
import sys
from pathlib import Path
from coral.storage.locks import ProcessLock, file_lock
if sys.argv[2] == "process":
    lock = ProcessLock(Path(sys.argv[1]))
else:
    lock = file_lock(Path(sys.argv[1]), shared=sys.argv[2] == "shared"); lock.__enter__()
print("held", flush=True)
sys.stdin.read()
"""


class Holder:
    """Another process that holds a lock."""

    def __init__(self, path: Path, kind: str) -> None:
        self.process: subprocess.Popen[str] = start_python(HOLD, path, kind)
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "held\n"

    def __enter__(self) -> Holder:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()


def takes(path: Path, *, shared: bool = False) -> bool:
    """Whether the lock can be had at once."""
    try:
        with file_lock(path, shared=shared, timeout=0):
            return True
    except LockedError:
        return False


def test_shared_and_exclusive(tmp_path: Path) -> None:
    """Readers share, a writer excludes, and a holder that is killed holds nothing any more."""
    path = tmp_path / "new" / "lock"
    assert takes(path)
    with Holder(path, "shared"):
        assert takes(path, shared=True)
        assert not takes(path)
    with Holder(path, "exclusive"):
        assert not takes(path, shared=True)
        assert not takes(path)
    assert takes(path)


def test_waiting(tmp_path: Path) -> None:
    """Waiting ends at the timeout with an error that names the file."""
    path = tmp_path / "lock"
    with file_lock(path):
        start = time.monotonic()
        with pytest.raises(LockedError) as caught, file_lock(path, timeout=0.1):
            pass
        assert 0.1 <= time.monotonic() - start < 5
    assert str(path) in str(caught.value)
    assert caught.value.hint


def test_an_exception_lets_go(tmp_path: Path) -> None:
    """A lock is dropped however its block ends."""
    with pytest.raises(ZeroDivisionError), file_lock(tmp_path / "lock"):
        _ = 1 / 0
    assert takes(tmp_path / "lock")


def test_a_forked_child_keeps_no_lock(tmp_path: Path) -> None:
    """A data loader forked while a lock was held neither keeps it afterwards, nor drops it by ending."""
    code = """
    import os, sys, time
    from pathlib import Path
    from coral.errors import LockedError
    from coral.storage.locks import file_lock
    path = Path(sys.argv[1])
    def free():
        try:
            with file_lock(path, timeout=0):
                return True
        except LockedError:
            return False
    lock = file_lock(path)
    lock.__enter__()
    ended = os.fork()
    if not ended:
        lock.__exit__(None, None, None)
        os._exit(0)
    os.waitpid(ended, 0)
    print("held after a child let go:", not free())
    waiting = os.fork()
    if not waiting:
        time.sleep(60)
        os._exit(0)
    lock.__exit__(None, None, None)
    print("free while a child lives:", free())
    os.kill(waiting, 9)
    os.waitpid(waiting, 0)
    """
    out = run_python(code, tmp_path / "lock")
    assert out == "held after a child let go: True\nfree while a child lives: True\n"


def test_a_process_lock_says_who_lives(tmp_path: Path) -> None:
    """A lock is seen by others while its process lives, and not after kill -9."""
    path = tmp_path / "run.lock"
    assert not is_held(path)
    with Holder(path, "process"):
        assert is_held(path)
        with pytest.raises(LockedError):
            ProcessLock(path)
    assert path.exists()
    assert not is_held(path)


def test_looking_needs_no_write_access(tmp_path: Path) -> None:
    """Whether a run lives can be asked on a file that may only be read, by many at once."""
    path = tmp_path / "run.lock"
    with Holder(path, "process"):
        path.chmod(0o444)
        assert is_held(path)
    assert not is_held(path)
    code = """
    import sys
    from pathlib import Path
    from coral.storage.locks import is_held
    print(any(is_held(Path(sys.argv[1])) for _ in range(3000)))
    """
    askers = [start_python(code, path) for _ in range(2)]
    assert [asker.communicate()[0] for asker in askers] == ["False\n", "False\n"]


def test_a_child_does_not_inherit_the_process_lock(tmp_path: Path) -> None:
    """A forked child neither keeps its dead parent's run alive, nor drops a living parent's lock."""
    code = """
    import os, sys, time
    from pathlib import Path
    from coral.storage.locks import ProcessLock
    lock = ProcessLock(Path(sys.argv[1]))
    child = os.fork()
    if not child:
        lock.release()
        os._exit(0)
    os.waitpid(child, 0)
    child = os.fork()
    if not child:
        os.close(1); os.close(2)
        time.sleep(60)
        os._exit(0)
    print(child, flush=True)
    sys.stdin.read()
    """
    path = tmp_path / "run.lock"
    parent = start_python(code, path)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    try:
        assert is_held(path)
        parent.kill()
        parent.communicate()
        os.kill(child, 0)
        assert not is_held(path)
    finally:
        os.kill(child, 9)


def test_release(tmp_path: Path) -> None:
    """A released lock can be taken again; releasing twice is harmless."""
    lock = ProcessLock(tmp_path / "lock")
    lock.release()
    lock.release()
    with Holder(tmp_path / "lock", "process"), pytest.raises(LockedError):
        ProcessLock(tmp_path / "lock")
    ProcessLock(tmp_path / "lock").release()


def unprivileged(work: Callable[[], None]) -> int:
    """A process that does the work as a user who owns nothing here; it exits with 1 when that raises."""
    child = os.fork()
    if child == 0:
        try:
            if os.geteuid() == 0:
                os.setgroups([])
                os.setgid(65534)
                os.setuid(65534)
            work()
        except BaseException:
            os._exit(1)
        os._exit(0)
    return child


def exit_code(child: int) -> int:
    """How a process ended."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.fixture
def readable() -> Iterator[Path]:
    """A lock file, in a folder that its owner cannot write to either, and anybody can read."""
    folder = Path(tempfile.mkdtemp())
    path = folder / "lock"
    path.touch(0o444)
    for changed, mode in ((path, 0o444), (folder, 0o555)):
        changed.chmod(mode)
    yield path
    folder.chmod(0o755)
    shutil.rmtree(folder)


def test_who_may_only_read_shares_a_lock(readable: Path) -> None:
    """A reader of somebody else's folder can keep a writer out, and cannot be the writer."""
    (heard, held), (go_on, told) = os.pipe(), os.pipe()

    def write() -> None:
        with file_lock(readable, timeout=0):
            pass

    def hold() -> None:
        with file_lock(readable, shared=True, timeout=0):
            os.write(held, b"x")
            os.read(go_on, 1)

    assert exit_code(unprivileged(write)) == 1
    reader = unprivileged(hold)
    os.close(held)
    assert os.read(heard, 1) == b"x"
    assert takes(readable, shared=True)
    if os.geteuid() == 0:
        assert not takes(readable)
    os.write(told, b"x")
    assert exit_code(reader) == 0


def test_a_lock_is_made_as_the_umask_says(tmp_path: Path) -> None:
    """Where files are for a group, so is a new lock: colleagues must be able to hold it."""
    before = os.umask(0o002)
    try:
        assert takes(tmp_path / "lock")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "lock").stat().st_mode) == 0o664


def test_a_lock_is_not_made_elsewhere(tmp_path: Path) -> None:
    """A link in place of a lock file, or of the folder of them, makes no file where it leads."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (tmp_path / "locks").mkdir()
    (tmp_path / "locks" / "store").symlink_to(outside / "made")
    (tmp_path / "linked").symlink_to(outside)
    for path in (tmp_path / "locks" / "store", tmp_path / "linked" / "store"):
        with pytest.raises(StorageError), file_lock(path, timeout=0):
            pass
        with pytest.raises(StorageError):
            ProcessLock(path)
    assert not list(outside.iterdir())
