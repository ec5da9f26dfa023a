"""Mending a store: indexes made anew, lost chunks written again, damaged packs put aside once all else is copied."""

from __future__ import annotations

import contextlib
from collections.abc import Collection
from typing import TYPE_CHECKING

from coral.errors import CorruptionError, NotFoundError
from coral.format import codecs
from coral.format import pack as pack_format
from coral.format.index import PackIndex, build
from coral.format.pack import HEADER_BYTES, KIND_LIST, Entry
from coral.ids import ChunkId, chunk_id, list_id
from coral.objects.garbage import copy_records, orphans
from coral.objects.packs import INDEX, PACK
from coral.objects.scratch import Scratch
from coral.objects.shelf import fit
from coral.objects.writer import StoreWriter
from coral.storage.contents import PACKS, QUARANTINE
from coral.storage.folder import Folder

if TYPE_CHECKING:
    from coral.objects.packs import Pack
    from coral.objects.shelf import Shelf
    from coral.objects.store import ChunkStore

_record, _data = Scratch(), Scratch()


class MendingWriter(StoreWriter):
    """Writes of all that it is given only the chunks that are wanted, whether or not the store seems to have them.

    Args:
        wanted: ids of chunks and chunk lists.
    """

    def __init__(self, store: ChunkStore, wanted: Collection[ChunkId]) -> None:
        super().__init__(store)
        self._wanted = wanted

    def copy_from(self, donor: Shelf) -> None:
        """Copy what another store has of it, each chunk so that it stands alone."""
        donor.packs.refresh()
        for ident in self._wanted:
            # One that it lacks, or that is damaged there as well, is for the next.
            with contextlib.suppress(CorruptionError):
                self._copy(donor, ident)

    def _copy(self, donor: Shelf, ident: ChunkId) -> None:
        if ident not in donor.packs or ident in self._entries:
            return
        found = donor.packs.find(ident)
        if found is not None and found[1].kind == KIND_LIST:
            self._take_list(ident, donor.read_list(ident))
        elif found is not None:
            data = self._copies.take(donor.length_of(ident))
            donor.read_chunk(ident, data)
            if self._claim(ident):
                self._encode(ident, data, found[1].item, None)
                self._write_small()

    def written(self) -> set[ChunkId]:
        """What was wanted and is written."""
        return set(self._entries)

    def _claim(self, chunk: ChunkId) -> bool:
        return chunk in self._wanted and self._claim_again(chunk)


def is_sound(store: ChunkStore, chunk: ChunkId) -> bool:
    """Whether a chunk, or chunk list, can be read."""
    try:
        read_fully(store, chunk)
    except CorruptionError:
        return False
    return True


def read_fully(store: ChunkStore, chunk: ChunkId) -> int:
    """Read a chunk, or chunk list, and every record of it; returns its bytes.

    A damaged record is noted in its pack, also where another one makes up for it.

    Raises:
        CorruptionError: it cannot be read.
    """
    found = store.packs.copies(chunk)
    for pack, entry in found:
        with contextlib.suppress(CorruptionError, NotFoundError):
            pack.read_record(chunk, entry, _record)
    if found and found[0][1].kind == KIND_LIST:
        return len(store.read_list(chunk))
    out = _data.take(store.length_of(chunk))
    store.read_chunk(chunk, out)
    return len(out)


# -- indexes


def mend_indexes(store: ChunkStore) -> list[str]:
    """Make the indexes anew that are damaged, from their packs; returns the names of the packs."""
    mended = []
    for name in store.folder.names():
        stem = name.removesuffix(INDEX)
        if name.endswith(INDEX) and store.folder.exists(stem + PACK) and not _is_whole(store, name):
            index = _scan(store, stem)
            if index is not None:
                store.folder.write(name, index)
                mended.append(stem)
    return mended


def adopt_orphans(store: ChunkStore, wanted: Collection[ChunkId]) -> list[str]:
    """Give the packs without an index one that hold what is wanted; returns their names. Nobody may be writing."""
    adopted = []
    for name in orphans(store):
        data = _scan(store, name)
        if data is None or not any(chunk in PackIndex(data, name) for chunk in wanted):
            continue
        store.folder.write(name + INDEX, data)
        adopted.append(name)
    store.packs.refresh()
    return adopted


def _is_whole(store: ChunkStore, name: str) -> bool:
    try:
        PackIndex(store.folder.map(name), name)
    except CorruptionError:
        return False
    except NotFoundError:
        pass
    return True


def _scan(store: ChunkStore, name: str) -> bytes | None:
    """The index of a pack, from the pack itself; None when it cannot be read to its end."""
    try:
        return build(pack_format.scan(memoryview(store.folder.map(name + PACK)), name))
    except (CorruptionError, NotFoundError):
        return None


# -- packs


def damaged_packs(store: ChunkStore) -> list[Pack]:
    """The packs of which this process has seen that something in them is damaged."""
    return [pack for pack in store.packs.packs if pack.bad or pack.damaged]


def put_aside(store: ChunkStore, pack: Pack) -> bool:
    """Copy all sound records of a pack into a new one, then move it to the quarantine; whether there was a reason to.

    Raises:
        StorageError: the disk refused; the pack is where it was.
    """
    sound = [(chunk, entry) for chunk, entry in pack.index.items() if _is_sound_record(store, pack, chunk, entry)]
    if len(sound) == len(pack.index) and not pack.damaged:
        pack.bad.clear()
        return False
    if sound:
        copy_records(store, pack, sound)
    root = Folder(store.folder.root.parent)
    with store.alone():
        store.packs.forget(pack)
        for suffix in (INDEX, PACK):
            if root.exists(f"{PACKS}/{pack.name}{suffix}"):
                root.move(f"{PACKS}/{pack.name}{suffix}", f"{QUARANTINE}/{pack.name}{suffix}")
    store.packs.refresh()
    return True


def _is_sound_record(store: ChunkStore, pack: Pack, chunk: ChunkId, entry: Entry) -> bool:
    """Whether a record is as it was written; one that made a read fail must decode as well."""
    try:
        payload = pack.read_record(chunk, entry, _record)[HEADER_BYTES:]
        if chunk not in pack.bad:
            return True
        if entry.kind == KIND_LIST:
            return list_id(payload) == chunk
        out = memoryview(bytearray(entry.raw_length))
        codecs.decode_into(entry.codec, entry.item, payload, out, lambda base, into: _base(store, base, into))
    except CorruptionError:
        pack.bad.add(chunk)
        return False
    return chunk_id(out) == chunk


def _base(store: ChunkStore, base: ChunkId, into: memoryview) -> memoryview:
    whole = memoryview(bytearray(store.length_of(base)))
    store.read_chunk(base, whole)
    fit(whole, into)
    return into


def without_base(store: ChunkStore) -> None:
    """Note as damaged the deltas whose bases are nowhere: nobody must rely on them."""
    for pack in store.packs.packs:
        for chunk, entry in pack.index.items():
            if entry.codec in codecs.WITH_BASE and chunk not in pack.bad:
                with contextlib.suppress(CorruptionError, NotFoundError):
                    base = pack.read_base(chunk, entry)
                    if base is not None and not store.packs.copies(base):
                        pack.bad.add(chunk)
