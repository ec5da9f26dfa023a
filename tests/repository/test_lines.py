"""Lines of work: pinned branches, several processes, and every verb that moves a ref or looks along one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from coral import Repository
from coral.errors import (
    AlreadyExistsError,
    ConflictError,
    InvalidNameError,
    NothingToCommitError,
    RefNotFoundError,
    UsageError,
)
from tests.repository.helpers import at_once, commit, raw, read, weights


def _line(repo: Repository, ref: str = "HEAD") -> list[str]:
    return [found.message for found in repo.log(ref)]


def _epoch(repo: Repository, ref: str) -> object:
    state = repo.get_state(ref)
    assert isinstance(state, dict)
    return state["state"]["epoch"]


# -- pinning


def test_an_object_commits_on_its_own_branch(repo: Repository) -> None:
    """Wherever another process takes HEAD, commits, HEAD and HEAD~1 of an object mean the branch it began on."""
    shell = Repository(repo.path, shell_staging=True)
    commit(repo, 1)
    shell.switch("elsewhere", create=True)
    commit(shell, 2)
    mine = commit(repo, 3)
    assert _line(repo) == ["seed 3", "seed 1"] and repo.branch == "main"
    assert repo.resolve("@~1") == mine.parents[0] == repo.resolve("HEAD^")
    assert _line(shell) == ["seed 2", "seed 1"] == _line(Repository(repo.path))
    with pytest.raises(RefNotFoundError, match="HEAD~2"):
        repo.resolve("HEAD~2")


def test_an_object_follows_head_until_it_stages(repo: Repository) -> None:
    """HEAD is taken at the first commit, not when the object was made."""
    other = Repository(repo.path)
    commit(repo, 1)
    repo.switch("dev", create=True)
    assert other.branch == "dev"
    commit(other, 2)
    assert _line(repo, "dev") == ["seed 2", "seed 1"] and _line(repo, "main") == ["seed 1"]


def test_pin_takes_an_existing_branch(repo: Repository) -> None:
    """pin(branch) leaves HEAD alone; a tag, a hash or nothing at all is no branch."""
    assert repo.pin() == "main"
    with pytest.raises(RefNotFoundError, match="no commit yet"):
        repo.resolve("HEAD")
    commit(repo, 1)
    repo.create_branch("run")
    repo.tag("v1")
    assert repo.pin("run") == "run" == repo.branch
    commit(repo, 2)
    assert repo.history.head().branch == "main" and _line(repo, "run") == ["seed 2", "seed 1"]
    for name in ("v1", "nope", repo.resolve("HEAD")):
        with pytest.raises(RefNotFoundError):
            repo.pin(name)
    assert repo.branch == "run" and repo.pin() == "main"


def test_an_unborn_branch_can_be_pinned(repo: Repository) -> None:
    """Two objects pinned before the first commit both land, in one line."""
    one, two = Repository(repo.path), Repository(repo.path)
    one.pin(), two.pin("main")
    one.stage_weights(weights(1), "a"), two.stage_weights(weights(2), "b")
    first, second = one.commit("a"), two.commit("b")
    assert second.parents == (first.commit_hash,) and sorted(repo.parts()) == ["a", "b"]


def test_a_branch_that_went_away_is_not_begun_anew(repo: Repository) -> None:
    """When its branch is deleted or renamed, an object says so rather than start a second history."""
    commit(repo, 1)
    repo.create_branch("run")
    for end in ("delete", "rename"):
        if end == "rename":
            repo.create_branch("run")
        mine = Repository(repo.path)
        mine.pin("run")
        commit(mine, 2)
        if end == "delete":
            repo.delete_branch("run", force=True)
        else:
            repo.rename_branch("run", "renamed")
        with pytest.raises(RefNotFoundError, match="deleted or renamed"):
            commit(mine, 3)
        assert "run" not in repo.branches()
        mine.pin("main")


def test_renaming_its_own_branch(repo: Repository) -> None:
    """An object that renames the branch it is pinned to goes along."""
    commit(repo, 1)
    repo.rename_branch("main", "trunk")
    commit(repo, 2)
    assert repo.branch == "trunk" and list(repo.branches()) == ["trunk"] and _line(repo) == ["seed 2", "seed 1"]


def test_commits_on_a_detached_head(repo: Repository) -> None:
    """They move HEAD alone; back on a branch they are found by their hash, and by HEAD's reflog."""
    first, second = commit(repo, 1), commit(repo, 2)
    result = repo.checkout(first.commit_hash[:12])
    assert result.branch is None and repo.branch is None
    third, fourth = commit(repo, 3), commit(repo, 4)
    assert (third.parents, fourth.parents) == ((first.commit_hash,), (third.commit_hash,))
    assert repo.branches() == {"main": second.commit_hash}
    repo.switch("main")
    assert repo.resolve("HEAD") == second.commit_hash == repo.resolve("main")
    assert repo.resolve("HEAD@{1}") == fourth.commit_hash == repo.resolve(fourth.short_hash)
    repo.checkout(fourth.commit_hash)
    repo.switch("rescued", create=True)
    assert commit(repo, 5).parents == (fourth.commit_hash,) and repo.branch == "rescued"


def test_a_detached_head_that_moved_is_no_place_to_commit(repo: Repository) -> None:
    """An object that began detached does not land on what the shell has checked out since."""
    first, second = commit(repo, 1), commit(repo, 2)
    repo.checkout(first.commit_hash)
    shell = Repository(repo.path)
    for place in ("main", second.commit_hash):
        shell.checkout(place)
        with pytest.raises(ConflictError, match="detached"):
            commit(repo, 3, "other")
    assert shell.resolve("main") == second.commit_hash == shell.resolve("HEAD")
    repo.pin()
    assert repo.commit("now").parents == (second.commit_hash,)


# -- several at once


def test_different_parts_both_land(repo: Repository) -> None:
    """Two objects that stage different parts over one tip are laid one over the other."""
    commit(repo, 0)
    one, two = Repository(repo.path), Repository(repo.path)
    one.stage_weights(weights(1), "a"), two.stage_weights(weights(2), "b")
    one.commit("a"), two.commit("b")
    assert _line(repo) == ["b", "a", "seed 0"]
    assert read(repo, name="a") == raw(weights(1)) and read(repo, name="b") == raw(weights(2))


def test_the_same_part_is_a_conflict_that_can_be_retried(repo: Repository) -> None:
    """The second of two gets ConflictError naming the part, keeps what it staged, and lands at the next try."""
    commit(repo, 0)
    one, two = Repository(repo.path), Repository(repo.path)
    one.stage_weights(weights(1)), two.stage_weights(weights(2)), two.stage_weights(weights(3), "extra")
    first = one.commit("one")
    with pytest.raises(ConflictError, match=r"model\.safetensors"):
        two.commit("two")
    assert repo.resolve("main") == first.commit_hash
    assert len(two.status().staged) == 2
    assert two.commit("two").parents == (first.commit_hash,)
    assert read(repo, name="model.safetensors") == raw(weights(2)) and read(repo, name="extra") == raw(weights(3))


def test_the_same_change_is_no_conflict(repo: Repository) -> None:
    """What another commit changed alike is not in the way; where that is all, there is nothing to commit."""
    one, two = Repository(repo.path), Repository(repo.path)
    one.stage_weights(weights(1)), two.stage_weights(weights(1)), two.stage_weights(weights(2), "b")
    one.commit("one"), two.commit("two")
    assert sorted(repo.parts()) == ["b", "model.safetensors"]
    three = Repository(repo.path)
    three.stage_weights(weights(3)), one.stage_weights(weights(3))
    one.commit("three")
    with pytest.raises(NothingToCommitError):
        three.commit("three")


def test_what_changed_nothing_is_forgotten(repo: Repository) -> None:
    """After 'nothing to commit' the parts count as unstaged, so that they never roll back what others commit."""
    commit(repo, 1)
    mine = Repository(repo.path)
    with pytest.raises(NothingToCommitError):
        commit(mine, 1)
    commit(repo, 2)
    mine.stage_weights(weights(3), "other")
    mine.commit("other")
    assert read(repo, name="model.safetensors") == raw(weights(2))


def test_an_empty_commit_follows_whoever_was_there(repo: Repository) -> None:
    """allow_empty with nothing staged lands on the tip as it is now."""
    commit(repo, 1)
    other = Repository(repo.path)
    theirs = commit(other, 2)
    assert repo.commit("empty", allow_empty=True).parents == (theirs.commit_hash,)
    assert read(repo) == raw(weights(2))


def test_a_file_and_a_folder_of_one_name_conflict(repo: Repository) -> None:
    """A part cannot lie below another; the refused commit can be mended and tried again."""
    commit(repo, 1, "x")
    repo.stage_weights(weights(2), "x/y")
    with pytest.raises(ConflictError, match="x"):
        repo.commit("clash")
    repo.unstage("x/y")
    repo.stage_weights(weights(2), "z")
    repo.commit("fine")
    assert sorted(repo.parts()) == ["x", "z"]


def test_four_processes_commit_at_once(quick: Path) -> None:
    """Each commit of each process is in one line, in the order it was made, with the weights it was given."""
    repo, path = Repository(quick, init=True), quick

    def work(number: int) -> str:
        mine = Repository(path)
        return " ".join(commit(mine, 100 * number + turn, f"part{number}").commit_hash for turn in range(10))

    made = [text.split() for text in at_once(work, 4)]
    line = list(repo.log())
    assert [len(found.parents) for found in line] == [1] * 39 + [0]
    oldest_first = [found.commit_hash for found in reversed(line)]
    for number, hashes in enumerate(made):
        assert [found for found in oldest_first if found in hashes] == hashes
        assert read(repo, hashes[4], f"part{number}") == raw(weights(100 * number + 4))
        assert read(repo, "HEAD", f"part{number}") == raw(weights(100 * number + 9))


@pytest.mark.parametrize("wait", [True, False], ids=["waiting", "beside"])
def test_processes_save_on_one_branch_at_once(quick: Path, wait: bool) -> None:
    """Each save of each process returns, and all lie in one line, in the order they were made, each as it was given.

    What a process does not name stays as the others leave it.
    """
    repo, path = Repository(quick, init=True), quick

    def work(number: int) -> str:
        mine = Repository(path)
        mine.stage_weights(weights(number), f"own{number}")
        states = [weights(100 * number + turn) for turn in range(12)]
        if wait:
            return " ".join(mine.save(state, epoch=turn).commit_hash for turn, state in enumerate(states))
        pending = [mine.save(state, epoch=turn, wait=False) for turn, state in enumerate(states)]
        return " ".join(one.result().commit_hash for one in pending)

    made = [text.split() for text in at_once(work, 2)]
    line = list(repo.log())
    assert [len(found.parents) for found in line] == [1] * 23 + [0]
    oldest_first = [found.commit_hash for found in reversed(line)]
    for number, hashes in enumerate(made):
        assert [found for found in oldest_first if found in hashes] == hashes
        for turn, found in enumerate(hashes):
            assert read(repo, found, "model.safetensors") == raw(weights(100 * number + turn))
            assert _epoch(repo, found) == turn
        assert read(repo, "HEAD", f"own{number}") == raw(weights(number))


def test_a_save_is_laid_over_what_another_saved(repo: Repository) -> None:
    """The second lands after the first with all that it names, by hand or not; the rest is the first one's."""
    commit(repo, 0)
    one, two = Repository(repo.path), Repository(repo.path)
    one.stage_weights(weights(1), "by hand")
    two.stage_weights(weights(2), "theirs")
    first = two.save(weights(3), epoch=3)
    second = one.save(weights(4), epoch=4)
    assert second.parents == (first.commit_hash,)
    assert read(repo, name="model.safetensors") == raw(weights(4)) and _epoch(repo, "HEAD") == 4
    assert read(repo, name="by hand") == raw(weights(1)) and read(repo, name="theirs") == raw(weights(2))
    assert read(repo, first.commit_hash, "model.safetensors") == raw(weights(3))


def test_a_save_conflicts_about_what_was_staged_by_hand_alone(repo: Repository) -> None:
    """A part that another commit changed since it was staged by hand stops a save once; the next takes it along."""
    commit(repo, 0)
    one, two = Repository(repo.path), Repository(repo.path)
    one.stage_weights(weights(1), "x")
    theirs = commit(two, 2, "x")
    with pytest.raises(ConflictError, match="changed x since"):
        one.save(weights(3))
    assert repo.resolve("main") == theirs.commit_hash and [change.name for change in one.status().staged] == ["x"]
    assert one.save(weights(3)).parents == (theirs.commit_hash,)
    assert read(repo, name="x") == raw(weights(1))
    one.stage_weights(weights(4))
    commit(two, 5)
    one.save(weights(6))
    assert read(repo, name="model.safetensors") == raw(weights(6))


def test_shell_processes_stage_at_once(repo: Repository) -> None:
    """Six 'coral add' at the same time: the next commit holds what each of them staged."""
    path = repo.path

    def work(number: int) -> str:
        return str(Repository(path, shell_staging=True).stage_weights(weights(number), f"part{number}"))

    at_once(work, 6)
    Repository(path, shell_staging=True).commit("all")
    for number in range(6):
        assert read(repo, name=f"part{number}") == raw(weights(number))


def test_a_fork_stages_for_itself(repo: Repository) -> None:
    """A child forked with an object in hand commits and reads with it, and so does its parent."""
    commit(repo, 0)

    def work(number: int) -> str:
        return commit(repo, number + 1, f"part{number}").commit_hash

    made = at_once(work, 2)
    commit(repo, 9)
    assert {found.commit_hash for found in repo.log()} >= set(made)
    assert read(repo, name="part1") == raw(weights(2)) and read(repo, name="model.safetensors") == raw(weights(9))


# -- looking along the history


def test_every_form_of_a_ref(repo: Repository) -> None:
    """Branch, tag, full and short hash, HEAD, parents, reflog: all resolve to the same commits as in git."""
    hashes = [commit(repo, number).commit_hash for number in range(3)]
    repo.tag("v1", "HEAD~1")
    repo.tag("v2", "HEAD~1", "annotated")
    repo.create_branch("feature/ü")
    cases = {
        hashes[2]: [
            "HEAD",
            "@",
            "main",
            "feature/ü",
            "refs/heads/main",
            "heads/main",
            hashes[2],
            hashes[2][:8],
            "HEAD^0",
        ],
        hashes[1]: [
            "HEAD~1",
            "HEAD~",
            "HEAD^",
            "v1",
            "v2",
            "tags/v1",
            "main~1",
            f"{hashes[2][:10]}~1",
            "main@{1}",
            "@{1}",
        ],
        hashes[0]: ["HEAD~2", "v1^", "HEAD^^", "HEAD~1^1", "main@{2}", "v2~1"],
    }
    for expected, refs in cases.items():
        for ref in refs:
            assert repo.resolve(ref) == expected == Repository(repo.path).resolve(ref), ref
    commit(repo, 9)
    repo.switch("feature/ü")
    assert repo.resolve("@{-1}") == repo.resolve("main")


@pytest.mark.parametrize(
    "ref",
    [
        "",
        "nope",
        "HEAD~99",
        "HEAD^2",
        "a\0b",
        "a\nb",
        "..",
        "a..b",
        "main:x",
        "x:y",
        "-x",
        "ü",
        "main@{99}",
        "0" * 40,
        "abc",
        "/",
        "HEAD ",
    ],
)
def test_a_ref_that_names_nothing_raises(repo: Repository, ref: str) -> None:
    """No form of a ref that names no commit comes to anything but an error with a hint."""
    commit(repo, 1)
    calls: list[Callable[[], object]] = [
        lambda: repo.resolve(ref),
        lambda: repo.get_all_weights(ref),
        lambda: repo.log(ref),
        lambda: repo.parts(ref),
        lambda: repo.checkout(ref),
        lambda: repo.switch(ref),
        lambda: repo.reset(ref),
        lambda: repo.create_branch("b", ref),
    ]
    for call in calls:
        with pytest.raises((RefNotFoundError, InvalidNameError)):
            call()
    assert repo.branch == "main" and list(repo.branches()) == ["main"]


@pytest.mark.parametrize(
    "name",
    [
        "",
        "..",
        "a..b",
        "a b",
        "a\0b",
        "a\nb",
        "HEAD",
        "-x",
        "x.lock",
        "x/",
        "/x",
        "a~1",
        "a^",
        "a:b",
        "@{1}",
        "@",
        "a" * 300,
        "0" * 40,
    ],
)
def test_names_that_git_forbids(repo: Repository, name: str) -> None:
    """Branches and tags are named as git allows, and nothing changes when they are not."""
    commit(repo, 1)
    calls: list[Callable[[], object]] = [
        lambda: repo.create_branch(name),
        lambda: repo.switch(name, create=True),
        lambda: repo.rename_branch("main", name),
        lambda: repo.tag(name),
        lambda: repo.commit("x", tags=[name], allow_empty=True),
    ]
    for call in calls:
        with pytest.raises(InvalidNameError):
            call()
    assert (list(repo.branches()), repo.tags(), len(_line(repo))) == (["main"], {}, 1)


def test_unicode_names(repo: Repository) -> None:
    """Any letters will do for branches, tags, parts and tensors."""
    repo.stage_weights({"слой\n.вес\0": np.ones(9)}, "模型/é.safetensors")
    repo.commit("ü", tags=["версия-1"])
    repo.switch("ветка/一", create=True)
    assert list(Repository(repo.path).get_all_weights("ветка/一")) == ["слой\n.вес\0"]
    assert list(repo.parts("версия-1")) == ["模型/é.safetensors"]


def test_log_follows_a_path(repo: Repository) -> None:
    """log(path) gives the commits that changed that part; max_count bounds it."""
    for number, name in enumerate("abaab"):
        commit(repo, number, name)
    assert _line(repo) == [f"seed {number}" for number in (4, 3, 2, 1, 0)]
    assert [found.message for found in repo.log(path="b")] == ["seed 4", "seed 1"]
    assert [found.message for found in repo.log("HEAD~1", 2, "a")] == ["seed 3", "seed 2"]
    with pytest.raises(UsageError):
        repo.log(max_count=-1)


def test_diff_counts_chunks(repo: Repository) -> None:
    """One changed row of a large tensor is one chunk; added and removed tensors count whole."""
    big = np.zeros((4096, 1024), "f4")
    repo.stage_weights({"big": big, "gone": np.ones((10, 10)), "same": np.ones(99)})
    repo.commit("one")
    big[1000] = 1
    repo.stage_weights({"big": big, "new": np.ones(50), "same": np.ones(99)})
    repo.commit("two")
    diff = repo.diff("HEAD~1", "HEAD")
    found = {change.name: (change.kind, change.changed_bytes, change.total_bytes) for change in diff.tensors}
    assert found == {"big": ("changed", 1 << 20, 16 << 20), "gone": ("removed", 800, 800), "new": ("added", 400, 400)}
    assert diff.tensors[0].share == 1 / 16 and diff.changed_bytes == (1 << 20) + 400
    assert diff.share == diff.changed_bytes / ((16 << 20) + 400 + 99 * 8)
    assert repo.diff("HEAD") == diff == repo.show().diff
    back = repo.diff("HEAD", "HEAD~1")
    assert sorted((change.name, change.kind) for change in back.tensors) == [
        ("big", "changed"),
        ("gone", "added"),
        ("new", "removed"),
    ]
    assert not repo.diff("HEAD", "HEAD")
    first = repo.show("HEAD~1")
    assert (
        first.diff.old is None and len(first.diff.of_kind("added")) == 3 and list(first.parts) == ["model.safetensors"]
    )


def test_diff_sees_rows_dtype_and_structure(repo: Repository) -> None:
    """Appended rows cost only themselves, another dtype costs all, and metadata alone is a change of structure."""
    rows = np.random.default_rng(0).normal(size=(512, 1024)).astype("f4")
    repo.stage_weights({"rows": rows[:256], "kind": rows[:9], "scalar": np.array(1.0)})
    repo.commit("one")
    repo.stage_weights({"rows": rows, "kind": rows[:9].astype("f2"), "scalar": np.array(2.0)})
    repo.commit("two")
    found = {change.name: change.changed_bytes for change in repo.diff("HEAD").tensors}
    assert found == {"rows": 1 << 20, "kind": 9 * 1024 * 2, "scalar": 8}
    repo.stage_weights({}, update=True, metadata={"k": "v"})
    repo.commit("three")
    assert repo.diff("HEAD").structure == ("model.safetensors",) and repo.diff("HEAD").tensors == ()


def test_reset_moves_the_branch(repo: Repository) -> None:
    """reset moves the branch and forgets what was staged; hard brings the files along; the reflog leads back."""
    first, second = commit(repo, 1), commit(repo, 2)
    repo.checkout("main")
    repo.stage_weights(weights(3), "staged")
    repo.reset("HEAD~1")
    assert repo.resolve("HEAD") == first.commit_hash and repo.status().staged == ()
    assert repo.status().modified == ("model.safetensors",)
    repo.reset("main@{1}", hard=True)
    assert repo.resolve("HEAD") == second.commit_hash and repo.status().modified == ()
    result = repo.reset("HEAD^", hard=True)
    assert result.written == ("model.safetensors",) and repo.status().modified == ()
    assert [entry.new for entry in repo.reflog("main")][:2] == [first.commit_hash, second.commit_hash]
    assert commit(repo, 4).parents == (first.commit_hash,)
    assert Repository(repo.path).reflog()[0].reason == "commit: seed 4"


def test_rules_of_branches(repo: Repository) -> None:
    """Taken names are refused, the current branch stays, and commits that nothing else holds need force."""
    commit(repo, 1)
    repo.create_branch("dev")
    repo.create_branch("same")
    with pytest.raises(AlreadyExistsError):
        repo.create_branch("dev")
    with pytest.raises(AlreadyExistsError):
        repo.create_branch("dev/x")
    with pytest.raises(AlreadyExistsError):
        repo.rename_branch("dev", "same")
    with pytest.raises(AlreadyExistsError):
        repo.switch("dev", create=True)
    with pytest.raises(RefNotFoundError, match="did you mean 'dev'"):
        repo.delete_branch("dve")
    with pytest.raises(ConflictError, match="current"):
        repo.delete_branch("main")
    repo.switch("dev")
    tip = commit(repo, 2)
    repo.switch("main")
    with pytest.raises(ConflictError, match="no other branch"):
        repo.delete_branch("dev")
    repo.tag("kept", "dev")
    repo.delete_branch("dev")
    repo.create_branch("dev", "kept")
    repo.delete_tag("kept")
    repo.delete_branch("dev", force=True)
    repo.delete_branch("same")
    assert list(repo.branches()) == ["main"] and repo.resolve(tip.commit_hash) == tip.commit_hash


def test_switch_wants_a_branch(repo: Repository) -> None:
    """A tag or a hash is for checkout; the error says so. Before the first commit, -c renames the unborn branch."""
    repo.switch("trunk", create=True)
    commit(repo, 1)
    repo.tag("v1")
    assert list(repo.branches()) == ["trunk"]
    for ref in ("v1", repo.resolve("HEAD"), "HEAD"):
        with pytest.raises(RefNotFoundError, match="checkout"):
            repo.switch(ref)
    with pytest.raises(RefNotFoundError, match="did you mean"):
        repo.switch("trunc")


def test_ten_thousand_names_in_the_project(repo: Repository, project: Path) -> None:
    """status looks at names alone where it can, and finds model files in folders."""
    commit(repo, 1)
    for number in range(20):
        (project / f"d{number}").mkdir()
        for other in range(100):
            (project / f"d{number}" / f"{other}.txt").touch()
    (project / "d7" / "x.pt").write_bytes(b"x")
    assert repo.status().untracked == ("d7/x.pt",)


@pytest.mark.parametrize(
    "door",
    [
        lambda repo, ref: repo.resolve(ref),
        lambda repo, ref: repo.history.resolve(ref),
        lambda repo, ref: repo.get_all_weights(ref),
        lambda repo, ref: repo.get_weight("w", ref),
        lambda repo, ref: repo.get_state(ref),
        lambda repo, ref: repo.load_into({}, ref),
        lambda repo, ref: repo.load_into({}, ref, require_signed=True),
        lambda repo, ref: repo.parts(ref),
        lambda repo, ref: repo.log(ref),
        lambda repo, ref: repo.show(ref),
        lambda repo, ref: repo.diff(ref),
        lambda repo, ref: repo.diff(ref, "main"),
        lambda repo, ref: repo.reflog(ref),
        lambda repo, ref: repo.maintenance.verify(ref),
        lambda repo, ref: repo.maintenance.repack(ref),
        lambda repo, ref: repo.made_by(ref),
        lambda repo, ref: repo.create_branch("new", ref),
        lambda repo, ref: repo.create_branch(ref),
        lambda repo, ref: repo.rename_branch(ref, "new"),
        lambda repo, ref: repo.rename_branch("main", ref),
        lambda repo, ref: repo.delete_branch(ref),
        lambda repo, ref: repo.tag("new", ref),
        lambda repo, ref: repo.tag(ref),
        lambda repo, ref: repo.delete_tag(ref),
        lambda repo, ref: repo.commit("x", tags=[ref]),
        lambda repo, ref: repo.switch(ref),
        lambda repo, ref: repo.switch(ref, create=True),
        lambda repo, ref: repo.checkout(ref),
        lambda repo, ref: repo.checkout(ref, "model.safetensors"),
        lambda repo, ref: repo.reset(ref),
    ],
)
def test_what_is_no_ref_is_refused_at_every_door(
    repo: Repository, door: Callable[[Repository, object], object]
) -> None:
    """None, as of a result without a commit, and whatever else is no text, is a UsageError; nothing is changed."""
    made = commit(repo, 1)
    strangers: list[object] = [None, 5, b"main", ["main"], {}, Path("main")]
    for given in strangers:
        with pytest.raises(UsageError, match="is not a"):
            door(repo, given)
    assert (repo.branches(), repo.tags(), repo.resolve("HEAD")) == ({"main": made.commit_hash}, {}, made.commit_hash)


def test_a_commit_in_place_of_its_hash_is_told_so(repo: Repository) -> None:
    """It is refused, and the hint says what to give."""
    with pytest.raises(UsageError, match="give its commit_hash"):
        repo.get_all_weights(commit(repo, 1))  # type: ignore[arg-type]
