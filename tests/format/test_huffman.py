"""The kernel writes frames that any zstd decoder reads, reads just what zstd does, and touches nothing else."""

from __future__ import annotations

import ctypes
import random
import struct
import threading
from typing import TYPE_CHECKING

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from coral.format.codecs import streams
from coral.format.codecs.kernel import LIBRARY, PLAIN, REPEATING, SKEWED, kernel

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


decode = ctypes.CDLL(str(LIBRARY)).coral_unhuffman
decode.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p, ctypes.c_size_t]


def read(frame: bytes, length: int) -> bytes | None:
    """What the kernel reads, None where it leaves that to zstd; no other memory is written to."""
    memory = np.full(length + 2 * MARGIN, 0xA5, np.uint8)
    kept = np.frombuffer(frame, np.uint8).copy()
    is_read = decode(kept.ctypes.data, kept.size, memory.ctypes.data + MARGIN, length)
    assert (memory[:MARGIN] == 0xA5).all() and (memory[MARGIN + length :] == 0xA5).all()
    return memory[MARGIN : MARGIN + length].tobytes() if is_read else None


def read_by_zstd(frame: bytes, length: int) -> bytes | None:
    """What zstd reads, None where it refuses."""
    try:
        found = zstandard.ZstdDecompressor().decompress(frame, max_output_size=length, allow_extra_data=False)
    except zstandard.ZstdError:
        return None
    return found if len(found) == length else None


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
        assert read(frame, data.size) == data.tobytes()
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
        frame = frame_of(data)
        assert len(frame) <= 1.01 * min(length, len(streams.compress(data, matching=False)))
        assert len(frame) < 1.1 * entropy(data) * length + 150 or entropy(data) < 0.25


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
    assert not frame_of(sample("noise", 262_144, 0))
    assert not frame_of(np.zeros(LEAST - 1, np.uint8))
    rare = (rng.random(262_144) < 0.02).astype(np.uint8)
    assert not frame_of(rare)
    assert len(payload_of(rare)) < rare.size // 16
    assert not frame_of(np.repeat(np.arange(64, dtype=np.uint8), 1000))


def payload_of(*parts: Bytes, way: int = SKEWED) -> bytes:
    """The payload of some streams."""
    starts = np.cumsum([0, *map(len, parts)])[:-1].tolist()
    rows = [(start, part.size, way, 0) for start, part in zip(starts, parts, strict=True)]
    return bytes(streams.pack(b"", np.concatenate(parts), np.array(rows, np.uint64)))


def test_streams_use_it() -> None:
    """A stream's frame is the kernel's, wherever it stands among others, and is read back as any other."""
    parts = [sample(kind, length, 4) for kind, length in (("noise", 5000), ("normal", 100_001), ("same", 700))]
    parts += [(np.random.default_rng(0).random(70_000) < 0.02).astype(np.uint8), np.empty(0, np.uint8), parts[1]]
    payload = payload_of(*parts)
    assert payload.count(frame_of(parts[1])) == 2
    found = streams.unpack(memoryview(payload), np.array([part.size for part in parts], np.uint64))
    for number, part in enumerate(parts):
        assert found.get(number).tobytes() == part.tobytes()


def test_what_repeats() -> None:
    """Repetitions are looked for where that is asked for."""
    part = np.tile(np.random.default_rng(0).integers(0, 256, 1000, np.uint8), 50)
    assert len(payload_of(part)) > 40_000 > 30 * len(payload_of(part, way=REPEATING))
    assert payload_of(part, way=PLAIN) == struct.pack("<I", part.size) + part.tobytes()
    same = np.full(5000, 3, np.uint8)
    assert payload_of(same, way=REPEATING) == payload_of(same)


def test_threads_do_not_share_room() -> None:
    """Threads encode at once, each what it was given."""
    failures: list[BaseException] = []

    def work(seed: int) -> None:
        try:
            data = sample("normal", 262_144, seed)
            for _ in range(50):
                (found,) = [streams.unpack(memoryview(payload_of(data)), np.array([data.size], np.uint64))]
                assert found.get(0).tobytes() == data.tobytes()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in (2, 3, 4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


# -- reading


@st.composite
def damaged(draw: st.DrawFn) -> tuple[bytes, int]:
    """A frame of the kernel's own that was changed here and there, most of the time where it hurts, and its length."""
    data = sample(draw(kinds), draw(st.sampled_from([256, 300, 1500, 9000, 70_000])), draw(seeds))
    frame = bytearray(frame_of(data))
    for _ in range(draw(st.integers(1, 4))):
        near = draw(st.sampled_from([12, 100, len(frame)]))
        if frame and draw(st.booleans()):
            frame[draw(st.integers(0, min(near, len(frame)) - 1))] = draw(st.integers(0, 255))
        elif frame:
            frame[draw(st.integers(0, min(near, len(frame)) - 1))] ^= 1 << draw(st.integers(0, 7))
    return bytes(frame[: draw(st.sampled_from([len(frame)] * 3 + [draw(st.integers(0, len(frame)))]))]), data.size


@given(damaged())
@settings(max_examples=1500)
def test_damaged_frames_are_read_as_zstd_reads_them(case: tuple[bytes, int]) -> None:
    """What the kernel reads is what zstd reads, and what zstd refuses the kernel refuses."""
    frame, length = case
    found = read(frame, length)
    assert found is None or found == read_by_zstd(frame, length)


@given(st.binary(max_size=200), st.integers(0, 1000))
def test_rubbish_is_refused(data: bytes, length: int) -> None:
    """Also where it begins as a frame does."""
    for head in (b"", struct.pack("<IBH", 0xFD2FB528, 0x60, max(0, length - 256))):
        found = read(head + data, length)
        assert found is None or found == read_by_zstd(head + data, length)


@given(kinds, st.sampled_from([255, 256, 2000, 70_000]), seeds, st.integers(-9, 9))
def test_frames_of_zstd_itself(kind: str, length: int, seed: int, level: int) -> None:
    """They are read as they are, or left to zstd; so are those of another length, and with more bytes behind them."""
    data = sample(kind, length, seed).tobytes()
    frame = zstandard.ZstdCompressor(level=level).compress(data)
    assert read(frame, length) in (None, data)
    assert read(frame, length + 1) is None and read(frame, length - 1) is None
    own = frame_of(np.frombuffer(data, np.uint8))
    for more in (b"\0", own or frame):
        assert read(frame + more, length) is None
        assert not own or read(own + more, length) is None


def test_every_cut_is_refused() -> None:
    """A frame without its last bytes, however many, is none."""
    frame = frame_of(sample("normal", 3000, 2))
    assert frame
    assert not any(read(frame[:length], 3000) for length in range(len(frame)))
