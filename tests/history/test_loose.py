"""Loose objects from elsewhere: what is no object, or would unfold to gigabytes, is refused at once."""

from __future__ import annotations

import os
import zlib
from pathlib import Path

import pytest

from coral.errors import CorruptionError, UsageError
from coral.history import loose
from coral.history.history import History
from coral.ids import BlobId
from tests.clock import at_most
from tests.history.helpers import commit


def plant(history: History, oid: str, data: bytes) -> Path:
    """A file where the loose object of a hash would be."""
    path = history.git_dir / loose.key(oid)
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("head", ["commit 999999999999999", "commit 67108865", "blob 536870913", "tree 0999", "x 1"])
def test_a_length_that_no_object_has(history: History, head: str) -> None:
    """A head is believed only as far as an object may be long, before anything is unpacked."""
    plant(history, "ab" * 20, zlib.compress(head.encode() + b"\0" + bytes(80 << 20), 9))
    with at_most(0.5), pytest.raises(CorruptionError, match="abab"):
        history.commit("ab" * 20)
    with at_most(0.5), pytest.raises(CorruptionError, match="abab"):
        history.read_blob(BlobId("ab" * 20))


def test_a_pipe_is_not_waited_for(history: History) -> None:
    """What is no file in the place of an object is a damaged object."""
    made = commit(history).commit_hash
    path = plant(history, made, b"")
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(CorruptionError):
        history.commit(made)


def test_nothing_is_written_that_cannot_be_read(history: History, monkeypatch: pytest.MonkeyPatch) -> None:
    """A commit whose message is too long is refused before it is part of a branch."""
    monkeypatch.setitem(loose.LIMITS, "commit", 1000)
    with pytest.raises(UsageError, match="1,000"):
        commit(history, "x" * 1000)
    commit(history, "x" * 500)
