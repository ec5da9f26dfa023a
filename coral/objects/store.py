"""The chunk store's door: reads tensors back, verified, and opens writers."""

from __future__ import annotations

import contextlib
import math
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from typing import TYPE_CHECKING, NamedTuple, ParamSpec, TypeVar

from coral.errors import CorruptionError
from coral.format import codecs
from coral.format.chunking import CHUNK_LIMIT, chunk_count, spans
from coral.format.dtypes import item_bytes
from coral.format.manifest import TensorRecord
from coral.format.pack import KIND_LIST, MAX_DEPTH, Entry
from coral.ids import ID_BYTES, ChunkId, ContentRef, chunk_id, list_id
from coral.live import Live
from coral.objects.packs import PackSet
from coral.objects.parent import Memory
from coral.objects.scratch import Scratch
from coral.objects.source import BytesSource
from coral.objects.trash import Trash
from coral.pool import Pool
from coral.storage.folder import Folder
from coral.storage.gate import ALONE_SECONDS, Gate
from coral.storage.locks import file_lock

if TYPE_CHECKING:
    from pathlib import Path

    from typing_extensions import Buffer

    from coral.objects.writer import StoreWriter

P = ParamSpec("P")
T = TypeVar("T")
_WINDOW_PER_THREAD = 2
# Batches of 4 MiB, which hold copies where a tensor is not in plain memory: 64 MiB, however many cores there are.
_LARGEST_WINDOW = 16
_NICE = 15
_LARGEST_ARRAY = (1 << 63) - 1
# Writers stop at MAX_DEPTH, but two that did not know of each other may have put theirs on top of one another.
_DEEPEST = 4 * MAX_DEPTH


class _Attempt(NamedTuple):
    """One attempt at reading a chunk.

    Attributes:
        verifies_bases: the bytes of each base are compared with its id, not those of the chunk alone.
        failed: what could not be read, and at which level. Where several packs hold each of a row of bases, all ways
            to combine them would be too many to try.
    """

    verifies_bases: bool
    failed: set[tuple[ChunkId, int]]


class ChunkStore(Live):
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
        self.folder = folder
        self.lock = lock
        self.verify_writes = verify_writes
        self.threads = threads or _cores()
        self.memory = Memory(memory) if memory is not None else None
        self.packs = PackSet(folder)
        self.trash = Trash(Folder(folder.root.parent))
        self._gate = Gate(lock)
        # One for each level of a delta and its bases, all of which are read at once.
        self._records = [Scratch() for _ in range(_DEEPEST + 1)]
        self._bases = [Scratch() for _ in range(_DEEPEST + 1)]
        self._pools = {quiet: Pool(self.threads, "coral", begin=_be_nice if quiet else None) for quiet in (False, True)}
        self._quiet = threading.local()

    def submit(self, job: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Have a worker thread do a job; where there is no thread to be had, the caller's does it."""
        return self._pools[getattr(self._quiet, "is_on", False)].submit(job, *args, **kwargs)

    @contextlib.contextmanager
    def quietly(self) -> Iterator[None]:
        """What this thread asks of the store meanwhile is done by threads that leave the processor to others."""
        self._quiet.is_on = True
        try:
            yield
        finally:
            self._quiet.is_on = False

    @property
    def window(self) -> int:
        """How many chunks may be under way at once; bounds the memory."""
        return min(_WINDOW_PER_THREAD * self.threads, _LARGEST_WINDOW)

    # -- writing

    def writer(self, *, keeps_young: bool = False) -> StoreWriter:
        """Start writing; nothing counts until the writer is sealed.

        Args:
            keeps_young: what is found here already is kept from garbage collection for its grace period, as what is
                new is. For who names it only after the writer is sealed, and does not hold the store (:meth:`held`).
        """
        from coral.objects.writer import StoreWriter

        return StoreWriter(self, keeps_young=keeps_young)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Keep garbage collection away: to be held from the first look at what is there until something names it.

        Raises:
            LockedError: a collection takes too long.
        """
        with self._gate.shared():
            # Only now: what was seen before may have been collected since.
            self.packs.refresh()
            self.trash.refresh()
            yield

    @contextlib.contextmanager
    def alone(self, *, timeout: float = ALONE_SECONDS) -> Iterator[None]:
        """Have nobody write, or rely on what is here. Raises LockedError."""
        with self._gate.alone(timeout=timeout):
            self.packs.refresh()
            self.trash.refresh()
            yield

    def take_back(self, chunks: Iterable[ChunkId]) -> int:
        """Take chunks out of the trash that lie only there; returns how many packs came back. The store must be held.

        Raises:
            StorageError: the disk refused.
        """
        if self.trash.is_empty:
            return 0
        wanted = [chunk for chunk in chunks if chunk not in self.packs and self.trash.holds(chunk)]
        if not wanted:
            return 0
        with file_lock(self.lock.with_name("trash")):
            # Another process may have taken them out meanwhile.
            self.packs.refresh()
            self.trash.refresh()
            return self.trash.take_back(wanted, self.packs)

    def put_bytes(self, data: Buffer) -> ContentRef:
        """Store plain bytes, durably; returns their reference."""
        with self.writer(keeps_young=True) as writer:
            (record,) = writer.write_tensors([BytesSource("data", data)])
            writer.seal()
        self.consolidate()
        return record.content

    def consolidate(self) -> int:
        """Merge small packs when there are many; returns how many went away. Cheap when there is nothing to do."""
        from coral.objects.consolidate import consolidate

        return consolidate(self)

    def is_delta(self, chunk: ChunkId) -> bool:
        """Whether a chunk can only be read with the help of another one. Raises CorruptionError when it is missing."""
        return self.packs.locate(chunk)[1].codec in codecs.WITH_BASE

    # -- reading

    def get_bytes(self, content: ContentRef, nbytes: int) -> bytes:
        """Plain bytes that :meth:`put_bytes` stored. Raises CorruptionError."""
        record = TensorRecord("data", "U8", (nbytes,), content)
        self.check(record)
        out = bytearray(nbytes)
        self.read_into(record, memoryview(out))
        return bytes(out)

    def check(self, record: TensorRecord) -> None:
        """See that the store holds what makes up such a tensor, without reading it: to be called before allocating.

        A manifest may be hostile. The memory to allocate for a record that passes is bounded by what is stored.

        Raises:
            CorruptionError: a shape that no tensor can have, or one that the chunks do not fit; a chunk is missing.
        """
        refuse_absurd(record)
        if record.content.startswith("hex:"):
            inline_bytes(record)
            return
        for chunk, (start, stop) in zip(self.chunk_ids(record), spans(record.dtype, record.shape), strict=True):
            _, entry = self.packs.locate(chunk, nbytes=stop - start)
            if entry.codec in codecs.WITH_BASE:
                self.bases_of(chunk)

    def chunk_ids(self, record: TensorRecord) -> list[ChunkId]:
        """The ids of a tensor's chunks, in order; none for one that stands inline in the manifest."""
        if record.content.startswith("hex:"):
            return []
        found = self.chunks_in(record.content)
        if len(found) != chunk_count(record.dtype, record.shape):
            raise CorruptionError(f"the tensor {record.name} of shape {list(record.shape)} lists {len(found)} chunks")
        return found

    def chunks_in(self, content: ContentRef) -> list[ChunkId]:
        """The ids of the chunks that a reference names, whatever the tensor is. Raises CorruptionError."""
        kind, _, text = content.partition(":")
        if kind == "hex":
            return []
        ident = ChunkId(bytes.fromhex(text))
        data = ident if kind == "b3" else self.read_list(ident)
        return [ChunkId(data[at : at + ID_BYTES]) for at in range(0, len(data), ID_BYTES)]

    def read_into(self, record: TensorRecord, out: memoryview) -> None:
        """Fill ``out`` with a tensor's bytes; as :meth:`read_many`."""
        self.read_many([(record, out)])

    def read_many(self, wanted: Iterable[tuple[TensorRecord, memoryview]]) -> None:
        """Fill memory with the bytes of several tensors, decoded in parallel and verified against their ids.

        Raises:
            CorruptionError: a chunk is missing or damaged; what was to be filled then holds rubbish.
        """
        from coral.objects.reading import read_many

        read_many(self, wanted)

    def stream(self, records: Iterable[TensorRecord]) -> Iterator[memoryview]:
        """The bytes of tensors, one after another, decoded ahead in parallel and verified.

        A piece is part of one tensor, and is valid until the next one is asked for. Raises CorruptionError.
        """
        from coral.objects.reading import stream

        return stream(self, records)

    def read_chunk(self, chunk: ChunkId, out: memoryview) -> None:
        """Fill ``out`` with one chunk, verified. Raises CorruptionError."""
        try:
            self._decode(chunk, out, 0, _Attempt(verifies_bases=False, failed=set()))
        except CorruptionError:
            # Once more, looking at every chunk on the way: the one that is damaged may lie in another pack as well.
            self._decode(chunk, out, 0, _Attempt(verifies_bases=True, failed=set()))

    def _decode(self, chunk: ChunkId, out: memoryview, level: int, attempt: _Attempt) -> None:
        if level > _DEEPEST or (chunk, level) in attempt.failed:
            raise CorruptionError(
                f"the chunk {chunk.hex()} lies under more than {_DEEPEST} others, or under one that is damaged",
                hint="run coral fsck",
            )

        def read_base(base: ChunkId, into: memoryview) -> memoryview:
            length = self.length_of(base)
            whole = into if length == len(into) else self._bases[level].take(length)
            self._decode(base, whole, level + 1, attempt)
            if length != len(into):
                fit(whole, into)
            return into

        def decode(entry: Entry, payload: memoryview) -> None:
            codecs.decode_into(entry.codec, entry.item, payload, out, read_base)
            if (level == 0 or attempt.verifies_bases) and chunk_id(out) != chunk:
                raise CorruptionError(f"the chunk {chunk.hex()} decodes to other bytes", hint="run coral fsck")

        try:
            self.packs.read(chunk, self._records[level], decode, nbytes=len(out))
        except CorruptionError:
            attempt.failed.add((chunk, level))
            raise

    def length_of(self, chunk: ChunkId) -> int:
        """Bytes of a chunk, never more than a chunk may have. Raises CorruptionError."""
        length = self.packs.locate(chunk)[1].raw_length
        if length > CHUNK_LIMIT:
            raise CorruptionError(f"the chunk {chunk.hex()} has {length} bytes, not {CHUNK_LIMIT} at most")
        return length

    def bases_of(self, chunk: ChunkId) -> list[ChunkId]:
        """The chunks that must be decoded before this one, nearest first; the last of them stands alone.

        Raises:
            CorruptionError: one of them is missing or damaged, or there is no end to them.
        """
        bases: list[ChunkId] = []
        while (base := self.packs.base_of(bases[-1] if bases else chunk)) is not None:
            if len(bases) == _DEEPEST:
                raise CorruptionError(f"the chunk {chunk.hex()} is a delta of more than {_DEEPEST} others in a row")
            bases.append(base)
        return bases

    def read_list(self, ident: ChunkId) -> bytes:
        """The ids that a chunk list names, one after the other. Raises CorruptionError."""

        def copy(entry: Entry, payload: memoryview) -> bytes:
            data = bytes(payload)
            if len(data) % ID_BYTES or list_id(data) != ident:
                raise CorruptionError(f"the chunk list {ident.hex()} is damaged", hint="run coral fsck")
            return data

        return self.packs.read(ident, self._records[0], copy, kind=KIND_LIST)


def fit(base: memoryview, out: memoryview) -> None:
    """Fill ``out`` with a base's bytes, cut or followed by zeros."""
    length = min(len(base), len(out))
    out[:length] = base[:length]
    out[length:] = bytes(len(out) - length)


def _be_nice() -> None:
    """Let this thread run when nobody else wants the processor: Linux schedules each thread on its own."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)


def _cores() -> int:
    # What this process may use; macOS cannot say.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def refuse_absurd(record: TensorRecord) -> None:
    """Raise CorruptionError for a shape that no array can have, as numpy counts: sizes of zero left aside."""
    if math.prod(size or 1 for size in record.shape) * item_bytes(record.dtype) > _LARGEST_ARRAY:
        raise CorruptionError(f"the tensor {record.name} has the shape {list(record.shape)}, which no tensor can have")


def inline_bytes(record: TensorRecord) -> bytes:
    """The bytes of a tensor that stands inline in the manifest. Raises CorruptionError when it has the wrong size."""
    data = bytes.fromhex(record.content.removeprefix("hex:"))
    if len(data) != record.nbytes:
        raise CorruptionError(f"the tensor {record.name} holds {len(data)} bytes, not {record.nbytes}")
    return data
