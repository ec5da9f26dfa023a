"""What a repository is made of: each part is made once, when it is first asked for, and doors share it."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import pytest

from coral import NotFoundError, Repository
from coral.objects import ChunkStore
from coral.storage.folder import Folder
from coral.verbs import layout
from coral.verbs.config import Config
from coral.verbs.opened import Opened


def test_a_part_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many threads ask for it at once, there is one store."""
    made: list[ChunkStore] = []
    open_store = layout.open_store

    def slow(folder: Folder, config: Config) -> ChunkStore:
        time.sleep(0.05)
        made.append(open_store(folder, config))
        return made[-1]

    monkeypatch.setattr(layout, "open_store", slow)
    opened = Opened(tmp_path, init=True)
    found: list[object] = []
    threads = [threading.Thread(target=lambda: found.append(opened.store)) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1 and found == [made[0]] * 16


def test_what_could_not_be_made_is_made_the_next_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An interrupt in the middle leaves nothing half made, and no lock."""
    opened = Opened(tmp_path, init=True)
    open_store = layout.open_store

    def interrupted(*_: object) -> object:
        raise KeyboardInterrupt

    monkeypatch.setattr(layout, "open_store", interrupted)
    with pytest.raises(KeyboardInterrupt):
        _ = opened.store
    monkeypatch.setattr(layout, "open_store", open_store)
    elsewhere: list[object] = []
    thread = threading.Thread(target=lambda: elsewhere.append(opened.store))
    thread.start()
    thread.join(30)
    assert elsewhere == [opened.store]


def test_the_doors_share_what_is_open(tmp_path: Path) -> None:
    """A remote that was just added is pushed to; what is staged in the door keeps the maintenance from collecting."""
    repo = Repository(tmp_path / "project", init=True)
    repo.save({"w": np.arange(100.0)}, step=1)
    with pytest.raises(NotFoundError):
        repo.remotes.push()
    repo.remotes.add("origin", str(tmp_path / "shared"))
    assert [remote.name for remote in repo.remotes] == ["origin"] and repo.remotes.choose().name == "origin"
    assert repo.remotes.push("origin").chunks > 0
    repo.remotes.remove("origin")
    assert list(repo.remotes) == []


def test_repair_asks_the_remotes_of_now(tmp_path: Path) -> None:
    """Those named since the object was made, too."""
    repo = Repository(tmp_path / "project", init=True)
    repo.save({"w": np.arange(10_000.0)}, step=1)
    before = Repository(repo.path)  # and nothing read, so that no file is open
    repo.remotes.add("origin", str(tmp_path / "shared"))
    repo.remotes.push()
    for pack in (repo.folder.root / "packs").iterdir():
        pack.unlink()
    assert Repository(repo.path).maintenance.fsck().damage
    assert before.maintenance.fsck(repair=True).damage == ()
    np.testing.assert_array_equal(Repository(repo.path).get_weight("w"), np.arange(10_000.0))
