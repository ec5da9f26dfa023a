"""A fresh repository."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from coral import Repository


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return tmp_path / "project"


@pytest.fixture
def quick() -> Iterator[Path]:
    """A folder in memory where there is one: for tests of many commits, whose fsyncs would take the time."""
    memory = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(dir=memory if memory.is_dir() else None))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def repo(project: Path) -> Repository:
    return Repository(project, init=True)
