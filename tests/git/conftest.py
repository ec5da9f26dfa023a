"""A repository of the user's, by either way to name objects."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.git.helpers import git


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    for role in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{role}_NAME", "n")
        monkeypatch.setenv(f"GIT_{role}_EMAIL", "e")


@pytest.fixture(params=["sha1", "sha256"])
def work(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A repository with one commit of one file."""
    folder = tmp_path / "work"
    git(tmp_path, "init", "-q", "-b", "main", f"--object-format={request.param}", str(folder))
    (folder / "base").write_text("base\n")
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", "base")
    return folder
