"""What the tests of the user's git share: git alone, without anybody's settings, and a repository of either kind."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.git import helpers

Git = Callable[..., str]


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    for role in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{role}_NAME", "n")
        monkeypatch.setenv(f"GIT_{role}_EMAIL", "e")


@pytest.fixture
def git() -> Git:
    """Run the real git in a folder; returns what it prints."""

    def run(folder: Path, *arguments: str, data: str = "") -> str:
        done = subprocess.run(
            ["git", "-C", folder, *arguments],
            input=data,
            check=False,
            capture_output=True,
            text=True,
            errors="surrogateescape",
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.fixture(params=["sha1", "sha256"])
def work(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A repository with one commit of one file."""
    folder = tmp_path / "work"
    helpers.git(tmp_path, "init", "-q", "-b", "main", f"--object-format={request.param}", str(folder))
    (folder / "base").write_text("base\n")
    helpers.git(folder, "add", "-A")
    helpers.git(folder, "commit", "-q", "-m", "base")
    return folder
