"""Repairing: what is lost comes back from wherever the same bytes are, and nothing is ever removed for it."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import save_file

from coral import Repository
from coral.experiments import ExperimentTracker
from coral.format import codecs
from coral.verbs.config import Remote
from coral.verbs.sharing.remotes import add_remote, open_target
from tests.repository.garbage import delta_series, packs
from tests.repository.harm import damage, flip, fsck, lose, pack_of
from tests.repository.helpers import commit, raw, read, run_command, tree, weights


@pytest.fixture
def repo(repo: Repository) -> Repository:
    """Two commits."""
    commit(repo, 1)
    commit(repo, 2)
    return repo


def test_sound_repaired_and_damaged_are_told_apart(repo: Repository) -> None:
    """0, 9 and 5; what is beyond repair is named down to the experiment, and goes into the quarantine."""
    tracker = ExperimentTracker(repo)
    run = tracker.start("r")
    run.end(commit_hash=repo.resolve("HEAD"))
    assert fsck(repo, "--repair", "--read-data")[0] == 0
    path = damage(repo, 2)
    data = path.read_bytes()
    code, said = fsck(repo, "--repair", "--read-data")
    assert code == 5
    (found,) = said["damage"]
    assert (found["commit"], found["part"], found["tensor"]) == (
        repo.resolve("HEAD"),
        "model.safetensors",
        "layer.weight",
    )
    assert found["runs"] == [run.experiment_id]
    assert (repo.folder.root / "quarantine" / path.name).read_bytes() == data and not path.exists()
    assert read(Repository(repo.path), "HEAD~1") == raw(weights(1))
    again = Repository(repo.path)
    again.stage_weights(weights(2), "again")
    again.commit("the same bytes once more")
    assert fsck(repo, "--read-data")[0] == 0 and read(Repository(repo.path), "HEAD~1") == raw(weights(2))


@pytest.mark.parametrize("how", ["damaged", "lost"])
@pytest.mark.parametrize("source", ["duplicate", "trash", "quarantine", "remote", "file", "index"])
def test_each_source(repo: Repository, source: str, how: str) -> None:
    """A chunk that was damaged, or is lost, comes back byte for byte; the exit code says so."""
    path = pack_of(repo, 2)
    if source == "duplicate":
        copy = path.with_name("99999999-0123456789abcdef.pack")
        copy.write_bytes(path.read_bytes())
        copy.with_suffix(".idx").write_bytes(path.with_suffix(".idx").read_bytes())
    elif source in ("trash", "quarantine"):
        batch = repo.folder.root / {"trash": "trash/20990101T000000Z-00000000", "quarantine": "quarantine"}[source]
        batch.mkdir()
        for suffix in (".pack", ".idx"):
            # Under another name, as a pack that was rewritten since.
            (batch / f"99999999-0123456789abcdef{suffix}").write_bytes(path.with_suffix(suffix).read_bytes())
    elif source == "remote":
        add_remote(repo.path, repo.folder, Remote("origin", str(repo.path.parent / "remote")))
        remote = open_target(repo.path, Repository(repo.path).config)
        for suffix in (".pack", ".idx"):
            (remote.folder.root / path.with_suffix(suffix).name).write_bytes(path.with_suffix(suffix).read_bytes())
    elif source == "file":
        repo.checkout("HEAD", "model.safetensors")
        (repo.path / "model.safetensors").rename(repo.path / "old-name.safetensors")
    else:
        copy = path.with_name("99999999-0123456789abcdef.pack")
        copy.write_bytes(path.read_bytes())
    if how == "damaged":
        flip(path, path.stat().st_size // 2)
    else:
        lose(path, repo)
    code, said = fsck(repo, "--read-data")
    assert code == (0 if source == "duplicate" else 5)
    code, said = fsck(repo, "--read-data", "--repair")
    if (source, how) == ("duplicate", "lost"):
        assert code == 0
    else:
        assert code == 9 and not said["damage"]
    if how == "damaged":
        assert (repo.folder.root / "quarantine" / path.name).exists() and not path.exists()
    assert fsck(repo, "--read-data", "--repair")[0] == 0
    assert read(Repository(repo.path)) == raw(weights(2)) and read(Repository(repo.path), "HEAD~1") == raw(weights(1))
    assert repo.maintenance.gc(dry_run=True).packs <= 1


def test_wrong_bytes_repair_nothing(repo: Repository) -> None:
    """A remote and files that hold something else are no source."""
    lose(pack_of(repo, 2), repo)
    repo.checkout("HEAD~1", "model.safetensors")
    save_file(weights(9), repo.path / "other.safetensors")
    before = packs(repo)
    (repo.path / "broken.safetensors").write_bytes(b"rubbish")
    config = (repo.folder.root / "config.toml").read_text()
    (repo.folder.root / "config.toml").write_text(config + '\n[remotes.gone]\nurl = "/nowhere/at/all"\n')
    code, said = fsck(repo, "--repair")
    assert code == 5 and said["repaired"] == {"chunks": {}, "indexes": [], "quarantined": []}
    assert packs(repo) == before


def test_large_tensors_and_their_lists(repo: Repository) -> None:
    """A chunk list that is lost is repaired, and then the chunks that it names."""
    large = {"w": np.random.default_rng(0).normal(size=(3000, 200)).astype("f4")}
    repo.stage_weights(large)
    repo.commit("large")
    repo.checkout("HEAD", "model.safetensors")
    lose(max((repo.folder.root / "packs").glob("*.pack")), repo)
    code, said = fsck(repo, "--repair")
    assert code == 9 and sum(said["repaired"]["chunks"].values()) == 4
    assert read(Repository(repo.path)) == raw(large)


def test_a_damaged_index_is_made_anew(repo: Repository) -> None:
    """On the disk, from its pack; a reader managed without it before."""
    path = pack_of(repo, 2).with_suffix(".idx")
    sound = path.read_bytes()
    flip(path, len(sound) // 2)
    assert fsck(repo)[0] == 0
    code, said = fsck(repo, "--repair")
    assert code == 9 and said["repaired"]["indexes"] == [path.stem]
    assert path.read_bytes() == sound and fsck(repo, "--repair")[0] == 0


def test_sound_records_of_a_damaged_pack_stay(repo: Repository) -> None:
    """Wherever in a pack the damage is, all other chunks of it are there afterwards, and their deltas as well."""
    path = repo.path / "series"
    series = Repository(path, init=True)
    rng = np.random.default_rng(1)
    parts = {f"p{number}": {"w": rng.normal(size=(2000, 8)).astype("f4")} for number in range(6)}
    for name, tensors in parts.items():
        series.stage_weights(tensors, name)
    series.commit("parts")
    (pack,) = (path / ".coral/packs").glob("*.pack")
    before = tree(path / ".coral/packs")
    for place in range(40, pack.stat().st_size, 30_001):
        flip(pack, place)
        Repository(path).maintenance.fsck(read_data=True, repair=True)
        fresh, whole = Repository(path), 0
        for name, tensors in parts.items():
            try:
                whole += read(fresh, name=name) == raw(tensors)
            except ValueError:
                pass
        assert whole == 5, place
        assert len(list((path / ".coral/quarantine").glob("*.pack"))) == 1
        for found in [*(path / ".coral/packs").iterdir(), *(path / ".coral/quarantine").iterdir()]:
            found.unlink()
        for name, data in before.items():
            (path / ".coral/packs" / name).write_bytes(data)


def test_what_stands_on_a_lost_chunk_is_not_relied_on(repo: Repository) -> None:
    """After a base is lost for good, committing the bytes of its deltas again stores them anew."""
    series = Repository(repo.path / "series", init=True)
    made = delta_series(series, 3)
    first = min((series.folder.root / "packs").glob("*.pack"))
    for path in (first, first.with_suffix(".idx")):
        path.unlink()
    left = Repository(series.path).maintenance.fsck(repair=True)
    assert len(left.damage) == 3
    again = Repository(series.path)
    again.stage_weights(made[-1], "again")
    again.commit("again")
    fresh = Repository(series.path)
    assert read(fresh, name="again") == raw(made[-1])
    assert not any(
        entry.codec in codecs.WITH_BASE and not fresh.store.packs.copies(pack.read_base(chunk, entry) or chunk)
        for pack in fresh.store.packs.packs
        for chunk, entry in pack.index.items()
    )


def test_ten_tenths_are_the_whole(repo: Repository) -> None:
    """Each time another tenth is read, so that after ten every damaged byte was found; an interrupted one goes on."""
    repo.stage_weights({f"t{number}": np.random.default_rng(number).normal(size=500) for number in range(60)})
    repo.commit("many")
    flip(pack_of(repo, 1), 100)
    found, nbytes = [], []
    for _ in range(10):
        checked = Repository(repo.path).maintenance.fsck(read_data=0.1)
        found.append(len(checked.damage))
        nbytes.append(checked.nbytes)
    assert sum(found) == 1
    everything = 60 * 500 * 8 + 2 * 50 * 8 * 4
    assert everything - 1600 <= sum(nbytes) <= everything and max(nbytes) < everything / 2
    state = repo.folder.root / "cache/scrub.json"
    assert int(json.loads(state.read_text())["next"], 16) < 2**64 // 100
    state.write_text("rubbish")
    assert Repository(repo.path).maintenance.fsck(read_data=0.5).commits == 3


def test_an_interrupted_scrub_goes_on(repo: Repository) -> None:
    """What was read before the kill is not read again."""
    repo.stage_weights({f"t{number}": np.random.default_rng(number).normal(size=500) for number in range(60)})
    repo.commit("many")
    code = (
        "import os, sys\nfrom coral import Repository\n"
        "seen = []\n"
        "def progress(n):\n    seen.append(n)\n    if len(seen) == 30: os._exit(7)\n"
        "Repository(sys.argv[1]).maintenance.fsck(read_data=0.9, progress=progress)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(repo.path)], check=False)
    assert done.returncode == 7
    place = int(json.loads((repo.folder.root / "cache/scrub.json").read_text())["next"], 16) / 2**64
    assert 0.2 < place < 0.7


def test_the_command(repo: Repository) -> None:
    """Shares in the ways that people write them, and what was repaired, as text."""
    coral = [sys.executable, "-m", "coral", "fsck"]
    for option in ("--read-data", "--read-data=10%", "--read-data=0.5", "--read-data=100%"):
        assert run_command([*coral, option], repo.path).returncode == 0
    for option in ("--read-data=x", "--read-data=0%", "--read-data=200%"):
        assert run_command([*coral, option], repo.path).returncode == 2
    repo.checkout("HEAD", "model.safetensors")
    damage(repo, 2)
    done = run_command([*coral, "--read-data", "--repair"], repo.path)
    assert done.returncode == 9
    assert "from file model.safetensors" in done.stdout and "put aside: " in done.stdout


def test_garbage_that_stood_on_a_lost_chunk_is_not_relied_on_either(repo: Repository) -> None:
    """Deltas that no commit names any more are put aside with their base, so that no later commit finds them."""
    series = Repository(repo.path / "series", init=True)
    delta_series(series, 1)
    series.create_branch("b")
    other = Repository(series.path)
    other.pin("b")
    more = {"w": (np.asarray(series.get_weight("w")) + np.float32(1e-4)).astype("f4")}
    other.stage_weights(more)
    other.commit("a delta")
    series.delete_branch("b", force=True)
    first = min((series.folder.root / "packs").glob("*.pack"))
    for path in (first, first.with_suffix(".idx")):
        path.unlink()
    assert len(Repository(series.path).maintenance.fsck(repair=True).damage) == 1
    again = Repository(series.path)
    again.stage_weights(more, "again")
    again.commit("again")
    assert read(Repository(series.path), name="again") == raw(more)
