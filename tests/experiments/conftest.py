"""What the tests of the experiments share: a repository, a tracker, and scripts in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from coral.experiments import Experiment, ExperimentTracker, endings
from coral.history import Commit
from coral.repository import Repository

PRELUDE = """
import json, os, signal, sys, threading, time, warnings
from coral.repository import Repository
from coral.experiments import ExperimentTracker, ExperimentStatus
repo = Repository(sys.argv[1])
tracker = ExperimentTracker(repo)
def commit(value, **kwargs):
    import numpy as np
    repo.stage_weights({"w": np.full(4, value, dtype=np.float32)})
    return repo.commit(f"value {value}", **kwargs)
"""

Spawn = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def repo(tmp_path: Path) -> Repository:
    """A fresh repository."""
    return Repository(tmp_path / "project", init=True)


@pytest.fixture
def tracker(repo: Repository) -> Iterator[ExperimentTracker]:
    """A tracker of it; what it leaves running is ended."""
    tracker = ExperimentTracker(repo)
    yield tracker
    for run in endings.live():
        run.finish(*endings.describe(GeneratorExit()))


@pytest.fixture(scope="session")
def commit() -> Callable[..., Commit]:
    """``commit(repo, value)``: a commit of one small tensor."""

    def make(repo: Repository, value: float, **kwargs: object) -> Commit:
        repo.stage_weights({"w": np.full(4, value, dtype=np.float32)})
        return repo.commit(f"value {value}", **kwargs)  # type: ignore[call-overload, no-any-return]

    return make


@pytest.fixture(scope="session")
def finished() -> Callable[..., Experiment]:
    """``finished(tracker, name, losses)``: a run that logged these and ended."""

    def run(tracker: ExperimentTracker, name: str, values: list[float], **kwargs: object) -> Experiment:
        tracker.start(name, **kwargs)  # type: ignore[arg-type]
        for step, value in enumerate(values):
            tracker.log("loss", value, step=step)
        return tracker.end()

    return run


@pytest.fixture
def spawn(repo: Repository) -> Iterator[Spawn]:
    """Starts a script in its own process, with ``repo``, ``tracker`` and ``commit`` at hand."""
    started: list[subprocess.Popen[str]] = []

    def start(script: str, *arguments: str, prelude: str = PRELUDE) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", prelude + textwrap.dedent(script), str(repo.path), *arguments]
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
        process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()
