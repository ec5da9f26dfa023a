"""Packs written by hand, byte for byte, so that they may say what no writer says."""

from __future__ import annotations

from pathlib import Path

from coral.format.codecs import planes
from coral.format.codecs.kernel import elements_of
from coral.format.index import build
from coral.format.pack import KIND_CHUNK, MAGIC, Entry, pack_header
from coral.ids import ChunkId, checksum

Record = tuple[ChunkId, bytes, int, int]
"""A chunk, its payload, codec and depth."""


def put(root: Path, number: int, *records: Record, length: int | None = None) -> None:
    """A pack of such records, made by hand."""
    data, entries = MAGIC, []
    for chunk, payload, codec, depth in records:
        raw = len(payload) if length is None else length
        entry = Entry(len(data), len(payload), raw, KIND_CHUNK, codec, depth, 2)
        data += pack_header(chunk, entry, checksum(payload)) + payload
        entries.append((chunk, entry))
    (root / "packs").mkdir(exist_ok=True, parents=True)
    name = f"{number:08d}-{number:016x}"
    (root / "packs" / f"{name}.pack").write_bytes(data)
    (root / "packs" / f"{name}.idx").write_bytes(build(entries))


def delta(data: bytes, base: ChunkId, over: bytes) -> bytes:
    """The payload of some bytes over others."""
    elements, others = elements_of(memoryview(data), 2), elements_of(memoryview(over), 2)
    return bytes(planes.encode(elements, planes.survey(elements, others), base=others, head=base))
