"""Weights that drift as those of a training do, and how their commits lie in a store."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator, Sequence

import numpy as np
import pytest

from coral.errors import StorageError
from coral.format.manifest import TensorRecord
from coral.format.pack import MAX_DEPTH, Entry
from coral.ids import ChunkId, chunk_id
from coral.objects import ChunkStore, Memory, Parent
from coral.objects import writer as writer_module
from tests.objects.helpers import Tensor, write

COUNT = 10_000
"""Elements of a tensor of two bytes each: more than a delta needs to be worth its while."""


def weights(seed: int = 0, count: int = COUNT) -> bytes:
    """Weights in bfloat16."""
    numbers = np.random.default_rng(seed).standard_normal(count) * 0.02
    return (numbers.astype("<f4").view("<u4") >> 16).astype("<u2").tobytes()


def drift(data: bytes | bytearray, seed: int) -> bytes:
    """The same weights some steps of training later."""
    numbers = np.frombuffer(data, "<u2")
    steps = np.random.default_rng(seed).integers(-1, 2, numbers.size).astype("<u2")
    return bytes((numbers + steps).tobytes())


def drifting(count: int, seed: int = 0) -> list[bytes]:
    """So many commits of one tensor."""
    found = [weights(seed)]
    while len(found) < count:
        found.append(drift(found[-1], len(found)))
    return found


def bf16(data: bytes, name: str = "t", row: int = 1) -> Tensor:
    """A tensor of rows of so many elements."""
    return Tensor(name, data, "BF16", (len(data) // 2 // row, row) if row > 1 else (len(data) // 2,))


def parent_of(store: ChunkStore, records: Sequence[TensorRecord], memory: Memory | None = None) -> Parent:
    """What a process knows that has stored nothing yet and goes on from a commit."""
    return Parent({record.name: record for record in records}, store.chunk_ids, memory)


def committed(store: ChunkStore, data: list[bytes]) -> list[TensorRecord]:
    """So many commits of one tensor, each encoded against the one before it."""
    records: list[TensorRecord] = []
    for one in data:
        records += write(store, bf16(one), parent=parent_of(store, records[-1:]))
    return records


def plenty() -> Memory:
    """Room for every copy."""
    return Memory(lambda: 1 << 30)


def entry_of(store: ChunkStore, data: bytes) -> Entry:
    """Where a chunk lies and how it is encoded; the record that a reader takes."""
    store.packs.refresh()
    return store.packs.locate(chunk_id(data))[1]


def depths(store: ChunkStore, series: Sequence[bytes]) -> list[int]:
    """How deep chunks lie, as their entries say; each must be what their bases say."""
    store.packs.refresh()
    assert all(entry.depth <= MAX_DEPTH for pack in store.packs.packs for _, entry in pack.index.items())
    found = [entry_of(store, data).depth for data in series]
    assert found == [len(store.bases_of(chunk_id(data))) for data in series]
    return found


BAD = Tensor("bad", b"bad" * 100)


@contextlib.contextmanager
def failing() -> Iterator[None]:
    """Have a call fail when it comes to the tensor that is bad, after those before it were encoded."""

    def fail(data: memoryview) -> ChunkId:
        if data == BAD.data:
            raise StorageError("the disk refused", errno=errno.EIO)
        return chunk_id(data)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(StorageError):
        patch.setattr(writer_module, "chunk_id", fail)
        yield
