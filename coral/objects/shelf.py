"""Single chunks, found, read and verified, wherever their packs are; and the folder in which they can be kept."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple

from coral.errors import CorruptionError
from coral.format import codecs
from coral.format.chunking import CHUNK_LIMIT, chunk_count, spans
from coral.format.dtypes import item_bytes
from coral.format.pack import KIND_LIST, MAX_DEPTH, Entry
from coral.ids import ID_BYTES, ChunkId, ContentRef, chunk_id, list_id
from coral.objects.packs import PackSet
from coral.objects.scratch import Scratch
from coral.objects.trash import Trash
from coral.objects.workers import Workers
from coral.storage.folder import Folder
from coral.storage.gate import ALONE_SECONDS, Gate
from coral.storage.locks import file_lock

if TYPE_CHECKING:
    from pathlib import Path

    from coral.format.manifest import TensorRecord

_LARGEST_ARRAY = (1 << 63) - 1
# Writers stop at MAX_DEPTH, but two that did not know of each other may have put theirs on top of one another.
_DEEPEST = 4 * MAX_DEPTH


class _Attempt(NamedTuple):
    """One attempt at reading a chunk.

    Attributes:
        verifies_bases: the bytes of each base are compared with its id, not those of the chunk alone.
        failed: what could not be read, and at which level. Where several packs hold each of a row of bases, all ways
            to combine them would be too many to try.
    """

    verifies_bases: bool
    failed: set[tuple[ChunkId, int]]


class Shelf(Workers):
    """Chunks that can be read.

    Args:
        packs: where they are.
        threads: workers for hashing, encoding and decoding; None takes every core.
    """

    def __init__(self, packs: PackSet, *, threads: int | None = None) -> None:
        super().__init__(threads)
        self.packs = packs
        # One for each level of a delta and its bases, all of which are read at once.
        self._records = [Scratch() for _ in range(_DEEPEST + 1)]
        self._bases = [Scratch() for _ in range(_DEEPEST + 1)]

    def kept(self) -> contextlib.AbstractContextManager[None]:
        """Keep what is here from being collected while it is read, as far as whoever keeps it knows of readers."""
        return contextlib.nullcontext()

    def check(self, record: TensorRecord) -> None:
        """See that the store holds what makes up such a tensor, without reading it: to be called before allocating.

        A manifest may be hostile. The memory to allocate for a record that passes is bounded by what is stored.

        Raises:
            CorruptionError: a shape that no tensor can have, or one that the chunks do not fit; a chunk is missing.
        """
        refuse_absurd(record)
        if record.content.startswith("hex:"):
            inline_bytes(record)
            return
        for chunk, (start, stop) in zip(self.chunk_ids(record), spans(record.dtype, record.shape), strict=True):
            _, entry = self.packs.locate(chunk, nbytes=stop - start)
            if entry.codec in codecs.WITH_BASE:
                self.bases_of(chunk)

    def chunk_ids(self, record: TensorRecord) -> list[ChunkId]:
        """The ids of a tensor's chunks, in order; none for one that stands inline in the manifest."""
        if record.content.startswith("hex:"):
            return []
        found = self.chunks_in(record.content)
        if len(found) != chunk_count(record.dtype, record.shape):
            raise CorruptionError(f"the tensor {record.name} of shape {list(record.shape)} lists {len(found)} chunks")
        return found

    def chunks_in(self, content: ContentRef) -> list[ChunkId]:
        """The ids of the chunks that a reference names, whatever the tensor is. Raises CorruptionError."""
        kind, _, text = content.partition(":")
        if kind == "hex":
            return []
        ident = ChunkId(bytes.fromhex(text))
        data = ident if kind == "b3" else self.read_list(ident)
        return [ChunkId(data[at : at + ID_BYTES]) for at in range(0, len(data), ID_BYTES)]

    def is_delta(self, chunk: ChunkId) -> bool:
        """Whether a chunk can only be read with the help of another one. Raises CorruptionError when it is missing."""
        return self.packs.locate(chunk)[1].codec in codecs.WITH_BASE

    def read_chunk(self, chunk: ChunkId, out: memoryview) -> None:
        """Fill ``out`` with one chunk, verified. Raises CorruptionError."""
        try:
            self._decode(chunk, out, 0, _Attempt(verifies_bases=False, failed=set()))
        except CorruptionError:
            # Once more, looking at every chunk on the way: the one that is damaged may lie in another pack as well.
            self._decode(chunk, out, 0, _Attempt(verifies_bases=True, failed=set()))

    def _decode(self, chunk: ChunkId, out: memoryview, level: int, attempt: _Attempt) -> None:
        if level > _DEEPEST or (chunk, level) in attempt.failed:
            raise CorruptionError(
                f"the chunk {chunk.hex()} lies under more than {_DEEPEST} others, or under one that is damaged",
                hint="run coral fsck",
            )

        def read_base(base: ChunkId, into: memoryview) -> memoryview:
            length = self.length_of(base)
            whole = into if length == len(into) else self._bases[level].take(length)
            self._decode(base, whole, level + 1, attempt)
            if length != len(into):
                fit(whole, into)
            return into

        def decode(entry: Entry, payload: memoryview) -> None:
            codecs.decode_into(entry.codec, entry.item, payload, out, read_base)
            if (level == 0 or attempt.verifies_bases) and chunk_id(out) != chunk:
                raise CorruptionError(f"the chunk {chunk.hex()} decodes to other bytes", hint="run coral fsck")

        try:
            self.packs.read(chunk, self._records[level], decode, nbytes=len(out))
        except CorruptionError:
            attempt.failed.add((chunk, level))
            raise

    def length_of(self, chunk: ChunkId) -> int:
        """Bytes of a chunk, never more than a chunk may have. Raises CorruptionError."""
        length = self.packs.locate(chunk)[1].raw_length
        if length > CHUNK_LIMIT:
            raise CorruptionError(f"the chunk {chunk.hex()} has {length} bytes, not {CHUNK_LIMIT} at most")
        return length

    def bases_of(self, chunk: ChunkId) -> list[ChunkId]:
        """The chunks that must be decoded before this one, nearest first; the last of them stands alone.

        Raises:
            CorruptionError: one of them is missing or damaged, or there is no end to them.
        """
        bases: list[ChunkId] = []
        while (base := self.packs.base_of(bases[-1] if bases else chunk)) is not None:
            if len(bases) == _DEEPEST:
                raise CorruptionError(f"the chunk {chunk.hex()} is a delta of more than {_DEEPEST} others in a row")
            bases.append(base)
        return bases

    def read_list(self, ident: ChunkId) -> bytes:
        """The ids that a chunk list names, one after the other. Raises CorruptionError."""

        def copy(entry: Entry, payload: memoryview) -> bytes:
            data = bytes(payload)
            if len(data) % ID_BYTES or list_id(data) != ident:
                raise CorruptionError(f"the chunk list {ident.hex()} is damaged", hint="run coral fsck")
            return data

        return self.packs.read(ident, self._records[0], copy, kind=KIND_LIST)


class LocalShelf(Shelf):
    """Chunks in a folder of this machine, which can be kept from being collected, and written to.

    Args:
        folder: where the packs are.
        lock: flock file: writers share it, garbage collection excludes them.
        threads: as of any shelf.
        verify_writes: decode each encoded chunk and compare before it counts.
    """

    def __init__(self, folder: Folder, lock: Path, *, threads: int | None = None, verify_writes: bool = True) -> None:
        super().__init__(PackSet(folder), threads=threads)
        self.folder = folder
        self.lock = lock
        self.verify_writes = verify_writes
        self.trash = Trash(Folder(folder.root.parent))
        self._gate = Gate(lock)

    @property
    def turn_lock(self) -> Path:
        """Held by who merges packs, repairs or collects, one at a time; by no one who only writes."""
        return self.lock.with_name("consolidate")

    @property
    def trash_lock(self) -> Path:
        """Held by who takes something back out of the trash."""
        return self.lock.with_name("trash")

    def kept(self) -> contextlib.AbstractContextManager[None]:
        """As of any shelf: no collection takes place meanwhile."""
        return file_lock(self.lock, shared=True)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Keep garbage collection away: to be held from the first look at what is there until something names it.

        Raises:
            LockedError: a collection takes too long.
        """
        with self._gate.shared():
            # Only now: what was seen before may have been collected since.
            self.packs.refresh()
            self.trash.refresh()
            yield

    @contextlib.contextmanager
    def alone(self, *, timeout: float = ALONE_SECONDS) -> Iterator[None]:
        """Have nobody write, or rely on what is here. Raises LockedError."""
        with self._gate.alone(timeout=timeout):
            self.packs.refresh()
            self.trash.refresh()
            yield

    def take_back(self, chunks: Iterable[ChunkId]) -> int:
        """Take chunks out of the trash that lie only there; returns how many packs came back. The store must be held.

        Raises:
            StorageError: the disk refused.
        """
        if self.trash.is_empty:
            return 0
        wanted = [chunk for chunk in chunks if chunk not in self.packs and self.trash.holds(chunk)]
        if not wanted:
            return 0
        with file_lock(self.trash_lock):
            # Another process may have taken them out meanwhile.
            self.packs.refresh()
            self.trash.refresh()
            return self.trash.take_back(wanted, self.packs)


def fit(base: memoryview, out: memoryview) -> None:
    """Fill ``out`` with a base's bytes, cut or followed by zeros."""
    length = min(len(base), len(out))
    out[:length] = base[:length]
    out[length:] = bytes(len(out) - length)


def refuse_absurd(record: TensorRecord) -> None:
    """Raise CorruptionError for a shape that no array can have, as numpy counts: sizes of zero left aside."""
    if math.prod(size or 1 for size in record.shape) * item_bytes(record.dtype) > _LARGEST_ARRAY:
        raise CorruptionError(f"the tensor {record.name} has the shape {list(record.shape)}, which no tensor can have")


def inline_bytes(record: TensorRecord) -> bytes:
    """The bytes of a tensor that stands inline in the manifest. Raises CorruptionError when it has the wrong size."""
    data = bytes.fromhex(record.content.removeprefix("hex:"))
    if len(data) != record.nbytes:
        raise CorruptionError(f"the tensor {record.name} holds {len(data)} bytes, not {record.nbytes}")
    return data
