"""Taking operations back: refs go to where they were, when they have not moved since."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from coral.errors import ConflictError, CorruptionError, NotFoundError, RefNotFoundError, UsageError
from coral.history import Change
from coral.ids import BlobId, ChunkId, CommitHash
from coral.storage.locks import file_lock

if TYPE_CHECKING:
    from coral.format.manifest import Manifest
    from coral.history import History, Operation
    from coral.objects import ChunkStore
    from coral.verbs.heads import Heads
    from coral.verbs.parts import PartReader

_SYMBOLIC = "ref: "


def undo(heads: Heads, opened: Callable[[], ChunkStore], count: int) -> list[Operation]:
    """Take the last operations back; returns them. That is an operation too; the files follow where they did.

    Args:
        opened: opens the chunk store.

    Raises:
        UsageError, NotFoundError, ConflictError, OverwriteError: they cannot be; nothing was changed.
    """
    history = heads.history
    operations = _last_operations(history, count)
    changes = _changes_of(operations)
    store = opened()
    _take_back_collections(store, operations)
    with store.held():
        _bring_back(history, heads.reader, store, changes)
        if any(one.files for one in operations):
            heads.follow(_head_after(history, changes))
        history.put_back(changes, undoes=operations)
    if "HEAD" in changes:
        heads.line.pin()
    return operations


def _last_operations(history: History, count: int) -> list[Operation]:
    """The last operations that can be taken back, the newest first.

    Raises:
        UsageError: not a number of operations.
        NotFoundError: there are not so many.
    """
    if count < 1:
        raise UsageError(f"{count} is no number of operations")
    found = [one for one in history.operations() if one.moves or one.trash is not None]
    if len(found) < count:
        raise NotFoundError(f"there are {len(found)} operations that can be undone" if found else "nothing to undo")
    return found[:count]


def _changes_of(operations: Iterable[Operation]) -> dict[str, Change]:
    """What takes operations back, given the newest first.

    Raises:
        ConflictError: a ref moved in between, and it was not noted.
    """
    changes: dict[str, Change] = {}
    for one in operations:
        for ref, old, new in reversed(one.moves):
            later = changes.get(ref, Change(new, new))
            if later.target != new:
                raise ConflictError(f"{ref} moved between these operations, and nobody noted how")
            changes[ref] = Change(later.expected, old, later.reflog_of)
        if one.renames:
            born, gone = one.moves[0].ref, one.moves[1].ref if len(one.moves) > 1 else ""
            if gone in changes:
                changes[gone] = changes[gone]._replace(reflog_of=born)
    return {ref: change for ref, change in changes.items() if change.expected != change.target}


def _head_after(history: History, changes: Mapping[str, Change]) -> CommitHash | None:
    """The commit that HEAD will be at."""
    head = changes.get("HEAD")
    at = history.head()
    if head is not None and head.target is not None and not head.target.startswith(_SYMBOLIC):
        return CommitHash(head.target)
    if head is not None:
        ref = (head.target or "").removeprefix(_SYMBOLIC)
    elif at.branch is not None:
        ref = f"refs/heads/{at.branch}"
    else:
        return at.commit
    if ref not in changes:
        return history.branch_tip(ref.removeprefix("refs/heads/"))
    target = changes[ref].target
    return CommitHash(target) if target is not None else None


def _take_back_collections(store: ChunkStore, operations: Sequence[Operation]) -> None:
    """Put what was collected back into the store. Raises NotFoundError when it is gone."""
    batches = [one.trash for one in operations if one.trash is not None]
    if batches:
        with store.held(), file_lock(store.trash_lock):
            for batch in batches:
                store.trash.take_back_batch(batch, store.packs)


def _bring_back(history: History, reader: PartReader, store: ChunkStore, changes: Mapping[str, Change]) -> None:
    """See that what refs are put back to is there, and take it out of the trash where it is not.

    Raises:
        ConflictError: it was removed for good.
    """
    targets = {change.target for change in changes.values() if change.target is not None}
    seen: set[BlobId] = set()
    for target in sorted(target for target in targets if not target.startswith(_SYMBOLIC)):
        try:
            tip = history.resolve(target)
        except RefNotFoundError:
            continue  # a tag of something else
        hashes = [tip] if store.trash.is_empty else [commit.commit_hash for commit in history.log(tip)]
        for commit_hash in hashes:
            for part, oid in history.parts(commit_hash).items():
                if oid not in seen:
                    seen.add(oid)
                    _bring_back_part(store, reader.load(oid), f"{part} of {commit_hash[:10]}")


def _bring_back_part(store: ChunkStore, manifest: Manifest, where: str) -> None:
    for record in manifest.everything:
        kind, _, digits = record.content.partition(":")
        if kind == "hex":
            continue
        try:
            store.take_back([ChunkId(bytes.fromhex(digits))])
            store.take_back(store.chunk_ids(record))
            store.check(record)
        except CorruptionError as error:
            raise ConflictError(
                f"{where} was collected as garbage, and is no longer in the trash: {error.message}"
            ) from error
