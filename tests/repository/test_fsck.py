"""Checking: a sound repository is called sound, and damage is named by what it hurts."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from coral import Repository
from tests.objects.helpers import lose
from tests.repository.helpers import commit, run_command, weights


@pytest.fixture
def repo(tmp_path: Path) -> Repository:
    repo = Repository(tmp_path, init=True)
    commit(repo, 1)
    commit(repo, 2)
    (tmp_path / "a.txt").write_text("text " * 100)
    repo.stage_file(tmp_path / "a.txt")
    repo.commit("a file")
    return repo


def test_a_sound_repository(repo: Repository) -> None:
    """Everything is counted once, and nothing is found; an empty one is sound as well."""
    structure, data = repo.maintenance.fsck(), repo.maintenance.fsck(read_data=True)
    assert (structure.commits, structure.manifests, structure.damage, structure.nbytes) == (3, 3, (), 0)
    assert (data.commits, data.damage) == (3, ())
    # Tensors of at most 32 bytes stand in the manifest, and are read as well.
    assert data.nbytes == 2 * (7 * 4 + 50 * 8 * 4) + 500


def test_damage_is_named(repo: Repository) -> None:
    """A flipped byte in a pack is found by reading, a lost pack without; the command exits with 5."""
    first = next(commit for commit in repo.log() if commit.message == "seed 1")
    record = repo.parts(first.commit_hash)["model.safetensors"]["layer.weight"]
    pack, entry = repo.store.packs.locate(repo.store.chunk_ids(record)[0])
    path = repo.folder.root / "packs" / f"{pack.name}.pack"
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    data[entry.offset + 80] ^= 1
    path.write_bytes(data)
    fresh = Repository(repo.path)
    assert not fresh.maintenance.fsck().damage
    (found,) = fresh.maintenance.fsck(read_data=True).damage
    assert (found.commit, found.part, found.tensor) == (first.commit_hash, "model.safetensors", "layer.weight")
    done = run_command([sys.executable, "-m", "coral", "fsck", "--read-data", "--json"], repo.path)
    assert done.returncode == 5
    assert json.loads(done.stdout)["damage"][0]["tensor"] == "layer.weight"

    path.unlink()
    path.with_suffix(".idx").unlink()
    (lost,) = Repository(repo.path).maintenance.fsck().damage
    assert "missing" in lost.message


def test_a_damaged_manifest_is_named(repo: Repository) -> None:
    """A git object that is gone hurts its part, not the check of the others."""
    tip = repo.resolve("HEAD")
    oid = repo.history.part(tip, "a.txt") or ""
    (repo.folder.root / ".git/objects" / oid[:2] / oid[2:]).unlink()
    (found,) = Repository(repo.path).maintenance.fsck().damage
    assert (found.commit, found.part, found.tensor) == (tip, "a.txt", None)


def test_damage_is_named_once(repo: Repository) -> None:
    """A tensor that many commits hold is named by the newest of them alone, and so is a tied one."""
    tensors = {"a": weights(9)["bias"].repeat(100), "b": weights(9)["bias"].repeat(100)}
    for number in range(3):
        repo.stage_weights({**tensors, "c": weights(number)["bias"]}, "tied")
        last = repo.commit(f"tied {number}")
    lose(repo.folder.root, tensors["a"].tobytes())
    (found,) = Repository(repo.path).maintenance.fsck().damage
    assert (found.commit, found.part, found.tensor) == (last.commit_hash, "tied", "a")
