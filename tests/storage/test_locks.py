"""Locks between real processes; none outlives its holder."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest

from coral.errors import LockedError
from coral.storage.locks import ProcessLock, file_lock, is_held
from tests.storage.test_folder import run_python, start_python

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
