"""Manifests in the user's git: put into its index, committed, or in conflict, as the filter has it."""

from __future__ import annotations

import numpy as np
import pytest
from safetensors.numpy import save_file

from coral import Repository
from coral.format.manifest import Manifest
from tests.repository.helpers import git, weights


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
