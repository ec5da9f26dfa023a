"""Codecs: a chunk's bytes to fewer bytes and back, chosen per chunk and hidden below the chunk's id.

A record names its codec by number; a codec never changes once a number is given out. ``RAW`` keeps the bytes as they
are, ``PLANES`` splits elements into byte planes, each of them raw or compressed.
"""

from __future__ import annotations

from coral.errors import CorruptionError
from coral.format.codecs import planes

RAW, PLANES = 0, 1
_WORTHWHILE = 0.97


def encode(raw: memoryview, item: int) -> tuple[int, memoryview]:
    """Encode a chunk; returns the codec's number and the payload.

    The payload may be ``raw`` itself or this thread's scratch space: use it before the next call.

    Args:
        raw: the chunk's bytes.
        item: bytes of one element, 1, 2, 4 or 8; where ``len(raw)`` is no multiple of it, elements are taken as bytes.
    """
    payload = planes.encode(raw, item)
    if payload is None or len(payload) > _WORTHWHILE * len(raw):
        return RAW, raw
    return PLANES, payload


def decode_into(codec: int, item: int, payload: memoryview, out: memoryview) -> None:
    """Decode a payload into exactly ``out``.

    Raises:
        CorruptionError: an unknown codec, or a payload that does not decode to that many bytes.
    """
    if codec == PLANES:
        planes.decode_into(payload, item, out)
    elif codec == RAW and len(payload) == len(out):
        out[:] = payload
    else:
        raise CorruptionError(f"a record of {len(payload)} bytes in codec {codec} does not hold {len(out)} raw bytes")
