"""What changed between two commits, tensor by tensor, from the manifests alone: no tensor is read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from coral.format.chunking import spans
from coral.format.manifest import Manifest, TensorRecord
from coral.ids import ChunkId

if TYPE_CHECKING:
    from coral.history import Commit, History
    from coral.ids import CommitHash
    from coral.verbs.parts import PartReader

ChunkIds = Callable[[TensorRecord], list[ChunkId]]


@dataclass(frozen=True, slots=True)
class TensorChange:
    """One tensor that differs.

    Attributes:
        part: the file or state it belongs to.
        name: the tensor's name; of a part that holds no tensors, ``data``.
        kind: added, removed or changed.
        old, new: its records, None where it is absent.
        changed_bytes: raw bytes of the chunks that differ (all of it when added, removed, or of another dtype or row).
        total_bytes: raw bytes of the tensor, the new one unless it was removed.
    """

    part: str
    name: str
    kind: str
    old: TensorRecord | None
    new: TensorRecord | None
    changed_bytes: int
    total_bytes: int

    @property
    def share(self) -> float:
        """Changed bytes of the total, 0 to 1."""
        return self.changed_bytes / self.total_bytes if self.total_bytes else 1.0


@dataclass(frozen=True, slots=True)
class Diff:
    """The difference between two commits; ``old`` is None when compared with nothing.

    Attributes:
        old, new: full commit hashes.
        tensors: every tensor that differs, by part and name.
        structure: parts whose tensors are equal but whose skeleton or metadata differ.
        total_bytes: raw bytes of all tensors in the new commit.
    """

    old: CommitHash | None
    new: CommitHash
    tensors: tuple[TensorChange, ...]
    structure: tuple[str, ...]
    total_bytes: int

    def of_kind(self, kind: str) -> tuple[TensorChange, ...]:
        """The changes that are ``added``, ``removed`` or ``changed``."""
        return tuple(change for change in self.tensors if change.kind == kind)

    @property
    def changed_bytes(self) -> int:
        """Raw bytes added or changed."""
        return sum(change.changed_bytes for change in self.tensors if change.kind != "removed")

    @property
    def share(self) -> float:
        """Share of the new commit's bytes that were added or changed, 0 to 1."""
        return self.changed_bytes / self.total_bytes if self.total_bytes else 0.0

    def __bool__(self) -> bool:
        return bool(self.tensors or self.structure)


@dataclass(frozen=True, slots=True)
class CommitDetails:
    """A commit, the parts it holds, and what it changed against its first parent."""

    commit: Commit
    parts: Mapping[str, Manifest]
    diff: Diff


def details(history: History, reader: PartReader, commit_hash: CommitHash, chunk_ids: ChunkIds) -> CommitDetails:
    """Look at one commit."""
    commit = history.commit(commit_hash)
    parent = commit.parents[0] if commit.parents else None
    return CommitDetails(
        commit, reader.at(commit.commit_hash), diff_commits(reader, parent, commit.commit_hash, chunk_ids)
    )


def diff_commits(reader: PartReader, old: CommitHash | None, new: CommitHash, chunk_ids: ChunkIds) -> Diff:
    """Compare two commits; an old one of None is one that holds nothing."""
    return diff_parts((old, reader.at(old) if old else {}), (new, reader.at(new)), chunk_ids)


def diff_parts(
    old: tuple[CommitHash | None, Mapping[str, Manifest]],
    new: tuple[CommitHash, Mapping[str, Manifest]],
    chunk_ids: ChunkIds,
) -> Diff:
    """Compare two commits, each given as its hash and its parts."""
    changes: list[TensorChange] = []
    structure: list[str] = []
    for part in sorted(old[1].keys() | new[1].keys()):
        before, after = old[1].get(part), new[1].get(part)
        found = list(_diff_part(part, before, after, chunk_ids))
        changes += found
        if not found and before != after:
            structure.append(part)
    total = sum(manifest.nbytes for manifest in new[1].values())
    return Diff(old[0], new[0], tuple(changes), tuple(structure), total)


def _diff_part(
    part: str, before: Manifest | None, after: Manifest | None, chunk_ids: ChunkIds
) -> Iterator[TensorChange]:
    old = {record.name: record for record in before.records} if before else {}
    new = {record.name: record for record in after.records} if after else {}
    for name in sorted(old.keys() | new.keys()):
        was, now = old.get(name), new.get(name)
        if was == now:
            continue
        if was is None and now is not None:
            yield TensorChange(part, name, "added", None, now, now.nbytes, now.nbytes)
        elif now is None and was is not None:
            yield TensorChange(part, name, "removed", was, None, was.nbytes, was.nbytes)
        elif was is not None and now is not None:
            yield TensorChange(part, name, "changed", was, now, changed_bytes(was, now, chunk_ids), now.nbytes)


def changed_bytes(old: TensorRecord, new: TensorRecord, chunk_ids: ChunkIds) -> int:
    """Raw bytes of the chunks of ``new`` that ``old`` does not hold at the same place."""
    same_rows = (old.dtype, old.shape[1:]) == (new.dtype, new.shape[1:])
    if not same_rows or not new.shape or new.content.startswith("hex:"):
        return new.nbytes
    known = chunk_ids(old)
    return sum(
        stop - start
        for number, (chunk, (start, stop)) in enumerate(zip(chunk_ids(new), spans(new.dtype, new.shape), strict=True))
        if number >= len(known) or known[number] != chunk
    )
