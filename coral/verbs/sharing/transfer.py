"""Sending the chunks that manifests need to another store, and fetching them from there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

from coral.errors import CorruptionError

if TYPE_CHECKING:
    from coral.format.manifest import Manifest, TensorRecord
    from coral.objects import ChunkStore
    from coral.objects.shelf import Shelf
    from coral.objects.writer import Progress

_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Transferred:
    """What was copied: so many chunks, and so many bytes of packs."""

    chunks: int
    nbytes: int


def send(
    source: Shelf,
    target: ChunkStore,
    manifests: Iterable[Manifest],
    progress: Progress | None = None,
    *,
    artifacts: Iterable[TensorRecord] = (),
) -> Transferred:
    """Copy to ``target`` the chunks of these manifests that it lacks, and the bases that they need.

    Likewise those of the artifacts, each of which is as a tensor of bytes.

    What is damaged or missing in the source stops nothing else. A call that was interrupted is gone on with by the
    next one.

    Raises:
        CorruptionError: chunks are missing in both stores, or damaged in the source; it names the tensors, of which
            the target has no chunk list. The others were sent.
        StorageError: the disk refused.
    """
    return _copy(source, target, chain(_records(manifests), artifacts), progress, near=source)


def fetch_missing(
    store: ChunkStore, remote: Shelf, manifests: Iterable[Manifest], progress: Progress | None = None
) -> Transferred:
    """As :meth:`send`, the other way: copy to ``store`` what it lacks of these manifests and ``remote`` has."""
    return _copy(remote, store, _records(manifests), progress, near=store)


def _records(manifests: Iterable[Manifest]) -> Iterator[TensorRecord]:
    return (record for manifest in manifests for record in manifest.everything)


def _copy(
    source: Shelf,
    target: ChunkStore,
    records: Iterable[TensorRecord],
    progress: Progress | None,
    *,
    near: Shelf,
) -> Transferred:
    from coral.objects.copying import ChunkCopier

    seen: set[str] = set()
    lost: list[tuple[TensorRecord, str]] = []
    with ChunkCopier(source, target, near=near) as copier:
        for record in records:
            if record.content not in seen:
                seen.add(record.content)
                try:
                    copier.plan.add(record)
                except CorruptionError as error:
                    lost.append((record, error.message))
        copier.copy(progress)
    if copier.nbytes:
        target.consolidate()
        target.folder.sweep_temporary()
    lost += copier.lost
    if lost:
        raise _damaged(lost)
    return Transferred(copier.chunks, copier.nbytes)


def _damaged(lost: list[tuple[TensorRecord, str]]) -> CorruptionError:
    names = list(dict.fromkeys(record.name for record, _ in lost))
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return CorruptionError(
        f"not all could be copied: {', '.join(names[:_SHOWN])}{more}: {lost[0][1]}",
        hint="'coral fsck' tells what is damaged; all else was copied",
    )
