"""Reading tensors on all cores: straight into memory that is there, or as a stream in a known order.

Both decode chunks of several tensors at once, because a model may be thousands of tensors smaller than a chunk; both
bound what is under way, and use their buffers again.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from typing import TYPE_CHECKING, NamedTuple

from coral.format.chunking import CHUNK_LIMIT, spans
from coral.ids import ChunkId
from coral.objects.jobs import batched, in_order
from coral.objects.shelf import inline_bytes

if TYPE_CHECKING:
    from coral.format.manifest import TensorRecord
    from coral.objects.shelf import Shelf


class _Wanted(NamedTuple):
    """One chunk, and the memory that it goes to."""

    chunk: ChunkId
    out: memoryview


class _Piece(NamedTuple):
    """One chunk of a stream; ``inline`` holds the bytes of one that stands in the manifest."""

    chunk: ChunkId
    length: int
    inline: bytes | None = None


def read_many(store: Shelf, wanted: Iterable[tuple[TensorRecord, memoryview]]) -> None:
    """See :meth:`ChunkStore.read_many`."""

    def read(batch: list[_Wanted]) -> None:
        for chunk, out in batch:
            store.read_chunk(chunk, out)

    batches = batched(_destinations(store, wanted), lambda piece: len(piece.out), CHUNK_LIMIT)
    first, second = next(batches, []), next(batches, [])
    if not second:
        read(first)  # not worth the handing over
        return
    started = (store.submit(read, batch) for batch in itertools.chain((first, second), batches))
    # After an error no worker may still be writing into the caller's memory.
    with contextlib.closing(in_order(started, store.window)) as finished:
        for _ in finished:
            pass


def _destinations(store: Shelf, wanted: Iterable[tuple[TensorRecord, memoryview]]) -> Iterator[_Wanted]:
    for record, out in wanted:
        if len(out) != record.nbytes:
            raise ValueError(f"{record.name} has {record.nbytes} bytes, not {len(out)}")
        start = 0
        for chunk, length, inline in _pieces(store, record):
            if inline is None:
                yield _Wanted(chunk, out[start : start + length])
            else:
                out[:] = inline
            start += length


def _pieces(store: Shelf, record: TensorRecord) -> Iterator[_Piece]:
    if record.content.startswith("hex:"):
        data = inline_bytes(record)
        if data:
            yield _Piece(ChunkId(b""), len(data), data)
        return
    for chunk, (start, stop) in zip(store.chunk_ids(record), spans(record.dtype, record.shape), strict=True):
        yield _Piece(chunk, stop - start)


def stream(store: Shelf, records: Iterable[TensorRecord]) -> Iterator[memoryview]:
    """See :meth:`ChunkStore.stream`."""
    spare: list[memoryview] = []
    pieces = (piece for record in records for piece in _pieces(store, record))

    def read(batch: list[_Piece], buffer: memoryview) -> tuple[memoryview, list[memoryview]]:
        found, start = [], 0
        for chunk, length, inline in batch:
            piece = buffer[start : start + length]
            if inline is None:
                store.read_chunk(chunk, piece)
            else:
                piece[:] = inline
            found.append(piece)
            start += length
        return buffer, found

    def start(batch: list[_Piece]) -> Future[tuple[memoryview, list[memoryview]]]:
        return store.submit(read, batch, spare.pop() if spare else memoryview(bytearray(2 * CHUNK_LIMIT)))

    started = map(start, batched(pieces, lambda piece: piece.length, CHUNK_LIMIT // 2))
    with contextlib.closing(in_order(started, store.window)) as finished:
        for buffer, found in finished:
            yield from found
            spare.append(buffer)
