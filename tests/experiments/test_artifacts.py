"""An artifact that was acknowledged is there for as long as its run is, whoever collects garbage meanwhile."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from coral.errors import ConflictError, StorageError
from coral.experiments import ExperimentTracker
from coral.experiments.experiment import Owner
from coral.ids import ContentRef
from coral.objects import ChunkStore
from coral.repository import Repository

Spawn = Callable[..., "subprocess.Popen[str]"]
COLLECT = "print(repo.maintenance.gc(prune_now=True).packs)"


class Between:
    """A repository's artifacts, with something else that happens once the bytes are stored."""

    def __init__(self, store: ChunkStore, act: Callable[[], object]) -> None:
        self._store, self._act = store, act

    def held(self) -> contextlib.AbstractContextManager[None]:
        return self._store.held()

    def put_bytes(self, data: bytes) -> ContentRef:
        ref = self._store.put_bytes(data)
        self._act()
        return ref

    def get_bytes(self, ref: ContentRef, nbytes: int) -> bytes:
        return self._store.get_bytes(ref, nbytes)


@pytest.fixture
def collecting(spawn: Spawn) -> Iterator[list[subprocess.Popen[str]]]:
    """Collections that were started and had to wait; in the end they were let in."""
    started: list[subprocess.Popen[str]] = []
    yield started
    for process in started:
        out, err = process.communicate(timeout=60)
        assert out == "0\n", err


@pytest.mark.parametrize("owner", ["process", "shell"])
def test_what_is_stored_is_held_until_the_journal_names_it(
    repo: Repository,
    tracker: ExperimentTracker,
    spawn: Spawn,
    collecting: list[subprocess.Popen[str]],
    owner: Owner,
) -> None:
    """A collection that keeps nothing for a grace period waits between the bytes and their name."""
    run = tracker.start("a", owner=owner)

    def collect() -> None:
        process = spawn(COLLECT)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=3)
        collecting.append(process)

    run.artifact_store = Between(repo.store, collect)
    data = os.urandom(5000)
    assert run.log_artifact(data, "a.bin") is not None
    assert collecting[0].wait(timeout=60) == 0
    run.end()
    assert ExperimentTracker(Repository(repo.path)).get(run.experiment_id).load_artifact("a.bin") == data


def test_what_waits_in_memory_is_held_until_the_disk_takes_its_name(
    repo: Repository, tracker: ExperimentTracker, spawn: Spawn
) -> None:
    """While the journal is refused nothing on the disk names an artifact, and no collection takes it."""
    process = spawn(
        """
        import resource
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        warnings.simplefilter("ignore")
        run = tracker.start("a")
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
        for i in range(1000): run.log("loss", i / 3, step=i)
        data = os.urandom(5000)
        kept = run.log_artifact(data, "a.bin")
        print(run.degraded, kept.name, data.hex(), flush=True)
        input()
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        time.sleep(1.1)
        run.log("loss", 0.0, step=1000)
        print(run.degraded, flush=True)
        input()
        """
    )
    assert process.stdout is not None and process.stdin is not None
    degraded, name, data = process.stdout.readline().split()
    assert (degraded, name) == ("True", "a.bin")
    collection = spawn(COLLECT)
    with pytest.raises(subprocess.TimeoutExpired):
        collection.wait(timeout=3)
    process.stdin.write("\n")
    process.stdin.flush()
    assert process.stdout.readline() == "False\n"
    # Let in at once, though the run goes on.
    out, err = collection.communicate(timeout=60)
    assert out == "0\n", err
    process.communicate("\n", timeout=60)
    (run,) = tracker.list()
    assert ExperimentTracker(Repository(repo.path)).get(run.experiment_id).load_artifact("a.bin").hex() == data


@pytest.mark.parametrize("owner", ["process", "shell"])
def test_nothing_is_held_for_a_run_that_was_let_go_of(
    repo: Repository, tracker: ExperimentTracker, owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the disk never took is told of when a run is closed; a collection is kept waiting no longer."""
    run = tracker.start("a", owner=owner)
    journal = _refusing(repo, run.experiment_id)
    with pytest.warns(RuntimeWarning, match="cannot be written"), journal:
        assert run.log_artifact(os.urandom(5000), "a.bin") is not None and run.degraded
        if owner == "shell":
            with pytest.raises(StorageError, match="could not be written"):
                run.close()
        else:
            run.end()
    assert repo.maintenance.gc(prune_now=True).packs == (1 if owner == "shell" else 0)


def test_what_waits_for_a_run_that_another_process_ended_is_told_of(
    repo: Repository, tracker: ExperimentTracker
) -> None:
    """It is not written into the journal that is gone, as if somebody could read it there."""
    run = tracker.start("a", owner="shell")
    with pytest.warns(RuntimeWarning, match="cannot be written"), _refusing(repo, run.experiment_id):
        assert run.log_artifact(os.urandom(5000), "a.bin") is not None
    other = ExperimentTracker(Repository(repo.path))
    other.attach(run.experiment_id).end()
    with pytest.raises(ConflictError, match="has ended"):
        run.log_artifact(os.urandom(5000), "b.bin")
    with pytest.raises(StorageError, match="could not be written"):
        run.close()
    assert other.get(run.experiment_id).artifacts == []


@contextlib.contextmanager
def _refusing(repo: Repository, run: str) -> Iterator[None]:
    """A journal that takes nothing more: its descriptor is one that only reads."""
    journal = repo.folder.root / "experiments" / f"{run}.jsonl"
    (number,) = [
        int(one.name)
        for one in Path("/proc/self/fd").iterdir()
        if one.is_symlink() and os.readlink(one) == str(journal.resolve())
    ]
    kept = os.dup(number)
    reads = os.open(journal, os.O_RDONLY)
    os.dup2(reads, number)
    try:
        yield
    finally:
        os.dup2(kept, number)
        os.close(kept)
        os.close(reads)


def test_the_artifact_that_is_returned_is_the_one_that_was_kept(tracker: ExperimentTracker) -> None:
    """Also while other threads keep theirs."""
    run, interval = tracker.start("a"), sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as pool:
            kept = list(pool.map(lambda number: run.log_artifact(b"%d" % number, f"{number}.bin"), range(400)))
    finally:
        sys.setswitchinterval(interval)
    assert [one.name for one in kept if one is not None] == [f"{number}.bin" for number in range(400)]
