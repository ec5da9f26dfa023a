"""Writing tensors into the store: hash, look up, encode, verify and append, on all cores and in bounded memory.

The way of a tensor: it is cut on the chunk grid; workers fingerprint each chunk (XXH3, to recognise what this process
stored before), copy and hash it (BLAKE3), drop it when the store has it, else encode it, decode and compare, and append
it to the open pack. :meth:`StoreWriter.seal` makes the pack durable, then its index; before that no reader sees any
of it.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from typing import TYPE_CHECKING, NamedTuple

from coral.errors import CorruptionError, StorageError, UnsupportedValueError
from coral.format import codecs
from coral.format.chunking import spans
from coral.format.dtypes import byte_count, item_bytes
from coral.format.index import build as build_index
from coral.format.manifest import TensorRecord
from coral.format.pack import KIND_CHUNK, KIND_LIST, MAGIC, MAX_RECORD_BYTES, Entry, pack_header
from coral.ids import (
    ID_BYTES,
    INLINE_LIMIT,
    ChunkId,
    ContentRef,
    checksum,
    chunk_id,
    fingerprint,
    inline_ref,
    list_id,
    list_ref,
    single_ref,
)
from coral.objects.packs import INDEX, PACK
from coral.objects.scratch import Scratch
from coral.storage.locks import file_lock

if TYPE_CHECKING:
    from coral.objects.source import TensorSource
    from coral.objects.store import ChunkStore
    from coral.storage.folder import NewFile

_BATCH_BYTES = 1 << 20
_BATCH_CHUNKS = 128
_UNKNOWN = (b"", ChunkId(b""))
_CLAIMED = Entry(0, 0, 0, 0, 0, 0, 0)

Progress = Callable[[int], None]
"""Called with the number of raw bytes just dealt with."""


class _Piece(NamedTuple):
    """One chunk of one tensor, on its way into the store."""

    tensor: int
    number: int
    source: TensorSource
    start: int
    stop: int


class _Done(NamedTuple):
    tensor: int
    number: int
    mark: bytes
    chunk: ChunkId


class Fingerprints:
    """What this process stored last under each name, so that unchanged chunks are known at memory speed.

    Never written to disk; a fingerprint is no identity, it only vouches for "unchanged since this process hashed it".
    """

    def __init__(self) -> None:
        self._seen: dict[str, tuple[str, tuple[int, ...], list[tuple[bytes, ChunkId]]]] = {}

    def recall(self, source: TensorSource) -> list[tuple[bytes, ChunkId]]:
        """The (fingerprint, id) of each chunk when this tensor was last stored; empty when it was not."""
        dtype, shape, marks = self._seen.get(source.name, ("", (), []))
        return marks if (dtype, shape) == (source.dtype, source.shape) else []

    def keep(self, source: TensorSource, marks: list[tuple[bytes, ChunkId]]) -> None:
        self._seen[source.name] = (source.dtype, source.shape, marks)


class TensorHasher:
    """Turns tensors into records without storing them; :class:`StoreWriter` adds the storing."""

    def __init__(self, store: ChunkStore) -> None:
        self._store = store
        self._copies = Scratch()

    def write_tensors(
        self,
        sources: Iterable[TensorSource],
        *,
        fingerprints: Fingerprints | None = None,
        progress: Progress | None = None,
    ) -> list[TensorRecord]:
        """Take in tensors, in bounded memory; returns their records in the order given."""
        known = fingerprints or Fingerprints()
        taken: list[TensorSource] = []
        marks: list[list[tuple[bytes, ChunkId]]] = []
        for done in self._in_parallel(_batches(_pieces(sources, taken, marks)), known, progress):
            marks[done.tensor][done.number] = (done.mark, done.chunk)
        records = []
        for source, chunks in zip(taken, marks, strict=True):
            if chunks:
                known.keep(source, chunks)
            records.append(TensorRecord(source.name, source.dtype, source.shape, self._reference(source, chunks)))
        return records

    def _in_parallel(
        self, batches: Iterable[list[_Piece]], known: Fingerprints, progress: Progress | None
    ) -> Iterator[_Done]:
        pending: deque[tuple[int, Future[list[_Done]]]] = deque()
        try:
            for batch in batches:
                size = sum(piece.stop - piece.start for piece in batch)
                pending.append((size, self._store.pool.submit(self._take_batch, batch, known)))
                if len(pending) >= self._store.window:
                    yield from self._collect(pending, progress)
            while pending:
                yield from self._collect(pending, progress)
        finally:
            # After an error no worker may still be reading the caller's memory or writing into the pack.
            for _, job in pending:
                job.cancel()
            for _, job in pending:
                if not job.cancelled():
                    job.exception()

    def _collect(self, pending: deque[tuple[int, Future[list[_Done]]]], progress: Progress | None) -> list[_Done]:
        size, job = pending[0]
        done = job.result()
        pending.popleft()
        if progress is not None:
            progress(size)
        return done

    def _take_batch(self, batch: list[_Piece], known: Fingerprints) -> list[_Done]:
        return [self._take_piece(piece, known) for piece in batch]

    def _take_piece(self, piece: _Piece, known: Fingerprints) -> _Done:
        live = memoryview(piece.source.read(piece.start, piece.stop)).cast("B")
        remembered = known.recall(piece.source)
        if piece.number < len(remembered):
            mark, chunk = remembered[piece.number]
            if mark == fingerprint(live) and self._has(chunk):
                return _Done(piece.tensor, piece.number, mark, chunk)
        # The caller's memory may change while it is being stored: id, mark and payload are all made from one copy.
        data = self._copies.take(len(live))
        data[:] = live
        chunk = chunk_id(data)
        self._take_chunk(chunk, data, item_bytes(piece.source.dtype))
        return _Done(piece.tensor, piece.number, fingerprint(data), chunk)

    def _has(self, chunk: ChunkId) -> bool:
        """Whether the chunk need not be taken again."""
        return True

    def _reference(self, source: TensorSource, chunks: list[tuple[bytes, ChunkId]]) -> ContentRef:
        if not chunks:
            return inline_ref(source.read(0, _nbytes(source)))
        if len(chunks) == 1:
            return single_ref(chunks[0][1])
        data = b"".join(chunk for _, chunk in chunks)
        ident = list_id(data)
        self._take_list(ident, data)
        return list_ref(ident)

    def _take_chunk(self, chunk: ChunkId, data: memoryview, item: int) -> None:
        """Nothing to keep: only the ids are wanted."""

    def _take_list(self, ident: ChunkId, data: bytes) -> None:
        """Nothing to keep: only the ids are wanted."""


class StoreWriter(TensorHasher):
    """Writes tensors into packs of its own. Use as a context manager: what is not sealed is thrown away.

    While it lives it holds the store's lock, shared, so that garbage collection cannot take what it relies on.
    """

    def __init__(self, store: ChunkStore) -> None:
        super().__init__(store)
        self._lock = threading.Lock()
        self._holding = contextlib.ExitStack()
        self._holding.enter_context(file_lock(store.lock, shared=True))
        self._pack: NewFile | None = None
        self._entries: dict[ChunkId, Entry] = {}
        self._decoded = Scratch()

    def seal(self) -> None:
        """Make all that was written durable and visible: the pack first, then its index. Raises StorageError."""
        pack, self._pack = self._pack, None
        entries, self._entries = self._entries, {}
        with self._holding:
            if pack is not None:
                publish_pack(self._store, pack, entries)

    def discard(self) -> None:
        """Throw away what was not sealed; harmless afterwards."""
        pack, self._pack = self._pack, None
        self._entries = {}
        if pack is not None:
            pack.discard()
        self._holding.close()

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.discard()

    def write_tensors(
        self,
        sources: Iterable[TensorSource],
        *,
        fingerprints: Fingerprints | None = None,
        progress: Progress | None = None,
    ) -> list[TensorRecord]:
        """Store tensors, in bounded memory; a call that fails leaves the writer as it was before it.

        Raises:
            StorageError: the disk refused.
            CorruptionError: an encoded chunk did not decode to what it was.
        """
        size, count = self._pack.size if self._pack else 0, len(self._entries)
        try:
            return super().write_tensors(sources, fingerprints=fingerprints, progress=progress)
        except BaseException:
            self._roll_back(size, count)
            raise

    def _roll_back(self, size: int, count: int) -> None:
        for chunk in list(self._entries)[count:]:
            del self._entries[chunk]
        if self._pack is not None and size:
            self._pack.truncate(size)
        elif self._pack is not None:
            self._pack.discard()
            self._pack = None

    def _take_chunk(self, chunk: ChunkId, data: memoryview, item: int) -> None:
        if not self._claim(chunk):
            return
        codec, payload = codecs.encode(data, item)
        if self._store.verify_writes and codec != codecs.RAW:
            self._verify(chunk, payload, Entry(0, len(payload), len(data), KIND_CHUNK, codec, 0, item))
        self._append(chunk, payload, Entry(0, len(payload), len(data), KIND_CHUNK, codec, 0, item))

    def _take_list(self, ident: ChunkId, data: bytes) -> None:
        if len(data) > MAX_RECORD_BYTES:
            raise UnsupportedValueError(f"a tensor of {len(data) // ID_BYTES} chunks is too large")
        if self._claim(ident):
            self._append(ident, memoryview(data), Entry(0, len(data), len(data), KIND_LIST, codecs.RAW, 0, 1))

    def _has(self, chunk: ChunkId) -> bool:
        return chunk in self._entries or self._store.packs.find(chunk) is not None

    def _claim(self, chunk: ChunkId) -> bool:
        """Whether this thread is to write the chunk: the store lacks it, and no other thread is at it."""
        if self._has(chunk):
            return False
        with self._lock:
            if chunk in self._entries:
                return False
            self._entries[chunk] = _CLAIMED
            return True

    def _verify(self, chunk: ChunkId, payload: memoryview, entry: Entry) -> None:
        out = self._decoded.take(entry.raw_length)
        codecs.decode_into(entry.codec, entry.item, payload, out)
        if chunk_id(out) != chunk:
            raise CorruptionError(
                f"the chunk {chunk.hex()} did not decode to what was encoded, so it was not stored",
                hint="this machine's memory may be faulty; nothing of this call was stored",
            )

    def _append(self, chunk: ChunkId, payload: memoryview, entry: Entry) -> None:
        offset = self._open_pack().write_at([pack_header(chunk, entry, checksum(payload)), payload])
        self._entries[chunk] = entry._replace(offset=offset)

    def _open_pack(self) -> NewFile:
        with self._lock:
            if self._pack is None:
                self._pack = self._store.folder.new_file("pack" + PACK)
                self._pack.write(MAGIC)
            return self._pack


def publish_pack(store: ChunkStore, pack: NewFile, entries: dict[ChunkId, Entry]) -> None:
    """Give a written pack its name, durably, and then its index; only then do readers see it."""
    name = store.packs.new_name()
    index = build_index(entries.items())
    pack.publish(name + PACK, mode=0o444)
    try:
        store.folder.write(name + INDEX, index)
    except BaseException:
        # Without its index nobody has seen the pack; with it, another process may rely on it already.
        if not store.folder.exists(name + INDEX):
            with contextlib.suppress(StorageError):
                store.folder.remove(name + PACK)
        raise
    store.packs.refresh()


def _pieces(
    sources: Iterable[TensorSource], taken: list[TensorSource], marks: list[list[tuple[bytes, ChunkId]]]
) -> Iterator[_Piece]:
    """Every chunk of every tensor that does not stand inline; notes the tensors as they come."""
    for tensor, source in enumerate(sources):
        taken.append(source)
        ranges = list(spans(source.dtype, source.shape)) if _nbytes(source) > INLINE_LIMIT else []
        marks.append([_UNKNOWN] * len(ranges))
        for number, (start, stop) in enumerate(ranges):
            yield _Piece(tensor, number, source, start, stop)


def _nbytes(source: TensorSource) -> int:
    return byte_count(source.dtype, source.shape)


def _batches(pieces: Iterable[_Piece]) -> Iterator[list[_Piece]]:
    """Pieces in groups of about a chunk, so that small tensors share the cost of handing work to a thread."""
    batch: list[_Piece] = []
    size = 0
    for piece in pieces:
        batch.append(piece)
        size += piece.stop - piece.start
        if size >= _BATCH_BYTES or len(batch) >= _BATCH_CHUNKS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
