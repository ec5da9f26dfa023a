"""The set of packs in a folder: which packs hold an id, and the record's payload, checked.

The same record may lie in several packs. One that was found damaged is remembered while the process lives: it counts
as missing, so that the next commit of the same bytes writes it anew, and a read takes it only where there is no other.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeVar

from coral import forks
from coral.errors import CorruptionError, NotFoundError
from coral.format import codecs
from coral.format import pack as pack_format
from coral.format.index import PackIndex, build
from coral.format.pack import HEADER_BYTES, KIND_CHUNK, MAX_RECORD_BYTES, Entry
from coral.ids import ID_BYTES, ChunkId, checksum
from coral.objects.recent import Recent
from coral.objects.scratch import Scratch
from coral.objects.table import IdTable

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from typing_extensions import Buffer

T = TypeVar("T")
PACK, INDEX = ".pack", ".idx"
NAME = re.compile(r"(\d{8})-[0-9a-f]{16}", re.ASCII)
_LAST_NUMBER = 99_999_999
# A process may have 1,024 files open, on macOS 256, and most of those are for the program that trains.
_OPEN_FILES = 64
_INDEX_BYTES = 32 << 20


class Readable(Protocol):
    """An open pack, which threads may share."""

    def read_into(self, offset: int, out: memoryview) -> int:
        """Fill ``out`` with the bytes at an offset; returns how many there were."""


class PackFolder(Protocol):
    """What packs can be read from: a folder of this machine, or one of a far place. Raises NotFoundError."""

    def names(self) -> list[str]:
        """The names of all files in it."""

    def map(self, key: str) -> Buffer:
        """The bytes of a whole file."""

    def open(self, key: str) -> Readable:
        """Open a file for reading at offsets."""

    def size(self, key: str) -> int:
        """Bytes of a file."""

    def modified(self, key: str) -> float:
        """When a file was last changed, in seconds since 1970."""


class _Kept(NamedTuple):
    """What the packs of a set keep open and in memory, together."""

    files: Recent[Readable]
    indexes: Recent[PackIndex]


class Pack:
    """One sealed pack and its index; nothing of them is read before it is asked for.

    Attributes:
        name: of its files, less the suffix.
        number: what the table of ids calls it, in this process.
        bad: the ids whose records were found damaged.
        damaged: it lost records that no other pack is known to hold, so that consolidation leaves it alone.
    """

    def __init__(self, folder: PackFolder, name: str, number: int, kept: _Kept) -> None:
        self.name = name
        self.number = number
        self.bad: set[ChunkId] = set()
        self.damaged = False
        self._folder = folder
        self._kept = kept
        self._nbytes: int | None = None

    @property
    def nbytes(self) -> int:
        """Length of the pack. Raises NotFoundError when it was merged away."""
        if self._nbytes is None:
            self._nbytes = self._folder.size(self.name + PACK)
        return self._nbytes

    @property
    def index(self) -> PackIndex:
        """The index, made anew where it is damaged. Raises NotFoundError when it was merged away."""
        return self._kept.indexes.get(self.name, self._load_index)

    @property
    def modified(self) -> float:
        """When it was written, or relied on, in seconds since 1970. Raises NotFoundError when it was merged away."""
        return self._folder.modified(self.name + PACK)

    def _load_index(self) -> PackIndex:
        try:
            return PackIndex(self._folder.map(self.name + INDEX), self.name + INDEX)
        except CorruptionError:
            # The index is derived: make it anew from the pack, in memory.
            return PackIndex(build(self._scan()), self.name)

    def _scan(self) -> Iterator[tuple[ChunkId, Entry]]:
        try:
            yield from pack_format.scan(memoryview(self._folder.map(self.name + PACK)), self.name)
        except CorruptionError:
            # What follows the damage cannot be found; what precedes it, and all other packs, can still be read.
            self.damaged = True

    def read_record(self, chunk: ChunkId, entry: Entry, scratch: Scratch) -> memoryview:
        """Read a whole record, header and payload, into this thread's scratch; remember when it is damaged.

        Raises:
            CorruptionError: the bytes are not the record that the index promises.
            NotFoundError: the pack was merged away.
        """
        try:
            return self._read_record(chunk, entry, scratch)
        except CorruptionError:
            self.bad.add(chunk)
            raise

    def _read_record(self, chunk: ChunkId, entry: Entry, scratch: Scratch) -> memoryview:
        length = HEADER_BYTES + entry.stored_length
        self._refuse_outside(chunk, entry)
        record = scratch.take(length)
        if self._kept.files.get(self.name, self._open).read_into(entry.offset, record) != length:
            raise CorruptionError(f"{self.name} ends before the chunk {chunk.hex()}", hint="run coral fsck")
        found, header, payload_checksum = pack_format.parse_header(record[:HEADER_BYTES], entry.offset, self.name)
        if found != chunk or header != entry or checksum(record[HEADER_BYTES:]) != payload_checksum:
            raise CorruptionError(
                f"{self.name} holds damaged bytes for the chunk {chunk.hex()} at byte {entry.offset}",
                hint="run coral fsck",
            )
        return record

    def read_base(self, chunk: ChunkId, entry: Entry) -> ChunkId | None:
        """The base that a record names, read without the rest of it. Raises CorruptionError, NotFoundError."""
        self._refuse_outside(chunk, entry)
        head = memoryview(bytearray(HEADER_BYTES + min(ID_BYTES, entry.stored_length)))
        length = self._kept.files.get(self.name, self._open).read_into(entry.offset, head)
        found, header, _ = pack_format.parse_header(head[:length], entry.offset, self.name)
        if found != chunk or header != entry:
            raise CorruptionError(f"{self.name} holds another record for {chunk.hex()}", hint="run coral fsck")
        return codecs.base_of(entry.codec, head[HEADER_BYTES:length])

    def _refuse_outside(self, chunk: ChunkId, entry: Entry) -> None:
        # The index may be hostile: believe its lengths only as far as the file goes.
        length = HEADER_BYTES + entry.stored_length
        if entry.stored_length > MAX_RECORD_BYTES or entry.offset + length > self.nbytes:
            raise CorruptionError(f"{self.name} ends before the chunk {chunk.hex()}", hint="run coral fsck")

    def _open(self) -> Readable:
        return self._folder.open(self.name + PACK)


class _View(NamedTuple):
    """The packs that are known, newest first, and where their ids lie; replaced as a whole, never changed."""

    packs: tuple[Pack, ...]
    numbered: dict[int, Pack]
    table: IdTable


class PackSet:
    """All packs of a folder. Safe to share between threads.

    To open one costs a listing of the folder; the indexes are read at the first search.
    """

    def __init__(self, folder: PackFolder) -> None:
        self._folder = folder
        self._lock = forks.rlock()  # a signal handler may read as well
        self._kept = _Kept(Recent(limit=_OPEN_FILES), Recent(limit=_INDEX_BYTES, weigh=lambda index: index.nbytes))
        self._made = 0
        self._searched = False
        self._view = _View((), {}, IdTable.empty())
        self.refresh()

    @property
    def packs(self) -> tuple[Pack, ...]:
        """The packs known now, newest first."""
        return self._view.packs

    def refresh(self) -> bool:
        """See the packs that other processes added or consolidated; returns whether there were any."""
        with self._lock:
            before = self._view
            listed = self._list(before)
            self._view = self._read_indexes(listed) if self._searched else listed
            return self._view.packs != before.packs

    def _list(self, view: _View) -> _View:
        names = set(self._folder.names())
        found = [
            stem
            for stem in (name.removesuffix(INDEX) for name in names if name.endswith(INDEX))
            if NAME.fullmatch(stem) and stem + PACK in names
        ]
        known = {pack.name: pack for pack in view.packs}
        if known.keys() == set(found):
            return view
        return _view([known.get(name) or self._new(name) for name in sorted(found, reverse=True)], view.table)

    def _new(self, name: str) -> Pack:
        self._made += 1
        return Pack(self._folder, name, self._made, self._kept)

    def _read_indexes(self, view: _View) -> _View:
        """The view with a table of just its packs, less those that went away since they were listed."""
        gone: set[Pack] = set()

        def fresh() -> Iterator[tuple[int, PackIndex]]:
            for pack in view.packs:
                if pack.number not in view.table.packs:
                    try:
                        index = pack.index
                    except NotFoundError:
                        # Merged away by another process; its records are in a newer pack.
                        gone.add(pack)
                    else:
                        yield pack.number, index

        table = view.table.without(view.table.packs - view.numbered.keys()).adding(fresh())
        return _view([pack for pack in view.packs if pack not in gone], table)

    def _search(self) -> _View:
        """The view, with a table of its packs."""
        if not self._searched:
            with self._lock:
                if not self._searched:
                    listed, self._view = self._view, self._read_indexes(self._view)
                    if self._view.packs != listed.packs:
                        self._view = self._read_indexes(self._list(self._view))
                    self._searched = True
        return self._view

    def new_name(self) -> str:
        """A fresh pack name; names sort by age, so that newer packs are searched first (past 99999999 by chance)."""
        newest = max((int(pack.name.partition("-")[0]) for pack in self.packs), default=0)
        name = f"{min(newest + 1, _LAST_NUMBER):08d}-{secrets.token_hex(8)}"
        assert NAME.fullmatch(name)
        return name

    def __contains__(self, chunk: ChunkId) -> bool:
        """Whether one of the packs known now holds a record that was not found damaged."""
        for pack, _, _ in self._places(chunk):  # noqa: SIM110 - any() takes a third longer
            if chunk not in pack.bad:
                return True
        return False

    def find(self, chunk: ChunkId) -> tuple[Pack, Entry] | None:
        """Where a record lies that was not found damaged, among the packs known now."""
        return next((found for found in self.copies(chunk) if chunk not in found[0].bad), None)

    def copies(self, chunk: ChunkId) -> list[tuple[Pack, Entry]]:
        """Where all records of an id lie, among the packs known now: the shallowest first, the damaged ones last."""
        found = [(pack, index.entry(position)) for pack, index, position in self._places(chunk)]
        return found if len(found) < 2 else sorted(found, key=lambda place: (chunk in place[0].bad, place[1].depth))

    def _places(self, chunk: ChunkId) -> Sequence[tuple[Pack, PackIndex, int]]:
        view = self._view if self._searched else self._search()
        places = view.table.find(chunk)
        if not places:
            return ()
        found = []
        for number, position in places:
            # The table may still hold packs that were forgotten.
            pack = view.numbered.get(number)
            index = None if pack is None else self._index_of(pack)
            if pack is not None and index is not None and index.id(position) == chunk:
                found.append((pack, index, position))
        return found

    def _index_of(self, pack: Pack) -> PackIndex | None:
        try:
            return pack.index
        except NotFoundError:
            # Let go of, and when wanted again the pack had been merged away.
            self.forget(pack)
            return None

    def repeated(self) -> NDArray[np.uint64]:
        """The first eight bytes of each id of which there is more than one record, sorted."""
        return self._search().table.repeated()

    def base_of(self, chunk: ChunkId) -> ChunkId | None:
        """The chunk that a record is encoded against; None for one that stands alone.

        Raises:
            CorruptionError: the record is missing, or damaged in all packs that hold it.
        """

        def name_base(pack: Pack, entry: Entry) -> ChunkId | None:
            return pack.read_base(chunk, entry) if entry.codec in codecs.WITH_BASE else None

        return self._first_sound(chunk, name_base, kind=KIND_CHUNK, nbytes=None)

    def locate(
        self, chunk: ChunkId, *, kind: int = KIND_CHUNK, nbytes: int | None = None, without: Collection[str] = ()
    ) -> tuple[Pack, Entry]:
        """Where a record lies, looking on the disk again before giving up; a damaged one where there is no other.

        Args:
            kind: chunk or chunk list.
            nbytes: raw length that it must have; None for any.
            without: names of packs to leave aside.

        Raises:
            CorruptionError: no pack holds it.
        """
        while True:
            found = [place for place in self.copies(chunk) if place[0].name not in without]
            for pack, entry in found:
                if entry.kind == kind and nbytes in (None, entry.raw_length):
                    return pack, entry
            # A listing taken while another process consolidates may lack both the old packs and the new one; so
            # only two that agree are believed.
            if not self.refresh():
                raise self._missing(chunk, nbytes, found[0][1] if found else None)

    def _missing(self, chunk: ChunkId, nbytes: int | None, other: Entry | None) -> CorruptionError:
        if other is not None:
            wanted = "another kind" if nbytes in (None, other.raw_length) else f"{nbytes}"
            return CorruptionError(f"the chunk {chunk.hex()} holds {other.raw_length} bytes, not {wanted}")
        damaged = ", ".join(pack.name for pack in self.packs if pack.damaged)
        lost = f"; it may have been in {damaged}, which is damaged" if damaged else ""
        return CorruptionError(f"the chunk {chunk.hex()} is missing from the store{lost}", hint="run coral fsck")

    def read(
        self,
        chunk: ChunkId,
        scratch: Scratch,
        use: Callable[[Entry, memoryview], T],
        *,
        kind: int = KIND_CHUNK,
        nbytes: int | None = None,
    ) -> T:
        """What ``use`` makes of a record's payload. Each pack that holds the record is tried before giving up.

        Args:
            use: is given the entry and the payload; raises CorruptionError when the payload is not what the id says.

        Raises:
            CorruptionError: the record is damaged in all packs that hold it, or missing.
        """

        def read_it(pack: Pack, entry: Entry) -> T:
            used = use(entry, pack.read_record(chunk, entry, scratch)[HEADER_BYTES:])
            pack.bad.discard(chunk)
            return used

        return self._first_sound(chunk, read_it, kind=kind, nbytes=nbytes)

    def _first_sound(self, chunk: ChunkId, attempt: Callable[[Pack, Entry], T], *, kind: int, nbytes: int | None) -> T:
        """What the first attempt gives that meets no damage, one for each pack that holds the record."""
        errors: list[CorruptionError] = []
        tried: set[str] = set()
        try:
            while True:
                pack, entry = self._next(chunk, errors, kind=kind, nbytes=nbytes, without=tried)
                tried.add(pack.name)
                try:
                    return attempt(pack, entry)
                except NotFoundError:
                    # Another process merged the pack away.
                    self.forget(pack)
                    self.refresh()
                except CorruptionError as error:
                    pack.bad.add(chunk)
                    errors.append(error)
        finally:
            # An error holds this frame, and the frame would hold the error.
            errors.clear()

    def _next(
        self, chunk: ChunkId, errors: list[CorruptionError], *, kind: int, nbytes: int | None, without: set[str]
    ) -> tuple[Pack, Entry]:
        try:
            return self.locate(chunk, kind=kind, nbytes=nbytes, without=without)
        except CorruptionError as error:
            raise (errors[0] if errors else error) from None

    def forget(self, pack: Pack) -> None:
        """Drop a pack whose file is gone."""
        with self._lock:
            self._view = _view([other for other in self._view.packs if other is not pack], self._view.table)
        # Threads that are reading from it keep its file open until they are done.
        self._kept.files.drop(pack.name)
        self._kept.indexes.drop(pack.name)


def _view(packs: list[Pack], table: IdTable) -> _View:
    return _View(tuple(packs), {pack.number: pack for pack in packs}, table)
