"""Where a tensor is cut into chunks: an absolute grid of rows, fixed by the format version.

A tensor is cut every R whole rows of its first axis, R the largest power of two with R x row bytes <= 1 MiB.
R does not depend on the first axis, so rows appended to a tensor reuse every whole chunk before them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache

from coral.format.dtypes import BITS, byte_count

CHUNK_LIMIT = 1 << 20
"""Raw bytes of the largest chunk."""


def grid(dtype: str, shape: tuple[int, ...]) -> tuple[int, int]:
    """How a tensor is cut: (bytes of one period, bytes of one chunk within a period).

    Usually both are R x row bytes. A row of over 1 MiB is a period of its own, cut at each MiB; where rows are not
    whole bytes the period is the whole tensor, cut at each MiB.
    """
    total = byte_count(dtype, shape)
    if not shape:
        return max(total, 1), max(total, 1)
    row_bits = BITS[dtype] * math.prod(shape[1:])
    if row_bits == 0 or total == 0:
        return 1, 1
    rows = 1 << max(0, (8 * CHUNK_LIMIT // row_bits).bit_length() - 1) if row_bits <= 8 * CHUNK_LIMIT else 1
    if rows * row_bits % 8:
        return max(total, 1), CHUNK_LIMIT
    period = rows * row_bits // 8
    return period, min(period, CHUNK_LIMIT)


def spans(dtype: str, shape: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    """The (start, stop) byte range of each chunk of a tensor, in order; none for an empty tensor."""
    total = byte_count(dtype, shape)
    period, step = grid(dtype, shape)
    if step >= period:
        for start in range(0, total, period):
            yield start, min(start + period, total)
        return
    for row in range(0, total, period):
        end = min(row + period, total)
        for start in range(row, end, step):
            yield start, min(start + step, end)


@lru_cache(maxsize=1024)
def cuts(dtype: str, shape: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    """All of :func:`spans` at once, remembered: a model is cut in the same way at every commit."""
    return tuple(spans(dtype, shape))


def chunk_count(dtype: str, shape: tuple[int, ...]) -> int:
    """How many chunks :func:`spans` yields."""
    total = byte_count(dtype, shape)
    period, step = grid(dtype, shape)
    full, rest = divmod(total, period)
    return full * -(-period // step) + -(-rest // step)
