"""How the elements of a tensor lie: bytes of packed ones, strides, and views that must not leave it."""

from __future__ import annotations

from coral.errors import FormatError
from coral.format.dtypes import BITS, byte_count


def packed_shape(dtype: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of a packed tensor's bytes: the last axis packed where that comes out even, else one axis."""
    if shape and BITS[dtype] * shape[-1] % 8 == 0:
        return (*shape[:-1], BITS[dtype] * shape[-1] // 8)
    return (byte_count(dtype, shape),)


def check_view(size: int, shape: tuple[int, ...], stride: tuple[int, ...] | None, offset: int) -> tuple[int, ...]:
    """The strides of a view, checked to stay within ``size`` elements. Raises FormatError."""
    steps = stride if stride is not None else contiguous_stride(shape)
    last = offset + sum((length - 1) * step for length, step in zip(shape, steps, strict=False))
    if len(steps) != len(shape) or min((offset, *steps, *shape)) < 0 or (0 not in shape and last >= size):
        raise FormatError(f"a view of shape {list(shape)} at {offset} leaves its tensor of {size} elements")
    if offset > size:
        raise FormatError(f"a view at {offset} leaves its tensor of {size} elements")
    return steps


def contiguous_stride(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Elements between neighbours along each axis of a C-ordered tensor."""
    steps = []
    step = 1
    for length in reversed(shape):
        steps.append(step)
        step *= max(length, 1)
    return tuple(reversed(steps))
