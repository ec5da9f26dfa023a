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

import math
import struct
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from coral.errors import CorruptionError
from coral.format.codecs.kernel import BIAS, kernel, upper_byte
from coral.format.codecs.streams import Stream, compress, pack, scratch, unpack

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from coral.format.codecs.kernel import Bytes, Elements, Tally

_SEGMENT = 16384
_PLANES = 0
_WIDTHS = (4, 2)
_SAMPLE = 2048
_RARE_BITS = 0.3
_COUNT = struct.Struct("<I")
_WEIGHTS = np.array([0.0] + [count * math.log2(count) for count in range(1, _SAMPLE + 1)])

Segment = tuple[int, int]
"""The elements [start, stop) in the order of their keys."""


def encode(raw: Elements, base: Elements, *, head: bytes = b"") -> memoryview:
    """The payload, after ``head``, in this thread's scratch: valid until its next call."""
    item, length = raw.itemsize, raw.size
    tally = kernel.tally(base)
    planes = scratch.planes("planes", item, length)
    kernel.group(raw, base, tally, planes)
    escaped = scratch.planes("escaped", item, length)
    codes = scratch.take("codes", length + 1)
    streams: list[Stream] = []
    modes: list[int] = []
    count = used = 0
    for start, stop in _segments(tally):
        mode, bits = _cheapest(planes, start, stop)
        modes.append(mode)
        if mode == _PLANES:
            streams += [compress(plane[start:stop]) for plane in planes]
            continue
        packed = codes[used : used + _packed_length(start, stop, mode)]
        used += packed.size
        count = kernel.narrow(planes, start, stop, mode, packed, escaped, count)
        # Huffman spends a bit on every byte; where nearly nothing changes, runs of the same byte cost less.
        streams.append(compress(packed, matching=bits < _RARE_BITS))
    streams += [compress(plane[:count]) for plane in escaped]
    return pack(head + _COUNT.pack(count) + bytes(modes), streams)


def decode_into(payload: memoryview, base: Elements, out: Elements) -> None:
    """Undo :func:`encode`; ``base`` may be ``out``. Raises CorruptionError for a payload that does not fit."""
    item, length = out.itemsize, out.size
    tally = kernel.tally(base)
    segments = list(_segments(tally))
    start = _COUNT.size + len(segments)
    if len(payload) < start:
        raise CorruptionError("an encoded chunk is too short")
    (count,) = _COUNT.unpack_from(payload)
    modes = bytes(payload[_COUNT.size : start])
    if count > length or not set(modes) <= {_PLANES, *_WIDTHS}:
        raise CorruptionError("an encoded chunk has a damaged head")
    streams = iter(unpack(payload[start:], _lengths(segments, modes, item, count)))
    parts = list(_take(streams, segments, modes, item))
    escaped = np.stack(list(streams)) if count else np.empty((item, 0), np.uint8)
    planes = scratch.planes("planes", item, length)
    done = 0
    for (first, last), mode, part in zip(segments, modes, parts, strict=True):
        if mode == _PLANES:
            for plane, data in zip(planes, part, strict=True):
                plane[first:last] = data
        else:
            done = kernel.widen(part[0], first, last, mode, escaped, done, planes)
    if done != count:
        raise CorruptionError("an encoded chunk has a wrong number of large differences")
    kernel.ungroup(list(planes), base, tally, out)


def _take(streams: Iterator[Bytes], segments: Sequence[Segment], modes: bytes, item: int) -> Iterator[list[Bytes]]:
    for _, mode in zip(segments, modes, strict=True):
        yield [next(streams) for _ in range(item if mode == _PLANES else 1)]


def _segments(tally: Tally) -> Iterator[Segment]:
    start = stop = 0
    for number in tally.sum(axis=0).tolist():
        stop += number
        if stop - start >= _SEGMENT:
            yield start, stop
            start = stop
    if stop > start:
        yield start, stop


def _packed_length(start: int, stop: int, width: int) -> int:
    return -(-(stop - start) * width // 8)


def _lengths(segments: Sequence[Segment], modes: bytes, item: int, count: int) -> list[int]:
    lengths: list[int] = []
    for (start, stop), mode in zip(segments, modes, strict=True):
        lengths += [stop - start] * item if mode == _PLANES else [_packed_length(start, stop, mode)]
    return lengths + [count] * item


def _cheapest(planes: Bytes, start: int, stop: int) -> tuple[int, float]:
    """The mode that needs the fewest bits for an element, and about how many, judged by the first few thousand."""
    sample = planes[:, start : min(stop, start + _SAMPLE)]
    total = sample.shape[1]
    counts = np.bincount(sample[0], minlength=256)
    large = [
        np.count_nonzero(plane != upper_byte(len(planes), number)) / total
        for number, plane in enumerate(sample[1:], start=1)
    ]
    most = max(large, default=0.0)
    whole = 8.0 * len(planes)
    best = _PLANES, max(1.0, _bits(counts, 0, total)) + sum(max(1.0, 8 * share) for share in large if share)
    for width in _WIDTHS:
        half = (1 << width) // 2 - 1
        inside = counts[BIAS[1] - half : BIAS[1] + half + 1]
        others = total - int(inside.sum())
        code_bits = _bits(inside, others, total)
        bits = (code_bits if code_bits < _RARE_BITS else max(width / 8, code_bits)) + (others / total + most) * whole
        if bits < best[1]:
            best = width, bits
    return best


def _bits(counts: NDArray[np.intp], others: int, total: int) -> float:
    """The entropy of one of ``total`` elements, of which each of ``counts`` are alike, and so are the ``others``."""
    return math.log2(total) - float(_WEIGHTS[counts].sum() + _WEIGHTS[others]) / total
