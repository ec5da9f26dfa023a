"""A pack's index: sorted ids and where each record lies, searched in place, without an object for each.

::

    index   = "CORAL INDEX 001\\n" count:u64 fanout:256 x u32 id:32 bytes x count entry x count checksum:u64
    entry   = offset:u64 stored_length:u32 raw_length:u32 kind:u8 codec:u8 depth:u8 item:u8 zero:u32

Little-endian; ``fanout[b]`` is the number of ids whose first byte is <= b; the checksum is XXH3-64 of all before it.
"""

from __future__ import annotations

import struct
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from coral.errors import CorruptionError
from coral.format.pack import Entry
from coral.ids import ID_BYTES, ChunkId, checksum

if TYPE_CHECKING:
    from typing_extensions import Buffer

MAGIC = b"CORAL INDEX 001\n"
_COUNT = struct.Struct("<Q")
_FANOUT = struct.Struct("<256I")
_BOUND = struct.Struct("<I")
_ENTRY = struct.Struct("<QIIBBBBI")
_IDS_AT = len(MAGIC) + _COUNT.size + _FANOUT.size


def build(entries: Iterable[tuple[ChunkId, Entry]]) -> bytes:
    """The index of these records."""
    ordered = sorted(entries)
    counts = [0] * 256
    for chunk, _ in ordered:
        counts[chunk[0]] += 1
    total, fanout = 0, []
    for count in counts:
        total += count
        fanout.append(total)
    body = b"".join(
        [
            MAGIC,
            _COUNT.pack(total),
            _FANOUT.pack(*fanout),
            *(chunk for chunk, _ in ordered),
            *(_ENTRY.pack(*entry, 0) for _, entry in ordered),
        ]
    )
    return body + checksum(body).to_bytes(8, "little")


class PackIndex:
    """An index over a buffer that it does not copy.

    Attributes:
        nbytes: length of the buffer.
        ids: the sorted ids, one after the other.
        entries: in their order, 24 bytes each.

    Raises:
        CorruptionError: not an index, or one with a flipped bit.
    """

    def __init__(self, data: Buffer, where: str) -> None:
        view = memoryview(data)
        if len(view) < _IDS_AT + 8 or view[: len(MAGIC)] != MAGIC:
            raise CorruptionError(f"{where} is not a pack index of a version this coral reads")
        if checksum(view[:-8]) != int.from_bytes(view[-8:], "little"):
            raise CorruptionError(f"{where} is damaged")
        self._count = int.from_bytes(view[len(MAGIC) : len(MAGIC) + 8], "little")
        if len(view) != _IDS_AT + self._count * (ID_BYTES + _ENTRY.size) + 8:
            raise CorruptionError(f"{where} has a wrong length")
        self.nbytes = len(view)
        self._fanout = view[len(MAGIC) + _COUNT.size : _IDS_AT]
        self.ids = view[_IDS_AT : _IDS_AT + self._count * ID_BYTES]
        self.entries = view[_IDS_AT + self._count * ID_BYTES : -8]

    def __len__(self) -> int:
        return self._count

    def __contains__(self, chunk: ChunkId) -> bool:
        """Whether the pack holds the record of this id."""
        return self.find(chunk) is not None

    def find(self, chunk: ChunkId) -> Entry | None:
        """Where the record of this id lies; None when the pack does not hold it."""
        low, high = self._bucket(chunk[0])
        position = bisect_left(_Ids(self.ids), chunk, low, high)
        return self.entry(position) if position < high and self.id(position) == chunk else None

    def _bucket(self, first: int) -> tuple[int, int]:
        low = _BOUND.unpack_from(self._fanout, 4 * (first - 1))[0] if first else 0
        return low, min(self._count, _BOUND.unpack_from(self._fanout, 4 * first)[0])

    def items(self) -> Iterator[tuple[ChunkId, Entry]]:
        """Every (id, entry), sorted by id."""
        for position in range(self._count):
            yield self.id(position), self.entry(position)

    def id(self, position: int) -> ChunkId:
        """The id at a position in their order; empty past the end."""
        start = position * ID_BYTES
        return ChunkId(bytes(self.ids[start : start + ID_BYTES]))

    def entry(self, position: int) -> Entry:
        """Where the record of the id at a position lies."""
        offset, stored, raw, kind, codec, depth, item, _ = _ENTRY.unpack_from(self.entries, position * _ENTRY.size)
        return Entry(offset, stored, raw, kind, codec, depth, item)


class _Ids:
    """The sorted ids as a sequence of bytes, for bisect."""

    def __init__(self, view: memoryview) -> None:
        self._view = view

    def __len__(self) -> int:
        return len(self._view) // ID_BYTES

    def __getitem__(self, position: int) -> bytes:
        start = position * ID_BYTES
        return bytes(self._view[start : start + ID_BYTES])
