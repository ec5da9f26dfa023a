"""A tensor's statistics, computed block by block so that no second copy of it is needed."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple, cast

import click
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_BLOCK = 1 << 20


class Statistics(NamedTuple):
    """What :func:`describe` finds; min, max, mean, std and L2 are of the finite elements, None when there are none.

    Of complex numbers they are of the absolute values; std is the population's.
    """

    bytes: int
    elements: int
    min: float | None
    max: float | None
    mean: float | None
    std: float | None
    l2: float | None
    zeros: int
    nan: int
    inf: int


def describe(tensor: object) -> Statistics:
    """The statistics of a numpy array of any dtype."""
    array = cast("NDArray[np.generic]", tensor)
    zeros = nan = inf = finite = 0
    low, high, total, squares = math.inf, -math.inf, 0.0, 0.0
    for block in _blocks(array):
        good = block[np.isfinite(block)]
        zeros += int(np.count_nonzero(block == 0))
        nan += int(np.count_nonzero(np.isnan(block)))
        inf += int(np.count_nonzero(np.isinf(block)))
        if good.size:
            finite += good.size
            low, high = min(low, float(good.min())), max(high, float(good.max()))
            total += float(good.sum())
            squares += float(np.dot(good, good))
    if not finite:
        return Statistics(array.nbytes, array.size, None, None, None, None, None, zeros, nan, inf)
    mean = total / finite
    spread = 0.0
    for block in _blocks(array):
        centred = block[np.isfinite(block)] - mean
        spread += float(np.dot(centred, centred))
    std = math.sqrt(spread / finite)
    return Statistics(array.nbytes, array.size, low, high, mean, std, math.sqrt(squares), zeros, nan, inf)


def _blocks(array: NDArray[np.generic]) -> Iterator[NDArray[np.float64]]:
    flat = array.reshape(-1)
    for start in range(0, flat.size, _BLOCK):
        block = flat[start : start + _BLOCK]
        yield (np.abs(block) if np.iscomplexobj(block) else block).astype(np.float64)


def flat_values(tensor: object, limit: int) -> list[object]:
    """The first values in C order, as JSON can hold them: complex numbers as pairs."""
    first = cast("NDArray[np.generic]", tensor).reshape(-1)[:limit]
    if np.iscomplexobj(first):
        return [[float(value.real), float(value.imag)] for value in first]
    if first.dtype.kind not in "biuf":
        first = first.astype(np.float64)
    return cast("list[object]", first.tolist())


def print_values(tensor: object, limit: int, *, width: int) -> None:
    """Print the values as numpy does; of more than ``limit``, the first and last of each row."""
    array = cast("NDArray[np.generic]", tensor)
    click.echo(np.array2string(array, threshold=limit, max_line_width=width))
