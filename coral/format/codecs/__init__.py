"""Codecs: a chunk's bytes to fewer bytes and back, chosen per chunk and hidden below the chunk's id.

A record names its codec by number; a codec never changes once a number is given out.

=========  ============================================================================================
number     payload
=========  ============================================================================================
0 RAW      the bytes as they are
1 PLANES   byte planes (``planes``)
2 DELTA    the id of another chunk, the base; the planes of the differences to it
3 GROUPED  the id of the base; the differences to it, those of like exponents together (``grouped``)
=========  ============================================================================================

A base that is longer than the chunk is cut to its length, a shorter one goes on with zeros.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from coral.errors import CorruptionError
from coral.format.codecs import grouped, planes
from coral.format.codecs.kernel import elements_of, kernel
from coral.ids import ID_BYTES, ChunkId

RAW, PLANES, DELTA, GROUPED = 0, 1, 2, 3
WITH_BASE = frozenset({DELTA, GROUPED})
"""The codecs whose payload begins with the id of a base."""

ReadBase = Callable[[ChunkId, memoryview], memoryview]
"""Gives a base's bytes, cut or followed by zeros, in the memory that it is handed or elsewhere."""

_WORTHWHILE = 0.97
# What a delta saves must be worth the reading of two chunks for one.
_DELTA_WORTHWHILE = 0.9
# A record's header is 64 bytes, and reading a base takes longer than reading a few pages more.
_LEAST_BYTES = 1024
LEAST_DELTA_BYTES = 16384
"""A smaller chunk is never encoded against another one."""

# Grouping takes about a bit off each element, at twice the time of planes: much of a few bits, little of many.
_GROUPED_BITS = 8.0


class Base(NamedTuple):
    """A chunk to encode against: its id, and its bytes, as many as the chunk's."""

    chunk: ChunkId
    data: memoryview


def encode(raw: memoryview, item: int, base: Base | None = None) -> tuple[int, memoryview]:
    """Encode a chunk; returns the codec's number and the payload.

    The payload may be ``raw`` itself or this thread's scratch space: use it before the next call.

    Args:
        raw: the chunk's bytes.
        item: bytes of one element, 1, 2, 4 or 8; where ``len(raw)`` is no multiple of it, elements are taken as bytes.
        base: a chunk that may be similar; it is used where that makes the payload clearly smaller.
    """
    if len(raw) < _LEAST_BYTES:
        return RAW, raw
    elements = elements_of(raw, _width(len(raw), item))
    plain = planes.survey(elements)
    if base is not None and len(raw) >= LEAST_DELTA_BYTES:
        others = elements_of(base.data, elements.itemsize)
        delta = planes.survey(elements, others)
        if delta.bits < _DELTA_WORTHWHILE * plain.bits:
            # Without the kernel grouping is slower than the disk.
            if kernel.is_native and delta.bits <= _GROUPED_BITS:
                codec, payload = GROUPED, grouped.encode(elements, others, head=base.chunk)
            else:
                codec, payload = DELTA, planes.encode(elements, delta, base=others, head=base.chunk)
            # Where only some of the elements changed, the samples may have met none of those.
            if 8 * len(payload) < _DELTA_WORTHWHILE * plain.bits * elements.size:
                return codec, payload
    if all(plain.noise):
        return RAW, raw
    payload = planes.encode(elements, plain)
    return (RAW, raw) if len(payload) > _WORTHWHILE * len(raw) else (PLANES, payload)


def base_of(codec: int, payload: memoryview) -> ChunkId | None:
    """The chunk that a payload is encoded against, if any; its first 32 bytes are enough. Raises CorruptionError."""
    if codec not in WITH_BASE:
        return None
    if len(payload) < ID_BYTES:
        raise CorruptionError("an encoded chunk is too short")
    return ChunkId(bytes(payload[:ID_BYTES]))


def decode_into(codec: int, item: int, payload: memoryview, out: memoryview, read_base: ReadBase | None = None) -> None:
    """Decode a payload into exactly ``out``.

    Raises:
        CorruptionError: an unknown codec, or a payload that does not decode to that many bytes.
    """
    base = base_of(codec, payload)
    if codec == RAW and len(payload) == len(out):
        out[:] = payload
    elif codec == PLANES:
        planes.decode_into(payload, elements_of(out, _width(len(out), item)))
    elif base is not None and read_base is not None:
        elements = elements_of(out, _width(len(out), item))
        others = elements_of(read_base(base, out), elements.itemsize)
        if codec == DELTA:
            planes.decode_into(payload[ID_BYTES:], elements, base=others)
        else:
            grouped.decode_into(payload[ID_BYTES:], others, elements)
    else:
        raise CorruptionError(f"a record of {len(payload)} bytes in codec {codec} does not hold {len(out)} raw bytes")


def _width(total: int, item: int) -> int:
    return item if item in (2, 4, 8) and total % item == 0 else 1
