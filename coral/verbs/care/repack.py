"""Making the commits that are read most quick to read: their tensors are stored so that they need no others.

A delta is small, and costs the reading of what it was made against. Where weights are deployed from, at a tag, at the
tip of a branch, at the best step of a run, reading counts more.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from coral.ids import ChunkId, CommitHash
    from coral.objects import ChunkStore
    from coral.objects.writer import Progress
    from coral.verbs.parts import PartReader


@dataclass(frozen=True, slots=True)
class Repacked:
    """What was done.

    Attributes:
        commits: how many commits were looked at.
        chunks: how many chunks stood on others, and now stand alone.
        raw_bytes: of those chunks.
        stored_bytes: what the packs have grown by.
    """

    commits: int
    chunks: int
    raw_bytes: int
    stored_bytes: int


def repack(
    store: ChunkStore, reader: PartReader, commits: Iterable[CommitHash], *, progress: Progress | None = None
) -> Repacked:
    """Store the chunks of these commits anew, where they are deltas. The old records stay until they are collected.

    Raises:
        CorruptionError: a chunk cannot be read; nothing was changed.
    """
    wanted = list(dict.fromkeys(commits))
    deltas = dict.fromkeys(chunk for chunk in _chunks(store, reader, wanted) if store.is_delta(chunk))
    if not deltas:
        return Repacked(len(wanted), 0, 0, 0)
    with store.writer() as writer:
        writer.write_alone(deltas, progress)
        stored = writer.seal()
    return Repacked(len(wanted), len(deltas), sum(map(store.length_of, deltas)), stored)


def _chunks(store: ChunkStore, reader: PartReader, commits: Iterable[CommitHash]) -> Iterator[ChunkId]:
    seen: set[str] = set()
    for commit_hash in commits:
        for manifest in reader.at(commit_hash).values():
            for record in manifest.records:
                if record.content not in seen:
                    seen.add(record.content)
                    yield from store.chunk_ids(record)
