"""Packs: append-once files of records, each record one encoded chunk (or chunk list) with its own header.

::

    pack    = "CORAL PACK 0001\\n" record*
    record  = header (64 bytes, little-endian) payload
    header  = kind:u8 codec:u8 depth:u8 item:u8 raw_length:u32 stored_length:u32 zero:u32
              payload_checksum:u64 id:32 bytes header_checksum:u64

Checksums are XXH3-64. A pack can be read without its index, which is derived from it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

from coral.errors import CorruptionError
from coral.ids import ChunkId, checksum

MAGIC = b"CORAL PACK 0001\n"
HEADER = struct.Struct("<BBBBIIIQ32s")
HEADER_BYTES = HEADER.size + 8
KIND_CHUNK, KIND_LIST = 1, 2
MAX_DEPTH = 4
"""Most deltas between a record and one that stands alone, as they are written."""
MAX_RECORD_BYTES = 1 << 28
"""Bound on the raw and stored length of a record: chunks are far smaller, this lets a list name 8 million chunks."""


class Entry(NamedTuple):
    """Where a record lies in its pack, and how it is encoded.

    Lengths and offset are bytes. ``depth`` is how many records must be decoded before this one can be.
    """

    offset: int
    stored_length: int
    raw_length: int
    kind: int
    codec: int
    depth: int
    item: int


def pack_header(chunk: ChunkId, entry: Entry, payload_checksum: int) -> bytes:
    """The 64 bytes that precede a record's payload."""
    head = HEADER.pack(
        entry.kind,
        entry.codec,
        entry.depth,
        entry.item,
        entry.raw_length,
        entry.stored_length,
        0,
        payload_checksum,
        chunk,
    )
    return head + checksum(head).to_bytes(8, "little")


def parse_header(data: bytes | memoryview, offset: int, where: str) -> tuple[ChunkId, Entry, int]:
    """Read a record's header; returns its id, its entry and its payload's checksum.

    Args:
        data: at least 64 bytes.
        offset: where in the pack the header begins, to be kept in the entry.
        where: the pack's name, for the error.

    Raises:
        CorruptionError: not a header, or one with a flipped bit or absurd lengths.
    """
    if len(data) < HEADER_BYTES:
        raise CorruptionError(f"{where} ends in the middle of a record at byte {offset}")
    head = data[: HEADER.size]
    if checksum(head) != int.from_bytes(data[HEADER.size : HEADER_BYTES], "little"):
        raise CorruptionError(f"{where} has a damaged record header at byte {offset}", hint="run coral fsck")
    kind, codec, depth, item, raw, stored, _, payload_checksum, chunk = HEADER.unpack(head)
    if raw > MAX_RECORD_BYTES or stored > MAX_RECORD_BYTES:
        raise CorruptionError(f"{where} has a record of absurd length at byte {offset}", hint="run coral fsck")
    return ChunkId(chunk), Entry(offset, stored, raw, kind, codec, depth, item), payload_checksum


def scan(data: bytes | memoryview, where: str) -> Iterator[tuple[ChunkId, Entry]]:
    """Every record of a pack, from the headers alone; how an index is made anew.

    Raises:
        CorruptionError: the pack is damaged; what was yielded before is good.
    """
    if data[: len(MAGIC)] != MAGIC:
        raise CorruptionError(f"{where} is not a coral pack of a version this coral reads")
    offset = len(MAGIC)
    while offset < len(data):
        chunk, entry, _ = parse_header(data[offset : offset + HEADER_BYTES], offset, where)
        offset += HEADER_BYTES + entry.stored_length
        if offset > len(data):
            raise CorruptionError(f"{where} ends in the middle of a record at byte {entry.offset}")
        yield chunk, entry
