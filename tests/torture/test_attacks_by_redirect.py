"""Attacks by name: whatever a repository says of where it lies and what git should run, the user's own stays."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from coral import Repository
from coral.verbs.inside_git.filter import GitFilter
from tests.repository.helpers import commit, git
from tests.torture.hostile import FILE, attempt, run_cli, watched

# -- redirects


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """The user's own project in git, with a linked worktree, and one whose git folder is elsewhere."""
    folder = tmp_path / "victim"
    for words in (["init", "-q", str(folder)], ["init", "-q", "--separate-git-dir", f"{folder}.git", f"{folder}.away"]):
        git(tmp_path, *words)
    git(folder, "commit", "-q", "--allow-empty", "-m", "first")
    git(folder, "worktree", "add", "-q", f"{folder}.linked")
    for project in (folder, Path(f"{folder}.away")):
        repo = Repository(project, init=True)
        commit(repo, 1)
        repo.create_branch("work")
    return folder


def set_link(path: Path, target: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target)


def set_git(folder: Path, text: str, **files: str) -> None:
    """A ``.git`` file, and a git folder ``x`` with these files, as an archive may have them."""
    (folder / ".git").write_text(text)
    (folder / "x/worktrees/y").mkdir(parents=True)
    for place in (folder / "x", folder / "x/worktrees/y"):
        (place / "HEAD").write_text("ref: refs/heads/main\n")
        for name, said in files.items():
            (place / name).write_text(said)


def set_own(folder: Path, *, link: str = "", **files: str) -> None:
    """A git folder of its own, with files in it, and links to the victim's in the place of others."""
    git(folder, "init", "-q")
    for name, said in files.items():
        with (folder / ".git" / name).open("a") as file:
            file.write(said)
    if link:
        subprocess.run(["rm", "-r", folder / ".git" / link], check=True)
        (folder / ".git" / link).symlink_to(f"../../victim/.git/{link}")


def set_history(folder: Path, name: str) -> None:
    """A ``.coral`` of its own with the victim's history."""
    commit(Repository(folder, init=True), 2)
    history = folder / ".coral/.git"
    if name == "commondir":
        (history / name).write_text("../../../victim/.coral/.git\n")
        return
    history.rename(folder / "moved")
    if name == "link":
        history.symlink_to("../../victim/.coral/.git")
    else:
        history.write_text("gitdir: ../../victim/.coral/.git\n")


def set_admin_link(folder: Path) -> None:
    set_git(folder, "gitdir: z\n")
    set_link(folder / "z", "../victim/.git/worktrees/victim.linked")


def set_inner_link(folder: Path) -> None:
    set_git(folder, "gitdir: x\n", config="[core]\n\tworktree = ..\n")
    set_link(folder / "x/.coral", "../../victim/.coral")


def set_chain(folder: Path) -> None:
    set_link(folder / ".coral", "a")
    set_link(folder / "a", "b/c")
    set_link(folder / "b/c", "../../victim/.coral")


def set_note(folder: Path) -> None:
    git(folder, "init", "-q")
    commit(Repository(folder, init=True), 2)
    (folder / ".coral/relying").write_text(f"{'0' * 32} {folder.parent}/victim/.git\n")


def set_remote(folder: Path) -> None:
    commit(Repository(folder, init=True), 2)
    with (folder / ".coral/config.toml").open("a") as file:
        file.write('\n[remotes.origin]\nurl = "../victim/.coral"\n')


HOOKS = "[core]\n\thooksPath = ../victim/.git/hooks\n"
REDIRECTS: dict[str, Callable[[Path], object]] = {
    "coral": lambda folder: set_link(folder / ".coral", "../victim/.coral"),
    "coral, absolute": lambda folder: set_link(folder / ".coral", f"{folder.parent}/victim/.coral"),
    "coral, by other links": set_chain,
    "coral, in git's folder": set_inner_link,
    "git's folder": lambda folder: set_git(folder, "gitdir: ../victim/.git\n"),
    "git's folder that is elsewhere": lambda folder: set_git(folder, "gitdir: ../victim.git\n"),
    "git's folder of a linked worktree": lambda folder: set_git(
        folder, "gitdir: ../victim/.git/worktrees/victim.linked\n"
    ),
    "the same by a link": set_admin_link,
    "a linked worktree that is not the victim's": lambda folder: set_git(
        folder, "gitdir: x\n", commondir="../../victim/.git\n", gitdir="../.git\n"
    ),
    "a linked worktree of a repository that is not the victim's": lambda folder: set_git(
        folder, "gitdir: x/worktrees/y\n", commondir="../../../../victim/.git\n", gitdir=f"{folder}/.git\n"
    ),
    "a link for git's folder": lambda folder: set_link(folder / ".git", "../victim/.git"),
    "a link for a linked worktree's": lambda folder: set_link(folder / ".git", "../victim.linked/.git"),
    "a shared folder of git's": lambda folder: set_own(folder, commondir="../../victim/.git\n"),
    "a link for git's settings": lambda folder: set_own(folder, link="config"),
    "a link for git's info": lambda folder: set_own(folder, link="info"),
    "a link for git's hooks": lambda folder: set_own(folder, link="hooks"),
    "hooks elsewhere": lambda folder: set_own(folder, config=HOOKS),
    "a worktree elsewhere": lambda folder: set_own(folder, config="[core]\n\tworktree = ../../victim\n"),
    "a link for the history": lambda folder: set_history(folder, "link"),
    "a file for the history": lambda folder: set_history(folder, "file"),
    "a note of who relies on it": set_note,
    "a remote": set_remote,
    "a shared history": lambda folder: set_history(folder, "commondir"),
}
VERBS = [
    *(["init"], ["status"], ["log"], ["fsck"], ["commit", "-m", "x", FILE], ["add", FILE], ["tag", "evil"], ["undo"]),
    *(["branch", "-d", "work"], ["branch", "new"], ["reset", "HEAD"], ["exp", "start", "e"], ["repack"]),
    *(
        ["gc", "--prune-now"],
        ["fsck", "--repair"],
        ["push", "origin"],
        ["remote", "add", "o", "../o"],
        ["install"],
        ["install", "--force"],
    ),
    *(["track", "*.x"], ["uninstall"], ["pull"], ["import-lfs"], ["resolve", "--list"], ["checkout", "work"]),
]


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", REDIRECTS)
def test_a_redirect_to_what_is_the_users(victim: Path, kind: str, capfd: pytest.CaptureFixture[str]) -> None:
    """Whatever leads from a project that came from elsewhere to the user's own: no verb changes anything there."""
    evil = victim.parent / "evil"
    evil.mkdir()
    REDIRECTS[kind](evil)
    (evil / FILE).write_bytes(safetensors.numpy.save({"w": np.ones(99, "f4")}))
    others = [path for path in victim.parent.iterdir() if path.name.startswith("victim")]
    for words in VERBS:
        with watched(*others, seconds=20):
            run_cli(*words, folder=evil)
    with watched(*others, seconds=20):
        attempt(lambda: Repository(evil, init=True))
        attempt(lambda: GitFilter(evil).keep(FILE, evil / FILE))
        attempt(lambda: commit(Repository(evil), 3))


# -- git's own configuration


def trap(folder: Path) -> tuple[Path, Path]:
    """A program that leaves a mark, and the mark."""
    mark, program = folder / "mark", folder / "program"
    program.write_text(f"#!/bin/sh\ntouch {mark}\ncat\n")
    program.chmod(0o755)
    return program, mark


PROGRAMS = [
    *("core.fsmonitor", "core.pager", "core.editor", "core.sshCommand", "core.gitProxy", "core.askPass"),
    *("core.alternateRefsCommand", "diff.external", "diff.evil.textconv", "diff.evil.command", "merge.evil.driver"),
    *("filter.evil.clean", "filter.evil.smudge", "filter.evil.process", "gpg.program", "gpg.ssh.program"),
    *("gpg.ssh.defaultKeyCommand", "credential.helper", "sequence.editor", "pager.log", "pager.status", "ssh.variant"),
    *("remote.origin.uploadpack", "remote.origin.receivepack", "remote.origin.vcs", "uploadpack.packObjectsHook"),
    *("interactive.diffFilter", "difftool.evil.cmd", "browser.evil.cmd", "web.browser", "trailer.evil.command"),
]
ALIASES = ["status", "config", "rev-parse", "ls-tree", "verify-commit", "cat-file", "log"]


@pytest.mark.parametrize("where", ["the code's", "the history's", "included"])
def test_no_program_of_a_configuration_is_run(
    repo: Repository, tmp_path: Path, where: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """Whatever programs a repository's configuration names, the code's or the history's, no command runs any."""
    code, history = repo.path, repo.folder.root / ".git"
    git(code, "init", "-q")
    (code / "train.py").write_text("x = 1\n")
    (code / ".gitattributes").write_text("* filter=evil diff=evil merge=evil\n")
    git(code, "add", "train.py")
    git(code, "commit", "-q", "-m", "code")
    program, mark = trap(tmp_path)
    hooks = tmp_path / "hooks"
    hooks.mkdir()
    for hook in ("post-index-change", "pre-commit", "post-checkout", "reference-transaction", "fsmonitor-watchman"):
        (hooks / hook).symlink_to(program)
        (history / "hooks" / hook).symlink_to(program)
    folder = repo.folder.root if where == "the history's" else code
    config = tmp_path / "included" if where == "included" else folder / ".git/config"
    for key in (*PROGRAMS, *(f"alias.{name}" for name in ALIASES)):
        value = f"!{program}" if key.startswith(("alias", "credential")) else str(program)
        git(folder, "config", "-f", str(config), key, value)
    git(folder, "config", "-f", str(config), "core.hooksPath", str(hooks))
    if where == "included":
        git(folder, "config", "include.path", str(config))
    os.utime(code / "train.py", (1, 1))
    with watched(seconds=60):
        commit(Repository(code), 5)
        for words in (
            *(["status"], ["log"], ["show"], ["diff"], ["fsck"], ["verify"], ["remote"], ["pull"], ["branch", "new"]),
            *(["commit", "-m", "x", "train.py"], ["tag", "v1"], ["checkout", "main"], ["exp", "list"], ["repack"]),
        ):
            run_cli(*words, folder=code)
    assert not mark.exists()
    subprocess.run(["git", "-C", folder, "status"], capture_output=True, check=False)
    assert mark.exists() or where == "the history's"  # the trap works
