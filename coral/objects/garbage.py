"""Finding what of a store nobody needs, and taking it out: packs that are garbage, and the garbage in packs.

What is needed is known by its id; what a chunk list names, and what a delta stands on, is then needed as well. Of
several records of one chunk, the one that stands alone counts, once it was read and decoded; the others are garbage.

Two rules keep every record readable that a writer may yet find. A pack is left as it is, or is rewritten without any
garbage, or goes: so where it is left with garbage in it, that counts as needed, with all that it stands on. And the
new pack is durable and visible before the old one goes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from coral.errors import CorruptionError
from coral.format import codecs
from coral.format.pack import HEADER_BYTES, KIND_LIST, MAGIC, Entry
from coral.ids import ChunkId, chunk_id, list_id
from coral.objects.idset import IdSet, as_array, to_ids
from coral.objects.packs import INDEX, NAME, PACK
from coral.objects.scratch import Scratch
from coral.objects.table import prefixes_of
from coral.objects.writer import publish_pack

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from coral.objects.packs import Pack
    from coral.objects.store import ChunkStore
    from coral.objects.writer import Progress

_ENTRY = np.dtype(
    [
        *(("offset", "<u8"), ("stored", "<u4"), ("raw", "<u4"), ("kind", "u1")),
        *(("codec", "u1"), ("depth", "u1"), ("item", "u1"), ("zero", "<u4")),
    ]
)
_WITH_BASE = list(codecs.WITH_BASE)
# To rewrite a pack costs the reading and writing of all that stays.
_WORTH_REWRITING = 0.1
_WRITE_BYTES = 4 << 20


@dataclass(eq=False)
class _Looked:
    """What is known of one pack: of each of its records, whether what it leads to was followed."""

    pack: Pack
    followed: NDArray[np.bool_]
    stays: bool = False


class Garbage(NamedTuple):
    """What one pack has that nobody needs.

    Attributes:
        dead: of each of its records, whether nobody needs the chunk.
        extra: whether another pack holds what is needed of it.
        nbytes: what the store shrinks by.
        rewritten: something stays, so that the pack must be written anew.
    """

    pack: Pack
    dead: NDArray[np.bool_]
    extra: NDArray[np.bool_]
    nbytes: int
    rewritten: bool

    @property
    def chunks(self) -> int:
        """How many records go."""
        return int((self.dead | self.extra).sum())


@dataclass
class Sweep:
    """One look at a store, whose packs nobody else merges or removes meanwhile.

    Args:
        store: to be held.
        thorough: rewrite packs however little of them is garbage.

    Attributes:
        needed: ids of all that is needed, as far as is known.
    """

    store: ChunkStore
    thorough: bool = False
    needed: IdSet = field(default_factory=IdSet)
    _looked: dict[str, _Looked] = field(default_factory=dict)
    _kept: dict[ChunkId, frozenset[str]] = field(default_factory=dict)
    _records: tuple[Scratch, Scratch] = field(default_factory=lambda: (Scratch(), Scratch()))

    # -- what is needed

    def look(self, *, stays: Iterable[Pack] = ()) -> None:
        """Take in the packs that are there now and were not before; those that stay are needed with all they hold.

        Raises:
            CorruptionError: a pack cannot be read to its end, so that nobody knows what it holds.
        """
        keep = list(stays)
        for pack in self.store.packs.packs:
            if pack.name not in self._looked:
                count = len(pack.index)
                if pack.damaged:
                    raise CorruptionError(f"{pack.name} is damaged", hint="run coral fsck --repair")
                self._looked[pack.name] = _Looked(pack, np.zeros(count, np.bool_))
        for pack in keep:
            self._let_stay(self._looked[pack.name])

    def is_known(self, pack: Pack) -> bool:
        """Whether a pack was there at the last look."""
        return pack.name in self._looked

    def _let_stay(self, looked: _Looked) -> None:
        if not looked.stays:
            looked.stays = True
            # What was passed over, because another pack holds it too, counts now.
            looked.followed[:] = False
            self.needed.add_joined(looked.pack.index.ids)

    def close(self) -> None:
        """Add what is needed by what is needed. Raises CorruptionError when something cannot be read."""
        count = -1
        while count != len(self.needed):
            count = len(self.needed)
            for looked in self._looked.values():
                self._follow(looked)

    def _follow(self, looked: _Looked) -> None:
        index = looked.pack.index
        entries = np.frombuffer(index.entries, _ENTRY)
        leads = (entries["kind"] == KIND_LIST) | np.isin(entries["codec"], _WITH_BASE)
        places = np.flatnonzero(leads & ~looked.followed)
        places = places[self.needed.mask(as_array(index.ids)[places])]
        for place in map(int, places):
            chunk, entry = index.id(place), index.entry(place)
            if entry.kind == KIND_LIST:
                self.needed.add_joined(self.store.read_list(chunk))
            elif looked.stays or looked.pack.name in self._keepers(chunk):
                base = looked.pack.read_base(chunk, entry)
                self.needed.add([] if base is None else [base])
        looked.followed[places] = True

    def missing(self, wanted: IdSet | None = None) -> NDArray[np.bytes_]:
        """Of these ids, or of all that are needed, those that no pack holds."""
        wanted = self.needed if wanted is None else wanted
        is_there = np.zeros(len(wanted), np.bool_)
        for looked in self._looked.values():
            ids = as_array(looked.pack.index.ids)
            is_there[wanted.array().searchsorted(ids[wanted.mask(ids)])] = True
        return wanted.array()[~is_there]

    def bring_back(self) -> None:
        """Take what is needed and lies only in the trash back out, and what that needs."""
        while not self.store.trash.is_empty and self.store.take_back(to_ids(self.missing())):
            # What else is in their packs can be seen again, and must be readable.
            self.look(stays=[pack for pack in self.store.packs.packs if not self.is_known(pack)])
            self.close()

    # -- several records of one chunk

    def _keepers(self, chunk: ChunkId) -> frozenset[str]:
        """The packs whose record of a chunk is to be kept."""
        if chunk not in self._kept:
            found = [place for place in self.store.packs.copies(chunk) if place[0].name in self._looked]
            if len(found) < 2:
                return frozenset(pack.name for pack, _ in found)
            self._kept[chunk] = self._choose(chunk, found)
        return self._kept[chunk]

    def _choose(self, chunk: ChunkId, found: list[tuple[Pack, Entry]]) -> frozenset[str]:
        for pack, entry in found:
            if entry.codec not in codecs.WITH_BASE and self._is_whole(pack, chunk, entry):
                return frozenset([pack.name])
        kept: list[tuple[Pack, Entry]] = []
        for pack, entry in found:
            if not any(self._are_same(chunk, one, (pack, entry)) for one in kept):
                kept.append((pack, entry))
        return frozenset(pack.name for pack, _ in kept)

    def _is_whole(self, pack: Pack, chunk: ChunkId, entry: Entry) -> bool:
        record, out = (scratch for scratch in self._records)
        try:
            payload = pack.read_record(chunk, entry, record)[HEADER_BYTES:]
            if entry.kind == KIND_LIST:
                return list_id(payload) == chunk
            data = out.take(entry.raw_length)
            codecs.decode_into(entry.codec, entry.item, payload, data, _no_base)
        except CorruptionError:
            return False
        return chunk_id(data) == chunk

    def _are_same(self, chunk: ChunkId, one: tuple[Pack, Entry], other: tuple[Pack, Entry]) -> bool:
        if one[1]._replace(offset=0) != other[1]._replace(offset=0):
            return False
        try:
            first, second = (
                place[0].read_record(chunk, place[1], scratch)
                for place, scratch in zip((one, other), self._records, strict=True)
            )
        except CorruptionError:
            return False
        return first == second

    # -- what is garbage

    def plan(self) -> list[Garbage]:
        """What there is to take out; what would not be worth it counts as needed from now on."""
        while True:
            repeated = self.store.packs.repeated()
            judged = (self._judge(looked, repeated) for looked in self._looked.values())
            found = [one for one in judged if one is not None]
            left = [one for one in found if not self._is_worth_it(one)]
            if not left:
                return found
            for one in left:
                self._let_stay(self._looked[one.pack.name])
            self.close()

    def _judge(self, looked: _Looked, repeated: NDArray[np.uint64]) -> Garbage | None:
        if looked.stays:
            return None
        pack, index = looked.pack, looked.pack.index
        dead = ~self.needed.mask(as_array(index.ids))
        extra = np.zeros(len(dead), np.bool_)
        for place in map(int, np.flatnonzero(~dead & np.isin(prefixes_of(index), repeated))):
            extra[place] = pack.name not in self._keepers(index.id(place))
        goes = dead | extra
        if goes.all():
            return Garbage(pack, dead, extra, pack.nbytes, rewritten=False)
        sizes = np.frombuffer(index.entries, _ENTRY)["stored"].astype(np.int64) + HEADER_BYTES
        stays = len(MAGIC) + int(sizes[~goes].sum())
        return Garbage(pack, dead, extra, pack.nbytes - stays, rewritten=True) if goes.any() else None

    def _is_worth_it(self, one: Garbage) -> bool:
        return not one.rewritten or self.thorough or one.nbytes >= _WORTH_REWRITING * one.pack.nbytes

    def still_garbage(self, planned: Iterable[Garbage]) -> list[Garbage]:
        """Those whose chunks still nobody needs, after more was needed; the others stay. Raises CorruptionError."""
        good = list(planned)
        while True:
            self.close()
            wanted = [one for one in good if self.needed.mask(as_array(one.pack.index.ids)[one.dead]).any()]
            if not wanted:
                return good
            for one in wanted:
                self._let_stay(self._looked[one.pack.name])
                good.remove(one)


def rewrite(store: ChunkStore, one: Garbage, progress: Progress | None = None) -> str:
    """Write what stays of a pack into a new one, durable and visible; returns its name.

    Raises:
        CorruptionError: a record is damaged, and nothing was changed.
        StorageError: the disk refused.
    """
    goes = one.dead | one.extra
    stays = (item for item, leaves in zip(one.pack.index.items(), goes, strict=True) if not leaves)
    return copy_records(store, one.pack, stays, progress)


def copy_records(
    store: ChunkStore, pack: Pack, records: Iterable[tuple[ChunkId, Entry]], progress: Progress | None = None
) -> str:
    """Copy records of a pack into a new one, as they are, their checksums verified. Raises as :func:`rewrite`."""
    entries: dict[ChunkId, Entry] = {}
    scratch, batch = Scratch(), bytearray()
    with store.folder.new_file("pack" + PACK) as fresh:
        fresh.write(MAGIC)
        for chunk, entry in sorted(records, key=lambda item: item[1].offset):
            entries[chunk] = entry._replace(offset=fresh.size + len(batch))
            batch += pack.read_record(chunk, entry, scratch)
            if len(batch) >= _WRITE_BYTES:
                fresh.write(batch)
                if progress is not None:
                    progress(len(batch))
                batch = bytearray()
        fresh.write(batch)
        # As old as what is in it: garbage need not wait once more.
        return publish_pack(store, fresh, entries, modified=pack.modified)


def orphans(store: ChunkStore) -> Iterator[str]:
    """The packs without an index, which nobody sees: what a process left that was killed, or is about to finish."""
    names = set(store.folder.names())
    for stem in sorted(name.removesuffix(PACK) for name in names if name.endswith(PACK)):
        if NAME.fullmatch(stem) and stem + INDEX not in names:
            yield stem


def _no_base(_: ChunkId, __: memoryview) -> memoryview:
    raise CorruptionError("a chunk that stands alone needs no other")
