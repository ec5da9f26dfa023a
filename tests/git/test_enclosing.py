"""What is known of the user's own repository, and that asking is harmless."""

from __future__ import annotations

import dataclasses
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from coral.git import enclosing
from coral.git.enclosing import (
    CodeState,
    code_commit,
    code_state,
    code_subject,
    common_dir,
    find_git,
    identity,
)

_ROOT = Path(enclosing.__file__).parents[2]


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", folder, *arguments], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def without_diff(state: CodeState | None) -> CodeState | None:
    """The same state but for the hash of the changes."""
    return None if state is None else dataclasses.replace(state, diff_hash=None)


def diff_hash(folder: Path) -> str | None:
    """The hash of a repository's changes."""
    state = code_state(folder)
    assert state is not None and state.dirty == (state.diff_hash is not None)
    return state.diff_hash


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
    assert without_diff(code_state(code)) == CodeState(head, "main", True)
    _git(code, "checkout", "-q", "train.py")
    _git(code, "add", "untracked")
    assert without_diff(code_state(code)) == CodeState(head, "main", True)
    _git(code, "commit", "-q", "-m", "two")
    _git(code, "checkout", "-q", "--detach")
    assert code_state(code) == CodeState(_git(code, "rev-parse", "HEAD"), None, False)


CHANGES = {
    "content": "echo 'print(2)' > train.py",
    "other content": "echo 'print(3)' > train.py",
    "mode": "chmod +x train.py",
    "content and mode": "echo 'print(2)' > train.py; chmod +x train.py",
    "removed": "rm train.py",
    "link": "ln -sf there train.py",
    "other link": "ln -sf elsewhere train.py",
    "link's content": "printf there > train.py",
    "added": "echo 'print(2)' > new; git add new",
    "added elsewhere": "echo 'print(2)' > newer; git add newer",
    "moved": "git mv train.py test.py",
    "two": "echo 'print(2)' > train.py; touch new; git add new",
}


def change(folder: Path, name: str) -> None:
    """Make one of the changes."""
    subprocess.run(["sh", "-ec", CHANGES[name]], cwd=folder, check=True)


def test_a_dirty_tree_has_a_hash_of_its_own(code: Path, tmp_path: Path) -> None:
    """Equal changes to the same commit have the same hash, wherever and whenever they are made; others another one."""
    assert diff_hash(code) is None
    hashes: dict[str, str | None] = {}
    for name in CHANGES:
        twins = [tmp_path / "one", tmp_path / "two"]
        for number, twin in enumerate(twins):
            shutil.rmtree(twin, ignore_errors=True)
            _git(tmp_path, "clone", "-q", str(code), str(twin))
            change(twin, name)
            if (twin / "train.py").is_file():
                os.utime(twin / "train.py", (number, number))
        one, two = map(diff_hash, twins)
        assert one == two and one is not None and len(one) == 64
        hashes[name] = one
    assert len(set(hashes.values())) == len(CHANGES)


@pytest.mark.parametrize("name", ["content", "mode", "removed", "link", "moved"])
def test_staging_is_no_change(code: Path, name: str) -> None:
    """What ran is what lies in the files: whether it is staged does not matter."""
    change(code, name)
    before = diff_hash(code)
    _git(code, "add", "-A")
    assert diff_hash(code) == before is not None


def test_the_hash_is_of_changes_against_the_commit(code: Path) -> None:
    """The same bytes over another commit's are another change; committed, they are none."""
    (code / "train.py").write_text("print(2)\n")
    before = diff_hash(code)
    _git(code, "commit", "-qam", "two")
    assert diff_hash(code) is None
    (code / "train.py").write_text("print(3)\n")
    _git(code, "commit", "-qam", "three")
    (code / "train.py").write_text("print(2)\n")
    assert diff_hash(code) not in (before, None)


def test_odd_names_and_bytes(code: Path) -> None:
    """Names that git would quote, and bytes that are no text, count like others."""
    names = [os.fsdecode(b"\xff"), "new\nline", "tab\there", 'quo"te', "größe", " blank"]
    found = set()
    for name in names:
        (code / name).write_bytes(b"\x00\xff")
        _git(code, "add", "-A")
        found.add(diff_hash(code))
    (code / names[0]).write_bytes(b"\x00\xfe")
    assert len({*found, diff_hash(code)}) == len(names) + 1


def test_before_the_first_commit(tmp_path: Path) -> None:
    """Staged files are changes against nothing."""
    _git(tmp_path, "init", "-q", "-b", "main")
    (tmp_path / "train.py").write_text("1")
    assert diff_hash(tmp_path) is None
    _git(tmp_path, "add", ".")
    first = diff_hash(tmp_path)
    (tmp_path / "train.py").write_text("2")
    assert None is not first != diff_hash(tmp_path)


def test_of_a_large_file_the_beginning_counts(code: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its size and its first megabytes tell it apart; no more is read."""
    monkeypatch.setattr(enclosing, "_READ_BYTES", 10)
    file, found = code / "train.py", []
    for text in ("0123456789abc", "0123456789xyz", "0123456789ab", "x123456789abc"):
        file.write_text(text)
        found.append(diff_hash(code))
    assert found[0] == found[1] and len(set(found)) == 3


def test_what_took_a_files_place_is_not_waited_for(code: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipe that nobody writes to, a folder, what cannot be read: a change, and no more."""
    file = code / "train.py"
    file.unlink()
    os.mkfifo(file)
    assert diff_hash(code) is not None
    file.unlink()
    file.mkdir()
    assert diff_hash(code) is not None
    file.rmdir()
    monkeypatch.chdir(code)  # the path of a socket must be short
    with socket.socket(socket.AF_UNIX) as there:
        there.bind("train.py")
        assert diff_hash(code) is not None


@pytest.mark.parametrize("scope", ["--local", "--global"])
def test_what_coral_keeps_is_not_looked_at(code: Path, tmp_path: Path, scope: str) -> None:
    """Models that coral's filter keeps are neither read nor filtered, and no code: rewriting one leaves that clean."""
    trap = tmp_path / "trap"
    (tmp_path / "home").mkdir()
    (code / "sub").mkdir()
    (code / ".gitattributes").write_text("*.pt filter=coral\n")
    for name in ("model.pt", "sub/model.pt"):
        (code / name).write_text("weights")
    _git(code, "add", "-A")
    _git(code, "commit", "-qm", "models")
    _git(code, "config", scope, "filter.coral.clean", f"touch {trap}; cat")
    _git(code, "config", scope, "filter.coral.required", "true")
    for text in ("WEIGHTS", "other weights"):  # as many bytes as before, which git would have to read, and more
        (code / "model.pt").write_text(text)
        (code / "sub/model.pt").write_text(text)
        assert diff_hash(code) is diff_hash(code / "sub") is None
    blob = _git(code, "hash-object", "-w", "--no-filters", "train.py")
    _git(code, "update-index", "--cacheinfo", f"100644,{blob},model.pt")
    assert diff_hash(code) is None
    (code / "train.py").write_text("print(2)\n")
    before = diff_hash(code)
    (code / "model.pt").unlink()
    assert diff_hash(code) == before is not None
    assert not trap.exists()


def test_patterns_are_patterns_whatever_the_environment(code: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A git that was told to take all names literally hands that on to what it runs."""
    monkeypatch.setenv("GIT_LITERAL_PATHSPECS", "1")
    (code / "train.py").write_text("print(2)\n")
    assert diff_hash(code) is not None


def test_two_processes_of_git_are_enough(code: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commit, branch and changes are one question; the other one is which filters must not run."""
    (code / "train.py").write_text("print(2)\n")
    (tmp_path / "trace").mkdir()
    assert diff_hash(code) is not None  # GitPython asks for git's version once
    monkeypatch.setenv("GIT_TRACE2_EVENT", str(tmp_path / "trace"))
    assert diff_hash(code) is not None
    assert len(list((tmp_path / "trace").iterdir())) == 2


def test_conflict_is_dirty(code: Path) -> None:
    """A file in conflict is modified."""
    _git(code, "checkout", "-q", "-b", "side")
    for branch, text in (("side", "2"), ("main", "3")):
        _git(code, "checkout", "-q", branch)
        (code / "train.py").write_text(text)
        _git(code, "commit", "-q", "-a", "-m", branch)
    subprocess.run(["git", "-C", code, "merge", "-q", "side"], check=False, capture_output=True)
    found = {diff_hash(code)}
    for target in ("here", "there"):
        (code / "train.py").unlink()
        (code / "train.py").symlink_to(target)
        found.add(diff_hash(code))
    assert len(found) == 3 and None not in found


def test_resolving_a_conflict_is_no_change(code: Path) -> None:
    """A file that is resolved is the same before and after it is staged, among others that changed."""
    (code / "z.py").touch()
    _git(code, "add", ".")
    _git(code, "commit", "-qm", "two files")
    for branch, text in (("side", "2"), ("main", "3")):
        _git(code, "checkout", "-q", *(["-b"] if branch == "side" else []), branch)
        (code / "train.py").write_text(text)
        _git(code, "commit", "-qam", branch)
    subprocess.run(["git", "-C", code, "merge", "-q", "side"], check=False, capture_output=True)
    (code / "train.py").write_text("resolved")
    (code / "z.py").write_text("changed")
    before = diff_hash(code)
    _git(code, "add", "train.py")
    assert diff_hash(code) == before is not None


def test_a_file_that_git_let_go_of_is_not_code(code: Path) -> None:
    """Staged as removed but left on the disk, a file is untracked, whatever is in it."""
    _git(code, "rm", "-q", "--cached", "train.py")
    before = diff_hash(code)
    (code / "train.py").write_text("mine")
    assert diff_hash(code) == before is not None


def test_no_commit_yet(tmp_path: Path) -> None:
    """A repository without commits has a branch and no commit."""
    _git(tmp_path, "init", "-q", "-b", "trunk")
    assert code_state(tmp_path) == CodeState(None, "trunk", False)


def test_no_repository(tmp_path: Path) -> None:
    """Outside of a repository nothing is known."""
    assert find_git(tmp_path) is None and common_dir(tmp_path) is None
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
    (tree / "train.py").write_text("changed")
    assert without_diff(code_state(tree)) == CodeState(_git(code, "rev-parse", "HEAD"), "wt", True)
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
        "diff.evil.command": script,
        "diff.evil.textconv": script,
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
    assert state == CodeState(_git(code, "rev-parse", "HEAD"), "main", False)
    (code / "train.py").write_text("changed")
    assert diff_hash(code) is not None
    assert not trap.exists()
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


def test_commits_by_name_and_their_subjects(code: Path, tmp_path: Path) -> None:
    """What git calls a commit, by its full hash, and the first line it has for it; None for what it does not know."""
    head = _git(code, "rev-parse", "HEAD")
    _git(code, "tag", "-a", "v1", "-m", "tagged")
    for name in ("HEAD", "main", "v1", head, head[:7], "HEAD^{/one}", "@{0}"):
        assert code_commit(code, name) == head
    for name in ("", "nowhere", "--help", "--since=yesterday", "HEAD~1", "HEAD:train.py", "a\0b", "0" * 40):
        assert code_commit(code, name) is None
    assert code_commit(tmp_path, "HEAD") is None and code_subject(tmp_path, head) is None
    assert code_subject(code, head) == "one"
    for name in ("0" * 40, "HEAD", "--batch", _git(code, "rev-parse", "HEAD:train.py")):
        assert code_subject(code, name) is None
    _git(code, "commit", "-q", "--allow-empty", "--allow-empty-message", "-m", "")
    assert code_subject(code, _git(code, "rev-parse", "HEAD")) == ""
    _git(code, "commit", "-q", "--allow-empty", "-m", "größe\n\nbecause")
    assert code_subject(code, _git(code, "rev-parse", "HEAD")) == "größe"


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
