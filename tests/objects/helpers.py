"""Tensors to store, and ways to look at a store from outside."""

from __future__ import annotations

import math
import os
import random
from pathlib import Path

from coral.format.dtypes import BITS, byte_count
from coral.format.manifest import TensorRecord
from coral.ids import chunk_id
from coral.objects import ChunkStore, Parent
from coral.storage.folder import Folder

MIB = 1 << 20


class Tensor:
    """A tensor in memory that may change."""

    def __init__(self, name: str, data: bytes, dtype: str = "U8", shape: tuple[int, ...] | None = None) -> None:
        self.name, self.dtype, self.data = name, dtype, bytearray(data)
        self.shape = (len(data),) if shape is None else shape

    def read(self, start: int, stop: int) -> memoryview:
        return memoryview(self.data)[start:stop]


def noise(seed: int, length: int) -> bytes:
    """Bytes that no codec shrinks."""
    return random.Random(seed).randbytes(length)


def random_tensor(name: str, dtype: str, shape: tuple[int, ...], seed: int = 0) -> Tensor:
    """A tensor of random bits."""
    assert BITS[dtype] * math.prod(shape) % 8 == 0
    return Tensor(name, noise(seed, byte_count(dtype, shape)), dtype, shape)


def open_store(root: Path, *, threads: int | None = 2) -> ChunkStore:
    """The store below a folder, as another process would open it."""
    return ChunkStore(Folder(root / "packs", temporary=root / "tmp"), root / "lock", threads=threads)


def write(store: ChunkStore, *tensors: Tensor, parent: Parent | None = None) -> list[TensorRecord]:
    """Store tensors and seal."""
    with store.writer() as writer:
        records = writer.write_tensors(tensors, parent=parent)
        writer.seal()
    return records


def read(store: ChunkStore, record: TensorRecord) -> bytes:
    """A tensor's bytes, both ways."""
    out = bytearray(record.nbytes)
    store.read_into(record, memoryview(out))
    assert b"".join(map(bytes, store.stream([record]))) == bytes(out)
    return bytes(out)


def packs_of(root: Path) -> list[str]:
    """The files that hold packs and indexes."""
    return sorted(os.listdir(root / "packs")) if (root / "packs").is_dir() else []


def stored_chunks(store: ChunkStore) -> list[bytes]:
    """The id of every record, repeated when it is stored twice."""
    store.packs.refresh()
    return sorted(chunk for pack in store.packs.packs for chunk, _ in pack.index.items())


def damage(root: Path, data: bytes) -> None:
    """Flip a bit in the payload of a chunk, in every pack that holds it."""
    store = open_store(root)
    copies = store.packs.copies(chunk_id(data))
    assert copies
    for pack, entry in copies:
        path = root / "packs" / f"{pack.name}.pack"
        path.chmod(0o644)
        with path.open("r+b") as file:
            file.seek(entry.offset + 64 + entry.stored_length // 2)
            byte = file.read(1)[0]
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes([byte ^ 4]))


def lose(root: Path, data: bytes) -> None:
    """Remove the pack that holds a chunk."""
    ((pack, _),) = open_store(root).packs.copies(chunk_id(data))
    for suffix in (".idx", ".pack"):
        (root / "packs" / f"{pack.name}{suffix}").unlink()
