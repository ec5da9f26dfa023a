"""The C kernel and the numpy one do the same to every byte, so that what one of them wrote the other one reads."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coral.format.codecs.kernel import NumpyKernel, kernel, upper_byte

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from coral.format.codecs.kernel import Bytes, Elements, Tally

if not kernel.is_native:
    pytest.skip("NOT TESTED: the C kernel was not built", allow_module_level=True)

KERNELS = (kernel, NumpyKernel())
KINDS = ("noise", "near", "same", "floats", "skewed")
MARGIN = 16

items = st.sampled_from([1, 2, 4, 8])
lengths = st.sampled_from([0, 1, 2, 3, 4, 5, 7, 8, 9, 31, 33, 1023, 1024, 1025, 2047, 4099]) | st.integers(0, 3000)
seeds = st.integers(0, 1 << 32)
offsets = st.integers(0, 7)
kinds = st.sampled_from(KINDS)
widths = st.sampled_from([2, 4])


def guarded(nbytes: int, offset: int) -> tuple[Bytes, Bytes]:
    """Bytes that begin at any address, and all the memory around them, which nobody may touch."""
    whole = np.full(nbytes + 2 * MARGIN, 0xA5, np.uint8)
    shift = 8 + (offset - whole.__array_interface__["data"][0]) % 8
    return whole[shift : shift + nbytes], whole


def is_untouched(place: Bytes, whole: Bytes) -> bool:
    """Whether nothing was written around a place."""
    shift = place.__array_interface__["data"][0] - whole.__array_interface__["data"][0]
    return bool((np.delete(whole, slice(shift, shift + place.size)) == 0xA5).all())


def elements(data: NDArray[np.unsignedinteger], item: int, offset: int) -> Elements:
    """The same numbers at an address that is a multiple of nothing."""
    place, _ = guarded(data.size * item, offset)
    place[:] = data.astype(f"<u{item}").view(np.uint8)
    return place.view(f"<u{item}")


def pair(kind: str, item: int, length: int, seed: int, offset: int) -> tuple[Elements, Elements]:
    """Elements and their bases, as alike as ``kind`` says."""
    rng = np.random.default_rng(seed)
    base = rng.integers(0, (1 << (8 * item)) - 1, length, np.uint64, endpoint=True)
    if kind == "floats":
        base = np.round(rng.standard_normal(length) * 40).astype(np.int64).astype(np.uint64)
    steps = {
        "noise": rng.integers(0, 1 << 62, length),
        "near": rng.integers(-9, 10, length),
        "same": np.zeros(length, np.int64),
        "floats": rng.integers(-2, 3, length),
        "skewed": rng.integers(-1, 2, length) * (rng.random(length) < 0.1) * rng.integers(1, 1 << 20, length),
    }[kind]
    raw = base + steps.astype(np.uint64)
    return elements(raw, item, offset), elements(base, item, offset + 3)


def both(run: Callable[[NumpyKernel], list[Bytes]]) -> list[Bytes]:
    """What both kernels give, which must be the same."""
    native, plain = (run(loops) for loops in KERNELS)
    assert len(native) == len(plain)
    for one, other in zip(native, plain, strict=True):
        assert one.tobytes() == other.tobytes()
    return native


def planes_of(loops: NumpyKernel, raw: Elements, base: Elements | None) -> Bytes:
    """The planes of elements, with a margin that must stay as it was."""
    place, whole = guarded(raw.nbytes, 1)
    planes = place.reshape(raw.itemsize, raw.size)
    loops.split(raw, base, planes)
    assert is_untouched(place, whole)
    return planes


@given(items, lengths, kinds, seeds, offsets, st.booleans())
def test_split_and_join(item: int, length: int, kind: str, seed: int, offset: int, has_base: bool) -> None:
    """Splitting gives the same planes, and joining undoes it, with no base, a base, and one that it overwrites."""
    raw, other = pair(kind, item, length, seed, offset)
    base = other if has_base else None
    (planes,) = both(lambda loops: [planes_of(loops, raw, base)])
    planes = planes.reshape(item, length)

    def join(loops: NumpyKernel) -> list[Bytes]:
        out, alias = elements(raw * 0, item, offset + 1), elements(other, item, offset + 5)
        rows = [elements(plane, 1, number + offset) for number, plane in enumerate(planes)]
        loops.join(rows, base, out)
        loops.join(rows, alias if has_base else None, alias)
        return [out.view(np.uint8), alias.view(np.uint8)]

    for joined in both(join):
        assert joined.tobytes() == raw.tobytes()


@given(items, lengths, kinds, seeds, offsets)
def test_group_and_ungroup(item: int, length: int, kind: str, seed: int, offset: int) -> None:
    """Counting and sorting by key agree to the last element, and ungrouping undoes it in place of the base."""
    raw, base = pair(kind, item, length, seed, offset)

    def group(loops: NumpyKernel) -> list[Bytes]:
        tally = loops.tally(base)
        planes = np.full((item, length), 0xEE, np.uint8)
        loops.group(raw, base, tally, planes)
        return [tally.view(np.uint8), planes]

    counted, planes = both(group)
    tally: Tally = counted.view(np.uint32)
    assert tally.shape == (4, 256) and tally.sum() == length

    def ungroup(loops: NumpyKernel) -> list[Bytes]:
        out = elements(base, item, offset + 1)
        parts = [elements(plane, 1, number) for number, plane in enumerate(planes)]
        loops.ungroup(parts, out, tally, out)
        apart = elements(np.zeros_like(base), item, offset + 2)
        loops.ungroup(parts, elements(base, item, offset), tally, apart)
        assert apart.tobytes() == out.tobytes()
        return [out.view(np.uint8)]

    assert both(ungroup)[0].tobytes() == raw.tobytes()


@given(items, lengths, kinds, seeds, widths, st.floats(0, 1), st.floats(0, 1), st.integers(0, 3))
@settings(max_examples=200)
def test_narrow_and_widen(
    item: int, length: int, kind: str, seed: int, width: int, one: float, two: float, count: int
) -> None:
    """Packed codes and what escapes them agree for any stretch of the planes, and widening undoes it."""
    raw, base = pair(kind, item, length, seed, 0)
    planes = planes_of(kernel, raw, base)
    start, stop = sorted((int(one * length), int(two * length)))
    packed_length = -(-(stop - start) * width // 8)

    def narrow(loops: NumpyKernel) -> list[Bytes]:
        packed, memory = guarded(packed_length, 3)
        escaped = np.full((item, length + count), 0xEE, np.uint8)
        after = loops.narrow(planes, start, stop, width, packed, escaped, count)
        assert is_untouched(packed, memory)
        return [packed, escaped, np.array([after]).view(np.uint8)]

    packed, escaped, after = both(narrow)
    (total,) = after.view(np.int64).tolist()

    def widen(loops: NumpyKernel) -> list[Bytes]:
        out = np.full((item, length), 0xEE, np.uint8)
        found = loops.widen(packed, start, stop, width, np.ascontiguousarray(escaped[:, :total]), count, out)
        return [out, np.array([found]).view(np.uint8)]

    out, found = both(widen)
    assert out[:, start:stop].tobytes() == planes[:, start:stop].tobytes()
    assert (out[:, :start] == 0xEE).all() and (out[:, stop:] == 0xEE).all(), "the neighbours are left alone"
    assert found.view(np.int64).tolist() == [total]


@given(items, lengths, seeds, widths, st.integers(0, 40), st.integers(0, 50))
def test_widen_of_rubbish(item: int, length: int, seed: int, width: int, held: int, count: int) -> None:
    """Codes that call for more escaped elements than there are give the same count and bytes, and read nothing else."""
    rng = np.random.default_rng(seed)
    packed = rng.integers(0, 256, -(-length * width // 8), np.uint8)
    escaped = rng.integers(0, 256, (item, held), np.uint8)

    def widen(loops: NumpyKernel) -> list[Bytes]:
        planes = np.full((item, length), 0xEE, np.uint8)
        found = loops.widen(packed, 0, length, width, escaped, count, planes)
        return [planes, np.array([found]).view(np.uint8)]

    both(widen)


@pytest.mark.parametrize("item", [1, 2, 4, 8])
@pytest.mark.parametrize("width", [2, 4])
def test_every_small_difference(item: int, width: int) -> None:
    """Just the differences with a code of their own are packed: one fewer than there are codes, around zero."""
    base = np.arange(100, 164, dtype=f"<u{item}")
    steps = np.arange(-32, 32).astype(f"<i{item}").view(f"<u{item}")
    planes = planes_of(kernel, base + steps, base)

    def narrow(loops: NumpyKernel) -> list[Bytes]:
        escaped = np.zeros((item, 64), np.uint8)
        count = loops.narrow(planes, 0, 64, width, np.zeros(8 * width, np.uint8), escaped, 0)
        return [escaped[:, :count]]

    (escaped,) = both(narrow)
    half = (1 << width) // 2 - 1
    assert escaped.shape[1] == 64 - (2 * half + 1)
    for number in range(1, item):
        assert upper_byte(item, number) == planes[number, 32], "a difference of zero has the bias's own bytes"


def test_large_planes_are_the_same() -> None:
    """A whole chunk, with long runs and rare large differences, beyond every block and counter of the loops."""
    for item in (1, 2, 4, 8):
        raw, base = pair("skewed", item, (1 << 20) // item - 1, item, 1)
        both(lambda loops, raw=raw, base=base: [planes_of(loops, raw, base), loops.tally(base).view(np.uint8)])  # type: ignore[misc]
