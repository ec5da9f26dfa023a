"""Garbage collection: whatever anything names stays, whoever else is at work, and however it is killed."""

from __future__ import annotations

import json
import textwrap
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from coral import ConflictError, Repository
from coral.errors import CoralError, GitCommandError, LockedError
from coral.experiments import ExperimentTracker
from coral.storage import disk
from coral.testing.disks import Killing
from coral.testing.processes import Note, Warm
from coral.verbs.inside_git.filter import GitFilter
from tests.repository.garbage import (
    abandon,
    check,
    delta_series,
    deltas_in,
    forget,
    grow_old,
    mixed,
    mixed_pack,
    packs,
    trash,
)
from tests.repository.helpers import child, commit, finish, git, raw, read, tree, weights

# -- what stays


def test_all_that_can_come_back_stays(repo: Repository) -> None:
    """Tags, HEAD where it is detached, reflogs, the shell's staging area, and what runs name."""
    kept = {}
    for number, name in enumerate(("tag", "detached", "reflog", "run")):
        commit(repo, number)
        kept[name] = repo.resolve("HEAD")
    shell = Repository(repo.path, shell_staging=True)
    shell.stage_weights(weights(50), "staged")
    repo.tag("v1", kept["tag"], message="annotated")
    repo.checkout(kept["detached"])
    tracker = ExperimentTracker(repo)
    run = tracker.start("r")
    run.end(commit_hash=kept["run"])
    artifact = tracker.start("a")
    artifact.log_artifact(b"x" * 5000, "blob")
    artifact.end()
    base = repo.history.write_commit(overlay={}, message="empty").commit_hash
    (repo.folder.root / ".git/refs/heads/main").write_text(base + "\n")
    forget(repo)
    (repo.folder.root / ".git/logs/refs/heads").mkdir(parents=True, exist_ok=True)
    line = f"{'0' * 40} {kept['reflog']} n <e> 1700000000 +0000\tx\n"
    (repo.folder.root / ".git/logs/refs/heads/main").write_text(line)
    assert Repository(repo.path).maintenance.gc(prune_now=True).packs == 0
    for name, made in kept.items():
        index = ("tag", "detached", "reflog", "run").index(name)
        assert read(Repository(repo.path), made) == raw(weights(index)), name
    shell.commit("staged")
    assert read(Repository(repo.path), shell.resolve("HEAD"), "staged") == raw(weights(50))
    (found,) = ExperimentTracker(Repository(repo.path)).get_by_name("a")
    assert found is not None and found.load_artifact("blob") == b"x" * 5000


@pytest.mark.parametrize("gone", ["tag", "detached", "reflog", "run", "staged"])
def test_each_of_them_alone_is_what_keeps_it(repo: Repository, gone: str) -> None:
    """With the one name gone, what it kept goes: nothing else was keeping it."""
    commit(repo, 1)
    made = abandon(repo, 2)
    if gone == "tag":
        repo.tag("v", made)
        undo: Callable[[], object] = partial(repo.delete_tag, "v")
    elif gone == "detached":
        repo.checkout(made)
        undo = partial(repo.checkout, "main")
    elif gone == "reflog":
        path = repo.folder.root / ".git/logs/refs/heads/main"
        path.write_text(f"{'0' * 40} {made} n <e> 1700000000 +0000\tx\n")
        undo = path.unlink
    elif gone == "run":
        path = repo.folder.root / "experiments/0123456789ab.jsonl"
        path.write_text(json.dumps({"commit": made}))
        undo = path.unlink
    else:
        path = repo.folder.root / "staging/index.json"
        path.write_text(json.dumps({"base": made, "parts": {}}))
        undo = path.unlink
    if gone != "reflog":
        forget(repo)
    assert Repository(repo.path).maintenance.gc(prune_now=True).packs == 0
    undo()
    forget(repo)
    assert Repository(repo.path).maintenance.gc(prune_now=True).packs == 1


def test_what_can_be_undone_stays(repo: Repository) -> None:
    """What an operation of the last days names is kept, though no ref does."""
    commit(repo, 1)
    repo.switch("b", create=True)
    commit(repo, 2)
    repo.switch("main")
    repo.delete_branch("b", force=True)
    for path in (repo.folder.root / ".git/logs").rglob("*"):
        if path.is_file():
            path.unlink()
    grow_old(repo)
    assert repo.maintenance.gc().packs == 0
    repo.undo()
    assert read(repo, "b") == raw(weights(2))


@pytest.mark.parametrize("damage", ["ref", "reflog", "packed commit", "staging", "manifest", "chunk list"])
def test_on_doubt_nothing_is_collected(repo: Repository, damage: str) -> None:
    """What names chunks and cannot be read stops the collection, which changes nothing."""
    repo.stage_weights({"large": np.random.default_rng(0).normal(size=(300, 1000))})
    tip = repo.commit("x").commit_hash
    abandon(repo, 2)
    target = {
        "ref": repo.folder.root / ".git/refs/heads/main",
        "reflog": repo.folder.root / ".git/logs/HEAD",
        "packed commit": repo.folder.root / f".git/objects/{tip[:2]}/{tip[2:]}",
        "staging": repo.folder.root / "staging/index.json",
    }.get(damage)
    if damage == "manifest":
        oid = repo.history.part(tip, "model.safetensors") or ""
        target = repo.folder.root / f".git/objects/{oid[:2]}/{oid[2:]}"
    elif damage == "chunk list":
        (first, _) = packs(repo)
        target = repo.folder.root / f"packs/{first}.idx"
        target.unlink()
    if damage != "chunk list":
        assert target is not None
        target.unlink(missing_ok=True)
        target.write_bytes(b"rubbish\n")
    before = tree(repo.folder.root)
    with pytest.raises(CoralError):
        Repository(repo.path).maintenance.gc(prune_now=True)
    after = tree(repo.folder.root)
    assert {name: data for name, data in after.items() if not name.startswith("locks/")} == {
        name: data for name, data in before.items() if not name.startswith("locks/")
    }


def test_staged_and_pending_commits_survive(repo: Repository) -> None:
    """What another object has staged, or is committing, keeps collection waiting; its own is refused at once."""
    commit(repo, 1)
    repo.stage_weights(weights(2))
    with pytest.raises(ConflictError, match="staged"):
        repo.maintenance.gc(prune_now=True)
    process = child("print(Repository(sys.argv[1]).maintenance.gc(prune_now=True).packs)", repo.path)
    time.sleep(1.5)
    assert process.poll() is None
    repo.commit("two")
    assert finish(process) == "0\n"
    assert read(repo) == raw(weights(2))
    check(repo)


def test_a_dedup_hit_on_garbage_is_kept(repo: Repository) -> None:
    """Staged bytes that only garbage held are there once committed, whatever was collected in between."""
    commit(repo, 1)
    abandon(repo, 2)
    other = Repository(repo.path)
    other.stage_weights(weights(2))
    assert len(packs(repo)) == 2
    process = child("print(Repository(sys.argv[1]).maintenance.gc(prune_now=True).packs)", repo.path)
    time.sleep(1.0)
    other.commit("again")
    assert finish(process) == "0\n"
    assert read(Repository(repo.path)) == raw(weights(2))


def test_the_gate_lets_collection_in(repo: Repository) -> None:
    """A process that never lets go is told of as a lock, and writers are not failed by the one who waits."""
    commit(repo, 1)
    repo.stage_weights(weights(2))
    impatient = """
        from coral.objects.shelf import LocalShelf
        alone = LocalShelf.alone
        LocalShelf.alone = lambda shelf: alone(shelf, timeout=4.0)
        Repository(sys.argv[1]).maintenance.gc()
    """
    waiting = child(textwrap.dedent(impatient), repo.path)
    time.sleep(1.0)
    writer = child("commit(Repository(sys.argv[1]), 3)", repo.path)
    _, errors = waiting.communicate(timeout=60)
    assert waiting.returncode and LockedError.__name__ in errors
    finish(writer)
    repo.unstage()


# -- with the user's git


@pytest.fixture
def inside(tmp_path: Path) -> Path:
    """A git repository around a coral one, whose manifests are put into git by hand."""
    git(tmp_path, "init", "-q", "-b", "main")
    (tmp_path / "readme").write_text("x")
    git(tmp_path, "add", "readme")
    git(tmp_path, "commit", "-q", "-m", "first")
    repo = Repository(tmp_path, init=True)
    commit(repo, 0)
    return tmp_path


def manifest(folder: Path, seed: int) -> bytes:
    """The manifest of weights that the history does not name any more."""
    repo = Repository(folder)
    made = abandon(repo, seed)
    return repo.parts(made)["model.safetensors"].to_bytes()


@pytest.mark.parametrize("place", ["commit", "index", "stash", "worktree", "reflog", "conflict", "tag"])
def test_what_git_reaches_stays(inside: Path, place: str) -> None:
    """A manifest in any of the places that git keeps keeps its chunks; when it is gone from there, they go."""
    text = manifest(inside, 7)
    path = inside / "m.safetensors"
    undo: list[tuple[str, ...]] = []
    path.write_bytes(text)
    git(inside, "add", "m.safetensors")
    if place == "conflict":
        path.write_bytes(text.replace(b"bias", b"<<<<<<< ours\nbias", 1) + b">>>>>>> theirs\n")
        git(inside, "add", "m.safetensors")
    if place in ("commit", "worktree", "reflog", "tag", "conflict"):
        git(inside, "switch", "-q", "-c", "b")
        git(inside, "commit", "-q", "-m", "m")
        git(inside, "switch", "-q", "main")
        undo = [("branch", "-D", "b")]
    if place == "worktree":
        git(inside, "worktree", "add", "-q", "--detach", str(inside.parent / "linked"), "b")
        git(inside, "branch", "-D", "b")
        undo = [("worktree", "remove", "--force", str(inside.parent / "linked"))]
    if place == "tag":
        git(inside, "tag", "-a", "-m", "t", "t", "b:m.safetensors")
        git(inside, "branch", "-D", "b")
        undo = [("tag", "-d", "t")]
    if place == "stash":
        git(inside, "stash")
        undo = [("stash", "drop")]
    if place == "index":
        undo = [("rm", "-q", "-f", "m.safetensors")]
    if place == "reflog":
        git(inside, "branch", "-D", "b")
        undo = []
    else:
        git(inside, "reflog", "expire", "--expire=now", "HEAD", "main")
    assert Repository(inside).maintenance.gc(prune_now=True).packs == 0, place
    for words in undo:
        git(inside, *words)
    git(inside, "reflog", "expire", "--expire=now", "--all")
    assert Repository(inside).maintenance.gc(prune_now=True).packs == 1, place


@pytest.mark.parametrize("damage", ["object", "head", "program", "elsewhere"])
def test_where_git_cannot_tell_nothing_is_collected(inside: Path, damage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """git absent, a damaged repository, or another one named by the environment: nothing is collected."""
    text = manifest(inside, 7)
    (inside / "m.safetensors").write_bytes(text)
    git(inside, "add", "m.safetensors")
    git(inside, "commit", "-q", "-m", "m")
    if damage == "object":
        oid = git(inside, "rev-parse", "HEAD^{tree}").strip()
        (inside / f".git/objects/{oid[:2]}/{oid[2:]}").unlink()
    elif damage == "head":
        (inside / ".git/HEAD").unlink()
    elif damage == "program":
        monkeypatch.setenv("PATH", str(inside / "nowhere"))
    else:
        other = inside.parent / "other"
        other.mkdir()
        git(other, "init", "-q")
        monkeypatch.setenv("GIT_DIR", str(other / ".git"))
    before = packs(Repository(inside))
    with pytest.raises(GitCommandError):
        Repository(inside).maintenance.gc(prune_now=True)
    assert packs(Repository(inside)) == before


# -- kills; beside others at work it is in tests/torture/test_race.py


def collect_until(note: Note, project: Path, limit: int) -> None:
    """Collect, and be killed at the call of this number that changes something."""
    with disk.use(Killing(limit - 1, kinds=("write", "rename", "unlink", "sync"))):
        Repository(project).maintenance.gc(grace=0.001)


def test_kill_9_at_any_moment(quick: Path) -> None:
    """A collection that is killed loses nothing, and the next one goes on from there."""
    repo = Repository(quick, init=True)
    delta_series(repo, 3)
    killed = 0
    with Warm(None, [__name__], folder=Path(__file__).parents[2]) as warm:
        for turn in range(30):
            commit(repo, turn)
            abandon(repo, 1000 + turn, rows=600)
            mixed_pack(repo, turn)
            grow_old(repo)
            ended = warm.run(f"{__name__}:collect_until", quick, turn + 1)
            assert ended.error is None
            killed += not ended.finished
            fresh = Repository(quick)
            assert not fresh.maintenance.fsck(read_data=True).damage, turn
            for pack in fresh.store.packs.packs:
                for chunk, _ in pack.index.items():
                    fresh.store.bases_of(chunk)
    assert killed >= 10
    done = Repository(quick).maintenance.gc(prune_now=True)
    assert done.nbytes >= 0 and Repository(quick).maintenance.gc(prune_now=True).packs == 0
    assert not list((quick / ".coral/trash").iterdir())
    stems = {path.stem: path.suffix for path in (quick / ".coral/packs").iterdir()}
    assert len(stems) * 2 == len(list((quick / ".coral/packs").iterdir()))
    check(Repository(quick))


@pytest.mark.parametrize("which", ["before the index goes", "before the pack goes", "after"])
def test_killed_between_index_and_pack(repo: Repository, which: str) -> None:
    """A pack whose index is in the trash already is put beside it; one whose new pack is there goes as well."""
    mixed(repo)
    grow_old(repo)
    (old,) = packs(repo)
    kept = {path.name: path.read_bytes() for path in (repo.folder.root / "packs").iterdir()}
    repo.maintenance.gc()
    (batch,) = (repo.folder.root / "trash").iterdir()
    for name in [f"{old}.pack"] + ([f"{old}.idx"] if which == "before the index goes" else []):
        if which != "after":
            (batch / name).rename(repo.folder.root / "packs" / name)
    fresh = Repository(repo.path)
    assert read(fresh, "main") == raw(weights(1, rows=400))
    fresh.maintenance.gc()
    assert old not in packs(fresh) and trash(fresh) == [old]
    assert {path.name: path.read_bytes() for path in (repo.folder.root / "trash").rglob("*.*")} == kept
    check(fresh)


def test_what_is_found_and_not_named_yet_counts_as_young(repo: Repository) -> None:
    """Bytes that only old garbage held are kept for the grace period from when somebody stored them again."""
    commit(repo, 1)
    data = np.random.default_rng(5).bytes(5000)
    repo.store.put_bytes(data)
    grow_old(repo)
    fresh = Repository(repo.path)
    ref = fresh.store.put_bytes(data)
    assert fresh.maintenance.gc().packs == 0
    assert Repository(repo.path).store.get_bytes(ref, 5000) == data
    grow_old(repo)
    assert fresh.maintenance.gc().packs == 1


def test_a_filter_keeps_what_git_has_not_named_yet(repo: Repository) -> None:
    """While git's filter process lives, which is until git has written its index, nothing is collected."""
    commit(repo, 1)
    path = repo.path / "x.bin"
    path.write_bytes(np.random.default_rng(6).bytes(5000))
    git_filter = GitFilter(repo.path)
    git_filter.keep("x.bin", path)
    process = child("print(Repository(sys.argv[1]).maintenance.gc(prune_now=True).packs)", repo.path)
    time.sleep(1.5)
    assert process.poll() is None
    git_filter.finish()
    assert finish(process) == "1\n"


def test_what_stays_in_a_pack_can_be_read(repo: Repository) -> None:
    """A pack that is not worth rewriting keeps its garbage, and whatever that stands on."""
    commit(repo, 1)
    repo.create_branch("series")
    other = Repository(repo.path)
    other.pin("series")
    made = delta_series(other, 1)
    more = {"w": (made[0]["w"] + np.float32(1e-4)).astype("f4")}
    large = {"x": np.random.default_rng(3).normal(size=(4000, 300)).astype("f4")}
    other.stage_weights(more)
    other.stage_weights(large, "large")
    tip = other.commit("a little garbage").commit_hash
    alone = other.history.write_commit(overlay={"large": other.history.part(tip, "large")}, message="alone")
    repo.tag("kept", alone.commit_hash)
    repo.delete_branch("series", force=True)
    forget(repo)
    grow_old(repo)
    assert deltas_in(repo) == 1 and repo.maintenance.gc().packs == 0
    again = Repository(repo.path)
    again.stage_weights(more)
    again.commit("what was garbage")
    assert read(Repository(repo.path)) == raw(more)


def test_a_conflict_about_a_whole_file_counts(inside: Path) -> None:
    """A blob that begins with git's own marker, as git writes it where both sides added the file."""
    text = manifest(inside, 7)
    (inside / "m.safetensors").write_bytes(b"<<<<<<< HEAD\n" + text + b"=======\nx\n>>>>>>> b\n")
    git(inside, "add", "m.safetensors")
    assert Repository(inside).maintenance.gc(prune_now=True).packs == 0


def test_what_is_sealed_and_not_named_yet_is_held(repo: Repository) -> None:
    """After a lost race the parts are durable and no commit names them: they wait for the next attempt."""
    commit(repo, 1)
    mine = Repository(repo.path)
    mine.stage_weights(weights(2))
    commit(repo, 3)
    with pytest.raises(ConflictError):
        mine.commit("lost the race")
    process = child("print(Repository(sys.argv[1]).maintenance.gc(prune_now=True).packs)", repo.path)
    time.sleep(1.5)
    assert process.poll() is None
    mine.commit("again")
    assert finish(process) == "0\n"
    assert read(Repository(repo.path)) == raw(weights(2))


HOLDER = """
    import time
    store = Repository(sys.argv[1]).store
    print("go", flush=True)
    while not os.path.exists(sys.argv[2]):
        with store.held():
            time.sleep(0.3)
"""


def test_writers_that_come_and_go_do_not_keep_collection_out(repo: Repository) -> None:
    """Though at every moment somebody holds the store, a collection gets its turn."""
    commit(repo, 1)
    abandon(repo, 2)
    stop = repo.path.parent / "stop"
    holders = [child(HOLDER, repo.path, stop) for _ in range(6)]
    for holder in holders:
        assert holder.stdout is not None
        holder.stdout.readline()
    try:
        assert repo.maintenance.gc(prune_now=True).packs == 1
    finally:
        stop.touch()
        for holder in holders:
            holder.communicate(timeout=60)


def test_damaged_lines_of_the_log_keep_what_they_name(repo: Repository) -> None:
    """What cannot be undone any more is kept all the same: nobody knows how old such a line is."""
    commit(repo, 1)
    repo.create_branch("b")
    other = Repository(repo.path)
    other.pin("b")
    commit(other, 2)
    repo.delete_branch("b", force=True)
    log = repo.folder.root / "operations"
    lines = [b"0" * 16 + line[16:] for line in log.read_bytes().splitlines()]
    forget(repo)
    log.write_bytes(b"\n".join(lines) + b"\n")
    grow_old(repo)
    assert repo.maintenance.operations() == [] and repo.maintenance.gc().packs == 0
    log.unlink()
    assert repo.maintenance.gc().packs == 1
