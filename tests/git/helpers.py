"""Short ways to use the real git."""

from __future__ import annotations

import subprocess
from pathlib import Path


def git(folder: Path, *arguments: str, code: int = 0, data: bytes | None = None) -> str:
    """What git prints; it must exit with ``code``."""
    done = subprocess.run(["git", "-C", folder, *arguments], check=False, capture_output=True, input=data)
    assert done.returncode == code, done.stderr.decode() + done.stdout.decode()
    return done.stdout.decode().strip()


def blob(folder: Path, text: str) -> str:
    """Store a blob that nothing holds; returns its id."""
    return git(folder, "hash-object", "-w", "--stdin", data=text.encode())


def commit(folder: Path, name: str, text: str) -> str:
    """Commit a file; returns the commit's id."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    git(folder, "add", "--", name)
    git(folder, "commit", "-q", "-m", name)
    return git(folder, "rev-parse", "HEAD")


def conflict(work: Path) -> None:
    """A merge under way: the file ``both`` is in conflict."""
    git(work, "checkout", "-q", "-b", "side")
    commit(work, "both", "theirs\n")
    git(work, "checkout", "-q", "main")
    commit(work, "both", "ours\n")
    git(work, "merge", "-q", "side", code=1)
