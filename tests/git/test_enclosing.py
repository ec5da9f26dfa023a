"""What is known of the user's own repository, and that asking is harmless."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from coral.git import enclosing
from coral.git.enclosing import CodeState, code_state, common_dir, exclude_file, find_git, identity, is_linked

_ROOT = Path(enclosing.__file__).parents[2]


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    for role in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{role}_NAME", "n")
        monkeypatch.setenv(f"GIT_{role}_EMAIL", "e")


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", folder, *arguments], check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture
def code(tmp_path: Path) -> Path:
    """A repository with one commit of one file."""
    folder = tmp_path / "code"
    folder.mkdir()
    _git(folder, "init", "-q", "-b", "main")
    (folder / "train.py").write_text("print(1)\n")
    _git(folder, "add", "-A")
    _git(folder, "commit", "-q", "-m", "one")
    return folder


def test_state(code: Path) -> None:
    """Commit, branch and dirtiness; untracked files do not count, staged ones do."""
    head = _git(code, "rev-parse", "HEAD")
    assert code_state(code) == CodeState(head, "main", False)
    (code / "untracked").write_text("x")
    (code / "sub").mkdir()
    assert code_state(code / "sub") == CodeState(head, "main", False)
    (code / "train.py").write_text("print(2)\n")
    assert code_state(code) == CodeState(head, "main", True)
    _git(code, "checkout", "-q", "train.py")
    _git(code, "add", "untracked")
    assert code_state(code) == CodeState(head, "main", True)
    _git(code, "commit", "-q", "-m", "two")
    _git(code, "checkout", "-q", "--detach")
    assert code_state(code) == CodeState(_git(code, "rev-parse", "HEAD"), None, False)


def test_conflict_is_dirty(code: Path) -> None:
    """A file in conflict is modified."""
    _git(code, "checkout", "-q", "-b", "side")
    for branch, text in (("side", "2"), ("main", "3")):
        _git(code, "checkout", "-q", branch)
        (code / "train.py").write_text(text)
        _git(code, "commit", "-q", "-a", "-m", branch)
    subprocess.run(["git", "-C", code, "merge", "-q", "side"], check=False, capture_output=True)
    state = code_state(code)
    assert state is not None and state.dirty


def test_no_commit_yet(tmp_path: Path) -> None:
    """A repository without commits has a branch and no commit."""
    _git(tmp_path, "init", "-q", "-b", "trunk")
    assert code_state(tmp_path) == CodeState(None, "trunk", False)


def test_no_repository(tmp_path: Path) -> None:
    """Outside of a repository nothing is known."""
    assert find_git(tmp_path) is None and common_dir(tmp_path) is None and exclude_file(tmp_path) is None
    assert code_state(tmp_path) is None
    assert code_state(tmp_path / "missing" / "folder") is None


@pytest.mark.parametrize("content", ["", "gitdir: /nowhere", "gitdir: \0", "nonsense"])
def test_broken_git_file(tmp_path: Path, content: str) -> None:
    """A .git that leads nowhere is no repository."""
    (tmp_path / ".git").write_text(content)
    assert find_git(tmp_path) is None and code_state(tmp_path) is None


def test_coral_is_not_the_code(code: Path) -> None:
    """The history in .coral is not taken for the user's repository."""
    nested = code / ".coral"
    nested.mkdir()
    _git(nested, "init", "-q", ".")
    assert find_git(nested) == find_git(nested / "packs") == code / ".git"


def test_worktree(code: Path, tmp_path: Path) -> None:
    """A linked worktree has its own state and shares the common folder."""
    tree = tmp_path / "tree"
    _git(code, "worktree", "add", "-q", "-b", "wt", str(tree))
    assert find_git(tree) == tree / ".git"
    assert common_dir(tree) == common_dir(code) == code / ".git"
    assert exclude_file(tree) == code / ".git/info/exclude"
    assert is_linked(tree) and is_linked(tree / "sub") and not is_linked(code) and not is_linked(tmp_path)
    (tree / "train.py").write_text("changed")
    assert code_state(tree) == CodeState(_git(code, "rev-parse", "HEAD"), "wt", True)
    state = code_state(code)
    assert state is not None and not state.dirty


def test_hostile_configuration(code: Path, tmp_path: Path) -> None:
    """No program that the repository's configuration or attributes name is run."""
    trap = tmp_path / "trap"
    script = tmp_path / "evil.sh"
    script.write_text(f"#!/bin/sh\ntouch {trap}\ncat\n")
    script.chmod(0o755)
    hooks = tmp_path / "hooks"
    hooks.mkdir()
    for hook in ("post-index-change", "fsmonitor-watchman", "post-checkout"):
        (hooks / hook).symlink_to(script)
    settings = {
        "core.fsmonitor": script,
        "core.hooksPath": hooks,
        "core.pager": script,
        "diff.external": script,
        "filter.evil.clean": script,
        "filter.evil.process": script,
        "filter.evil.required": "true",
    }
    for key, value in settings.items():
        _git(code, "config", key, str(value))
    (code / ".git/info/attributes").write_text("*.py filter=evil diff=evil\n")
    os.utime(code / "train.py", (1, 1))  # so that git has to look into the file
    state = code_state(code)
    identity(code)
    assert not trap.exists()
    assert state == CodeState(_git(code, "rev-parse", "HEAD"), "main", False)
    trap.unlink(missing_ok=True)
    subprocess.run(["git", "-C", code, "status"], check=False, capture_output=True)  # the trap works
    assert trap.exists()


def test_filter_that_cannot_be_switched_off(code: Path) -> None:
    """A filter with a name that no option can override makes the state unknown."""
    _git(code, "config", "filter.a=b.clean", "cat")
    assert code_state(code) is None


def test_users_own_filters_run(code: Path, tmp_path: Path) -> None:
    """A filter of the user's own configuration, such as git-lfs, stays on: without it the file would look modified."""
    home = tmp_path / "home"
    home.mkdir()
    (home / ".gitconfig").write_text('[filter "up"]\n\tclean = tr a-z A-Z\n\tsmudge = tr A-Z a-z\n')
    (code / ".gitattributes").write_text("*.py filter=up\n")
    _git(code, "add", "--renormalize", ".")
    _git(code, "add", ".gitattributes")
    _git(code, "commit", "-q", "-m", "filtered")
    os.utime(code / "train.py", (1, 1))
    state = code_state(code)
    assert state is not None and not state.dirty


def test_git_refuses(code: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A repository that git refuses, being another user's, is None without a crash."""
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    assert find_git(code) is not None
    assert code_state(code) is None


def test_without_git(code: Path) -> None:
    """A machine without git gets None."""
    program = (
        "import sys; from pathlib import Path; from coral.git.enclosing import *\n"
        "print(code_state(Path(sys.argv[1])), identity(Path(sys.argv[1])), find_git(Path(sys.argv[1])))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, code], env={"PATH": "/nonexistent"}, cwd=_ROOT, capture_output=True, text=True
    )
    assert done.stdout.strip() == f"None None {code / '.git'}", done.stderr


def test_identity(code: Path, tmp_path: Path) -> None:
    """The name and address that git is configured with; the repository's before the user's; also outside of one."""
    assert identity(code) is None
    (tmp_path / "home").mkdir()
    (tmp_path / "home/.gitconfig").write_text("[user]\nname = Ada Lovelace\nemail = ada@x.org\n")
    assert identity(code) == identity(tmp_path) == "Ada Lovelace <ada@x.org>"
    _git(code, "config", "user.name", "Grace")
    assert identity(code) == "Grace <ada@x.org>"
    assert identity(code / "missing" / "folder") == "Grace <ada@x.org>"
