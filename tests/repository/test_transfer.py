"""Sending and fetching what manifests need: whole files come back elsewhere, and what is lost is named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from coral import Repository
from coral.errors import CorruptionError
from coral.format.manifest import Manifest, TensorRecord
from coral.ids import chunk_id, single_ref
from coral.objects import ChunkStore
from coral.objects.far import FarShelf
from coral.storage.folder import Folder
from coral.storage.folder_place import FolderPlace
from coral.verbs.config import Remote
from coral.verbs.ingest import write_file
from coral.verbs.sharing.remotes import add_remote, open_target
from coral.verbs.sharing.transfer import Transferred, fetch_missing, send
from tests.objects.helpers import damage
from tests.repository.helpers import commit, weights


@pytest.fixture
def remote(repo: Repository, tmp_path: Path) -> ChunkStore:
    """The remote of the repository, empty."""
    add_remote(repo.path, repo.folder, Remote("origin", str(tmp_path / "remote")))
    return open_target(repo.path, Repository(repo.path).config)


def far(remote: ChunkStore) -> FarShelf:
    """The same chunks, as they are fetched."""
    return FarShelf(FolderPlace(remote.folder.root.parent), "packs")


def files(folder: Path) -> dict[str, Path]:
    """A file of each kind, with and without a skeleton."""
    folder.mkdir(exist_ok=True)
    tensors = {name: np.asarray(data) for name, data in weights(1, rows=200_000).items()}
    save_file(tensors, folder / "a.safetensors", {"k": "v"})
    np.savez(folder / "a.npz", *tensors.values())
    (folder / "notes").write_bytes(b"notes " * 100_000)
    (folder / "empty").write_bytes(b"")
    return {path.name: path for path in sorted(folder.iterdir())}


def test_files_come_back_elsewhere(repo: Repository, remote: ChunkStore, tmp_path: Path) -> None:
    """Files of all kinds, sent and fetched, are the same byte for byte; what is there already is not copied again."""
    paths = files(tmp_path / "files")
    manifests = {name: repo.stage_file(path, name) for name, path in paths.items()}
    repo.commit("files")
    moved: list[int] = []
    sent = send(repo.store, remote, manifests.values(), moved.append)
    assert sent.chunks > 5 and 0 < sum(moved) < sent.nbytes
    assert send(repo.store, remote, manifests.values()) == Transferred(0, 0)
    clone = Repository(tmp_path / "clone", init=True)
    assert fetch_missing(clone.store, far(remote), manifests.values()).chunks == sent.chunks
    assert fetch_missing(clone.store, far(remote), manifests.values()) == Transferred(0, 0)
    for name, path in paths.items():
        write_file(clone.store, manifests[name], Folder(tmp_path / "out"), name)
        assert (tmp_path / "out" / name).read_bytes() == path.read_bytes()


def test_only_what_is_asked_for(repo: Repository, remote: ChunkStore, tmp_path: Path) -> None:
    """Manifests may come one at a time, and what others need stays where it is."""
    one, two = repo.stage_weights(weights(1), "one"), repo.stage_weights(weights(2), "two")
    repo.commit("both")
    sent = send(repo.store, remote, iter([one]))
    assert sent.chunks == len([record for record in one.records if not record.content.startswith("hex:")])
    clone = Repository(tmp_path / "clone", init=True)
    with pytest.raises(CorruptionError, match=r"layer\.weight"):
        fetch_missing(clone.store, far(remote), [one, two])
    # What could be had is there.
    assert fetch_missing(clone.store, far(remote), [one]) == Transferred(0, 0)
    send(repo.store, remote, [two])
    assert fetch_missing(clone.store, far(remote), [one, two]).chunks == 1


def test_many_small_sends_are_few_files(repo: Repository, remote: ChunkStore) -> None:
    """A remote that is pushed to a hundred times has a handful of packs."""
    for seed in range(60):
        manifest = repo.stage_weights(weights(seed))
        repo.commit(f"seed {seed}")
        send(repo.store, remote, [manifest])
    assert len(remote.folder.names()) <= 2 * 2 * 8


def test_all_that_is_lost_is_named(repo: Repository, remote: ChunkStore, tmp_path: Path) -> None:
    """The tensors that are missing or damaged are named together, the first five of them; all others are sent."""
    tensors = {f"t{number}": weights(number)["layer.weight"] for number in range(9)}
    manifest = repo.stage_weights(tensors)
    repo.commit("nine")
    for number in range(6):
        damage(repo.folder.root, np.asarray(tensors[f"t{number}"]).tobytes())
    absent = TensorRecord("absent", "U8", (100,), single_ref(chunk_id(b"nowhere")))
    source = Repository(repo.path).store
    with pytest.raises(CorruptionError, match=r"absent, t0, t1, t2, t3 and 2 more.*missing") as caught:
        send(source, remote, [manifest, Manifest("opaque", (absent,))])
    assert "coral fsck" in (caught.value.hint or "")
    assert send(source, remote, [Manifest("safetensors", manifest.records[6:])]) == Transferred(0, 0)
    with pytest.raises(CorruptionError, match="t0"):
        fetch_missing(Repository(tmp_path / "clone", init=True).store, remote, [manifest])


def test_push_sends_the_tips(repo: Repository, remote: ChunkStore, tmp_path: Path) -> None:
    """Outside of git what branches, tags and HEAD hold is sent, each commit whole; what came before it is not."""
    commits = [commit(repo, seed) for seed in range(5)]
    repo.tag("kept", commits[1].commit_hash)
    repo = Repository(repo.path)
    sent = repo.remotes.push()
    assert repo.remotes.push("origin") == Transferred(0, 0)
    clone = Repository(tmp_path / "clone", init=True)
    for place in (1, 4):
        fetch_missing(clone.store, far(remote), repo.parts(commits[place].commit_hash).values())
    assert len({chunk for pack in clone.store.packs.packs for chunk, _ in pack.index.items()}) == sent.chunks
    with pytest.raises(CorruptionError):
        fetch_missing(clone.store, far(remote), repo.parts(commits[2].commit_hash).values())
