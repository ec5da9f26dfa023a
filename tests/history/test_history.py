"""Commits, parts and logs, beside the real git."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coral.errors import ConflictError, CorruptionError, InvalidNameError, RefNotFoundError, UsageError
from coral.history import history as history_module
from coral.history.commit import Commit, CommitObject
from coral.history.history import History
from coral.history.loose import Kind
from coral.history.loose import key as loose_key
from coral.ids import BlobId, CommitHash
from tests.history.helpers import commit, commit_on, line_of

Git = Callable[..., str]


def test_commit_round_trip(history: History) -> None:
    """A commit reads back as it was given."""
    blob = history.write_blob(b"manifest")
    moment = datetime(2026, 5, 6, 7, 8, 9, tzinfo=UTC)
    made = history.write_commit(
        overlay={"model.safetensors": blob, "runs/a/last.pt": blob},
        message="Ünïcode\r\n\n  Coral-Run: forged \n\n",
        author="Ada <ada@x>",
        trailers={"Coral-Run": "r1", "Coral-Note": "two\nlines"},
        time=moment,
    )
    assert history.commit(made.commit_hash) == made
    assert made.message == "Ünïcode\r\n\n  Coral-Run: forged \n\n"
    assert (made.author, made.time, made.run_id, made.parents) == ("Ada <ada@x>", moment, "r1", ())
    assert made.trailers["Coral-Note"] == "two\nlines"
    assert history.parts(made.commit_hash) == {"model.safetensors": blob, "runs/a/last.pt": blob}
    assert history.part(made.commit_hash, "runs/a/last.pt") == blob
    assert history.part(made.commit_hash, "runs/a") is None
    assert history.part(made.commit_hash, "model.safetensors/x") is None
    assert history.parts(None) == {}
    assert history.read_blob(blob) == b"manifest"


def test_real_git_reads_it(history: History, git: Git) -> None:
    """The real git finds nothing to complain about, and sees commits, trailers, branches and tags."""
    first = commit_on(history, "main", "one", path="a/b")
    second = commit_on(history, "main", "two", path="a.b")
    history.create_branch("runs/x-1", first.commit_hash)
    history.create_tag("v1", first.commit_hash, message="the first", author="Ada")
    history.create_tag("light", second.commit_hash)
    git("fsck", "--strict", "--no-dangling")
    assert git("log", "--format=%H %an <%ae>", "main").split("\n")[0] == f"{second.commit_hash} coral <>"
    assert git("show", "main:a/b") == "one"
    assert git("cat-file", "-t", "v1").strip() == "tag"
    listed = git("for-each-ref", "--format=%(refname)").split()
    assert listed == ["refs/heads/main", "refs/heads/runs/x-1", "refs/tags/light", "refs/tags/v1"]
    assert git("rev-parse", "--is-bare-repository").strip() == "true"


def test_written_by_real_git(history: History, git: Git) -> None:
    """Branches, tags, packed refs, packs and commits that the real git made are seen."""
    made = commit_on(history, "main", "one")
    git("branch", "other", "main")
    git("tag", "-a", "-m", "note", "v1", "main")
    other = CommitHash(git("commit-tree", "-p", "main", "-m", "by git\n\nSigned-off-by: x", "main^{tree}").strip())
    git("update-ref", "refs/heads/other", other)
    git("pack-refs", "--all")
    git("gc", "--quiet")
    assert history.branches() == {"main": made.commit_hash, "other": other}
    assert history.tags() == {"v1": made.commit_hash}
    assert history.commit(other).message == "by git\n\nSigned-off-by: x"
    assert history.commit(other).author == "NAME@x <EMAIL@x>"
    blob = history.part(other, "model.safetensors")
    assert blob is not None and history.read_blob(blob) == b"one"
    history.move_branch("other", made.commit_hash, expected=other, reason="back")
    history.delete_branch("other")
    assert git("for-each-ref", "--format=%(refname)").split() == ["refs/heads/main", "refs/tags/v1"]


_NAMES = st.sampled_from(["a", "b", "a.b", "a-b", "a/x", "a/y", "b/x", "a/x/z", "a0"])


@settings(max_examples=25, deadline=None)
@given(changes=st.lists(st.dictionaries(_NAMES, st.sampled_from([None, b"1", b"2"]), max_size=4), max_size=5))
def test_overlay_is_a_dict(tmp_path_factory: pytest.TempPathFactory, changes: list[dict[str, bytes | None]]) -> None:
    """Overlays act as updates of a dict of paths, except that a path that is both file and folder is refused."""
    history = History.create(tmp_path_factory.mktemp("overlay") / ".git")
    held: dict[str, bytes] = {}
    base = None
    for change in changes:
        wanted = {key: value for key, value in {**held, **change}.items() if value is not None}
        overlay = {path: history.write_blob(data) if data else None for path, data in change.items()}
        clash = any(a != b and b.startswith(a + "/") for a in wanted for b in wanted)
        if clash:
            with pytest.raises(ConflictError):
                history.write_commit(base=base, overlay=overlay, message="m")
            continue
        base, held = history.write_commit(base=base, overlay=overlay, message="m").commit_hash, wanted
        assert {path: history.read_blob(oid) for path, oid in history.parts(base).items()} == held
        assert list(history.parts(base)) == sorted(held)
    subprocess.run(["git", "-C", history.git_dir, "fsck", "--strict"], check=True, capture_output=True)


def test_refused_input(history: History, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bad names, hashes, sizes and blobs that are not there are refused with coral's errors."""
    blob = history.write_blob(b"x")
    for path in ("../x", "/x", "a//b", ".git/x", "a\0b", ""):
        with pytest.raises(InvalidNameError):
            history.write_commit(overlay={path: blob}, message="m")
    with pytest.raises(CorruptionError, match="f" * 40):
        history.write_commit(overlay={"a": BlobId("f" * 40)}, message="m")
    with pytest.raises(CorruptionError, match="is not a blob"):
        history.write_commit(overlay={"a": BlobId(commit(history).commit_hash)}, message="m")
    with pytest.raises(CorruptionError, match="f" * 40):
        history.write_commit(overlay={}, parents=[CommitHash("f" * 40)], message="m")
    with pytest.raises(UsageError):
        history.write_commit(overlay={"a": BlobId("xyz")}, message="m")
    with pytest.raises(UsageError):
        history.commit("HEAD")
    with pytest.raises(RefNotFoundError):
        history.commit("f" * 40)
    with pytest.raises(RefNotFoundError):
        history.commit(blob)
    monkeypatch.setattr(history_module, "MAX_BLOB_BYTES", 3)
    with pytest.raises(UsageError):
        history.write_blob(b"1234")


@pytest.mark.parametrize("damage", ["truncate", "empty", "flip", "remove"])
def test_damaged_object(history: History, damage: str) -> None:
    """A damaged or missing object is named, never returned."""
    made = commit_on(history, "main", "one")
    blob = history.part(made.commit_hash, "model.safetensors")
    assert blob is not None
    for oid in (blob, made.commit_hash):
        path = history.git_dir / loose_key(oid)
        data = bytearray(path.read_bytes())
        path.chmod(0o644)
        data[len(data) // 2] ^= 1
        path.write_bytes({"truncate": path.read_bytes()[:-6], "empty": b"", "flip": bytes(data), "remove": b""}[damage])
        if damage == "remove":
            path.unlink()
    fresh = History(history.git_dir, locks=history.git_dir.parent / "locks")
    with pytest.raises(CorruptionError, match=blob):
        fresh.read_blob(blob)
    with pytest.raises(CorruptionError, match=made.commit_hash):
        fresh.parts(made.commit_hash)
    with pytest.raises((CorruptionError, RefNotFoundError)):
        list(fresh.log("main"))


def test_rewriting_mends(history: History) -> None:
    """Storing bytes again replaces a loose object that a power cut damaged."""
    blob = history.write_blob(b"weights")
    path = history.git_dir / loose_key(blob)
    path.chmod(0o644)
    path.write_bytes(b"")
    assert history.write_blob(b"weights") == blob
    assert History(history.git_dir, locks=history.git_dir).read_blob(blob) == b"weights"


def test_create_twice(tmp_path: Path) -> None:
    """Eight processes may create one repository at once; none undoes another's commit."""
    program = (
        "import sys; from pathlib import Path; from coral.history.history import History\n"
        "history = History.create(Path(sys.argv[1]))\n"
        "made = history.write_commit(overlay={}, message=sys.argv[2])\n"
        "history.create_branch('run-' + sys.argv[2], made.commit_hash)\n"
    )
    git_dir = tmp_path / ".coral" / ".git"
    root = str(Path(history_module.__file__).parents[2])
    running = [subprocess.Popen([sys.executable, "-c", program, git_dir, str(number)], cwd=root) for number in range(8)]
    assert [process.wait() for process in running] == [0] * 8
    assert len(History.create(git_dir).branches()) == 8
    subprocess.run(["git", "-C", git_dir, "fsck", "--strict"], check=True, capture_output=True)


def test_home_is_not_read(tmp_path: Path, folder: Path) -> None:
    """The configuration in the home folder changes nothing, broken as it may be."""
    (tmp_path / ".gitconfig").write_text("[broken\n")
    program = (
        "import sys; from pathlib import Path; from coral.history.history import History\n"
        "history = History.create(Path(sys.argv[1]))\n"
        "history.create_branch('main', history.write_commit(overlay={}, message='m').commit_hash)\n"
    )
    root = str(Path(history_module.__file__).parents[2])
    environment = {"HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path), "PATH": os.environ["PATH"]}
    subprocess.run([sys.executable, "-c", program, folder / ".git"], cwd=root, env=environment, check=True)


def test_threads_and_forks(history: History) -> None:
    """One History serves threads and forked children; every commit lands."""
    commit_on(history, "main", "zero")

    def work(name: str) -> None:
        for number in range(5):
            commit_on(history, name, f"{name} {number}")

    def child(name: str) -> int:
        pid = os.fork()
        if pid == 0:
            try:
                work(name)
                os._exit(0)
            finally:
                os._exit(1)
        return pid

    children = [child(f"child-{number}") for number in range(2)]
    threads = [threading.Thread(target=work, args=(f"thread-{number}",)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [os.waitpid(pid, 0)[1] for pid in children] == [0, 0]
    assert {name: len(list(history.log(name))) for name in history.branches()} == {
        "main": 1,
        **{f"child-{number}": 5 for number in range(2)},
        **{f"thread-{number}": 5 for number in range(3)},
    }


def _check_topological(history: History, log: Iterator[Commit], count: int) -> None:
    order = [found.commit_hash for found in log]
    assert len(order) == len(set(order)) == count
    places = {oid: place for place, oid in enumerate(order)}
    for oid in order:
        assert all(places[parent] > places[oid] for parent in history.commit(oid).parents)


@pytest.mark.parametrize("seed", range(12))
def test_log_is_topological(history: History, seed: int) -> None:
    """No commit comes before one that follows it, whatever the merges, also within one second."""
    chance = random.Random(seed)
    made: list[CommitHash] = []
    times: dict[str, int] = {}
    for number in range(25):
        parents = chance.sample(made[-5:], min(len(made[-5:]), chance.choice([1, 1, 2, 3])))
        seconds = max([times[parent] for parent in parents], default=1000) + chance.choice([0, 0, 0, 1, 5])
        made.append(commit(history, f"c {number}", parents=parents, seconds=seconds).commit_hash)
        times[made[-1]] = seconds
    tip = commit(history, "tip", parents=made[-5:], seconds=max(times.values())).commit_hash
    reachable = subprocess.run(
        ["git", "-C", history.git_dir, "rev-list", "--count", tip], capture_output=True, text=True, check=True
    )
    _check_topological(history, history.log(tip), int(reachable.stdout))


@pytest.mark.parametrize("seed", range(6))
def test_log_everywhere(history: History, git: Git, seed: int) -> None:
    """All that branches, tags and HEAD lead to, each once, newest first, never a commit before one that follows it."""
    chance = random.Random(seed)
    made: list[CommitHash] = []
    for number in range(25):  # several roots, and lines that never meet
        parents = chance.sample(made[-6:], min(len(made[-6:]), chance.choice([0, 1, 1, 2])))
        made.append(commit(history, f"c {number}", parents=parents, seconds=1000 + number // 2).commit_hash)
    for number, oid in enumerate(chance.sample(made, 5)):
        history.create_tag(f"t{number}", oid, message="annotated" if number % 2 else None)
    history.create_branch("side", made[-1])
    history.create_branch("main", chance.choice(made))
    history.set_head(commit_hash=chance.choice(made))
    count = int(git("rev-list", "--count", "--all", "HEAD"))
    _check_topological(history, history.log_everywhere(lambda commit: True), count)
    times = [found.time for found in history.log_everywhere(lambda commit: True)]
    assert times == sorted(times, reverse=True)
    kept = list(history.log_everywhere(lambda commit: commit.subject.endswith("3")))
    assert {found.subject for found in kept} <= {"c 3", "c 13", "c 23"}
    assert list(history.log_everywhere(lambda commit: commit.subject.endswith("3"), max_count=1)) == kept[:1]


def test_log_everywhere_of_nothing_and_of_a_path(history: History) -> None:
    """Before the first commit there is none; a path leaves those that changed it."""
    assert list(history.log_everywhere(lambda commit: True)) == []
    for branch, path in (("main", "a"), ("main", "b"), ("side", "a")):
        commit_on(history, branch, f"{branch} {path}", path=path)
    found = history.log_everywhere(lambda commit: True, path="a")
    assert sorted(commit.subject for commit in found) == ["main a", "side a"]


def test_log_of_a_path(history: History, git: Git) -> None:
    """With a path only the commits that change it are shown, deletions and merges included."""
    one = commit(history, "one", parts={"a": "1", "d/x": "1"}, seconds=1).commit_hash
    two = commit(history, "two", parents=[one], parts={"b": "1"}, seconds=2).commit_hash
    three = commit(history, "three", parents=[two], parts={"a": "2", "d/x": "2"}, seconds=3).commit_hash
    side = commit(history, "side", parents=[two], parts={"b": "2"}, seconds=4).commit_hash
    merge = history.write_commit(base=three, overlay={}, parents=[three, side], message="merge").commit_hash
    gone = history.write_commit(base=merge, overlay={"a": None}, parents=[merge], message="gone").commit_hash
    history.create_branch("main", gone)

    def subjects(path: str) -> list[str]:
        return [found.subject for found in history.log("main", path=path)]

    assert subjects("a") == ["gone", "three", "one"]
    assert subjects("d") == subjects("d/x") == ["three", "one"]
    # The merge keeps the old b, which its side had changed: it differs from one parent only.
    assert subjects("b") == ["side", "two"]
    assert subjects("nothing") == []
    assert [found.subject for found in history.log("main", path="a", max_count=2)] == ["gone", "three"]
    assert list(history.log("main", max_count=0)) == []


def test_log_is_lazy(history: History, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first commits of a long line are shown without reading the rest."""
    line_of(history, 60)
    read: list[str] = []
    real = History._object

    def counted(self: History, oid: str) -> CommitObject:
        read.append(oid)
        return real(self, oid)

    monkeypatch.setattr(History, "_object", counted)
    assert len(list(history.log("main", max_count=20))) == 20
    assert len(read) <= 22


def test_clock_running_backwards(history: History) -> None:
    """A commit is never dated before its parents, unless they are dated absurdly."""
    ahead = int(time.time()) + 3600
    parent = commit(history, "ahead", seconds=ahead)
    assert commit(history, "next", parents=[parent.commit_hash]).time.timestamp() == ahead
    absurd = commit(history, "absurd", seconds=ahead + 10**9)
    assert commit(history, "next", parents=[absurd.commit_hash]).time.timestamp() < ahead
    assert commit(history, "local").time.utcoffset() == datetime.now().astimezone().utcoffset()


def test_versions(history: History, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every blob that a path had, each once and the latest first, from every branch, tag and a detached HEAD."""
    root = commit(history, "root", parts={"a/b": "0"}, seconds=100).commit_hash
    tip = root
    for number in range(1, 6):
        tip = commit(history, "m", parents=[tip], parts={"a/b": str(number // 2)}, seconds=100 + number).commit_hash
    history.create_branch("main", tip)
    side = commit(history, "side", parents=[root], parts={"a/b": "side"}, seconds=102).commit_hash
    history.create_branch("runs/side", side)
    tagged = commit(history, "tagged", parents=[root], parts={"a/b": "tagged"}, seconds=90).commit_hash
    history.create_tag("v1", tagged, message="a note")
    gone = history.write_commit(base=tip, overlay={"a/b": None}, parents=[tip], message="gone")
    head = commit(history, "head", parents=[gone.commit_hash], parts={"a/b": "head"}).commit_hash
    commit(history, "nobody's", parents=[head], parts={"a/b": "lost"})
    history.set_head(commit_hash=head)
    reads: list[str] = []
    original = history._handle.read

    def counting(oid: str) -> tuple[Kind, bytes]:
        reads.append(oid)
        return original(oid)

    monkeypatch.setattr(history._handle, "read", counting)
    found = list(history.versions("a/b"))
    once = [oid for oid in reads if oid != tagged]  # a tag's commit is read to find that it is one
    assert len(set(once)) == len(once)
    assert [history.read_blob(oid).decode() for oid in found] == ["head", "2", "1", "side", "0", "tagged"]
    assert list(history.versions("a")) == list(history.versions("nothing")) == []


def test_versions_are_lazy(history: History, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many branches along one long line cost their tips; what comes before is read as far as the caller asks."""
    made = line_of(history, 60)
    for number in range(20):
        history.create_branch(f"runs/{number}", made[-1 - number % 3])
    reads: list[str] = []
    original = history._object

    def counting(oid: str) -> CommitObject:
        reads.append(oid)
        return original(oid)

    monkeypatch.setattr(history, "_object", counting)
    versions = history.versions("model.safetensors")
    assert history.read_blob(next(versions)) == b"weights"
    assert len(reads) == 3
    assert list(versions) == []
    assert len(reads) == 60


def test_versions_of_nothing(history: History) -> None:
    """A repository without commits has no versions of anything."""
    assert list(history.versions("a")) == []
