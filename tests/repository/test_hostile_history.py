"""A history that somebody else made: what it holds may be refused, but it writes nothing it should not."""

from __future__ import annotations

import time
from collections.abc import Iterable

import numpy as np
import pytest

from coral import Repository
from coral.errors import AlreadyExistsError, CorruptionError, InvalidNameError, UsageError
from coral.history import trees
from coral.history.commit import CommitObject
from coral.history.libgit import Handle
from coral.history.loose import Kind
from coral.ids import BlobId, CommitHash
from coral.verbs.parts import PartReader
from tests.repository.helpers import weights

FILE, FOLDER = "100644", "40000"


def write(repo: Repository, kind: Kind, data: bytes) -> str:
    return repo.history._handle.write(kind, data)


def tree(repo: Repository, *entries: tuple[str, bytes, str]) -> str:
    """A git tree of mode, name and hash, whatever they are."""
    return write(repo, "tree", b"".join(b"%s %s\0" % (m.encode(), n) + bytes.fromhex(oid) for m, n, oid in entries))


def nested(repo: Repository, names: Iterable[bytes], oid: str, mode: str = FILE) -> str:
    """A tree that holds one file, at these names from the top."""
    for name in reversed(list(names)):
        oid, mode = tree(repo, (mode, name, oid)), FOLDER
    return oid


def branch(repo: Repository, name: str, top: str) -> CommitHash:
    """A branch with one commit of a tree, written as another program would."""
    text = CommitObject(top, (), "A <a@x>", 1, 0, 1, "hostile\n").to_bytes()
    commit_hash = CommitHash(write(repo, "commit", text))
    repo.history.create_branch(name, commit_hash, force=True)
    return commit_hash


def file_part(repo: Repository) -> BlobId:
    """The blob of a manifest of a small file, which is on main, and in the project as ``tool``."""
    (repo.path / "tool").write_bytes(b"#!/bin/sh\ntouch pwned\n")
    repo.stage_file(repo.path / "tool", opaque=True)
    blob = repo.history.part(repo.commit("a file").commit_hash, "tool")
    assert blob is not None
    return blob


@pytest.mark.parametrize(
    "names",
    [
        (b".git", b"hooks", b"post-checkout"),
        (b".git", b"config"),
        (b".GIT", b"config"),
        (b"sub", b".g\xe2\x80\x8cit", b"config"),
        (b"git~1", b"config"),
        (b".coral", b"config.toml"),
        (b"..", b"x"),
        (b"sub", b"..", b"..", b"x"),
        (b"", b"x"),
        (b".", b"x"),
        (b"sub/../../x",),
        (b"/etc/x",),
        (b"a\\b",),
        (b"a\nb",),
        (b"\xff",),
        (b"x" * 256,),
        (b"y" * 200,) * 6,
    ],
)
def test_a_path_that_no_part_may_have_is_never_written(repo: Repository, names: tuple[bytes, ...]) -> None:
    """Names are checked on the way out as on the way in: git's config and hooks, and what lies above, stay."""
    top = nested(repo, names, file_part(repo))
    commit_hash = branch(repo, "evil", top)
    before = sorted(repo.path.parent.rglob("*"))
    path = b"/".join(names).decode("utf-8", "surrogateescape")
    for call in (repo.checkout, repo.parts, repo.switch):
        with pytest.raises(CorruptionError):
            call("evil")
    with pytest.raises((CorruptionError, UsageError)):
        repo.checkout("evil", path)
    assert sorted(repo.path.parent.rglob("*")) == before
    with pytest.raises(CorruptionError) as caught:
        repo.history.parts(commit_hash)
    assert any(repr("/".join(path.split("/")[:depth])) in str(caught.value) for depth in range(1, 9))
    if not any(b"/" in name for name in names):
        with pytest.raises(CorruptionError):
            repo.history.part(commit_hash, path)
    assert repo.checkout("main").written == ()


def test_what_is_no_file_is_no_part(repo: Repository) -> None:
    """Links and submodules are left out, also where one is asked for by name."""
    oid = file_part(repo)
    commit_hash = branch(
        repo, "other", tree(repo, ("120000", b"link", oid), (FILE, b"tool", oid), ("160000", b"sub", oid))
    )
    assert repo.history.parts(commit_hash) == {"tool": oid}
    assert [repo.history.part(commit_hash, name) for name in ("link", "sub", "tool")] == [None, None, oid]


@pytest.mark.parametrize("cut", [0, 1, 20])
def test_a_malformed_tree_is_damage(repo: Repository, cut: int) -> None:
    """One name twice, or an entry cut short, is not read as something else."""
    oid = file_part(repo)
    raw = b"100644 a\0" + bytes.fromhex(oid)
    commit_hash = branch(repo, "other", write(repo, "tree", raw + raw[:-cut] if cut else raw + raw))
    with pytest.raises(CorruptionError, match="malformed"):
        repo.history.parts(commit_hash)
    with pytest.raises(CorruptionError, match="malformed"):
        repo.history.part(commit_hash, "a")


@pytest.mark.parametrize("leaf", ["a", None])
def test_a_bomb_of_trees_is_refused(repo: Repository, monkeypatch: pytest.MonkeyPatch, leaf: str | None) -> None:
    """A few kilobytes that unfold to 2**60 paths, or to as many empty folders, are refused soon."""
    monkeypatch.setattr(trees, "_MAX_PATHS", 10_000)
    top = tree(repo, (FILE, b"a", file_part(repo))) if leaf else tree(repo)
    for _ in range(60):
        top = tree(repo, (FOLDER, b"a", top), (FOLDER, b"b", top))
    commit_hash = branch(repo, "bomb", top)
    started = time.monotonic()
    with pytest.raises(CorruptionError, match="more than 10,000 paths"):
        repo.checkout("bomb")
    assert time.monotonic() - started < 10
    assert repo.history.part(commit_hash, "q") is None


def test_each_folder_of_a_bomb_is_read_once(repo: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that stands in many places costs one read."""
    top = tree(repo, (FILE, b"a", file_part(repo)))
    for _ in range(8):
        top = tree(repo, (FOLDER, b"a", top), (FOLDER, b"b", top))
    commit_hash = branch(repo, "bomb", top)
    reads: list[str] = []
    original = trees.entries

    def counting(handle: Handle, oid: str) -> dict[str, trees.Entry]:
        reads.append(oid)
        return original(handle, oid)

    monkeypatch.setattr(trees, "entries", counting)
    assert len(repo.history.parts(commit_hash)) == 256
    assert len(reads) == 9
    assert len(repo.parts(commit_hash)) == 256


def test_depth_is_bounded_both_ways(repo: Repository) -> None:
    """64 levels are read and written; what has more is refused, so that nothing is committed that cannot be read."""
    oid = file_part(repo)
    for levels in (64, 65):
        path = "/".join("d" * levels)
        commit_hash = branch(repo, "deep", nested(repo, [b"d"] * levels, oid))
        if levels == 64:
            made = repo.history.write_commit(overlay={path: oid}, message="deep")
            assert repo.history.parts(made.commit_hash) == repo.history.parts(commit_hash) == {path: oid}
            continue
        with pytest.raises(CorruptionError, match="64 levels"):
            repo.history.parts(commit_hash)
        with pytest.raises(InvalidNameError, match="64 levels"):
            repo.history.write_commit(overlay={path: oid}, message="deeper")


def test_ten_thousand_parts_are_checked_quickly(repo: Repository) -> None:
    """Checking every name of a large commit costs less than reading it, above all the second time."""
    oid = file_part(repo)
    overlay = {f"layer{n // 100}/weight-{n}.safetensors": oid for n in range(10_000)}
    commit_hash = repo.history.write_commit(overlay=overlay, message="many").commit_hash
    started = time.monotonic()
    for _ in range(5):
        assert len(repo.history.parts(commit_hash)) == 10_000
    assert time.monotonic() - started < 5


def test_what_is_no_commit_disturbs_nobody(repo: Repository) -> None:
    """Tags and branches on blobs, trees and broken tags are passed over: by tags(), commit(tags=) and checkout."""
    oid = file_part(repo)
    base = repo.resolve("HEAD")
    chain = write(repo, "tag", f"object {base}\ntype commit\ntag chain\n\nx\n".encode())
    for _ in range(11):
        chain = write(repo, "tag", f"object {chain}\ntype tag\ntag chain\n\nx\n".encode())
    refs = {
        "refs/tags/blob": oid,
        "refs/tags/tree": tree(repo),
        "refs/tags/tagged-blob": write(repo, "tag", f"object {oid}\ntype blob\ntag x\n\nx\n".encode()),
        "refs/tags/malformed": write(repo, "tag", b"nonsense"),
        "refs/tags/chain": chain,
    }
    for ref, target in refs.items():
        (repo.history.git_dir / ref).write_text(f"{target}\n")
    repo.history.create_tag("good", base)
    assert repo.tags() == {"good": base}
    assert repo.history.tag_names() == ["blob", "chain", "good", "malformed", "tagged-blob", "tree"]
    repo.stage_weights(weights(1))
    made = repo.commit("tagged", tags=["v1"])
    assert repo.tags() == {"good": base, "v1": made.commit_hash}
    with pytest.raises(AlreadyExistsError):
        repo.tag("blob")
    (repo.path / "tool").write_bytes(b"another tool")
    repo.stage_file(repo.path / "tool", opaque=True)
    repo.commit("another")
    assert repo.checkout(base, "tool").written == ("tool",)
    (repo.history.git_dir / "refs/heads/blob").write_text(f"{oid}\n")
    found = list(repo.history.versions("tool"))
    assert len(found) == 2 and oid in found


def test_a_commit_that_names_one_manifest_often(repo: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each manifest of a commit is parsed once, however many parts and other manifests there are."""
    for n in range(20):
        repo.stage_weights({"w": np.full(9, n)}, f"{n:02}")
    commit_hash = repo.commit("twenty").commit_hash
    parts = repo.history.parts(commit_hash)
    overlay = {f"{round}/{name}": oid for round in range(5) for name, oid in parts.items()}
    many = repo.history.write_commit(base=commit_hash, overlay=overlay, message="a hundred and twenty").commit_hash
    reads: list[BlobId] = []
    original = repo.history.read_blob

    def counting(oid: BlobId) -> bytes:
        reads.append(oid)
        return original(oid)

    monkeypatch.setattr(repo.history, "read_blob", counting)
    assert len(PartReader(repo.history).at(many)) == 120
    assert len(reads) == 20
