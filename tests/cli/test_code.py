"""From weights to the code that made them, and back, on the command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from tests.repository.helpers import git

Call = Callable[..., Result]
Ask = Callable[..., Any]
Write = Callable[..., bytes]


@pytest.fixture
def commits(project: Path, call: Call, ask: Ask, write: Write) -> tuple[str, str]:
    """A clean and a dirty commit of weights, made by the same commit of the code, which is called v1."""
    git(project, "init", "-q", "-b", "trunk")
    (project / "train.py").write_text("1")
    git(project, "add", "train.py")
    git(project, "commit", "-q", "-m", "Fix the loss\n\nat last")
    git(project, "tag", "v1")
    write(seed=1)
    clean = ask("commit", "-m", "clean", "model.safetensors")["commit_hash"]
    (project / "train.py").write_text("2")
    write(seed=2)
    dirty = ask("commit", "-m", "dirty", "model.safetensors")["commit_hash"]
    return clean, dirty


def test_show_names_the_changes(commits: tuple[str, str], call: Call, ask: Ask, project: Path) -> None:
    """Where the code was modified, the start of the hash of its changes is shown; JSON has all of it."""
    head = git(project, "rev-parse", "HEAD").strip()
    code = ask("show")["code"]
    assert (code["commit"], code["branch"], code["dirty"], len(code["diff"])) == (head, "trunk", True, 64)
    assert f"Code:    {head[:10]} on trunk, modified ({code['diff'][:10]})\n" in call("show").stdout
    assert ask("show", commits[0])["code"] == {"commit": head, "branch": "trunk", "dirty": False, "diff": None}
    assert f"Code:    {head[:10]} on trunk\n" in call("show", commits[0]).stdout


def test_blame_code(commits: tuple[str, str], call: Call, ask: Ask, project: Path) -> None:
    """The commit of the code with its subject, the branch, and what was modified."""
    head = git(project, "rev-parse", "HEAD").strip()
    diff = ask("show")["code"]["diff"]
    lines = call("blame-code").stdout.splitlines()
    assert lines[0].startswith(commits[1][:10]) and lines[0].endswith(" dirty")
    assert lines[1:] == [f"Code:     {head} Fix the loss", "Branch:   trunk", f"Modified: yes, by {diff}"]
    assert call("blame-code", commits[0]).stdout.splitlines()[-1] == "Modified: no"
    assert ask("blame-code", "HEAD") == {
        "commit_hash": commits[1],
        "code": {"commit": head, "branch": "trunk", "dirty": True, "diff": diff, "subject": "Fix the loss"},
    }
    call("blame-code", "nowhere", code=3)


def test_blame_code_without_the_code(commits: tuple[str, str], call: Call, ask: Ask, project: Path) -> None:
    """Where git does not have the commit, there is no subject; weights that say nothing of code are an error."""
    (project / ".git").rename(project / "gone")
    assert ask("blame-code")["code"]["subject"] is None
    assert call("blame-code").stdout.splitlines()[1].startswith("Code:     ")
    call("commit", "-m", "outside", "--allow-empty")
    assert "does not say which code made it" in call("blame-code", code=3).stderr


def test_log_by_code(commits: tuple[str, str], call: Call, ask: Ask, project: Path, write: Write) -> None:
    """All weights of a commit of the code, newest first, also those that HEAD does not lead to."""
    clean, dirty = commits
    call("switch", "-c", "side")
    write(seed=3)
    side = ask("commit", "-m", "side", "model.safetensors")["commit_hash"]
    call("checkout", "--force", clean)
    git(project, "commit", "-q", "--allow-empty", "-m", "next")
    assert [found["commit_hash"] for found in ask("log", "--code", "v1")] == [side, dirty, clean]
    assert [found["commit_hash"] for found in ask("log", "--code", "v1", "-n", "1")] == [side]
    assert [line.split()[0] for line in call("log", "--code", "HEAD~1", "--oneline").stdout.splitlines()] == [
        side[:10],
        dirty[:10],
        clean[:10],
    ]
    done = call("log", "--code", "HEAD")
    assert done.stdout == "" and "no weights" in done.stderr
    assert ask("log", "--code", "trunk") == []
    assert "no commit of the code" in call("log", "--code", "nowhere", code=3).stderr
    call("log", "--code", "v1", "main", code=2)
    call("log", "--code", "v1", "--branch", "main", code=2)
