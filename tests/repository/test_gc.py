"""Garbage collection: what nothing names goes, in the end, and comes back when it is named again."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest

from coral import CorruptionError, Repository
from coral.format import codecs
from coral.format.pack import MAGIC, pack_header
from coral.ids import checksum
from coral.objects.writer import publish_pack
from tests.repository.garbage import (
    OLD,
    abandon,
    check,
    delta_series,
    deltas_in,
    forget,
    grow_old,
    mixed,
    packs,
    trash,
)
from tests.repository.helpers import commit, raw, read, run_command, tree, weights

# -- what goes


def test_garbage_goes_into_the_trash_and_then_away(repo: Repository) -> None:
    """What nothing names and is older than the grace period is moved, and removed a grace period later."""
    commit(repo, 1)
    lost = abandon(repo, 2)
    grow_old(repo)
    before = packs(repo)
    done = repo.maintenance.gc()
    assert (done.packs, done.rewritten, done.chunks) == (1, 0, 1) and done.nbytes > 1400
    assert len(packs(repo)) == 1 and set(trash(repo)) == set(before) - set(packs(repo))
    assert read(repo) == raw(weights(1))
    with pytest.raises(CorruptionError, match="missing"):
        read(Repository(repo.path), lost)
    (batch,) = (repo.folder.root / "trash").iterdir()
    batch.rename(batch.with_name("20200101T000000Z-00000000"))
    again = repo.maintenance.gc()
    assert (again.packs, again.emptied_packs, trash(repo)) == (0, 1, [])
    assert not list((repo.folder.root / "trash").iterdir())
    check(repo)


def test_dry_run_says_the_same_and_changes_nothing(repo: Repository) -> None:
    """The figures of a dry run are those of the run; not a file moves."""
    commit(repo, 1)
    abandon(repo, 2)
    grow_old(repo)
    before = tree(repo.folder.root)
    said = repo.maintenance.gc(dry_run=True)
    assert {name for name, _ in tree(repo.folder.root).items()} - before.keys() <= {
        "locks/consolidate",
        "locks/experiments",
    }
    assert {**tree(repo.folder.root), **before} == tree(repo.folder.root)
    done = repo.maintenance.gc()
    assert (said.nbytes, said.packs, said.chunks, said.rewritten) == (done.nbytes, done.packs, done.chunks, 0)


def test_young_packs_are_left_alone(repo: Repository) -> None:
    """A pack younger than the grace period stays, and so does what its deltas stand on; --prune-now takes it."""
    commit(repo, 1)
    abandon(repo, 2)
    done = repo.maintenance.gc()
    assert (done.packs, len(packs(repo))) == (0, 2) and done.young_bytes > 1400
    assert repo.maintenance.gc(grace=0.0).packs == 1
    check(repo)
    abandon(repo, 3)
    done = repo.maintenance.gc(prune_now=True)
    assert (done.packs, done.emptied_packs, trash(repo)) == (1, 1, [])
    check(repo)


def test_a_pack_that_is_half_garbage_is_rewritten(repo: Repository) -> None:
    """What is needed is copied as it is; the old pack goes, and the new one is no younger."""
    mixed(repo)
    grow_old(repo)
    (before,) = packs(repo)
    done = repo.maintenance.gc()
    assert (done.packs, done.rewritten, done.chunks) == (1, 1, 1)
    (after,) = packs(repo)
    assert after != before and trash(repo) == [before]
    assert abs((repo.folder.root / f"packs/{after}.pack").stat().st_mtime - OLD) < 5
    assert read(Repository(repo.path), "main") == raw(weights(1, rows=400))
    assert repo.maintenance.gc().packs == 0
    check(repo)


def test_bases_stay(repo: Repository) -> None:
    """What a delta that is kept stands on is kept, though no commit names it any more."""
    made = delta_series(repo, 4)
    assert deltas_in(repo) == 3
    tip = repo.resolve("HEAD")
    alone = repo.history.write_commit(
        overlay={"model.safetensors": repo.history.part(tip, "model.safetensors")}, message="alone"
    )
    (repo.folder.root / ".git/refs/heads/main").write_text(alone.commit_hash + "\n")
    forget(repo)
    assert repo.maintenance.gc(prune_now=True).packs == 0
    assert read(Repository(repo.path)) == raw(made[-1])


def test_superseded_deltas_go(repo: Repository) -> None:
    """Of a chunk that repack stored whole the delta is garbage, and so is what only that one stood on."""
    made = delta_series(repo, 4)
    tip = repo.resolve("HEAD")
    repo.maintenance.repack()
    alone = repo.history.write_commit(
        overlay={"model.safetensors": repo.history.part(tip, "model.safetensors")}, message="alone"
    )
    (repo.folder.root / ".git/refs/heads/main").write_text(alone.commit_hash + "\n")
    forget(repo)
    assert repo.maintenance.gc(prune_now=True).chunks == 4
    assert (deltas_in(repo), len(packs(repo))) == (0, 1)
    assert read(Repository(repo.path)) == raw(made[-1])


def test_a_damaged_whole_record_does_not_supersede(repo: Repository) -> None:
    """A delta goes only when the record that stands alone was read and is right."""
    made = delta_series(repo, 2)
    repo.maintenance.repack()
    newest = repo.folder.root / "packs" / f"{packs(repo)[-1]}.pack"
    newest.chmod(0o644)
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 1
    newest.write_bytes(data)
    Repository(repo.path).maintenance.gc(prune_now=True)
    assert read(Repository(repo.path)) == raw(made[-1])


# -- out of the trash


def test_a_dedup_hit_takes_its_pack_out_of_the_trash(repo: Repository) -> None:
    """Bytes that only the trash holds are not written again: their pack comes back, whoever else was collecting."""
    commit(repo, 1)
    abandon(repo, 2)
    assert repo.maintenance.gc(grace=0.0).emptied_packs == 1
    abandon(repo, 3)
    grow_old(repo)
    repo.maintenance.gc()
    (name,) = trash(repo)
    fresh = Repository(repo.path)
    fresh.stage_weights(weights(3))
    fresh.commit("again")
    assert trash(repo) == [] and name in packs(repo)
    assert read(Repository(repo.path)) == raw(weights(3))
    grow_old(repo)
    assert repo.maintenance.gc().packs == 0
    check(repo)


def test_a_stale_object_does_not_rely_on_what_went(repo: Repository) -> None:
    """An object that saw chunks before they were collected stores them again, or takes them back."""
    commit(repo, 1)
    stale = Repository(repo.path)
    stale.create_branch("other")
    stale.pin("other")
    commit(stale, 2)
    repo.delete_branch("other", force=True)
    forget(repo)
    assert repo.maintenance.gc(prune_now=True).packs == 1
    stale.create_branch("other", "main")
    stale.pin("other")
    stale.stage_weights({**weights(2), "more": np.ones(99, "f4")})
    made = stale.commit("again")
    assert read(Repository(repo.path), made.commit_hash)["layer.weight"] == raw(weights(2))["layer.weight"]
    check(repo)


def test_deltas_come_out_of_the_trash_with_their_bases(repo: Repository) -> None:
    """A chunk comes back readable, or is stored again: its bases come back with it."""
    commit(repo, 1)
    repo.create_branch("series")
    other = Repository(repo.path)
    other.pin("series")
    made = delta_series(other, 4)
    repo.delete_branch("series", force=True)
    forget(repo)
    grow_old(repo)
    assert repo.maintenance.gc().packs == 4
    fresh = Repository(repo.path)
    fresh.stage_weights(made[-1])
    fresh.commit("again")
    assert len(trash(repo)) == 0
    assert read(Repository(repo.path)) == raw(made[-1])
    for name in packs(repo):
        pack = next(pack for pack in fresh.store.packs.packs if pack.name == name)
        for chunk, _ in pack.index.items():
            fresh.store.bases_of(chunk)


def test_collection_itself_takes_out_what_is_named_again(repo: Repository) -> None:
    """A branch put on a commit whose chunks are in the trash has them back after the next collection."""
    commit(repo, 1)
    made = abandon(repo, 2)
    grow_old(repo)
    assert repo.maintenance.gc().packs == 1
    repo.create_branch("back", made)
    (batch,) = (repo.folder.root / "trash").iterdir()
    batch.rename(batch.with_name("20200101T000000Z-00000000"))
    done = repo.maintenance.gc()
    assert (done.emptied_packs, trash(repo)) == (0, [])
    assert read(Repository(repo.path), "back") == raw(weights(2))


def test_the_command(repo: Repository) -> None:
    """It says what it freed, as text and as JSON; wrong lengths of time are wrong usage."""
    commit(repo, 1)
    abandon(repo, 2)
    coral = [sys.executable, "-m", "coral", "gc"]
    done = run_command([*coral, "--json", "--dry-run", "--prune-now"], repo.path)
    said = json.loads(done.stdout)
    assert (said["packs"], said["emptied_packs"], said["dry_run"]) == (1, 1, True)
    text = run_command([*coral, "--prune-now"], repo.path).stdout
    assert "1 chunk of 1 pack" in text and "removed from the trash" in text
    assert run_command(coral, repo.path).stdout == "nothing to collect\n"
    assert run_command([*coral, "--grace", "soon"], repo.path).returncode == 2


def test_a_forged_record_does_not_supersede(repo: Repository) -> None:
    """A record that stands alone, has a right checksum and holds other bytes makes no delta garbage."""
    made = delta_series(repo, 2)
    store = Repository(repo.path).store
    chunk, entry = next(
        item for pack in store.packs.packs for item in pack.index.items() if item[1].codec in codecs.WITH_BASE
    )
    payload = bytes(entry.raw_length)
    forged = entry._replace(offset=len(MAGIC), codec=codecs.RAW, depth=0, stored_length=len(payload))
    with store.folder.new_file("pack.pack") as file:
        file.write(MAGIC)
        file.write(pack_header(chunk, forged, checksum(payload)) + payload)
        publish_pack(store, file, {chunk: forged})
    Repository(repo.path).maintenance.gc(prune_now=True)
    assert read(Repository(repo.path)) == raw(made[-1])
