"""Ways to harm the packs of a repository, and what fsck says of it then."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from coral import Repository
from tests.repository.helpers import run_command


def flip(path: Path, place: int) -> None:
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def pack_of(repo: Repository, seed: int) -> Path:
    """The pack that holds the weights of a seed."""
    fresh = Repository(repo.path)
    made = next(found for found in fresh.log() if found.message == f"seed {seed}")
    record = fresh.parts(made.commit_hash)["model.safetensors"]["layer.weight"]
    pack, _ = fresh.store.packs.locate(fresh.store.chunk_ids(record)[0])
    return repo.folder.root / "packs" / f"{pack.name}.pack"


def damage(repo: Repository, seed: int) -> Path:
    """Flip a byte of a chunk; returns the pack."""
    path = pack_of(repo, seed)
    flip(path, path.stat().st_size // 2)
    return path


def lose(path: Path, repo: Repository) -> Path:
    """Move a pack and its index out of the repository; returns where the pack is."""
    for one in (path.with_suffix(".idx"), path):
        one.rename(repo.path.parent / one.name)
    return repo.path.parent / path.name


def fsck(repo: Repository, *options: str) -> tuple[int, Any]:
    """What a fresh process says."""
    done = run_command([sys.executable, "-m", "coral", "fsck", "--json", *options], repo.path)
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)
