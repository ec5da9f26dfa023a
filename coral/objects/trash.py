"""What garbage collection took out of a store: packs, in a folder for each time that it ran, until it is emptied.

Who finds a chunk nowhere else takes its pack back out, together with the packs of all bases that the pack's deltas
name: a record that can be seen can be read. The index moves into the trash before its pack, and out of it after its
pack, so a kill in between leaves a pack that nobody sees, which the next collection puts where its index is.
"""

from __future__ import annotations

import calendar
import re
import secrets
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple

from coral.errors import CorruptionError, NotFoundError
from coral.format import codecs
from coral.objects.packs import INDEX, PACK, PackSet
from coral.storage.contents import PACKS, TRASH
from coral.storage.folder import Folder

if TYPE_CHECKING:
    from coral.ids import ChunkId
    from coral.objects.packs import Pack

_BATCH = re.compile(r"(\d{8}T\d{6}Z)-[0-9a-f]{8}", re.ASCII)
_TIME = "%Y%m%dT%H%M%SZ"


class Emptied(NamedTuple):
    """What was removed for good."""

    packs: int
    nbytes: int


class _Found(NamedTuple):
    batch: str
    pack: Pack


def new_batch() -> str:
    """A name for what one collection takes out, with the time in it."""
    return f"{time.strftime(_TIME, time.gmtime())}-{secrets.token_hex(4)}"


def _age(batch: str) -> float:
    return time.time() - calendar.timegm(time.strptime(batch.partition("-")[0], _TIME))


class Trash:
    """The trash of one store.

    Args:
        folder: the one that holds ``packs`` and ``trash``.
    """

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self._batches: dict[str, PackSet] = {}

    def refresh(self) -> None:
        """See what other processes put in or took out."""
        names = [name for name in self._folder.names(TRASH) if _BATCH.fullmatch(name)]
        known = self._batches
        for name in names:
            if name in known:
                known[name].refresh()
        self._batches = {
            name: known.get(name) or PackSet(self._folder.sub(f"{TRASH}/{name}")) for name in reversed(names)
        }

    @property
    def is_empty(self) -> bool:
        """Whether there was nothing in it when it was last looked at."""
        return not self._batches

    def batches(self) -> list[str]:
        """The names of what each collection took out, newest first."""
        self.refresh()
        return list(self._batches)

    # -- in

    def put(self, pack: str, batch: str) -> None:
        """Take a pack out of the store, durably. Nobody else may be using the store."""
        for suffix in (INDEX, PACK):
            if self._folder.exists(f"{PACKS}/{pack}{suffix}"):
                self._folder.move(f"{PACKS}/{pack}{suffix}", f"{TRASH}/{batch}/{pack}{suffix}")

    def batch_of_index(self, pack: str) -> str | None:
        """Where the index of a pack is that was on its way into the trash, or out of it."""
        return next((batch for batch in self._batches if self._folder.exists(f"{TRASH}/{batch}/{pack}{INDEX}")), None)

    def stale(self, grace: float) -> list[str]:
        """What was put in so many seconds ago, or earlier."""
        return [batch for batch in self.batches() if _age(batch) >= grace]

    def size(self, batches: Iterable[str]) -> Emptied:
        """How many packs, and bytes, there are in some batches."""
        sizes = [
            self._folder.size(f"{TRASH}/{batch}/{name}")
            for batch in batches
            for name in self._folder.names(f"{TRASH}/{batch}")
            if name.endswith(PACK)
        ]
        return Emptied(len(sizes), sum(sizes))

    def empty(self, batches: Iterable[str]) -> Emptied:
        """Remove batches for good. Nobody else may be using the store."""
        gone = list(batches)
        size = self.size(gone)
        for batch in gone:
            key = f"{TRASH}/{batch}"
            # The indexes, which sort first, go first: a pack without one is of no use to anybody.
            self._folder.remove_all(f"{key}/{name}" for name in self._folder.names(key))
            self._folder.remove_folder(key)
            self._batches.pop(batch, None)
        return size

    # -- out

    def holds(self, chunk: ChunkId) -> bool:
        """Whether a sound record of this id lies in it, as far as is known."""
        return self._find(chunk) is not None

    def take_back(self, chunks: Iterable[ChunkId], store: PackSet) -> int:
        """Put the packs that hold these back into the store, as far as they can be read; returns how many packs."""
        back = 0
        for chunk in chunks:
            found = None if chunk in store else self._find(chunk)
            needed = None if found is None else self._with_bases([found], store)
            if needed:
                back += self._put_back(needed)
                store.refresh()
        return back

    def take_back_batch(self, batch: str, store: PackSet) -> int:
        """Put all that one collection took out back into the store; returns how many packs.

        Raises:
            NotFoundError: it was emptied meanwhile.
            CorruptionError: what its deltas stand on is gone.
        """
        self.refresh()
        packs = self._batches.get(batch)
        if packs is None:
            raise NotFoundError("what was collected then is no longer in the trash")
        needed = self._with_bases([_Found(batch, pack) for pack in packs.packs], store)
        if needed is None:
            raise CorruptionError("what was collected then stands on chunks that are gone")
        back = self._put_back(needed)
        store.refresh()
        return back

    def _find(self, chunk: ChunkId) -> _Found | None:
        for batch, packs in self._batches.items():
            found = packs.find(chunk)
            if found is not None:
                return _Found(batch, found[0])
        return None

    def _with_bases(self, first: list[_Found], store: PackSet) -> list[_Found] | None:
        """Packs, and those of the bases that their deltas name and the store lacks; None where one is nowhere."""
        chosen: dict[str, _Found] = {}
        todo = list(first)
        while todo:
            found = todo.pop()
            if found.pack.name in chosen:
                continue
            chosen[found.pack.name] = found
            try:
                for base in _bases(found.pack):
                    if base not in store and not any(base in other.pack.index for other in chosen.values()):
                        other = self._find(base)
                        if other is None:
                            return None
                        todo.append(other)
            except (CorruptionError, NotFoundError):
                return None
        return list(chosen.values())

    def _put_back(self, found: list[_Found]) -> int:
        for suffix in (PACK, INDEX):
            for batch, pack in reversed(found):
                self._folder.move(f"{TRASH}/{batch}/{pack.name}{suffix}", f"{PACKS}/{pack.name}{suffix}")
        for batch in {batch for batch, _ in found}:
            self._folder.remove_folder(f"{TRASH}/{batch}")
        self.refresh()
        return len(found)


def _bases(pack: Pack) -> Iterator[ChunkId]:
    """What the deltas of a pack are made against. Raises CorruptionError, NotFoundError."""
    for chunk, entry in pack.index.items():
        if entry.codec in codecs.WITH_BASE:
            base = pack.read_base(chunk, entry)
            if base is not None:
                yield base
