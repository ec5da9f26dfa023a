"""The pre-push hook: coral's beside the user's, in real pushes; the user's comes back as it was."""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from coral.errors import ConflictError
from coral.git.hooks import BEFORE, knows_its_name, script, state_of
from coral.git.surroundings import surroundings_of
from coral.verbs.inside_git.install import Installed, Uninstalled, install, uninstall
from tests.git.conftest import Git

Push = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def code(git: Git, tmp_path: Path) -> Path:
    """A repository with a commit, and a bare one to push it to."""
    git(tmp_path, "init", "-q", "--bare", "remote.git")
    git(tmp_path, "init", "-q", "-b", "main", "code")
    folder = tmp_path / "code"
    git(folder, "remote", "add", "origin", "../remote.git")
    git(folder, "commit", "-q", "--allow-empty", "-m", "one")
    return folder


@pytest.fixture
def push(code: Path) -> Push:
    """Push to the remote; whatever becomes of it."""

    def run(*refs: str, folder: Path = code) -> subprocess.CompletedProcess[str]:
        refs = refs or ("HEAD:refs/heads/main",)
        command = ["git", "-C", str(folder), "push", "-q", "origin", *refs]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    return run


def program(path: Path, log: Path, *, status: int = 0) -> Path:
    """A stand-in for coral, or for a hook, that writes its name, arguments and standard input down."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        f'#!/bin/sh\n[ "$1" = --version ] && exit\n'
        f'{{ printf "%s: %s\\n" {path.name} "$*"; cat; echo "(end)"; }} >> {log}\nexit {status}\n'
    )
    path.chmod(0o755)
    return path


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """What the stand-ins wrote down."""
    return tmp_path / "log"


@pytest.fixture
def coral(tmp_path: Path, log: Path) -> Path:
    """A stand-in for coral's program."""
    return program(tmp_path / "a b'c" / "coral", log)


def set_up(code: Path, coral: Path) -> Installed:
    return install(surroundings_of(code), [str(coral)])


def take_out(code: Path) -> Uninstalled:
    return uninstall(surroundings_of(code))


def pushed(git: Git, code: Path, ref: str = "main") -> bool:
    """Whether the remote has the commit that HEAD is at."""
    listed = git(code, "ls-remote", "origin", f"refs/heads/{ref}")
    return listed.startswith(git(code, "rev-parse", "HEAD").strip())


def look(folder: Path) -> dict[str, tuple[int, bytes | str]]:
    """Every file of a hooks folder with its mode and bytes; of a link, where it leads."""
    return {
        path.name: (path.lstat().st_mode, os.readlink(path) if path.is_symlink() else path.read_bytes())
        for path in folder.iterdir()
    }


def test_a_push_runs_coral(git: Git, code: Path, push: Push, coral: Path, log: Path) -> None:
    """Coral gets git's own arguments and standard input, and the push goes on when it succeeds."""
    done = set_up(code, coral)
    assert (done.hook, done.change, done.before) == (code / ".git/hooks/pre-push", "written", None)
    assert push().returncode == 0 and pushed(git, code)
    head = git(code, "rev-parse", "HEAD").strip()
    lines = f"HEAD {head} refs/heads/main {'0' * 40}\n"
    assert log.read_text() == f"coral: git-pre-push origin ../remote.git\n{lines}(end)\n"


def test_a_push_fails_with_coral(git: Git, code: Path, push: Push, tmp_path: Path, log: Path) -> None:
    """When coral fails nothing is pushed; it has said why itself."""
    set_up(code, program(tmp_path / "coral", log, status=3))
    done = push()
    assert done.returncode != 0 and not pushed(git, code)
    assert "cannot be run" not in done.stderr


@pytest.mark.parametrize("gone", ["program", "interpreter", "module"])
def test_a_push_without_the_program_fails(
    git: Git, code: Path, push: Push, coral: Path, tmp_path: Path, gone: str
) -> None:
    """A coral that was removed, or whose Python was, stops the push, and it is said what to do."""
    words = [str(coral)]
    if gone == "module":
        fake = program(tmp_path / "python", tmp_path / "log", status=1)
        fake.write_text("#!/bin/sh\necho No module named coral >&2\nexit 1\n")
        words = [str(fake), "-P", "-m", "coral"]
    install(surroundings_of(code), words)
    if gone == "program":
        coral.unlink()
    elif gone == "interpreter":
        coral.write_text("#!/nonexistent/python\n")
    done = push()
    assert done.returncode != 0 and not pushed(git, code)
    assert "nothing was pushed" in done.stderr and "run 'coral install' here" in done.stderr
    assert push("--no-verify", "HEAD:refs/heads/main").returncode == 0


def test_installing_twice_changes_nothing(code: Path, coral: Path) -> None:
    """The second time finds all as it should be."""
    set_up(code, coral)
    before = look(code / ".git/hooks")
    done = set_up(code, coral)
    assert done.change == "unchanged" and not done.changed
    assert look(code / ".git/hooks") == before


def test_a_program_that_moved_is_updated(
    git: Git, code: Path, push: Push, coral: Path, tmp_path: Path, log: Path
) -> None:
    """Installing again names the new path, in the hook as well, and still runs the user's hook before."""
    theirs = program(code / ".git/hooks/pre-push", log)
    set_up(code, coral)
    coral.unlink()
    assert set_up(code, program(tmp_path / "new" / "coral", log)).change == "written"
    assert push().returncode == 0
    assert [line.split(":")[0] for line in log.read_text().splitlines() if ": " in line] == ["pre-push", "coral"]
    assert take_out(code).change == "restored" and state_of(theirs.read_bytes()) == "foreign"


# -- the user's hook


@pytest.mark.parametrize("mode", [0o755, 0o700, 0o777])
def test_the_users_hook_runs_first(git: Git, code: Path, push: Push, coral: Path, log: Path, mode: int) -> None:
    """With the same arguments and standard input, several refs included; mode and bytes are kept, and given back."""
    hook = program(code / ".git/hooks/pre-push", log)
    hook.chmod(mode)
    before = look(hook.parent)
    done = set_up(code, coral)
    assert done.before == hook.with_name(BEFORE)
    assert look(hook.parent)[BEFORE] == before["pre-push"]
    git(code, "branch", "side")
    assert push("main", "side").returncode == 0
    theirs, ours, nothing = log.read_text().split("(end)\n")
    assert nothing == "" and theirs.startswith("pre-push: origin ../remote.git\n")
    assert ours.startswith("coral: git-pre-push origin ../remote.git\n")
    assert theirs.split("\n", 1)[1] == ours.split("\n", 1)[1] and theirs.count("refs/heads/side") == 2
    assert take_out(code).change == "restored"
    assert look(hook.parent) == before


def test_the_users_hook_stops_the_push(git: Git, code: Path, push: Push, coral: Path, log: Path) -> None:
    """When the user's hook fails coral does not even run."""
    program(code / ".git/hooks/pre-push", log, status=9)
    set_up(code, coral)
    assert push().returncode != 0 and not pushed(git, code)
    assert "coral:" not in log.read_text()


def test_a_hook_that_reads_nothing_is_no_matter(git: Git, code: Path, push: Push, coral: Path, log: Path) -> None:
    """A hook may end before it has read thousands of refs: neither complaint nor failure."""
    hook = code / ".git/hooks/pre-push"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text("exit 0\n")  # and git runs hooks without a shebang
    hook.chmod(0o755)
    set_up(code, coral)
    lines = "".join(f"refs/heads/{n:040} {n:040} refs/heads/{n:040} {n:040}\n" for n in range(5000))
    command = [str(hook), "origin", "url"]  # where SIGPIPE is ignored, as some callers of git leave it
    done = subprocess.run(
        command, cwd=code, input=lines, capture_output=True, text=True, check=False, restore_signals=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert log.read_text() == f"coral: git-pre-push origin url\n{lines}(end)\n"


def test_nothing_to_push_is_passed_on(code: Path, coral: Path, log: Path) -> None:
    """Empty standard input stays empty; one without a last line break stays so."""
    program(code / ".git/hooks/pre-push", log)
    set_up(code, coral)
    for data in ("", "no end", "\n\n"):
        log.unlink(missing_ok=True)
        subprocess.run([code / ".git/hooks/pre-push", "o"], cwd=code, input=data, text=True, check=True)
        assert log.read_text() == f"pre-push: o\n{data}(end)\ncoral: git-pre-push o\n{data}(end)\n"


def test_a_hook_that_git_did_not_run_is_not_run(git: Git, code: Path, push: Push, coral: Path, log: Path) -> None:
    """A hook that is not executable stays switched off, and comes back as it was."""
    hook = program(code / ".git/hooks/pre-push", log)
    hook.chmod(0o644)
    before = look(hook.parent)
    set_up(code, coral)
    assert push().returncode == 0
    assert log.read_text().startswith("coral:")
    assert take_out(code).change == "restored" and look(hook.parent) == before


@pytest.mark.parametrize("target", ["../../scripts/hook", "/nonexistent/hook"])
def test_a_linked_hook_stays_a_link(git: Git, code: Path, push: Push, coral: Path, log: Path, target: str) -> None:
    """A symbolic link is put aside as the link that it is; what it leads to is not touched."""
    script_path = program(code / "scripts/hook", log)
    bytes_before = script_path.read_bytes()
    hook = code / ".git/hooks/pre-push"
    hook.parent.mkdir(exist_ok=True)
    hook.symlink_to(target)
    set_up(code, coral)
    assert not hook.is_symlink() and os.readlink(hook.with_name(BEFORE)) == target
    assert push().returncode == 0
    assert ("hook:" in log.read_text()) == (target[0] == ".")
    take_out(code)
    assert os.readlink(hook) == target and script_path.read_bytes() == bytes_before


def test_the_sample_is_left_alone(code: Path, coral: Path) -> None:
    """Git's own sample is no hook."""
    folder = code / ".git/hooks"
    folder.mkdir(exist_ok=True)
    (folder / "pre-push.sample").write_text("#!/bin/sh\n")
    before = look(folder)
    assert set_up(code, coral).before is None
    assert take_out(code).change == "removed"
    assert look(folder) == before


# -- when the user was there meanwhile


def test_an_edited_hook_is_not_destroyed(code: Path, coral: Path, tmp_path: Path, log: Path) -> None:
    """What the user added to coral's hook stays, through installing and uninstalling, and that is said."""
    set_up(code, coral)
    hook = code / ".git/hooks/pre-push"
    hook.write_bytes(hook.read_bytes() + b"echo mine\n")
    before = look(hook.parent)
    assert set_up(code, program(tmp_path / "new/coral", log)).change == "edited"
    assert take_out(code).change == "edited"
    assert look(hook.parent) == before


def test_a_hook_that_took_the_place_of_corals_stays(code: Path, coral: Path, log: Path) -> None:
    """A new hook of the user's is not removed for the older one, and the older one is not lost."""
    program(code / ".git/hooks/pre-push", log)
    set_up(code, coral)
    hook = code / ".git/hooks/pre-push"
    hook.write_text("#!/bin/sh\n# another\n")
    before = look(hook.parent)
    assert take_out(code).change == "foreign"
    assert look(hook.parent) == before
    with pytest.raises(ConflictError, match="two hooks"):
        set_up(code, coral)
    assert look(hook.parent) == before


def test_a_hook_that_was_removed_comes_back(code: Path, coral: Path, log: Path) -> None:
    """Where coral's hook is gone, installing writes it again and uninstalling gives back the one before it."""
    hook = program(code / ".git/hooks/pre-push", log)
    before = look(hook.parent)
    set_up(code, coral)
    hook.unlink()
    assert set_up(code, coral).change == "written"
    hook.unlink()
    assert take_out(code).change == "restored"
    assert look(hook.parent) == before


def test_a_hook_that_was_switched_off_is_switched_on(code: Path, coral: Path) -> None:
    """Installing again makes coral's hook executable."""
    hook = set_up(code, coral).hook
    hook.chmod(0o644)
    assert set_up(code, coral).change == "written"
    assert stat.S_IMODE(hook.stat().st_mode) == 0o755


@pytest.mark.parametrize("stage", ["linked", "moved"])
def test_a_killed_installation_is_finished_or_undone(
    code: Path, push: Push, coral: Path, log: Path, stage: str
) -> None:
    """Killed between putting the user's hook aside and writing coral's: neither way on loses the user's."""
    hook = program(code / ".git/hooks/pre-push", log)
    before = look(hook.parent)
    for undo in (True, False):
        os.link(hook, hook.with_name(BEFORE))
        if stage == "moved":
            hook.unlink()
        if undo:
            take_out(code)
            assert look(hook.parent) == before
    assert set_up(code, coral).change == "written"
    assert push().returncode == 0 and log.read_text().startswith("pre-push:")
    take_out(code)
    assert look(hook.parent) == before


def test_another_tool_may_chain_corals(code: Path, push: Push, coral: Path, tmp_path: Path, log: Path) -> None:
    """A hook manager that renamed coral's hook and calls it keeps doing so: coral is found there, not put in twice."""
    program(code / ".git/hooks/pre-push", log)
    set_up(code, coral)
    hook = code / ".git/hooks/pre-push"
    hook.rename(hook.with_name("pre-push.legacy"))
    hook.write_text('#!/bin/sh\nexec "$(dirname "$0")"/pre-push.legacy "$@"\n')
    hook.chmod(0o755)
    assert set_up(code, coral).change == "unchanged"
    done = set_up(code, program(tmp_path / "new/coral", log))
    assert (done.change, done.hook.name) == ("written", "pre-push.legacy")
    assert push().returncode == 0
    assert [line.split(":")[0] for line in log.read_text().splitlines() if ": " in line] == ["pre-push", "coral"]
    assert take_out(code).change == "restored"
    assert not hook.with_name(BEFORE).exists()
    log.unlink()
    assert push("HEAD:refs/heads/again").returncode == 0
    assert log.read_text().startswith("pre-push: origin") and "coral" not in log.read_text()


def test_a_hook_that_asks_for_its_name_is_reported(code: Path, coral: Path) -> None:
    """A dispatcher finds its work by its own name, which changes: the user is told."""
    hook = code / ".git/hooks/pre-push"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text('#!/bin/sh\nrun "$(basename "$0")"\n')
    assert set_up(code, coral).renamed
    take_out(code)
    hook.write_text('#!/bin/sh\n. "$(dirname "$0")/lib.sh"\n')
    assert not set_up(code, coral).renamed
    assert knows_its_name(b'#!/usr/bin/env sh\n. "$(dirname "$0")/h"') and not knows_its_name(script(["/x"]))


# -- where git looks for hooks


@pytest.mark.parametrize("path", [".githooks", "absolute", "~/hooks"])
def test_core_hooks_path_is_honoured(
    git: Git, code: Path, push: Push, coral: Path, log: Path, tmp_path: Path, path: str
) -> None:
    """The hook goes where git looks: relative to the top of the worktree, absolute, or below the home folder."""
    folder = {".githooks": code / ".githooks", "absolute": tmp_path / "hooks", "~/hooks": tmp_path / "home/hooks"}[path]
    git(code, "config", "core.hooksPath", str(folder) if path == "absolute" else path)
    (code / "sub").mkdir()
    place = surroundings_of(code / "sub")
    done = install(place, [str(coral)])
    assert done.hook == folder / "pre-push"
    assert place.owns_hooks is (path == ".githooks")
    assert push(folder=code / "sub").returncode == 0 and log.read_text().startswith("coral:")
    assert uninstall(surroundings_of(code / "sub")).change == "removed"


def test_hooks_that_are_switched_off_are_a_conflict(git: Git, code: Path, coral: Path) -> None:
    """Where git runs no hooks, pushes would go without their tensors: nothing is set up, and the reason is said."""
    git(code, "config", "core.hooksPath", "/dev/null")
    before = (code / ".git/config").read_bytes()
    with pytest.raises(ConflictError, match=r"core\.hooksPath is /dev/null"):
        set_up(code, coral)
    assert (code / ".git/config").read_bytes() == before and not (code / ".coral").exists()


def test_settings_of_the_users_are_a_conflict_before_all_else(git: Git, code: Path, coral: Path) -> None:
    """Where a setting has another value already, neither hook nor .coral is made; force sets up all, and says so."""
    git(code, "config", "merge.coral.driver", "mine")
    before = look(code / ".git/hooks")
    with pytest.raises(ConflictError, match=r"merge\.coral\.driver = mine"):
        set_up(code, coral)
    assert look(code / ".git/hooks") == before and not (code / ".coral").exists()
    done = install(surroundings_of(code), [str(coral)], force=True)
    assert done.overwritten == ("merge.coral.driver = mine",) and len(done.settings) == 5


def test_linked_worktrees_share_the_hook(
    git: Git, code: Path, push: Push, coral: Path, log: Path, tmp_path: Path
) -> None:
    """One hook and one .coral, beside the main worktree, wherever it is installed from."""
    linked = tmp_path / "linked"
    git(code, "worktree", "add", "-q", str(linked))
    done = set_up(linked, coral)
    assert done.hook == code / ".git/hooks/pre-push" and done.folder == code / ".coral"
    assert push("HEAD:refs/heads/main", folder=linked).returncode == 0 and log.exists()
    assert not set_up(code, coral).changed
    assert take_out(code).change == "removed"


@pytest.mark.parametrize("kind", ["submodule", "sha256", "separate"])
def test_other_kinds_of_repositories(git: Git, code: Path, coral: Path, log: Path, tmp_path: Path, kind: str) -> None:
    """Submodules, SHA-256 repositories and ones with git's folder elsewhere are set up like any other.

    Where git's own folder is elsewhere, so is coral's: what lies beside such a worktree goes away with it.
    """
    remote, inner = tmp_path / "other.git", tmp_path / "inner"
    formats = ["--object-format=sha256"] if kind == "sha256" else []
    git(tmp_path, "init", "-q", "--bare", *formats, str(remote))
    if kind == "submodule":
        git(code, "push", "-q", str(remote), "HEAD:refs/heads/main")
        git(code, "-c", "protocol.file.allow=always", "submodule", "add", "-q", "-b", "main", str(remote), "inner")
        inner = code / "inner"
    else:
        away = ["--separate-git-dir", str(tmp_path / "away.git")] if kind == "separate" else []
        git(tmp_path, "init", "-q", *formats, *away, str(inner))
        git(inner, "remote", "add", "origin", str(remote))
    git(inner, "commit", "-q", "--allow-empty", "-m", "inner")
    done = set_up(inner, coral)
    apart = {"submodule": code / ".git" / "modules" / "inner", "separate": tmp_path / "away.git"}
    assert done.folder == apart.get(kind, inner) / ".coral" and not (code / ".coral").exists()
    git(inner, "push", "-q", "origin", "HEAD:refs/heads/new")
    assert log.read_text().count("git-pre-push") == 1
    assert git(inner, "status", "--porcelain") == ""
    assert take_out(inner).change == "removed"
