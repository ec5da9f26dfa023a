"""git's merge driver: three files that git made, of which the outcome takes the place of one."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from coral.errors import UsageError
from coral.format.manifest import Manifest, is_manifest
from coral.storage.folder import Folder
from coral.verbs.merging.merge import Merge, common, merge
from coral.verbs.merging.rules import LEAVE, RULES, settle

if TYPE_CHECKING:
    from coral.objects import ChunkStore

_HEAD_BYTES = 64


class Files(NamedTuple):
    """What git hands in: three versions, and the name of the file that they are versions of."""

    base: Path
    ours: Path
    theirs: Path
    name: str


def merge_files(
    files: Files,
    *,
    keep: Callable[[Path], Manifest],
    store: Callable[[], ChunkStore],
    rule: Callable[[], str | None],
    marker_size: int,
) -> tuple[str, ...]:
    """Merge the versions, and write the outcome over ours.

    Args:
        keep: takes a model in that was committed before it was tracked.
        store: called when a rule computes something.
        rule: called when both sides changed something: the name of a rule, or :data:`LEAVE`, which None means too.
        marker_size: length of the markers around what is not settled.

    Returns:
        What is not settled, by name.

    Raises:
        UsageError: a version is none, or there is no such rule; nothing is written.
        CorruptionError, StorageError: a tensor cannot be read, or the disk refused.
    """
    base, ours, theirs = (_read(file, keep) for file in files[:3])
    if ours is None or theirs is None:
        raise UsageError(f"{files.name}: a version is empty, or has conflicts in it", hint="settle those first")
    merged = merge(base, ours, theirs)
    name = (rule() if merged.conflicts else None) or LEAVE
    if name != LEAVE:
        if name not in RULES:
            raise UsageError(
                f"{files.name}: there is no merge rule {name!r}", hint=f"one of {', '.join((*RULES, LEAVE))}"
            )
        merged = settle(merged, RULES[name], store=store, base=base)
    Folder(files.ours.parent).write(files.ours.name, merged.to_bytes(marker_size=marker_size))
    return merged.conflicts


def _read(file: Path, keep: Callable[[Path], Manifest]) -> Manifest | None:
    """One version; None where there is none. Of one with conflicts in it, what both of its sides agree on."""
    if os.path.getsize(file) == 0:
        return None
    with file.open("rb") as opened:
        head = opened.read(_HEAD_BYTES)
    return common(Merge.from_bytes(file.read_bytes())) if is_manifest(head) else keep(file)
