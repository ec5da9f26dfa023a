"""What differs between a branch's tip, the staging area and the project's files."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from coral.verbs.staging import StagedChange, staged_changes

if TYPE_CHECKING:
    from coral.ids import CommitHash
    from coral.verbs.line import Line
    from coral.verbs.parts import PartReader
    from coral.verbs.worktree import WorkTree


@dataclass(frozen=True, slots=True)
class Status:
    """What differs between the branch's tip, the staging area and the project's files.

    Attributes:
        branch: the branch HEAD is on, None when detached.
        commit: full hash of HEAD, None before the first commit.
        staged: what the next commit will change.
        modified: files that differ from the commit, or from what is staged.
        untracked: model files that no part names.
        parts: how many parts the next commit will hold.
    """

    branch: str | None
    commit: CommitHash | None
    staged: tuple[StagedChange, ...]
    modified: tuple[str, ...]
    untracked: tuple[str, ...]
    parts: int


def status_of(line: Line, reader: PartReader, worktree: WorkTree) -> Status:
    """Compare them, and remember the stamps of files that had to be read."""
    branch, commit_hash = line.position()
    parts = line.staged()
    tip = reader.at(commit_hash) if commit_hash else {}
    now = {name: part for name, part in {**tip, **parts}.items() if part is not None}
    there = worktree.materialised(now)
    modified = tuple(name for name in sorted(there) if not worktree.agrees(name, now[name]))
    worktree.save_stamps()
    staged = tuple(staged_changes(parts, tip.get))
    return Status(branch, commit_hash, staged, modified, tuple(worktree.untracked(now)), len(now))
