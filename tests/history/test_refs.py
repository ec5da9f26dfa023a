"""Branches, tags and HEAD: names, moves, races and leftovers."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from hashlib import sha1
from pathlib import Path

import pytest

from coral.errors import (
    AlreadyExistsError,
    ConflictError,
    CorruptionError,
    InvalidNameError,
    NotFoundError,
    RefNotFoundError,
    RepositoryNotFoundError,
    StorageError,
    UsageError,
)
from coral.history import history as history_module
from coral.history.history import History
from coral.history.plain import RefTarget
from coral.history.refs import Change, Head
from coral.ids import CommitHash
from tests.history.helpers import commit, commit_on, line_of

Git = Callable[..., str]
_ROOT = Path(history_module.__file__).parents[2]


def test_move_branch_is_compare_and_swap(history: History) -> None:
    """A branch moves only from where the caller believes it to be."""
    one, two = commit(history, "one").commit_hash, commit(history, "two").commit_hash
    history.move_branch("main", one, expected=None, reason="commit (initial): one")
    with pytest.raises(AlreadyExistsError):
        history.move_branch("main", two, expected=None, reason="x")
    with pytest.raises(ConflictError, match="main"):
        history.move_branch("main", two, expected=two, reason="x")
    with pytest.raises(ConflictError):
        history.move_branch("other", two, expected=one, reason="x")
    assert history.branches() == {"main": one}
    history.move_branch("main", two, expected=one, reason="commit:\ntwo\0")
    assert history.head() == Head("main", two)
    for ref in ("HEAD", "main", "refs/heads/main"):
        assert [(move.old, move.new, move.reason) for move in history.reflog(ref)] == [
            (one, two, "commit: two"),
            (None, one, "commit (initial): one"),
        ]
    with pytest.raises(CorruptionError):
        history.move_branch("main", CommitHash("f" * 40), expected=two, reason="x")


def test_race(history: History, folder: Path) -> None:
    """Of two processes that move a branch from one commit, exactly one wins and the other is told."""
    start = commit_on(history, "main", "start").commit_hash
    program = (
        "import sys, time; from pathlib import Path\n"
        "from coral.errors import ConflictError; from coral.history.history import History\n"
        "history = History(Path(sys.argv[1]), locks=Path(sys.argv[2]))\n"
        "made = history.write_commit(overlay={}, parents=[sys.argv[3]], message=sys.argv[4])\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
        "try: history.move_branch('main', made.commit_hash, expected=sys.argv[3], reason='race'); print('won')\n"
        "except ConflictError: print('lost')\n"
    )
    running = [
        subprocess.Popen(
            [sys.executable, "-c", program, history.git_dir, folder / "locks", start, name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=_ROOT,
        )
        for name in ("a", "b")
    ]
    for process in running:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    for process in running:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    said = sorted(process.communicate()[0].strip() for process in running)
    assert said == ["lost", "won"]
    assert len(list(history.log("main"))) == 2


def test_stale_lock_of_an_old_name_is_swept(history: History) -> None:
    """A rename waits for no lock file that a dead process left on the name that goes, nor is refused because of it."""
    one = commit_on(history, "main", "one").commit_hash
    history.create_branch("old", one)
    path = history.git_dir / "refs/heads/old.lock"
    path.touch()
    os.utime(path, (time.time() - 60,) * 2)
    history.rename_branch("old", "new")
    assert history.branches() == {"main": one, "new": one}


@pytest.mark.parametrize(
    ("lock", "fresh"),
    [
        ("refs/heads/main.lock", True),
        ("refs/heads/main.lock", False),
        ("HEAD.lock", False),
        ("packed-refs.lock", False),
        ("config.lock", False),
    ],
)
def test_stale_lock_is_swept(history: History, lock: str, fresh: bool) -> None:
    """A lock file that a killed git process left does not block the next write, old or a moment old."""
    one = commit_on(history, "main", "one").commit_hash
    path = history.git_dir / lock
    path.write_text("torn")
    if not fresh:
        os.utime(path, (time.time() - 10, time.time() - 10))
    started = time.monotonic()
    two = commit(history, "two", parents=[one]).commit_hash
    history.move_branch("main", two, expected=one, reason="x")
    history.set_head(commit_hash=two)
    history.create_branch("b", two)
    history.delete_branch("b")
    assert not path.exists()
    assert time.monotonic() - started < (6 if fresh else 2)


def test_first_write_sweeps_all(history: History) -> None:
    """The first write of a process removes stale locks of other refs too."""
    one = commit_on(history, "runs/a", "one").commit_hash
    path = history.git_dir / "refs/heads/runs/b.lock"
    path.write_text("")
    os.utime(path, (1, 1))
    History(history.git_dir, locks=history.git_dir.parent / "locks").create_branch("c", one)
    assert not path.exists()


def test_branch_names(history: History) -> None:
    """Names are checked by git's rules, and a name cannot be a branch and a folder of branches."""
    one = commit_on(history, "main", "one").commit_hash
    for name in ("", "a..b", "a b", "HEAD", "a\nb", "a\0b", "a~1", "-x", "x.lock", "f" * 40, "/a", "a/"):
        for call in (history.create_branch, history.create_tag):
            with pytest.raises(InvalidNameError):
                call(name, one)
    history.create_branch("ünï/cödé", one)
    history.create_branch("a/b", one)
    for clash in ("a", "a/b/c", "main/x"):
        with pytest.raises(AlreadyExistsError, match="branch and a folder"):
            history.create_branch(clash, one)
    with pytest.raises(AlreadyExistsError, match="'a/b'"):
        history.create_branch("a/b", one)
    history.delete_branch("a/b")
    history.create_branch("a", one)
    assert set(history.branches()) == {"main", "ünï/cödé", "a"}
    two = commit(history, "two").commit_hash
    history.create_branch("a", two, force=True)
    assert history.branches()["a"] == two


def test_delete_branch(history: History) -> None:
    """The current branch stays; a missing one is named, with what may have been meant."""
    one = commit_on(history, "main", "one").commit_hash
    history.create_branch("feature", one)
    with pytest.raises(ConflictError, match="current"):
        history.delete_branch("main")
    with pytest.raises(RefNotFoundError, match="feature") as caught:
        history.delete_branch("featrue")
    assert caught.value.hint == "did you mean 'feature'?"
    history.delete_branch("feature")
    assert history.branches() == {"main": one}
    with pytest.raises(RefNotFoundError):
        history.reflog("feature")


def test_rename_branch(history: History, git: Git) -> None:
    """A renamed branch keeps its reflog, and HEAD follows it."""
    one, two = commit_on(history, "main", "one").commit_hash, commit_on(history, "main", "two").commit_hash
    history.create_branch("other", one)
    with pytest.raises(AlreadyExistsError):
        history.rename_branch("main", "other")
    with pytest.raises(RefNotFoundError):
        history.rename_branch("nothing", "x")
    history.rename_branch("main", "runs/trunk")
    assert history.head() == Head("runs/trunk", two)
    assert history.branches() == {"other": one, "runs/trunk": two}
    moves = [(move.old, move.new) for move in history.reflog("runs/trunk")]
    assert moves == [(two, two), (one, two), (None, one)]
    assert history.resolve("runs/trunk@{2}") == one
    assert "renamed" in history.reflog("HEAD")[0].reason
    assert not (history.git_dir / "logs/refs/heads/main").exists()
    assert len(git("reflog", "show", "runs/trunk").splitlines()) == 3
    history.rename_branch("runs/trunk", "runs/trunk")


def test_rename_unborn(history: History) -> None:
    """The branch of a repository without commits can be renamed."""
    history.rename_branch("main", "trunk")
    assert history.head() == Head("trunk", None)


def test_head(history: History, git: Git) -> None:
    """HEAD moves between branches and commits, with git's reflog."""
    one, two = commit_on(history, "main", "one").commit_hash, commit_on(history, "main", "two").commit_hash
    history.create_branch("side", one)
    history.set_head(branch="side")
    assert history.head() == Head("side", one)
    assert history.resolve("@{-1}") == two
    history.set_head(commit_hash=two)
    assert history.head() == Head(None, two)
    assert git("rev-parse", "HEAD").strip() == two
    three = commit(history, "three", parents=[two]).commit_hash
    with pytest.raises(ConflictError):
        history.move_detached_head(three, expected=one, reason="x")
    history.move_detached_head(three, expected=two, reason="commit: three")
    assert history.head() == Head(None, three)
    assert [move.reason for move in history.reflog()][:3] == [
        "commit: three",
        f"checkout: moving from side to {two}",
        "checkout: moving from main to side",
    ]
    with pytest.raises(RefNotFoundError):
        history.set_head(branch="nothing")
    with pytest.raises(UsageError):
        history.set_head()
    history.set_head(branch="main")
    with pytest.raises(ConflictError):
        history.move_detached_head(three, expected=two, reason="x")


def test_unborn(history: History) -> None:
    """A repository without commits has a HEAD, and says what to do."""
    assert history.head() == Head("main", None)
    assert history.branches() == history.tags() == {}
    for ref in ("HEAD", "main", "HEAD~1", "@"):
        with pytest.raises(RefNotFoundError, match="no commit yet"):
            history.resolve(ref)
    history.set_head(branch="trunk")
    assert history.head() == Head("trunk", None)


def test_resolve(history: History, git: Git) -> None:
    """Every form of git's names the commit that git names."""
    line = line_of(history, 4)
    side = commit(history, "side", parents=[line[0]]).commit_hash
    merge = commit(history, "merge", parents=[line[-1], side]).commit_hash
    history.move_branch("main", merge, expected=line[-1], reason="merge")
    history.create_tag("v1", line[1], message="note")
    history.create_tag("light", line[2])
    history.create_branch("runs/a", side)
    forms = ["HEAD", "@", "main", "HEAD~2", "main^", "main^2", "main^2~1", "@{1}", "main@{1}", "v1", "light", "v1^"]
    forms += [
        "refs/heads/main",
        "heads/main",
        "runs/a",
        merge,
        merge[:8],
        f"{merge[:8]}~1",
        "HEAD^0",
        "HEAD~0",
        "main@{1}^",
        "@{0}",
        "tags/v1",
        "v1^{commit}",
    ]
    for form in forms:
        assert history.resolve(form) == git("rev-parse", f"{form}^{{commit}}").strip(), form
    assert history.tags() == {"light": line[2], "v1": line[1]}


@pytest.mark.parametrize(
    ("ref", "hint"),
    [
        ("mian", "main"),
        ("main~9", "first commit"),
        ("main~2^3~1", "first commit"),
        ("HEAD@{99}", "knows 1 of its moves"),
        ("@{-1}", "moved 0 times"),
        ("main^2", "first commit"),
        ("v11", "v1"),
        ("zzz", "coral branch"),
        ("f" * 40, "coral log"),
        ("abc", "digits"),
    ],
)
def test_unknown_refs(history: History, ref: str, hint: str) -> None:
    """What names no commit raises, with what may have been meant."""
    history.create_tag("v1", commit_on(history, "main", "one").commit_hash)
    with pytest.raises(RefNotFoundError) as caught:
        history.resolve(ref)
    assert hint in str(caught.value)


@pytest.mark.parametrize(
    "ref",
    [
        "",
        "a..b",
        "main~x",
        "my branch",
        "main\n",
        "a\0b",
        "\ud800",
        "..",
        "main^{",
        "main:x",
        "@{u}",
        "main@{-1}",
        ":/x",
        "-x",
    ],
)
def test_invalid_refs(history: History, ref: str) -> None:
    """What git's grammar forbids is refused as such."""
    commit_on(history, "main", "one")
    with pytest.raises(InvalidNameError):
        history.resolve(ref)


def test_short_hash_prefers_commits(history: History) -> None:
    """A short hash that a commit shares with a blob means the commit; one that two commits share is refused."""
    made = [commit(history, f"c {number}", seconds=number).commit_hash for number in range(400)]
    by_prefix: dict[str, list[str]] = {}
    for oid in made:
        by_prefix.setdefault(oid[:4], []).append(oid)
    shared = next((prefix for prefix, oids in by_prefix.items() if len(oids) > 1), None)
    if shared is not None:
        with pytest.raises(RefNotFoundError, match="ambiguous"):
            history.resolve(shared)
    alone = {prefix: oids[0] for prefix, oids in by_prefix.items() if len(oids) == 1}
    number, prefix = next(
        (number, digest[:4])
        for number in range(10**6)
        if (digest := sha1(b"blob %d\0%d" % (len(str(number)), number)).hexdigest())[:4] in alone
    )
    history.write_blob(b"%d" % number)
    assert history.resolve(prefix) == alone[prefix]


def test_tags(history: History) -> None:
    """A tag is made once, moved only by force, and deleted by name."""
    one, two = commit(history, "one").commit_hash, commit(history, "two").commit_hash
    history.create_tag("v1", one)
    with pytest.raises(AlreadyExistsError, match="tag 'v1'"):
        history.create_tag("v1", two)
    history.create_tag("v1", two, message="moved", force=True)
    assert history.tags() == {"v1": two}
    with pytest.raises(NotFoundError, match="tag 'v2'"):
        history.delete_tag("v2")
    history.delete_tag("v1")
    assert history.tags() == {}


def test_ancestors(history: History) -> None:
    """Ancestry and merge bases."""
    root, tip = line_of(history, 3)[0::2]
    side = commit(history, "side", parents=[root]).commit_hash
    alone = commit(history, "alone").commit_hash
    assert history.is_ancestor(root, tip) and history.is_ancestor(tip, tip)
    assert not history.is_ancestor(tip, root) and not history.is_ancestor(alone, tip)
    assert history.merge_base(tip, side) == root
    assert history.merge_base(tip, alone) is None


@pytest.mark.parametrize("ref", ["HEAD", "refs/heads/main"])
def test_torn_ref(history: History, ref: str) -> None:
    """An empty HEAD or branch file is corruption, not an empty repository."""
    commit_on(history, "main", "one")
    (history.git_dir / ref).write_bytes(b"")
    with pytest.raises(CorruptionError):
        history.head()


def test_no_repository(tmp_path: Path) -> None:
    """A folder that is no repository is named, also when one is above it."""
    History.create(tmp_path)
    (tmp_path / "sub").mkdir()
    with pytest.raises(RepositoryNotFoundError):
        History(tmp_path / "sub", locks=tmp_path / "locks").head()


@pytest.mark.parametrize("bad", ["\ud800", "main\0x", "a..b", "x" * 300, "x/" * 2000 + "x", ""])
def test_a_name_that_git_forbids_is_no_damage(history: History, bad: str) -> None:
    """Whatever asks for a ref says that the name is bad, and never takes it for another one."""
    one = commit_on(history, "main", "one").commit_hash
    calls: list[Callable[[], object]] = [
        lambda: history.reflog(bad),
        lambda: history.reflog(f"refs/heads/{bad}"),
        lambda: history.branch_tip(bad),
        lambda: history.resolve(f"refs/heads/{bad}"),
        lambda: history.create_branch(bad, one),
        lambda: history.delete_branch(bad),
        lambda: history.rename_branch("main", bad),
        lambda: history.rename_branch(bad, "other"),
        lambda: history.move_branch(bad, one, expected=None, reason="x"),
        lambda: history.set_head(branch=bad),
        lambda: history.create_tag(bad, one),
        lambda: history.delete_tag(bad),
    ]
    for call in calls:
        with pytest.raises(InvalidNameError):
            call()
    target = RefTarget(one, None)
    writes: list[Callable[[str], object]] = [
        history._handle.ref,
        lambda ref: history._handle.create_ref(ref, target, "x"),
    ]
    for write in writes:
        with pytest.raises(InvalidNameError):
            write(f"refs/heads/{bad}")
    assert history.branches() == {"main": one}


def test_branch_tip(history: History, git: Git, monkeypatch: pytest.MonkeyPatch) -> None:
    """One branch is looked up by name, loose or packed, without listing the others."""
    one = commit_on(history, "main", "one").commit_hash
    history.create_branch("runs/a", one)
    git("pack-refs", "--all")
    two = commit_on(history, "main", "two").commit_hash
    monkeypatch.setattr(history._handle, "refs", None)
    assert (history.branch_tip("main"), history.branch_tip("runs/a")) == (two, one)
    assert history.branch_tip("runs") is history.branch_tip("nothing") is None


def test_tags_on_other_things(history: History, git: Git) -> None:
    """A tag on a blob, as git itself allows it, is a name that is taken and no commit."""
    one = commit_on(history, "main", "one").commit_hash
    blob = history.write_blob(b"x")
    git("tag", "light-blob", blob)
    git("tag", "-a", "-m", "note", "blob", blob)
    git("tag", "tree", f"{one}^{{tree}}")
    git("tag", "v1", one)
    assert history.tags() == {"v1": one}
    assert history.tag_names() == ["blob", "light-blob", "tree", "v1"]
    with pytest.raises(RefNotFoundError, match="names a blob"):
        history.resolve("blob")
    with pytest.raises(AlreadyExistsError):
        history.create_tag("blob", one)
    history.delete_tag("blob")
    history.move_branch("main", one, expected=one, reason="x")


@pytest.mark.parametrize("place", ["refs/heads", "logs/HEAD", "logs/refs/heads/main", "HEAD", "packed-refs", "objects"])
def test_nothing_is_written_through_a_link(history: History, tmp_path: Path, place: str) -> None:
    """In a repository from elsewhere a ref, a reflog or the objects may be links to the user's own files."""
    commit_on(history, "main", "one")
    outside, path = tmp_path / "outside", history.git_dir / place
    if path.exists():
        path.rename(outside)
    else:
        outside.write_bytes(b"")
    path.symlink_to(outside)
    before = sorted((str(one), one.is_file() and one.read_bytes()) for one in (outside, *outside.rglob("*")))
    fresh = History(history.git_dir, locks=history.git_dir.parent / "locks")
    with pytest.raises(StorageError, match="symbolic link"):
        commit_on(fresh, "main", "two")
    assert before == sorted((str(one), one.is_file() and one.read_bytes()) for one in (outside, *outside.rglob("*")))


@pytest.mark.parametrize("verb", ["rename", "restore"])
def test_no_ref_is_removed_or_moved_through_a_link(history: History, tmp_path: Path, verb: str) -> None:
    """The name that a rename takes away, and each that is put back, is one that no link leads to."""
    one, two = (commit_on(history, "main", text).commit_hash for text in ("one", "two"))
    history.create_branch("x/old", one)
    (history.git_dir / "refs/heads/x").rename(tmp_path / "outside")
    (history.git_dir / "refs/heads/x").symlink_to(tmp_path / "outside")
    with pytest.raises(StorageError, match="symbolic link"):
        if verb == "rename":
            history.rename_branch("x/old", "new")
        else:
            history._refs.restore({"refs/heads/x/old": Change(one, two)}, reason="undo")
    assert (tmp_path / "outside/old").read_text() == f"{one}\n"
    assert "new" not in history.branches()


@pytest.mark.parametrize(
    "data", [b"", b"abc", b"z" * 40 + b"\n", bytes(41)], ids=["empty", "short", "letters", "zeros"]
)
def test_a_damaged_ref_is_told(history: History, data: bytes) -> None:
    """A branch whose file a power cut or a flipped bit took does not vanish in silence, nor take others with it."""
    made = commit_on(history, "main", "one").commit_hash
    history.create_branch("x/other", made)
    (history.git_dir / "refs/heads/x/other").write_bytes(data)
    with pytest.warns(RuntimeWarning, match="refs/heads/x/other is damaged"):
        assert history.branches() == {"main": made}
    assert history.damaged_refs() == ["refs/heads/x/other"]
    with pytest.raises(CorruptionError):
        history.branch_tip("x/other")


def test_a_branch_that_leads_nowhere_is_left_out(history: History, git: Git) -> None:
    """A branch that is another one's name (git symbolic-ref) is where that one is; once that is gone it is none."""
    made = commit_on(history, "main", "one").commit_hash
    git("symbolic-ref", "refs/heads/alias", "refs/heads/main")
    git("symbolic-ref", "refs/heads/nowhere", "refs/heads/gone")
    git("symbolic-ref", "refs/tags/nowhere", "refs/heads/gone")
    assert history.branches() == {"alias": made, "main": made}
    assert history.tags() == {}
    assert [found.commit_hash for found in history.log("alias")] == [made]
    assert history.damaged_refs() == []
