"""``coral push``, and git's own push with coral's hook: what a clone needs is there before git names it."""

from __future__ import annotations

import json
import os
import secrets
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from coral import Repository
from coral.errors import CorruptionError
from coral.format.manifest import Manifest
from coral.verbs.config import Remote
from coral.verbs.git_manifests import manifests_of_head
from coral.verbs.sharing.remotes import add_remote, open_remote
from coral.verbs.sharing.transfer import Transferred, fetch_missing
from tests.repository.helpers import ROOT, git, run_command
from tests.repository.in_git import commit, conflict

HOOK = f'#!/bin/sh\nPYTHONPATH={ROOT} exec {shlex.quote(sys.executable)} -m coral git-pre-push "$@"\n'


BOTH = pytest.mark.parametrize("repo", ["sha1", "sha256"], indirect=True)


@pytest.fixture
def repo(request: pytest.FixtureRequest, tmp_path: Path) -> Repository:
    """A git project with coral in it, its hook, and a git remote that is empty."""
    names = getattr(request, "param", "sha1")
    folder = tmp_path / "project"
    for made, kind in ((folder, ()), (tmp_path / "git", ("--bare",))):
        git(tmp_path, "init", "-q", "-b", "main", f"--object-format={names}", *kind, str(made))
    (folder / "train.py").write_text("print()\n")
    git(folder, "add", "train.py")
    git(folder, "commit", "-q", "-m", "code")
    git(folder, "remote", "add", "origin", str(tmp_path / "git"))
    hook = folder / ".git/hooks/pre-push"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text(HOOK)
    hook.chmod(0o755)
    return Repository(folder, init=True)


def name_remote(repo: Repository, name: str = "origin") -> Path:
    """Name a coral remote; returns its folder."""
    root = repo.path.parent / f"tensors-{name}"
    add_remote(repo.path, repo.folder, Remote(name, str(root)))
    return root


def push(repo: Repository, *arguments: str, code: int = 0, folder: Path | None = None, **env: str) -> str:
    """What ``git push`` says."""
    done = subprocess.run(
        ["git", "-C", folder or repo.path, "push", "-q", *arguments],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    return done.stderr


def pushed(repo: Repository) -> dict[str, str]:
    """The refs of the git remote."""
    lines = git(repo.path.parent / "git", "for-each-ref", "--format=%(refname) %(objectname)").splitlines()
    return dict(line.split(" ") for line in lines)


def arrived(repo: Repository, *manifests: Manifest, name: str = "origin") -> bool:
    """Whether a colleague can fetch all of these manifests' tensors."""
    clone = Repository(repo.path.parent / secrets.token_hex(4), init=True)
    try:
        fetch_missing(clone.store, open_remote(repo.path, Repository(repo.path).config, name), manifests)
    except CorruptionError:
        return False
    return True


# -- git push


@BOTH
def test_tensors_go_first(repo: Repository) -> None:
    """A push sends the tensors of all its commits, says so, and the next one only what is new."""
    name_remote(repo)
    first = [commit(repo, 1), commit(repo, 2, rows=100_000)]
    assert "coral: sent " in push(repo, "origin", "main")
    assert arrived(repo, *first)
    last = commit(repo, 3)
    assert not arrived(repo, last)
    assert "coral: sent 1 chunk, " in push(repo, "origin", "main")
    assert arrived(repo, last)
    assert pushed(repo)["refs/heads/main"] == git(repo.path, "rev-parse", "HEAD").strip()


def test_a_push_without_tensors_is_silent(repo: Repository) -> None:
    """Code alone is pushed as ever, with no coral remote; a remote-tracking branch tells what is new."""
    assert push(repo, "origin", "main") == ""
    commit(repo, 1)
    push(repo, "--no-verify", "origin", "main")
    (repo.path / "train.py").write_text("print(2)\n")
    git(repo.path, "commit", "-q", "-a", "-m", "code")
    assert push(repo, "origin", "main") == ""


@BOTH
@pytest.mark.parametrize("how", ["branch", "annotated tag", "force", "all", "delete", "url", "detached"])
def test_all_ways_to_push(repo: Repository, how: str) -> None:
    """New branches, tags, forced pushes, several refs at once, deletions, pushes to a mere url."""
    name_remote(repo)
    before = commit(repo, 1)
    push(repo, "origin", "main", "main:other", "main:third")
    git(repo.path, "reset", "-q", "--hard", "HEAD~1")
    one = commit(repo, 2)
    git(repo.path, "branch", "side")
    git(repo.path, "tag", "-a", "-m", "a tag", "v1")
    two = commit(repo, 3)
    ways = {
        "branch": (["origin", "side"], [one]),
        "annotated tag": (["origin", "v1"], [one]),
        "force": (["--force", "origin", "main"], [one, two]),
        "all": (["--force", "--all", "origin"], [one, two]),
        "delete": (["origin", ":other", "side"], [one]),
        "url": ([str(repo.path.parent / "git"), "HEAD:refs/heads/new"], [one, two]),
        "detached": (["origin", "HEAD~1:refs/heads/new"], [one]),
    }
    arguments, wanted = ways[how]
    push(repo, *arguments)
    assert arrived(repo, before, *wanted)
    assert arrived(repo, two) == (two in wanted)
    push(repo, "origin", "--delete", "third")


def test_a_branch_that_moved_on_elsewhere(repo: Repository) -> None:
    """The remote may be at a commit that nobody here has."""
    name_remote(repo)
    push(repo, "origin", "main")
    other = repo.path.parent / "other"
    git(repo.path.parent, "clone", "-q", str(repo.path.parent / "git"), str(other))
    git(other, "commit", "-q", "--allow-empty", "-m", "elsewhere")
    git(other, "push", "-q", "origin", "main")
    mine = commit(repo, 1)
    push(repo, "--force", "origin", "main")
    assert arrived(repo, mine)


def test_without_a_remote_the_push_fails(repo: Repository) -> None:
    """A clone would lack the tensors: git pushes nothing, and the user is told what to do, or how to push anyway."""
    commit(repo, 1)
    said = push(repo, "origin", "main", code=1)
    assert "coral remote add" in said and "--no-verify" in said and "CORAL_SKIP_PUSH" in said
    assert pushed(repo) == {}
    push(repo, "origin", "main", CORAL_SKIP_PUSH="1")
    commit(repo, 2)
    push(repo, "--no-verify", "origin", "main")
    assert pushed(repo)["refs/heads/main"] == git(repo.path, "rev-parse", "HEAD").strip()


def test_an_offered_remote_is_not_written_to(repo: Repository) -> None:
    """What a commit offers gets nothing before the user adopts it; the message tells of it."""
    commit(repo, 1)
    (repo.path / ".coralconfig").write_text(f'[remotes.origin]\nurl = "{repo.path.parent}/evil"\n')
    assert "coral remote adopt" in push(repo, "origin", "main", code=1)
    assert not (repo.path.parent / "evil").exists()


def test_the_remote_of_the_same_name(repo: Repository) -> None:
    """The coral remote named like git's; else origin; else the only one; else nobody can say."""
    only = commit(repo, 1)
    name_remote(repo, "nas")
    push(repo, "origin", "main")
    assert arrived(repo, only, name="nas")
    git(repo.path, "remote", "add", "other", str(repo.path.parent / "git"))
    name_remote(repo, "usb")
    second = commit(repo, 2)
    assert "which remote: nas, usb" in push(repo, "other", "main", code=1)
    name_remote(repo)
    push(repo, "other", "main")
    assert arrived(repo, second) and not arrived(repo, second, name="usb")
    git(repo.path, "remote", "add", "usb", str(repo.path.parent / "git"))
    third = commit(repo, 3)
    push(repo, "usb", "main")
    assert arrived(repo, third, name="usb") and not arrived(repo, third)


def test_a_remote_that_is_away(repo: Repository) -> None:
    """A disk that is not mounted keeps git from pushing."""
    root = name_remote(repo)
    root.rename(root.with_name("away"))
    commit(repo, 1)
    assert "mount it" in push(repo, "origin", "main", code=1)
    assert pushed(repo) == {} and not root.exists()


def test_what_is_lost_keeps_git_from_pushing(repo: Repository) -> None:
    """A manifest whose chunks are nowhere is not pushed; one whose chunks the remote has is."""
    name_remote(repo)
    kept = commit(repo, 1)
    push(repo, "origin", "main")
    lost = commit(repo, 2)
    for path in (repo.folder.root / "packs").iterdir():
        path.unlink()
    assert "layer.weight" in push(repo, "origin", "main", code=1)
    assert arrived(repo, kept) and not arrived(repo, lost)
    push(repo, "origin", "HEAD~1:refs/heads/new")


def test_without_a_repository_of_corals(repo: Repository) -> None:
    """Where there is no .coral, code is pushed as ever; manifests have no tensors that could be sent."""
    repo.folder.root.rename(repo.path.parent / "moved")
    assert push(repo, "origin", "main") == ""
    (repo.path.parent / "moved").rename(repo.folder.root)
    commit(repo, 1)
    repo.folder.root.rename(repo.path.parent / "moved")
    said = push(repo, "origin", "main", code=1)
    assert "is not a coral repository" in said or "no coral repository" in said


def test_from_a_linked_worktree(repo: Repository) -> None:
    """Worktrees share the tensors and the remotes."""
    name_remote(repo)
    linked = repo.path.parent / "linked"
    git(repo.path, "worktree", "add", "-q", "-b", "side", str(linked))
    manifest = commit(Repository(linked), 1)
    push(repo, "origin", "side", folder=linked)
    assert arrived(repo, manifest)


def test_what_is_no_manifest_is_pushed(repo: Repository) -> None:
    """A file that somebody committed with conflict markers in it is no reason to keep the rest back."""
    name_remote(repo)
    ours, theirs = conflict(repo)
    git(repo.path, "commit", "-q", "-a", "-m", "with its markers")
    push(repo, "origin", "main")
    assert arrived(repo, ours, theirs)


def test_a_newer_manifest_keeps_git_from_pushing(repo: Repository) -> None:
    """Nobody knows here what a newer manifest needs."""
    name_remote(repo)
    (repo.path / "newer").write_text("coral manifest 2\n")
    git(repo.path, "add", "newer")
    git(repo.path, "commit", "-q", "-m", "newer")
    assert "upgrade coral" in push(repo, "origin", "main", code=1)


def test_what_git_would_not_say(repo: Repository) -> None:
    """Anything but git's lines is wrong usage."""
    done = subprocess.run(
        [sys.executable, "-m", "coral", "git-pre-push", "origin", "url"],
        cwd=repo.path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        input="one two\n",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2 and "pre-push" in done.stderr


def test_the_hook_is_light(repo: Repository) -> None:
    """A push of code loads no numpy."""
    head = git(repo.path, "rev-parse", "HEAD").strip()
    program = (
        "import sys, io\n"
        f"sys.stdin = io.StringIO('refs/heads/main {head} refs/heads/main {'0' * len(head)}\\n')\n"
        "sys.argv = ['coral', 'git-pre-push', 'origin', 'url']\n"
        "from coral.cli import main\n"
        "try:\n    main()\n"
        "except SystemExit as exit:\n    print(exit.code, 'numpy' in sys.modules, 'pygit2' in sys.modules)\n"
    )
    assert run_command([sys.executable, "-c", program], repo.path).stdout == "0 False False\n"


# -- coral push


def test_push_by_hand(repo: Repository) -> None:
    """All that led to git's HEAD and the tips of coral's history are sent, once; what was sent is said."""
    name_remote(repo)
    name_remote(repo, "backup")
    mine = [commit(repo, seed) for seed in range(4)]

    def coral_push(*arguments: str, code: int = 0) -> str:
        done = run_command([sys.executable, "-m", "coral", "push", *arguments], repo.path)
        assert done.returncode == code, done.stderr
        return done.stdout + done.stderr

    assert json.loads(coral_push("--json"))["remote"] == "origin"
    assert coral_push() == "'origin' has everything already\n"
    assert arrived(repo, *mine)
    assert coral_push("backup").startswith("sent 4 chunks, ")
    assert "there is no remote 'nobody'" in coral_push("nobody", code=3)
    assert Repository(repo.path).remotes.push() == Transferred(0, 0)
    assert [found for _, found in manifests_of_head(repo.path)] == mine[::-1]
