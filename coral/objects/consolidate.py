"""Merging small packs into larger ones, so that ten thousand commits are not ten thousand files.

Packs are sorted into tiers by size, each eight times the one below; a tier that holds eight packs becomes one pack of
the next. A record is thus copied a handful of times in its life, encoded as it is, its checksum verified. The merged
pack is durable and visible before the packs it replaces go away, so a kill at any moment loses nothing, and a reader
that finds a pack gone looks again.

A record that is damaged is left behind when another pack holds a sound one. Where none does, its pack stays as it is
and is not copied from: a read or fsck must be able to tell of it, and its tier will fill again and again.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Container, Iterator
from itertools import accumulate
from typing import TYPE_CHECKING

from coral.errors import CoralError, CorruptionError
from coral.format.pack import MAGIC, Entry
from coral.ids import ChunkId
from coral.objects.packs import INDEX, PACK
from coral.objects.scratch import Scratch
from coral.objects.writer import publish_pack
from coral.storage.locks import file_lock

if TYPE_CHECKING:
    from coral.objects.packs import Pack
    from coral.objects.shelf import LocalShelf
    from coral.storage.files import NewFile

FAN_IN = 8
_LOWEST_TIER_BYTES = 1 << 16
# The commit that fills a tier waits for the merge, so none copies more than 256 MiB: larger packs stay as they are.
# A store of 1 TB may thus have thousands of packs, which a search does not notice.
_LARGEST_BYTES = 32 << 20
_MERGED_BYTES = FAN_IN * _LARGEST_BYTES
_WRITE_BYTES = 4 << 20


def consolidate(store: LocalShelf) -> int:
    """Merge the packs of full tiers; returns how many packs went away.

    Does nothing while another process does, and gives up whatever goes wrong: what is stored stays as it is, and the
    commit that led here has landed. What is left over is for the next commit.
    """
    gone = copied = 0
    with contextlib.suppress(CoralError):
        if not _full_tier(store):
            return 0
        with _locks(store):
            store.packs.refresh()
            while tier := _full_tier(store):
                copied += sum(pack.nbytes for pack in tier)
                if copied > _MERGED_BYTES:
                    break
                gone += _merge(store, tier)
    return gone


@contextlib.contextmanager
def _locks(store: LocalShelf) -> Iterator[None]:
    with file_lock(store.turn_lock, timeout=0), file_lock(store.lock, shared=True, timeout=0):
        yield


def _full_tier(store: LocalShelf) -> list[Pack]:
    """The packs of a full tier, or as many of the oldest as one merge may copy."""
    tiers: dict[int, list[Pack]] = defaultdict(list)
    for pack in reversed(store.packs.packs):
        if pack.nbytes <= _LARGEST_BYTES and not pack.damaged:
            tiers[_tier(pack.nbytes)].append(pack)
    full = next((packs for packs in tiers.values() if len(packs) >= FAN_IN), [])
    sizes = accumulate(pack.nbytes for pack in full)
    return [pack for pack, size in zip(full, sizes, strict=True) if size <= _MERGED_BYTES]


def _tier(nbytes: int) -> int:
    tier = 0
    while nbytes > _LOWEST_TIER_BYTES:
        nbytes //= FAN_IN
        tier += 1
    return tier


def _merge(store: LocalShelf, packs: list[Pack]) -> int:
    entries: dict[ChunkId, Entry] = {}
    with store.folder.new_file("pack" + PACK) as merged:
        merged.write(MAGIC)
        for pack in packs:
            entries |= _copy(store, pack, merged, entries.keys())
        whole = [pack for pack in packs if not pack.damaged]
        if len(whole) < 2:
            return 0
        # No younger than what is in it, so that garbage need not wait once more.
        publish_pack(store, merged, entries, modified=max(pack.modified for pack in packs))
    for pack in whole:
        store.packs.forget(pack)
        # The index first: a pack without one is invisible, an index without its pack would mislead.
        store.folder.remove(pack.name + INDEX)
        store.folder.remove(pack.name + PACK)
    return len(whole) - 1


def _copy(store: LocalShelf, pack: Pack, merged: NewFile, have: Container[ChunkId]) -> dict[ChunkId, Entry]:
    """Append the records that ``merged`` lacks; none of a pack that turns out to be damaged, and is then marked so."""
    start = merged.mark()
    entries: dict[ChunkId, Entry] = {}
    scratch = Scratch()
    batch = bytearray()
    for chunk, entry in sorted(pack.index.items(), key=lambda item: item[1].offset):
        if chunk in have or (entry.depth and _is_shallower_elsewhere(store, pack, chunk, entry, scratch)):
            continue
        record = _sound_record(pack, chunk, entry, scratch)
        if record is not None:
            entries[chunk] = entry._replace(offset=merged.size + len(batch))
            batch += record
        elif not _is_elsewhere(store, pack, chunk, scratch):
            pack.damaged = True
        if pack.damaged:
            merged.go_back(start)
            return {}
        if len(batch) >= _WRITE_BYTES:
            merged.write(batch)
            batch = bytearray()
    merged.write(batch)
    return entries


def _sound_record(pack: Pack, chunk: ChunkId, entry: Entry, scratch: Scratch) -> memoryview | None:
    if chunk in pack.bad:
        return None
    try:
        return pack.read_record(chunk, entry, scratch)
    except CorruptionError:
        return None


def _is_shallower_elsewhere(store: LocalShelf, pack: Pack, chunk: ChunkId, entry: Entry, scratch: Scratch) -> bool:
    """Whether another pack holds the chunk with fewer bases below it: of several records, the shallowest counts."""
    return any(
        other is not pack and found.depth < entry.depth and _sound_record(other, chunk, found, scratch) is not None
        for other, found in store.packs.copies(chunk)
    )


def _is_elsewhere(store: LocalShelf, pack: Pack, chunk: ChunkId, scratch: Scratch) -> bool:
    return any(
        other is not pack and _sound_record(other, chunk, entry, scratch) is not None
        for other, entry in store.packs.copies(chunk)
    )
