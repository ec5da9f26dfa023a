"""The objects of the user's repository: each place that holds one is looked at, and reading stays bounded."""

from __future__ import annotations

import os
import resource
import subprocess
from pathlib import Path

import pytest

from coral.errors import GitCommandError
from coral.git import objects
from coral.git.objects import Where, blobs_at, blobs_since, existing, index_blobs, reachable_blobs, read_blobs
from tests.git.helpers import blob, commit, git


def texts(folder: Path) -> dict[str, Where]:
    """What every reachable blob says, and where it is."""
    found = list(reachable_blobs(folder))
    places = dict(found)
    assert len(places) == len(found)
    return {data.decode(): places[ident] for ident, data in read_blobs(folder, places)}


def new_commit(folder: Path, name: str, text: str, *parents: str) -> str:
    """A commit of one file that nothing holds."""
    tree = git(folder, "mktree", data=f"100644 blob {blob(folder, text)}\t{name}\n".encode())
    return git(folder, "commit-tree", "-m", name, *(word for parent in parents for word in ("-p", parent)), tree)


# -- trees and the index


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
    assert blobs_at(work, "HEAD") == blobs_at(work / "sub", "HEAD^{tree}") == expected
    assert index_blobs(work) == index_blobs(work / "sub") == expected
    raw = os.fsdecode(b"\xff")
    commit(work, raw, "no text")
    assert raw in blobs_at(work, "HEAD")
    assert raw in index_blobs(work)


@pytest.mark.parametrize("treeish", ["nothing", "-r", "--help", "HEAD:base"])
def test_what_is_no_tree_is_an_error(work: Path, treeish: str) -> None:
    """A name that leads to no tree raises; none is taken for an option."""
    with pytest.raises(GitCommandError):
        blobs_at(work, treeish)


def test_the_index_leaves_out_conflicts(work: Path) -> None:
    """A path in conflict has no one blob, so it is not listed."""
    conflict(work)
    assert index_blobs(work).keys() == {"base"}


def conflict(work: Path) -> None:
    """A merge under way: the file ``both`` is in conflict."""
    git(work, "checkout", "-q", "-b", "side")
    commit(work, "both", "theirs\n")
    git(work, "checkout", "-q", "main")
    commit(work, "both", "ours\n")
    git(work, "merge", "-q", "side", code=1)


# -- contents


def test_blobs_are_read_in_order(work: Path) -> None:
    """Thousands of blobs come one at a time, in the order asked for; what is none, or is not there, is left out."""
    ids = [blob(work, f"text {number}\n" * (number % 50)) for number in range(400)]
    absent = "1" * len(ids[0])
    asked = [git(work, "rev-parse", "HEAD"), absent, *ids, git(work, "rev-parse", "HEAD^{tree}")]
    found = list(read_blobs(work, asked))
    assert found == [(ident, f"text {number}\n".encode() * (number % 50)) for number, ident in enumerate(ids)]
    assert list(read_blobs(work, [])) == []


def test_what_is_not_wanted_is_not_kept(work: Path) -> None:
    """The first bytes of a blob decide whether the rest is read into memory."""
    ids = [blob(work, "keep" + "k" * 100), blob(work, "drop" + "d" * 200_000), blob(work, ""), blob(work, "keep")]
    heads: list[bytes] = []

    def wanted(head: bytes) -> bool:
        heads.append(head)
        return head.startswith(b"keep")

    assert [data for _, data in read_blobs(work, ids, wanted=wanted)] == [b"keep" + b"k" * 100, b"keep"]
    assert list(map(len, heads)) == [64, 64, 0, 4]


def test_a_large_blob_is_not_read(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A blob that is larger than any manifest is passed over by its size."""
    monkeypatch.setattr(objects, "LARGEST", 10)
    ids = [blob(work, "small"), blob(work, "x" * 11), blob(work, "x" * 10)]
    assert [data for _, data in read_blobs(work, ids)] == [b"small", b"x" * 10]


def test_reading_is_bounded(work: Path) -> None:
    """Blobs that are refused pass by in pieces: a file of 200 MB takes no memory."""
    with (work / "large").open("wb") as file:
        file.truncate(200_000_000)
    ident = git(work, "hash-object", "-w", "large")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert list(read_blobs(work, [ident], wanted=lambda head: False)) == []
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000


def test_a_damaged_object_is_an_error(work: Path) -> None:
    """Where git cannot read an object, nobody is told that all was read."""
    ident = blob(work, "to be damaged" * 100)
    path = work / ".git/objects" / ident[:2] / ident[2:]
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(GitCommandError):
        list(read_blobs(work, [blob(work, "sound"), ident]))


def test_stopping_early_leaves_no_process(work: Path) -> None:
    """Whoever stops asking leaves no git behind, neither running nor waiting to be looked at."""
    ids = [blob(work, f"text {number}") for number in range(300)]
    found = read_blobs(work, ids)
    next(found)
    found.close()  # type: ignore[attr-defined]
    listed = subprocess.run(["ps", "-A", "-o", "ppid=,args="], check=True, capture_output=True, text=True).stdout
    children = [line for line in listed.splitlines() if line.split()[0] == str(os.getpid())]
    assert not any("git" in line for line in children)


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
