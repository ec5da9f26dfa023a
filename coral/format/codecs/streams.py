"""Streams of bytes, each raw or as a zstd frame, one after the other behind a table of their stored sizes.

Of zstd only the Huffman stage is used, the idea of ZipNN (Hershcovitch et al., 2024): the bytes of trained numbers are
skewed but do not repeat. The kernel has such an encoder. Where it was not built or gives up, zstd runs with as little
match search as it can: negative levels and ``target_length > 0`` would switch Huffman off too.

::

    streams = size:u32 x count   the streams in order
    size    = stored length, with the top bit set when the stream is a zstd frame
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import zstandard

from coral.errors import CorruptionError
from coral.format.codecs.kernel import kernel

if TYPE_CHECKING:
    from coral.format.codecs.kernel import Bytes

_COMPRESSED = 1 << 31
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


class Stream(NamedTuple):
    """The bytes of a stream, and the zstd frame that is kept in their place, if any."""

    data: Bytes
    frame: bytes | None = None

    @property
    def stored_length(self) -> int:
        """Bytes that it takes."""
        return self.data.size if self.frame is None else len(self.frame)


def compress(data: Bytes, *, matching: bool = False) -> Stream:
    """A stream, as a zstd frame where that is smaller; ``matching`` looks for repetitions as well."""
    if not data.size:
        return Stream(data)
    if not matching:
        coded = kernel.compress(data)
        if coded is not None:
            return Stream(data, coded)
    compressor = scratch.matching if matching else scratch.huffman
    frame = compressor.compress(data.data)
    return Stream(data, frame if len(frame) < data.size else None)


def pack(head: bytes, streams: Sequence[Stream]) -> memoryview:
    """A payload of ``head`` and the streams, in this thread's scratch: valid until its next call."""
    sizes = [len(stream.frame) | _COMPRESSED if stream.frame is not None else stream.data.size for stream in streams]
    start = len(head) + 4 * len(sizes)
    payload = scratch.take("payload", start + sum(stream.stored_length for stream in streams))
    payload[:start] = np.frombuffer(head + struct.pack(f"<{len(sizes)}I", *sizes), np.uint8)
    for stream in streams:
        stop = start + stream.stored_length
        payload[start:stop] = stream.data if stream.frame is None else np.frombuffer(stream.frame, np.uint8)
        start = stop
    return payload.data


def unpack(payload: memoryview, lengths: Sequence[int]) -> list[Bytes]:
    """The streams of a payload, given the length of each.

    Raises:
        CorruptionError: it does not hold exactly these streams.
    """
    try:
        sizes = struct.unpack_from(f"<{len(lengths)}I", payload)
    except struct.error:
        raise CorruptionError("an encoded chunk is too short") from None
    start = 4 * len(sizes)
    if start + sum(size & ~_COMPRESSED for size in sizes) != len(payload):
        raise CorruptionError("an encoded chunk has a wrong length")
    streams = []
    for size, length in zip(sizes, lengths, strict=True):
        stored = payload[start : start + (size & ~_COMPRESSED)]
        start += len(stored)
        streams.append(_decompress(stored, length) if size & _COMPRESSED else _plain(stored, length))
    return streams


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


def _plain(stored: memoryview, length: int) -> Bytes:
    if len(stored) != length:
        raise CorruptionError("a raw stream has a wrong size")
    return np.frombuffer(stored, np.uint8)
