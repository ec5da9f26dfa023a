"""Codecs: every bit pattern comes back, and hostile payloads are refused in bounded time and memory."""

from __future__ import annotations

import random
import struct
import threading
import tracemalloc

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from coral.errors import CorruptionError
from coral.format import codecs
from coral.format.codecs import PLANES, RAW

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
