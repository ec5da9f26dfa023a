"""Blobs of the user's repository: read in order, in bounded memory, and never taken for whole when they are not."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

from coral.errors import CorruptionError, GitCommandError
from coral.git.blobs import BlobReader, look_up, read_found, write_blob
from coral.git.command import converse, run
from tests.git.helpers import blob, git


def read_them(
    folder: Path, ids: Iterable[str], *, wanted: Callable[[bytes], bool] | None = None
) -> Iterator[tuple[str, bytes]]:
    """Blobs by their ids."""
    return read_found(folder, ((ident, ident) for ident in ids), wanted=wanted)


def test_many_blobs(work: Path) -> None:
    """Sizes and bytes of more blobs than a pipe holds questions for; what is missing, or no blob, has no size."""
    blobs = {write_blob(work, data): data for data in (b"", b"one\n", b"x" * 3000, os.urandom(3 << 20))}
    tree = run(work, ["mktree"]).decode().strip()
    with BlobReader(work) as reader:
        asked = [*blobs, tree, "0" * 40] * 200
        assert list(reader.sizes(asked)) == [*map(len, blobs.values()), None, None] * 200
        small = {blob: data for blob, data in blobs.items() if len(data) <= 1024}
        assert dict(reader.small(asked, limit=1024)) == small
        for blob, data in blobs.items():
            pieces = list(reader.pieces(blob))
            assert b"".join(pieces) == data
            assert max(map(len, pieces), default=0) <= 1 << 20
        for other in (tree, "0" * 40):
            with pytest.raises(CorruptionError):
                list(reader.pieces(other))


def test_blobs_are_read_in_order(work: Path) -> None:
    """Thousands of blobs come one at a time, in the order asked for; what is none, or is not there, is left out."""
    ids = [blob(work, f"text {number}\n" * (number % 50)) for number in range(400)]
    absent = "1" * len(ids[0])
    asked = [git(work, "rev-parse", "HEAD"), absent, *ids, git(work, "rev-parse", "HEAD^{tree}")]
    found = list(read_them(work, asked))
    assert found == [(ident, f"text {number}\n".encode() * (number % 50)) for number, ident in enumerate(ids)]
    assert list(read_them(work, [])) == []


def test_what_is_not_wanted_is_not_kept(work: Path) -> None:
    """The first bytes of a blob decide whether the rest is read into memory."""
    ids = [blob(work, "keep" + "k" * 100), blob(work, "drop" + "d" * 200_000), blob(work, ""), blob(work, "keep")]
    heads: list[bytes] = []

    def wanted(head: bytes) -> bool:
        heads.append(head)
        return head.startswith(b"keep")

    assert [data for _, data in read_them(work, ids, wanted=wanted)] == [b"keep" + b"k" * 100, b"keep"]
    assert list(map(len, heads)) == [64, 64, 0, 4]


def test_a_large_blob_is_not_read(work: Path) -> None:
    """A blob that is larger than any manifest is passed over by its size."""
    ids = [blob(work, "small"), blob(work, "x" * 11), blob(work, "x" * 10)]
    with BlobReader(work) as reader:
        assert [data for _, data in reader.small(ids, limit=10)] == [b"small", b"x" * 10]


def test_reading_is_bounded(work: Path) -> None:
    """Blobs that are refused pass by in pieces: a file of 200 MB takes no memory."""
    with (work / "large").open("wb") as file:
        file.truncate(200_000_000)
    ident = git(work, "hash-object", "-w", "large")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert list(read_them(work, [ident], wanted=lambda head: False)) == []
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000


def test_a_damaged_object_is_an_error(work: Path) -> None:
    """Where git cannot read an object, nobody is told that all was read."""
    ident = blob(work, "to be damaged" * 100)
    path = work / ".git/objects" / ident[:2] / ident[2:]
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(GitCommandError):
        list(read_them(work, [blob(work, "sound"), ident]))


def test_stopping_early_leaves_no_process(work: Path) -> None:
    """Whoever stops asking leaves no git behind, neither running nor waiting to be looked at."""
    ids = [blob(work, f"text {number}") for number in range(300)]
    found = read_them(work, ids)
    next(found)
    found.close()  # type: ignore[attr-defined]
    listed = subprocess.run(["ps", "-A", "-o", "ppid=,args="], check=True, capture_output=True, text=True).stdout
    children = [line for line in listed.splitlines() if line.split()[0] == str(os.getpid())]
    assert not any("git" in line for line in children)


def test_a_git_that_dies_is_an_error(work: Path) -> None:
    """An answer that never came is not taken for "there is no such object"."""
    known = blob(work, "text")
    with converse(work, ["cat-file", "--batch-check"]) as talk:
        assert look_up(talk, [known, "no such"]) == [[known, "blob", "4"], []]
        os.kill(talk._process.pid, signal.SIGSTOP)
        threading.Timer(0.1, os.kill, (talk._process.pid, signal.SIGKILL)).start()
        with pytest.raises(GitCommandError, match="cat-file failed"):
            look_up(talk, [known])
