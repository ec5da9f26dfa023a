"""Byte planes: the first bytes of all elements, then the second bytes, and so on, each a stream of its own.

The exponents of trained floats repeat, their mantissas are noise; split apart, the one compresses and the other is
copied. Of the differences to a base that is close, such as the same weights one checkpoint earlier, most of the
mantissas' bytes repeat as well.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from coral.format.codecs.kernel import PLAIN, REPEATING, SKEWED, kernel
from coral.format.codecs.streams import compress, pack_planes, scratch, unpack

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
    """What the planes of some elements from the start of a chunk take, and of as many from its middle."""
    length = min(_SAMPLE, raw.size // 2)
    sizes = (kernel.survey(raw, base, length) if _way(raw) == SKEWED else None) or _try_sample(raw, base, length)
    whole = max(1, 2 * length)
    return Survey(8 * sum(sizes) / whole, tuple(size > _NOISE_RATIO * whole for size in sizes))


def _try_sample(raw: Elements, base: Elements | None, length: int) -> list[int]:
    planes = scratch.planes("sample", raw.itemsize, 2 * length)
    kernel.split(_sample(raw, length), None if base is None else _sample(base, length), planes)
    matching = _way(raw) == REPEATING
    return [min(plane.size, len(compress(plane, matching=matching))) for plane in planes]


def _sample(elements: Elements, length: int) -> Elements:
    middle = elements.size // 2
    return np.concatenate([elements[:length], elements[middle : middle + length]])


def _way(raw: Elements) -> int:
    # A plane of whole bytes is no float's part: text, tokens and masks repeat, so matches are searched for.
    return REPEATING if raw.itemsize == 1 else SKEWED


def encode(raw: Elements, found: Survey, *, base: Elements | None = None, head: bytes = b"") -> memoryview:
    """The payload, after ``head``, in this thread's scratch: valid until its next call."""
    return pack_planes(head, raw, base, [PLAIN if noise else _way(raw) for noise in found.noise])


def decode_into(payload: memoryview, out: Elements, *, base: Elements | None = None) -> None:
    """Undo :func:`encode`; ``base`` may be ``out``. Raises CorruptionError for a payload that is not of that size."""
    kernel.join(unpack(payload, np.full(out.itemsize, out.size, np.uint64)), base, out)
