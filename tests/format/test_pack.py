"""Packs and their indexes: round trip, and every flipped bit noticed."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coral.errors import CorruptionError
from coral.format.index import PackIndex, build
from coral.format.pack import HEADER_BYTES, KIND_CHUNK, MAGIC, Entry, pack_header, parse_header, scan
from coral.ids import ChunkId, checksum, chunk_id

payloads = st.lists(st.binary(max_size=40), max_size=12, unique=True)


def make_pack(contents: list[bytes]) -> tuple[bytes, dict[ChunkId, Entry]]:
    """A pack of raw records, and where they lie."""
    data, entries = MAGIC, {}
    for content in contents:
        entry = Entry(len(data), len(content), len(content), KIND_CHUNK, 0, 0, 1)
        data += pack_header(chunk_id(content), entry, checksum(content)) + content
        entries[chunk_id(content)] = entry
    return data, entries


@given(payloads)
def test_scan_finds_every_record(contents: list[bytes]) -> None:
    """A pack alone tells all that its index does."""
    data, entries = make_pack(contents)
    assert dict(scan(data, "pack")) == dict(scan(memoryview(data), "pack")) == entries


@given(payloads, st.floats(0, 1))
def test_a_cut_pack_gives_what_is_whole(contents: list[bytes], where: float) -> None:
    """A pack that ends too early is noticed, unless it ends between two records; what came before is right."""
    data, entries = make_pack(contents)
    cut = data[: int(where * len(data))]
    found: dict[ChunkId, Entry] = {}
    ends = {len(MAGIC)} | {entry.offset + HEADER_BYTES + entry.stored_length for entry in entries.values()}
    try:
        for chunk, entry in scan(cut, "pack"):
            found[chunk] = entry
        assert len(cut) in ends
    except CorruptionError:
        assert len(cut) not in ends
    assert found.items() <= entries.items()


def test_every_flipped_bit_of_a_header_is_noticed() -> None:
    """No field of a record's header can change unseen."""
    header = pack_header(chunk_id(b"x"), Entry(16, 1, 1, KIND_CHUNK, 0, 0, 4), checksum(b"x"))
    assert len(header) == HEADER_BYTES
    for bit in range(8 * len(header)):
        damaged = bytearray(header)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(CorruptionError):
            parse_header(bytes(damaged), 16, "pack")


def test_absurd_lengths_are_refused() -> None:
    """A header with valid checksums may still not make a reader allocate gigabytes."""
    for stored, raw in ((1 << 30, 1), (1, 1 << 30)):
        header = pack_header(chunk_id(b""), Entry(16, stored, raw, KIND_CHUNK, 0, 0, 1), 0)
        with pytest.raises(CorruptionError):
            parse_header(header, 16, "pack")


ids = st.binary(min_size=32, max_size=32).map(ChunkId)
bytes8 = st.integers(0, 255)
lengths = st.integers(0, 2**32 - 1)
entries_of = st.builds(Entry, st.integers(0, 2**64 - 1), lengths, lengths, bytes8, bytes8, bytes8, bytes8)


@given(st.dictionaries(ids, entries_of, max_size=60), st.lists(ids, max_size=10))
def test_an_index_is_a_dictionary(entries: dict[ChunkId, Entry], others: list[ChunkId]) -> None:
    """An index finds exactly what a dictionary of the same entries finds, neighbours and ends included."""
    index = PackIndex(build(entries.items()), "index")
    assert len(index) == len(entries)
    assert dict(index.items()) == entries
    assert [chunk for chunk, _ in index.items()] == sorted(entries)
    near = [ChunkId(chunk[:-1] + bytes([chunk[-1] ^ 1])) for chunk in entries]
    for chunk in [*entries, *others, *near, ChunkId(bytes(32)), ChunkId(b"\xff" * 32)]:
        assert index.find(chunk) == entries.get(chunk)


@given(st.lists(st.binary(min_size=1, max_size=1), min_size=1, max_size=30, unique=True))
@settings(max_examples=20)
def test_crowded_first_bytes(tails: list[bytes]) -> None:
    """Many ids that begin with the same byte are told apart."""
    for first in (0, 255):
        entries = {
            ChunkId(bytes([first]) + bytes(30) + tail): Entry(n, 0, 0, 1, 0, 0, 0) for n, tail in enumerate(tails)
        }
        index = PackIndex(build(entries.items()), "index")
        assert all(index.find(chunk) == entry for chunk, entry in entries.items())


def test_every_flipped_bit_of_an_index_is_noticed() -> None:
    """An index with any bit flipped is refused, so that it is made anew instead of misleading."""
    data, _ = make_pack([b"one", b"two", b"three"])
    index = build(scan(data, "pack"))
    damaged = bytearray(index)
    for bit in range(8 * len(index)):
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(CorruptionError):
            PackIndex(damaged, "index")
        damaged[bit // 8] ^= 1 << bit % 8
    for length in range(0, len(index), 7):
        with pytest.raises(CorruptionError):
            PackIndex(index[:length], "index")
