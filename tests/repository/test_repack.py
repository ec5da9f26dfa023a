"""Commits that are read often, stored so that they need no others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from coral import Repository
from coral.cli import main
from coral.errors import CorruptionError
from coral.experiments import ExperimentTracker
from tests.repository.helpers import read


def deltas(repo: Repository, ref: str) -> int:
    """How many chunks of a commit's weights need another one."""
    records = repo.parts(ref)["model.safetensors"].records
    return sum(repo.store.is_delta(chunk) for record in records for chunk in repo.store.chunk_ids(record))


@pytest.fixture
def repo(tmp_path: Path) -> Repository:
    """Four commits of weights that change slowly."""
    repo = Repository(tmp_path, init=True)
    weights = np.random.default_rng(0).normal(size=(600, 1000)).astype(np.float32)
    for step in range(4):
        repo.stage_weights({"w": weights + np.float32(1e-5) * step})
        repo.commit(f"step {step}", step=step)
    assert [deltas(repo, ref) > 0 for ref in ("HEAD~3", "HEAD~2", "HEAD~1", "HEAD")] == [False, True, True, True]
    return repo


def test_tips_and_tags_stand_alone_afterwards(repo: Repository) -> None:
    """All bytes stay what they were; the others stay deltas; a second time there is nothing to do."""
    repo.tag("v1", "HEAD~2")
    before = {ref: read(repo, ref) for ref in ("HEAD", "HEAD~1", "HEAD~2", "HEAD~3")}
    done = repo.maintenance.repack()
    assert done.commits == 2 and done.chunks == 6 and done.raw_bytes == 2 * 600 * 1000 * 4
    assert 0.5 * done.raw_bytes < done.stored_bytes < done.raw_bytes
    assert (deltas(repo, "HEAD"), deltas(repo, "v1")) == (0, 0) and deltas(repo, "HEAD~1")
    assert {ref: read(repo, ref) for ref in before} == before
    assert not repo.maintenance.fsck(read_data=True).damage
    assert repo.maintenance.repack().chunks == 0
    other = Repository(repo.path)
    assert deltas(other, "HEAD") == 0 and {ref: read(other, ref) for ref in before} == before


def test_the_next_commit_stands_on_what_was_repacked(repo: Repository) -> None:
    """Its depth begins anew."""
    repo.maintenance.repack()
    weights = np.asarray(repo.get_weight("w"))
    repo.stage_weights({"w": weights + np.float32(1e-5)})
    repo.commit("next")
    (record,) = repo.parts("HEAD")["model.safetensors"].records
    assert {len(repo.store.bases_of(chunk)) for chunk in repo.store.chunk_ids(record)} == {1}


def test_damage_is_an_error_and_changes_nothing(repo: Repository) -> None:
    """A chunk that cannot be read is named, and no pack is added."""
    packs = repo.folder.root / "packs"
    first = min(packs.glob("*.pack"))
    data = bytearray(first.read_bytes())
    data[len(data) // 2] ^= 1
    first.chmod(0o644)
    first.write_bytes(data)
    names = sorted(path.name for path in packs.iterdir())
    with pytest.raises(CorruptionError):
        Repository(repo.path).maintenance.repack()
    assert sorted(path.name for path in packs.iterdir()) == names


def test_the_shell_repacks_the_best_runs_commit(repo: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without refs, the best step by a declared objective is among what becomes quick to read."""
    tracker = ExperimentTracker(repo)
    with tracker.start("run", objective={"loss": "min"}) as run:
        for step, loss in enumerate((0.5, 0.1, 0.9)):
            repo.stage_weights({"w": np.asarray(repo.get_weight("w")) + np.float32(1e-5)})
            run.log("loss", loss, step=step)
            repo.commit("in a run", step=step, metrics={"loss": loss})
    assert deltas(repo, "best:loss") and deltas(repo, "HEAD~1") and deltas(repo, "HEAD")
    monkeypatch.chdir(repo.path)
    result = CliRunner().invoke(main, ["repack"])
    assert result.exit_code == 0 and "stored whole" in result.output, result.output
    fresh = Repository(repo.path)
    assert (deltas(fresh, "best:loss"), deltas(fresh, "HEAD")) == (0, 0) and deltas(fresh, "HEAD~2")
    assert "whole already" in CliRunner().invoke(main, ["repack"]).output
