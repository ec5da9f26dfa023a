"""What runs name is there for as long as they are: collected by nobody, checked, repaired and sent as all else is."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from coral import CorruptionError, Repository
from coral.errors import StorageError
from coral.experiments import ExperimentTracker
from coral.objects.idset import IdSet
from coral.storage.folder import Folder
from coral.verbs.care.marking import Marks
from coral.verbs.config import Remote
from coral.verbs.runs import texts_of_runs
from coral.verbs.sharing.remotes import add_remote, open_remote
from tests.repository.garbage import abandon, forget, grow_old, packs
from tests.repository.harm import fsck, lose
from tests.repository.helpers import child, commit, finish, raw, read, weights

DATA = np.random.default_rng(0).bytes(5000)
LARGE = np.random.default_rng(1).bytes(3_000_000)
RESTORE = (
    "from coral.experiments import ExperimentTracker; ExperimentTracker(Repository(sys.argv[1])).restore(sys.argv[2])"
)


def keep(repo: Repository, data: bytes = DATA, name: str = "a.bin") -> str:
    """A run that has ended, with an artifact; returns its id."""
    with ExperimentTracker(Repository(repo.path)).start("r") as run:
        assert run.log_artifact(data, name) is not None
    return run.experiment_id


def artifact(repo: Repository, run: str, name: str = "a.bin") -> bytes:
    """What a fresh process would read."""
    return ExperimentTracker(Repository(repo.path)).get(run).load_artifact(name)


def delete(repo: Repository, run: str) -> Path:
    """Delete a run; returns where its file is now."""
    ExperimentTracker(Repository(repo.path)).delete(run)
    return repo.folder.root / f"trash/experiments/{run}.json"


def restore(repo: Repository, run: str) -> None:
    ExperimentTracker(Repository(repo.path)).restore(run)


# -- garbage collection


@pytest.mark.parametrize("prune_now", [False, True])
def test_a_deleted_run_keeps_what_it_names_until_it_is_gone_for_good(repo: Repository, prune_now: bool) -> None:
    """Its artifacts and its commits stay while it can be restored, however old; a dry run says the same."""
    commit(repo, 1)
    made = abandon(repo, 2)
    tracker = ExperimentTracker(Repository(repo.path))
    with tracker.start("r") as run:
        run.log_artifact(DATA, "a.bin")
        run.end(commit_hash=made)
    path = delete(repo, run.experiment_id)
    forget(repo)
    grow_old(repo)
    assert repo.maintenance.gc(prune_now=prune_now, dry_run=True).packs == 0
    assert repo.maintenance.gc(prune_now=prune_now).packs == 0
    restore(repo, run.experiment_id)
    assert artifact(repo, run.experiment_id) == DATA
    assert read(Repository(repo.path), made) == raw(weights(2))
    delete(repo, run.experiment_id)
    path.unlink()
    assert repo.maintenance.gc(prune_now=prune_now, dry_run=True).packs == 2
    assert repo.maintenance.gc(prune_now=prune_now).packs == 2


def test_undoing_a_collection_brings_back_no_less(repo: Repository) -> None:
    """What a deleted run names was not part of it, and what was comes back beside it."""
    commit(repo, 1)
    made = abandon(repo, 2)
    run = keep(repo)
    delete(repo, run)
    grow_old(repo)
    assert repo.maintenance.gc().packs == 1
    restore(repo, run)
    Repository(repo.path).undo()
    assert artifact(repo, run) == DATA and read(Repository(repo.path), made) == raw(weights(2))


def test_a_deleted_run_that_was_never_ended_keeps_what_its_journal_names(repo: Repository) -> None:
    """A run of the shell can be deleted while it runs; its journal lies beside its file."""
    tracker = ExperimentTracker(Repository(repo.path))
    run = tracker.start("r", owner="shell")
    assert run.log_artifact(DATA, "a.bin") is not None
    run.log("loss", 0.5, 1)
    run.close()
    delete(repo, run.experiment_id)
    (seen,) = tracker.trash()
    assert (len(seen.metrics), [one.name for one in seen.artifacts]) == (1, ["a.bin"])
    assert repo.maintenance.gc(prune_now=True).packs == 0
    restore(repo, run.experiment_id)
    assert artifact(repo, run.experiment_id) == DATA


@pytest.mark.parametrize("where", ["experiments", "trash/experiments"])
def test_a_file_that_cannot_be_read_stops_the_collection(repo: Repository, where: str) -> None:
    """Nobody knows what it names; the error says which one it is."""
    run = keep(repo)
    path = repo.folder.root / f"experiments/{run}.json"
    if where != "experiments":
        path = delete(repo, run)
    path.unlink()
    path.mkdir()
    with pytest.raises(StorageError, match=str(path)):
        Repository(repo.path).maintenance.gc(prune_now=True)
    assert len(packs(repo)) == 1


def test_a_damaged_run_keeps_all_that_it_still_names(repo: Repository) -> None:
    """Whatever is legible in its text counts, in the trash as well."""
    run = keep(repo)
    path = delete(repo, run)
    path.write_bytes(path.read_bytes().replace(b'{"summary"', b'{"Summary"').replace(b'"history"', b"rubbish"))
    assert repo.maintenance.gc(prune_now=True).packs == 0


# -- while they are moved


class Moving(Folder):
    """A folder in which something else happens after a call, once."""

    def __init__(self, folder: Folder, call: str, act: Callable[[], object]) -> None:
        super().__init__(folder.root)
        self._call, self._act = call, [act]

    def names(self, key: str = "") -> list[str]:
        found = super().names(key)
        if self._call == f"names {key}":
            self._now()
        return found

    def modified(self, key: str) -> float:
        if self._call == "modified":
            self._now()
        return super().modified(key)

    def _now(self) -> None:
        while self._act:
            self._act.pop()()


def marked(repo: Repository, folder: Folder) -> IdSet:
    """What one look at everything finds that others name."""
    marks = Marks(repo.path, folder, repo.history, IdSet(), since=float("inf"))
    marks.walk()
    return marks.may_be_here


def test_a_run_that_is_restored_between_two_looks_is_seen(repo: Repository) -> None:
    """It is not there, then no longer in the trash: whoever restores waits until both were looked at."""
    run = keep(repo)
    delete(repo, run)
    started: list[subprocess.Popen[str]] = []

    def act() -> None:
        started.append(child(RESTORE, repo.path, run))
        with pytest.raises(subprocess.TimeoutExpired):
            started[0].wait(timeout=3)

    assert len(marked(repo, Moving(repo.folder, "names experiments", act))) == 1
    finish(started[0])
    assert artifact(repo, run) == DATA


@pytest.mark.parametrize("how", ["deleted", "restored", "deleted and restored"])
@pytest.mark.parametrize("owner", ["process", "shell"])
def test_a_run_that_is_moved_before_it_is_read_is_seen(repo: Repository, how: str, owner: str) -> None:
    """It was listed in one place and is read in the other; a journal that went and came again is looked for again."""
    tracker = ExperimentTracker(Repository(repo.path))
    run = tracker.start("r", owner=owner)  # type: ignore[arg-type]
    assert run.log_artifact(DATA, "a.bin") is not None
    run.close() if owner == "shell" else run.end()
    if how == "restored":
        delete(repo, run.experiment_id)

    def act() -> None:
        if how != "restored":
            delete(repo, run.experiment_id)
        if how != "deleted":
            restore(repo, run.experiment_id)

    assert len(marked(repo, Moving(repo.folder, "modified", act))) == 1


def test_a_run_that_goes_with_its_journal_and_comes_back_without_being_read_is_seen(repo: Repository) -> None:
    """Its journal was away when it was to be read, and its file, which says less, was there again."""
    tracker = ExperimentTracker(Repository(repo.path))
    run = tracker.start("r", owner="shell")
    assert run.log_artifact(DATA, "a.bin") is not None
    run.close()

    class Away(Moving):
        def modified(self, key: str) -> float:
            if key.endswith(".jsonl") and self._act:
                delete(repo, run.experiment_id)
                try:
                    return super().modified(key)
                finally:
                    self._now()
            return super().modified(key)

    assert len(marked(repo, Away(repo.folder, "", lambda: restore(repo, run.experiment_id)))) == 1


def test_a_link_that_leads_nowhere_is_no_run(repo: Repository) -> None:
    """It is not waited for as if it were on its way."""
    run = keep(repo)
    (repo.folder.root / "experiments/0123456789ab.json").symlink_to("nowhere")
    assert [one.run_id for one in texts_of_runs(repo.folder)] == [run]


# -- checking and repairing


def pack_of(repo: Repository) -> Path:
    """The newest pack."""
    return max((repo.folder.root / "packs").glob("*.pack"))


@pytest.mark.parametrize("is_deleted", [False, True])
def test_a_lost_artifact_is_damage(repo: Repository, is_deleted: bool) -> None:
    """It is named with its run, also of one that waits in the trash."""
    run = keep(repo, LARGE)
    assert fsck(repo)[1]["artifacts"] == 1
    if is_deleted:
        delete(repo, run)
    lose(pack_of(repo), repo)
    code, said = fsck(repo)
    (found,) = said["damage"]
    assert (code, found["commit"], found["part"], found["tensor"]) == (5, f"run:{run}", "a.bin", None)
    assert found["runs"] == [run] and "missing" in found["message"] and said["damaged_runs"] == []


def test_an_artifact_is_found_however_its_file_is_formatted(repo: Repository) -> None:
    """Somebody may have formatted it anew, and its name may hold what JSON is made of."""
    name = 'a{"ref": 1}b.bin'
    run = keep(repo, DATA, name)
    path = repo.folder.root / f"experiments/{run}.json"
    (first,) = [record for one in texts_of_runs(repo.folder) for record in one.artifacts]
    path.write_text(json.dumps(json.loads(path.read_text().replace('"check"', '"chalk"')), indent=2, sort_keys=True))
    (again,) = [record for one in texts_of_runs(repo.folder) for record in one.artifacts]
    assert first == again and (again.name, again.nbytes) == (name, len(DATA))
    assert artifact(repo, run, name) == DATA


@pytest.mark.parametrize("share", ["", "=10%"])
def test_a_damaged_artifact_is_found_when_the_bytes_are_read(repo: Repository, share: str) -> None:
    """All of them, or a share each time; the structure alone does not tell."""
    run = keep(repo)
    path = pack_of(repo)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)
    assert fsck(repo)[0] == 0
    turns = [fsck(repo, f"--read-data{share}")[1]["damage"] for _ in range(10 if share else 1)]
    (found,) = [one for damage in turns for one in damage]
    assert (found["commit"], found["part"], found["tensor"]) == (f"run:{run}", "a.bin", None)


def test_commits_that_only_a_run_names_are_checked(repo: Repository) -> None:
    """gc needs them, so fsck tells of them, too; by their own names, with the run beside."""
    commit(repo, 1)
    made = abandon(repo, 2)
    with ExperimentTracker(Repository(repo.path)).start("r") as run:
        run.end(commit_hash=made)
    assert fsck(repo)[1]["commits"] == 2
    lost = lose(pack_of(repo), repo)
    with pytest.raises(CorruptionError, match="missing"):
        Repository(repo.path).maintenance.gc()
    (found,) = Repository(repo.path).maintenance.fsck().damage
    assert (found.commit, found.tensor, found.runs) == (made, "layer.weight", (run.experiment_id,))
    for path in (lost, lost.with_suffix(".idx")):
        path.rename(repo.folder.root / "packs" / path.name)
    assert fsck(repo)[0] == 0


def test_an_artifact_of_a_live_run_is_checked(repo: Repository) -> None:
    """Its journal names it; a line that is damaged names nothing."""
    run = ExperimentTracker(Repository(repo.path)).start("r", owner="shell")
    for name in ("a.bin", "b.bin"):
        assert run.log_artifact(os.urandom(5000), name) is not None
    run.close()
    for path in sorted((repo.folder.root / "packs").glob("*.pack")):
        lose(path, repo)
    journal = repo.folder.root / f"experiments/{run.experiment_id}.jsonl"
    journal.write_bytes(journal.read_bytes().replace(b"b.bin", b"c.bin"))
    (found,) = Repository(repo.path).maintenance.fsck().damage
    assert (found.commit, found.part) == (f"run:{run.experiment_id}", "a.bin")


@pytest.mark.parametrize("data", [DATA, LARGE])
@pytest.mark.parametrize("is_deleted", [False, True])
def test_a_lost_artifact_comes_back_from_a_remote(repo: Repository, data: bytes, is_deleted: bool) -> None:
    """push sent its chunks, and the list of them where there are several."""
    add_remote(repo.path, repo.folder, Remote("origin", str(repo.path.parent / "remote")))
    commit(repo, 1)
    run = keep(repo, data)
    assert Repository(repo.path).remotes.push().chunks > 1
    assert Repository(repo.path).remotes.push().chunks == 0
    if is_deleted:
        delete(repo, run)
    lose(pack_of(repo), repo)
    code, said = fsck(repo, "--repair")
    assert code == 9 and not said["damage"] and list(said["repaired"]["chunks"]) == ["remote origin"]
    assert fsck(repo, "--read-data")[0] == 0
    if is_deleted:
        restore(repo, run)
    assert artifact(repo, run) == data


def test_a_lost_artifact_comes_back_from_the_trash(repo: Repository) -> None:
    """One that was collected while nothing kept it."""
    run = keep(repo)
    path = delete(repo, run)
    text = path.read_bytes()
    path.unlink()
    grow_old(repo)
    assert repo.maintenance.gc().packs == 1
    path.write_bytes(text)
    restore(repo, run)
    assert fsck(repo)[0] == 5 and fsck(repo, "--repair")[0] == 9
    assert artifact(repo, run) == DATA


def test_nothing_of_deleted_runs_is_sent(repo: Repository) -> None:
    """Who deleted a run does not expect it with others."""
    add_remote(repo.path, repo.folder, Remote("origin", str(repo.path.parent / "remote")))
    delete(repo, keep(repo))
    assert Repository(repo.path).remotes.push().chunks == 0


def test_an_artifact_that_is_lost_stops_no_other(repo: Repository) -> None:
    """push names it; all else was sent."""
    add_remote(repo.path, repo.folder, Remote("origin", str(repo.path.parent / "remote")))
    keep(repo, DATA, "lost.bin")
    lose(pack_of(repo), repo)
    keep(repo, DATA[::-1], "there.bin")
    with pytest.raises(CorruptionError, match=r"lost\.bin"):
        Repository(repo.path).remotes.push()
    there = open_remote(repo.path, Repository(repo.path).config)
    assert [len(pack.index) for pack in there.packs.packs] == [1]
