"""What the C kernel or the numpy one writes both of them read, to the last byte, and touch no other memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coral.format.codecs.kernel import LENGTH, PLAIN, SIZE, SKEWED, START, WAY, NumpyKernel, Streams, kernel

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from coral.format.codecs.kernel import Bytes, Elements, Groups

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


def read_all(loops: NumpyKernel, payload: Bytes, lengths: list[int]) -> Streams:
    """The streams of a payload of plain ones."""
    room = np.empty(sum(lengths), np.uint8)
    found = Streams(payload, room, np.full(len(lengths), 1 << 60, np.uint64), np.array(lengths, np.uint64))
    starts = np.cumsum([4 * len(lengths), *lengths])[:-1]
    if loops.unpack(found, 0) == 0:  # numpy's leaves that to zstd
        found.places[:] = starts
    assert found.places.tolist() == starts.tolist()
    return found


def payload_of(planes: Sequence[Bytes]) -> Bytes:
    """A payload that holds them as they are."""
    sizes = np.array([plane.size for plane in planes], "<u4").view(np.uint8)
    return np.concatenate([sizes, *planes])


@given(items, lengths, kinds, seeds, offsets, st.booleans())
def test_split_and_join(item: int, length: int, kind: str, seed: int, offset: int, has_base: bool) -> None:
    """Splitting gives the same planes, and joining undoes it, with no base, a base, and one that it overwrites."""
    raw, other = pair(kind, item, length, seed, offset)
    base = other if has_base else None
    plain = np.empty((item, length), np.uint8)
    KERNELS[1].split(raw, base, plain)
    payload = payload_of(list(plain))
    # The first ones are put where they are to stay, those behind another one are copied there.
    for ways in ([PLAIN] * item, [SKEWED] + [PLAIN] * (item - 1)):
        rows = np.zeros((item, 4), np.uint64)
        rows[:, WAY] = ways
        place, whole = guarded(raw.nbytes, offset)
        data, memory = guarded(raw.nbytes, 1)
        if (done := kernel.pack_planes(raw, base, data, rows, place)) == item and not (rows[:, SIZE] >> 31).any():
            assert place.tobytes() == payload[4 * item :].tobytes()
        assert done in (0, item) and is_untouched(place, whole) and is_untouched(data, memory)

    def join(loops: NumpyKernel) -> list[Bytes]:
        out, alias = elements(raw * 0, item, offset + 1), elements(other, item, offset + 5)
        streams = read_all(loops, payload, [length] * item)
        loops.join(streams, base, out)
        loops.join(streams, alias if has_base else None, alias)
        return [out.view(np.uint8), alias.view(np.uint8)]

    for joined in both(join):
        assert joined.tobytes() == raw.tobytes()


@given(items, lengths, kinds, seeds, st.booleans())
def test_surveys_tell_the_entropy(item: int, length: int, kind: str, seed: int, has_base: bool) -> None:
    """What the planes of two samples are judged to take is their entropy, and up to 150 bytes more."""
    raw, other = pair(kind, item, length, seed, 0)
    base = other if has_base else None
    size = length // 2
    sizes = kernel.survey(raw, base, size)
    assert sizes is not None and len(sizes) == item
    planes = np.empty((item, length), np.uint8)
    KERNELS[1].split(raw, base, planes)
    middle = length // 2
    for judged, plane in zip(sizes, planes, strict=True):
        sample = np.concatenate([plane[:size], plane[middle : middle + size]])
        shares = np.unique(sample, return_counts=True)[1] / max(1, sample.size)
        least = -(shares * np.log2(shares)).sum() / 8 * sample.size
        assert min(sample.size, least - 1) <= judged <= min(sample.size, least + 150)


@given(items, lengths, kinds, seeds, offsets)
def test_keys_are_counted_alike(item: int, length: int, kind: str, seed: int, offset: int) -> None:
    """The keys of each quarter, and where segments end."""
    _, base = pair(kind, item, length, seed, offset)
    tally, _ = both(lambda loops: [part.view(np.uint8) for part in loops.count(base)])
    assert tally.view(np.uint32).sum() == length


def grouped_by(loops: NumpyKernel, raw: Elements, base: Elements) -> tuple[Groups, Bytes]:
    """What a kernel makes of differences, and the payload of its streams as they are."""
    found = loops.group(raw, base, lambda length: np.full(length, 0xEE, np.uint8))
    starts, sizes = found.rows[:, START].tolist(), found.rows[:, LENGTH].tolist()
    return found, payload_of([found.data[at : at + size] for at, size in zip(starts, sizes, strict=True)])


@given(items, lengths | st.integers(16_000, 70_000), kinds, seeds, offsets)
@settings(max_examples=200)
def test_group_and_ungroup(item: int, length: int, kind: str, seed: int, offset: int) -> None:
    """What either kernel groups both of them ungroup, apart from the base and in place of it."""
    raw, base = pair(kind, item, length, seed, offset)
    for writer in KERNELS:
        found, payload = grouped_by(writer, raw, base)

        def ungroup(loops: NumpyKernel, found: Groups = found, payload: Bytes = payload) -> list[Bytes]:
            keys, streams = loops.count(base), read_all(loops, payload, found.rows[:, LENGTH].tolist())
            out, apart = elements(base, item, offset + 1), elements(np.zeros_like(base), item, offset + 2)
            for target, before in ((out, out), (apart, base)):
                place, whole = guarded(2 * raw.nbytes, offset)
                assert loops.ungroup(streams, found.modes, found.escaped, keys, before, target, place)
                assert is_untouched(place, whole)
            return [out.view(np.uint8), apart.view(np.uint8)]

        for joined in both(ungroup):
            assert joined.tobytes() == raw.tobytes()


@given(items, lengths, seeds, widths, st.integers(0, 40))
def test_rubbish_in_packed_differences(item: int, length: int, seed: int, width: int, escaped: int) -> None:
    """Codes that call for more escaped elements than there are, or for fewer, are refused; reading stays in bounds."""
    rng = np.random.default_rng(seed)
    _, base = pair("noise", item, min(length, 16_383), seed, 0)
    packed = rng.integers(0, 256, -(-base.size * width // 8), np.uint8)
    codes = [int(byte) >> shift & ((1 << width) - 1) for byte in packed for shift in range(0, 8, width)][: base.size]
    calls = codes.count((1 << width) - 1)
    modes = bytes([width]) * bool(base.size)
    for count in {min(escaped, base.size), min(calls, base.size)}:
        large = rng.integers(0, 256, (item, count), np.uint8)
        payload = payload_of([packed] * bool(base.size) + list(large))
        lengths = [packed.size] * bool(base.size) + [count] * item

        def ungroup(
            loops: NumpyKernel, payload: Bytes = payload, lengths: list[int] = lengths, count: int = count
        ) -> list[Bytes]:
            out = np.zeros_like(base)
            streams, room = read_all(loops, payload, lengths), np.empty(2 * base.nbytes, np.uint8)
            fits = loops.ungroup(streams, modes, count, loops.count(base), base, out, room)
            assert fits is (count == calls)
            return [out.view(np.uint8)] if fits else []

        both(ungroup)


@pytest.mark.parametrize("item", [1, 2, 4, 8])
@pytest.mark.parametrize("reach", [1, 7])
def test_small_differences_are_packed(item: int, reach: int) -> None:
    """Where most elements stay as they are, differences of up to 1 take two bits, up to 7 four; others are kept."""
    rng = np.random.default_rng(0)
    base = np.full(1 << 14, 1, f"<u{item}") << np.array(8 * item - 2, f"<u{item}")
    steps = rng.integers(-reach, reach + 1, base.size) * (rng.random(base.size) < 0.1)
    steps[[5000, 9000]] = reach + 1  # beyond what a segment is judged by
    raw = base + steps.astype(f"<i{item}").view(f"<u{item}")
    found, payload = grouped_by(kernel, raw, base)
    assert found.modes == bytes([2 if reach == 1 else 4]) and found.escaped == 2
    keys, out = kernel.count(base), np.zeros_like(base)
    streams = read_all(kernel, payload, found.rows[:, LENGTH].tolist())
    assert kernel.ungroup(streams, found.modes, 2, keys, base, out, np.empty(2 * raw.nbytes, np.uint8))
    assert out.tobytes() == raw.tobytes()
