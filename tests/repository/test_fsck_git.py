"""Checking what the user's git reaches: each manifest that lacks something is named by where it is."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from coral import Repository
from coral.errors import GitCommandError, NotFoundError
from tests.objects.helpers import damage, lose
from tests.repository.helpers import git, run_command, weights
from tests.repository.in_git import commit, conflict, stage


@pytest.fixture
def repo(tmp_path: Path) -> Repository:
    """A git project with coral in it."""
    git(tmp_path, "init", "-q", "-b", "main")
    return Repository(tmp_path, init=True)


def head(repo: Repository, ref: str = "HEAD") -> str:
    return git(repo.path, "rev-parse", ref).strip()


def lacks(repo: Repository) -> list[tuple[str, str | None, str | None]]:
    """Where git's manifests are that lack something, and which tensors those are."""
    found = Repository(repo.path).maintenance.fsck(git=True).damage
    return [(where.commit, where.part, where.tensor) for where in found if where.in_git]


def forget(repo: Repository, seed: int) -> None:
    """Lose the pack that holds the weights of a seed."""
    lose(repo.folder.root, weights(seed)["layer.weight"].tobytes())


def test_what_is_sound(repo: Repository) -> None:
    """Nothing is found where all is there; what both histories hold is read once."""
    commit(repo, 1)
    commit(repo, 2)
    stage(repo, 3)
    assert repo.maintenance.fsck(git=True).damage == ()
    own, both = repo.maintenance.fsck(read_data=True), repo.maintenance.fsck(read_data=True, git=True)
    assert both.damage == () and both.nbytes == own.nbytes and both.tensors == own.tensors
    assert both.manifests == own.manifests + 3


def test_each_manifest_that_lacks_something_is_named(repo: Repository) -> None:
    """Commits, the index and stashes are named by any one place, with the path and the tensor; the exit code is 5."""
    commit(repo, 1, "a.safetensors")
    commit(repo, 2, "b.safetensors")
    commit(repo, 1, "c.safetensors")
    stage(repo, 3, "a.safetensors")
    forget(repo, 1)
    forget(repo, 3)
    assert lacks(repo) == [
        (head(repo), "a.safetensors", "layer.weight"),
        ("index", "a.safetensors", "layer.weight"),
    ]
    done = run_command([sys.executable, "-m", "coral", "fsck", "--git", "--json"], repo.path)
    assert done.returncode == 5
    assert sum(found["in_git"] for found in json.loads(done.stdout)["damage"]) == 2
    said = run_command([sys.executable, "-m", "coral", "fsck", "--git"], repo.path)
    assert f"damaged: git {head(repo)[:10]} a.safetensors layer.weight: " in said.stdout
    assert "damaged: git index a.safetensors layer.weight: " in said.stdout
    assert said.returncode == 5
    git(repo.path, "stash", "-q")
    stashed = {head(repo, "stash"), head(repo, "stash^2")}
    assert any(commit in stashed and part == "a.safetensors" for commit, part, _ in lacks(repo))


def test_a_tensor_of_many_manifests(repo: Repository) -> None:
    """Every manifest that is hurt is named, though they share the tensor."""
    first = commit(repo, 1)
    for number in range(3):
        text = first.to_bytes().replace(b"bias", f"bias{number}".encode())
        (repo.path / "model.safetensors").write_bytes(text)
        git(repo.path, "commit", "-q", "-a", "-m", str(number))
    forget(repo, 1)
    assert len({where for where, _, _ in lacks(repo)}) == 4


def test_rotten_bytes_are_found_by_reading(repo: Repository) -> None:
    """Without --read-data only that all is there is checked; with it each byte is."""
    commit(repo, 1)
    damage(repo.folder.root, weights(1)["layer.weight"].tobytes())
    assert lacks(repo) == []
    (own, inside) = Repository(repo.path).maintenance.fsck(read_data=True, git=True).damage
    assert (own.in_git, inside.in_git) == (False, True)
    assert (inside.commit, inside.part, inside.tensor) == (head(repo), "model.safetensors", "layer.weight")


def test_a_malformed_manifest_is_damage(repo: Repository) -> None:
    """What begins like a manifest and is none can give nobody a file back."""
    (repo.path / "model.safetensors").write_text("coral manifest 1\nrubbish\n")
    git(repo.path, "add", "model.safetensors")
    git(repo.path, "commit", "-q", "-m", "rubbish")
    assert lacks(repo) == [(head(repo), "model.safetensors", None)]


def test_a_conflict_is_none(repo: Repository) -> None:
    """A merge under way is no damage while both of its sides are there; afterwards what it lacks is named."""
    ours, theirs = conflict(repo)
    git(repo.path, "add", "model.safetensors")
    git(repo.path, "commit", "-q", "-m", "with its markers")
    assert lacks(repo) == []
    forget(repo, 1)
    missing = theirs["layer.weight"].content
    assert (head(repo), "model.safetensors", missing) in lacks(repo)
    assert ours["layer.weight"].content not in {tensor for _, _, tensor in lacks(repo)}


def test_without_git(tmp_path: Path, repo: Repository) -> None:
    """Nobody is told that all is well where nobody can look."""
    outside = Repository(tmp_path.parent / f"{tmp_path.name}-outside", init=True)
    with pytest.raises(NotFoundError, match="no git repository"):
        outside.maintenance.fsck(git=True)
    commit(repo, 1)
    tree = head(repo, "HEAD^{tree}")
    (repo.path / ".git/objects" / tree[:2] / tree[2:]).unlink()
    with pytest.raises(GitCommandError):
        repo.maintenance.fsck(git=True)
    assert repo.maintenance.fsck().damage == ()
