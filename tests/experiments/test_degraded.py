"""Tracking never kills training: a disk that refuses costs one warning, and what was logged comes back."""

from __future__ import annotations

import errno
import subprocess
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from coral.errors import StorageError
from coral.experiments import ExperimentTracker
from coral.experiments import sink as sink_module
from coral.experiments.journal import decode
from coral.experiments.sink import Sink
from coral.repository import Repository
from coral.storage.folder import AppendFile

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
    sink = Sink(disk.open, "run x", clock=lambda: disk.time)
    sink.point("a", 1.0, 1)
    disk.full = True
    with pytest.warns(RuntimeWarning, match="run x") as caught:
        for value in (2.0, 3.0):
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
        sink = Sink(disk.open, "run x", clock=lambda: disk.time)
    sink.point("a", 1.0, None)
    disk.full, disk.time = False, disk.time + 2
    sink.point("a", float("nan"), None)
    assert disk.logged() == [1.0, "NaN"]


def test_the_buffer_is_bounded_and_counts_what_it_drops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest points go first; parameters and commits stay; the record says how many are missing."""
    monkeypatch.setattr(sink_module, "MAX_PENDING", 10)
    disk = Disk(tmp_path / "j")
    sink = Sink(disk.open, "run x", clock=lambda: disk.time)
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
