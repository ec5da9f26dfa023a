"""What git is about to push: only what its remote lacks, as far as that is known here."""

from __future__ import annotations

from pathlib import Path

import pytest

from coral import Repository
from coral.errors import UsageError
from coral.verbs.inside_git.prepush import Update, parse_updates, pushed_manifests
from tests.repository.helpers import git
from tests.repository.in_git import commit

NULL = "0" * 40


@pytest.fixture
def repo(tmp_path: Path) -> Repository:
    """A git project with coral in it."""
    git(tmp_path, "init", "-q", "-b", "main")
    return Repository(tmp_path, init=True)


def pushed(repo: Repository, local: str, remote: str = NULL, *, to: str = "origin", url: str = "url") -> list[str]:
    """The paths of the manifests that such a push would send."""
    if local != NULL:
        local = git(repo.path, "rev-parse", local).strip()
    if remote != NULL and len(remote) < 40:
        remote = git(repo.path, "rev-parse", remote).strip()
    updates = [Update("refs/heads/x", local, "refs/heads/x", remote)]
    return sorted(where.path for where, _ in pushed_manifests(repo.path, updates, remote=to, url=url))


def test_only_what_the_remote_lacks(repo: Repository) -> None:
    """What the ref pointed at there, and what was last seen of the remote's branches, is left out."""
    for seed in range(3):
        commit(repo, seed, f"m{seed}")
    assert pushed(repo, "HEAD") == ["m0", "m1", "m2"]
    assert pushed(repo, "HEAD", "HEAD~1") == ["m2"]
    assert pushed(repo, "HEAD", "1" * 40) == ["m0", "m1", "m2"]
    git(repo.path, "update-ref", "refs/remotes/origin/main", "HEAD~2")
    assert pushed(repo, "HEAD") == ["m1", "m2"]
    assert pushed(repo, "HEAD~2") == pushed(repo, NULL, "HEAD") == []


def test_only_refs_of_that_remote_count(repo: Repository) -> None:
    """The refs of another remote, or of one that a path or a pattern looks like, say nothing of this one."""
    commit(repo, 0, "m0")
    for name in ("other", "origin2", "origin"):
        git(repo.path, "update-ref", f"refs/remotes/{name}/main", "HEAD")
        assert pushed(repo, "HEAD", to="nas") == ["m0"]
        assert pushed(repo, "HEAD", to="o*") == ["m0"]
    git(repo.path, "update-ref", "-d", "refs/remotes/origin/main")
    assert pushed(repo, "HEAD") == ["m0"]
    git(repo.path, "update-ref", "refs/remotes/origin/main", "HEAD")
    assert pushed(repo, "HEAD") == []
    # 'git push origin', where that is a folder, and no remote any more.
    assert pushed(repo, "HEAD", to="origin", url="origin") == ["m0"]


def test_a_deletion_asks_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing is pushed no git is run."""
    monkeypatch.setenv("PATH", "/nonexistent")
    updates = parse_updates(f"(delete) {NULL} refs/heads/x {'1' * 40}\n(delete) {'0' * 64} refs/heads/y {'1' * 64}\n")
    assert list(pushed_manifests(tmp_path / "nowhere", updates, remote="origin", url="url")) == []


@pytest.mark.parametrize("line", ["a b c", "a b c d e", "\n"])
def test_other_lines(line: str) -> None:
    """Only git's lines are understood."""
    with pytest.raises(UsageError):
        parse_updates(line + "\n")
