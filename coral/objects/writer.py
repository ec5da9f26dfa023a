"""Writing tensors into the store: hash, look up, encode, verify and append, on all cores and in bounded memory.

The way of a tensor: it is cut on the chunk grid; workers fingerprint each chunk (XXH3) and leave those that this
process stored before. They copy and hash the others (BLAKE3), drop what the store has, else encode it, against the
chunk that stood in its place where that is known, decode and compare, and append it to the open pack.
:meth:`StoreWriter.seal` makes the pack durable, then its index; before that no reader sees any of it.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from typing import TYPE_CHECKING, NamedTuple, Self, TypeVar

from coral.errors import CorruptionError, NotFoundError, StorageError, UnsupportedValueError
from coral.format import codecs
from coral.format.chunking import cuts
from coral.format.codecs.kernel import kernel
from coral.format.dtypes import byte_count, item_bytes
from coral.format.index import build as build_index
from coral.format.manifest import TensorRecord
from coral.format.pack import KIND_CHUNK, KIND_LIST, MAGIC, MAX_DEPTH, MAX_RECORD_BYTES, Entry, pack_header
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
from coral.objects.jobs import batched, done, in_order
from coral.objects.packs import INDEX, PACK
from coral.objects.parent import UNKNOWN, Mark, Parent
from coral.objects.scratch import Scratch
from coral.objects.shelf import fit

if TYPE_CHECKING:
    from coral.format.tensors import TensorSource
    from coral.objects.packs import Pack
    from coral.objects.parent import Copy, TensorParent
    from coral.objects.shelf import LocalShelf
    from coral.storage.files import NewFile, Position

T = TypeVar("T")
_BATCH_BYTES = 4 << 20
_SMALL = 16384
_WORTH_A_WORKER = 1 << 20
_YOUNG_SECONDS = 60 * 60.0
_CLAIMED = Entry(0, 0, 0, 0, 0, 0, 0)

Progress = Callable[[int], None]
"""Called with the number of raw bytes just dealt with."""


class _Taken(NamedTuple):
    """A tensor being taken in, and the marks of its chunks as they come to be known."""

    source: TensorSource
    marks: list[Mark]


class _Piece(NamedTuple):
    """One chunk of one tensor, on its way into the store; its bytes may change meanwhile.

    Attributes:
        marks: of the tensor's chunks, to be filled in at ``number``.
        live: the bytes.
        item: bytes of one element.
        parent: the tensor as it was last stored.
        copy: where to keep the bytes for the next time.
    """

    marks: list[Mark]
    number: int
    live: memoryview
    item: int
    parent: TensorParent
    copy: Copy | None


class _Delta(NamedTuple):
    """What a chunk may be encoded against, and how deep that would put it."""

    base: codecs.Base
    depth: int


class _Record(NamedTuple):
    """A record that is not written yet."""

    chunk: ChunkId
    entry: Entry
    data: bytes


class _Small(threading.local):
    """Of each thread the small records of its batch."""

    def __init__(self) -> None:
        self.records: list[_Record] = []


class TensorHasher:
    """Turns tensors into records without storing them; :class:`StoreWriter` adds the storing."""

    def __init__(self, store: LocalShelf) -> None:
        self._store = store
        self._copies = Scratch()

    def write_tensors(
        self,
        sources: Iterable[TensorSource],
        *,
        parent: Parent | None = None,
        progress: Progress | None = None,
    ) -> list[TensorRecord]:
        """Take in tensors, in bounded memory; returns their records in the order given.

        Args:
            parent: these tensors as they were last stored; from now on, as they are now.
        """
        known = parent or Parent()
        taken: list[_Taken] = []
        batches = batched(self._pieces(sources, taken, known), lambda piece: len(piece.live), _BATCH_BYTES)
        self._finish((self._hand_over(batch) for batch in batches), progress)
        records = []
        for source, marks in taken:
            if marks:
                known.keep(source, marks)
            records.append(TensorRecord(source.name, source.dtype, source.shape, self._reference(source, marks)))
        return records

    def _pieces(self, sources: Iterable[TensorSource], taken: list[_Taken], known: Parent) -> Iterator[_Piece]:
        for source in sources:
            nbytes = _nbytes(source)
            if nbytes <= INLINE_LIMIT:
                taken.append(_Taken(source, []))
                continue
            ranges, tensor, item = cuts(source.dtype, source.shape), known.recall(source), item_bytes(source.dtype)
            copy = known.copy_for(source, nbytes)
            marks = [UNKNOWN] * len(ranges)
            taken.append(_Taken(source, marks))
            for number, (start, stop) in enumerate(ranges):
                yield _Piece(marks, number, memoryview(source.read(start, stop)).cast("B"), item, tensor, copy)

    def _finish(self, started: Iterable[Future[int]], progress: Progress | None) -> None:
        # After an error no worker may still be reading the caller's memory or writing into the pack.
        with contextlib.closing(in_order(started, self._store.window)) as finished:
            for nbytes in finished:
                if progress is not None:
                    progress(nbytes)

    def _hand_over(self, batch: list[_Piece]) -> Future[int]:
        """Have a worker take the pieces; this thread where they are small, and it is all Python anyway."""
        worth_it = sum(len(piece.live) for piece in batch) >= _WORTH_A_WORKER
        return self._store.submit(self._take_batch, batch) if worth_it else done(self._take_batch, batch)

    def _take_batch(self, batch: list[_Piece]) -> int:
        may_be_same = True
        for piece in batch:
            may_be_same = self._take(piece, may_be_same)
        return sum(len(piece.live) for piece in batch)

    def _take(self, piece: _Piece, may_be_same: bool) -> bool:
        """Take in a piece, unless it is unchanged, which is what it returns.

        Args:
            may_be_same: where it likely changed it is copied at once, so that it need not be looked at twice.
        """
        before = piece.parent.mark(piece.number)
        if may_be_same and before.fingerprint and self._is(before, fingerprint(piece.live)):
            piece.marks[piece.number] = before
            return True
        # The caller's memory may change while it is being stored: id, mark and payload are made from one copy.
        data = self._copies.copy(piece.live)
        found = fingerprint(data)
        if self._is(before, found):
            piece.marks[piece.number] = before
            return True
        chunk = chunk_id(data)
        self._take_chunk(chunk, data, piece)
        piece.marks[piece.number] = Mark(found, chunk)
        if piece.copy is not None:
            piece.copy.put(piece.number, chunk, data)
        return False

    def _is(self, before: Mark, found: bytes) -> bool:
        """Whether bytes of this fingerprint are those that stood there before, and need not be taken again."""
        return before.fingerprint == found and self._has(before.chunk)

    def _has(self, chunk: ChunkId) -> bool:
        """Whether the chunk need not be taken again."""
        return True

    def _reference(self, source: TensorSource, marks: list[Mark]) -> ContentRef:
        if not marks:
            return inline_ref(source.read(0, _nbytes(source)))
        if len(marks) == 1:
            return single_ref(marks[0].chunk)
        data = b"".join(mark.chunk for mark in marks)
        ident = list_id(data)
        self._take_list(ident, data)
        return list_ref(ident)

    def _take_chunk(self, chunk: ChunkId, data: memoryview, piece: _Piece) -> None:
        """Nothing to keep: only the ids are wanted."""

    def _take_list(self, ident: ChunkId, data: bytes) -> None:
        """Nothing to keep: only the ids are wanted."""


class StoreWriter(TensorHasher):
    """Writes tensors into packs of its own. Use as a context manager: what is not sealed is thrown away.

    While it lives it holds the store, so that garbage collection cannot take what it relies on; what it found in the
    trash it takes back out.

    Args:
        keeps_young: see :meth:`ChunkStore.writer`.
    """

    def __init__(self, store: LocalShelf, *, keeps_young: bool = False) -> None:
        super().__init__(store)
        self._lock = threading.Lock()
        self._holding = contextlib.ExitStack()
        self._holding.enter_context(store.held())
        self._keeps_young = keeps_young
        self._relied_on: set[Pack] = set()
        self._pack: NewFile | None = None
        self._entries: dict[ChunkId, Entry] = {}
        self._bases: dict[ChunkId, ChunkId] = {}
        self._decoded = Scratch()
        self._base = Scratch()
        self._fitted = Scratch()
        self._small = _Small()

    def seal(self) -> int:
        """Make all that was written durable and visible, the pack first, then its index; returns the pack's bytes.

        Raises:
            StorageError: the disk refused; nothing of it counts.
        """
        with self._holding:
            self._keep_young()
            return self._publish()

    def _publish(self) -> int:
        """Make what was written so far durable and visible; what comes next goes into a pack of its own."""
        pack, self._pack = self._pack, None
        entries, self._entries = self._entries, {}
        if pack is None:
            # What was found instead of written may be in a pack that another process has only just renamed.
            self._store.folder.sync_names()
            return 0
        publish_pack(self._store, pack, entries)
        return pack.size

    def discard(self) -> None:
        """Throw away what was not sealed; harmless afterwards."""
        pack, self._pack = self._pack, None
        self._entries = {}
        if pack is not None:
            pack.discard()
        self._holding.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.discard()

    def write_tensors(
        self,
        sources: Iterable[TensorSource],
        *,
        parent: Parent | None = None,
        progress: Progress | None = None,
    ) -> list[TensorRecord]:
        """Store tensors, in bounded memory; a call that fails leaves the writer as it was before it.

        Raises:
            StorageError: the disk refused.
            CorruptionError: an encoded chunk did not decode to what it was.
        """
        mark, count = self._pack.mark() if self._pack else None, len(self._entries)
        try:
            records = super().write_tensors(sources, parent=parent, progress=progress)
            if self._pack is not None:
                self._pack.settle()
        except BaseException:
            self._roll_back(mark, count)
            raise
        return records

    def _roll_back(self, mark: Position | None, count: int) -> None:
        for chunk in list(self._entries)[count:]:
            del self._entries[chunk]
            self._bases.pop(chunk, None)
        if self._pack is not None and mark is not None:
            self._pack.go_back(mark)
        elif self._pack is not None:
            self._pack.discard()
            self._pack = None

    def _take_chunk(self, chunk: ChunkId, data: memoryview, piece: _Piece) -> None:
        if not self._claim(chunk):
            return
        self._encode(chunk, data, piece.item, self._delta_for(chunk, piece, len(data)))

    def _encode(self, chunk: ChunkId, data: memoryview, item: int, delta: _Delta | None) -> None:
        codec, payload = codecs.encode(data, item, delta.base if delta is not None else None)
        depth = delta.depth if delta is not None and codec in codecs.WITH_BASE else 0
        entry = Entry(0, len(payload), len(data), KIND_CHUNK, codec, depth, item)
        if self._store.verify_writes and codec != codecs.RAW:
            self._verify(chunk, data, payload, entry, delta)
        if depth and delta is not None:
            self._bases[chunk] = delta.base.chunk
        self._append(chunk, payload, entry)

    def write_alone(self, chunks: Iterable[ChunkId], progress: Progress | None = None) -> None:
        """Write chunks that the store holds as deltas once more, each so that it can be read without any other.

        Raises:
            CorruptionError: a chunk cannot be read.
            StorageError: the disk refused.
        """
        self._finish(
            (self._store.submit(self._write_alone, chunk) for chunk in filter(self._claim_again, chunks)), progress
        )

    def _claim_again(self, chunk: ChunkId) -> bool:
        """Whether this writer has yet to write a chunk that the store holds."""
        if chunk in self._entries:
            return False
        self._entries[chunk] = _CLAIMED
        return True

    def _write_alone(self, chunk: ChunkId) -> int:
        entry = self._store.packs.locate(chunk)[1]
        data = self._copies.take(self._store.length_of(chunk))
        self._store.read_chunk(chunk, data)
        self._encode(chunk, data, entry.item, None)
        self._write_small()
        return len(data)

    def _delta_for(self, chunk: ChunkId, piece: _Piece, length: int) -> _Delta | None:
        """The chunk that stood in this one's place, or what that one's own deltas began from when they are too many."""
        before = piece.parent.mark(piece.number).chunk
        if not before or length < codecs.LEAST_DELTA_BYTES:
            return None
        try:
            # What is damaged is nothing to build on; and of a chunk still being written the bases are not known.
            if not self._is_sound(before):
                return None
            below = self._bases_of(before)
            # Two chunks that need each other would both be lost.
            if chunk in below or not all(map(self._is_sound, below)):
                return None
            base, depth = (before, len(below) + 1) if len(below) < MAX_DEPTH else (below[-1], 1)
            data = piece.parent.held(piece.number, base)
            if data is None:
                data = self._base.take(self._store.length_of(base))
                self._store.read_chunk(base, data)
        except (CorruptionError, StorageError):
            return None  # it cannot be read, and the chunk can stand alone
        if len(data) != length:
            whole, data = data, self._fitted.take(length)
            fit(whole, data)
        return _Delta(codecs.Base(base, data), depth)

    def _bases_of(self, chunk: ChunkId) -> list[ChunkId]:
        """As :meth:`Shelf.bases_of`, of chunks that may not be sealed yet."""
        bases: list[ChunkId] = []
        while chunk in self._bases:
            chunk = self._bases[chunk]
            bases.append(chunk)
        return bases if chunk in self._entries else bases + self._store.bases_of(chunk)

    def _is_sound(self, chunk: ChunkId) -> bool:
        return self._entries[chunk] != _CLAIMED if chunk in self._entries else chunk in self._store.packs

    def _take_list(self, ident: ChunkId, data: bytes) -> None:
        if len(data) > MAX_RECORD_BYTES:
            raise UnsupportedValueError(f"a tensor of {len(data) // ID_BYTES} chunks is too large")
        if self._claim(ident):
            self._append(ident, memoryview(data), Entry(0, len(data), len(data), KIND_LIST, codecs.RAW, 0, 1))
            self._write_small()

    def _has(self, chunk: ChunkId) -> bool:
        return chunk in self._entries or chunk in self._store.packs

    def _claim(self, chunk: ChunkId) -> bool:
        """Whether this thread is to write the chunk: the store lacks it, and no other thread is at it."""
        if self._has(chunk) or self._store.take_back([chunk]):
            self._rely_on(chunk)
            return False
        with self._lock:
            if chunk in self._entries:
                return False
            self._entries[chunk] = _CLAIMED
            return True

    def _rely_on(self, chunk: ChunkId) -> None:
        if self._keeps_young and chunk not in self._entries:
            found = self._store.packs.find(chunk)
            if found is not None:
                self._relied_on.add(found[0])

    def _keep_young(self) -> None:
        """Keep what was found in old packs from being collected before somebody names it."""
        relied_on, self._relied_on = self._relied_on, set()
        for pack in relied_on:
            # It may have been merged into a newer one, or be a colleague's, who alone may mark it.
            with contextlib.suppress(NotFoundError, StorageError):
                if time.time() - pack.modified > _YOUNG_SECONDS:
                    self._store.folder.mark_changed(pack.name + PACK)

    def _verify(
        self, chunk: ChunkId, data: memoryview, payload: memoryview, entry: Entry, delta: _Delta | None
    ) -> None:
        def read_base(_: ChunkId, into: memoryview) -> memoryview:
            assert delta is not None
            return delta.base.data

        out = self._decoded.take(entry.raw_length)
        codecs.decode_into(entry.codec, entry.item, payload, out, read_base)
        if not kernel.same(out, data):
            raise CorruptionError(
                f"the chunk {chunk.hex()} did not decode to what was encoded, so it was not stored",
                hint="this machine's memory may be faulty; nothing of this call was stored",
            )

    def _append(self, chunk: ChunkId, payload: memoryview, entry: Entry) -> None:
        header = pack_header(chunk, entry, checksum(payload))
        if len(payload) < _SMALL:
            self._small.records.append(_Record(chunk, entry, header + payload))
            return
        offset = self._open_pack().write_at([header, payload])
        self._entries[chunk] = entry._replace(offset=offset)

    def _take_batch(self, batch: list[_Piece]) -> int:
        """As inherited; the small records of a batch are written at once."""
        try:
            nbytes = super()._take_batch(batch)
            self._write_small()
            return nbytes
        finally:
            # After an error these are rolled back, and must not be written together with what comes next.
            self._small.records.clear()

    def _write_small(self) -> None:
        records, self._small.records = self._small.records, []
        if records:
            offset = self._open_pack().write_at([b"".join(record.data for record in records)])
            for chunk, entry, data in records:
                self._entries[chunk] = entry._replace(offset=offset)
                offset += len(data)

    def _open_pack(self) -> NewFile:
        with self._lock:
            if self._pack is None:
                self._pack = self._store.folder.new_file("pack" + PACK, direct=True)
                self._pack.write(MAGIC)
            return self._pack


def publish_pack(
    store: LocalShelf, pack: NewFile, entries: dict[ChunkId, Entry], *, modified: float | None = None
) -> str:
    """Give a written pack its name, durably, and then its index; only then do readers see it. Returns its name.

    Args:
        modified: when what is in it was written, in seconds since 1970; None is now.

    Raises:
        CorruptionError: a record was claimed and never written, so the pack must not be published.
    """
    if _CLAIMED in entries.values():
        raise CorruptionError("a pack was sealed while it was being written", hint="nothing of it was stored")
    name = store.packs.new_name()
    index = build_index(entries.items())
    pack.publish(name + PACK, mode=0o444, modified=modified)
    try:
        store.folder.write(name + INDEX, index)
    except BaseException:
        # Without its index nobody has seen the pack; with it, another process may rely on it already.
        if not store.folder.exists(name + INDEX):
            with contextlib.suppress(StorageError):
                store.folder.remove(name + PACK)
        raise
    store.packs.refresh()
    return name


def _nbytes(source: TensorSource) -> int:
    return byte_count(source.dtype, source.shape)
