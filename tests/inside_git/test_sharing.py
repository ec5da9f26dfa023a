"""Sharing models: what is pushed can be pulled from a fresh clone, and what cannot be sent is not pushed."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from coral.objects import ChunkStore
from coral.storage.folder import Folder
from tests.inside_git.helpers import CORAL, Project, safe, tensors


@pytest.fixture
def shared(project: Project, tmp_path: Path) -> Project:
    """A project whose git remote is bare, and whose coral remote is a folder."""
    subprocess.run(["git", "init", "-q", "--bare", "-b", "main", tmp_path / "origin.git"], check=True)
    project.git("remote", "add", "origin", str(tmp_path / "origin.git"))
    project.coral("install", "--force")
    project.coral("remote", "add", "origin", str(tmp_path / "tensors"))
    project.commit("one", model=safe(tensors(1, rows=1 << 14)), other=safe(tensors(2)))
    return project


def clone_of(project: Project, folder: Path) -> Project:
    """A fresh clone, by somebody who has coral, and has not set it up there yet."""
    subprocess.run(["git", "clone", "-q", project.git("remote", "get-url", "origin"), folder], check=True)
    return Project(folder)


def test_the_whole_story(shared: Project, tmp_path: Path) -> None:
    """push; clone, install, pull: the models are back, byte for byte. Later changes travel as well."""
    shared.git("push", "-q", "origin", "main")
    clone = clone_of(shared, tmp_path / "clone")
    assert clone.read("model.safetensors").startswith(b"coral manifest 1")
    clone.coral("install")
    clone.coral("pull")
    assert clone.read("model.safetensors") == shared.read("model.safetensors")
    assert clone.read("other.safetensors") == safe(tensors(2))
    assert clone.status() == ""
    values = tensors(1, rows=1 << 14)
    values["layer.0.bias"] = values["layer.0.bias"] + 1
    clone.commit("two", model=safe(values))
    clone.git("push", "-q", "origin", "main")
    shared.git("pull", "-q", "origin", "main")
    assert shared.read("model.safetensors") == safe(values)
    assert shared.status() == ""
    shared.coral("fsck", "--git", "--read-data")


def test_a_push_without_its_tensors_fails(shared: Project, tmp_path: Path) -> None:
    """Where the remote is not there git pushes nothing, and says how to go on; then it works."""
    (tmp_path / "tensors").rename(tmp_path / "elsewhere")
    done = shared.run("git", "push", "origin", "main", check=False)
    assert done.returncode != 0
    assert b"nothing is pushed" in done.stderr
    assert shared.git("ls-remote", "origin") == ""
    (tmp_path / "elsewhere").rename(tmp_path / "tensors")
    shared.git("push", "-q", "origin", "main")
    assert shared.git("ls-remote", "origin") != ""


def test_a_checkout_fetches(shared: Project, tmp_path: Path) -> None:
    """Once coral is set up, git's own checkout brings what is lacking from the remote."""
    shared.git("push", "-q", "origin", "main")
    clone = clone_of(shared, tmp_path / "clone")
    clone.coral("install")
    (clone.folder / "model.safetensors").unlink()
    clone.git("checkout", "--", "model.safetensors")
    assert clone.read("model.safetensors") == shared.read("model.safetensors")


def damage_largest_chunk(remote: Path) -> None:
    """Flip a bit of what the larger of the two models is made of."""
    store = ChunkStore(Folder(remote / "packs"), remote / "locks" / "store")
    pack, entry = max(
        ((pack, entry) for pack in store.packs.packs for _, entry in pack.index.items()),
        key=lambda item: item[1].stored_length,
    )
    path = remote / "packs" / f"{pack.name}.pack"
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    data[entry.offset + entry.stored_length // 2] ^= 1
    path.write_bytes(data)


def test_a_damaged_remote_gives_nothing(shared: Project, tmp_path: Path) -> None:
    """Bytes that are not what their ids say never arrive; what is whole does."""
    shared.git("push", "-q", "origin", "main")
    damage_largest_chunk(tmp_path / "tensors")
    clone = clone_of(shared, tmp_path / "clone")
    clone.coral("install")
    done = clone.run(*CORAL.replace('"', "").split(), "pull", check=False)
    assert done.returncode == 5
    assert b"damaged" in done.stderr and b"model.safetensors" in done.stderr and b"other.safetensors" not in done.stderr
    assert clone.read("model.safetensors").startswith(b"coral manifest")
    assert clone.read("other.safetensors") == safe(tensors(2))


def test_a_remote_of_a_stranger_s_is_told_of(shared: Project, tmp_path: Path) -> None:
    """A clone uses the remote that the project names only after install, which says so."""
    shared.git("add", "-A")
    shared.git("commit", "-q", "--allow-empty", "-m", "config")
    shared.git("push", "-q", "origin", "main")
    clone = clone_of(shared, tmp_path / "clone")
    assert (clone.folder / ".coralconfig").exists()
    assert not (clone.folder / ".coral").exists()
    assert str(tmp_path / "tensors") in clone.coral("install")
    assert str(tmp_path / "tensors") in clone.coral("remote", "-v")


def test_shallow_and_without_coral(shared: Project, tmp_path: Path) -> None:
    """A shallow clone pulls, too; and a person without coral works with the text."""
    shared.git("push", "-q", "origin", "main")
    url = f"file://{tmp_path / 'origin.git'}"
    subprocess.run(["git", "clone", "-q", "--depth", "1", url, tmp_path / "shallow"], check=True)
    shallow = Project(tmp_path / "shallow")
    shallow.coral("install")
    shallow.coral("pull")
    assert shallow.read("other.safetensors") == safe(tensors(2))
    plain = clone_of(shared, tmp_path / "plain")
    plain.git("mv", "other.safetensors", "renamed.safetensors")
    plain.git("commit", "-q", "-m", "renamed", PATH=os.environ["PATH"])
    plain.git("push", "-q", "origin", "main")
    shared.git("pull", "-q", "origin", "main")
    assert shared.read("renamed.safetensors") == safe(tensors(2))
