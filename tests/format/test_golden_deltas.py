"""Deltas of format version 1 stay readable: packs of every codec and width that were written once and are kept.

``tests/data/v1-deltas`` was made by :func:`make_golden`, called once as ``make_golden(Path("tests/data/v1-deltas"))``
where the C kernel was built. It must never be made again under the same name: a new format version gets a folder of its
own beside it.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import NamedTuple

import pytest
import zstandard
from blake3 import blake3

from coral.format import codecs
from coral.format.codecs import DELTA, GROUPED, RAW, grouped, planes
from coral.format.codecs.kernel import NumpyKernel, elements_of, kernel
from coral.format.index import build
from coral.format.manifest import TensorRecord
from coral.format.pack import KIND_CHUNK, MAGIC, Entry, pack_header
from coral.ids import ChunkId, checksum, chunk_id, single_ref
from coral.objects import ChunkStore
from coral.storage.folder import Folder

GOLDEN = Path(__file__).parents[1] / "data" / "v1-deltas"
LARGE, SMALL = 20_000, 600
LOOPS = [pytest.param(kernel, id="native" if kernel.is_native else "numpy, NOT TESTED: the C kernel")]
if kernel.is_native:
    LOOPS.append(pytest.param(NumpyKernel(), id="numpy"))


class Chunk(NamedTuple):
    """A chunk of the golden packs, and what it is encoded in and against."""

    name: str
    item: int
    data: bytes
    codec: int = RAW
    base: Chunk | None = None

    @property
    def depth(self) -> int:
        """How many chunks lie below it."""
        return 0 if self.base is None else self.base.depth + 1


def noise(seed: str, length: int) -> bytes:
    """Bytes that are the same everywhere."""
    return blake3(seed.encode()).digest(length)


def weights(item: int, count: int) -> bytes:
    """Elements of 64 exponents, so that segments begin at many places, under mantissas of a few bits, to stay small."""
    if item == 1:
        return bytes(byte % 48 for byte in noise("weights", count))
    bits, values = {2: 7, 4: 23, 8: 52}[item], noise(f"weights {item}", 8 * count)
    found = bytearray()
    for number in range(count):
        value = int.from_bytes(values[8 * number : 8 * number + 8], "little")
        exponent = 0x70 + (value >> 58)
        found += (exponent << bits | value % (1 << bits) & -(1 << max(0, bits - 5))).to_bytes(item, "little")
    return bytes(found)


def step(data: bytes, item: int, rare: int) -> bytes:
    """The weights one step later: differences of -1 to 1, and one in ``rare`` of any size."""
    values = noise(f"step {item} {len(data)}", 9 * (len(data) // item))
    found = bytearray()
    for number in range(len(data) // item):
        kind, value = values[9 * number], int.from_bytes(values[9 * number + 1 : 9 * number + 9], "little")
        difference = value if kind % rare == 0 else kind % 3 - 1
        before = int.from_bytes(data[item * number : item * number + item], "little")
        found += ((before + difference) % (1 << 8 * item)).to_bytes(item, "little")
    return bytes(found)


def chunks() -> list[Chunk]:
    """Both codecs in each width, over bases of the same length, shorter and longer, and in a row of four."""
    found = []
    for item in (1, 2, 4, 8):
        base = Chunk(f"base {item}", item, weights(item, SMALL))
        after = step(base.data, item, 16)
        longer, shorter = after + noise("more", 40 * item), after[: len(after) // 2 // item * item]
        found += [base, Chunk(f"delta {item}", item, after, DELTA, base)]
        found += [Chunk(f"grouped {item}", item, step(after, item, 50), GROUPED, found[-1])]
        found += [Chunk(f"longer {item}", item, longer, GROUPED, found[-1])]
        found += [Chunk(f"shorter {item}", item, shorter, DELTA, found[-1])]
        found += [Chunk(f"bytes {item}", item, shorter + b"odd", DELTA, base)]
    large = Chunk("base", 2, weights(2, LARGE))
    found += [large, Chunk("large", 2, step(large.data, 2, 200), GROUPED, large)]
    found += [Chunk("half", 2, large.data[:LARGE] + step(large.data, 2, 2)[LARGE:], GROUPED, large)]
    found += [Chunk("same", 2, large.data + bytes(2), GROUPED, large)]
    calm = bytearray(large.data)
    for number, byte in enumerate(noise("calm", LARGE)):
        calm[2 * number] ^= byte < 16
    return [*found, Chunk("calm", 2, bytes(calm), GROUPED, large)]


def payload_of(chunk: Chunk) -> bytes:
    """The payload as this coral makes it."""
    item = chunk.item if len(chunk.data) % chunk.item == 0 else 1
    elements = elements_of(memoryview(chunk.data), item)
    if chunk.base is None:
        return bytes(planes.encode(elements, planes.survey(elements)))
    base = chunk.base.data[: len(chunk.data)]
    others = elements_of(memoryview(base + bytes(len(chunk.data) - len(base))), item)
    head = chunk_id(chunk.base.data)
    if chunk.codec == GROUPED:
        return bytes(grouped.encode(elements, others, head=head))
    return bytes(planes.encode(elements, planes.survey(elements, others), base=others, head=head))


def make_golden(folder: Path) -> None:
    """Write the golden files of the format as it is now: the bases in one pack, what builds on them in another."""
    for number, has_base in ((1, False), (2, True)):
        data, entries = MAGIC, []
        for chunk in chunks():
            if (chunk.base is not None) is has_base:
                payload, codec = payload_of(chunk), chunk.codec or codecs.PLANES
                ident = chunk_id(chunk.data)
                lengths = len(data), len(payload), len(chunk.data)
                entries.append((ident, Entry(*lengths, KIND_CHUNK, codec, chunk.depth, chunk.item)))
                data += pack_header(ident, entries[-1][1], checksum(payload)) + payload
        name = f"{number:08d}-{number:016x}"
        (folder / "packs").mkdir(parents=True, exist_ok=True)
        (folder / "packs" / f"{name}.pack").write_bytes(data)
        (folder / "packs" / f"{name}.idx").write_bytes(build(entries))


def golden_store(folder: Path, lock: Path) -> ChunkStore:
    """The store of such packs."""
    return ChunkStore(Folder(folder / "packs"), lock, threads=1)


@pytest.mark.parametrize("loops", LOOPS)
def test_deltas_of_version_1(tmp_path: Path, loops: NumpyKernel, monkeypatch: pytest.MonkeyPatch) -> None:
    """The golden deltas read back to the bytes that they were made of, with and without indexes, with both kernels."""
    for module in (codecs, planes, grouped):
        monkeypatch.setattr(module, "kernel", loops)
    shutil.copytree(GOLDEN, tmp_path / "bare")
    for index in (tmp_path / "bare" / "packs").glob("*.idx"):
        index.chmod(0o644)
        index.write_bytes(b"CORAL INDEX 000\n")
    for folder in (GOLDEN, tmp_path / "bare"):
        store = golden_store(folder, tmp_path / "lock")
        for chunk in chunks():
            length = len(chunk.data)
            record = TensorRecord(chunk.name, "U8", (length,), single_ref(chunk_id(chunk.data)))
            assert store.get_bytes(record.content, length) == chunk.data, chunk.name
            assert b"".join(map(bytes, store.stream([record]))) == chunk.data


def stored(store: ChunkStore) -> dict[ChunkId, tuple[Entry, bytes]]:
    """Every record of a store, and its payload."""
    found = {}
    for pack in store.packs.packs:
        data = bytes(store.folder.map(f"{pack.name}.pack"))
        for chunk, entry in pack.index.items():
            start = entry.offset + 64
            found[chunk] = entry, data[start : start + entry.stored_length]
    return found


def test_the_golden_packs_hold_every_kind(tmp_path: Path) -> None:
    """The golden packs are worth their name: every codec, width, mode and depth, and bases cut and filled up."""
    store = golden_store(GOLDEN, tmp_path / "lock")
    records = stored(store)
    assert set(records) == {chunk_id(chunk.data) for chunk in chunks()}
    kinds = {(entry.codec, entry.item) for entry, _ in records.values()}
    assert kinds >= {(codec, item) for codec in (DELTA, GROUPED) for item in (1, 2, 4, 8)}
    assert {entry.depth for entry, _ in records.values()} == {0, 1, 2, 3, 4}
    modes, counts = set(), set()
    for entry, payload in records.values():
        if entry.codec == GROUPED:
            counts.add(int.from_bytes(payload[32:36], "little") > 0)
            modes |= set(payload[36 : 37 + (entry.raw_length // entry.item > 16384)])
    assert modes >= {0, 2, 4} and counts == {False, True}
    assert sum(path.stat().st_size for path in (GOLDEN / "packs").iterdir()) < 100_000


def test_what_is_written_today_reads_the_same(tmp_path: Path) -> None:
    """The same chunks, encoded by this coral, are read to the same bytes; payloads need not be the same."""
    make_golden(tmp_path)
    store = golden_store(tmp_path, tmp_path / "lock")
    for chunk in chunks():
        assert store.get_bytes(single_ref(chunk_id(chunk.data)), len(chunk.data)) == chunk.data
    ours, theirs = stored(store), stored(golden_store(GOLDEN, tmp_path / "lock"))
    assert ours.keys() == theirs.keys()
    assert all(ours[chunk][0].depth == theirs[chunk][0].depth for chunk in ours)


def read_by_the_book(payload: bytes, codec: int, item: int, base: bytes, length: int) -> bytes:
    """SPEC.md's words put into Python, element by element, sharing nothing with coral but zstd's frames."""

    item = item if item in (2, 4, 8) and length % item == 0 else 1
    count = length // item
    base = base[:length] + bytes(length - len(base[:length]))
    before = [int.from_bytes(base[item * n : item * n + item], "little") for n in range(count)]
    bias = {1: 0x80, 2: 0x80, 4: 0x808080, 8: 0x80808080808080}[item]
    at = 32

    def read_streams(lengths: list[int]) -> list[bytes]:
        start, found = at + 4 * len(lengths), []
        for number, size in enumerate(lengths):
            stored_size = int.from_bytes(payload[at + 4 * number : at + 4 * number + 4], "little")
            part = payload[start : start + (stored_size & 0x7FFFFFFF)]
            start += len(part)
            found.append(zstandard.ZstdDecompressor().decompress(part) if stored_size >> 31 else part)
            assert len(found[-1]) == size
        assert start == len(payload)
        return found

    if codec == DELTA:
        streams = read_streams([count] * item)
        differences = [bytes(plane[n] for plane in streams) for n in range(count)]
        order = list(range(count))
    else:
        shift, mask = {1: (3, 15), 2: (7, 255), 4: (23, 255), 8: (52, 255)}[item]
        keys = [value >> shift & mask for value in before]
        order = sorted(range(count), key=lambda n: keys[n])
        segments, start, stop = [], 0, 0
        for key in range(256):
            stop += keys.count(key)
            if stop - start >= 16384:
                segments.append((start, stop))
                start = stop
        segments += [(start, stop)] if stop > start else []
        escaped, modes = int.from_bytes(payload[32:36], "little"), payload[36 : 36 + len(segments)]
        at = 36 + len(segments)
        lengths: list[int] = []
        for (start, stop), mode in zip(segments, modes, strict=True):
            lengths += [-(-(stop - start) * mode // 8)] if mode else [stop - start] * item
        streams = read_streams(lengths + [escaped] * item)
        large = [bytes(plane[n] for plane in streams[-item:]) for n in range(escaped)]
        differences = []
        for (start, stop), mode in zip(segments, modes, strict=True):
            if mode == 0:
                parts, streams = streams[:item], streams[item:]
                differences += [bytes(plane[n] for plane in parts) for n in range(stop - start)]
                continue
            packed, streams = streams[0], streams[1:]
            for n in range(stop - start):
                code = packed[n * mode // 8] >> (n * mode % 8) & ((1 << mode) - 1)
                if code == (1 << mode) - 1:
                    differences.append(large.pop(0))
                else:
                    small = (bias + code + 1 - (1 << (mode - 1))) % (1 << 8 * item)
                    differences.append(small.to_bytes(item, "little"))
        assert not large
    out = bytearray(length)
    for place, difference in zip(order, differences, strict=True):
        value = (before[place] + int.from_bytes(difference, "little") - bias) % (1 << 8 * item)
        out[item * place : item * place + item] = value.to_bytes(item, "little")
    return bytes(out)


def test_the_specification_is_enough(tmp_path: Path) -> None:
    """A reader written from SPEC.md alone reads every golden delta."""
    records = stored(golden_store(GOLDEN, tmp_path / "lock"))
    for chunk in chunks():
        if chunk.base is not None:
            entry, payload = records[chunk_id(chunk.data)]
            assert payload[:32] == chunk_id(chunk.base.data)
            found = read_by_the_book(payload, entry.codec, entry.item, chunk.base.data, entry.raw_length)
            assert found == chunk.data, chunk.name
