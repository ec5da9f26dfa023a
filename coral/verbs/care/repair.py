"""Repairing what a check found: lost chunks come from wherever the same bytes are still to be had.

In turn: packs that lost their index, the trash, the quarantine, the remotes, and the files of the project. Nothing is
believed: each chunk is named by the hash of what was read. What is damaged is not removed but put into
``.coral/quarantine``, once all that is sound in it was copied.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from coral.containers import OpenFile
from coral.errors import CoralError, CorruptionError
from coral.ids import ChunkId
from coral.objects import ChunkStore
from coral.objects.salvage import (
    MendingWriter,
    adopt_orphans,
    damaged_packs,
    is_sound,
    mend_indexes,
    put_aside,
    without_base,
)
from coral.storage.contents import QUARANTINE
from coral.storage.locks import file_lock
from coral.verbs.ingest import store_file

if TYPE_CHECKING:
    from coral.format.manifest import TensorRecord
    from coral.objects.shelf import Shelf
    from coral.storage.folder import Folder

_TURN_SECONDS = 60.0
_DEEPEST = 16


@dataclass(frozen=True, slots=True)
class Repaired:
    """What was repaired.

    Attributes:
        chunks: how many chunks were had from where.
        indexes: the packs whose index was made anew.
        quarantined: the packs that were put aside.
    """

    chunks: Mapping[str, int] = field(default_factory=dict)
    indexes: tuple[str, ...] = ()
    quarantined: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        """Whether anything was."""
        return bool(self.chunks or self.indexes or self.quarantined)


class Repairer:
    """Repairs one store.

    Args:
        project: the project's folder.
        folder: its ``.coral``.
        remotes: by name, what opens the chunks of one; CoralError where it is not there.
        files: the project's files that may hold tensors, relative to it.
    """

    def __init__(
        self,
        project: Path,
        folder: Folder,
        store: ChunkStore,
        *,
        remotes: Mapping[str, Callable[[], Shelf]],
        files: Iterable[str],
    ) -> None:
        self._project = project
        self._folder = folder
        self._store = store
        self._remotes = remotes
        self._files = files
        self._chunks: dict[str, int] = {}

    def run(self, damaged: Iterable[TensorRecord]) -> Repaired:
        """Repair what can be repaired of these tensors, and of the packs that were seen to be damaged.

        Raises:
            StorageError, LockedError: the disk refused, or others kept the store busy; it can be run again.
        """
        with file_lock(self._store.turn_lock, timeout=_TURN_SECONDS):
            indexes = mend_indexes(self._store)
            records = list(damaged)
            # A chunk list first: it tells which chunks there are.
            for _ in range(2):
                wanted = {ident for record in records for ident in self._ids(record)}
                indexes += self._mend({ident for ident in wanted if not is_sound(self._store, ident)})
            return Repaired(self._chunks, tuple(indexes), tuple(self._put_aside()))

    def _ids(self, record: TensorRecord) -> Iterator[ChunkId]:
        kind, _, digits = record.content.partition(":")
        if kind == "hex":
            return
        yield ChunkId(bytes.fromhex(digits))
        with contextlib.suppress(CorruptionError):
            for chunk in self._store.chunk_ids(record):
                yield chunk
                yield from self._bases(chunk)

    def _bases(self, chunk: ChunkId) -> Iterator[ChunkId]:
        """What a chunk stands on, as far as it can be told."""
        at: ChunkId | None = chunk
        with contextlib.suppress(CorruptionError):
            for _ in range(_DEEPEST):
                at = self._store.packs.base_of(at) if at is not None else None
                if at is not None:
                    yield at

    # -- sources

    def _mend(self, wanted: set[ChunkId]) -> list[str]:
        adopted: list[str] = []
        if wanted:
            with self._store.alone():
                adopted = adopt_orphans(self._store, wanted)
                self._count("packs without an index", wanted)
                self._store.take_back(wanted)
                self._count("trash", wanted)
        for name, fill in self._sources():
            if not wanted:
                break
            try:
                with MendingWriter(self._store, wanted) as writer:
                    fill(writer)
                    writer.seal()
            except CoralError:
                continue  # a remote that is not there, a file that is malformed: the next one may do
            self._count(name, wanted)
        return adopted

    def _count(self, source: str, wanted: set[ChunkId]) -> None:
        """Note what can be read now, and want it no more."""
        mended = {ident for ident in wanted if is_sound(self._store, ident)}
        wanted -= mended
        if mended:
            self._chunks[source] = self._chunks.get(source, 0) + len(mended)

    def _sources(self) -> Iterator[tuple[str, Callable[[MendingWriter], object]]]:
        aside = ChunkStore(self._folder.sub(QUARANTINE), self._store.lock)
        yield QUARANTINE, partial(MendingWriter.copy_from, donor=aside)
        for name, opened in self._remotes.items():
            yield f"remote {name}", partial(_copy_all, opened=opened)
        for file in self._files:
            yield f"file {file}", partial(self._read_file, name=file)

    def _read_file(self, writer: MendingWriter, name: str) -> None:
        store_file(OpenFile(self._project / name), writer)

    # -- packs

    def _put_aside(self) -> list[str]:
        gone: list[str] = []
        without_base(self._store)
        while packs := damaged_packs(self._store):
            aside = [pack.name for pack in packs if put_aside(self._store, pack)]
            gone += aside
            if aside:
                without_base(self._store)
        return gone


def _copy_all(writer: MendingWriter, opened: Callable[[], Shelf]) -> None:
    writer.copy_from(opened())
