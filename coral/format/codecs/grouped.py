"""Grouped differences: those of elements whose bases have the same exponent lie together and are coded alike.

An optimizer moves all weights by about the same distance, which is many units in the last place of a small one and
less than one unit of a large one. So the exponent of the base, which the reader knows, says much of the difference:
half of what bfloat16 checkpoints need otherwise.

Elements are sorted by their base's key (see ``kernel``), stably, and cut into segments: keys in order, until a segment
has at least 16,384 elements. A segment is coded in one of three modes: as planes; or with the lowest bytes of small
differences packed into 4 or 2 bits, the code of all ones standing for one of the ``escaped``, whose bytes follow in
planes of their own after all segments.

::

    payload = count:u32 of escaped elements   mode:u8 x segments   streams
    streams = of each segment its planes, or its packed codes; then the planes of the escaped elements
    mode    = 0 planes, 4 or 2 bits
"""

from __future__ import annotations

import struct
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from coral.errors import CorruptionError
from coral.format.codecs.kernel import PLANES_MODE, kernel, packed_length
from coral.format.codecs.streams import pack, scratch, unpack

if TYPE_CHECKING:
    from coral.format.codecs.kernel import Elements, Keys, Numbers

_WIDTHS = (4, 2)
_COUNT = struct.Struct("<I")


def encode(raw: Elements, base: Elements, *, head: bytes = b"") -> memoryview:
    """The payload, after ``head``, in this thread's scratch: valid until its next call."""
    groups = kernel.group(raw, base, partial(scratch.take, "planes"))
    return pack(head + _COUNT.pack(groups.escaped) + groups.modes, groups.data, groups.rows)


def decode_into(payload: memoryview, base: Elements, out: Elements) -> None:
    """Undo :func:`encode`; ``base`` may be ``out``. Raises CorruptionError for a payload that does not fit."""
    keys = kernel.count(base)
    start = _COUNT.size + keys.stops.size
    if len(payload) < start:
        raise CorruptionError("an encoded chunk is too short")
    (escaped,) = _COUNT.unpack_from(payload)
    modes = bytes(payload[_COUNT.size : start])
    if escaped > out.size or not set(modes) <= {PLANES_MODE, *_WIDTHS}:
        raise CorruptionError("an encoded chunk has a damaged head")
    streams = unpack(payload[start:], _lengths(keys, modes, escaped, out.itemsize))
    if not kernel.ungroup(streams, modes, escaped, keys, base, out, scratch.take("planes", 2 * out.nbytes)):
        raise CorruptionError("an encoded chunk has a wrong number of large differences")


def _lengths(keys: Keys, modes: bytes, escaped: int, item: int) -> Numbers:
    lengths: list[int] = []
    start = 0
    for stop, mode in zip(keys.stops.tolist(), modes, strict=True):
        lengths += [stop - start] * item if mode == PLANES_MODE else [packed_length(stop - start, mode)]
        start = stop
    return np.array(lengths + [escaped] * item, np.uint64)
