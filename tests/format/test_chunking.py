"""Where tensors are cut."""

from __future__ import annotations

import math

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from coral.errors import FormatError
from coral.format.chunking import CHUNK_LIMIT, chunk_count, grid, spans
from coral.format.dtypes import BITS, byte_count, item_bytes

MIB = 1 << 20
dtypes = st.sampled_from(sorted(BITS))
sizes = st.integers(0, 70) | st.sampled_from([384, 1000, 1023, 1024, 4096, 50257, MIB, MIB + 1, 3 * MIB])
shapes = st.lists(sizes, max_size=4).map(tuple)


def whole(dtype: str, shape: tuple[int, ...]) -> bool:
    """Whether a tensor is a whole number of bytes, and small enough to list its chunks in a test."""
    bits = BITS[dtype] * math.prod(shape)
    return bits % 8 == 0 and bits // 8 < 4096 * MIB


@given(dtypes, shapes)
@settings(max_examples=150)
def test_spans_cover_the_tensor(dtype: str, shape: tuple[int, ...]) -> None:
    """Chunks follow each other without gap or overlap from the first byte to the last, none empty or over 1 MiB."""
    assume(whole(dtype, shape))
    position = count = 0
    for start, stop in spans(dtype, shape):
        assert start == position
        assert 0 < stop - start <= CHUNK_LIMIT
        position, count = stop, count + 1
    assert position == byte_count(dtype, shape)
    assert count == chunk_count(dtype, shape)


@given(dtypes, shapes.filter(len), st.integers(1, 5000))
@settings(max_examples=150)
def test_appended_rows_reuse_chunks(dtype: str, shape: tuple[int, ...], rows: int) -> None:
    """Rows appended to a tensor leave every whole chunk before them where it was."""
    longer = (shape[0] + rows, *shape[1:])
    assume(whole(dtype, shape) and whole(dtype, longer))
    before, after = list(spans(dtype, shape)), list(spans(dtype, longer))
    assert before[:-1] == after[: max(len(before) - 1, 0)]


@given(dtypes, shapes.filter(len), st.integers(1, 1000))
@settings(max_examples=100)
def test_the_grid_ignores_the_first_axis(dtype: str, shape: tuple[int, ...], rows: int) -> None:
    """R is a matter of the row alone: the largest power of two whose rows are at most 1 MiB."""
    row_bits = BITS[dtype] * math.prod(shape[1:])
    assume(whole(dtype, shape) and whole(dtype, (rows, *shape[1:])) and 0 not in shape)
    assume(row_bits <= 8 * MIB)
    period, step = grid(dtype, shape)
    count, rest = divmod(8 * period, row_bits)
    assume(rest == 0 and step == period)
    assert count & (count - 1) == 0
    assert period <= MIB < 2 * period or count == 0
    assert grid(dtype, (rows, *shape[1:])) == (period, step)


@pytest.mark.parametrize(
    ("dtype", "shape", "expected"),
    [
        ("F32", (), [(0, 4)]),
        ("F32", (0, 7), []),
        ("F32", (7, 0), []),
        ("F32", (3, 384), [(0, 4608)]),
        ("F32", (1025, 384), [(0, 512 * 1536), (512 * 1536, 1024 * 1536), (1024 * 1536, 1025 * 1536)]),
        ("F32", (2, 262145), [(0, MIB), (MIB, MIB + 4), (MIB + 4, 2 * MIB + 4), (2 * MIB + 4, 2 * MIB + 8)]),
        ("F4", (3, 2 * MIB), [(0, MIB), (MIB, 2 * MIB), (2 * MIB, 3 * MIB)]),
        ("F4", (2, 2 * MIB + 1), [(0, MIB), (MIB, 2 * MIB), (2 * MIB, 2 * MIB + 1)]),
        ("F6_E2M3", (4,), [(0, 3)]),
        ("U8", (MIB + 1,), [(0, MIB), (MIB, MIB + 1)]),
    ],
)
def test_the_grid_is_fixed(dtype: str, shape: tuple[int, ...], expected: list[tuple[int, int]]) -> None:
    """The cuts of this format version; a change of any of them would break deduplication against older commits."""
    assert list(spans(dtype, shape)) == expected


def test_sizes_that_are_not_whole_bytes_are_refused() -> None:
    """Three packed 4-bit elements are one byte and a half; an unknown dtype has no size."""
    for dtype, shape in (("F4", (3,)), ("F6_E3M2", ()), ("F12", (8,))):
        with pytest.raises(FormatError):
            byte_count(dtype, shape)


def test_an_element_is_at_least_a_byte_to_a_codec() -> None:
    """Codecs see packed elements as bytes."""
    assert {dtype: item_bytes(dtype) for dtype in ("F4", "F6_E2M3", "U8", "BF16", "C64")} == {
        "F4": 1,
        "F6_E2M3": 1,
        "U8": 1,
        "BF16": 2,
        "C64": 8,
    }
