"""Ways to make garbage, to let its grace period pass, and to see what of it is where."""

from __future__ import annotations

import os
import time

import numpy as np

from coral import Repository
from coral.format import codecs
from tests.repository.helpers import weights

OLD = time.time() - 30 * 24 * 3600


def forget(repo: Repository) -> None:
    """Drop the log of operations and the reflogs, as if the grace period were over."""
    (repo.folder.root / "operations").unlink(missing_ok=True)
    for path in (repo.folder.root / ".git/logs").rglob("*"):
        if path.is_file():
            path.unlink()


def grow_old(repo: Repository) -> None:
    """Have all packs be a month old."""
    for path in (repo.folder.root / "packs").iterdir():
        os.utime(path, (OLD, OLD))


def abandon(repo: Repository, seed: int, **shape: int) -> str:
    """A commit that nothing names any more; returns its hash."""
    repo.create_branch("abandoned")
    other = Repository(repo.path)
    other.pin("abandoned")
    other.stage_weights(weights(seed, **shape))
    made = other.commit("to be abandoned").commit_hash
    repo.delete_branch("abandoned", force=True)
    forget(repo)
    return made


def packs(repo: Repository) -> list[str]:
    return sorted(path.stem for path in (repo.folder.root / "packs").glob("*.pack"))


def trash(repo: Repository) -> list[str]:
    return sorted(path.stem for path in (repo.folder.root / "trash").rglob("*.pack"))


def check(repo: Repository) -> None:
    """All that is reached is there, byte for byte."""
    assert not Repository(repo.path).maintenance.fsck(read_data=True).damage


def mixed(repo: Repository) -> None:
    """One pack that is half garbage."""
    repo.stage_weights(weights(1, rows=400))
    repo.stage_weights(weights(2, rows=400), "other.safetensors")
    repo.commit("both")
    repo.create_branch("b")
    other = Repository(repo.path)
    other.pin("b")
    other.rm("other.safetensors", cached=True)
    other.commit("one")
    tip = other.resolve("HEAD")
    forget(repo)
    (repo.folder.root / ".git/refs/heads/main").write_text(
        other.history.write_commit(
            overlay={"model.safetensors": other.history.part(tip, "model.safetensors")}, message="alone"
        ).commit_hash
        + "\n"
    )
    repo.delete_branch("b", force=True)
    forget(repo)


def delta_series(repo: Repository, count: int, rows: int = 4096) -> list[dict[str, np.ndarray]]:
    """Commits whose chunks are deltas to those of the one before."""
    rng = np.random.default_rng(0)
    now = {"w": rng.normal(size=(rows, 16)).astype("f4")}
    made = []
    for number in range(count):
        now = {"w": (now["w"] + 1e-4 * rng.normal(size=now["w"].shape)).astype("f4")}
        repo.stage_weights(now)
        repo.commit(f"step {number}")
        made.append(now)
    return made


def deltas_in(repo: Repository) -> int:
    store = Repository(repo.path).store
    return sum(entry.codec in codecs.WITH_BASE for pack in store.packs.packs for _, entry in pack.index.items())


def mixed_pack(repo: Repository, seed: int) -> None:
    """A pack of which the half is garbage: a part is kept by a tag of its own, the other by nothing."""
    repo.create_branch("mixed")
    other = Repository(repo.path)
    other.pin("mixed")
    other.stage_weights(weights(2000 + seed, rows=500), "keep")
    other.stage_weights(weights(3000 + seed, rows=500), "drop")
    tip = other.commit("both").commit_hash
    alone = other.history.write_commit(overlay={"keep": other.history.part(tip, "keep")}, message="alone")
    repo.tag(f"kept-{seed}", alone.commit_hash)
    repo.delete_branch("mixed", force=True)
    forget(repo)
