"""The set of packs in a folder: which pack holds an id, and the record's payload, checked."""

from __future__ import annotations

import re
import secrets
import threading

from coral.errors import CorruptionError, NotFoundError
from coral.format import pack as pack_format
from coral.format.index import PackIndex, build
from coral.format.pack import HEADER_BYTES, Entry
from coral.ids import ChunkId, checksum
from coral.objects.scratch import Scratch
from coral.storage.folder import Folder, ReadFile

PACK, INDEX = ".pack", ".idx"
_INDEX_NAME = re.compile(r"(\d{8}-[0-9a-f]{16})\.idx", re.ASCII)


class Pack:
    """One sealed pack and its index."""

    def __init__(self, folder: Folder, name: str) -> None:
        self.name = name
        self._folder = folder
        self._file: ReadFile | None = None
        self.nbytes = folder.size(name + PACK)
        self.index = self._load_index()

    def _load_index(self) -> PackIndex:
        try:
            return PackIndex(self._folder.map(self.name + INDEX), self.name + INDEX)
        except CorruptionError:
            # The index is derived: make it anew from the pack, in memory.
            data = self._folder.map(self.name + PACK)
            return PackIndex(build(pack_format.scan(memoryview(data), self.name)), self.name)

    @property
    def file(self) -> ReadFile:
        """The pack, opened at the first read."""
        if self._file is None:
            self._file = self._folder.open(self.name + PACK)
        return self._file

    def read_record(self, chunk: ChunkId, entry: Entry, out: memoryview) -> memoryview:
        """Read a record into ``out`` (header and payload); returns the payload.

        Raises:
            CorruptionError: the bytes are not the record that the index promises.
        """
        length = HEADER_BYTES + entry.stored_length
        if self.file.read_into(entry.offset, out[:length]) != length:
            raise CorruptionError(f"{self.name} ends before the chunk {chunk.hex()}", hint="run coral fsck")
        found, header, payload_checksum = pack_format.parse_header(out[:HEADER_BYTES], entry.offset, self.name)
        payload = out[HEADER_BYTES:length]
        if found != chunk or header != entry or checksum(payload) != payload_checksum:
            raise CorruptionError(
                f"{self.name} holds damaged bytes for the chunk {chunk.hex()} at byte {entry.offset}",
                hint="run coral fsck",
            )
        return payload


class PackSet:
    """All packs of a folder, newest first. Safe to share between threads."""

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._packs: tuple[Pack, ...] = ()
        self.refresh()

    @property
    def packs(self) -> tuple[Pack, ...]:
        return self._packs

    def refresh(self) -> bool:
        """See the packs that other processes added or consolidated; returns whether there were any."""
        with self._lock:
            known = {pack.name: pack for pack in self._packs}
            names = [match[1] for match in map(_INDEX_NAME.fullmatch, self._folder.names()) if match]
            if known.keys() == set(names):
                return False
            packs = [known.get(name) or self._open(name) for name in names]
            before, self._packs = self._packs, tuple(pack for pack in packs if pack is not None)[::-1]
            return before != self._packs

    def _open(self, name: str) -> Pack | None:
        try:
            return Pack(self._folder, name)
        except NotFoundError:
            # Consolidated by another process between the listing and here; its records are in a newer pack.
            return None

    def new_name(self) -> str:
        """A fresh pack name; names sort by age, so that newer packs are searched first."""
        newest = max((int(pack.name.partition("-")[0]) for pack in self._packs), default=0)
        return f"{newest + 1:08d}-{secrets.token_hex(8)}"

    def __contains__(self, chunk: ChunkId) -> bool:
        """Whether one of the packs known now holds a record."""
        return any(chunk in pack.index for pack in self._packs)

    def find(self, chunk: ChunkId) -> tuple[Pack, Entry] | None:
        """Where a record lies, among the packs known now."""
        for pack in self._packs:
            entry = pack.index.find(chunk)
            if entry is not None:
                return pack, entry
        return None

    def locate(self, chunk: ChunkId) -> tuple[Pack, Entry]:
        """Where a record lies, looking on the disk again before giving up.

        Raises:
            CorruptionError: no pack holds it.
        """
        while (found := self.find(chunk)) is None:
            # A listing taken while another process consolidates may lack both the old packs and the new one; so
            # only two that agree are believed.
            if not self.refresh():
                raise CorruptionError(f"the chunk {chunk.hex()} is missing from the store", hint="run coral fsck")
        return found

    def read_record(self, chunk: ChunkId, scratch: Scratch) -> tuple[Entry, memoryview]:
        """Read a record into this thread's scratch; returns its entry and its payload."""
        while True:
            pack, entry = self.locate(chunk)
            try:
                return entry, pack.read_record(chunk, entry, scratch.take(HEADER_BYTES + entry.stored_length))
            except NotFoundError:
                # Another process merged the pack away; each turn forgets one, so this ends.
                self.forget(pack)
                self.refresh()

    def forget(self, pack: Pack) -> None:
        """Drop a pack whose file is gone."""
        with self._lock:
            self._packs = tuple(other for other in self._packs if other is not pack)
