"""The kernel's Huffman encoder writes frames that any zstd decoder reads, and nothing outside of them."""

from __future__ import annotations

import ctypes
import random
import threading
from typing import TYPE_CHECKING

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from coral.format.codecs import streams
from coral.format.codecs.kernel import LIBRARY, kernel

if TYPE_CHECKING:
    from coral.format.codecs.kernel import Bytes

if not kernel.is_native:
    pytest.skip("NOT TESTED: the C kernel was not built", allow_module_level=True)

BLOCK = 1 << 16
LEAST = 256
MARGIN = 64
KINDS = ("noise", "few", "two", "same", "geometric", "peak", "normal", "steps", "mixed")
EDGES = [0, 1, 2, 3, 4, 5, 63, 64, 255, 256, 257, 1023, 1024, 1027, 4093, 16_383, 16_384, BLOCK - 1, BLOCK, BLOCK + 1]
EDGES += [BLOCK + 255, BLOCK + 256, 2 * BLOCK - 1, 2 * BLOCK, 2 * BLOCK + 255, 4 * BLOCK, 300_000]

kinds = st.sampled_from(KINDS)
lengths = st.sampled_from(EDGES) | st.integers(0, 3000) | st.integers(0, 300_000)
seeds = st.integers(0, 1 << 32)

encode = ctypes.CDLL(str(LIBRARY)).coral_huffman
encode.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p, ctypes.c_size_t]
encode.restype = ctypes.c_size_t


def sample(kind: str, length: int, seed: int) -> Bytes:
    """Bytes with that distribution; the seed says how skewed they are, and which they are."""
    rng = np.random.default_rng(seed)
    symbols = rng.permutation(256).astype(np.uint8)
    skew, size = rng.random(), int(rng.integers(2, 257))
    if kind == "mixed":
        parts = rng.multinomial(length, rng.dirichlet(np.ones(3)))
        chosen = rng.choice(KINDS[:-1], 3).tolist()
        return np.concatenate([sample(of, int(part), seed + 1) for of, part in zip(chosen, parts, strict=True)])
    numbers = {
        "noise": lambda: rng.integers(0, 256, length),
        "few": lambda: rng.integers(0, size, length),
        "two": lambda: rng.random(length) < skew,
        "same": lambda: np.zeros(length, np.uint8),
        "geometric": lambda: np.minimum(rng.geometric(0.02 + 0.96 * skew, length), 255),
        "peak": lambda: np.where(rng.random(length) < skew, 0, rng.integers(0, size, length)),
        "normal": lambda: np.abs(rng.standard_normal(length) * 80 * skew),
        "steps": lambda: np.repeat(rng.integers(0, size, length // 7 + 1), 7)[:length],
    }[kind]()
    data = numbers.astype(np.uint8)
    return symbols[data] if seed % 2 else data


def frame_of(data: Bytes, room: int | None = None) -> bytes:
    """The frame, empty where there is none; all that it has to be is checked, and that no other memory was touched."""
    room = data.size if room is None else room
    memory = np.full(room + 2 * MARGIN, 0xA5, np.uint8)
    kept = data.copy()
    length = encode(data.ctypes.data, data.size, memory.ctypes.data + MARGIN, room)
    assert (memory[:MARGIN] == 0xA5).all() and (memory[MARGIN + room :] == 0xA5).all()
    assert (data == kept).all()
    frame = memory[MARGIN : MARGIN + length].tobytes()
    if frame:
        assert length < min(data.size, room)
        assert zstandard.frame_content_size(frame) == data.size
        assert zstandard.ZstdDecompressor().decompress(frame) == data.tobytes()
        # Not in one go, nor with all of it at hand.
        parts = zstandard.ZstdDecompressor().decompressobj()
        assert b"".join(parts.decompress(frame[at : at + 999]) for at in range(0, length, 999)) == data.tobytes()
    return frame


@given(kinds, lengths, seeds)
@settings(max_examples=300)
def test_any_bytes_come_back(kind: str, length: int, seed: int) -> None:
    """Whatever their distribution and number."""
    frame_of(sample(kind, length, seed))


@given(st.binary(max_size=700) | st.binary(max_size=40).map(lambda part: part * 40))
def test_arbitrary_bytes_come_back(data: bytes) -> None:
    """Also those that no distribution describes."""
    frame_of(np.frombuffer(data, np.uint8))


def test_many_small_ones() -> None:
    """Thousands of trees, most of them odd."""
    source = random.Random(0)
    made = sum(
        bool(frame_of(sample(source.choice(KINDS), source.randrange(LEAST, 1500), number))) for number in range(2000)
    )
    assert made > 1000


@given(kinds, st.sampled_from([300, 5000, BLOCK + 300, 150_000]), seeds, st.floats(0, 1.1))
def test_the_room_is_kept_to(kind: str, length: int, seed: int, share: float) -> None:
    """With less room there is the same frame or none, and nothing behind the room is written to."""
    data = sample(kind, length, seed)
    frame = frame_of(data)
    assert frame_of(data, int(share * length)) in (b"", frame)
    for room in (len(frame) - 1, len(frame), len(frame) + 1):
        assert frame_of(data, max(0, room)) == (frame if room > len(frame) else b"")


@pytest.mark.parametrize("count", range(2, 257))
def test_every_number_of_symbols(count: int) -> None:
    """The tree is described in one of two ways, which have their limits at 128 symbols, wherever the symbols lie."""
    common = np.arange(4000) % 3 > 0
    for first in {0, (256 - count) // 2, 256 - count}:
        for least in (0, count // 2):
            symbols = first + np.arange(4000) % count
            assert frame_of(np.where(common, first + least, symbols).astype(np.uint8))


@pytest.mark.parametrize("equal", [64, 128, 192, 224])
def test_weights_that_are_all_the_same(equal: int) -> None:
    """The weights of all symbols but the last may be equal, also where they must be coded."""
    others = np.tile(np.arange(equal), 16)
    last = np.full(others.size * (256 - equal) // equal, equal)
    data = np.random.default_rng(0).permutation(np.concatenate([others, last])).astype(np.uint8)
    assert frame_of(data)


@pytest.mark.parametrize("count", [3, 12, 13, 16, 22])
@pytest.mark.parametrize("ascending", [True, False])
def test_codes_are_at_most_11_bits(count: int, ascending: bool) -> None:
    """Fibonacci's numbers make the deepest of trees, which is cut at little cost."""
    numbers = [1, 1]
    while len(numbers) < count:
        numbers.append(numbers[-1] + numbers[-2])
    symbols = np.repeat(np.arange(count), numbers if ascending else numbers[::-1])
    data = np.random.default_rng(0).permutation(np.tile(symbols, -(-LEAST // symbols.size))).astype(np.uint8)
    assert len(frame_of(data)) < (entropy(data) + 0.06) * data.size + 60


def entropy(data: Bytes) -> float:
    """The share of its length that bytes which do not depend on each other need."""
    shares = np.bincount(data)[np.unique(data)] / data.size
    return float(-(shares * np.log2(shares)).sum() / 8)


@pytest.mark.parametrize("kind", ["few", "geometric", "normal"])
@pytest.mark.parametrize("length", [5000, BLOCK, 262_144, 1 << 20])
def test_ratio(kind: str, length: int) -> None:
    """A frame is never larger than zstd's own by more than a hundredth, nor than the entropy by more than a tenth."""
    for seed in range(12):
        data = sample(kind, length, seed)
        frame = kernel.compress(data)
        own = length if frame is None else len(frame)
        assert own <= 1.01 * min(length, len(streams.scratch.huffman.compress(data.data))) or frame is None
        assert frame is None or len(frame) < 1.1 * entropy(data) * length + 150 or entropy(data) < 0.25


def test_blocks_of_each_kind() -> None:
    """What repeats takes next to nothing, and what is noise its own length, beside what is compressed."""
    skewed, noise = sample("geometric", 2 * BLOCK, 3), sample("noise", BLOCK, 3)
    same = np.full(BLOCK, 7, np.uint8)
    coded = len(frame_of(skewed))
    assert 0 < coded < BLOCK
    assert len(frame_of(np.concatenate([skewed, same]))) <= coded + 8
    assert len(frame_of(np.concatenate([same, skewed]))) <= coded + 8
    assert coded + BLOCK < len(frame_of(np.concatenate([skewed, noise]))) <= coded + BLOCK + 8
    assert len(frame_of(same)) == 5 + 4 + 4 - 2


def test_what_is_left_to_zstd() -> None:
    """Noise, few bytes, and those that repeat: what other ways are better at."""
    rng = np.random.default_rng(0)
    assert kernel.compress(sample("noise", 262_144, 0)) is None
    assert kernel.compress(np.zeros(LEAST - 1, np.uint8)) is None
    rare = (rng.random(262_144) < 0.02).astype(np.uint8)
    assert kernel.compress(rare) is None
    assert streams.compress(rare).stored_length < rare.size // 16
    assert kernel.compress(np.repeat(np.arange(64, dtype=np.uint8), 1000)) is None


def test_streams_use_it() -> None:
    """A stream's frame is the kernel's, and is read back as any other."""
    data = sample("normal", 100_001, 4)
    stream = streams.compress(data)
    assert stream.frame is not None and stream.frame == kernel.compress(data)
    (back,) = streams.unpack(streams.pack(b"", [stream]), [data.size])
    assert back.tobytes() == data.tobytes()


def test_threads_do_not_share_room() -> None:
    """Threads encode at once, each what it was given."""
    failures: list[BaseException] = []

    def work(seed: int) -> None:
        try:
            data = sample("normal", 262_144, seed)
            for _ in range(50):
                assert zstandard.ZstdDecompressor().decompress(kernel.compress(data) or b"") == data.tobytes()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in (2, 3, 4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
