"""A git repository whose models coral keeps, driven by the real git."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.inside_git.helpers import ATTRIBUTES, Project, isolate


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    isolate(tmp_path, monkeypatch)


@pytest.fixture(params=["sha1"])
def project(tmp_path: Path, request: pytest.FixtureRequest) -> Project:
    """An empty repository in which models are tracked."""
    folder = tmp_path / "project"
    folder.mkdir()
    made = Project(folder)
    subprocess.run(["git", "init", "-q", "-b", "main", f"--object-format={request.param}", folder], check=True)
    made.configure()
    made.write(".gitattributes", ATTRIBUTES.encode())
    made.git("add", ".gitattributes")
    made.git("commit", "-q", "-m", "attributes")
    return made
