"""One object, many callers: signal handlers, threads, forked children, and other processes that hold a lock."""

from __future__ import annotations

import fcntl
import gc
import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from coral import ConflictError, Repository, UsageError
from coral.errors import OverwriteError
from tests.repository.helpers import child, commit, raw, read, run, weights

LARGE = {f"w{number}": np.random.default_rng(number).random((64, 4096), dtype=np.float32) for number in range(24)}


def test_a_signal_handler_cannot_save_in_the_middle_of_a_save(tmp_path: Path) -> None:
    """It is refused before it touches anything; what was interrupted lands whole."""
    repo = Repository(tmp_path, init=True)
    refused: list[str] = []

    def handler(*_: object) -> None:
        try:
            repo.save({"x": np.arange(9.0)})
        except ConflictError as error:
            refused.append(error.message)

    before = signal.signal(signal.SIGUSR1, handler)
    try:
        repo.stage_weights(LARGE, progress=lambda _: os.kill(os.getpid(), signal.SIGUSR1))
    finally:
        signal.signal(signal.SIGUSR1, before)
    repo.commit("interrupted")
    assert refused
    assert read(Repository(tmp_path)) == raw(LARGE)


def test_a_forked_child_starts_with_nothing_staged(tmp_path: Path) -> None:
    """Parent and child each commit their own; neither writes into the other's pack."""
    out = run(
        """
        repo = Repository(sys.argv[1], init=True)
        repo.stage_weights(weights(1), "a")
        pid = os.fork()
        if pid == 0:
            assert not repo.status().staged
            repo.stage_weights(weights(2), "b")
            repo.commit("child")
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        repo.stage_weights(weights(3), "c")
        repo.commit("parent")
        fresh = Repository(sys.argv[1])
        print([read(fresh, "HEAD", name) == raw(weights(seed)) for name, seed in (("a", 1), ("b", 2), ("c", 3))])
        """,
        tmp_path,
    )
    assert out.strip() == "[True, True, True]"


def test_threads_that_save_do_not_mix_their_checkpoints(tmp_path: Path) -> None:
    """Each commit of `save` holds the weights, the state and the step of its own call."""
    repo = Repository(tmp_path, init=True)
    wrong: list[float] = []

    def save(first: int) -> None:
        for step in range(first, first + 10):
            made = repo.save({"w": np.full(50, float(step))}, step=step, number=step)
            held = np.asarray(Repository(tmp_path).get_weight("w", made.commit_hash))
            state = repo.get_state(made.commit_hash)
            if held[0] != step or made.step != step or state != {"state": {"number": step}}:
                wrong.append(step)

    threads = [threading.Thread(target=save, args=(100 * number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert len(list(repo.log())) == 30


def test_status_does_not_wait_for_whoever_is_staging(tmp_path: Path) -> None:
    """A long `coral add` holds the staging lock; looking needs none."""
    commit(Repository(tmp_path, init=True), 1)
    with (tmp_path / ".coral/staging/lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        asked = child("print(Repository(sys.argv[1], shell_staging=True).status().branch)", tmp_path)
        assert asked.communicate(timeout=30)[0].strip() == "main"


def test_what_cannot_be_committed_is_refused_when_staged(tmp_path: Path) -> None:
    """A name, metadata or key that no file could hold must not block later commits."""
    repo = Repository(tmp_path, init=True)
    one = np.zeros(20)
    for tensors, metadata in (
        ({"\ud800": one}, None),
        ({"__metadata__": one}, None),
        ({"a": one}, {"key": 1}),
        ({"a": one}, {"coral.state": "{}"}),
    ):
        with pytest.raises(UsageError):
            repo.stage_weights(tensors, metadata=metadata)  # type: ignore[arg-type]
    assert commit(repo, 1).message == "seed 1"


def test_a_write_through_a_memory_map_is_not_overwritten(tmp_path: Path) -> None:
    """It may leave size and times as they were, so a file is hashed before it is replaced."""
    repo = Repository(tmp_path, init=True)
    path = tmp_path / "a.npy"
    for value in (7, 1):
        np.save(path, np.full(1000, value, "f4"))
        repo.stage_file(path)
        repo.commit(str(value))
    mapped = np.lib.format.open_memmap(path, "r+")
    mapped[:] = 1
    time.sleep(0.1)  # until the stamp is old enough to be kept
    assert not Repository(tmp_path).status().modified
    mapped[:] = 2  # its page is dirty already, so that neither size nor times move
    for ref, part in (("HEAD~1", "a.npy"), ("HEAD", "a.npy"), ("HEAD", None)):
        with pytest.raises(OverwriteError):
            Repository(tmp_path).checkout(ref, part)
    assert np.load(path)[0] == 2


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="open files are counted in /proc, which is Linux's")
def test_an_object_that_never_commits_leaves_nothing(tmp_path: Path) -> None:
    """Its pack, its locks and its descriptors go with it."""
    Repository(tmp_path, init=True)

    def stage() -> None:
        Repository(tmp_path).stage_weights(weights(1))
        gc.collect()

    stage()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        stage()
    assert len(os.listdir("/proc/self/fd")) <= before
    assert not list((tmp_path / ".coral/tmp").iterdir())
