"""What git's index and trees list."""

from __future__ import annotations

import os
from pathlib import Path

from coral.git.index import index_entries, tree_entries
from tests.git.helpers import commit, conflict, git


def test_a_tree_is_listed(work: Path) -> None:
    """Every file of a commit by its path, whatever bytes are in it, from any folder; no link, no submodule."""
    names = ["a b", 'quo"te', "new\nline", "sub/ä", "tab\t"]
    for name in names:
        commit(work, name, f"text of {name}")
    os.symlink("base", work / "link")
    (work / "run").write_text("x")
    (work / "run").chmod(0o755)
    git(work, "add", "-A")
    git(work, "update-index", "--add", "--cacheinfo", f"160000,{git(work, 'rev-parse', 'HEAD')},module")
    git(work, "commit", "-q", "-m", "all kinds")
    expected = {name: git(work, "rev-parse", f"HEAD:{name}") for name in ["base", "run", *names]}
    for listed in (tree_entries(work, "HEAD"), tree_entries(work / "sub", "HEAD^{tree}"), index_entries(work)):
        assert {entry.name: entry.blob for entry in listed if entry.is_file} == expected
        assert {entry.name for entry in listed if not entry.is_file} == {"link", "module"}


def test_sides_of_a_conflict(work: Path) -> None:
    """A path in conflict has no one blob: each side is listed with its stage."""
    conflict(work)
    assert [(entry.name, entry.stage) for entry in index_entries(work)] == [("base", 0), ("both", 2), ("both", 3)]
