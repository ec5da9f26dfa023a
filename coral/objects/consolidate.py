"""Merging small packs into larger ones, so that ten thousand commits are not ten thousand files.

Packs are sorted into tiers by size, each eight times the one below; a tier that holds eight packs becomes one pack of
the next. A record is thus copied a handful of times in its life, encoded as it is, its checksum verified. The merged
pack is durable and visible before the packs it replaces go away, so a kill at any moment loses nothing, and a reader
that finds a pack gone looks again.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Iterator
from typing import TYPE_CHECKING

from coral.errors import CorruptionError, LockedError, StorageError
from coral.format.pack import HEADER_BYTES, MAGIC, Entry
from coral.ids import ChunkId
from coral.objects.packs import INDEX, PACK
from coral.objects.scratch import Scratch
from coral.objects.writer import publish_pack
from coral.storage.locks import file_lock

if TYPE_CHECKING:
    from coral.objects.packs import Pack
    from coral.objects.store import ChunkStore
    from coral.storage.folder import NewFile

FAN_IN = 8
_LOWEST_TIER_BYTES = 1 << 16
_LARGEST_BYTES = 256 << 20
_WRITE_BYTES = 4 << 20


def consolidate(store: ChunkStore) -> int:
    """Merge the packs of every full tier; returns how many packs went away.

    Does nothing while another process does, and gives up where the disk refuses: what is stored stays as it is, and
    the commit that led here has landed. A damaged pack is left alone, for a read or fsck to tell of.
    """
    if not _full_tier(store, set()):
        return 0
    gone = 0
    with contextlib.suppress(LockedError, StorageError), _locks(store):
        store.packs.refresh()
        damaged: set[Pack] = set()
        while tier := _full_tier(store, damaged):
            gone += _merge(store, tier, damaged)
    return gone


@contextlib.contextmanager
def _locks(store: ChunkStore) -> Iterator[None]:
    with file_lock(store.lock.with_name("consolidate"), timeout=0), file_lock(store.lock, shared=True, timeout=0):
        yield


def _full_tier(store: ChunkStore, damaged: set[Pack]) -> list[Pack]:
    tiers: dict[int, list[Pack]] = defaultdict(list)
    for pack in store.packs.packs:
        if pack.nbytes <= _LARGEST_BYTES and pack not in damaged:
            tiers[_tier(pack.nbytes)].append(pack)
    return next((packs for packs in tiers.values() if len(packs) >= FAN_IN), [])


def _tier(nbytes: int) -> int:
    tier = 0
    while nbytes > _LOWEST_TIER_BYTES:
        nbytes //= FAN_IN
        tier += 1
    return tier


def _merge(store: ChunkStore, packs: list[Pack], damaged: set[Pack]) -> int:
    entries: dict[ChunkId, Entry] = {}
    with store.folder.new_file("pack" + PACK) as merged:
        merged.write(MAGIC)
        for pack in packs:
            if not _copy(pack, merged, entries):
                damaged.add(pack)
        whole = [pack for pack in packs if pack not in damaged]
        if not whole:
            return 0
        publish_pack(store, merged, entries)
    for pack in whole:
        # Threads that are reading from it keep its file open until they are done.
        store.packs.forget(pack)
        # The index first: a pack without one is invisible, an index without its pack would mislead.
        store.folder.remove(pack.name + INDEX)
        store.folder.remove(pack.name + PACK)
    return len(whole) - 1


def _copy(pack: Pack, merged: NewFile, entries: dict[ChunkId, Entry]) -> bool:
    """Append a pack's records; False when it is damaged, with the sound records before the damage copied."""
    scratch = Scratch()
    batch = bytearray()
    sound = True
    for chunk, entry in sorted(pack.index.items(), key=lambda item: item[1].offset):
        if chunk in entries:
            continue
        record = scratch.take(HEADER_BYTES + entry.stored_length)
        try:
            pack.read_record(chunk, entry, record)
        except CorruptionError:
            sound = False
            break
        entries[chunk] = entry._replace(offset=merged.size + len(batch))
        batch += record
        if len(batch) >= _WRITE_BYTES:
            merged.write(batch)
            batch = bytearray()
    merged.write(batch)
    return sound
