"""Manifests in the user's git: found wherever git keeps them, told from all else, and their chunks kept."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from coral import Repository
from coral.errors import CorruptionError, GitCommandError, VersionError
from coral.format.manifest import Manifest
from coral.verbs.reachable import chunks_of_git, contents_in, manifests_of_git, manifests_of_head, texts_of_git
from tests.repository.helpers import git, weights
from tests.storage.test_folder import run_python


@pytest.fixture(params=["sha1", "sha256"])
def repo(request: pytest.FixtureRequest, tmp_path: Path) -> Repository:
    """A git project with coral in it and one commit."""
    folder = tmp_path / "project"
    folder.mkdir()
    git(folder, "init", "-q", "-b", "main", f"--object-format={request.param}")
    (folder / "train.py").write_text("print()\n")
    git(folder, "add", "train.py")
    git(folder, "commit", "-q", "-m", "code")
    return Repository(folder, init=True)


def stage(repo: Repository, seed: int, name: str = "model.safetensors", *, rows: int = 50) -> Manifest:
    """Store the weights of a seed, and put their manifest into git's index, as the filter does."""
    save_file({key: np.asarray(data) for key, data in weights(seed, rows=rows).items()}, repo.path / "loose")
    manifest = repo.stage_file(repo.path / "loose", name)
    repo.commit(f"seed {seed}", allow_empty=True)
    (repo.path / "loose").unlink()
    (repo.path / name).parent.mkdir(parents=True, exist_ok=True)
    (repo.path / name).write_bytes(manifest.to_bytes())
    git(repo.path, "add", name)
    return manifest


def commit(repo: Repository, seed: int, name: str = "model.safetensors", *, rows: int = 50) -> Manifest:
    manifest = stage(repo, seed, name, rows=rows)
    git(repo.path, "commit", "-q", "-m", f"seed {seed}")
    return manifest


def conflict(repo: Repository) -> tuple[Manifest, Manifest]:
    """A merge under way, of two commits that change the same tensors; git writes its markers between their lines."""
    commit(repo, 0)
    git(repo.path, "checkout", "-q", "-b", "side")
    theirs = commit(repo, 1)
    git(repo.path, "checkout", "-q", "main")
    ours = commit(repo, 2)
    with pytest.raises(AssertionError):
        git(repo.path, "merge", "-q", "side")
    return ours, theirs


def test_manifests_are_found_by_what_they_say(repo: Repository) -> None:
    """Whatever a file is called: a manifest is found, with a place where it is, and nothing else is."""
    one, two = commit(repo, 1, "deep/er/a b.safetensors"), commit(repo, 2, "no-suffix")
    (repo.path / "like").write_bytes(b"coral manifest 1\nbut no more\n")
    (repo.path / "noise").write_bytes(bytes(range(256)) * 1000)
    git(repo.path, "add", "like", "noise")
    git(repo.path, "commit", "-q", "-m", "others")
    last = stage(repo, 3)
    head = git(repo.path, "rev-parse", "HEAD").strip()
    found = dict(manifests_of_git(repo.path))
    assert found == {
        (head, "deep/er/a b.safetensors"): one,
        (head, "no-suffix"): two,
        ("index", "model.safetensors"): last,
    }
    assert list(manifests_of_head(repo.path)) == [(where, part) for where, part in found.items() if where[0] == head]


def test_outside_of_git(tmp_path: Path, repo: Repository) -> None:
    """Where there is no git nothing is reached; where git fails nobody may go on as if nothing were."""
    plain = Repository(tmp_path / "plain", init=True)
    assert list(manifests_of_git(plain.path)) == list(manifests_of_head(plain.path)) == []
    assert list(chunks_of_git(plain.path, plain.store)) == []
    commit(repo, 1)
    tree = git(repo.path, "rev-parse", "HEAD^{tree}").strip()
    (repo.path / ".git/objects" / tree[:2] / tree[2:]).unlink()
    for chunks in (manifests_of_git(repo.path), chunks_of_git(repo.path, repo.store)):
        with pytest.raises(GitCommandError):
            list(chunks)


def test_before_the_first_commit(tmp_path: Path) -> None:
    """An empty repository has no HEAD to start from."""
    git(tmp_path, "init", "-q")
    repo = Repository(tmp_path, init=True)
    assert list(manifests_of_head(tmp_path)) == []
    manifest = stage(repo, 1)
    assert [found for _, found in manifests_of_git(tmp_path)] == [manifest]


def test_chunks_are_kept_wherever_their_manifest_is(repo: Repository, tmp_path: Path) -> None:
    """All chunks of commits, stashes, reflogs, linked worktrees and indexes, the lists of large tensors as well."""
    kept = [commit(repo, 1, rows=100_000)]
    kept.append(commit(repo, 2))
    git(repo.path, "reset", "-q", "--hard", "HEAD~1")
    kept.append(stage(repo, 3))
    git(repo.path, "stash")
    linked = tmp_path / "linked"
    git(repo.path, "worktree", "add", "-q", "--detach", str(linked))
    kept.append(stage(Repository(linked), 4))
    chunks = set(chunks_of_git(repo.path, repo.store))
    records = [record for manifest in kept for record in manifest.records]
    lists = {bytes.fromhex(record.content[4:]) for record in records if record.content.startswith("b3l:")}
    assert len(lists) == 1
    assert chunks == {chunk for record in records for chunk in repo.store.chunk_ids(record)} | lists
    repo.store.packs.refresh()
    everything = {chunk for pack in repo.store.packs.packs for chunk, _ in pack.index.items()}
    assert chunks == everything


def test_a_conflict_keeps_both_sides(repo: Repository) -> None:
    """What a text with conflict markers names is kept, though it is no manifest, and nothing else holds it any more."""
    ours, theirs = conflict(repo)
    text = (repo.path / "model.safetensors").read_bytes()
    assert b"\n<<<<<<< " in text
    git(repo.path, "add", "model.safetensors")
    git(repo.path, "commit", "-q", "-m", "with its markers")
    whole = b"<<<<<<< ours\n" + ours.to_bytes() + b"=======\n" + theirs.to_bytes() + b">>>>>>> theirs\n"
    (repo.path / "both").write_bytes(whole)
    git(repo.path, "add", "both")
    git(repo.path, "stash", "-q")
    git(repo.path, "branch", "-q", "-D", "side")
    wanted = {chunk for part in (ours, theirs) for record in part.records for chunk in repo.store.chunk_ids(record)}
    assert wanted <= set(chunks_of_git(repo.path, repo.store))
    assert {text, whole} <= {found for _, found in texts_of_git(repo.path)}
    assert set(contents_in(whole)) == {
        record.content for part in (ours, theirs) for record in part.records if record.content.startswith("b3")
    }
    # Neither is a manifest to anybody who wants one.
    assert whole not in [found.to_bytes() for _, found in manifests_of_git(repo.path)]


def test_a_newer_manifest_is_not_passed_over(repo: Repository) -> None:
    """Whoever wants manifests is told to upgrade; whoever keeps chunks keeps those of any version."""
    manifest = commit(repo, 1)
    newer = manifest.to_bytes().replace(b"coral manifest 1", b"coral manifest 2")
    git(repo.path, "rm", "-q", "--cached", "model.safetensors")
    (repo.path / "model.safetensors").write_bytes(newer)
    git(repo.path, "add", "model.safetensors")
    git(repo.path, "commit", "-q", "--amend", "-m", "from the future")
    git(repo.path, "reflog", "expire", "--expire=all", "--all")
    with pytest.raises(VersionError):
        list(manifests_of_git(repo.path))
    kept = set(chunks_of_git(repo.path, repo.store))
    assert {chunk for record in manifest.records for chunk in repo.store.chunk_ids(record)} == kept


def test_lists_that_are_not_here(repo: Repository, tmp_path: Path) -> None:
    """A list that was never fetched keeps its own id; one that is damaged hides what to keep, and that is an error."""
    manifest = commit(repo, 1, rows=100_000)
    (record,) = (record for record in manifest.records if record.content.startswith("b3l:"))
    ident = bytes.fromhex(record.content[4:])
    elsewhere = Repository(tmp_path / "elsewhere", init=True)
    assert ident in set(chunks_of_git(repo.path, elsewhere.store))
    pack, entry = repo.store.packs.copies(ident)[0]  # type: ignore[arg-type]
    path = repo.coral_dir / "packs" / f"{pack.name}.pack"
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    data[entry.offset + 70] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptionError):
        list(chunks_of_git(repo.path, Repository(repo.path).store))


def test_looking_is_light(repo: Repository) -> None:
    """Looking for manifests loads no numpy: a hook that finds none must cost nothing."""
    commit(repo, 1)
    program = """
import sys
from pathlib import Path
from coral.verbs.reachable import manifests_of_git
print(len(list(manifests_of_git(Path(sys.argv[1])))), "numpy" in sys.modules)
"""
    assert run_python(program, repo.path) == "1 False\n"
