"""Byte planes: the first bytes of all elements, then the second bytes, and so on, each plane raw or through zstd.

The exponents of trained floats repeat, their mantissas are noise; split apart, the one compresses and the other is
copied. zstd runs with its match search off and its Huffman stage on, the idea of ZipNN (Hershcovitch et al., 2024).
Negative levels and ``target_length > 0`` would switch Huffman off as well.

::

    payload = size:u32 x planes   plane bytes in order
    size    = stored length, with the top bit set when the plane is a zstd frame
"""

from __future__ import annotations

import struct
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import zstandard

from coral.errors import CorruptionError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Bytes = NDArray[np.uint8]
    Elements = NDArray[np.unsignedinteger[Any]]

_COMPRESSED = 1 << 31
_SAMPLE_BYTES = 8192
_MIN_PLANE_BYTES = 64
_NOISE_RATIO = 0.97
_HUFFMAN_ONLY = zstandard.ZstdCompressionParameters(
    strategy=zstandard.STRATEGY_FAST,
    window_log=18,
    hash_log=6,
    chain_log=6,
    search_log=1,
    min_match=7,
    target_length=0,
)


class _Scratch(threading.local):
    """Compressors and buffers of one thread: fresh memory would cost more than the compression."""

    def __init__(self) -> None:
        self.huffman = zstandard.ZstdCompressor(compression_params=_HUFFMAN_ONLY)
        self.matching = zstandard.ZstdCompressor(level=3)
        self.decompressor = zstandard.ZstdDecompressor()
        self._halves: dict[tuple[int, int], list[Elements]] = {}
        self._plane = np.empty(0, np.uint8)
        self._payload = np.empty(0, np.uint8)

    def plane(self, length: int) -> Bytes:
        if self._plane.size < length:
            self._plane = np.empty(length, np.uint8)
        return self._plane[:length]

    def halves(self, count: int, like: Elements) -> list[Elements]:
        """``count`` arrays of as many elements as ``like``, each twice as wide."""
        dtype = np.dtype(f"<u{2 * like.itemsize}")
        kept = self._halves.setdefault((count, dtype.itemsize), [])
        if not kept or kept[0].size < like.size:
            kept[:] = [np.empty(like.size, dtype) for _ in range(count)]
        return [half[: like.size] for half in kept]

    def payload(self, length: int) -> Bytes:
        if self._payload.size < length:
            self._payload = np.empty(length, np.uint8)
        return self._payload[:length]


_scratch = _Scratch()


def encode(raw: memoryview, item: int) -> memoryview | None:
    """The payload, or None when no plane compresses. It lives until this thread's next call."""
    count = _plane_count(len(raw), item)
    elements = np.frombuffer(raw, f"<u{count}")
    if elements.size < _MIN_PLANE_BYTES:
        return None
    # A plane of whole bytes is no float's part: text, tokens and masks repeat, so matches are searched for.
    compressor = _scratch.huffman if count > 1 else _scratch.matching
    frames = [_compress(elements, number, compressor) for number in range(count)]
    if not any(frames):
        return None
    return _assemble(elements, frames)


def _take_plane(elements: Elements, number: int, out: Bytes) -> Bytes:
    # A shift that drops the upper bytes is twice as fast as copying every n-th byte.
    return np.right_shift(elements, 8 * number, out=out, casting="unsafe")


def _assemble(elements: Elements, frames: list[bytes | None]) -> memoryview:
    length, count = elements.size, len(frames)
    payload = _scratch.payload(4 * count + sum(length if frame is None else len(frame) for frame in frames))
    sizes = [length if frame is None else len(frame) | _COMPRESSED for frame in frames]
    payload[: 4 * count] = np.frombuffer(struct.pack(f"<{count}I", *sizes), np.uint8)
    offset = 4 * count
    for number, frame in enumerate(frames):
        stop = offset + (length if frame is None else len(frame))
        if frame is None:
            _take_plane(elements, number, payload[offset:stop])
        else:
            payload[offset:stop] = np.frombuffer(frame, np.uint8)
        offset = stop
    return payload.data


def decode_into(payload: memoryview, item: int, out: memoryview) -> None:
    """Undo :func:`encode`. Raises CorruptionError for a payload that is not of exactly ``len(out)`` bytes."""
    count = _plane_count(len(out), item)
    length = len(out) // count
    try:
        sizes = struct.unpack_from(f"<{count}I", payload)
    except struct.error:
        raise CorruptionError("an encoded chunk is too short") from None
    if sum(size & ~_COMPRESSED for size in sizes) + 4 * count != len(payload):
        raise CorruptionError("an encoded chunk has a wrong length")
    planes: list[Elements] = []
    offset = 4 * count
    for size in sizes:
        stored = payload[offset : offset + (size & ~_COMPRESSED)]
        offset += len(stored)
        planes.append(_decompress(stored, length) if size & _COMPRESSED else _raw_plane(stored, length))
    _join(planes, np.frombuffer(out, f"<u{count}"))


def _join(planes: list[Elements], out: Elements) -> None:
    """Put the bytes of elements together again, pair by pair: twice as fast as writing every n-th byte."""
    if len(planes) == 1:
        np.copyto(out, planes[0])
        return
    while len(planes) > 2:
        wide = _scratch.halves(len(planes) // 2, planes[0])
        for number, half in enumerate(wide):
            _join_pair(planes[2 * number], planes[2 * number + 1], half)
        planes = wide
    _join_pair(planes[0], planes[1], out)


def _join_pair(low: Elements, high: Elements, out: Elements) -> None:
    np.left_shift(high, 8 * high.itemsize, out=out, dtype=out.dtype)
    np.bitwise_or(out, low, out=out)


def _plane_count(total: int, item: int) -> int:
    return item if item in (2, 4, 8) and total % item == 0 else 1


def _compress(elements: Elements, number: int, compressor: zstandard.ZstdCompressor) -> bytes | None:
    """A plane as a zstd frame; None when a sample of it is noise, or when it does not shrink."""
    plane = _scratch.plane(elements.size)
    if elements.size > 4 * _SAMPLE_BYTES and _is_noise(elements, number, compressor):
        return None
    frame = compressor.compress(_take_plane(elements, number, plane).data)
    return frame if len(frame) < plane.size else None


def _is_noise(elements: Elements, number: int, compressor: zstandard.ZstdCompressor) -> bool:
    """Whether a plane is not worth compressing, by a sample of it."""
    middle, half = elements.size // 2, _SAMPLE_BYTES // 2
    sample = _scratch.plane(2 * half)
    _take_plane(elements[:half], number, sample[:half])
    _take_plane(elements[middle : middle + half], number, sample[half:])
    return len(compressor.compress(sample.data)) > _NOISE_RATIO * 2 * half


def _decompress(frame: memoryview, length: int) -> Bytes:
    try:
        # Checked before any allocation: a hostile frame may claim any size.
        if zstandard.frame_content_size(frame) != length:
            raise CorruptionError("an encoded plane has a wrong size")
        plane = _scratch.decompressor.decompress(frame, max_output_size=length)
    except zstandard.ZstdError as error:
        raise CorruptionError(f"an encoded plane does not decompress: {error}") from None
    if len(plane) != length:
        raise CorruptionError("an encoded plane has a wrong size")
    return np.frombuffer(plane, np.uint8)


def _raw_plane(stored: memoryview, length: int) -> Bytes:
    if len(stored) != length:
        raise CorruptionError("a raw plane has a wrong size")
    return np.frombuffer(stored, np.uint8)
