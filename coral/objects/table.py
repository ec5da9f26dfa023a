"""Where the ids of all packs lie, in one sorted table: a search costs the same among one pack and among thousands.

For each record the first eight bytes of its id and its place, 16 bytes in all. Ids are hashes, so those eight bytes
nearly always tell; whoever searches looks at the whole id in the pack's index before believing.
"""

from __future__ import annotations

import struct
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from coral.ids import ID_BYTES, ChunkId

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from coral.format.index import PackIndex

_PREFIX = struct.Struct(">Q")


class IdTable:
    """The ids of many packs. Never changes, so that threads may search it while another one makes the next.

    Attributes:
        packs: the numbers of the packs whose ids it holds.
    """

    def __init__(self, prefixes: NDArray[np.uint64], places: NDArray[np.uint64], packs: frozenset[int]) -> None:
        self.packs = packs
        self._prefixes = prefixes
        self._places = places
        # Python's own bisect is quicker on a view than numpy is at searching for one number.
        self._searched, self._found = prefixes.data, places.data

    @classmethod
    def empty(cls) -> IdTable:
        """The table of no packs."""
        return cls(np.empty(0, np.uint64), np.empty(0, np.uint64), frozenset())

    def __len__(self) -> int:
        return len(self._searched)

    def find(self, chunk: ChunkId) -> Sequence[tuple[int, int]]:
        """The packs that may hold a record with such an id, the last added first, and the position in their indexes."""
        (prefix,) = _PREFIX.unpack_from(chunk)
        at = start = bisect_left(self._searched, prefix)
        while at < len(self._searched) and self._searched[at] == prefix:
            at += 1
        return [divmod(place, 1 << 32) for place in self._found[start:at]] if at > start else ()

    def repeated(self) -> NDArray[np.uint64]:
        """The first eight bytes of each id of which there is more than one record, sorted."""
        return np.unique(self._prefixes[1:][self._prefixes[1:] == self._prefixes[:-1]])

    def without(self, packs: frozenset[int]) -> IdTable:
        """This table less the records of some packs."""
        if not packs:
            return self
        stay = ~np.isin(self._places >> np.uint64(32), np.array(sorted(packs), np.uint64))
        return IdTable(self._prefixes[stay], self._places[stay], self.packs - packs)

    def adding(self, packs: Iterable[tuple[int, PackIndex]]) -> IdTable:
        """This table and the records of some packs, the newest of them first; each index is let go of in its turn."""
        columns = {number: _columns(number, index) for number, index in packs}
        if not columns:
            return self
        prefixes, places = (np.concatenate(parts) for parts in zip(*columns.values(), strict=True))
        order = prefixes.argsort(kind="stable")
        prefixes, places = prefixes[order], places[order]
        if len(self):
            at = self._prefixes.searchsorted(prefixes)
            prefixes, places = np.insert(self._prefixes, at, prefixes), np.insert(self._places, at, places)
        return IdTable(prefixes, places, self.packs | columns.keys())


def prefixes_of(index: PackIndex) -> NDArray[np.uint64]:
    """The first eight bytes of each id of an index, as numbers."""
    return np.frombuffer(index.ids, ">u8")[:: ID_BYTES // _PREFIX.size].astype(np.uint64)


def _columns(number: int, index: PackIndex) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    first = number << 32
    return prefixes_of(index), np.arange(first, first + len(index), dtype=np.uint64)
