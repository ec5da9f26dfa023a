"""Taking operations back: every verb that moves a ref, the order, conflicts, and a log that is only advisory."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from coral import ConflictError, NotFoundError, Repository, UsageError
from coral.errors import OverwriteError
from tests.repository.garbage import forget, grow_old, trash
from tests.repository.helpers import at_once, commit, raw, read, run_command, weights


def refs(repo: Repository) -> dict[str, object]:
    """Where all refs are."""
    history = Repository(repo.path).history
    return {"branches": history.branches(), "tags": history.tags(), "head": history.head()}


@pytest.fixture
def repo(repo: Repository) -> Repository:
    """Two commits on main, one more on b, a tag."""
    commit(repo, 1)
    commit(repo, 2)
    repo.create_branch("b", "HEAD~1")
    repo.tag("v1", message="annotated")
    return repo


VERBS: dict[str, Callable[[Repository], object]] = {
    "commit": lambda repo: commit(repo, 3),
    "commit with tags": lambda repo: (repo.stage_weights(weights(3)), repo.commit("x", tags=["t1", "t2"])),
    "save": lambda repo: repo.save(weights(4), step=1),
    "save beside": lambda repo: repo.save(weights(4), step=1, wait=False).result(),
    "reset": lambda repo: repo.reset("HEAD~1"),
    "reset hard": lambda repo: repo.reset("HEAD~1", hard=True),
    "branch": lambda repo: repo.create_branch("c"),
    "branch in a folder": lambda repo: repo.create_branch("x/y/z"),
    "branch -d": lambda repo: repo.delete_branch("b"),
    "branch -m": lambda repo: repo.rename_branch("b", "c"),
    "branch -m of the current": lambda repo: repo.rename_branch("main", "trunk"),
    "tag": lambda repo: repo.tag("v2"),
    "tag -f": lambda repo: repo.tag("v1", "HEAD~1", force=True),
    "tag -d": lambda repo: repo.delete_tag("v1"),
    "switch": lambda repo: repo.switch("b"),
    "switch -c": lambda repo: repo.switch("c", create=True),
    "checkout": lambda repo: repo.checkout("HEAD~1"),
    "commit on a detached head": lambda repo: (repo.checkout("HEAD~1"), commit(repo, 9)),
}


@pytest.mark.parametrize("verb", VERBS)
def test_each_verb_can_be_undone_and_redone(repo: Repository, verb: str) -> None:
    """All refs are as before, and after another undo as after the verb; one call of a verb is one operation."""
    repo = Repository(repo.path)
    before, count = refs(repo), len(repo.maintenance.operations())
    VERBS[verb](repo)
    after, done = refs(repo), len(repo.maintenance.operations()) - count
    assert before != after and done == (2 if "detached" in verb else 1)
    fresh = Repository(repo.path)
    assert len(fresh.undo(done)) == done
    assert refs(repo) == before
    fresh.undo()
    assert refs(repo) == after
    fresh.undo()
    assert refs(repo) == before
    assert not Repository(repo.path).maintenance.fsck().damage


def test_the_first_commit_can_be_undone(tmp_path: Path) -> None:
    """The branch is unborn again."""
    fresh = Repository(tmp_path / "other", init=True)
    made = commit(fresh, 1)
    fresh.undo()
    assert Repository(fresh.path).history.head() == ("main", None)
    Repository(fresh.path).undo()
    assert Repository(fresh.path).resolve("HEAD") == made.commit_hash


def test_several_are_taken_back_together(repo: Repository) -> None:
    """The last N, whatever they were; as one operation."""
    before = refs(repo)
    commit(repo, 5)
    repo.switch("n", create=True)
    commit(repo, 6)
    repo.delete_branch("b")
    after = refs(repo)
    done = repo.undo(4)
    assert [one.command.split()[0] for one in done] == ["branch", "commit:", "switch", "commit:"]
    assert refs(repo) == before
    repo.undo()
    assert refs(repo) == after
    with pytest.raises(NotFoundError):
        repo.undo(100)
    with pytest.raises(UsageError):
        repo.undo(0)


def test_a_ref_that_moved_since_is_left_alone(repo: Repository) -> None:
    """When one ref is elsewhere, unseen by the log, nothing moves."""
    repo.stage_weights(weights(3))
    repo.commit("x", tags=["t"])
    (repo.folder.root / ".git/refs/tags/t").write_text(repo.resolve("HEAD~1") + "\n")
    before = refs(repo)
    with pytest.raises(ConflictError, match="moved"):
        repo.undo()
    assert refs(repo) == before


def test_files_follow_where_they_followed_before(repo: Repository) -> None:
    """To undo a checkout writes the files back; to undo a commit leaves them; bytes nobody holds are in the way."""
    repo.checkout("main")
    path = repo.path / "model.safetensors"
    two = path.read_bytes()
    repo.checkout("HEAD~1")
    one = path.read_bytes()
    assert one != two
    repo.undo()
    assert path.read_bytes() == two
    repo.reset("HEAD~1", hard=True)
    assert path.read_bytes() == one
    path.write_bytes(b"precious")
    with pytest.raises(OverwriteError):
        repo.undo()
    assert path.read_bytes() == b"precious"
    path.write_bytes(one)
    repo.undo()
    assert path.read_bytes() == two
    commit(repo, 3)
    repo.undo()
    assert path.read_bytes() == two


def test_a_renamed_branch_keeps_its_reflog(repo: Repository) -> None:
    """There and back."""
    before = [(entry.old, entry.new) for entry in repo.reflog("main")]
    repo.rename_branch("main", "trunk")
    repo.undo()
    after = [(entry.old, entry.new) for entry in Repository(repo.path).reflog("main")]
    assert after[-len(before) :] == before


def collected(repo: Repository) -> str:
    """Have a branch's weights collected as garbage; returns its tip."""
    repo.create_branch("lost")
    other = Repository(repo.path)
    other.pin("lost")
    other.stage_weights(weights(77))
    made = other.commit("lost").commit_hash
    repo.delete_branch("lost", force=True)
    log = (repo.folder.root / "operations").read_bytes()
    forget(repo)
    grow_old(repo)
    assert repo.maintenance.gc().packs == 1
    noted = (repo.folder.root / "operations").read_bytes()
    (repo.folder.root / "operations").write_bytes(log + noted)
    return made


def test_gc_can_be_undone(repo: Repository) -> None:
    """What was collected comes out of the trash; to redo that is left to gc; from an emptied trash nothing comes."""
    made = collected(repo)
    repo.undo()
    assert trash(repo) == [] and read(Repository(repo.path), made) == raw(weights(77))
    forget(repo)
    assert repo.maintenance.gc().packs == 1
    assert repo.maintenance.operations()[0].command == "gc"
    repo.maintenance.gc(prune_now=True)
    with pytest.raises(NotFoundError, match="trash"):
        repo.undo()


def test_a_deleted_branch_comes_back_with_its_weights(repo: Repository) -> None:
    """They come out of the trash when they are there; from an emptied one nothing is put back."""
    made = collected(repo)
    repo.undo(2)
    assert read(Repository(repo.path), "lost") == raw(weights(77)) and repo.branches()["lost"] == made
    repo.delete_branch("lost", force=True)
    log = (repo.folder.root / "operations").read_bytes()
    forget(repo)
    repo.maintenance.gc(prune_now=True)
    (repo.folder.root / "operations").write_bytes(log)
    before = refs(repo)
    with pytest.raises(ConflictError, match="garbage"):
        repo.undo()
    assert refs(repo) == before


def test_a_torn_or_damaged_line_is_passed_over(repo: Repository) -> None:
    """The log goes on after a tail that a power cut tore, and what a damaged line named is not collected."""
    repo.switch("c", create=True)
    made = commit(repo, 3)
    repo.switch("main")
    repo.delete_branch("c", force=True)
    path = repo.folder.root / "operations"
    data = path.read_bytes()
    path.write_bytes(data[:-20])
    for log in (repo.folder.root / ".git/logs").rglob("*"):
        if log.is_file():
            log.unlink()
    count = len(repo.maintenance.operations())
    grow_old(repo)
    assert repo.maintenance.gc().packs == 0
    repo.create_branch("d")
    assert len(repo.maintenance.operations()) == count + 1
    repo.undo()
    assert "d" not in repo.branches()
    assert read(repo, made.commit_hash) == raw(weights(3))
    path.write_bytes(os.urandom(5000))
    assert repo.maintenance.operations() == []
    commit(repo, 8)
    assert len(repo.maintenance.operations()) == 1


def test_a_log_that_cannot_be_written_fails_no_commit(repo: Repository) -> None:
    """The commit stands; it only cannot be undone."""
    path = repo.folder.root / "operations"
    path.unlink()
    path.mkdir()
    made = commit(repo, 3)
    assert Repository(repo.path).resolve("HEAD") == made.commit_hash


def test_processes_log_at_once(repo: Repository) -> None:
    """No line is lost or torn when several processes move refs."""
    before = len(repo.maintenance.operations())

    def work(number: int) -> str:
        for turn in range(10):
            Repository(repo.path).tag(f"t-{number}-{turn}")
        return ""

    at_once(work, 4)
    assert len(repo.maintenance.operations()) == before + 40
    repo.undo(40)
    assert list(repo.tags()) == ["v1"]


def test_the_command(repo: Repository) -> None:
    """--list shows what was done and by whom; undo says what it took back, and where the refs are."""
    coral = [sys.executable, "-m", "coral", "undo"]
    listed = json.loads(run_command([*coral, "--list", "--json"], repo.path).stdout)
    assert [one["command"] for one in listed][:2] == ["tag: v1", f"branch: Created from {repo.resolve('b')[:10]}"]
    assert "@" in listed[0]["who"] and listed[0]["moves"][0]["ref"] == "refs/tags/v1"
    assert "tag: v1" in run_command([*coral, "--list"], repo.path).stdout
    assert run_command([*coral, "2"], repo.path).stdout.splitlines()[:2] == ["undone: tag: v1", "  v1 is gone"]
    assert Repository(repo.path).tags() == {} and list(repo.branches()) == ["main"]
    assert run_command([*coral, "99"], repo.path).returncode == 3
