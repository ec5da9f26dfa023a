"""Streams of bytes, each raw or as a zstd frame, one after the other behind a table of their stored sizes.

Of zstd only the Huffman stage is used, the idea of ZipNN (Hershcovitch et al., 2024): the bytes of trained numbers are
skewed but do not repeat. The kernel writes and reads such frames. Where it was not built or leaves it, zstd runs with
as little match search as it can: negative levels and ``target_length > 0`` would switch Huffman off too.

::

    streams = size:u32 x count   the streams in order
    size    = stored length, with the top bit set when the stream is a zstd frame
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import zstandard

from coral.errors import CorruptionError
from coral.format.codecs.kernel import COMPRESSED, LENGTH, PLAIN, REPEATING, SIZE, WAY, Streams, kernel

if TYPE_CHECKING:
    from coral.format.codecs.kernel import Bytes, Elements, Numbers

_HUFFMAN_ONLY = zstandard.ZstdCompressionParameters(
    strategy=zstandard.STRATEGY_FAST,
    window_log=18,
    hash_log=6,
    chain_log=6,
    search_log=1,
    min_match=7,
    target_length=0,
)


class Scratch(threading.local):
    """Compressors and buffers of one thread: fresh memory would cost more than the compression."""

    def __init__(self) -> None:
        self.huffman = zstandard.ZstdCompressor(compression_params=_HUFFMAN_ONLY)
        self.matching = zstandard.ZstdCompressor(level=3)
        self.decompressor = zstandard.ZstdDecompressor()
        self._buffers: dict[str, Bytes] = {}

    def take(self, use: str, length: int) -> Bytes:
        """This thread's bytes for one use; valid until it is asked for again."""
        buffer = self._buffers.get(use)
        if buffer is None or buffer.size < length:
            buffer = self._buffers[use] = np.empty(length, np.uint8)
        return buffer[:length]

    def planes(self, use: str, item: int, length: int) -> Bytes:
        """As :meth:`take`: ``item`` rows of ``length`` bytes."""
        return self.take(use, item * length).reshape(item, length)


scratch = Scratch()


def pack(head: bytes, data: Bytes, rows: Numbers) -> memoryview:
    """A payload of ``head`` and streams, in this thread's scratch: valid until its next call.

    Args:
        data: the bytes of all streams.
        rows: what they are; see ``kernel``.
    """
    payload = _begin(head, len(rows), int(rows[:, LENGTH].sum()))
    place = payload[len(head) + 4 * len(rows) :]
    return _finish(payload, len(head), data, rows, kernel.pack(data, rows, 0, place))


def pack_planes(head: bytes, raw: Elements, base: Elements | None, ways: Sequence[int]) -> memoryview:
    """As :func:`pack`; the streams are the planes of elements, or of their differences to a base."""
    rows = np.zeros((raw.itemsize, SIZE + 1), np.uint64)
    rows[:, WAY] = ways
    data = scratch.take("planes", raw.nbytes)
    payload = _begin(head, len(rows), raw.nbytes)
    place = payload[len(head) + 4 * len(rows) :]
    return _finish(payload, len(head), data, rows, kernel.pack_planes(raw, base, data, rows, place))


def _begin(head: bytes, count: int, nbytes: int) -> Bytes:
    payload = scratch.take("payload", len(head) + 4 * count + nbytes)
    payload[: len(head)] = np.frombuffer(head, np.uint8)
    return payload


def _finish(payload: Bytes, table: int, data: Bytes, rows: Numbers, number: int) -> memoryview:
    """Have zstd make what is left to it, and write the table of sizes."""
    start = table + 4 * len(rows)
    while number < len(rows):
        _store(data, rows, number, payload[start:])
        number = kernel.pack(data, rows, number + 1, payload[start:])
    sizes = rows[:, SIZE].astype("<u4")
    payload[table:start] = sizes.view(np.uint8)
    return payload[: start + int((sizes & ~np.uint32(COMPRESSED)).sum())].data


def _store(data: Bytes, rows: Numbers, number: int, place: Bytes) -> None:
    """Store one stream where its row says, as a frame where that is smaller."""
    first, length, way, start = rows[number].tolist()
    stream = data[first : first + length]
    frame = b"" if way == PLAIN or not length else compress(stream, matching=way == REPEATING)
    if 0 < len(frame) < length:
        place[start : start + len(frame)] = np.frombuffer(frame, np.uint8)
        rows[number, SIZE] = len(frame) | COMPRESSED
    else:
        place[start : start + length] = stream
        rows[number, SIZE] = length


def compress(data: Bytes, *, matching: bool) -> bytes:
    """zstd's own frame; ``matching`` looks for repetitions as well."""
    return (scratch.matching if matching else scratch.huffman).compress(data.data)


def unpack(payload: memoryview, lengths: Numbers) -> Streams:
    """The streams of a payload, given the length of each; those that are frames are in this thread's scratch.

    Raises:
        CorruptionError: it does not hold exactly these streams.
    """
    count = lengths.size
    stored = np.frombuffer(payload, np.uint8)
    if stored.size < 4 * count:
        raise CorruptionError("an encoded chunk is too short")
    sizes = stored[: 4 * count].view("<u4").astype(np.uint64)
    if 4 * count + int((sizes & np.uint64(COMPRESSED - 1)).sum()) != stored.size:
        raise CorruptionError("an encoded chunk has a wrong length")
    if ((sizes < COMPRESSED) & (sizes != lengths)).any():
        raise CorruptionError("a raw stream has a wrong size")
    streams = Streams(stored, scratch.take("streams", int(lengths.sum())), np.empty(count, np.uint64), lengths)
    number = kernel.unpack(streams, 0)
    while number < count:
        _read(streams, sizes, number)
        number = kernel.unpack(streams, number + 1)
    return streams


def _read(streams: Streams, sizes: Numbers, number: int) -> None:
    """Read one stream, and fill in its place. Raises CorruptionError."""
    start = 4 * sizes.size + int((sizes[:number] & np.uint64(COMPRESSED - 1)).sum())
    size, length = int(sizes[number]), int(streams.lengths[number])
    streams.places[number] = start
    if size & COMPRESSED:
        place = int(streams.lengths[:number].sum())
        frame = streams.payload[start : start + size - COMPRESSED].data
        streams.room[place : place + length] = _decompress(frame, length)
        streams.places[number] = streams.payload.size + place


def _decompress(frame: memoryview, length: int) -> Bytes:
    try:
        # Checked before any allocation: a hostile frame may claim any size.
        if zstandard.frame_content_size(frame) != length:
            raise CorruptionError("an encoded stream has a wrong size")
        data = scratch.decompressor.decompress(frame, max_output_size=length)
    except zstandard.ZstdError as error:
        raise CorruptionError(f"an encoded stream does not decompress: {error}") from None
    if len(data) != length:
        raise CorruptionError("an encoded stream has a wrong size")
    return np.frombuffer(data, np.uint8)
