"""Attacks by name: whatever a path, a link or a word in the place of a name says, nothing outside changes."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from coral import Repository
from coral.errors import CoralError
from coral.experiments import ExperimentTracker
from tests.repository.helpers import git, raw, read, weights
from tests.torture.hostile import FILE, attempt, run_cli, use_everything, watched

# -- paths

NAMES = {
    "up": "../outside/x",
    "absolute": "/tmp/coral-attack",
    "hooks": ".git/hooks/post-commit",
    "own settings": "sub/.coral/config.toml",
    "NUL": "a\0b",
    "long": "x" * 5000,
    "case": ".Git/config",
    "ignorable": ".g\u2063it/config",
    "stream": ".git::$INDEX_ALLOCATION/config",
    "backslash": "..\\..\\x",
}


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_a_staged_name(repo: Repository, outside: Path, name: str) -> None:
    """The shell's staging area, which may come from elsewhere, names no file that a commit could then write."""
    shell = Repository(repo.path, shell_staging=True)
    oid = repo.history.part(repo.resolve("HEAD"), FILE)
    (repo.folder.root / "staging/index.json").write_text(json.dumps({"base": None, "parts": {name: oid}}))
    with watched(outside):
        for call in (shell.status, lambda: shell.commit("x"), lambda: shell.checkout("HEAD", name)):
            assert isinstance(attempt(call), CoralError)


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_a_name_from_the_caller(repo: Repository, outside: Path, name: str) -> None:
    """A script that takes names from somewhere cannot be made to store, write, remove or fetch one elsewhere."""
    run = ExperimentTracker(repo).start("a run")
    with watched(outside, seconds=2):
        assert isinstance(attempt(lambda: repo.stage_weights(weights(1), name)), CoralError)
        assert isinstance(attempt(lambda: repo.stage_state({"a": 1}, name)), CoralError)
        assert isinstance(attempt(lambda: repo.rm(name, force=True)), CoralError)
        assert isinstance(attempt(lambda: repo.get_all_weights("HEAD", name)), CoralError)
        assert isinstance(attempt(lambda: run.log_text("x", name)), CoralError)
    run.end()


def test_names_of_tensors_are_data(repo: Repository, outside: Path) -> None:
    """A tensor may be called like a path, an option or an escape sequence: its file is the one that was asked for."""
    names = ["../../outside/precious", "/etc/passwd", "..", ".git/config", "-rf", "a\0b", "\x1b]0;x\x07", "\u202egnp"]
    tensors = {name: np.full(9, number, "f4") for number, name in enumerate(names)}
    with watched(outside):
        repo.stage_weights(tensors, FILE)
        repo.commit("odd names")
        repo.checkout("main")
        assert sorted(path.name for path in repo.path.iterdir()) == [".coral", FILE]
        assert read(repo) == raw(tensors)


@pytest.mark.parametrize("url", ["../.coral/packs", "/", ".coral", "file://host/x", "ssh://-oProxyCommand=x/y", "-x"])
def test_an_offered_remote(repo: Repository, outside: Path, url: str, capfd: pytest.CaptureFixture[str]) -> None:
    """A place that a project offers is none until the user takes it, and never one within the repository."""
    git(repo.path, "init", "-q")
    (repo.path / ".coralconfig").write_text(f"[remotes.origin]\nurl = {json.dumps(url)}\n")
    with watched(outside, seconds=3):
        run_cli("remote", "-v", folder=repo.path)
        run_cli("status", folder=repo.path)
        assert repo.config.remotes == ()


# -- symbolic links and pipes

LINKED = [
    *("packs", "tmp", "experiments", "staging", "cache", "locks", "trash", "quarantine", ".git", ".git/objects"),
    *(".git/objects/pack", ".git/refs", ".git/refs/heads", ".git/refs/tags", ".git/logs", ".git/logs/refs"),
    ".git/logs/refs/heads",
]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("place", LINKED)
def test_a_link_below_coral(repo: Repository, outside: Path, place: str) -> None:
    """A folder of coral's that is a link to the user's: nothing is made, changed or removed there."""
    path = repo.folder.root / place
    if path.exists():
        path.rename(repo.folder.root / "moved")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(outside)
    for name in outside.iterdir():
        os.utime(name, (1, 1))
    with watched(outside, seconds=20):
        use_everything(repo)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize(
    "place",
    [
        "operations",
        "locks/store",
        "locks/refs",
        "staging/lock",
        "locks/experiments",
        ".git/logs/HEAD",
        ".git/refs/heads/main",
    ],
)
def test_a_link_in_the_place_of_a_file(repo: Repository, outside: Path, place: str) -> None:
    """A lock, a ref or a reflog that is a link makes no file, and adds nothing to one."""
    path = repo.folder.root / place
    path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(outside / ("precious" if "logs" in place or place == "operations" else "made"))
    with watched(outside, seconds=20):
        use_everything(repo)


@pytest.mark.parametrize(
    "place", ["config.toml", "staging/index.json", "staging/files.json", "cache/experiments.index"]
)
@pytest.mark.parametrize("kind", ["pipe", "zero", "sparse"])
def test_a_small_file_that_is_none(repo: Repository, outside: Path, place: str, kind: str) -> None:
    """A pipe is not waited for, an endless device is not read, and a file of terabytes takes no memory."""
    path = repo.folder.root / place
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "zero":
        path.symlink_to("/dev/zero")
    else:
        with path.open("wb") as file:
            file.truncate(1 << 40)
    with watched(outside, seconds=5):
        fresh = attempt(lambda: Repository(repo.path, shell_staging=True))
        if isinstance(fresh, Repository):
            attempt(fresh.status)
            attempt(lambda: ExperimentTracker(fresh).list())
        assert isinstance(fresh, CoralError) == (place == "config.toml")


# -- options in the place of names

OPTIONS = ["-d", "--force", "--output=/tmp/coral-attack", "-oProxyCommand=touch x", "--upload-pack=touch x"]


@pytest.mark.parametrize("word", OPTIONS)
def test_an_option_in_the_place_of_a_name(repo: Repository, outside: Path, word: str) -> None:
    """A branch, tag, ref, remote, key or run that begins with a hyphen is a name that is refused, not an option."""
    from coral.verbs.config import Remote
    from coral.verbs.sharing.remotes import add_remote

    calls: list[Callable[[], object]] = [
        lambda: repo.create_branch(word),
        lambda: repo.tag(word),
        lambda: repo.resolve(word),
        lambda: repo.checkout(word),
        lambda: list(repo.log(word)),
        lambda: repo.rename_branch("main", word),
        lambda: repo.commit("x", allow_empty=True, sign=word),
        lambda: repo.commit("x", allow_empty=True, tags=[word]),
        lambda: repo.maintenance.verify(word),
        lambda: add_remote(repo.path, repo.folder, Remote(word, str(outside))),
        lambda: ExperimentTracker(repo).get(word),
        lambda: ExperimentTracker(repo).restore(word),
    ]
    before = repo.resolve("HEAD")
    with watched(outside, seconds=3):
        for call in calls:
            assert isinstance(attempt(call), CoralError)
    assert repo.resolve("HEAD") == before and repo.branches().keys() == {"main"} and not repo.tags()


@pytest.mark.parametrize("word", OPTIONS[:3])
def test_an_option_after_the_hyphens(repo: Repository, word: str, capfd: pytest.CaptureFixture[str]) -> None:
    """After ``--`` the command line takes a word as it is, and refuses it as a name."""
    for command in ("branch", "tag", "switch", "checkout", "log", "show", "verify", "reflog"):
        assert run_cli(command, "--", word, folder=repo.path) not in (0, 1)
