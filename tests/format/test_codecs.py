"""Codecs: every bit pattern comes back, and hostile payloads are refused in bounded time and memory."""

from __future__ import annotations

import contextlib
import itertools
import random
import struct
import threading
import tracemalloc
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from coral.errors import CorruptionError
from coral.format import codecs
from coral.format.codecs import DELTA, GROUPED, PLANES, RAW, Base, grouped, planes, streams
from coral.format.codecs.kernel import NumpyKernel, elements_of, kernel
from coral.ids import ID_BYTES, ChunkId, chunk_id

LENGTHS = [0, 1, 2, 3, 7, 8, 63, 64, 255, 256, 257, 511, 512, 4096, 4099, 70_000, 262_144, 1 << 20]
COMPRESSED = 1 << 31


def random_floats(count: int, scale: float = 0.02) -> bytes:
    """Numbers such as trained weights are."""
    return (np.random.default_rng(0).standard_normal(count) * scale).astype("<f4").tobytes()


def bf16_floats(count: int) -> bytes:
    """The upper halves of such numbers."""
    return (np.frombuffer(random_floats(count), "<u4") >> 16).astype("<u2").tobytes()


PATTERNS = {
    "zeros": bytes(1 << 20),
    "ones": b"\xff" * (1 << 20),
    "noise": random.Random(0).randbytes(1 << 20),
    "text": b"the quick brown fox jumps over the lazy dog; " * 24_000,
    "floats": random_floats(1 << 18),
    "bf16": bf16_floats(1 << 19),
    "denormals": random_floats(1 << 18, 1e-42),
    "nan payloads": np.arange(0x7F800001, 0x7F800001 + (1 << 18), dtype="<u4").tobytes(),
    "negative zero": struct.pack("<f", -0.0) * (1 << 18),
    "counter": np.arange(1 << 17, dtype="<u8").tobytes(),
    "one odd": bytes((1 << 20) - 1) + b"\x01",
}


def round_trip(raw: bytes, item: int) -> tuple[int, int]:
    """Encode and decode; returns the codec and the payload's length."""
    codec, payload = codecs.encode(memoryview(raw), item)
    kept = bytes(payload)
    out = bytearray(b"\xaa" * len(raw))
    codecs.decode_into(codec, item, memoryview(kept), memoryview(out))
    assert bytes(out) == raw
    return codec, len(kept)


@pytest.mark.parametrize("item", [1, 2, 4, 8])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_every_pattern_comes_back(pattern: str, item: int) -> None:
    """Bytes are kept, not values: NaN payloads, -0.0, denormals and noise, at any length, also odd ones."""
    for length in LENGTHS:
        raw = PATTERNS[pattern][:length]
        codec, stored = round_trip(raw, item)
        assert stored <= len(raw)
        assert codec == RAW or stored < len(raw)


@given(st.binary(max_size=600) | st.binary(max_size=40).map(lambda part: part * 40), st.sampled_from([1, 2, 3, 4, 8]))
def test_any_bytes_come_back(raw: bytes, item: int) -> None:
    """Whatever the bytes and the size of an element."""
    round_trip(raw, item)


@pytest.mark.parametrize(
    ("pattern", "item", "ratio"),
    [("floats", 4, 0.85), ("bf16", 2, 0.70), ("zeros", 4, 0.01), ("text", 1, 0.05), ("noise", 4, 1.0)],
)
def test_what_pays(pattern: str, item: int, ratio: float) -> None:
    """Weights shrink to the measured share, repetition to next to nothing, and noise is left alone."""
    raw = PATTERNS[pattern]
    codec, stored = round_trip(raw, item)
    assert stored <= ratio * len(raw)
    assert (codec == RAW) == (pattern == "noise")


def test_threads_do_not_share_scratch() -> None:
    """Two threads encode at once, each what it was given."""
    failures: list[BaseException] = []

    def work(pattern: str, item: int) -> None:
        try:
            for _ in range(20):
                round_trip(PATTERNS[pattern][: 1 << 17], item)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=pair) for pair in [("floats", 4), ("bf16", 2), ("text", 1)]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def refused(codec: int, item: int, payload: bytes, length: int) -> bool:
    """Whether a payload is refused; anything but CorruptionError propagates."""
    try:
        codecs.decode_into(codec, item, memoryview(payload), memoryview(bytearray(length)))
    except CorruptionError:
        return True
    return False


@given(
    st.integers(0, 255),
    st.integers(0, 255) | st.sampled_from([1, 2, 4, 8]),
    st.binary(max_size=300),
    st.integers(0, 1000),
)
@settings(max_examples=200)
def test_hostile_payloads(codec: int, item: int, payload: bytes, length: int) -> None:
    """Any payload whatever decodes to exactly the length asked for, or is refused."""
    refused(codec, item, payload, length)


@given(st.sampled_from(["floats", "bf16", "text", "zeros"]), st.floats(0, 1), st.integers(0, 255), st.integers(-9, 9))
def test_damaged_payloads(pattern: str, where: float, value: int, change: int) -> None:
    """A payload with a changed byte, cut short or too long decodes to the right length or is refused."""
    raw = PATTERNS[pattern][:4096]
    codec, payload = codecs.encode(memoryview(raw), 4)
    damaged = bytearray(payload)
    damaged[int(where * (len(damaged) - 1))] = value
    refused(codec, 4, bytes(damaged), len(raw))
    cut = bytes(payload)[:change] if change < 0 else bytes(payload) + bytes(change)
    assert refused(codec, 4, cut, len(raw)) or change == 0


@pytest.mark.parametrize("claimed", [1 << 34, 1 << 20, 0])
def test_bombs_are_refused(claimed: int) -> None:
    """A frame that claims to hold gigabytes is refused before anything is allocated for it."""
    bomb = zstandard.ZstdCompressor().compress(bytes(1 << 24)) if claimed else zstandard.ZstdCompressor().compress(b"")
    payload = struct.pack("<I", len(bomb) | COMPRESSED) + bomb
    tracemalloc.start()
    try:
        assert refused(PLANES, 1, payload, 4096)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_a_frame_that_hides_its_size_is_refused() -> None:
    """Without a size in its head a frame could grow without end."""
    frame = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(4096))
    assert refused(PLANES, 1, struct.pack("<I", len(frame) | COMPRESSED) + frame, 4096)


def test_unknown_codecs_are_refused() -> None:
    """A codec of a newer coral, or a damaged number, is no raw copy."""
    assert refused(7, 1, b"abcd", 4)
    assert refused(RAW, 1, b"abc", 4)


# -- deltas

Numbers = NDArray[np.unsignedinteger[Any]]
CODECS = (RAW, PLANES, DELTA, GROUPED)
LOOPS = [pytest.param(kernel, id="native" if kernel.is_native else "numpy, NOT TESTED: the C kernel")]
if kernel.is_native:
    LOOPS.append(pytest.param(NumpyKernel(), id="numpy"))
SOME_ID = ChunkId(bytes(range(ID_BYTES)))

items = st.sampled_from([1, 2, 4, 8])
sizes = st.sampled_from([0, 1, 63, 64, 65, 127, 4097, 16_383, 16_384, 16_385, 70_000]) | st.integers(0, 70_000)
kinds = st.sampled_from(["equal", "small", "rare", "huge", "mixed", "sorted", "noise"])
seeds = st.integers(0, 1 << 32)


@contextlib.contextmanager
def using(loops: NumpyKernel) -> Iterator[None]:
    """Have the codecs use this kernel."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (codecs, planes, grouped, streams):
            patch.setattr(module, "kernel", loops, raising=False)
        yield


@cache
def weights(item: int, seed: int) -> bytes:
    """Trained weights of that width; of 1 byte the upper halves of 2."""
    numbers = np.random.default_rng(seed).standard_normal(70_001) * 0.02
    if item == 8:
        return numbers.astype("<f8").tobytes()
    return (numbers.astype("<f4").view("<u4") >> (32 - 8 * item)).astype(f"<u{item}").tobytes()


def series(kind: str, item: int, size: int, seed: int) -> tuple[bytes, bytes]:
    """A chunk, and the one that stood there before."""
    rng = np.random.default_rng(seed)
    base = np.frombuffer(weights(item, seed % 3), f"<u{item}")[:size].copy()
    if kind == "noise":
        return rng.bytes(size * item), base.tobytes()
    if kind == "sorted":
        base.sort()
    small, huge = rng.integers(-3, 4, size), rng.integers(0, 1 << 62, size)
    steps = {
        "equal": np.zeros(size, np.int64),
        "small": small,
        "sorted": small,
        "rare": np.where(rng.random(size) < 0.01, huge, 0),
        "huge": huge,
        "mixed": np.where(rng.random(size) < 0.2, huge, small),
    }[kind]
    return (base + steps.astype(np.uint64).astype(base.dtype)).tobytes(), base.tobytes()


def fitted(base: bytes, length: int) -> bytes:
    """A base as its delta sees it: cut, or followed by zeros."""
    return base[:length] + bytes(length - len(base[:length]))


def force(codec: int, raw: bytes, item: int, base: bytes) -> bytes:
    """The payload in a codec of our choice; ``item`` divides the length."""
    if codec == RAW:
        return raw
    elements, others = (elements_of(memoryview(data), item) for data in (raw, fitted(base, len(raw))))
    if codec == GROUPED:
        return bytes(grouped.encode(elements, others, head=SOME_ID))
    if codec == DELTA:
        return bytes(planes.encode(elements, planes.survey(elements, others), base=others, head=SOME_ID))
    return bytes(planes.encode(elements, planes.survey(elements)))


def decode(codec: int, item: int, payload: bytes, length: int, base: bytes) -> bytes:
    """What a payload decodes to, over a base that is stored in any length."""

    def read_base(chunk: ChunkId, into: memoryview) -> memoryview:
        into[:] = fitted(base, len(into))
        return into

    out = bytearray(b"\xaa" * length)
    codecs.decode_into(codec, item, memoryview(payload), memoryview(out), read_base)
    return bytes(out)


@pytest.mark.parametrize("writer", LOOPS)
@pytest.mark.parametrize("reader", LOOPS)
@given(st.sampled_from(CODECS), items, kinds, sizes, seeds, st.integers(-70_000, 70_000) | st.just(0))
@settings(max_examples=150)
def test_every_codec_comes_back(
    writer: NumpyKernel, reader: NumpyKernel, codec: int, item: int, kind: str, size: int, seed: int, more: int
) -> None:
    """In every codec, with any differences to a base of any length, what one kernel writes the other one reads."""
    raw, base = series(kind, item, size, seed)
    base = fitted(base, max(0, len(base) + more))
    with using(writer):
        payload = force(codec, raw, item, base)
    with using(reader):
        assert decode(codec, item, payload, len(raw), base) == raw


@pytest.mark.parametrize("loops", LOOPS)
@given(items, kinds, sizes, seeds, st.integers(0, 7), st.booleans())
@settings(max_examples=150)
def test_what_encode_chooses_comes_back(
    loops: NumpyKernel, item: int, kind: str, size: int, seed: int, odd: int, is_related: bool
) -> None:
    """Whatever the codec it takes, also where elements are cut or the base has nothing to do with the chunk."""
    raw, before = series(kind, item, size, seed)
    raw = raw[: max(0, len(raw) - odd)]
    base = fitted(before if is_related else PATTERNS["text"], len(raw))
    with using(loops):
        codec, payload = codecs.encode(memoryview(raw), item, Base(SOME_ID, memoryview(base)))
        kept = bytes(payload)
        assert len(kept) <= len(raw)
        assert codecs.base_of(codec, memoryview(kept)) == (SOME_ID if codec in codecs.WITH_BASE else None)
        assert decode(codec, item, kept, len(raw), base) == raw


def difference_patterns() -> dict[str, Numbers]:
    """Bases for the 65,536 elements of two bytes, in their order."""
    every = np.arange(1 << 16, dtype="<u2")
    shuffled = np.random.default_rng(1).permutation(every).astype("<u2")
    constant = {f"all {value:#x}": np.full(1 << 16, value, "<u2") for value in (0, 1, 0x7F, 0x80, 0x7F80, 0xFFFF)}
    return {
        "itself": every,
        "one less": every - np.uint16(1),
        "shuffled": shuffled,
        "reversed": every[::-1],
        **constant,
    }


@pytest.mark.parametrize("loops", LOOPS)
@pytest.mark.parametrize("codec", [DELTA, GROUPED])
@pytest.mark.parametrize("pattern", difference_patterns())
def test_all_elements_of_two_bytes(pattern: str, codec: int, loops: NumpyKernel) -> None:
    """Every bit pattern of a bfloat16 comes back, whatever the base."""
    raw, base = np.arange(1 << 16, dtype="<u2").tobytes(), difference_patterns()[pattern].tobytes()
    with using(loops):
        assert decode(codec, 2, force(codec, raw, 2, base), len(raw), base) == raw
        assert decode(codec, 2, force(codec, base, 2, raw), len(raw), raw) == base


def test_what_a_delta_saves() -> None:
    """Weights that moved a little take a fraction, those that did not next to nothing, others what they always did."""
    raw, base = series("small", 2, 70_000, 0)
    alone, near, same, far = (
        codecs.encode(memoryview(raw), 2, Base(SOME_ID, memoryview(found)) if found else None)[1].nbytes
        for found in (b"", base, raw, random.Random(1).randbytes(len(raw)))
    )
    assert near < 0.45 * alone
    assert same < 0.01 * alone
    assert far == alone


@pytest.mark.parametrize("loops", LOOPS)
@pytest.mark.parametrize("item", [1, 2, 4, 8])
def test_a_delta_that_turns_out_large_is_not_taken(item: int, loops: NumpyKernel) -> None:
    """Samples that happen to meet only what did not change do not make a chunk larger than it is without a base."""
    size, rng = 65_536, np.random.default_rng(5)
    raw, base = rng.integers(0, 4, size).astype(f"<u{item}"), (16 * rng.integers(0, 4, size)).astype(f"<u{item}")
    for start in (0, size // 2):
        base[start : start + 2048] = raw[start : start + 2048]
    with using(loops):
        alone = codecs.encode(memoryview(raw.tobytes()), item)[1].nbytes
        with_base = codecs.encode(memoryview(raw.tobytes()), item, Base(SOME_ID, memoryview(base.tobytes())))[1].nbytes
    assert with_base <= 1.01 * alone


# -- hostile deltas


def outcome(codec: int, item: int, payload: bytes, length: int, base: bytes) -> bytes | None:
    """The bytes that a payload decodes to, None when it is refused; every kernel says the same, within its bounds."""
    found: list[bytes | None] = []
    for loops in (param.values[0] for param in LOOPS):
        assert isinstance(loops, NumpyKernel)
        with using(loops):
            try:
                found.append(decode(codec, item, payload, length, base))
            except CorruptionError:
                found.append(None)
    assert found.count(found[0]) == len(found)
    return found[0]


@cache
def example(codec: int, item: int, kind: str = "mixed", size: int = 97) -> tuple[bytes, bytes, bytes]:
    """A chunk, its base and its payload."""
    raw, base = series(kind, item, size, 1)
    return raw, base, force(codec, raw, item, base)


@pytest.mark.parametrize("item", [1, 2, 4, 8])
@pytest.mark.parametrize("codec", CODECS)
def test_cut_payloads_are_refused(codec: int, item: int) -> None:
    """A payload cut at any byte, or with any bytes after it, is refused."""
    raw, base, payload = example(codec, item)
    assert outcome(codec, item, payload, len(raw), base) == raw
    for length in range(len(payload)):
        assert outcome(codec, item, payload[:length], len(raw), base) is None
    for more in (b"\0", b"\xff" * 9, payload):
        assert outcome(codec, item, payload + more, len(raw), base) is None


@given(
    st.sampled_from([PLANES, DELTA, GROUPED]),
    items,
    st.sampled_from(["small", "rare", "mixed"]),
    st.sampled_from([97, 20_000]),
    st.lists(st.tuples(st.floats(0, 1), st.integers(1, 255)), min_size=1, max_size=3),
)
@settings(max_examples=300)
def test_flipped_payloads(codec: int, item: int, kind: str, size: int, flips: list[tuple[float, int]]) -> None:
    """Flipped bits give other bytes or are refused, and both kernels say the same."""
    raw, base, payload = example(codec, item, kind, size)
    damaged = bytearray(payload)
    for where, flip in flips:
        # Most of the time in the head, where it hurts more.
        at = int(where * 2 * 60) if where < 0.5 else int((2 * where - 1) * len(damaged))
        damaged[min(at, len(damaged) - 1)] ^= flip
    outcome(codec, item, bytes(damaged), len(raw), base)


@given(
    st.sampled_from([DELTA, GROUPED]),
    st.integers(0, 255) | items,
    st.binary(max_size=200).map(lambda rest: SOME_ID + rest) | st.binary(max_size=60),
    st.integers(0, 400),
)
@settings(max_examples=300)
def test_rubbish_over_a_base(codec: int, item: int, payload: bytes, length: int) -> None:
    """Any payload whatever, of any width, decodes to the length asked for or is refused."""
    found = outcome(codec, item, payload, length, b"base" * 50)
    assert found is None or len(found) == length


def test_a_base_that_nobody_can_read_is_refused() -> None:
    """A delta without a base, or without a way to read one, is no raw copy."""
    raw, _, payload = example(DELTA, 2)
    assert refused(DELTA, 2, payload, len(raw))
    for codec in codecs.WITH_BASE:
        for short in (b"", SOME_ID[:31]):
            with pytest.raises(CorruptionError):
                codecs.base_of(codec, memoryview(short))


def streams_at(codec: int, size: int) -> int:
    """Where the table of stored sizes begins; chunks of under 16,384 elements have one segment."""
    return {PLANES: 0, DELTA: ID_BYTES, GROUPED: ID_BYTES + 4 + -(-size // 16_384)}[codec]


def peak(codec: int, item: int, payload: bytes, length: int, base: bytes) -> int:
    """Bytes allocated at most while a payload is refused."""
    tracemalloc.start()
    try:
        assert outcome(codec, item, payload, length, base) is None
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("codec", [PLANES, DELTA, GROUPED])
def test_absurd_sizes_are_refused(codec: int) -> None:
    """Stored sizes of up to 2 GiB, raw or compressed, are refused before anything is allocated for them."""
    raw, base, payload = example(codec, 2)
    at = streams_at(codec, len(raw) // 2)
    for position, size in itertools.product((at, at + 4), ((1 << 31) - 1, (1 << 32) - 1, 1 << 31, 0, 1 << 30)):
        damaged = payload[:position] + struct.pack("<I", size) + payload[position + 4 :]
        assert peak(codec, 2, damaged, len(raw), base) < 1 << 20
    # Together they are as long as they should be, each of them is not.
    first, second = struct.unpack_from("<II", payload, at)
    if not (first | second) & COMPRESSED:
        swapped = payload[:at] + struct.pack("<II", first - 1, second + 1) + payload[at + 8 :]
        assert peak(codec, 2, swapped, len(raw), base) < 1 << 20
    everything = payload[:at] + b"\xff\xff\xff\x7f" * ((len(payload) - at) // 4)
    assert peak(codec, 2, everything, len(raw), base) < 1 << 20


def bombs(length: int) -> Iterator[bytes]:
    """Frames that are much more than ``length``: one that says so, one that does not, and one that says nothing."""
    honest = zstandard.ZstdCompressor(write_checksum=False).compress(bytes(1 << 26))
    yield honest
    # The size of the content, 4 bytes after the frame's head and the window's size.
    at = honest.index(struct.pack("<I", 1 << 26))
    yield honest[:at] + struct.pack("<I", length) + honest[at + 4 :]
    yield zstandard.ZstdCompressor(write_content_size=False).compress(bytes(1 << 26))


@pytest.mark.parametrize("codec", [PLANES, DELTA, GROUPED])
def test_bombs_over_a_base_are_refused(codec: int) -> None:
    """A stream of 64 MiB in the place of a small one costs no more memory than the chunk."""
    _, base = series("huge", 1, 5000, 1)
    head = {PLANES: b"", DELTA: SOME_ID, GROUPED: SOME_ID + struct.pack("<I", 0) + b"\0"}[codec]
    for bomb in bombs(5000):
        tail = struct.pack("<I", len(bomb) | COMPRESSED)
        payload = head + (tail + struct.pack("<I", 0) if codec == GROUPED else tail) + bomb
        assert peak(codec, 1, payload, 5000, base) < 1 << 20


def test_wrong_counts_are_refused() -> None:
    """More or fewer escaped elements than the codes call for are refused, up to more than the chunk has."""
    for item, kind in itertools.product((1, 2, 4, 8), ("small", "mixed")):
        raw, base, payload = example(GROUPED, item, kind)
        (count,) = struct.unpack_from("<I", payload, ID_BYTES)
        for wrong in {0, 1, count - 1, count + 1, 97, 98, (1 << 31) - 1, (1 << 32) - 1} - {count, -1}:
            damaged = payload[:ID_BYTES] + struct.pack("<I", wrong) + payload[ID_BYTES + 4 :]
            assert peak(GROUPED, item, damaged, len(raw), base) < 1 << 20


def test_escaped_elements_that_no_code_calls_for_are_refused() -> None:
    """Streams that are sound in themselves and hold one escaped element too many, or one too few, are refused."""
    base, raw = bytes(64), bytes(63) + b"\x40"
    codes = bytes([0b01010101]) * 15 + bytes([0b11010101])

    def payload(count: int) -> bytes:
        streams = struct.pack("<II", 16, count) + codes + b"\xc0" * count
        return SOME_ID + struct.pack("<I", count) + b"\x02" + streams

    assert outcome(GROUPED, 1, payload(1), 64, base) == raw
    for count in (0, 2, 3, 64, 65):
        assert outcome(GROUPED, 1, payload(count), 64, base) is None
    bomb = zstandard.ZstdCompressor().compress(bytes(1 << 26))
    streams = struct.pack("<II", 16, len(bomb) | COMPRESSED) + codes + bomb
    assert peak(GROUPED, 1, SOME_ID + struct.pack("<I", 1 << 26) + b"\x02" + streams, 64, base) < 1 << 20


def test_wrong_modes_are_refused() -> None:
    """A segment in a mode that this coral does not know, or in another than it was written in, is refused."""
    for kind in ("small", "huge", "equal"):
        raw, base, payload = example(GROUPED, 2, kind, 300)
        at = ID_BYTES + 4
        for mode in set(range(256)) - {payload[at]}:
            assert outcome(GROUPED, 2, payload[:at] + bytes([mode]) + payload[at + 1 :], len(raw), base) is None
    for mode in set(range(256)) - {0, 2, 4}:
        codes = bytes(8 * mode)
        streams = struct.pack("<II", len(codes), 0) + codes
        assert outcome(GROUPED, 1, SOME_ID + bytes(4) + bytes([mode]) + streams, 64, bytes(64)) is None


def test_another_base_gives_other_bytes() -> None:
    """A codec does not notice a wrong base, whose keys and segments differ; whoever verifies the id does."""
    for codec, item in itertools.product((DELTA, GROUPED), (1, 2, 4, 8)):
        raw, base, payload = example(codec, item, "mixed", 20_000)
        wrong = random.Random(2).randbytes(len(base))
        assert chunk_id(outcome(codec, item, payload, len(raw), wrong) or b"") != chunk_id(raw)
