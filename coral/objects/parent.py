"""What a tensor is compared with and encoded against: the same tensor as it was last stored.

Three things are known of each of its chunks, none of them written to disk: a fingerprint, which tells "unchanged" at
memory speed; the id, which names the base of a delta; and, where memory allows, the bytes themselves, so that the base
need not be read back and decoded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from coral import forks
from coral.errors import CorruptionError, StorageError
from coral.format.chunking import cuts
from coral.ids import ChunkId

if TYPE_CHECKING:
    from coral.format.manifest import TensorRecord
    from coral.format.tensors import TensorSource

_NO_CHUNK = ChunkId(b"")
_LEAST_BYTES = 1024


class Mark(NamedTuple):
    """What a chunk looked like when it was last stored, and its id."""

    fingerprint: bytes
    chunk: ChunkId


UNKNOWN = Mark(b"", _NO_CHUNK)


class Memory:
    """How many bytes of parents may be kept in memory, together.

    Args:
        measure: says how many, when the first are to be kept.
    """

    def __init__(self, measure: Callable[[], int]) -> None:
        self._measure = measure
        self._left: int | None = None
        self._lock = forks.lock()

    def take(self, nbytes: int) -> bool:
        """Whether there is room for so many more."""
        with self._lock:
            if self._left is None:
                self._left = self._measure()
            if nbytes > self._left:
                return False
            self._left -= nbytes
            return True

    def give_back(self, nbytes: int) -> None:
        """These are no longer kept."""
        with self._lock:
            if self._left is not None:
                self._left += nbytes


class Copy:
    """A tensor's bytes as they were last stored, chunk by chunk. Each chunk is used by one thread at a time."""

    def __init__(self, dtype: str, shape: tuple[int, ...]) -> None:
        self._cuts = cuts(dtype, shape)
        self.nbytes = self._cuts[-1][1]
        self._data = np.empty(self.nbytes, np.uint8).data
        self._held = [_NO_CHUNK] * len(self._cuts)

    def get(self, number: int, chunk: ChunkId) -> memoryview | None:
        """The bytes of a chunk, if it is the one that is held under this number."""
        if number >= len(self._held) or self._held[number] != chunk:
            return None
        start, stop = self._cuts[number]
        return self._data[start:stop]

    def put(self, number: int, chunk: ChunkId, data: memoryview) -> None:
        """Hold a chunk's bytes from now on."""
        start, stop = self._cuts[number]
        self._held[number] = _NO_CHUNK
        np.copyto(np.frombuffer(self._data[start:stop], np.uint8), np.frombuffer(data, np.uint8))
        self._held[number] = chunk


class TensorParent:
    """One tensor as it was last stored; its rows may have become more or fewer since."""

    def __init__(self, marks: list[Mark], copy: Copy | None) -> None:
        self._marks = marks
        self._copy = copy

    def mark(self, number: int) -> Mark:
        """Of the chunk of this number; unknown where there was none."""
        return self._marks[number] if number < len(self._marks) else UNKNOWN

    def held(self, number: int, chunk: ChunkId) -> memoryview | None:
        """The bytes of a chunk, if they are held in memory under this number."""
        return None if self._copy is None else self._copy.get(number, chunk)


class _Stored(NamedTuple):
    dtype: str
    shape: tuple[int, ...]
    marks: list[Mark]


class Parent:
    """A part as it was last stored, tensor by tensor.

    Args:
        records: the tensors of the commit that the next one follows, where this process stored none itself.
        chunk_ids: the chunks of such a record.
        memory: bounds what is kept; None keeps no bytes.
    """

    def __init__(
        self,
        records: Mapping[str, TensorRecord] | None = None,
        chunk_ids: Callable[[TensorRecord], list[ChunkId]] | None = None,
        memory: Memory | None = None,
    ) -> None:
        self._records = dict(records or {})
        self._chunk_ids = chunk_ids
        self._memory = memory
        self._stored: dict[str, _Stored] = {}
        self._copies: dict[str, tuple[str, tuple[int, ...], Copy]] = {}

    def recall(self, source: TensorSource) -> TensorParent:
        """This tensor as it was last stored; knowing nothing where it was not, or had another dtype or rows."""
        stored = self._stored.get(source.name) or self._of_record(source.name)
        if stored is None or (stored.dtype, stored.shape[1:]) != (source.dtype, source.shape[1:]):
            return TensorParent([], None)
        copy = self._copies.get(source.name)
        return TensorParent(stored.marks, copy[2] if copy is not None else None)

    def _of_record(self, name: str) -> _Stored | None:
        record = self._records.get(name)
        if record is None or self._chunk_ids is None:
            return None
        try:
            marks = [Mark(b"", chunk) for chunk in self._chunk_ids(record)]
        except (CorruptionError, StorageError):
            return None  # a parent that cannot be read is none
        return _Stored(record.dtype, record.shape, marks)

    def copy_for(self, source: TensorSource, nbytes: int) -> Copy | None:
        """Where to keep the bytes of this tensor while they are stored; None where there is no memory for them."""
        if self._memory is None or nbytes < _LEAST_BYTES:
            return None
        dtype, shape, copy = self._copies.get(source.name, ("", (), None))
        if copy is not None and (dtype, shape) == (source.dtype, source.shape):
            return copy
        if copy is not None:
            del self._copies[source.name]
            self._memory.give_back(copy.nbytes)
        if not self._memory.take(nbytes):
            return None
        try:
            copy = Copy(source.dtype, source.shape)
        except MemoryError:
            # There is less than was measured, and a commit does without.
            self._memory.give_back(nbytes)
            return None
        self._copies[source.name] = source.dtype, source.shape, copy
        return copy

    def keep(self, source: TensorSource, marks: list[Mark]) -> None:
        """Remember a tensor as it was stored now."""
        self._stored[source.name] = _Stored(source.dtype, source.shape, marks)
        self._records.pop(source.name, None)
