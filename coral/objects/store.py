"""The chunk store's door: reads tensors back, verified, and opens writers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from coral.format.manifest import TensorRecord
from coral.ids import ContentRef
from coral.objects import consolidate, reading
from coral.objects.parent import Memory
from coral.objects.shelf import LocalShelf
from coral.objects.source import BytesSource
from coral.objects.writer import StoreWriter
from coral.storage.folder import Folder

if TYPE_CHECKING:
    from pathlib import Path

    from typing_extensions import Buffer


class ChunkStore(LocalShelf):
    """Content ids to bytes.

    Args:
        folder: where the packs are.
        lock: flock file: writers share it, garbage collection excludes them.
        threads: workers for hashing, encoding and decoding; None takes every core.
        verify_writes: decode each encoded chunk and compare before it counts.
        memory: says how many bytes of what was last stored may be kept in memory; None keeps none.
    """

    def __init__(
        self,
        folder: Folder,
        lock: Path,
        *,
        threads: int | None = None,
        verify_writes: bool = True,
        memory: Callable[[], int] | None = None,
    ) -> None:
        super().__init__(folder, lock, threads=threads, verify_writes=verify_writes)
        self.memory = Memory(memory) if memory is not None else None

    # -- writing

    def writer(self, *, keeps_young: bool = False) -> StoreWriter:
        """Start writing; nothing counts until the writer is sealed.

        Args:
            keeps_young: what is found here already is kept from garbage collection for its grace period, as what is
                new is. For who names it only after the writer is sealed, and does not hold the store (:meth:`held`).
        """
        return StoreWriter(self, keeps_young=keeps_young)

    def put_bytes(self, data: Buffer) -> ContentRef:
        """Store plain bytes, durably; returns their reference."""
        with self.writer(keeps_young=True) as writer:
            (record,) = writer.write_tensors([BytesSource("data", data)])
            writer.seal()
        self.consolidate()
        return record.content

    def consolidate(self) -> int:
        """Merge small packs when there are many; returns how many went away. Cheap when there is nothing to do."""
        return consolidate.consolidate(self)

    # -- reading

    def get_bytes(self, content: ContentRef, nbytes: int) -> bytes:
        """Plain bytes that :meth:`put_bytes` stored. Raises CorruptionError."""
        record = TensorRecord("data", "U8", (nbytes,), content)
        self.check(record)
        out = bytearray(nbytes)
        self.read_into(record, memoryview(out))
        return bytes(out)

    def read_into(self, record: TensorRecord, out: memoryview) -> None:
        """Fill ``out`` with a tensor's bytes; as :meth:`read_many`."""
        self.read_many([(record, out)])

    def read_many(self, wanted: Iterable[tuple[TensorRecord, memoryview]]) -> None:
        """Fill memory with the bytes of several tensors, decoded in parallel and verified against their ids.

        Raises:
            CorruptionError: a chunk is missing or damaged; what was to be filled then holds rubbish.
        """
        reading.read_many(self, wanted)

    def stream(self, records: Iterable[TensorRecord]) -> Iterator[memoryview]:
        """The bytes of tensors, one after another, decoded ahead in parallel and verified.

        A piece is part of one tensor, and is valid until the next one is asked for. Raises CorruptionError.
        """
        return reading.stream(self, records)
