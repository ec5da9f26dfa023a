"""Byte planes: the first bytes of all elements, then the second bytes, and so on, each a stream of its own.

The exponents of trained floats repeat, their mantissas are noise; split apart, the one compresses and the other is
copied. Of the differences to a base that is close, such as the same weights one checkpoint earlier, most of the
mantissas' bytes repeat as well.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from coral.format.codecs.kernel import kernel
from coral.format.codecs.streams import Stream, compress, pack, scratch, unpack

if TYPE_CHECKING:
    from coral.format.codecs.kernel import Elements

_SAMPLE = 2048  # elements, twice
_NOISE_RATIO = 0.97


class Survey(NamedTuple):
    """What two samples of a chunk say of all of it.

    Attributes:
        bits: of one element, encoded.
        noise: of each plane, whether it is not worth compressing.
    """

    bits: float
    noise: tuple[bool, ...]


def survey(raw: Elements, base: Elements | None = None) -> Survey:
    """Compress the planes of some elements from the start of a chunk, and of as many from its middle."""
    planes = scratch.planes("sample", raw.itemsize, 2 * min(_SAMPLE, raw.size // 2))
    kernel.split(_sample(raw), None if base is None else _sample(base), planes)
    matching = raw.itemsize == 1
    sizes = [compress(plane, matching=matching).stored_length for plane in planes]
    whole = max(1, planes.shape[1])
    return Survey(8 * sum(sizes) / whole, tuple(size > _NOISE_RATIO * whole for size in sizes))


def _sample(elements: Elements) -> Elements:
    middle = elements.size // 2
    length = min(_SAMPLE, middle)
    return np.concatenate([elements[:length], elements[middle : middle + length]])


def encode(raw: Elements, found: Survey, *, base: Elements | None = None, head: bytes = b"") -> memoryview:
    """The payload, after ``head``, in this thread's scratch: valid until its next call."""
    planes = scratch.planes("planes", raw.itemsize, raw.size)
    kernel.split(raw, base, planes)
    # A plane of whole bytes is no float's part: text, tokens and masks repeat, so matches are searched for.
    matching = raw.itemsize == 1
    streams = [
        Stream(plane) if noise else compress(plane, matching=matching)
        for plane, noise in zip(planes, found.noise, strict=True)
    ]
    return pack(head, streams)


def decode_into(payload: memoryview, out: Elements, *, base: Elements | None = None) -> None:
    """Undo :func:`encode`; ``base`` may be ``out``. Raises CorruptionError for a payload that is not of that size."""
    kernel.join(unpack(payload, [out.size] * out.itemsize), base, out)
