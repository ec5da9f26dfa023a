"""A set of ids for stores of any size: 32 bytes an id, in one sorted array."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from coral.ids import ID_BYTES, ChunkId

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from typing_extensions import Buffer

_DTYPE = f"S{ID_BYTES}"
_LEAST_MERGED = 1 << 16


def as_array(ids: Buffer) -> NDArray[np.bytes_]:
    """Ids that stand one after the other, without a copy."""
    found: NDArray[np.bytes_] = np.frombuffer(memoryview(ids), _DTYPE)
    return found


class IdSet:
    """Ids, each once. What is added is sorted in when there is enough of it, or when somebody looks."""

    def __init__(self) -> None:
        self._sorted = np.empty(0, _DTYPE)
        self._added = bytearray()

    def add(self, ids: Iterable[bytes]) -> None:
        """Add ids, one by one."""
        for ident in ids:
            self._added += ident
        self._merge_if_many()

    def add_joined(self, ids: Buffer) -> None:
        """Add ids that stand one after the other."""
        self._added += ids
        self._merge_if_many()

    def __len__(self) -> int:
        return len(self.array())

    def __contains__(self, ident: ChunkId) -> bool:
        return bool(self.mask(as_array(ident))[0])

    def array(self) -> NDArray[np.bytes_]:
        """All ids, sorted."""
        if self._added:
            # An empty set first, so that the old array and the new one are not both kept while it is sorted.
            joined = np.concatenate([self._sorted, as_array(bytes(self._added))])
            self._sorted, self._added = np.empty(0, _DTYPE), bytearray()
            joined.sort()
            first = np.ones(len(joined), np.bool_)
            np.not_equal(joined[1:], joined[:-1], out=first[1:])
            self._sorted = joined[first]
        return self._sorted

    def mask(self, ids: NDArray[np.bytes_]) -> NDArray[np.bool_]:
        """Of each of some ids, whether it is in the set."""
        known = self.array()
        if not len(known):
            return np.zeros(len(ids), np.bool_)
        places = known.searchsorted(ids)
        places[places == len(known)] = 0
        found: NDArray[np.bool_] = known[places] == ids
        return found

    def without(self, others: IdSet) -> NDArray[np.bytes_]:
        """The ids that another set lacks, sorted."""
        own = self.array()
        return own[~others.mask(own)]

    def _merge_if_many(self) -> None:
        if len(self._added) > ID_BYTES * max(_LEAST_MERGED, len(self._sorted) // 4):
            self.array()


def to_ids(found: NDArray[np.bytes_]) -> Iterable[ChunkId]:
    """Ids of an array, one by one: numpy drops zeros from the end of what it hands out."""
    data = found.tobytes()
    return (ChunkId(data[at : at + ID_BYTES]) for at in range(0, len(data), ID_BYTES))
