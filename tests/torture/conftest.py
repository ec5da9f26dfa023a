"""What the torture tests share: a place in memory, repositories to begin with, and a warm process."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from coral import Repository
from coral.testing.processes import Warm
from tests.repository.helpers import commit
from tests.torture.harness import start
from tests.torture.scenarios import prepare


@pytest.fixture(scope="session")
def place() -> Iterator[Path]:
    """A folder in memory where there is one: thousands of repositories are written and thrown away."""
    memory = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(prefix="coral-", dir=memory if memory.is_dir() else None)).resolve()
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def template(place: Path) -> Path:
    """The repository that every scenario begins with."""
    prepare(place / "template")
    return place / "template"


@pytest.fixture(scope="session")
def warm(place: Path) -> Iterator[Warm]:
    """A warm process under watch."""
    started = start(place)
    if started is None:
        pytest.skip("NOT TESTED: no C compiler, or not Linux, so system calls cannot be watched")
    with started:
        yield started


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A folder of the user's that nothing may touch."""
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "precious").write_bytes(b"precious")
    (folder / "main").write_bytes(b"a file of the user's\n")
    return folder


@pytest.fixture
def repo(tmp_path: Path) -> Repository:
    """A repository with a commit."""
    repo = Repository(tmp_path / "project", init=True)
    commit(repo, 1)
    return repo
