"""Files that another process writes, or cuts short, while they are read; and what is said of which file."""

from __future__ import annotations

import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from coral import Repository
from coral.containers import check_skeleton, parse
from coral.containers.safetensors import SKELETON_LIMIT
from coral.errors import ConflictError, FormatError
from coral.format.manifest import Manifest, Skeleton, TensorRecord
from coral.ids import ContentRef, inline_ref
from coral.verbs.ingest import skeleton_of, views_of, write_file


@pytest.fixture
def repo(tmp_path: Path) -> Repository:
    return Repository(tmp_path, init=True)


@pytest.mark.parametrize("name", ["x.bin", "x.npy", "x.npz", "x.safetensors"])
def test_a_file_that_became_shorter(tmp_path: Path, name: str) -> None:
    """Bytes that are gone when they are read are a ConflictError with the file's name; no signal, no zeros."""
    array = np.arange(1_000_000)
    path = tmp_path / name
    with path.open("wb") as file:
        if name == "x.npy":
            np.save(file, array)
        elif name == "x.npz":
            np.savez(file, a=array)
        else:
            file.write(array.tobytes())
    if name == "x.safetensors":
        save_file({"a": array}, path)
    with parse(path) as parsed:
        (source,) = parsed.tensors
        first = source.read(0, 100)
        os.truncate(path, 5000)
        with pytest.raises(ConflictError, match=rf"{name} changed while it was read"):
            source.read(4_000_000, 5_000_000)
        with pytest.raises(ConflictError, match=name):
            parsed.check_unchanged()
    assert len(bytes(first)) == 100


def overwrite(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(-100, os.SEEK_END)
        file.write(b"x" * 100)


def replace_and_restore_time(path: Path) -> None:
    status = path.stat()
    overwrite(path)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


CHANGES: dict[str, Callable[[Path], object]] = {
    "cut": lambda path: os.truncate(path, 1 << 20),
    "overwritten": overwrite,
    "longer": lambda path: os.truncate(path, path.stat().st_size + 1),
    "overwritten, time set back": replace_and_restore_time,
}


@pytest.mark.parametrize("kind", CHANGES)
@pytest.mark.parametrize("opaque", [False, True])
def test_nothing_of_a_changing_file_is_staged(repo: Repository, kind: str, opaque: bool) -> None:
    """A file that changed while it was hashed is a ConflictError, and the next commit is what it was."""
    path = repo.path / "m.npy"
    np.save(path, np.arange(6_000_000))
    os.utime(path, (1e9, 1e9))
    done = 0

    def change(count: int) -> None:
        nonlocal done
        if not done:
            CHANGES[kind](path)
        done += count

    with pytest.raises(ConflictError, match="changed while it was read") as caught:
        repo.stage_file(path, opaque=opaque, progress=change)
    assert done and caught.value.hint and str(path) in caught.value.message
    assert repo.status().staged == ()
    repo.stage_file(path, opaque=True)
    assert [change.name for change in repo.status().staged] == ["m.npy"]


def test_only_a_piece_is_in_memory_at_a_time(repo: Repository) -> None:
    """A file is never in memory whole: neither to find its parts nor to check its archive."""
    path = repo.path / "m.npz"
    np.savez(path, a=np.zeros(12_500_000), b=np.ones(2))
    tracemalloc.start()
    try:
        with parse(path) as parsed:
            assert parsed.container == "npz"
        assert tracemalloc.get_traced_memory()[1] < 5 << 20
    finally:
        tracemalloc.stop()


def of(container: str, length: int) -> Manifest:
    record = TensorRecord("w", "U8", (4,), inline_ref(b"abcd"))
    return Manifest(container, (record,), Skeleton(ContentRef("b3:" + "0" * 64), length))


@pytest.mark.parametrize("container", ["npy", "npz", "torch", "gguf", "safetensors", "opaque"])
def test_a_skeleton_of_absurd_length_is_refused(repo: Repository, container: str) -> None:
    """A manifest that came from elsewhere cannot make a reader take a hundred gigabytes."""
    for length in (10**17, SKELETON_LIMIT + 1):
        manifest = of(container, length)
        with pytest.raises(FormatError, match=f"{container} skeleton of {length}"):
            skeleton_of(repo.store, manifest)
        with pytest.raises(FormatError, match="at most"):
            views_of(repo.store, manifest)
        with pytest.raises(FormatError, match="model"):
            write_file(repo.store, manifest, repo.worktree.project, "model")
    assert not (repo.path / "model").exists()
    if container != "opaque":
        check_skeleton(of(container, 1 << 16))


def test_what_is_wrong_with_a_file_names_it(repo: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    """A FormatError says which file it is about, also when it is raised after the file was parsed."""
    path = repo.path / "m.safetensors"
    path.write_bytes(b"junk")
    with pytest.raises(FormatError, match=r"m\.safetensors"):
        repo.stage_file(path)
    save_file({"a": np.ones(99)}, path)

    def refuse(*_: object) -> None:
        raise FormatError("later")

    monkeypatch.setattr("coral.containers.source.FileSource.read", refuse)
    with pytest.raises(FormatError, match=r"m\.safetensors: later"):
        repo.stage_file(path)
