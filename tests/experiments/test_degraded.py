"""Tracking never kills training: a disk that refuses costs one warning, and what was logged comes back."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import subprocess
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from coral.errors import ConflictError, StorageError
from coral.experiments import Experiment, ExperimentTracker
from coral.experiments.experiment import Owner
from coral.experiments.local import liveness
from coral.experiments.local import writer as writer_module
from coral.experiments.local.backend import LocalBackend
from coral.experiments.local.journal import decode
from coral.experiments.local.record import Identity, encode
from coral.experiments.local.writer import JournalWriter
from coral.repository import Repository
from coral.storage import disk
from coral.storage.files import AppendFile
from coral.testing.disks import Failing, Recording

Spawn = Callable[..., "subprocess.Popen[str]"]


class Disk:
    """A file that can be made to refuse, or to take half a line."""

    def __init__(self, path: Path) -> None:
        self.path, self.full, self.torn, self.time = path, False, False, 1000.0

    def open(self) -> AppendFile:
        """The journal; refused while full."""
        if self.full:
            raise StorageError("no space", errno=errno.ENOSPC)
        disk = self

        class File(AppendFile):
            def write_line(self, data: bytes) -> None:
                self.write(data)

            def write(self, data: bytes) -> None:  # type: ignore[override]
                if disk.full:
                    if disk.torn:
                        super().write(data[: len(data) // 2])
                    raise StorageError("no space", errno=errno.ENOSPC)
                super().write(data)

        return File(self.path)

    def logged(self) -> list[float]:
        """The values in the file."""
        return [event["v"]["a"] for event in decode(self.path.read_bytes())[0] if event["e"] == "m"]  # type: ignore


@pytest.mark.parametrize("torn", [False, True])
def test_what_is_logged_on_a_full_disk_comes_back(tmp_path: Path, torn: bool) -> None:
    """One warning, degraded until the disk takes it again, then every point in order, torn writes or not."""
    disk = Disk(tmp_path / "j")
    disk.torn = torn
    sink = JournalWriter(disk.open, "run x", clock=lambda: disk.time)
    sink.point("a", 1.0, 1)
    disk.full = True
    with pytest.warns(RuntimeWarning, match="run x") as caught:
        for value in (2.0, 3.0):
            disk.time += 2
            sink.point("a", value, 2)
            sink.append({"e": "p", "v": {}}, durable=True)
    assert len(caught) == 1 and sink.degraded and len(sink.pending) == 4
    disk.full = False
    sink.point("a", 4.0, 3)
    assert sink.degraded
    disk.time += 2
    sink.point("a", 5.0, 4)
    assert not sink.degraded and sink.pending == []
    assert disk.logged() == [1.0, 2.0, 3.0, 4.0, 5.0]


def test_a_disk_that_is_full_from_the_start(tmp_path: Path) -> None:
    """The journal is opened as soon as that works."""
    disk = Disk(tmp_path / "j")
    disk.full = True
    with pytest.warns(RuntimeWarning):
        sink = JournalWriter(disk.open, "run x", clock=lambda: disk.time)
    sink.point("a", 1.0, None)
    disk.full, disk.time = False, disk.time + 2
    sink.point("a", float("nan"), None)
    assert disk.logged() == [1.0, "NaN"]


def test_the_buffer_is_bounded_and_counts_what_it_drops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest points go first; parameters and commits stay; the record says how many are missing."""
    monkeypatch.setattr(writer_module, "MAX_PENDING", 10)
    disk = Disk(tmp_path / "j")
    sink = JournalWriter(disk.open, "run x", clock=lambda: disk.time)
    disk.full = True
    with pytest.warns(RuntimeWarning):
        sink.append({"e": "p", "v": {"lr": 1}})
        for value in range(30):
            sink.point("a", float(value), value)
    disk.full, disk.time = False, disk.time + 2
    sink.append({"e": "p", "v": {"lr": 2}})
    events = decode(disk.path.read_bytes())[0]
    assert [event["v"] for event in events if event["e"] == "p"] == [{"lr": 1}, {"lr": 2}]
    assert events[-1]["e"] == "drop" and events[-1]["n"] == 22
    assert disk.logged() == [float(value) for value in range(22, 30)]


def test_a_limit_on_the_file_size_in_a_real_process(spawn: Spawn, tracker: ExperimentTracker) -> None:
    """RLIMIT_FSIZE refuses writes as a full disk does: the script finishes, and once lifted nothing is missing."""
    process = spawn(
        """
        import resource
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        run = tracker.start("a")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
            for i in range(1000): run.log("loss", i / 3, step=i)
            run.log_artifact(os.urandom(50_000), "big.bin")
            print(run.degraded, len(run.metrics), [str(one.message).count("cannot be written") for one in caught])
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        time.sleep(1.1)
        run.log("loss", 0.0, step=1000)
        print(run.degraded, len(run.metrics))
        """
    )
    out, err = process.communicate(timeout=60)
    assert out.splitlines() == ["True 1000 [1, 0]", "False 1001"], err
    (run,) = tracker.list()
    assert str(run.status) == "completed" and run.dropped_points == 0
    assert [point.value for point in run.metrics] == [*(i / 3 for i in range(1000)), 0.0]


def test_a_real_full_disk(tmp_path: Path, spawn: Spawn) -> None:
    """On a full tmpfs training goes on and ends; freed, the run is whole."""
    mount = tmp_path / "small"
    mount.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "none", str(mount)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"needs the right to mount a tmpfs: {done.stderr.strip()}")
    try:
        process = spawn(
            """
            warnings.simplefilter("ignore")
            repo = Repository(sys.argv[2], init=True)
            run = ExperimentTracker(repo).start("a")
            filler = open(sys.argv[2] + "/filler", "wb", buffering=0)
            try:
                while True: filler.write(bytes(4096))
            except OSError: pass
            for i in range(3000): run.log("loss", i / 3, step=i)
            print(run.degraded)
            os.truncate(sys.argv[2] + "/filler", 0)
            run.end()
            print(run.degraded, run.status)
            """,
            str(mount),
        )
        out, err = process.communicate(timeout=60)
        assert out.splitlines() == ["True", "False completed"], err
        (run,) = ExperimentTracker(Repository(mount)).list()
        assert str(run.status) == "completed" and len(run.metrics) == 3000
    finally:
        subprocess.run(["umount", str(mount)], check=False)


def test_a_read_only_folder_still_answers(repo: Repository, tracker: ExperimentTracker) -> None:
    """Queries need nothing to be written; a read-only bind mount answers them, dead runs included."""
    tracker.start("a").log("loss", 0.5, step=1)
    tracker.end()
    done = subprocess.run(["mount", "--bind", str(repo.path), str(repo.path)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"needs the right to mount: {done.stderr.strip()}")
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", str(repo.path)], check=True)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            fresh = ExperimentTracker(Repository(repo.path))
            assert fresh.find_best("loss", "min")[0]["best_value"] == 0.5
            assert len(fresh.list()) == 1 and fresh.get_summary()["total_experiments"] == 1
        with pytest.warns(RuntimeWarning, match="training goes on"):
            run = fresh.start("b")
        run.log("loss", 1.0)
        assert run.degraded and len(run.metrics) == 1
        with pytest.warns(RuntimeWarning):
            assert str(run.end().status) == "completed"
    finally:
        subprocess.run(["umount", str(repo.path)], check=False)


def commit(repo: Repository, value: float, step: int | None = None) -> str:
    """Commit a weight; returns the hash."""
    repo.stage_weights({"w": np.full(4, value, dtype=np.float32)})
    return repo.commit("c", step=step).commit_hash


def test_a_journal_that_lost_its_name_costs_nothing(repo: Repository, tracker: ExperimentTracker) -> None:
    """Commits land and are linked, points can be read, and the run ends whole: its process still has the file."""
    run = tracker.start("a", tags=["x"])
    run.log("loss", 0.5, step=1)
    (repo.folder.root / "experiments" / f"{run.experiment_id}.jsonl").unlink()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = commit(repo, 1.0, step=1)
        run.log("loss", 0.25, step=2)
        assert [one.commit_hash for one in run.commits] == [made] == [run.commit_hash]
        assert [point.value for point in run.metrics] == [0.5, 0.25]
        run.add_tags(["y"])
        assert str(run.end().status) == "completed"
    (found,) = ExperimentTracker(Repository(repo.path)).list()
    assert str(found.status) == "completed" and found.tags == ["x", "y"]
    assert [point.value for point in found.metrics] == [0.5, 0.25]
    assert [(one.commit_hash, one.after) for one in found.commits] == [(made, 1)]
    assert os.listdir(repo.folder.root / "experiments") == [f"{run.experiment_id}.json"]


def test_a_run_taken_for_dead_ends_as_its_own_process_says(repo: Repository, tracker: ExperimentTracker) -> None:
    """Where another machine folded it as lost, its own end is what counts; nothing is lost, nothing is there twice."""
    run = tracker.start("a")
    run.log("loss", 0.5, step=1)
    made = commit(repo, 1.0, step=1)
    backend = LocalBackend(repo.folder)
    live = backend._following._read_live(run.experiment_id)
    backend._following._lose(live)
    repo.folder.sub("experiments").write(f"{run.experiment_id}.json", encode(live.record, live.history))
    (repo.folder.root / "experiments" / f"{run.experiment_id}.jsonl").unlink()
    assert str(ExperimentTracker(Repository(repo.path)).get(run.experiment_id).status) == "failed"
    run.log("loss", 0.25, step=2)
    run.end()
    found = ExperimentTracker(Repository(repo.path)).get(run.experiment_id)
    assert str(found.status) == "completed" and found.failure is None
    assert [point.value for point in found.metrics] == [0.5, 0.25]
    assert [one.commit_hash for one in found.commits] == [made]


def test_a_commit_stands_when_its_run_cannot_take_it(repo: Repository, tracker: ExperimentTracker) -> None:
    """The run was ended elsewhere meanwhile: the commits land, and one warning says that the run does not list them."""
    run = tracker.start("a", owner="shell")
    other = ExperimentTracker(Repository(repo.path))
    other.attach(run.experiment_id).end()
    with pytest.warns(RuntimeWarning, match="does not list its commits") as caught:
        made = [commit(repo, value) for value in (1.0, 2.0)]
    assert len(caught) == 1 and caught[0].filename == __file__
    assert [one.commit_hash for one in repo.log()] == made[::-1] and run.commits == []
    run.close()
    assert other.get(run.experiment_id).commits == []


def test_an_ended_run_is_not_brought_back_by_attaching(repo: Repository, tracker: ExperimentTracker) -> None:
    """One that ends between the look at it and the opening of its journal is refused, and no new journal is made."""
    started = tracker.start("a", owner="shell")
    started.log("loss", 1.0, step=0)
    started.close()

    class Slow(LocalBackend):
        def load(self, experiment_id: str) -> Experiment:
            found = super().load(experiment_id)
            ExperimentTracker(Repository(repo.path)).attach(experiment_id).end()
            return found

    slow = ExperimentTracker(repo, backend=Slow(repo.folder))
    with pytest.raises(ConflictError, match="has ended"):
        slow.attach(started.experiment_id)
    assert slow.active is None
    assert os.listdir(repo.folder.root / "experiments") == [f"{started.experiment_id}.json"]


NO_LOCKS = """
import errno, fcntl
def refuse(*_):
    raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))
fcntl.lockf = refuse
"""


def test_the_pid_stands_in_where_locks_fail(
    repo: Repository, tracker: ExperimentTracker, spawn: Spawn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a file system without record locks a run is written from the start, and others see whether it lives."""
    process = spawn(
        NO_LOCKS
        + """
run = tracker.start("a")
run.log("loss", 0.5, step=1)
print(run.degraded, run.experiment_id, tracker.get(run.experiment_id).status, flush=True)
time.sleep(60)
"""
    )
    assert process.stdout is not None
    degraded, run_id, seen = process.stdout.readline().split()
    assert (degraded, seen) == ("False", "running")

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "lockf", refuse)
    assert str(tracker.get(run_id).status) == "running" and len(tracker.get(run_id).metrics) == 1
    process.kill()
    process.wait()
    assert (tracker.get(run_id).failure or {})["kind"] == "lost"


def test_another_containers_run_is_taken_to_live_where_locks_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its pid means nothing here; where locks work, they say it."""
    lock = tmp_path / "lock"
    lock.touch()
    who = Identity("process", 2**22 + 1, "1", liveness.boot_id(), socket.gethostname() + "-other")
    if not who.boot:
        pytest.skip("the system has no boot id")
    assert not liveness.is_alive(who, lock)

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "lockf", refuse)
    assert liveness.is_alive(who, lock)


def test_a_repository_opened_by_two_paths_keeps_its_locks(
    tmp_path: Path, repo: Repository, tracker: ExperimentTracker, spawn: Spawn
) -> None:
    """Asking by another path does not drop the lock that says that the run lives."""
    run = tracker.start("a")
    twin = tmp_path / "twin"
    twin.mkdir()
    (twin / ".coral").symlink_to(repo.folder.root)
    (repo.folder.root / "linked-from").write_text(f"{twin}\n")
    (seen,) = ExperimentTracker(Repository(twin)).list()
    assert str(seen.status) == "running"
    process = spawn(
        "from pathlib import Path; from coral.storage.locks import is_held; print(is_held(Path(sys.argv[2])))",
        str(repo.folder.root / "locks" / "runs" / run.experiment_id),
    )
    assert process.communicate(timeout=30)[0] == "True\n"


def test_what_is_logged_is_synced_though_nothing_follows(
    tracker: ExperimentTracker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut takes the last seconds' points, however long ago the last call was; an idle run syncs nothing."""
    monkeypatch.setattr(writer_module, "IDLE_SECONDS", 0.05)
    run = tracker.start("a")
    recording = Recording()
    with disk.use(recording):
        for step in range(3):
            run.log("loss", 0.5, step)
        until = time.monotonic() + 20
        while not recording.operations or recording.operations[-1].kind != "sync":
            assert time.monotonic() < until, recording.operations
            time.sleep(0.01)
        made = len(recording.operations)
        time.sleep(0.3)
        assert [one.kind for one in recording.operations] == ["write"] * 3 + ["sync"] * (made - 3)
        assert len(recording.operations) <= made + 1
    run.end()
    names = [thread.name for thread in threading.enumerate() if "_sync_now_and_then" in thread.name]
    until = time.monotonic() + 20
    while any(thread.name in names for thread in threading.enumerate()) and time.monotonic() < until:
        time.sleep(0.01)
    assert not [thread for thread in threading.enumerate() if thread.name in names]


@pytest.mark.parametrize("owner", ["process", "shell"])
def test_an_fsync_that_failed_costs_no_line(
    tracker: ExperimentTracker, repo: Repository, owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The journal is never synced again: a new one takes its place, where no other process writes to it as well."""
    monkeypatch.setattr(writer_module, "SYNC_SECONDS", 0.0)
    monkeypatch.setattr(writer_module, "RETRY_SECONDS", 0.0)
    run = tracker.start("x", owner=owner)
    journal = repo.folder.root / "experiments" / f"{run.experiment_id}.jsonl"
    first = journal.stat().st_ino
    run.log("a", 1.0, 1)
    recording = Recording()
    with disk.use(Failing(0, errno.EIO, kinds=["sync"], below=recording)):
        with pytest.warns(RuntimeWarning, match="cannot be written"):
            run.log("a", 2.0, 2)
        for step in (3, 4):
            run.log("a", float(step), step)
    assert [point.step for point in run.metrics] == [1, 2, 3, 4]
    assert run.degraded is (owner == "shell")
    assert (journal.stat().st_ino != first) is (owner == "process")
    made = [operation.kind for operation in recording.operations if operation.kind in ("create", "sync", "rename")]
    assert made[:4] == (["create", "sync", "rename", "sync"] if owner == "process" else [])
    run.end()
    assert [point.value for point in tracker.get(run.experiment_id).metrics] == [1.0, 2.0, 3.0, 4.0]


def _identity(pid: int, start: str = "") -> Identity:
    """A run's process on this machine, as a system tells it that has no ``/proc`` unless ``start`` is given."""
    return Identity("process", pid, start, liveness.boot_id() if start else "", socket.gethostname())


def test_a_process_without_a_start_time_lives_while_its_pid_does(tmp_path: Path) -> None:
    """Where the system tells no start time (macOS), the pid says whether the run lives."""
    lock = tmp_path / "lock"
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as process:
        assert liveness.is_alive(_identity(process.pid), lock)
        process.kill()
        process.wait()
        assert not liveness.is_alive(_identity(process.pid), lock)


def test_another_users_process_lives(tmp_path: Path) -> None:
    """A pid that may not be asked is somebody's."""
    is_root = os.getuid() == 0
    asked = os.getpid() if is_root else 1
    child = os.fork()
    if child == 0:
        code = 1
        try:
            if is_root:
                os.setuid(65534)
            with pytest.raises(PermissionError):
                os.kill(asked, 0)
            code = 0 if liveness.is_alive(_identity(asked), tmp_path / "lock") else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="the system tells no start time")
def test_a_reused_pid_is_another_process(tmp_path: Path) -> None:
    """A living pid with another start time is not the run's, and a process that only waits to be reaped is dead."""
    lock = tmp_path / "lock"
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as process:
        start = liveness.start_time(process.pid)
        assert start.isdigit()
        assert liveness.is_alive(_identity(process.pid, start), lock)
        assert not liveness.is_alive(_identity(process.pid, str(int(start) + 1)), lock)
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert not liveness.start_time(process.pid)
        assert not liveness.is_alive(_identity(process.pid, start), lock)
    assert not liveness.start_time(process.pid)


def test_a_lost_run_on_a_disk_that_refuses_keeps_its_best_commit(tracker: ExperimentTracker, spawn: Spawn) -> None:
    """A run that died and cannot be folded is told as if it had been: lost, and with the commit of its best step."""
    process = spawn(
        """
run = tracker.start("a", objective={"loss": "min"})
run.log("loss", 0.5, step=1)
print(commit(1, step=1).commit_hash, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    )
    assert process.stdout is not None
    made = process.stdout.readline().strip()
    process.wait()
    with disk.use(Failing(0, errno.EROFS, forever=True)):
        (best,) = tracker.find_best("loss")
        assert (best["status"], best["commit_hash"], best["link"]) == ("failed", made, "exact")
    (best,) = tracker.find_best("loss")
    assert (best["status"], best["commit_hash"], best["link"]) == ("failed", made, "exact")
