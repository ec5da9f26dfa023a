"""What a forked child does not take over: locks that other threads held, and flocks."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from coral import Repository, forks
from coral.experiments import ExperimentTracker
from coral.storage.folder import Folder
from coral.storage.locks import file_lock
from coral.verbs.provenance import Provenance


def forked(job: Callable[[], None]) -> int:
    """The exit status of a forked child that does a job, and is killed when it hangs."""
    child = os.fork()
    if not child:
        signal.alarm(30)
        try:
            job()
            os._exit(0)
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("make", [forks.lock, forks.rlock])
def test_a_lock_that_another_thread_holds_is_free_in_a_child(
    make: Callable[[], threading.Lock | threading.RLock],
) -> None:
    """The thread is not there to give it back."""
    lock, held, over = make(), threading.Event(), threading.Event()

    def hold() -> None:
        with lock:
            held.set()
            assert over.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    assert held.wait(60)

    def take() -> None:
        assert lock.acquire(timeout=10)

    try:
        assert forked(take) == 0
        assert not lock.acquire(blocking=False)
    finally:
        over.set()
        thread.join()


_HOLDS = """
    import os, signal, sys, time
    from pathlib import Path
    from coral.storage.folder import Folder
    from coral.storage.gate import Gate
    from coral.storage.locks import file_lock
    folder = Path(sys.argv[1])
    def hold(how):
        if how == "lock": return file_lock(folder / "lock")
        if how == "gate": return Gate(folder / "lock").shared()
        return Folder(folder).new_file("lock")
    with hold(sys.argv[2]):
        if not os.fork():
            print(os.getpid(), flush=True)
            time.sleep(100)
        time.sleep(100)
"""


@pytest.mark.parametrize("how", ["lock", "gate", "new file"])
def test_no_flock_outlives_its_holder(tmp_path: Path, how: str) -> None:
    """A process that is killed lets go of all, though a child lives that it forked and that never used coral."""
    command = [sys.executable, "-c", textwrap.dedent(_HOLDS), str(tmp_path), how]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1])
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    try:
        for path in [path for path in tmp_path.iterdir() if path.is_file()]:
            with path.open() as file:
                if not path.name.endswith(".gate"):
                    with pytest.raises(BlockingIOError):
                        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        parent.kill()
        parent.wait()
        os.kill(child, 0)
        for path in [path for path in tmp_path.iterdir() if path.is_file()]:
            with path.open() as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        os.kill(child, signal.SIGKILL)
        parent.stdout.close()


def test_a_child_leaves_its_parents_locks_and_files_alone(tmp_path: Path) -> None:
    """A fork in the middle: the parent still holds what it held, and writes on."""
    folder = Folder(tmp_path, temporary=tmp_path / "tmp")
    with file_lock(tmp_path / "lock"), folder.new_file("x", direct=True) as file:
        file.write(b"a" * 9_000_000)
        assert forked(lambda: None) == 0
        with (tmp_path / "lock").open() as other, pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        file.write(b"b")
        file.publish("x")
    assert (tmp_path / "x").stat().st_size == 9_000_001


def test_children_forked_while_threads_work_can_work_too(tmp_path: Path) -> None:
    """Saving, logging and reading hang in no child, whatever the parent's threads were in the middle of."""
    repo = Repository(tmp_path, init=True)
    run = ExperimentTracker(repo).start("parent")
    state = {"w": np.arange(3000, dtype=np.float32)}
    repo.save(state)
    over = threading.Event()

    def work(number: int) -> None:
        while not over.is_set():
            state["w"][number] += 1
            if number:
                repo.save({"w": state["w"] + number}, wait=False)
            else:
                repo.save(state)
            run.log_params({f"p{number}": time.monotonic()})
            repo.get_weight("w")

    def child() -> None:
        repo.get_all_weights()["w"]
        repo.pin("child" if "child" in repo.branches() else None)
        repo.save({"w": np.full(3000, 7.0)}, wait=False).result()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    try:
        repo.create_branch("child")
        assert [forked(child) for _ in range(8)] == [0] * 8
    finally:
        over.set()
        for thread in threads:
            thread.join()
    run.end()
    assert not repo.maintenance.fsck(read_data=True).damage


def test_a_child_forked_while_git_is_asked_who_commits_asks_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread that waits for git is not there to let go of what it holds."""
    git, project, programs = shutil.which("git"), tmp_path / "project", tmp_path / "programs"
    programs.mkdir()
    subprocess.run(["git", "init", "-q", project], check=True)
    subprocess.run(["git", "-C", project, "config", "user.name", "Ada"], check=True)
    slow = programs / "git"
    wait = f'touch "{tmp_path}/asked"; while [ ! -e "{tmp_path}/go" ]; do sleep 0.01; done'
    slow.write_text(f'#!/bin/sh\n{wait}\nexec "{git}" "$@"\n')
    slow.chmod(0o755)
    monkeypatch.setenv("PATH", str(programs), prepend=os.pathsep)
    asked = Provenance(project)
    thread = threading.Thread(target=lambda: asked.author)
    thread.start()
    while not (tmp_path / "asked").exists():
        time.sleep(0.01)

    def ask() -> None:
        (tmp_path / "go").touch()
        assert (asked.author or "").startswith("Ada")

    try:
        assert forked(ask) == 0
    finally:
        (tmp_path / "go").touch()
        thread.join()
