"""Files as git-LFS keeps them: a pointer in git, the bytes beside it."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import pytest

from tests.inside_git.helpers import Project

LINE = "filter=lfs diff=lfs merge=lfs -text"


CORAL_LINE = "filter=coral diff=coral merge=coral -text"


both = pytest.mark.parametrize("project", ["sha1", "sha256"], indirect=True)


def pointer_of(data: bytes) -> bytes:
    """What git-LFS keeps in git for a file."""
    return b"version https://git-lfs.github.com/spec/v1\noid sha256:%s\nsize %d\n" % (
        hashlib.sha256(data).hexdigest().encode(),
        len(data),
    )


def keep_in_lfs(project: Project, data: bytes, root: str = ".git/lfs") -> Path:
    """Put a file where git-LFS would."""
    name = hashlib.sha256(data).hexdigest()
    return project.write(f"{root}/objects/{name[:2]}/{name[2:4]}/{name}", data)


def lfs(
    project: Project, attributes: str = f"*.safetensors {LINE}\n", message: str = "with LFS", **files: bytes
) -> str:
    """Commit files as git-LFS would, and have the files themselves only where git-LFS keeps them.

    Returns:
        The commit.
    """
    project.write(".gitattributes", attributes.encode())
    for name, data in files.items():
        keep_in_lfs(project, data)
        project.write(f"{name}.safetensors", pointer_of(data))
    project.git("add", "-A")
    project.git("commit", "-q", "-m", message)
    return project.git("rev-parse", "HEAD")


def complaint(project: Project, *arguments: str) -> tuple[int, str]:
    """How a call of coral fails."""
    done = project.run(sys.executable, "-m", "coral", *arguments, check=False)
    return done.returncode, done.stderr.decode()


def refused(project: Project, *arguments: str) -> str:
    """Why an import changes nothing."""
    before = project.git("ls-files", "-s"), project.git("status", "--porcelain"), project.git("for-each-ref")
    code, said = complaint(project, "import-lfs", *arguments)
    assert code in (2, 4)
    assert (project.git("ls-files", "-s"), project.git("status", "--porcelain"), project.git("for-each-ref")) == before
    return said
