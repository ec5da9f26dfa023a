"""The seams' contracts hold for what coral has, for toys beside it, and find what is wrong."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from coral.experiments import TrackingBackend
from coral.experiments.local.backend import LocalBackend
from coral.experiments.mirror import Mirror
from coral.repository import Repository
from coral.testing.contracts.backends import BackendContract, MemoryBackend
from coral.testing.contracts.mirrors import ListMirror, MirrorContract, Points


class TestLocalBackend(BackendContract):
    """Runs as files."""

    @pytest.fixture
    def backend(self, repo: Repository) -> TrackingBackend:
        """A fresh folder of runs."""
        return LocalBackend(repo.folder)

    def elsewhere(self, backend: TrackingBackend) -> TrackingBackend:
        """With nothing in mind of what it read before."""
        assert isinstance(backend, LocalBackend)
        return LocalBackend(backend._folder)


class TestMemoryBackend(BackendContract):
    """Runs in a dict."""

    @pytest.fixture
    def backend(self) -> TrackingBackend:
        """An empty one."""
        return MemoryBackend()


class TestListMirror(MirrorContract):
    """Events in a list."""

    @pytest.fixture
    def mirror(self) -> Mirror:
        """An empty one."""
        return ListMirror()

    def points(self, mirror: Mirror, run_id: str) -> Points | None:
        """What it has of a run."""
        assert isinstance(mirror, ListMirror)
        return mirror.points(run_id)


FAULTY = """
import time
import pytest
from coral.experiments import events
from coral.testing.contracts.backends import BackendContract, MemoryBackend, MemorySink
from coral.testing.contracts.mirrors import ListMirror, MirrorContract

class Faulty(MirrorContract):
    seconds = 0.5
    @pytest.fixture
    def mirror(self):
        return self.Kind()
    def points(self, mirror, run_id):
        return mirror.points(run_id)

class TestSound(Faulty):
    Kind = ListMirror

class TestRaises(Faulty):
    class Kind(ListMirror):
        def event(self, run, event):
            if event["e"] not in events.KINDS:
                raise KeyError(event["e"])

class TestRaisesAnything(Faulty):
    class Kind(ListMirror):
        def close(self, run):
            raise SystemExit(3)

class TestHangs(Faulty):
    class Kind(ListMirror):
        def event(self, run, event):
            time.sleep(60 if event["e"] == "end" else 0)

class TestLosesPoints(Faulty):
    class Kind(ListMirror):
        def event(self, run, event):
            if event["e"] != "m" or "s" in event:
                super().event(run, event)

class TestStartsAfresh(Faulty):
    class Kind(ListMirror):
        def event(self, run, event):
            if event["e"] == "start":
                self.told = [told for told in self.told if told[0] != run.experiment_id]
            super().event(run, event)

class FaultyBackend(BackendContract):
    @pytest.fixture
    def backend(self, monkeypatch):
        monkeypatch.setattr(MemorySink, "append", self.append)
        return MemoryBackend()

whole = MemorySink.append

class TestLosesAnEvent(FaultyBackend):
    def append(sink, event, **more):
        return 0 if event["e"] == "set" and "labels" in event["v"] else whole(sink, event, **more)
    append = staticmethod(append)

class TestTakesWhatIsLate(FaultyBackend):
    def append(sink, event, **more):
        sink._is_open = True
        try:
            return whole(sink, event, **more)
        except Exception:
            return 0
    append = staticmethod(append)

class TestTellsAnotherTime(FaultyBackend):
    def append(sink, event, **more):
        return whole(sink, event, **more) + 1
    append = staticmethod(append)
"""


def test_what_is_wrong_is_found(tmp_path: Path) -> None:
    """Each planted fault fails a suite, which runs with pytest alone, from anywhere; what is sound fails none."""
    (tmp_path / "test_faulty.py").write_text(FAULTY)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--tb=no", "-rfE", "-p", "no:cacheprovider", "test_faulty.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        check=False,
    )
    told = [line.split("::") for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    failed = {(parts[0].split()[0], parts[1]) for parts in told}
    planted = {line.split()[1].partition("(")[0] for line in FAULTY.splitlines() if line.startswith("class Test")}
    assert failed == {("FAILED", name) for name in planted - {"TestSound"}}, done.stdout + done.stderr
