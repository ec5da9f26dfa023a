"""The objects of the user's repository: each place that holds one is looked at, and reading stays bounded."""

from __future__ import annotations

from pathlib import Path

import pytest

from coral.errors import GitCommandError
from coral.git.blobs import read_found
from coral.git.objects import Where, blobs_since, existing, reachable_blobs
from tests.git.helpers import blob, commit, conflict, git


def texts(folder: Path) -> dict[str, Where]:
    """What every reachable blob says, and where it is."""
    found = list(reachable_blobs(folder))
    places = dict(found)
    assert len(places) == len(found)
    return {data.decode(): place for place, data in read_found(folder, found)}


def new_commit(folder: Path, name: str, text: str, *parents: str) -> str:
    """A commit of one file that nothing holds."""
    tree = git(folder, "mktree", data=f"100644 blob {blob(folder, text)}\t{name}\n".encode())
    return git(folder, "commit-tree", "-m", name, *(word for parent in parents for word in ("-p", parent)), tree)


def test_names_are_looked_up(work: Path) -> None:
    """A name leads to an object's id and kind, or to nothing."""
    head = git(work, "rev-parse", "HEAD")
    assert existing(work, ["HEAD", "HEAD:base", "nothing", "not a name"]) == {
        "HEAD": (head, "commit"),
        "HEAD:base": (git(work, "rev-parse", "HEAD:base"), "blob"),
    }


# -- what can be reached


def test_refs_of_all_kinds(work: Path) -> None:
    """Branches, tags (of blobs and trees too), remote-tracking refs, notes, stashes and refs of any other name."""
    base = git(work, "rev-parse", "HEAD")
    for ref in ("refs/heads/b", "refs/tags/t", "refs/remotes/origin/r", "refs/odd/o", "refs/pull/1/head"):
        git(work, "update-ref", ref, new_commit(work, "f", f"at {ref}", base))
    git(work, "tag", "-a", "-m", "a tag", "annotated", new_commit(work, "f", "at an annotated tag"))
    git(work, "tag", "of-a-blob", blob(work, "a tagged blob"))
    tree = git(work, "mktree", data=f"100644 blob {blob(work, 'in a tagged tree')}\tin\n".encode())
    git(work, "tag", "-a", "-m", "a tree", "of-a-tree", tree)
    git(work, "update-ref", "refs/odd/tree", tree)
    git(work, "notes", "add", "-m", "a note", "HEAD")
    for number in range(3):
        (work / "base").write_text(f"stashed {number}\n")
        (work / "untracked").write_text(f"untracked {number}\n")
        git(work, "stash", "push", "-q", "--include-untracked")
    found = texts(work)
    wanted = {
        *("base\n", "a note\n", "a tagged blob", "in a tagged tree", "at an annotated tag", "at refs/odd/o"),
        *("at refs/heads/b", "at refs/tags/t", "at refs/remotes/origin/r", "at refs/pull/1/head"),
        *(f"{kind} {number}\n" for kind in ("stashed", "untracked") for number in range(3)),
    }
    assert found.keys() == wanted
    assert found["a tagged blob"] == ("refs/tags/of-a-blob", "")
    assert found["in a tagged tree"] == ("refs/odd/tree", "in")
    assert found["at refs/odd/o"] == (git(work, "rev-parse", "refs/odd/o"), "f")
    assert found["base\n"].commit in git(work, "rev-list", "--all").split()


def test_reflogs(work: Path) -> None:
    """What a branch, HEAD or a remote-tracking branch pointed at before; that it was pruned is no error."""
    for number in range(3):
        commit(work, "f", f"amended {number}")
        git(work, "commit", "-q", "--amend", "-m", f"again {number}", "--allow-empty")
        git(work, "reset", "-q", "--hard", "HEAD~1")
    git(work, "update-ref", "--create-reflog", "refs/remotes/origin/m", new_commit(work, "f", "seen once"))
    git(work, "update-ref", "refs/remotes/origin/m", new_commit(work, "f", "seen now"))
    found = texts(work)
    assert {f"amended {number}" for number in range(3)} <= found.keys()
    assert {"seen once", "seen now"} <= found.keys()
    log = work / ".git/logs/HEAD"
    lost = "2" * len(git(work, "rev-parse", "HEAD"))
    log.write_text(f"{lost} {lost} n <e> 1 +0000\tlost\n" + log.read_text())
    assert texts(work) == found


def test_linked_worktrees(work: Path, tmp_path: Path) -> None:
    """Of each worktree, asked in any of them: HEAD, its reflog, its own refs, its index, and what it noted."""
    linked = tmp_path / "linked"
    git(work, "worktree", "add", "-q", "--detach", str(linked))
    commit(linked, "f", "detached in a worktree, once")
    git(linked, "checkout", "-q", "--detach", "main")
    commit(linked, "f", "detached in a worktree")
    (linked / "staged").write_text("staged in a worktree")
    git(linked, "add", "staged")
    git(linked, "update-ref", "refs/worktree/own", new_commit(work, "f", "a worktree's own ref"))
    git(linked, "update-ref", "refs/bisect/bad", new_commit(work, "f", "being bisected"))
    git(linked, "update-ref", "ORIG_HEAD", new_commit(work, "f", "orig in a worktree"))
    git(work, "update-ref", "refs/worktree/own", new_commit(work, "f", "the main one's own ref"))
    commit(work, "g", "main at first")
    git(work, "reset", "-q", "--hard", "HEAD~1")
    (work / "staged").write_text("staged in the main one")
    git(work, "add", "staged")
    git(work, "update-ref", "CHERRY_PICK_HEAD", new_commit(work, "f", "picked in the main one"))
    wanted = {
        *("base\n", "main at first", "staged in the main one", "the main one's own ref", "picked in the main one"),
        *("detached in a worktree, once", "detached in a worktree", "staged in a worktree", "a worktree's own ref"),
        *("being bisected", "orig in a worktree"),
    }
    here, there = texts(work), texts(linked)
    assert here.keys() == there.keys() == wanted
    assert here["staged in a worktree"] == ("index", "staged")
    for path in sorted(linked.iterdir()):
        path.unlink()
    linked.rmdir()
    assert texts(work).keys() == wanted


def test_a_merge_under_way(work: Path) -> None:
    """All stages of a conflict, what is merged, and what the merge has made of the file so far."""
    conflict(work)
    git(work, "branch", "-q", "-D", "side")
    git(work, "reflog", "expire", "--expire=all", "--all")
    found = texts(work)
    assert {"base\n", "ours\n", "theirs\n"} <= found.keys()
    (merged,) = (text for text in found if text.startswith("<<<"))
    assert found[merged] == ("AUTO_MERGE", "both")


def test_a_rebase_under_way(work: Path) -> None:
    """A rebase that stopped keeps where it began, what it stopped at, and what it set aside; also in a worktree."""
    git(work, "checkout", "-q", "-b", "side")
    commit(work, "both", "theirs\n")
    commit(work, "later", "later\n")
    git(work, "checkout", "-q", "main")
    commit(work, "both", "ours\n")
    git(work, "checkout", "-q", "side")
    (work / "base").write_text("set aside\n")
    git(work, "rebase", "-q", "--autostash", "main", code=1)
    git(work, "update-ref", "-d", "refs/heads/side")
    for name in ("ORIG_HEAD", "REBASE_HEAD"):
        git(work, "update-ref", "-d", name)
    git(work, "reflog", "expire", "--expire=all", "--all")
    assert {"theirs\n", "later\n", "ours\n", "set aside\n"} <= texts(work).keys()


def test_what_was_only_fetched(work: Path, tmp_path: Path) -> None:
    """All that FETCH_HEAD names, though no ref does."""
    other = tmp_path / "other"
    git(tmp_path, "clone", "-q", str(work), str(other))
    for name in ("one", "two"):
        git(other, "checkout", "-q", "-b", name)
        commit(other, name, name)
    git(work, "fetch", "-q", str(other), "one", "two")
    assert {"one", "two"} <= texts(work).keys()


def test_replaced_objects_are_not_lost(work: Path) -> None:
    """What a replacement hides is still what is pushed, and what remains when the replacement goes."""
    hidden = commit(work, "f", "hidden")
    git(work, "checkout", "-q", "--detach", "HEAD~1")
    git(work, "replace", hidden, new_commit(work, "f", "shown"))
    assert {"hidden", "shown"} <= texts(work).keys()


def test_an_empty_repository(tmp_path: Path) -> None:
    """Before the first commit only the index holds anything."""
    git(tmp_path, "init", "-q")
    assert texts(tmp_path) == {}
    (tmp_path / "f").write_text("staged")
    git(tmp_path, "add", "f")
    assert texts(tmp_path) == {"staged": ("index", "f")}


def test_what_nobody_can_say_is_an_error(work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Outside of a repository, in one that git refuses, and in one that lacks objects, no list is given as complete."""
    outside = tmp_path / "outside"
    outside.mkdir()
    with pytest.raises(GitCommandError):
        list(reachable_blobs(outside))
    with monkeypatch.context() as patch:
        patch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
        with pytest.raises(GitCommandError):
            list(reachable_blobs(work))
    tree = git(work, "rev-parse", "HEAD^{tree}")
    (work / ".git/objects" / tree[:2] / tree[2:]).unlink()
    with pytest.raises(GitCommandError, match="rev-list"):
        list(reachable_blobs(work))


def test_a_partial_clone_fetches_nothing(work: Path, tmp_path: Path) -> None:
    """Blobs that were left at the remote are passed over, and stay there."""
    commit(work, "f", "old")
    commit(work, "f", "new")
    git(work, "config", "uploadpack.allowFilter", "true")
    clone = tmp_path / "clone"
    git(tmp_path, "clone", "-q", "--filter=blob:none", f"file://{work}", str(clone))
    assert texts(clone).keys() == {"base\n", "new"}


# -- what is pushed


def test_only_what_is_new(work: Path) -> None:
    """What known commits and a remote's branches reach is left out; the rest is told by the newest that holds it."""
    seen = commit(work, "f", "seen")
    new = commit(work, "g", "new")
    last = commit(work, "h", "last")
    git(work, "update-ref", "refs/remotes/origin/main", seen)
    git(work, "update-ref", "refs/remotes/origin2/main", last)

    def paths(*tips: str, known: tuple[str, ...] = (), remote: str | None = None) -> set[Where]:
        found = blobs_since(work, tips, known=known, remote=remote)
        return {where for ident, where in found if git(work, "cat-file", "-t", ident) == "blob"}

    assert paths("HEAD", remote="origin") == {(last, "g"), (last, "h")}
    assert paths("HEAD", remote="nobody") == {(last, name) for name in ("base", "f", "g", "h")}
    assert paths(last, known=(new,)) == {(last, "h")}
    assert paths(last, known=(new,), remote="origin2") == set()
    with pytest.raises(GitCommandError):
        paths("nothing")
