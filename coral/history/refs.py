"""Branches, tags and HEAD: the only things of the history that move.

Every write *must* hold the flock ``refs``: it sweeps lock files that a killed process left, compares the ref with what
the caller expects, moves it by libgit2's own compare-and-swap, and syncs the folders on its way; then the log of
operations is told of it.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from coral.errors import (
    AlreadyExistsError,
    ConflictError,
    CoralError,
    LockedError,
    RefNotFoundError,
    StorageError,
    UsageError,
)
from coral.format.names import check_ref_name
from coral.history.commit import is_hash, to_datetime
from coral.history.libgit import Handle
from coral.history.operations import Move, OperationLog
from coral.history.plain import RefTarget
from coral.ids import CommitHash
from coral.storage.files import sync_folder, translate_errors
from coral.storage.folder import Folder
from coral.storage.locks import file_lock

BRANCHES, TAGS = "refs/heads/", "refs/tags/"
_STALE_SECONDS = 3.0
_LOCK_WAIT_SECONDS = 10.0
_POLL_SECONDS = 0.05
_SINGLE_LOCKS = ("HEAD.lock", "packed-refs.lock", "config.lock")


class Head(NamedTuple):
    """Where HEAD is: ``branch`` is None when it is detached, ``commit`` is None on a branch without commits."""

    branch: str | None
    commit: CommitHash | None


@dataclass(frozen=True, slots=True)
class ReflogEntry:
    """One move of a ref; ``index`` is the n of ``ref@{n}``; ``old`` is None where the ref began."""

    index: int
    old: str | None
    new: str | None
    reason: str
    time: datetime


class Change(NamedTuple):
    """Where a ref is, and where it shall be: a hash, ``ref: <name>``, or None for no such ref.

    Attributes:
        reflog_of: the ref whose reflog it takes over.
    """

    expected: str | None
    target: str | None
    reflog_of: str | None = None


class Refs:
    """The refs of one repository.

    Args:
        handle: the repository.
        locks: the folder of coral's flock files.
        log: where each move is noted.
    """

    def __init__(self, handle: Handle, locks: Path, log: OperationLog) -> None:
        self._log = log
        self._handle = handle
        self._lock = locks / "refs"
        self._folder = Folder(handle.git_dir)
        self._swept_all = False
        self._durable_folders: set[Path] = set()

    # -- reading

    def branches(self) -> dict[str, CommitHash]:
        return {name: CommitHash(oid) for name, oid in self._handle.refs(BRANCHES).items()}

    def head(self) -> Head:
        """Where HEAD is. Raises CorruptionError."""
        target = self._handle.ref("HEAD")
        if target is None:
            raise RefNotFoundError("the repository has no HEAD", hint="run coral fsck")
        if target.ref is None:
            return Head(None, _commit(target.oid))
        tip = self.tip(target.ref)
        if not target.ref.startswith(BRANCHES):
            return Head(None, tip)
        return Head(target.ref.removeprefix(BRANCHES), tip)

    def tip(self, branch: str) -> CommitHash | None:
        """The commit that a branch (full name) is at; None when it does not exist."""
        return _commit(self.oid(branch))

    def oid(self, ref: str) -> str | None:
        """The object that a ref leads to; None when it does not exist."""
        for _ in range(5):  # as deep as git follows symbolic refs
            target = self._handle.ref(ref)
            if target is None or target.ref is None:
                return target.oid if target is not None else None
            ref = target.ref
        raise ConflictError(f"the ref {ref} goes round in circles")

    def reflog(self, ref: str) -> list[ReflogEntry]:
        """The moves of a ref (full name), newest first."""
        lines = self._handle.reflog(ref)
        return [
            ReflogEntry(index, _or_none(old), _or_none(new), reason, to_datetime(when, offset))
            for index, (old, new, reason, when, offset) in enumerate(lines)
        ]

    # -- writing

    def create(self, ref: str, oid: str, *, reason: str, force: bool = False) -> None:
        """Create a ref (full name), or move it there when forced."""
        with self._writing(reason, ref) as moves:
            held = self.oid(ref)
            if held is not None and not force:
                raise _taken(ref)
            moves.append(Move(ref, held, oid))
            if held is not None:
                self._handle.move_ref(ref, RefTarget(oid, None), _one_line(reason), expected=RefTarget(held, None))
            else:
                self._create(ref, RefTarget(oid, None), reason)

    def move(self, ref: str, new: CommitHash, *, expected: CommitHash | None, reason: str) -> None:
        """Move a branch (full name) that is at ``expected`` (None: does not exist). Raises ConflictError otherwise."""
        with self._writing(reason, ref) as moves:
            held = self.oid(ref)
            if held != expected:
                raise _moved(ref, held, expected)
            moves.append(Move(ref, held, new))
            if expected is None:
                self._create(ref, RefTarget(new, None), reason)
            else:
                self._handle.move_ref(ref, RefTarget(new, None), _one_line(reason), expected=RefTarget(expected, None))

    def delete(self, ref: str) -> None:
        """Delete a ref and its reflog. Raises RefNotFoundError, ConflictError for HEAD's branch."""
        with self._writing(f"{'tag' if ref.startswith(TAGS) else 'branch'} -d {short(ref)}", ref) as moves:
            held = self._handle.ref(ref)
            if held is None:
                raise missing_ref(ref, self._names_like(ref))
            moves.append(Move(ref, _said(held), None))
            head = self._handle.ref("HEAD")
            if head is not None and head.ref == ref:
                raise ConflictError(
                    f"the branch {short(ref)!r} is the current one, so it cannot be deleted",
                    hint="switch to another branch first",
                )
            self._delete(ref)

    def rename(self, old: str, new: str) -> None:
        """Rename a branch (full names) with its reflog; HEAD follows it. A kill in between leaves both names."""
        reason = f"Branch: renamed {old} to {new}"
        with self._writing(reason, new, old, renames=True) as moves:
            head, oid = self._handle.ref("HEAD"), self.oid(old)
            on_it = head is not None and head.ref == old
            if oid is None and not on_it:
                raise missing_ref(old, self._names_like(old))
            if old == new:
                return
            if self._handle.ref(new) is not None:
                raise _taken(new)
            if oid is not None:
                self._create(new, RefTarget(oid, None), reason)
                self._copy_reflog(old, new)
                moves += [Move(new, None, oid), Move(old, oid, None)]
            if on_it and head is not None:
                self._handle.move_ref("HEAD", RefTarget(None, new), reason, expected=head)
                moves.append(Move("HEAD", _said(head), f"ref: {new}"))
            self._delete(old)

    def set_head(self, target: RefTarget, reason: str) -> None:
        """Point HEAD at a branch or, detached, at a commit."""
        with self._writing(reason, "HEAD") as moves:
            held = self._handle.ref("HEAD")
            self._handle.create_ref("HEAD", target, _one_line(reason), force=True)
            if held != target:
                moves.append(Move("HEAD", None if held is None else _said(held), _said(target)))

    def move_detached_head(self, new: CommitHash, *, expected: CommitHash, reason: str) -> None:
        """Move a detached HEAD that is at ``expected``. Raises ConflictError otherwise."""
        with self._writing(reason, "HEAD") as moves:
            head = self._handle.ref("HEAD")
            if head is None or head.oid != expected:
                held = head.oid or head.ref if head is not None else None
                raise _moved("HEAD", held, expected)
            self._handle.move_ref("HEAD", RefTarget(new, None), _one_line(reason), expected=head)
            moves.append(Move("HEAD", expected, new))

    def restore(self, changes: Mapping[str, Change], *, reason: str) -> None:
        """Put refs back to where they were, all of them or none. Raises ConflictError when one has moved since."""
        with self._writing(reason, "HEAD", *changes) as moves:
            for ref, change in changes.items():
                held = self._handle.ref(ref)
                if (None if held is None else _said(held)) != change.expected:
                    raise ConflictError(
                        f"{short(ref)!r} has moved since, so it cannot be put back",
                        hint="'coral undo --list' shows what was done, 'coral reflog' where it was",
                    )
            # What HEAD may be put on comes first, and goes last.
            for ref, change in sorted(changes.items(), key=lambda item: (item[1].target is None, item[0] == "HEAD")):
                self._restore(ref, change, reason)
                moves.append(Move(ref, change.expected, change.target))

    def _restore(self, ref: str, change: Change, reason: str) -> None:
        if change.target is None:
            self._delete(ref)
        elif change.expected is None:
            self._create(ref, _target(change.target), reason)
            if change.reflog_of is not None:
                self._copy_reflog(change.reflog_of, ref)
        else:
            # Looked at under the lock; libgit2 moves no ref from a commit to a branch.
            self._handle.create_ref(ref, _target(change.target), _one_line(reason), force=True)

    def sweep(self) -> None:
        """Remove every lock file that a killed process left."""
        with file_lock(self._lock):
            self._sweep(self._all_locks())

    def _create(self, ref: str, target: RefTarget, reason: str) -> None:
        try:
            self._handle.create_ref(ref, target, _one_line(reason))
        except CoralError as error:
            clash = self._clash(ref)
            if clash is None:
                raise
            raise AlreadyExistsError(
                f"{short(clash)!r} exists, so {short(ref)!r} cannot: one name cannot be both a branch and a folder",
                hint="choose a name that is not the beginning of the other",
            ) from error

    def _clash(self, ref: str) -> str | None:
        kind = next((prefix for prefix in (BRANCHES, TAGS) if ref.startswith(prefix)), "refs/")
        for name in self._handle.refs(kind):
            taken = kind + name
            if taken.startswith(ref + "/") or ref.startswith(taken + "/"):
                return taken
        return None

    def _names_like(self, ref: str) -> list[str]:
        return list(self._handle.refs(TAGS if ref.startswith(TAGS) else BRANCHES))

    def _copy_reflog(self, old: str, new: str) -> None:
        if self._folder.exists(f"logs/{old}"):
            born = self._folder.read(f"logs/{new}").splitlines(keepends=True)[-1:]
            _, oid, rest = b"".join(born).split(b" ", 2)
            moved = b" ".join((oid, oid, rest))  # as git writes it: from the commit to itself
            self._folder.write(f"logs/{new}", self._folder.read(f"logs/{old}") + moved)

    # -- locks and durability

    @contextlib.contextmanager
    def _writing(self, reason: str, *refs: str, renames: bool = False) -> Iterator[list[Move]]:
        """Hold the lock while these refs are written; what is put into the list has moved when the block ends well."""
        moves: list[Move] = []
        with file_lock(self._lock):
            for ref in refs:
                self._refuse_links(ref)
            locks = [f"{ref}.lock" for ref in refs]
            self._sweep([*locks, *_SINGLE_LOCKS] if self._swept_all else self._all_locks())
            self._swept_all = True
            yield moves
            for ref in refs:
                self._sync_folders(ref)
            if moves:
                self._log.append(_one_line(reason), moves, renames=renames)

    def _refuse_links(self, ref: str) -> None:
        """Raise StorageError where libgit2 would write through a symbolic link, and so perhaps outside."""
        for name in (ref, f"logs/{ref}", "HEAD", "logs/HEAD", "packed-refs"):
            path = self._folder.path(name)
            way = path.relative_to(self._folder.root)
            for place in (way, *list(way.parents)[:-1]):
                found = self._folder.root / place
                with translate_errors(found):
                    if found.is_symlink():
                        raise StorageError(f"{found} is a symbolic link", hint="remove it")

    def _all_locks(self) -> list[str]:
        found = list(_SINGLE_LOCKS)
        root = self._folder.root
        for folder, _, names in os.walk(root / "refs"):
            found += [os.path.relpath(os.path.join(folder, name), root) for name in names if name.endswith(".lock")]
        return found

    def _sweep(self, keys: list[str]) -> None:
        # No coral process writes refs while we hold the flock: a lock file is a live git's, which keeps it for
        # milliseconds, or a dead process's.
        deadline = time.monotonic() + _LOCK_WAIT_SECONDS
        for key in keys:
            path = self._folder.path(key)
            while True:
                with translate_errors(path):
                    try:
                        age = time.time() - path.lstat().st_mtime
                    except (FileNotFoundError, NotADirectoryError):
                        break
                if abs(age) > _STALE_SECONDS:
                    self._folder.remove(key)
                    break
                if time.monotonic() > deadline:
                    raise LockedError(f"another git process keeps {path}", hint="wait for it, then try again")
                time.sleep(_POLL_SECONDS)

    def _sync_folders(self, ref: str) -> None:
        """Make durable the names of the folders between a ref and the repository, once each."""
        # libgit2 syncs the folder of a file that it writes, but no folder that it makes on the way.
        root = self._folder.root
        for path in (Path(ref), Path("logs", ref)):
            for folder in list(path.parents)[:-1]:
                with translate_errors(root / folder):
                    if not (root / folder).is_dir():
                        self._durable_folders.discard(folder)
                    elif folder not in self._durable_folders:
                        sync_folder((root / folder).parent)
                        self._durable_folders.add(folder)

    def _delete(self, ref: str) -> None:
        self._handle.delete_ref(ref)
        # It may have removed folders that became empty, down to the first that stays.
        root = self._folder.root
        for path in (root / ref, root / "logs" / ref):
            with translate_errors(path):
                sync_folder(next(folder for folder in path.parents if folder.is_dir()))


def _said(target: RefTarget) -> str:
    return target.oid if target.oid is not None else f"ref: {target.ref}"


def _target(text: str) -> RefTarget:
    symbolic = text.removeprefix("ref: ")
    return RefTarget(text, None) if symbolic == text else RefTarget(None, symbolic)


def branch_ref(name: str) -> str:
    """The full name of a branch. Raises InvalidNameError."""
    return BRANCHES + check_ref_name(name)


def tag_ref(name: str) -> str:
    """The full name of a tag. Raises InvalidNameError."""
    return TAGS + check_ref_name(name, "tag")


def short(ref: str) -> str:
    """A ref's name as people write it."""
    return ref.removeprefix(BRANCHES).removeprefix(TAGS)


def near_misses(name: str, names: list[str]) -> str | None:
    """A hint that names what the caller may have meant."""
    import difflib  # for errors only

    close = difflib.get_close_matches(name, names, n=3, cutoff=0.6)
    return f"did you mean {' or '.join(map(repr, close))}?" if close else None


def missing_ref(ref: str, names: list[str]) -> RefNotFoundError:
    """The error for a branch or tag that does not exist."""
    kind = "tag" if ref.startswith(TAGS) else "branch"
    return RefNotFoundError(f"there is no {kind} {short(ref)!r}", hint=near_misses(short(ref), names))


def check_hash(text: str) -> str:
    """Refuse anything but a full hash. Raises UsageError."""
    if not is_hash(text):
        raise UsageError(f"{text!r} is not a full commit hash")
    return text


def _taken(ref: str) -> AlreadyExistsError:
    kind = "tag" if ref.startswith(TAGS) else "branch"
    return AlreadyExistsError(f"the {kind} {short(ref)!r} exists already")


def _moved(ref: str, held: str | None, expected: CommitHash | None) -> ConflictError:
    if expected is None:
        return _taken(ref)
    where = f"is at {held[:10] if is_hash(held) else held}" if held is not None else "is gone"
    return ConflictError(
        f"{short(ref)!r} {where}, not at {expected[:10]}: another process moved it", hint="run the command again"
    )


def _one_line(reason: str) -> str:
    return " ".join(reason.replace("\0", " ").split()).encode("utf-8", "replace").decode()


def _commit(oid: str | None) -> CommitHash | None:
    """What HEAD or a branch leads to."""
    return CommitHash(oid) if oid is not None else None


def _or_none(oid: str) -> str | None:
    return oid if oid.strip("0") else None
