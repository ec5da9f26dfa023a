"""Garbage collection: what nothing names any more goes into the trash, and what has been there for long enough goes.

It is done in two steps. While others write, everything that is named is marked, and packs that are partly garbage are
written anew. Then, with nobody writing, what was named meanwhile is marked as well, and what is garbage still goes into
the trash, by renaming. Whoever writes holds the store until what it wrote is named, so nothing is between the two.

When anything that may name chunks cannot be read, nothing is collected. git objects of the history stay; git's own
``git -C .coral gc`` is for them.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from coral.errors import ConflictError, CorruptionError, UsageError
from coral.objects.garbage import Garbage, Sweep, orphans, rewrite
from coral.objects.idset import IdSet, to_ids
from coral.objects.packs import INDEX, PACK
from coral.objects.trash import Emptied, new_batch
from coral.storage.locks import file_lock
from coral.verbs import layout
from coral.verbs.care.marking import Marks

if TYPE_CHECKING:
    from coral.history import History
    from coral.objects import ChunkStore
    from coral.objects.packs import Pack
    from coral.objects.writer import Progress
    from coral.storage.folder import Folder

GRACE_SECONDS = 14 * 24 * 60 * 60.0
_TURN_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Collected:
    """What a collection did, or would do.

    Attributes:
        nbytes: what the packs shrank by.
        packs: how many went into the trash.
        rewritten: how many of those had something in them that is needed, and were written anew.
        chunks: how many records were garbage.
        young_bytes: of packs too young to be looked at.
        emptied_packs, emptied_bytes: what was removed from the trash for good.
        trash: the name in the trash of what was put there; None for nothing.
        dry_run: nothing was done.
    """

    nbytes: int
    packs: int
    rewritten: int
    chunks: int
    young_bytes: int
    emptied_packs: int
    emptied_bytes: int
    trash: str | None
    dry_run: bool


def collect(
    project: Path,
    folder: Folder,
    history: History,
    store: ChunkStore,
    *,
    grace: float = GRACE_SECONDS,
    prune_now: bool = False,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> Collected:
    """Collect what nothing names.

    Args:
        project: the project's folder.
        folder: its ``.coral``.
        grace: seconds for which what is new, what can be undone and what is in the trash is kept.
        prune_now: keep none of that.
        dry_run: change nothing.
        progress: told of the bytes that are written anew.

    Raises:
        CorruptionError, GitCommandError, StorageError: what is named cannot be known; nothing was collected.
        ConflictError: the folder is not the project's own.
        LockedError: others kept the store busy; run it again.
    """
    if grace < 0:
        raise UsageError("the grace period is at least 0")
    if not layout.open_folder(project).root.samefile(folder.root):
        raise ConflictError(f"{folder.root} is not the .coral of {project}", hint="collect where the project is")
    damaged = history.damaged_refs()
    if damaged:
        raise CorruptionError(
            f"{', '.join(damaged)}: damaged, so that nobody knows what it leads to", hint="run coral fsck"
        )
    with file_lock(store.turn_lock, timeout=_TURN_SECONDS):
        collection = _Collection(project, folder, history, store, 0.0 if prune_now else grace, prune_now)
        return collection.dry_run() if dry_run else collection.run(progress)


@dataclass
class _Collection:
    project: Path
    folder: Folder
    history: History
    store: ChunkStore
    grace: float
    prune_now: bool
    started: float = field(default_factory=time.time)

    def __post_init__(self) -> None:
        # What was done can be undone for as long, unless nothing is to be kept.
        since = float("inf") if self.prune_now else self.started - self.grace
        self._sweep = Sweep(self.store, thorough=self.prune_now)
        self._marks = Marks(self.project, self.folder, self.history, self._sweep.needed, since=since)

    def dry_run(self) -> Collected:
        """Say what would be done."""
        with self.store.held():
            planned = self._plan(takes_back=False)
        lost = [name for name in orphans(self.store) if self._is_old(name)]
        stale = self.store.trash.size(self.store.trash.stale(self.grace))
        if self.prune_now:
            sizes = [self.store.folder.size(name + PACK) for name in lost] + [one.pack.nbytes for one in planned]
            stale = Emptied(stale.packs + len(sizes), stale.nbytes + sum(sizes))
        return self._result(planned, lost, stale, dry_run=True)

    def run(self, progress: Progress | None) -> Collected:
        """Collect."""
        with self.store.held():
            planned = self._plan(takes_back=True)
            for one in planned:
                if one.rewritten:
                    rewrite(self.store, one, progress)
        with self.store.alone():
            planned = self._again(planned)
            lost = [name for name in orphans(self.store) if self._is_old(name)]
            done = self._result(planned, lost, Emptied(0, 0), dry_run=False)
            batch = new_batch()
            self._put_away(planned, lost, batch)
            emptied = self.store.trash.empty(self.store.trash.stale(self.grace))
        if planned or lost:
            done = replace(done, trash=None if self.prune_now else batch)
            self.history.note_collection(done.trash)
        self.folder.sweep_temporary()
        return replace(done, emptied_packs=emptied.packs, emptied_bytes=emptied.nbytes)

    # -- finding

    def _plan(self, *, takes_back: bool) -> list[Garbage]:
        self._sweep.look(stays=self._young())
        self._mark(takes_back=takes_back)
        return self._sweep.plan()

    def _again(self, planned: list[Garbage]) -> list[Garbage]:
        """What of it is garbage still, now that nobody writes."""
        self._mark(takes_back=True)
        return self._sweep.still_garbage(planned)

    def _mark(self, *, takes_back: bool) -> None:
        self._marks.walk()
        # After that, so that all is there that is named; and what is new somebody may be about to name.
        self.store.packs.refresh()
        self._sweep.look(stays=[pack for pack in self.store.packs.packs if not self._sweep.is_known(pack)])
        self._sweep.needed.add_joined(self._marks.must_be_here.array().data)
        self._sweep.close()
        if takes_back:
            self._sweep.bring_back()
        missing = to_ids(self._sweep.missing(self._marks.must_be_here))
        # Looked at once: the next walk finds only what is new.
        self._marks.must_be_here = IdSet()
        lost = [chunk for chunk in missing if takes_back or not self.store.trash.holds(chunk)]
        if lost:
            raise CorruptionError(
                f"{len(lost)} chunks that commits need are missing, so nothing was collected: {lost[0].hex()}",
                hint="run coral fsck --repair",
            )

    def _young(self) -> Iterator[Pack]:
        if not self.prune_now:
            for pack in self.store.packs.packs:
                if pack.modified > self.started - self.grace:
                    yield pack

    def _is_old(self, orphan: str) -> bool:
        return self.prune_now or self.store.folder.modified(orphan + PACK) <= self.started - self.grace

    # -- putting away

    def _put_away(self, planned: list[Garbage], lost: list[str], batch: str) -> None:
        for one in planned:
            self.store.packs.forget(one.pack)
            self.store.trash.put(one.pack.name, batch)
        for name in lost:
            self.store.trash.put(name, self.store.trash.batch_of_index(name) or batch)
        names = set(self.store.folder.names())
        strays = [name for name in names if name.endswith(INDEX) and name.removesuffix(INDEX) + PACK not in names]
        self.store.folder.remove_all(strays)
        self.store.trash.refresh()
        self.store.packs.refresh()

    def _result(self, planned: list[Garbage], lost: list[str], emptied: Emptied, *, dry_run: bool) -> Collected:
        lost_bytes = sum(self.store.folder.size(name + PACK) for name in lost)
        return Collected(
            nbytes=sum(one.nbytes for one in planned) + lost_bytes,
            packs=len(planned) + len(lost),
            rewritten=sum(one.rewritten for one in planned),
            chunks=sum(one.chunks for one in planned),
            young_bytes=sum(pack.nbytes for pack in self._young()),
            emptied_packs=emptied.packs,
            emptied_bytes=emptied.nbytes,
            trash=None,
            dry_run=dry_run,
        )
