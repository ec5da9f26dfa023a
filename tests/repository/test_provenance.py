"""Which code made the weights: trailers with the enclosing git repository's state."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from coral import Repository
from coral.cli import main
from coral.errors import RefNotFoundError
from tests.repository.helpers import commit, git


@pytest.fixture
def code(project: Path) -> Path:
    """A git project with one commit."""
    project.mkdir()
    git(project, "init", "-q", "-b", "trunk")
    (project / "train.py").write_text("print()\n")
    git(project, "add", ".")
    git(project, "commit", "-qm", "code")
    return project


def test_commits_name_the_code_as_it_was(code: Path) -> None:
    """Commit, branch and dirtiness are those of the moment when the object was made, whatever is edited later."""
    head = git(code, "rev-parse", "HEAD").strip()
    repo = Repository(code, init=True)
    assert repo.code is not None
    (code / "train.py").write_text("edited")
    git(code, "checkout", "-qb", "later")
    made = commit(repo, 1)
    assert (made.code_commit, made.code_branch, made.code_dirty) == (head, "trunk", False)
    made = commit(Repository(code), 2)
    assert (made.code_commit, made.code_branch, made.code_dirty) == (head, "later", True)
    assert made.trailers["Coral-Code-Dirty"] == "true"


def test_equal_changes_are_recognised(code: Path) -> None:
    """Two runs of the same dirty tree have the same hash of its changes, others another one, clean ones none."""
    assert commit(Repository(code, init=True), 1).code_diff is None
    found = []
    for number, text in enumerate(("edited", "edited", "edited again")):
        (code / "train.py").write_text(text)
        made = commit(Repository(code), 2 + number)
        assert made.trailers["Coral-Code-Diff"] == made.code_diff
        found.append(made.code_diff)
    assert found[0] == found[1] != found[2]


def test_weights_that_a_commit_of_the_code_made(code: Path) -> None:
    """By any name that git knows, on all branches and tags of the weights, newest first; and by the start of a hash."""
    head = git(code, "rev-parse", "HEAD").strip()
    git(code, "tag", "v1")
    repo = Repository(code, init=True)
    first = commit(repo, 1)
    repo.switch("side", create=True)
    second = commit(repo, 2, "other.safetensors")
    repo.switch("main")
    git(code, "commit", "-q", "--allow-empty", "-m", "next")
    third = commit(Repository(code), 3)
    for name in ("HEAD~1", "v1", head, head[:7], head.upper()):
        assert [found.commit_hash for found in repo.made_by(name)] == [second.commit_hash, first.commit_hash]
    assert list(repo.made_by("trunk")) == [third]
    assert list(repo.made_by("v1", max_count=1)) == [second]
    assert list(repo.made_by("v1", path="model.safetensors")) == [first]
    git(code, "commit", "-q", "--allow-empty", "-m", "made nothing")
    assert list(repo.made_by("HEAD")) == []


@pytest.mark.parametrize(
    "name", ["nowhere", "", "-n", "--all", "0" * 40, "beef", "0123456789abcdefg", "HEAD~9", "a\0b"]
)
def test_no_such_commit_of_the_code(code: Path, name: str) -> None:
    """What git does not know, and no weights name, is an error, not an empty list."""
    repo = Repository(code, init=True)
    commit(repo, 1)
    with pytest.raises(RefNotFoundError, match="no commit of the code"):
        repo.made_by(name)


def test_weights_without_their_code(code: Path, tmp_path: Path) -> None:
    """A history that was taken away from the code is still asked by hash."""
    made = commit(Repository(code, init=True), 1)
    assert made.code_commit is not None
    (code / ".coral").rename(tmp_path / ".coral")
    repo = Repository(tmp_path)
    for name in (made.code_commit, made.code_commit[:8], made.code_commit[:8].upper()):
        assert list(repo.made_by(name)) == [made]
    with pytest.raises(RefNotFoundError):
        repo.made_by("trunk")


def test_the_state_is_taken_before_a_long_training(code: Path) -> None:
    """Nobody has to ask for it: the capture begins with the object."""
    repo = Repository(code, init=True)
    thread = repo._opened.provenance._thread
    assert thread is not None
    thread.join()
    (code / "train.py").write_text("edited")
    assert repo.code is not None and not repo.code.dirty


def test_detached_and_unborn_code(code: Path, tmp_path: Path) -> None:
    """A detached HEAD has no branch, code without commits and code outside of git have no trailers."""
    git(code, "checkout", "-q", "--detach")
    made = commit(Repository(code, init=True), 1)
    assert (made.code_branch, made.code_dirty) == (None, False) and made.code_commit
    unborn = tmp_path / "unborn"
    unborn.mkdir()
    git(unborn, "init", "-q")
    for folder in (unborn, tmp_path / "plain"):
        assert commit(Repository(folder, init=True), 1).trailers == {}
    assert Repository(tmp_path / "plain").code is None


def test_the_history_is_not_the_code(code: Path, tmp_path: Path) -> None:
    """A repository without a git around it does not take its own history for the code."""
    repo = Repository(tmp_path / "plain", init=True)
    commit(repo, 1)
    assert commit(Repository(repo.path), 2).code_commit is None


def test_a_hostile_configuration_is_not_run(code: Path) -> None:
    """Looking at the code runs no program that its repository names: fsmonitor, hooks, filters."""
    marker, script = code / "executed", code / "evil.sh"
    script.write_text(f"#!/bin/sh\ntouch {marker}\ncat\n")
    script.chmod(0o755)
    git(code, "config", "core.fsmonitor", str(script))
    git(code, "config", "filter.evil.clean", str(script))
    git(code, "config", "core.hooksPath", str(code))
    (code / ".git/info/attributes").write_text("*.py filter=evil\n")
    (code / "train.py").write_text("touched\n")
    repo = Repository(code, init=True)
    assert commit(repo, 1).code_commit is not None
    assert not marker.exists()
    assert commit(Repository(code), 2).code_dirty is True and not marker.exists()


def _user(monkeypatch: pytest.MonkeyPatch, code: Path, name: str, email: str = "") -> None:
    """Name a user to git, for whom git's own variables do not speak."""
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(code.parent / "gitconfig"))
    git(code, "config", "--global", "user.name", name)
    git(code, "config", "--global", "user.email", email)


def test_the_author_is_the_one_of_the_code(code: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """commit and save, beside the program or not, and the shell: what is said, else the configuration's, else git's."""
    _user(monkeypatch, code, "Gina", "gina@example.org")
    repo, expected = Repository(code, init=True), "Gina <gina@example.org>"
    assert repo.author == commit(repo, 1).author == expected
    assert repo.save({"w": np.zeros(3)}).author == expected
    assert repo.save({"w": np.ones(3)}, wait=False).result().author == expected
    monkeypatch.chdir(code)
    assert CliRunner().invoke(main, ["commit", "-m", "x", "--allow-empty"]).exit_code == 0
    assert next(repo.log()).author == expected
    git(code, "config", "user.name", "Here")
    assert repo.author == expected, "it is asked once"
    assert Repository(code).author == "Here <gina@example.org>"
    assert repo.commit("x", "Eve", allow_empty=True).author == "Eve"
    settings = repo.folder.root / "config.toml"
    settings.write_text(settings.read_text() + '\n[user]\nauthor = "Carl"\n')
    assert commit(Repository(code), 5).author == "Carl"


@pytest.mark.parametrize("name", ["", " ", "<>", "...", "\udcff", "Ada <ada@x> Lovelace", "x" * 2000])
def test_a_name_that_git_would_not_take_ends_no_training(
    code: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Whatever git has been told, the commit lands."""
    _user(monkeypatch, code, name)
    assert commit(Repository(code, init=True), 1).author


def test_outside_of_git_nobody_is_asked(project: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The library does not look into the home folder."""
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "gitconfig"))
    (tmp_path / "gitconfig").write_text("[user]\nname = Gina\n")
    repo = Repository(project, init=True)
    assert (repo.author, commit(repo, 1).author) == (None, "coral")


def test_a_training_loop_starts_no_git(code: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whatever has to be asked of git is asked by the first commit."""
    log, real = tmp_path / "calls", shutil.which("git")
    (tmp_path / "bin").mkdir()
    shim = tmp_path / "bin" / "git"
    shim.write_text(f'#!/bin/sh\necho "$@" >> {log}\nexec {real} "$@"\n')
    shim.chmod(0o755)
    monkeypatch.setenv("PATH", str(shim.parent), prepend=os.pathsep)
    repo = Repository(code, init=True)
    commit(repo, 0)
    asked = log.read_text()
    for value in range(1, 4):
        repo.save({"w": np.full(3, value)}, step=value)
        commit(repo, value)
    assert asked and log.read_text() == asked
